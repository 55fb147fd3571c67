//! Decodes generated tokens to text: token by token, to find stop strings, or a whole completion at once.

use std::sync::Arc;

use reel_input::TokenId;
use reel_input::tokenizer::{StreamingDecoder, Tokenizer};

use crate::stop::StopCondition;

/// The text of a completion while it is generated, cut before the first stop string. Holds back text at the end that
/// may be the start of a stop string, so text that was returned stays valid.
#[derive(Debug)]
pub struct CompletionStream {
    tokens: StreamingDecoder,
    stop: Vec<String>,
    held: String,
    is_cut: bool,
}

impl CompletionStream {
    /// Creates an empty text that will be cut before the first of the strings `stop`.
    pub fn new(tokenizer: &Arc<Tokenizer>, stop: &[String]) -> CompletionStream {
        let tokens = StreamingDecoder::new(tokenizer.clone());
        let stop = stop.iter().filter(|s| !s.is_empty()).cloned().collect();
        CompletionStream { tokens, stop, held: String::new(), is_cut: false }
    }

    /// Returns the text that the next id adds.
    pub fn push(&mut self, id: TokenId) -> String {
        let piece = self.tokens.push(id);
        self.add(&piece);
        let held = if self.is_cut { 0 } else { self.stop_prefix_len() };
        self.held.drain(..self.held.len() - held).collect()
    }

    /// Returns the text that was held back, after the last id. An incomplete character becomes U+FFFD.
    pub fn finish(mut self) -> String {
        let rest = self.tokens.finish();
        self.add(&rest);
        self.held
    }

    fn add(&mut self, piece: &str) {
        if self.is_cut {
            return;
        }
        self.held.push_str(piece);
        if let Some(at) = StopCondition::first_match(&self.held, &self.stop) {
            self.held.truncate(at);
            self.is_cut = true;
        }
    }

    /// The length in bytes of the longest suffix of the held-back text that may be the start of a stop string.
    fn stop_prefix_len(&self) -> usize {
        let begins = |n: usize| {
            let from = self.held.len() - n;
            self.held.is_char_boundary(from)
                && self.stop.iter().any(|s| s.len() > n && s.starts_with(&self.held[from..]))
        };
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        (1..=self.held.len().min(longest)).rev().find(|&n| begins(n)).unwrap_or(0)
    }
}

/// Returns the text of a completion without special tokens, cut before the first stop string.
pub fn completion_text(tokenizer: &Tokenizer, ids: &[TokenId], stop: &[String]) -> String {
    let mut text = tokenizer.decode(ids, true);
    if let Some(at) = StopCondition::first_match(&text, stop) {
        text.truncate(at);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stop::tests::BYTE_TOKENS;

    /// 0xc9 is the first byte of a two-byte character. A letter cannot be the second byte of that character.
    #[test]
    fn text_after_an_invalid_byte_comes_with_its_own_token() {
        let (tokenizer, tokens) = &*BYTE_TOKENS;
        let [broken, letter] = [0xc9, usize::from(b'c')].map(|byte| tokens[byte]);
        let mut text = StreamingDecoder::new(tokenizer.clone());
        assert_eq!([broken, letter, broken].map(|id| text.push(id)), ["", "\u{fffd}c", ""]);
        assert_eq!(text.finish(), "\u{fffd}");
        let mut stop = StopCondition::with_strings(&["c".into()], tokenizer);
        assert_eq!([broken, letter].map(|id| stop.push_and_match(id)), [false, true]);
    }

    proptest! {
        #[test]
        fn streamed_text_is_the_text_before_the_first_stop_string(
            text in "[ab\u{e9}]{0,30}",
            stop in prop::collection::vec("[ab\u{e9}]{0,4}", 0..3),
        ) {
            let (tokenizer, tokens) = &*BYTE_TOKENS;
            let mut stream = CompletionStream::new(tokenizer, &stop);
            // The text ends at the stop string that is complete first.
            let prefixes = text.char_indices().map(|(at, c)| &text[..at + c.len_utf8()]);
            let at = prefixes.into_iter().find_map(|t| StopCondition::first_match(t, &stop)).unwrap_or(text.len());
            let mut streamed = String::new();
            for byte in text.bytes() {
                streamed.push_str(&stream.push(tokens[usize::from(byte)]));
                prop_assert!(text[..at].starts_with(&streamed), "{:?} of {:?}", streamed, text);
            }
            streamed.push_str(&stream.finish());
            prop_assert_eq!(streamed, &text[..at]);
        }
    }
}
