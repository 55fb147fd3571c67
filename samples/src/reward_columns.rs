//! Checks the columns of a row that reward functions read.

use reel_diagnostic::Diagnostic;
use reel_rewards::{self as rewards, ProblemType};
use serde_json::{Map, Value};

/// The columns `solution` and `problem_type` of a row.
pub fn solution_and_type(columns: &Map<String, Value>) -> (Option<&str>, Option<&str>) {
    let text = |name: &str| columns.get(name).and_then(Value::as_str);
    (text("solution"), text("problem_type"))
}

/// Adds the columns that the accuracy reward reads to a row that has its answer in another form: the `solution` from
/// verl's `reward_model.ground_truth` or EasyR1's `answer`, in `<answer>` tags, and the `problem_type` from the solution
/// ([`inferred_type`]). Columns that are there stay as they are.
pub fn add_missing_reward_columns(columns: &mut Map<String, Value>) {
    let is_missing = |columns: &Map<String, Value>, name: &str| columns.get(name).is_none_or(Value::is_null);
    if !is_missing(columns, "problem_type") {
        return;
    }
    if is_missing(columns, "solution") {
        let nested = columns.get("reward_model").and_then(|model| model.get("ground_truth"));
        let answer =
            nested.or(columns.get("answer")).or(columns.get("ground_truth")).filter(|answer| !answer.is_null());
        let text = match answer {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => return,
        };
        columns.insert("solution".into(), text.into());
    }
    let Some(solution) = columns.get("solution").and_then(Value::as_str).map(str::to_string) else { return };
    let tagged = if solution.contains("<answer>") { solution } else { format!("<answer>{}</answer>", solution.trim()) };
    columns.insert("problem_type".into(), inferred_type(&tagged).name().into());
    columns.insert("solution".into(), tagged.into());
}

/// The kind of a problem that does not name it: multiple choice if the answer is one letter from A to H, numerical if it
/// is a number, else free-form.
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
/// then needs no solution, and a solution without a `problem_type` (as in rows of TRL and ms-swift) is read by the
/// custom rewards only.
pub fn check_reward_columns(columns: &Map<String, Value>, custom: bool) -> Result<(), Diagnostic> {
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
        // A solution without `<answer>` tags, for example, is refused: every completion without tags would match it.
        Some(name) => rewards::check_solution(ProblemType::parse(name).ok(), solution),
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
        ] {
            let Value::Object(mut columns) = row.clone() else { panic!("{row}") };
            add_missing_reward_columns(&mut columns);
            assert_eq!(solution_and_type(&columns), (Some(solution), Some(kind)), "{row}");
        }
        let mut none = Map::new();
        add_missing_reward_columns(&mut none);
        assert!(none.is_empty());
    }
}
