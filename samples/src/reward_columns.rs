//! Checks the columns of a row that reward functions read.

use reel_diagnostic::Diagnostic;
use reel_rewards::{self as rewards, ProblemType};
use serde_json::{Map, Value};

/// The columns `solution` and `problem_type` of a row.
pub fn solution_and_type(columns: &Map<String, Value>) -> (Option<&str>, Option<&str>) {
    let text = |name: &str| columns.get(name).and_then(Value::as_str);
    (text("solution"), text("problem_type"))
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
            return Err(Diagnostic::new(name, "is not a string", "write it as a JSON string"));
        }
    }
    let (solution, problem_type) = solution_and_type(columns);
    let Some(solution) = solution else {
        let help = "add it, or give --reward-command or --reward-url";
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
