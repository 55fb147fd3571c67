//! The text of generated tokens: piece by piece, to find stop strings, and of a whole completion.

use std::sync::Arc;

use reel_model::TokenId;
use reel_model::input::encode::ModelFolder;
use reel_model::input::tokenizer::Tokenizer;

use crate::stop::{Detokenizer, StopCondition};

/// Decodes token ids to text one at a time, so that stop strings can be found. Holds back the bytes of an incomplete
/// UTF-8 character. A clone shares the table of tokens.
#[derive(Clone, Debug)]
pub struct TokenText {
    /// The bytes of each token; `None` for special tokens, which have no text.
    pieces: Arc<Vec<Option<Vec<u8>>>>,
    pending: Vec<u8>,
}

impl TokenText {
    /// A decoder for the vocabulary of a model.
    pub fn new(folder: &ModelFolder) -> TokenText {
        let t = &folder.tokenizer;
        let piece = |id: u32| if t.is_special(id) { None } else { Some(t.token_bytes(id)) };
        let pieces = (0..folder.config.text.vocab_size as u32).map(piece).collect();
        TokenText { pieces: Arc::new(pieces), pending: Vec::new() }
    }
}

impl Detokenizer for TokenText {
    fn push(&mut self, id: u32) -> String {
        if let Some(Some(bytes)) = self.pieces.get(id as usize) {
            self.pending.extend(bytes);
        }
        let whole = match std::str::from_utf8(&self.pending) {
            Ok(text) => text.len(),
            // An incomplete character at the end is held back; invalid bytes are passed on.
            Err(e) => e.valid_up_to() + e.error_len().unwrap_or(0),
        };
        let out = String::from_utf8_lossy(&self.pending[..whole]).into_owned();
        self.pending.drain(..whole);
        out
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
