//! Stop strings, which end a completion. They are searched in the decoded text, because a stop string may span
//! several tokens.

use std::sync::Arc;

use reel_input::tokenizer::{StreamingDecoder, Tokenizer};

/// The stop strings of one completion, and its text so far.
#[derive(Debug)]
pub struct StopCondition {
    strings: Vec<String>,
    text: String,
    /// Decodes the ids; `None` without stop strings.
    decoder: Option<StreamingDecoder>,
}

impl StopCondition {
    /// A condition without stop strings: only an end-of-sequence token or the maximum number of tokens ends the
    /// completion.
    pub fn none() -> StopCondition {
        StopCondition { strings: Vec::new(), text: String::new(), decoder: None }
    }

    /// Ends the completion when one of `strings` appears in its text. `tokenizer` decodes the ids to this text.
    /// Empty strings are ignored.
    pub fn with_strings(strings: &[String], tokenizer: &Arc<Tokenizer>) -> StopCondition {
        let strings: Vec<String> = strings.iter().filter(|s| !s.is_empty()).cloned().collect();
        let decoder = (!strings.is_empty()).then(|| StreamingDecoder::new(tokenizer.clone()));
        StopCondition { decoder, strings, text: String::new() }
    }

    /// Appends a generated id. Returns whether the text now contains a stop string.
    pub fn push_and_match(&mut self, id: u32) -> bool {
        let Some(decoder) = &mut self.decoder else { return false };
        let piece = decoder.push(id);
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
pub(crate) mod tests {
    use std::path::Path;
    use std::sync::LazyLock;

    use super::*;

    /// A tokenizer, and its token of each byte.
    pub(crate) static BYTE_TOKENS: LazyLock<(Arc<Tokenizer>, Vec<u32>)> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model/text_multiturn/model");
        let tokenizer = Arc::new(Tokenizer::open(&folder).unwrap());
        let ids = 0..tokenizer.vocab_size() as u32;
        let token = |byte: u8| ids.clone().find(|&id| tokenizer.token_bytes(id) == [byte]).unwrap();
        let tokens = (0..=255).map(token).collect();
        (tokenizer, tokens)
    });

    /// The index of the character at which a completion ends, if its text is `text` and each token is one byte.
    fn ends_at(strings: &[&str], text: &str) -> Option<usize> {
        let strings: Vec<String> = strings.iter().map(|s| s.to_string()).collect();
        let (tokenizer, ids) = &*BYTE_TOKENS;
        let mut stop = StopCondition::with_strings(&strings, tokenizer);
        text.chars().position(|c| c.to_string().bytes().any(|byte| stop.push_and_match(ids[usize::from(byte)])))
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
