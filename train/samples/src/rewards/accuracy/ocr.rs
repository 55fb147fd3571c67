//! Accuracy of OCR answers: 1 minus the word error rate.

use super::MAX_COMPARED_WORDS;
use crate::rewards::python_text::split_words;

/// `1 - WER`, at least 0. The word error rate is the edit distance in words divided by the number of words of the truth
/// (at least 1). Words are separated by white space; case and punctuation count. Only the first [`MAX_COMPARED_WORDS`]
/// words of each text are compared.
pub fn ocr_accuracy(answer: &str, truth: &str) -> f64 {
    let (mut answer, mut truth) = (split_words(answer), split_words(truth));
    answer.truncate(MAX_COMPARED_WORDS);
    truth.truncate(MAX_COMPARED_WORDS);
    let max_errors = truth.len().max(1);
    // The distance is at least the difference in length. Very long answers return here, because the full comparison
    // takes time proportional to the product of both lengths.
    if answer.len().abs_diff(truth.len()) >= max_errors {
        return 0.0;
    }
    (1.0 - edit_distance(&answer, &truth) as f64 / max_errors as f64).clamp(0.0, 1.0)
}

/// The minimum number of insertions, deletions and substitutions that turn `a` into `b` (Levenshtein distance).
fn edit_distance(a: &[&str], b: &[&str]) -> usize {
    // One row of the distance table: the distances between the processed words of `a` and each prefix of `b`.
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, word) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(word != other);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_words_with_case() {
        for (given, right, want) in [
            ("OPEN\u{3000}24", "OPEN 24", 1.0),
            ("no no parking", "no parking", 0.5),
            ("NO PARKING", "no parking", 0.0),
            ("", "", 1.0),
            ("a", "", 0.0),
            ("", "a", 0.0),
            ("b c", "a b c", 1.0 - 1.0 / 3.0),
        ] {
            assert_eq!(ocr_accuracy(given, right), want, "{given} for {right}");
        }
    }

    /// The edit distance by its recursive definition, which the tests compare with [`edit_distance`].
    fn recursive_distance(a: &[&str], b: &[&str]) -> usize {
        match (a, b) {
            ([], _) => b.len(),
            (_, []) => a.len(),
            ([x, a_rest @ ..], [y, b_rest @ ..]) => {
                let substituted = recursive_distance(a_rest, b_rest) + usize::from(x != y);
                substituted.min(recursive_distance(a_rest, b) + 1).min(recursive_distance(a, b_rest) + 1)
            }
        }
    }

    fn few_words(max_words: usize) -> impl Strategy<Value = Vec<&'static str>> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 0..max_words)
    }

    proptest! {
        #[test]
        fn distance_equals_recursive_definition(a in few_words(6), b in few_words(6)) {
            prop_assert_eq!(edit_distance(&a, &b), recursive_distance(&a, &b));
        }

        #[test]
        fn distance_is_a_metric(a in few_words(12), b in few_words(12), c in few_words(12)) {
            let d = edit_distance;
            prop_assert_eq!(d(&a, &b), d(&b, &a));
            prop_assert_eq!(d(&a, &b) == 0, a == b);
            prop_assert!(d(&a, &c) <= d(&a, &b) + d(&b, &c));
            prop_assert!(d(&a, &b) >= a.len().abs_diff(b.len()) && d(&a, &b) <= a.len().max(b.len()));
        }

        #[test]
        fn shortcut_does_not_change_results(a in few_words(12), b in few_words(5)) {
            let full = (1.0 - edit_distance(&a, &b) as f64 / b.len().max(1) as f64).clamp(0.0, 1.0);
            prop_assert_eq!(ocr_accuracy(&a.join(" "), &b.join("\n")), full);
        }
    }
}
