//! Finds solutions with which no answer can be compared. The reference code gives such rows a reward (often 0)
//! without a warning, and this crate does the same. Programs use this check to warn their user.

use reel_support::diagnostic::Diagnostic;

use crate::rewards::ProblemType;
use crate::rewards::accuracy::score_answer;
use crate::rewards::answer::extract_answer;
use crate::rewards::problem::{AnswerRules, ProblemFields};
use crate::rewards::python_number::parse_number;

/// Checks that the solution of a problem has an answer that can be compared with a completion's answer, by the
/// accuracy rule of the kind of problem.
///
/// # Errors
/// The kind of problem is unknown (`None`); the solution has no text in `<answer>` tags; the problem asks for a number
/// and the solution is not a number, or is NaN; the solution is infinite and the problem is scored by its relative
/// error; the problem asks for times, boxes, points, or yes or no, and the solution has none. The diagnostic's location
/// is the name of the wrong field.
pub fn check_solution(kind: Option<ProblemType>, solution: &str) -> Result<(), Diagnostic> {
    let Some(kind) = kind else {
        let known = ProblemType::ALL.map(ProblemType::name).join(", ");
        let what = "has no accuracy rule, so every answer scores 0";
        return Err(Diagnostic::new("problem_type", what, format!("use one of {known}")));
    };
    let truth = extract_answer(solution);
    if truth.is_empty() {
        return Err(Diagnostic::new("solution", "has no answer in <answer> tags", "write <answer>…</answer>"));
    }
    let is_number = matches!(kind, ProblemType::Numerical | ProblemType::Regression);
    let fault = match parse_number(truth).filter(|_| is_number) {
        None if is_number => "is not a number".to_string(),
        Some(number) if number.is_nan() => "is NaN".into(),
        Some(number) if number.is_infinite() && kind == ProblemType::Regression => "is infinite".into(),
        Some(_) => return Ok(()),
        None => {
            // A truth that would be malformed as an answer cannot be matched.
            let (fields, rules) = (ProblemFields::default(), AnswerRules::default());
            let Err(reason) = score_answer(Some(kind), solution, solution, &fields, rules) else { return Ok(()) };
            format!("cannot be read ({})", reason.name())
        }
    };
    let shown: String = truth.chars().take(40).collect();
    let what = format!("`{shown}` {fault}, but the problem_type is {}", kind.name());
    let form = if is_number { "a number" } else { "the truth as answers have it" };
    let help = format!("write {form} in the <answer> tags, or change the problem_type");
    Err(Diagnostic::new("solution", what, help))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewards::accuracy_reward;
    use proptest::prelude::*;

    #[test]
    fn unusable_solutions_are_named() {
        use ProblemType::{FreeForm, MultipleChoice, Numerical, Ocr, Regression};
        let fault = |kind, solution: &str| check_solution(kind, solution).err().map(|d| d.to_string());
        for (kind, solution, expected) in [
            (Some(MultipleChoice), "B", "solution: has no answer in <answer> tags; "),
            (Some(Ocr), "<answer> </answer>", "solution: has no answer in <answer> tags; "),
            (Some(Regression), "<answer>about 5</answer>", "solution: `about 5` is not a number, but "),
            (Some(Regression), "<answer>nan</answer>", "solution: `nan` is NaN, but the problem_type is regression; "),
            (Some(Regression), "<answer>-inf</answer>", "solution: `-inf` is infinite, but "),
            (Some(Numerical), "<answer>five</answer>", "solution: `five` is not a number, but "),
            (Some(Numerical), "<answer>NaN</answer>", "solution: `NaN` is NaN, but the problem_type is numerical; "),
            (None, "<answer>5</answer>", "problem_type: has no accuracy rule, so every answer scores 0; "),
        ] {
            let got = fault(kind, solution).unwrap_or_default();
            assert!(got.starts_with(expected), "{solution}: {got}");
        }
        for (kind, solution) in [
            (MultipleChoice, "<answer>B</answer>"),
            (FreeForm, "so <answer>nan</answer>"),
            (Numerical, "<answer>1,000.5</answer>"),
            (Numerical, "<answer>inf</answer>"),
            (Regression, "<answer> -1e3 </answer>"),
        ] {
            assert_eq!(fault(Some(kind), solution), None, "{solution}");
        }
    }

    proptest! {
        /// Multiple-choice, numerical and OCR answers are compared as a whole, so an accepted solution that is given
        /// back as the answer gets accuracy 1. A solution that is refused because it is not a number never gets
        /// accuracy 1.
        #[test]
        fn accepted_solutions_can_be_matched(
            kind in prop::sample::select(vec![ProblemType::MultipleChoice, ProblemType::Numerical, ProblemType::Ocr]),
            truth in "[A-D]|-?[0-9]{1,4}(\\.[0-9]{1,3})?|nan|about [0-9]|",
        ) {
            let solution = format!("<answer>{truth}</answer>");
            let accuracy = accuracy_reward(Some(kind), &solution, &solution);
            match check_solution(Some(kind), &solution) {
                Ok(()) => prop_assert_eq!(accuracy, 1.0),
                Err(_) => prop_assert!(accuracy == 0.0 || truth.is_empty()),
            }
        }
    }
}
