//! Sentences in the model's own words: the mean of the F values of ROUGE-1, ROUGE-2 and ROUGE-L, as rouge_score 0.1.2 gives
//! them with its stemmer on (C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004).

use std::collections::HashMap;

use super::porter::stem;

/// The mean of the three F values. A single word against itself has no pair of words and scores 2/3.
pub fn free_form_accuracy(given: &str, right: &str) -> f64 {
    let (given, right) = (tokens(given), tokens(right));
    (n_grams(&given, &right, 1) + n_grams(&given, &right, 2) + longest(&given, &right)) / 3.0
}

/// The words that count: lower case, everything but ASCII letters and digits a gap, words of more than 3 letters stemmed.
fn tokens(text: &str) -> Vec<String> {
    let lower: String = text.chars().flat_map(char::to_lowercase).collect();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(|word| if word.len() > 3 { stem(word) } else { word.to_string() }).collect()
}

/// ROUGE-N: runs of `n` words that both have, each as often as both have it.
fn n_grams(given: &[String], right: &[String], n: usize) -> f64 {
    let mut left: HashMap<&[String], usize> = HashMap::new();
    for gram in right.windows(n) {
        *left.entry(gram).or_default() += 1;
    }
    let mut common = 0;
    for gram in given.windows(n) {
        if let Some(count) = left.get_mut(gram).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    let count = |words: &[String]| (words.len() + 1).saturating_sub(n);
    f_value(common, count(given), count(right))
}

/// ROUGE-L: the longest common subsequence of words.
fn longest(given: &[String], right: &[String]) -> f64 {
    let mut row = vec![0; right.len() + 1];
    for word in given {
        let mut diagonal = 0;
        for (j, other) in right.iter().enumerate() {
            let here = if word == other { diagonal + 1 } else { row[j + 1].max(row[j]) };
            diagonal = std::mem::replace(&mut row[j + 1], here);
        }
    }
    f_value(row[right.len()], given.len(), right.len())
}

/// The harmonic mean of precision and recall, in rouge_score's order of operations.
fn f_value(common: usize, given: usize, right: usize) -> f64 {
    let precision = common as f64 / given.max(1) as f64;
    let recall = common as f64 / right.max(1) as f64;
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_a_word() {
        assert_eq!(
            tokens("It's the DOG's snake_case, 3.5!"),
            ["it", "s", "the", "dog", "s", "snake", "case", "3", "5"]
        );
        // Kelvin's sign becomes a k; the long s stays what it is, a gap; the dotted I becomes i and a combining dot.
        assert_eq!(tokens("\u{212a}elvin \u{17f}top \u{130}x"), ["kelvin", "top", "i", "x"]);
        assert!(tokens("一只狗 ...").is_empty());
        assert_eq!(tokens("playing happily dies"), ["play", "happili", "die"]);
    }

    #[test]
    fn values_of_rouge_score() {
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
        fn f_is_symmetric_and_1_for_the_same_sentence(a in sentence(), b in sentence()) {
            prop_assert!((free_form_accuracy(&a, &b) - free_form_accuracy(&b, &a)).abs() < 1e-12);
            prop_assert!((0.0..=1.0).contains(&free_form_accuracy(&a, &b)));
            let same = match tokens(&a).len() { 0 => 0.0, 1 => 2.0 / 3.0, _ => 1.0 };
            prop_assert!((free_form_accuracy(&a, &a) - same).abs() < 1e-12);
        }

        /// No pair is common that is not made of common words, and none in order that is not common.
        #[test]
        fn one_bounds_the_others(a in sentence(), b in sentence()) {
            let (a, b) = (tokens(&a), tokens(&b));
            prop_assert!(longest(&a, &b) <= n_grams(&a, &b, 1) + 1e-12);
            prop_assert!(n_grams(&a, &b, 2) <= 0.0 || longest(&a, &b) > 0.0);
        }
    }
}
