//! Splits text into words, ignoring case and punctuation.

/// The words of a text in lower case: runs of letters and digits. In scripts without spaces each character is a word.
pub fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut is_open = false;
    for c in text.chars() {
        if has_no_spaces(c) {
            words.push(c.into());
            is_open = false;
        } else if c.is_alphanumeric() {
            match words.last_mut().filter(|_| is_open) {
                Some(word) => word.extend(c.to_lowercase()),
                None => words.push(c.to_lowercase().collect()),
            }
            is_open = true;
        } else if !['\'', '’'].contains(&c) {
            is_open = false;
        }
    }
    words
}

/// The number of words of a text.
pub fn word_count(text: &str) -> usize {
    words(text).len()
}

/// Whether a letter belongs to a script that writes no spaces between words: Thai, Lao, Khmer, Burmese, Chinese and
/// Japanese.
fn has_no_spaces(c: char) -> bool {
    matches!(c, '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3041}'..='\u{30ff}'
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{20000}'..='\u{323af}')
        && c.is_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_no_case_and_no_punctuation() {
        assert_eq!(words("It's 3.5 m, NOT Größe!"), ["its", "3", "5", "m", "not", "größe"]);
        assert_eq!(words("红色的球 rolls"), ["红", "色", "的", "球", "rolls"]);
        assert_eq!(words(" ,.-"), [""; 0]);
    }
}
