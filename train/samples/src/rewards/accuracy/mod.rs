//! The accuracy reward: the correctness of an answer from 0 to 1, by one rule per kind of problem.

mod boolean;
mod free_form;
mod grounding;
mod math;
mod multiple_choice;
mod numerical;
mod ocr;
mod porter;
mod regression;

pub use boolean::parse_boolean;
pub use free_form::{free_form_accuracy, open_ended_accuracy};
pub(crate) use grounding::is_video;
pub use math::are_equal_math;
pub use multiple_choice::multiple_choice_accuracy;
pub use numerical::numerical_accuracy;
pub use ocr::ocr_accuracy;
pub use regression::mean_relative_accuracy;

use grounding::{
    segmentation_accuracy, spatial_accuracy, spatial_temporal_accuracy, temporal_accuracy, tracking_accuracy,
};
use multiple_choice::given_letter;
use numerical::are_equal_when_rounded;
use regression::regression_accuracy;

use crate::rewards::answer::extract_answer;
use crate::rewards::malformed::Malformed;
use crate::rewards::problem::{AnswerRules, ProblemFields};
use crate::rewards::python_number::parse_number;
use crate::rewards::{ProblemType, Recipe};

/// Maximum number of words of each text, answer and truth, that are compared word by word, because the time grows
/// with the product of both lengths. Texts in a file can be longer; a model's completions are shorter.
const MAX_COMPARED_WORDS: usize = 2048;

/// Returns the accuracy of a completion compared with the solution. Both texts have their answer in `<answer>` tags;
/// without tags the answer is "". An unknown kind of problem (`None`) scores 0.
///
/// # Errors
/// The answer has no value that the rule could compare; its accuracy is 0. Rules of VideoRFT and Video-R1, which
/// compare texts, never fail.
pub fn score_answer(
    kind: Option<ProblemType>,
    completion: &str,
    solution: &str,
    fields: &ProblemFields,
    rules: AnswerRules,
) -> Result<f32, Malformed> {
    let (answer, truth) = (extract_answer(completion), extract_answer(solution));
    let Some(kind) = kind else { return Ok(0.0) };
    let is_one_thinker = rules.recipe == Recipe::OneThinker;
    let accuracy = match kind {
        ProblemType::MultipleChoice if is_one_thinker => {
            let letter = given_letter(answer, &fields.options).ok_or(Malformed::NoOption)?;
            f64::from(given_letter(truth, &[]) == Some(letter))
        }
        ProblemType::Numerical if is_one_thinker => {
            parse_number(answer).ok_or(Malformed::NoNumber)?;
            f64::from(are_equal_when_rounded(answer, truth) == Some(true))
        }
        ProblemType::Regression if is_one_thinker => {
            parse_number(answer).ok_or(Malformed::NoNumber)?;
            return Ok(mean_relative_accuracy(answer, truth).unwrap_or(0.0));
        }
        ProblemType::MultipleChoice => multiple_choice_accuracy(answer, truth),
        ProblemType::Numerical => numerical_accuracy(answer, truth),
        ProblemType::Ocr => ocr_accuracy(answer, truth),
        ProblemType::FreeForm => free_form_accuracy(answer, truth),
        ProblemType::Regression => regression_accuracy(answer, truth),
        _ if answer.is_empty() => return Err(Malformed::NoAnswer),
        ProblemType::TemporalGrounding => temporal_accuracy(answer, truth, fields.duration)?,
        ProblemType::SpatialGrounding => spatial_accuracy(answer, truth, fields.answer_scale)?,
        ProblemType::SpatialTemporalGrounding => spatial_temporal_accuracy(answer, truth, fields.answer_scale)?,
        ProblemType::Tracking => tracking_accuracy(answer, truth, fields.answer_scale)?,
        ProblemType::Segmentation => segmentation_accuracy(answer, truth, fields)?,
        ProblemType::Boolean => {
            let value = parse_boolean(answer).ok_or(Malformed::NoBoolean)?;
            f64::from(parse_boolean(truth) == Some(value))
        }
        ProblemType::Math => f64::from(are_equal_math(answer, truth)),
        ProblemType::OpenEnded => open_ended_accuracy(answer, truth),
    };
    Ok(accuracy as f32)
}

/// [`score_answer`] without fields of a row, by the default rules; 0 for a malformed answer.
pub fn accuracy_reward(kind: Option<ProblemType>, completion: &str, solution: &str) -> f32 {
    score_answer(kind, completion, solution, &ProblemFields::default(), AnswerRules::default()).unwrap_or(0.0)
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
