//! Text to ids as transformers' `SiglipTokenizer` does it, by a folder's `tokenizer.json`, whose model is
//! sentencepiece's unigram.
//!
//! Lower case, no ASCII punctuation, single spaces; a space before the text; pieces. `</s>` and `<unk>` that stand in a
//! text are those tokens, and what follows one has no space before it. All texts have the same length: cut so that the
//! last token is `</s>`, or padded with `</s>`.

use std::path::Path;

use tokenizers::{Model as _, ModelWrapper, NormalizedString, Normalizer as _};

use crate::error::{ModelError, Result};

const END: &str = "</s>";
/// Tokens that a text may spell out.
const SPECIAL: [&str; 2] = [END, "<unk>"];
/// What sentencepiece writes for a space.
const SPACE: char = '▁';

const HELP: &str = "use the tokenizer.json that was published with these weights";

/// A folder's tokenizer.
pub struct SiglipTokenizer {
    inner: tokenizers::Tokenizer,
    special: [i32; 2], // of SPECIAL
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
    /// A file that cannot be read; those of [`SiglipTokenizer::parse`].
    pub fn open(folder: &Path, vocab_size: usize, length: usize) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|e| ModelError::read(&path, e))?;
        Self::parse(&path.display().to_string(), &bytes, vocab_size, length)
    }

    /// Reads the content of a tokenizer.json; `location` names it in errors.
    ///
    /// # Errors
    /// Another kind of tokenizer; no `</s>` or `<unk>`; an id outside the table.
    pub fn parse(location: &str, bytes: &[u8], vocab_size: usize, length: usize) -> Result<Self> {
        let fault = |what: String| ModelError::tokenizer(location, what, HELP);
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| fault(format!("is not a tokenizer that can be read ({e})")))?;
        if !matches!(inner.get_model(), ModelWrapper::Unigram(_)) {
            return Err(fault("is not a unigram tokenizer, as SigLIP's is".to_string()));
        }
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
        // Without an `unk_id` it would fail at the first character that no piece has, in the middle of a run.
        let nothing =
            inner.get_model().tokenize("\u{10fffd}").map_err(|e| fault(format!("has no unknown token ({e})")))?;
        if nothing.iter().any(|token| token.id as i32 != special[1]) {
            return Err(fault(format!("does not make `{}` of what no piece has", SPECIAL[1])));
        }
        let bracket_is_unknown = inner.token_to_id(">").is_none();
        Ok(Self { special, bracket_is_unknown, length, location: location.to_string(), inner })
    }

    /// The ids of a text, as many as every text has.
    ///
    /// # Errors
    /// What the tokenizer's own model refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let spaced = |c: char| if c == SPACE { ' ' } else { c };
        let lower: String = text.chars().map(spaced).flat_map(char::to_lowercase).collect();
        let mut ids = Vec::with_capacity(self.length);
        let (mut rest, mut first) = (lower.as_str(), true);
        // What comes after as many ids as a text has changes nothing.
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

    /// The pieces of a stretch of text without special tokens; the first stretch has a space before it.
    fn pieces(&self, text: &str, first: bool, ids: &mut Vec<i32>) -> Result<()> {
        let fault = |e: &dyn std::fmt::Display| {
            ModelError::tokenizer(&self.location, format!("cannot encode a text of {} bytes ({e})", text.len()), HELP)
        };
        let mut plain = NormalizedString::from(canonical(text));
        if let Some(normalizer) = self.inner.get_normalizer() {
            normalizer.normalize(&mut plain).map_err(|e| fault(&e))?;
        }
        let mut spaced = String::from(if first { " " } else { "" });
        for c in plain.get().chars().map(|c| if c == SPACE { ' ' } else { c }) {
            // Sentencepiece knows no second space in a row.
            if !(c == ' ' && spaced.ends_with(' ')) {
                spaced.push(c);
            }
        }
        let pieces = spaced.trim_end_matches(' ').replace(' ', "▁");
        if !pieces.is_empty() {
            let tokens = self.inner.get_model().tokenize(&pieces).map_err(|e| fault(&e))?;
            // The reference encodes such a stretch behind the characters `<unk>` and drops theirs: unknown ones at its
            // start are one piece with a `>` that is unknown too, and go with it.
            let unknown_first = tokens.first().is_some_and(|token| token.id as i32 == self.special[1]);
            let lost = !first && self.bracket_is_unknown && unknown_first;
            ids.extend(tokens.iter().skip(usize::from(lost)).map(|token| token.id as i32));
        }
        Ok(())
    }
}

/// Without ASCII punctuation, with one space for any white space, and none at the ends.
fn canonical(text: &str) -> String {
    let kept: String = text.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    kept.split(is_python_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// White space as Python has it.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
