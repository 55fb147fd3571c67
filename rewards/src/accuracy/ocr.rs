//! Texts to be read off: 1 less the word error rate.

use crate::python_text::words;

/// `1 - WER`, at least 0: the word error rate is the edit distance in words over the words of the truth (1 where it has none).
/// Words are what white space separates; case and punctuation count.
pub fn ocr_accuracy(given: &str, right: &str) -> f64 {
    let (given, right) = (words(given), words(right));
    let most = right.len().max(1);
    // The distance is at least the difference in length. Without this, a truth of few words and an endless answer would take
    // their product in time.
    if given.len().abs_diff(right.len()) >= most {
        return 0.0;
    }
    (1.0 - edit_distance(&given, &right) as f64 / most as f64).clamp(0.0, 1.0)
}

/// The fewest insertions, deletions and substitutions that turn `a` into `b`.
fn edit_distance(a: &[&str], b: &[&str]) -> usize {
    // One row of the table: distances between the words of `a` so far and each beginning of `b`.
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
    fn words_and_their_case() {
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

    /// The recursive definition.
    fn slow(a: &[&str], b: &[&str]) -> usize {
        match (a, b) {
            ([], _) => b.len(),
            (_, []) => a.len(),
            ([x, a_rest @ ..], [y, b_rest @ ..]) => {
                let substituted = slow(a_rest, b_rest) + usize::from(x != y);
                substituted.min(slow(a_rest, b) + 1).min(slow(a, b_rest) + 1)
            }
        }
    }

    fn few_words(most: usize) -> impl Strategy<Value = Vec<&'static str>> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 0..most)
    }

    proptest! {
        #[test]
        fn the_distance_is_its_definition(a in few_words(6), b in few_words(6)) {
            prop_assert_eq!(edit_distance(&a, &b), slow(&a, &b));
        }

        #[test]
        fn the_distance_is_a_distance(a in few_words(12), b in few_words(12), c in few_words(12)) {
            let d = edit_distance;
            prop_assert_eq!(d(&a, &b), d(&b, &a));
            prop_assert_eq!(d(&a, &b) == 0, a == b);
            prop_assert!(d(&a, &c) <= d(&a, &b) + d(&b, &c));
            prop_assert!(d(&a, &b) >= a.len().abs_diff(b.len()) && d(&a, &b) <= a.len().max(b.len()));
        }

        #[test]
        fn the_shortcut_changes_nothing(a in few_words(12), b in few_words(5)) {
            let full = (1.0 - edit_distance(&a, &b) as f64 / b.len().max(1) as f64).clamp(0.0, 1.0);
            prop_assert_eq!(ocr_accuracy(&a.join(" "), &b.join("\n")), full);
        }
    }
}
