//! The accuracy reward: the correctness of an answer from 0 to 1, by one rule per kind of problem.

mod free_form;
mod multiple_choice;
mod numerical;
mod ocr;
mod porter;
mod regression;

pub use free_form::free_form_accuracy;
pub use multiple_choice::multiple_choice_accuracy;
pub use numerical::numerical_accuracy;
pub use ocr::ocr_accuracy;

use regression::regression_accuracy;

use crate::rewards::ProblemType;
use crate::rewards::answer::extract_answer;

/// Maximum number of words of each text, answer and truth, that are compared word by word, because the time grows
/// with the product of both lengths. Texts in a file can be longer; a model's completions are shorter.
const MAX_COMPARED_WORDS: usize = 2048;

/// Returns the accuracy of a completion compared with the solution. Both texts have their answer in `<answer>` tags;
/// without tags the answer is "". An unknown kind of problem (`None`) scores 0.
pub fn accuracy_reward(kind: Option<ProblemType>, completion: &str, solution: &str) -> f32 {
    let (answer, truth) = (extract_answer(completion), extract_answer(solution));
    let accuracy = match kind {
        None => 0.0,
        Some(ProblemType::MultipleChoice) => multiple_choice_accuracy(answer, truth),
        Some(ProblemType::Numerical) => numerical_accuracy(answer, truth),
        Some(ProblemType::Ocr) => ocr_accuracy(answer, truth),
        Some(ProblemType::FreeForm) => free_form_accuracy(answer, truth),
        Some(ProblemType::Regression) => regression_accuracy(answer, truth),
    };
    accuracy as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Comparing the full texts word by word would take hours.
    #[test]
    fn very_long_texts_are_compared_in_part() {
        let long = format!("<answer>{}</answer>", "the dog ".repeat(20_000));
        for kind in [ProblemType::Ocr, ProblemType::FreeForm] {
            assert_eq!(accuracy_reward(Some(kind), &long, &long), 1.0);
        }
    }

    proptest! {
        /// Rewards are added and averaged, so no accuracy may be NaN.
        #[test]
        fn accuracy_is_always_in_0_1(
            kind in prop::sample::select(ProblemType::ALL.to_vec()),
            given in "(-?[0-9.,e_]{0,8}|nan|inf|-inf|\\PC{0,20})",
            right in "(-?[0-9.,e_]{0,8}|nan|inf|-inf|\\PC{0,20})",
        ) {
            let tagged = |text: &str| format!("<think></think><answer>{text}</answer>");
            let accuracy = accuracy_reward(Some(kind), &tagged(&given), &tagged(&right));
            prop_assert!((0.0..=1.0).contains(&accuracy), "{}", accuracy);
            prop_assert_eq!(accuracy_reward(None, &tagged(&given), &tagged(&right)), 0.0);
        }
    }

    #[test]
    fn texts_without_tags_have_the_same_empty_answer() {
        assert_eq!(accuracy_reward(Some(ProblemType::MultipleChoice), "B", "C"), 1.0);
        assert_eq!(accuracy_reward(Some(ProblemType::MultipleChoice), "<answer>C</answer>", "C"), 0.0);
    }
}
