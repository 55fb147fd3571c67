//! The semantic reward (VideoRFT): similarity of the reasoning in a completion with the frames. A model that embeds
//! texts and images (SigLIP) computes the similarities; this module prepares its texts and turns cosines into
//! rewards.

use std::path::PathBuf;

use crate::error::Result;
use crate::rewards::answer::text_between;
use crate::rewards::python_text::is_space;

/// A model that compares texts with images.
pub trait SemanticModel {
    /// Returns the cosine similarity of each text with each frame: one list per text, in the order of `frames`. Each
    /// frame is embedded once. With `negative`, every pixel value `v` is replaced by `(256 - v) % 256`.
    ///
    /// # Errors
    /// A frame cannot be read, or the model fails.
    fn similarities(&mut self, texts: &[&str], frames: &[PathBuf], negative: bool) -> Result<Vec<Vec<f32>>>;
}

/// Returns the part of a completion that is compared with the frames: the text between the first `<think>` and
/// `</think>` without its first sentence (up to the first full stop). Without a full stop, the whole text between the
/// tags is used. A completion without both tags is used whole, because the reference code removes the first sentence
/// only inside the tags.
pub fn reasoning_text(completion: &str) -> &str {
    let Some(thought) = text_between(completion, "<think>", "</think>") else { return completion };
    thought.split_once('.').map_or(thought, |(_, rest)| rest.trim_start_matches(is_space))
}

/// Computes the semantic reward from a text's cosine similarity with each frame: the mean of `min(1, 2 max(cos, 0))`;
/// 0 without frames.
pub fn semantic_reward(cosines: &[f32]) -> f32 {
    crate::rewards::torch_stats::mean(&cosines.iter().map(|cos| (2.0 * cos.max(0.0)).min(1.0)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_sentence_is_left_out() {
        for (completion, want) in [
            ("<think>One. Two. Three</think><answer>A</answer>", "Two. Three"),
            ("<think>one two</think><answer>A.</answer>", "one two"),
            ("<think> one two </think>", " one two "),
            ("<think>One.</think>", ""),
            ("<think>3.5 m. Two</think>", "5 m. Two"),
            ("<think>a..</think>", "."),
            ("<think>a.\u{1c}\n\u{a0}b </think>", "b "),
            ("no tags. here", "no tags. here"),
            ("<think>open. b", "<think>open. b"),
            ("</think>One. Two<think>", "</think>One. Two<think>"),
            (" One. Two <answer>A</answer>", " One. Two <answer>A</answer>"),
            ("<think>a</think><think>b. c</think>", "a"),
            ("", ""),
        ] {
            assert_eq!(reasoning_text(completion), want, "{completion}");
        }
    }

    #[test]
    fn cosines_are_doubled_and_clamped() {
        assert_eq!(semantic_reward(&[0.25, 0.75, -0.5]), 0.5);
        assert_eq!(semantic_reward(&[]), 0.0);
    }

    proptest! {
        #[test]
        fn reward_is_in_0_1_and_increases_with_cosines(cosines in prop::collection::vec(-1.0f32..1.0, 1..9), more in 0.0f32..0.5) {
            let reward = semantic_reward(&cosines);
            prop_assert!((0.0..=1.0).contains(&reward));
            prop_assert!(semantic_reward(&cosines.iter().map(|c| c + more).collect::<Vec<_>>()) >= reward - 1e-6);
        }
    }
}
