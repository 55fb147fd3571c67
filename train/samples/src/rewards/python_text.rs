//! Functions on white space as Python's `str` defines it: Unicode white space and the separators U+001C to U+001F.

/// Python's `str.isspace` for one character. The class `\s` of Python's module `re` is the same.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Removes leading and trailing white space: Python's `str.strip()`.
pub fn strip_white_space(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Splits a text into words at white space: Python's `str.split()`.
pub(crate) fn split_words(text: &str) -> Vec<&str> {
    text.split(is_space).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_equals_python() {
        // All characters for which `str.isspace` of Python 3.11 is true.
        let all: Vec<u32> = [0x09..=0x0d, 0x1c..=0x20, 0x85..=0x85, 0xa0..=0xa0, 0x1680..=0x1680, 0x2000..=0x200a]
            .into_iter()
            .chain([0x2028..=0x2029, 0x202f..=0x202f, 0x205f..=0x205f, 0x3000..=0x3000])
            .flatten()
            .collect();
        let here: Vec<u32> = (0..=0x10_ffff).filter(|&c| char::from_u32(c).is_some_and(is_space)).collect();
        assert_eq!(here, all);
    }

    #[test]
    fn strips_and_splits_at_white_space() {
        assert_eq!(strip_white_space("\u{1c}\u{3000} a b\n\u{1f}"), "a b");
        assert_eq!(strip_white_space("\u{200b}a"), "\u{200b}a");
        assert_eq!(split_words(" a\u{85}\u{1e}b\u{2009}c "), ["a", "b", "c"]);
        assert!(split_words("\u{a0}").is_empty() && split_words("").is_empty());
    }
}
