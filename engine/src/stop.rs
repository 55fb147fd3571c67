//! Stop strings, which end a completion. They are searched in the decoded text, because a stop string may span
//! several tokens.

/// Decodes token ids to text one by one, like a tokenizer's streaming decoder.
pub trait Detokenizer {
    /// Returns the text that `id` adds; empty while the bytes of a character are incomplete.
    fn push(&mut self, id: u32) -> String;

    /// Ends the text. Returns the held-back text; an incomplete character becomes U+FFFD.
    fn finish(&mut self) -> String;
}

/// The stop strings of one completion, and its text so far.
pub struct StopCondition {
    strings: Vec<String>,
    text: String,
    detokenizer: Option<Box<dyn Detokenizer>>,
}

impl std::fmt::Debug for StopCondition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StopCondition({:?})", self.strings)
    }
}

impl StopCondition {
    /// A condition without stop strings: only an end-of-sequence token or the maximum number of tokens ends the
    /// completion.
    pub fn none() -> StopCondition {
        StopCondition { strings: Vec::new(), text: String::new(), detokenizer: None }
    }

    /// Ends the completion when one of `strings` appears in its text. `detokenizer` decodes the ids to this text.
    /// Empty strings are ignored.
    pub fn with_strings(strings: &[String], detokenizer: Box<dyn Detokenizer>) -> StopCondition {
        let strings: Vec<String> = strings.iter().filter(|s| !s.is_empty()).cloned().collect();
        let detokenizer = if strings.is_empty() { None } else { Some(detokenizer) };
        StopCondition { detokenizer, strings, text: String::new() }
    }

    /// Appends a generated id. Returns whether the text now contains a stop string.
    pub fn push_and_match(&mut self, id: u32) -> bool {
        let Some(detokenizer) = &mut self.detokenizer else { return false };
        let piece = detokenizer.push(id);
        if piece.is_empty() {
            return false;
        }
        // A new match ends in the newly decoded piece of text, so it begins at most `longest` bytes before that
        // piece.
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let mut from = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text.push_str(&piece);
        self.strings.iter().any(|s| self.text[from..].contains(s.as_str()))
    }

    /// The byte offset in `text` at which the first match of any stop string begins; `None` without a match.
    pub fn first_match(text: &str, strings: &[String]) -> Option<usize> {
        strings.iter().filter(|s| !s.is_empty()).filter_map(|s| text.find(s.as_str())).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A detokenizer for which each id is one Unicode character.
    struct CharacterDetokenizer;
    impl Detokenizer for CharacterDetokenizer {
        fn push(&mut self, id: u32) -> String {
            char::from_u32(id).map(String::from).unwrap_or_default()
        }

        fn finish(&mut self) -> String {
            String::new()
        }
    }

    fn ends_at(strings: &[&str], text: &str) -> Option<usize> {
        let strings: Vec<String> = strings.iter().map(|s| s.to_string()).collect();
        let mut stop = StopCondition::with_strings(&strings, Box::new(CharacterDetokenizer));
        text.chars().position(|c| stop.push_and_match(c as u32))
    }

    #[test]
    fn finds_stop_strings_that_span_tokens() {
        assert_eq!(ends_at(&["lo w"], "hello world"), Some(6));
        assert_eq!(ends_at(&["xyz", "or"], "hello world"), Some(8));
        assert_eq!(ends_at(&["é→"], "ab é é→ c"), Some(6));
        assert_eq!(ends_at(&[""], "abc"), None);
        assert_eq!(ends_at(&["abcd"], "abc"), None);
    }

    #[test]
    fn first_match_is_the_earliest_of_all_strings() {
        assert_eq!(StopCondition::first_match("one two three", &["three".into(), "two".into()]), Some(4));
        assert_eq!(StopCondition::first_match("one", &["".into()]), None);
    }
}
