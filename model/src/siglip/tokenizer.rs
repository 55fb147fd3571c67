//! The tokenizer of SigLIP, like transformers' `SiglipTokenizer`: a sentencepiece unigram model, read from
//! `tokenizer.json`.
//!
//! A text is converted to lower case without ASCII punctuation and with single spaces, gets a leading space, and is
//! split into pieces. `</s>` and `<unk>` in a text become these special tokens; the text after a special token gets
//! no leading space. All texts get the same length: they are cut so that the last token is `</s>`, or padded with
//! `</s>`.

use std::path::Path;

use reel_input::tokenizer_json::{self, TOKENIZER_HELP, catch_library_panic};
use reel_support::diagnostic::input;
use tokenizers::{Model as _, NormalizedString, Normalizer as _};

use crate::error::{Error, Result};

const END: &str = "</s>";
/// Special tokens that can occur in a text.
const SPECIAL: [&str; 2] = [END, "<unk>"];
/// The character that represents a space in sentencepiece.
const SPACE: char = '▁';

/// The tokenizer of a SigLIP folder.
pub struct SiglipTokenizer {
    inner: tokenizers::Tokenizer,
    special: [i32; 2], // the ids of the tokens SPECIAL
    bracket_is_unknown: bool,
    length: usize,
    location: String,
}

impl std::fmt::Debug for SiglipTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("SiglipTokenizer").field("location", &self.location).finish_non_exhaustive()
    }
}

impl SiglipTokenizer {
    /// Reads `tokenizer.json` of a folder, for texts of `length` tokens and an embedding table of `vocab_size` rows.
    ///
    /// # Errors
    /// The file cannot be read; the errors of [`SiglipTokenizer::parse`].
    pub fn open(folder: &Path, vocab_size: usize, length: usize) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = input::read_file(&path, input::MAX_TOKENIZER_BYTES).map_err(|e| Error::cannot_read(&path, e))?;
        Self::parse(&path.display().to_string(), &bytes, vocab_size, length)
    }

    /// Parses the text of a tokenizer.json; `location` names its source in error messages.
    ///
    /// # Errors
    /// Another kind of tokenizer; no `</s>` or `<unk>` token; an id outside the embedding table.
    pub fn parse(location: &str, bytes: &[u8], vocab_size: usize, length: usize) -> Result<Self> {
        catch_library_panic(location, || Self::parse_with_library(location, bytes, vocab_size, length))
    }

    fn parse_with_library(location: &str, bytes: &[u8], vocab_size: usize, length: usize) -> Result<Self> {
        let fault = |what: String| Error::input(location, what, TOKENIZER_HELP);
        tokenizer_json::check_unigram_tokenizer(bytes)
            .map_err(|(key, what)| Error::input(format!("{location}: {key}"), what, TOKENIZER_HELP))?;
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| fault(format!("is not a readable tokenizer ({e})")))?;
        match inner.get_vocab(true).into_iter().max_by_key(|(_, id)| *id) {
            Some((token, id)) if id as usize >= vocab_size => {
                let what = format!("gives `{token}` the id {id}, but config.json has a vocab_size of {vocab_size}");
                return Err(fault(what));
            }
            _ => {}
        }
        let id = |token: &str| {
            let id = inner.token_to_id(token).and_then(|id| i32::try_from(id).ok());
            id.ok_or_else(|| fault(format!("has no token `{token}`")))
        };
        let special = [id(SPECIAL[0])?, id(SPECIAL[1])?];
        // A tokenizer without `unk_id` is refused now. Otherwise it would fail at the first unknown character in a
        // text, in the middle of training.
        let nothing =
            inner.get_model().tokenize("\u{10fffd}").map_err(|e| fault(format!("has no unknown token ({e})")))?;
        if nothing.iter().any(|token| token.id as i32 != special[1]) {
            return Err(fault(format!("does not encode an unknown character as `{}`", SPECIAL[1])));
        }
        let bracket_is_unknown = inner.token_to_id(">").is_none();
        Ok(Self { special, bracket_is_unknown, length, location: location.to_string(), inner })
    }

    /// Encodes a text to ids of the fixed length.
    ///
    /// # Errors
    /// An error of the tokenizer library.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        catch_library_panic(&self.location, || self.encode_with_library(text))
    }

    fn encode_with_library(&self, text: &str) -> Result<Vec<i32>> {
        let spaced = |c: char| if c == SPACE { ' ' } else { c };
        let lower: String = text.chars().map(spaced).flat_map(char::to_lowercase).collect();
        let mut ids = Vec::with_capacity(self.length);
        let (mut rest, mut first) = (lower.as_str(), true);
        // The loop stops at `length` ids, because the rest of the text would be cut anyway.
        while ids.len() < self.length {
            let next = SPECIAL.iter().enumerate().filter_map(|(i, s)| Some((rest.find(s)?, i))).min();
            self.pieces(&rest[..next.map_or(rest.len(), |(at, _)| at)], first, &mut ids)?;
            let Some((at, which)) = next else { break };
            ids.push(self.special[which]);
            (rest, first) = (&rest[at + SPECIAL[which].len()..], false);
        }
        ids.truncate(self.length.saturating_sub(1));
        ids.resize(self.length, self.special[0]);
        Ok(ids)
    }

    /// Encodes the text between two special tokens and appends its ids to `ids`. The text before the first special
    /// token gets a leading space.
    fn pieces(&self, text: &str, first: bool, ids: &mut Vec<i32>) -> Result<()> {
        let fault = |e: &dyn std::fmt::Display| {
            Error::input(&self.location, format!("cannot encode a text of {} bytes ({e})", text.len()), TOKENIZER_HELP)
        };
        let mut plain = NormalizedString::from(canonical(text));
        if let Some(normalizer) = self.inner.get_normalizer() {
            normalizer.normalize(&mut plain).map_err(|e| fault(&e))?;
        }
        let mut spaced = String::from(if first { " " } else { "" });
        for c in plain.get().chars().map(|c| if c == SPACE { ' ' } else { c }) {
            // Sentencepiece removes repeated spaces.
            if !(c == ' ' && spaced.ends_with(' ')) {
                spaced.push(c);
            }
        }
        let pieces = spaced.trim_end_matches(' ').replace(' ', "▁");
        if !pieces.is_empty() {
            let tokens = self.inner.get_model().tokenize(&pieces).map_err(|e| fault(&e))?;
            // transformers' SiglipTokenizer puts the text `<unk>` before each segment except the first, and removes
            // the pieces of that text afterwards. If `>` is not in the vocabulary, unknown characters at the start of
            // the segment form one unknown piece with `>` and are removed too.
            let unknown_first = tokens.first().is_some_and(|token| token.id as i32 == self.special[1]);
            let lost = !first && self.bracket_is_unknown && unknown_first;
            ids.extend(tokens.iter().skip(usize::from(lost)).map(|token| token.id as i32));
        }
        Ok(())
    }
}

/// Removes ASCII punctuation and white space at both ends, and replaces all other runs of white space by one space.
fn canonical(text: &str) -> String {
    let kept: String = text.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    kept.split(is_python_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Whether Python counts a character as white space.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
