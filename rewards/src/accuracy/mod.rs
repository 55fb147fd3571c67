//! The accuracy reward: how right an answer is, by a rule for each kind of problem, from 0 to 1.

pub mod free_form;
pub mod multiple_choice;
pub mod numerical;
pub mod ocr;
mod porter;
pub mod regression;

pub use porter::stem;

use crate::ProblemType;
use crate::answer::answer;

/// The accuracy of a completion. Both texts carry their answer in `<answer>` tags; a text without has the answer "". A kind
/// without a rule (`None`) scores 0.
pub fn of(kind: Option<ProblemType>, completion: &str, solution: &str) -> f32 {
    let (given, right) = (answer(completion), answer(solution));
    let accuracy = match kind {
        None => 0.0,
        Some(ProblemType::MultipleChoice) => multiple_choice::of(given, right),
        Some(ProblemType::Numerical) => numerical::of(given, right),
        Some(ProblemType::Ocr) => ocr::of(given, right),
        Some(ProblemType::FreeForm) => free_form::of(given, right),
        Some(ProblemType::Regression) => regression::of(given, right),
    };
    accuracy as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Rewards are added up and averaged: nothing may give a NaN or leave the unit interval.
        #[test]
        fn any_text_scores_from_0_to_1(
            kind in prop::sample::select(ProblemType::ALL.to_vec()),
            given in "(-?[0-9.,e_]{0,8}|nan|inf|-inf|\\PC{0,20})",
            right in "(-?[0-9.,e_]{0,8}|nan|inf|-inf|\\PC{0,20})",
        ) {
            let tagged = |text: &str| format!("<think></think><answer>{text}</answer>");
            let accuracy = of(Some(kind), &tagged(&given), &tagged(&right));
            prop_assert!((0.0..=1.0).contains(&accuracy), "{}", accuracy);
            prop_assert_eq!(of(None, &tagged(&given), &tagged(&right)), 0.0);
        }
    }

    #[test]
    fn two_texts_without_tags_are_equal() {
        assert_eq!(of(Some(ProblemType::MultipleChoice), "B", "C"), 1.0);
        assert_eq!(of(Some(ProblemType::MultipleChoice), "<answer>C</answer>", "C"), 0.0);
    }
}
