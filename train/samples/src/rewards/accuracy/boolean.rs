//! Accuracy of yes-or-no answers.

/// Returns whether an answer says yes; `None` if it says neither, or both.
///
/// `1` and `0` count as the whole answer. Else `yes` and `true`, or `no` and `false`, count as the first word; else if
/// words of only one of the two sides occur. An answer of nothing but words of both sides, and one in which a negation
/// stands before such a word (`not true`), says neither.
pub fn parse_boolean(answer: &str) -> Option<bool> {
    match answer.trim() {
        "1" => return Some(true),
        "0" => return Some(false),
        _ => {}
    }
    let lower = answer.to_lowercase().replace('’', "'");
    let words: Vec<&str> =
        lower.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|word| !word.is_empty()).collect();
    let side = |word: &str| match word {
        "yes" | "true" => Some(true),
        "no" | "false" => Some(false),
        _ => None,
    };
    let sides: Vec<bool> = words.iter().filter_map(|word| side(word)).collect();
    let (has_yes, has_no) = (sides.contains(&true), sides.contains(&false));
    if has_yes && has_no && sides.len() == words.len() {
        return None;
    }
    if let Some(first) = words.first().and_then(|word| side(word)) {
        return Some(first);
    }
    let negates = |word: &str| word == "not" || word == "never" || word.ends_with("n't");
    let is_negated = words.windows(2).any(|pair| negates(pair[0]) && side(pair[1]).is_some());
    if has_yes == has_no || is_negated { None } else { Some(has_yes) }
}

#[cfg(test)]
mod tests {
    use super::parse_boolean;

    #[test]
    fn whole_words_of_one_side_count() {
        for yes in [
            "yes",
            "TRUE",
            "1",
            "**yes**",
            "Yes, there is no car.",
            "The answer is yes.",
            "it's true",
            "True or false? True",
        ] {
            assert_eq!(parse_boolean(yes), Some(true), "{yes}");
        }
        for no in ["No.", "0", "false", "There is no car, so no.", "No, yes men left"] {
            assert_eq!(parse_boolean(no), Some(false), "{no}");
        }
        for none in [
            "",
            "y",
            "maybe",
            "I know",
            "nothing",
            "It is not known",
            "yes/no",
            "No. Yes.",
            "not true",
            "It isn't true",
            "10",
            "either true or false",
        ] {
            assert_eq!(parse_boolean(none), None, "{none}");
        }
    }
}
