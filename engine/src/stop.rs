//! When a completion ends: at an end token, at a stop string, or at its limit.

/// Turns ids into text piece by piece: the tokenizer's streaming decoder.
pub trait TextSource {
    /// The text that `id` adds, which may be none until a character is whole.
    fn push(&mut self, id: u32) -> String;
}

/// Watches the text of one completion for stop strings.
pub struct StopCondition {
    strings: Vec<String>,
    text: String,
    source: Option<Box<dyn TextSource>>,
}

impl std::fmt::Debug for StopCondition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StopCondition({:?})", self.strings)
    }
}

impl StopCondition {
    /// Never stops by text.
    pub fn none() -> StopCondition {
        StopCondition { strings: Vec::new(), text: String::new(), source: None }
    }

    /// Stops when one of `strings` appears in the text that `source` makes of the ids. Empty strings are left out.
    pub fn at(strings: &[String], source: Box<dyn TextSource>) -> StopCondition {
        let strings: Vec<String> = strings.iter().filter(|s| !s.is_empty()).cloned().collect();
        StopCondition { source: if strings.is_empty() { None } else { Some(source) }, strings, text: String::new() }
    }

    /// Takes the next id; true when a stop string is complete.
    pub fn push(&mut self, id: u32) -> bool {
        let Some(source) = &mut self.source else { return false };
        let piece = source.push(id);
        if piece.is_empty() {
            return false;
        }
        // A new match ends in the new piece, so it begins at most one longest string before it.
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let mut from = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text.push_str(&piece);
        self.strings.iter().any(|s| self.text[from..].contains(s.as_str()))
    }

    /// Where the first stop string begins in `text`.
    pub fn cut(text: &str, strings: &[String]) -> Option<usize> {
        strings.iter().filter(|s| !s.is_empty()).filter_map(|s| text.find(s.as_str())).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Letters;
    impl TextSource for Letters {
        fn push(&mut self, id: u32) -> String {
            char::from_u32(id).map(String::from).unwrap_or_default()
        }
    }

    fn ends_at(strings: &[&str], text: &str) -> Option<usize> {
        let strings: Vec<String> = strings.iter().map(|s| s.to_string()).collect();
        let mut stop = StopCondition::at(&strings, Box::new(Letters));
        text.chars().position(|c| stop.push(c as u32))
    }

    #[test]
    fn finds_strings_across_tokens() {
        assert_eq!(ends_at(&["lo w"], "hello world"), Some(6));
        assert_eq!(ends_at(&["xyz", "or"], "hello world"), Some(8));
        assert_eq!(ends_at(&["é→"], "ab é é→ c"), Some(6));
        assert_eq!(ends_at(&[""], "abc"), None);
        assert_eq!(ends_at(&["abcd"], "abc"), None);
    }

    #[test]
    fn cuts_before_the_first() {
        assert_eq!(StopCondition::cut("one two three", &["three".into(), "two".into()]), Some(4));
        assert_eq!(StopCondition::cut("one", &["".into()]), None);
    }
}
