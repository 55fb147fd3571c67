//! Decodes generated tokens to text: token by token, to find stop strings, or a whole completion at once.

use std::sync::Arc;

use reel_input::TokenId;
use reel_input::encode::ModelFolder;
use reel_input::tokenizer::{StreamingDecoder, Tokenizer, take_complete_text};

use crate::stop::{Detokenizer, StopCondition};

/// Decodes token ids to text one at a time, so that stop strings can be found. Holds back the bytes of an incomplete
/// UTF-8 character. A clone shares the table of tokens.
#[derive(Clone, Debug)]
pub struct TokenDecoder {
    /// The bytes of each token; `None` for special tokens, which have no text.
    pieces: Arc<Vec<Option<Vec<u8>>>>,
    pending: Vec<u8>,
}

impl TokenDecoder {
    /// Creates a decoder for the vocabulary of a model.
    pub fn new(folder: &ModelFolder) -> TokenDecoder {
        let t = &folder.tokenizer;
        let piece = |id: u32| if t.is_special(id) { None } else { Some(t.token_bytes(id)) };
        let pieces = (0..folder.config.text.vocab_size as u32).map(piece).collect();
        TokenDecoder { pieces: Arc::new(pieces), pending: Vec::new() }
    }
}

impl Detokenizer for TokenDecoder {
    fn push(&mut self, id: u32) -> String {
        if let Some(Some(bytes)) = self.pieces.get(id as usize) {
            self.pending.extend(bytes);
        }
        take_complete_text(&mut self.pending)
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

impl Detokenizer for StreamingDecoder<'_> {
    fn push(&mut self, id: u32) -> String {
        StreamingDecoder::push(self, id)
    }

    fn finish(&mut self) -> String {
        StreamingDecoder::finish(self)
    }
}

/// The text of a completion while it is generated, cut before the first stop string. Holds back text at the end that
/// may be the start of a stop string, so text that was returned stays valid.
#[derive(Clone, Debug)]
pub struct CompletionStream<D> {
    tokens: D,
    stop: Vec<String>,
    held: String,
    is_cut: bool,
}

impl<D: Detokenizer> CompletionStream<D> {
    /// Creates an empty text that will be cut before the first of the strings `stop`.
    pub fn new(tokens: D, stop: &[String]) -> CompletionStream<D> {
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

    /// A detokenizer for which each id is one byte.
    #[derive(Default)]
    struct Bytes(Vec<u8>);

    impl Detokenizer for Bytes {
        fn push(&mut self, id: u32) -> String {
            self.0.push(id as u8);
            let Ok(text) = std::str::from_utf8(&self.0) else { return String::new() };
            let text = text.to_string();
            self.0.clear();
            text
        }

        fn finish(&mut self) -> String {
            String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
        }
    }

    /// Token 0 is the first byte of a two-byte character. Token 1 is a letter, which cannot be the second byte of that
    /// character.
    #[test]
    fn text_after_an_invalid_byte_comes_with_its_own_token() {
        let pieces = Arc::new(vec![Some(vec![0xc9]), Some(b"c".to_vec())]);
        let tokens = TokenDecoder { pieces, pending: Vec::new() };
        let mut text = tokens.clone();
        assert_eq!([0, 1, 0].map(|id| text.push(id)), ["", "\u{fffd}c", ""]);
        assert_eq!(text.finish(), "\u{fffd}");
        let mut stop = StopCondition::with_strings(&["c".into()], Box::new(tokens));
        assert_eq!([0, 1].map(|id| stop.push_and_match(id)), [false, true]);
    }

    proptest! {
        #[test]
        fn streamed_text_is_the_text_before_the_first_stop_string(
            text in "[ab\u{e9}]{0,30}",
            stop in prop::collection::vec("[ab\u{e9}]{0,4}", 0..3),
        ) {
            let mut stream = CompletionStream::new(Bytes::default(), &stop);
            // The text ends at the stop string that is complete first.
            let prefixes = text.char_indices().map(|(at, c)| &text[..at + c.len_utf8()]);
            let at = prefixes.into_iter().find_map(|t| StopCondition::first_match(t, &stop)).unwrap_or(text.len());
            let mut streamed = String::new();
            for byte in text.bytes() {
                streamed.push_str(&stream.push(u32::from(byte)));
                prop_assert!(text[..at].starts_with(&streamed), "{:?} of {:?}", streamed, text);
            }
            streamed.push_str(&stream.finish());
            prop_assert_eq!(streamed, &text[..at]);
        }
    }
}
