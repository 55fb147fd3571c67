//! Checks the columns of a row that reward functions read.

use crate::rewards::{self as rewards, AnswerRules, ProblemFields, ProblemType};
use reel_support::diagnostic::Diagnostic;
use serde_json::{Map, Value};

/// The columns `solution` and `problem_type` of a row.
pub fn solution_and_type(columns: &Map<String, Value>) -> (Option<&str>, Option<&str>) {
    let text = |name: &str| columns.get(name).and_then(Value::as_str);
    (text("solution"), text("problem_type"))
}

/// Prepares and checks the columns of a row that the rewards read. `custom` tells whether the user gave custom
/// rewards. Without them, the columns of other programs are read ([`add_missing_reward_columns`]).
///
/// # Errors
/// A column is missing or wrong ([`check_reward_columns`]).
pub fn prepare_reward_columns(
    columns: &mut Map<String, Value>,
    custom: bool,
    rules: AnswerRules,
) -> Result<(), Diagnostic> {
    // A `solution` that only custom rewards read is passed to them unchanged.
    let is_compared = !custom || columns.get("problem_type").is_some_and(|kind| !kind.is_null());
    if let Some(Value::Number(number)) = columns.get("solution").filter(|_| is_compared) {
        let text = number.to_string();
        columns.insert("solution".into(), text.into());
    }
    if !custom {
        add_missing_reward_columns(columns)?;
    }
    check_reward_columns(columns, custom, rules)
}

/// Adds the columns that the accuracy reward reads to a row that has its answer in another form. The `solution` is
/// made from verl's `reward_model.ground_truth`, from EasyR1's `answer` or from `ground_truth`, and put in `<answer>`
/// tags. The `problem_type` is inferred from the solution ([`inferred_type`]). A number becomes its text. Existing
/// columns are not changed.
///
/// # Errors
/// The row has no `solution`, and the column with its answer is neither a text nor a number.
fn add_missing_reward_columns(columns: &mut Map<String, Value>) -> Result<(), Diagnostic> {
    let is_missing = |columns: &Map<String, Value>, name: &str| columns.get(name).is_none_or(Value::is_null);
    let is_typed = !is_missing(columns, "problem_type");
    if is_missing(columns, "solution") {
        let Some((name, answer)) = answer_in_other_column(columns)? else { return Ok(()) };
        let text = match answer {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            _ => {
                let what = "is neither a text nor a number, so it cannot be the `solution`, which is missing";
                return Err(Diagnostic::new(name, what, "write the answer as text"));
            }
        };
        columns.insert("solution".into(), if is_typed { in_tags(&text).into() } else { text.into() });
    }
    if is_typed {
        return Ok(());
    }
    let Some(tagged) = columns.get("solution").and_then(Value::as_str).map(in_tags) else { return Ok(()) };
    columns.insert("problem_type".into(), inferred_type(&tagged).name().into());
    columns.insert("solution".into(), tagged.into());
    Ok(())
}

fn in_tags(solution: &str) -> String {
    if solution.contains("<answer>") { solution.to_string() } else { format!("<answer>{}</answer>", solution.trim()) }
}

/// The answer of a row in a column of another program's format, with the name of that column; `None` if the row has
/// no such column. A `reward_model` may be JSON text.
fn answer_in_other_column(columns: &Map<String, Value>) -> Result<Option<(&'static str, Value)>, Diagnostic> {
    let given = |value: Option<&Value>| value.filter(|value| !value.is_null()).cloned();
    if let Some(model) = given(columns.get("reward_model")) {
        let parsed = match &model {
            Value::String(text) => serde_json::from_str(text).ok().filter(Value::is_object),
            Value::Object(_) => Some(model),
            _ => None,
        };
        if let Some(answer) = parsed.as_ref().and_then(|model| given(model.get("ground_truth"))) {
            return Ok(Some(("reward_model.ground_truth", answer)));
        }
    }
    for name in ["answer", "ground_truth"] {
        if let Some(answer) = given(columns.get(name)) {
            return Ok(Some((name, answer)));
        }
    }
    match given(columns.get("reward_model")) {
        Some(_) => Err(Diagnostic::new(
            "reward_model",
            "has no `ground_truth`, so the `solution` is missing",
            "give an object with `ground_truth`, or the column `solution`",
        )),
        None => Ok(None),
    }
}

/// The kind of a problem without a `problem_type`: multiple choice if the answer is one letter from A to H, numerical
/// if it is a number, otherwise free-form.
fn inferred_type(solution: &str) -> ProblemType {
    let answer = solution.split("<answer>").nth(1).and_then(|rest| rest.split("</answer>").next()).unwrap_or_default();
    let answer = answer.trim();
    if matches!(answer.as_bytes(), [b'A'..=b'H']) {
        return ProblemType::MultipleChoice;
    }
    match rewards::check_solution(Some(ProblemType::Numerical), solution) {
        Ok(()) => ProblemType::Numerical,
        Err(_) => ProblemType::FreeForm,
    }
}

/// Checks that a row has the columns that its rewards need. If `custom` is true, the user gave custom rewards: a row
/// then needs no solution, and only the custom rewards read a solution without a `problem_type` (as in rows of TRL
/// and ms-swift).
fn check_reward_columns(columns: &Map<String, Value>, custom: bool, rules: AnswerRules) -> Result<(), Diagnostic> {
    if custom && columns.get("problem_type").is_none_or(Value::is_null) {
        return Ok(());
    }
    for name in ["solution", "problem_type"] {
        if columns.get(name).is_some_and(|value| !value.is_string() && !value.is_null()) {
            return Err(Diagnostic::new(name, "is not a string", "write the value as a JSON string"));
        }
    }
    let (solution, problem_type) = solution_and_type(columns);
    let Some(solution) = solution else {
        let help = "add the solution, or give --reward-command or --reward-url";
        let missing = Diagnostic::new("solution", "is missing, and there is no custom reward", help);
        return if custom { Ok(()) } else { Err(missing) };
    };
    let known = || ProblemType::ALL.map(ProblemType::name).join(", ");
    match problem_type {
        None => Err(Diagnostic::new("problem_type", "is missing", format!("use one of {}", known()))),
        Some(name) if ProblemType::parse(name).is_err() => {
            let what = format!("is `{name}`, for which there is no accuracy rule");
            Err(Diagnostic::new("problem_type", what, format!("use one of {}", known())))
        }
        // A solution without `<answer>` tags is refused, for example, because every completion without tags would
        // match it.
        Some(name) => {
            let kind = ProblemType::parse(name).ok();
            rewards::check_solution(kind, solution)?;
            ProblemFields::from_row(columns, kind, rules).map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_of_other_programs_become_solutions_with_a_type() {
        for (row, solution, kind) in [
            (json!({"solution": "<answer> 3 </answer>"}), "<answer> 3 </answer>", "numerical"),
            (json!({"solution": "B"}), "<answer>B</answer>", "multiple choice"),
            (json!({"answer": 3}), "<answer>3</answer>", "numerical"),
            (
                json!({"reward_model": {"style": "rule", "ground_truth": "a cat"}}),
                "<answer>a cat</answer>",
                "free-form",
            ),
            (json!({"solution": "x", "problem_type": "OCR"}), "x", "OCR"),
            (json!({"solution": 7}), "<answer>7</answer>", "numerical"),
            (json!({"answer": 7, "problem_type": "numerical"}), "<answer>7</answer>", "numerical"),
            (json!({"reward_model": "{\"ground_truth\": \"B\"}"}), "<answer>B</answer>", "multiple choice"),
            (json!({"reward_model": {"style": "rule"}, "answer": 2.5}), "<answer>2.5</answer>", "numerical"),
        ] {
            let Value::Object(mut columns) = row.clone() else { panic!("{row}") };
            let _ = prepare_reward_columns(&mut columns, false, AnswerRules::default());
            assert_eq!(solution_and_type(&columns), (Some(solution), Some(kind)), "{row}");
        }
        let mut none = Map::new();
        add_missing_reward_columns(&mut none).unwrap();
        assert!(none.is_empty());
        for (row, name) in [
            (json!({"answer": true}), "answer"),
            (json!({"reward_model": {"ground_truth": ["a"]}}), "reward_model.ground_truth"),
            (json!({"reward_model": "text"}), "reward_model"),
        ] {
            let Value::Object(mut columns) = row else { unreachable!() };
            assert_eq!(add_missing_reward_columns(&mut columns).unwrap_err().location, name);
        }
    }
}
