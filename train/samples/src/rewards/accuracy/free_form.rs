//! Accuracy of free-form answers: the mean of the F1 values of ROUGE-1, ROUGE-2 and ROUGE-L, as rouge_score 0.1.2
//! computes them with its stemmer (C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004).

use std::collections::HashMap;

use super::MAX_COMPARED_WORDS;
use super::porter::porter_stem;
use crate::rewards::python_text::strip_white_space;

/// The mean of the F1 values of ROUGE-1, ROUGE-2 and ROUGE-L. A single word compared with itself scores 2/3, because
/// one word has no pair of words for ROUGE-2. Only the first [`MAX_COMPARED_WORDS`] words of each text are compared.
pub fn free_form_accuracy(answer: &str, truth: &str) -> f64 {
    let (answer, truth) = (rouge_words(answer), rouge_words(truth));
    (rouge_n(&answer, &truth, 1) + rouge_n(&answer, &truth, 2) + rouge_l(&answer, &truth)) / 3.0
}

/// 1 if both texts are equal but for case and surrounding white space, else [`free_form_accuracy`].
pub fn open_ended_accuracy(answer: &str, truth: &str) -> f64 {
    let lower = |text: &str| strip_white_space(text).to_lowercase();
    if lower(answer) == lower(truth) { 1.0 } else { free_form_accuracy(answer, truth) }
}

/// Splits a text into words as rouge_score does: lower case, separated by anything but ASCII letters and digits,
/// stemmed if longer than 3 letters.
fn rouge_words(text: &str) -> Vec<String> {
    let lower: String = text.chars().flat_map(char::to_lowercase).collect();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let words = words.take(MAX_COMPARED_WORDS);
    words.map(|word| if word.len() > 3 { porter_stem(word) } else { word.to_string() }).collect()
}

/// ROUGE-N: the F1 value of the n-grams (runs of `n` words) that both texts contain. An n-gram that occurs several
/// times counts as often as it occurs in both texts.
fn rouge_n(answer: &[String], truth: &[String], n: usize) -> f64 {
    let mut remaining: HashMap<&[String], usize> = HashMap::new();
    for gram in truth.windows(n) {
        *remaining.entry(gram).or_default() += 1;
    }
    let mut common = 0;
    for gram in answer.windows(n) {
        if let Some(count) = remaining.get_mut(gram).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    let count = |words: &[String]| (words.len() + 1).saturating_sub(n);
    f1(common, count(answer), count(truth))
}

/// ROUGE-L: the F1 value of the longest common subsequence of words.
fn rouge_l(answer: &[String], truth: &[String]) -> f64 {
    let mut row = vec![0; truth.len() + 1];
    for word in answer {
        let mut diagonal = 0;
        for (j, other) in truth.iter().enumerate() {
            let length = if word == other { diagonal + 1 } else { row[j + 1].max(row[j]) };
            diagonal = std::mem::replace(&mut row[j + 1], length);
        }
    }
    f1(row[truth.len()], answer.len(), truth.len())
}

/// The harmonic mean of precision and recall, with rouge_score's order of operations.
fn f1(common: usize, answer: usize, truth: usize) -> f64 {
    let precision = common as f64 / answer.max(1) as f64;
    let recall = common as f64 / truth.max(1) as f64;
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn splits_words_as_rouge_score() {
        assert_eq!(
            rouge_words("It's the DOG's snake_case, 3.5!"),
            ["it", "s", "the", "dog", "s", "snake", "case", "3", "5"]
        );
        // In lower case the Kelvin sign becomes k, and the dotted I becomes i and a combining dot. The long s is not
        // ASCII, so it separates words.
        assert_eq!(rouge_words("\u{212a}elvin \u{17f}top \u{130}x"), ["kelvin", "top", "i", "x"]);
        assert!(rouge_words("一只狗 ...").is_empty());
        assert_eq!(rouge_words("playing happily dies"), ["play", "happili", "die"]);
    }

    #[test]
    fn values_equal_rouge_score() {
        for (given, right, want) in [
            ("kitchen", "kitchen", 2.0 / 3.0),
            ("ball red", "red ball", 0.5),
            ("...", "...", 0.0),
            ("", "", 0.0),
            ("the child plays happily", "the children were playing happily", 0.539_682_539_682_539_7),
        ] {
            assert!(
                (free_form_accuracy(given, right) - want).abs() < 1e-15,
                "{given}: {}",
                free_form_accuracy(given, right)
            );
        }
    }

    fn sentence() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["a", "dog", "cats", "runs", "running", "the", "-"]), 0..9)
            .prop_map(|words| words.join(" "))
    }

    proptest! {
        #[test]
        fn accuracy_is_symmetric_and_1_for_equal_sentences(a in sentence(), b in sentence()) {
            prop_assert!((free_form_accuracy(&a, &b) - free_form_accuracy(&b, &a)).abs() < 1e-12);
            prop_assert!((0.0..=1.0).contains(&free_form_accuracy(&a, &b)));
            let same = match rouge_words(&a).len() { 0 => 0.0, 1 => 2.0 / 3.0, _ => 1.0 };
            prop_assert!((free_form_accuracy(&a, &a) - same).abs() < 1e-12);
        }

        /// ROUGE-L is at most ROUGE-1. A common pair of neighbouring words implies a common subsequence.
        #[test]
        fn rouge_1_bounds_rouge_l_and_rouge_2_implies_rouge_l(a in sentence(), b in sentence()) {
            let (a, b) = (rouge_words(&a), rouge_words(&b));
            prop_assert!(rouge_l(&a, &b) <= rouge_n(&a, &b, 1) + 1e-12);
            prop_assert!(rouge_n(&a, &b, 2) <= 0.0 || rouge_l(&a, &b) > 0.0);
        }
    }
}
