//! The filters, which decide which chains become rows of the data set. SigLIP is the only model that they need.
//!
//! A chain is tested in this order, and the first test that it fails is the reason for its rejection:
//!
//! ```text
//! conclusion-changed    the revision's answer is the blind chain's answer
//! accuracy              accuracy reward of the answer > min_accuracy
//! degenerate.rs         too-short, too-long, repetition, early-answer, mentions-description, other-script
//! similarity            free-form: SigLIP similarity of the chain and the frames >= min_similarity
//! duplicate-chain       no earlier chain with the same answer has nearly the same words
//! ```

mod degenerate;
mod duplicates;
mod words;

use reel_samples::rewards::{ProblemType, accuracy_reward};
use serde::{Deserialize, Serialize};

use crate::curate::answers::ReasoningChain;
use degenerate::degenerate_reason;
use duplicates::EarlierChains;
use words::words;

pub use words::word_count;

/// The thresholds of the filters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilterSettings {
    /// An answer's accuracy reward must be above this number. Video-R1's script uses 0.6.
    pub min_accuracy: f32,
    /// Minimum similarity of the chain of a free-form question to its frames; `None` leaves this test out.
    pub min_similarity: Option<f32>,
    /// Minimum number of words of a chain.
    pub min_words: usize,
    /// Maximum number of words of a chain.
    pub max_words: usize,
    /// Two chains with the same answer are duplicates if the Jaccard similarity of their 3-grams of words is above this
    /// number; 1 keeps duplicates.
    pub max_overlap: f64,
    /// Whether chains were written without seeing the video, so that they may reveal this by mentioning descriptions.
    pub is_blind: bool,
}

/// Why a row is not in the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RejectionReason {
    /// A field of the row is wrong or missing, or its video cannot be used.
    UnusableRow,
    /// An earlier row has the same video and question.
    DuplicateRow,
    /// The revision's answer differs from the answer of the chain before the revision.
    ConclusionChanged,
    /// The answer's accuracy reward is too low.
    Accuracy,
    /// The chain has fewer words than `min_words`.
    TooShort,
    /// The chain has more words than `max_words`.
    TooLong,
    /// The chain repeats itself.
    Repetition,
    /// The chain names the answer before any reasoning.
    EarlyAnswer,
    /// The chain mentions descriptions instead of the video.
    MentionsDescription,
    /// The chain is written in a script that the question does not use.
    OtherScript,
    /// The similarity of the chain to the frames is too low.
    Similarity,
    /// An earlier chain with the same answer has nearly the same words.
    DuplicateChain,
}

impl RejectionReason {
    /// The name of this reason in `rejected.jsonl`.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnusableRow => "unusable-row",
            Self::DuplicateRow => "duplicate-row",
            Self::ConclusionChanged => "conclusion-changed",
            Self::Accuracy => "accuracy",
            Self::TooShort => "too-short",
            Self::TooLong => "too-long",
            Self::Repetition => "repetition",
            Self::EarlyAnswer => "early-answer",
            Self::MentionsDescription => "mentions-description",
            Self::OtherScript => "other-script",
            Self::Similarity => "similarity",
            Self::DuplicateChain => "duplicate-chain",
        }
    }
}

/// A rejection: the reason, and a text with details such as the measured value.
pub type Rejection = (RejectionReason, String);

/// A chain to test.
#[derive(Clone, Copy, Debug)]
pub struct CandidateChain<'a> {
    /// The question with its options.
    pub question: &'a str,
    /// The kind of answer.
    pub kind: ProblemType,
    /// The correct answer from the list, in `<answer>` tags.
    pub solution: &'a str,
    /// The chain before the revision; `None` if there was no revision.
    pub before: Option<&'a ReasoningChain>,
    /// The chain to be tested.
    pub chain: &'a ReasoningChain,
}

/// The values that the filters measured for one chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChainMeasurements {
    /// The accuracy reward of the answer.
    pub accuracy: f32,
    /// The similarity to the frames; `None` if it was not computed.
    pub similarity: Option<f32>,
    /// The number of words of the chain.
    pub words: usize,
}

/// Tests chains in the order of their rows.
#[derive(Debug)]
pub struct ChainFilters {
    settings: FilterSettings,
    earlier: EarlierChains,
}

impl ChainFilters {
    /// Creates filters that have tested no chain yet.
    pub fn new(settings: FilterSettings) -> Self {
        Self { settings, earlier: EarlierChains::new(settings.max_overlap) }
    }

    /// Tests a chain. `location` is the location of its row, which rejections of later duplicates name. `similarity`
    /// computes the similarity to the frames; it is called only if the chain passes the tests before.
    ///
    /// # Errors
    /// `similarity` returns an error.
    pub fn test_chain<E>(
        &mut self,
        candidate: &CandidateChain<'_>,
        location: &str,
        similarity: impl FnOnce() -> Result<f32, E>,
    ) -> Result<(ChainMeasurements, Option<Rejection>), E> {
        let CandidateChain { question, kind, solution, before, chain } = *candidate;
        let settings = &self.settings;
        let words = words(&chain.thought);
        let accuracy = accuracy_reward(Some(kind), &chain.to_tagged_text(), solution);
        let mut measured = ChainMeasurements { accuracy, similarity: None, words: words.len() };
        if let Some(before) = before.filter(|before| !is_same_answer(kind, before, chain)) {
            let what = format!("the answer changed from {:?} to {:?}", before.answer, chain.answer);
            return Ok((measured, Some((RejectionReason::ConclusionChanged, what))));
        }
        if accuracy <= settings.min_accuracy {
            let what = format!("the answer {:?} has accuracy {accuracy}", chain.answer);
            return Ok((measured, Some((RejectionReason::Accuracy, what))));
        }
        if let Some(rejection) = degenerate_reason(chain, question, &words, settings) {
            return Ok((measured, Some(rejection)));
        }
        if let Some(least) = settings.min_similarity.filter(|_| kind == ProblemType::FreeForm) {
            let value = similarity()?;
            measured.similarity = Some(value);
            // The negated comparison also rejects NaN.
            if !(value >= least) {
                return Ok((
                    measured,
                    Some((RejectionReason::Similarity, format!("the similarity {value:.4} is below {least}"))),
                ));
            }
        }
        let duplicate = self.earlier.find_or_insert(&chain.answer, &words, location);
        Ok((measured, duplicate.map(|what| (RejectionReason::DuplicateChain, what))))
    }
}

/// Whether the chain after the revision has the same answer as the chain before it.
fn is_same_answer(kind: ProblemType, before: &ReasoningChain, after: &ReasoningChain) -> bool {
    let is_compared_as_a_whole = matches!(kind, ProblemType::MultipleChoice | ProblemType::Numerical);
    words(&before.answer) == words(&after.answer)
        || is_compared_as_a_whole
            && accuracy_reward(Some(kind), &after.to_tagged_text(), &before.to_tagged_text()) == 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    pub(super) fn settings() -> FilterSettings {
        FilterSettings {
            min_accuracy: 0.6,
            min_similarity: Some(0.1),
            min_words: 8,
            max_words: 200,
            max_overlap: 0.8,
            is_blind: true,
        }
    }

    const THOUGHT: &str = "First I look at the ball, which lies at the left edge. Then it rolls to the right side.";

    fn chain(thought: &str, answer: &str) -> ReasoningChain {
        ReasoningChain { thought: thought.into(), answer: answer.into() }
    }

    fn test(
        filters: &mut ChainFilters,
        kind: ProblemType,
        before: Option<&ReasoningChain>,
        after: &ReasoningChain,
        similarity: f32,
    ) -> Option<RejectionReason> {
        let solution = "<answer>to the right</answer>";
        let solution = if kind == ProblemType::FreeForm { solution } else { "<answer>B</answer>" };
        let candidate = CandidateChain { question: "Which way does it roll?", kind, solution, before, chain: after };
        let tested = filters.test_chain(&candidate, "list:1", || Ok::<_, Infallible>(similarity)).unwrap();
        tested.1.map(|(reason, _)| reason)
    }

    #[test]
    fn first_failed_test_is_the_reason() {
        use ProblemType::{FreeForm, MultipleChoice};
        let mut filters = ChainFilters::new(settings());
        let right = chain(THOUGHT, "B");
        let mut one = |kind, before: Option<&ReasoningChain>, after: &ReasoningChain, similarity| {
            test(&mut filters, kind, before, after, similarity)
        };
        assert_eq!(one(MultipleChoice, Some(&chain("x", "A")), &right, 0.0), Some(RejectionReason::ConclusionChanged));
        assert_eq!(
            one(MultipleChoice, Some(&chain("x", "A")), &chain(THOUGHT, "A"), 0.0),
            Some(RejectionReason::Accuracy)
        );
        assert_eq!(one(MultipleChoice, None, &chain("Short.", "B"), 0.0), Some(RejectionReason::TooShort));
        assert_eq!(
            one(MultipleChoice, Some(&chain("x", "b.")), &right, 0.0),
            None,
            "no similarity is needed for multiple choice"
        );
        let other = chain(&format!("{THOUGHT} And stays there, near the wall."), "to the right");
        assert_eq!(one(FreeForm, None, &other, 0.05), Some(RejectionReason::Similarity));
        assert_eq!(one(FreeForm, None, &other, f32::NAN), Some(RejectionReason::Similarity));
        assert_eq!(one(FreeForm, None, &other, 0.1), None);
        assert_eq!(
            one(FreeForm, None, &chain(&other.thought.to_uppercase(), "To the right!"), 0.1),
            Some(RejectionReason::DuplicateChain)
        );
        assert_eq!(one(FreeForm, None, &chain(THOUGHT, "up the hill"), 0.1), Some(RejectionReason::Accuracy));
    }

    #[test]
    fn accuracy_must_be_above_its_threshold_and_similarity_can_be_left_out() {
        let exact = FilterSettings { min_accuracy: 1.0, ..settings() };
        let right = chain(THOUGHT, "B");
        assert_eq!(
            test(&mut ChainFilters::new(exact), ProblemType::MultipleChoice, None, &right, 0.0),
            Some(RejectionReason::Accuracy)
        );
        let without = FilterSettings { min_similarity: None, ..settings() };
        let free = chain(THOUGHT, "to the right");
        assert_eq!(test(&mut ChainFilters::new(without), ProblemType::FreeForm, None, &free, 0.0), None);
    }
}
