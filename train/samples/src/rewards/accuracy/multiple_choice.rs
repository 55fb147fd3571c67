//! Accuracy of multiple choice answers: comparison of the exact texts, or of the letters that they give.

use crate::rewards::option_letter::{is_list, leading_letter, option_letter};

/// Returns 1 if both answers are the same text, else 0.
pub fn multiple_choice_accuracy(answer: &str, truth: &str) -> f64 {
    f64::from(answer == truth)
}

/// Returns the letter that an answer gives, in upper case; `None` if it gives none or several.
///
/// The whole answer may be the letter, in brackets, `\boxed{}` or asterisks, with a full stop, and then also in lower
/// case; or it declares a letter as [`option_letter`] finds it; else its only capital letter counts that is a word of
/// its own, and stands neither after `not` nor as the word I or the article A.
pub fn given_letter(answer: &str, options: &[String]) -> Option<char> {
    let boxed = answer.rsplit_once("\\boxed{").and_then(|(_, rest)| Some(rest.split_once('}')?.0));
    let answer = boxed.unwrap_or(answer);
    let mut bare = answer.trim_matches(|c: char| c.is_whitespace() || "()[]{}*_`\"'$.,:".contains(c)).chars();
    if let (Some(letter), None) = (bare.next().filter(char::is_ascii_alphabetic), bare.next()) {
        return Some(letter.to_ascii_uppercase());
    }
    let after_first = leading_letter(answer).and_then(|letter| answer.split_once(letter));
    if after_first.is_some_and(|(_, after)| is_list(after)) {
        return None;
    }
    option_letter(answer, options).and_then(|letter| letter.chars().next()).or_else(|| only_capital_letter(answer))
}

/// Returns the only capital letter of a text that is a word of its own and no option that the text rejects.
fn only_capital_letter(text: &str) -> Option<char> {
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|w| !w.is_empty()).collect();
    let mut found = None;
    for (i, word) in words.iter().enumerate() {
        let letter = word.chars().next().filter(|c| word.len() == 1 && c.is_ascii_uppercase());
        let next_is_word = words.get(i + 1).is_some_and(|next| next.starts_with(char::is_lowercase));
        let Some(letter) = letter.filter(|c| !(matches!(c, 'A' | 'I') && next_is_word)) else { continue };
        let is_rejected =
            i > 0 && ["not", "no", "never", "neither"].contains(&words[i - 1].to_ascii_lowercase().as_str());
        if is_rejected || found.is_some_and(|other| other != letter) {
            return None;
        }
        found = Some(letter);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_is_exact() {
        assert_eq!(multiple_choice_accuracy("C", "C"), 1.0);
        assert_eq!(multiple_choice_accuracy("", ""), 1.0);
        for wrong in ["c", "C.", "Ｃ", "С", "C. a cat", ""] {
            assert_eq!(multiple_choice_accuracy(wrong, "C"), 0.0, "{wrong}");
        }
    }

    #[test]
    fn one_letter_is_given_in_many_forms() {
        let options = ["A. a dog", "B. a ball", "C. a red cup", "D. a door"].map(String::from);
        for text in [
            "C",
            "c",
            "C.",
            "(c)",
            "[C]",
            "**C**",
            "\\boxed{C}",
            "C) a cat",
            "C. a red cup",
            "C: the man",
            "The answer is C.",
            "The correct answer is (C)",
            "Option C",
            "Answer: C",
            "I choose C because B is wrong",
            "It must be C",
            "a red cup",
        ] {
            assert_eq!(given_letter(text, &options), Some('C'), "{text}");
        }
        for text in
            ["", "C or D", "C, D", "C&D", "C and D", "not C", "Not C.", "ABCD", "cat", "A cat", "Ｃ", "С", "I think so"]
        {
            assert_eq!(given_letter(text, &options), None, "{text}");
        }
    }
}
