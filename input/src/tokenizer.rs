//! The tokenizer of a model folder (`tokenizer.json`, byte-level BPE): text to token ids and back. Special tokens in a
//! text become their ids.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use reel_support::diagnostic::input;
use tokenizers::DecoderWrapper;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::tokenizer_json::{self, BytePairTokenizer, TOKENIZER_HELP, catch_library_panic};

/// The id of a token, which is the index of its row in the embedding table.
pub type TokenId = u32;

// The special tokens whose ids must be the same in tokenizer.json and config.json.
const IMAGE_PAD: &str = "<|image_pad|>";
const VIDEO_PAD: &str = "<|video_pad|>";
const VISION_START: &str = "<|vision_start|>";
const VISION_END: &str = "<|vision_end|>";

/// The tokenizer of a model folder.
pub struct Tokenizer {
    inner: BytePairTokenizer,
    special: HashSet<TokenId>,
    location: String,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = input::read_file(&path, input::MAX_TOKENIZER_BYTES).map_err(|e| Error::cannot_read(&path, e))?;
        Self::parse(&path.display().to_string(), &bytes)
    }

    /// Parses the text of a tokenizer.json; `location` names its source in error messages.
    pub fn parse(location: &str, bytes: &[u8]) -> Result<Self> {
        catch_library_panic(location, || Self::parse_with_library(location, bytes))
    }

    fn parse_with_library(location: &str, bytes: &[u8]) -> Result<Self> {
        let fault = |what: String| Error::input(location, what, TOKENIZER_HELP);
        let inner = tokenizer_json::parse_byte_pair(bytes)
            .map_err(|(key, what)| Error::input(format!("{location}: {key}"), what, TOKENIZER_HELP))?;
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(fault("is not a byte-level tokenizer, as Qwen2.5-VL's is".to_string()));
        }
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        Ok(Self { inner, special, location: location.to_string() })
    }

    /// Checks that all ids are inside the embedding table, and that the pad tokens have the ids of the config.
    pub fn check_fits(&self, config: &ModelConfig) -> Result<()> {
        catch_library_panic(&self.location, || self.check_ids(config))
    }

    fn check_ids(&self, config: &ModelConfig) -> Result<()> {
        self.check_inside(config.text.vocab_size as u32)?;
        let tokens = &config.tokens;
        for (token, key, wanted) in [
            (IMAGE_PAD, "image_token_id", tokens.image),
            (VIDEO_PAD, "video_token_id", tokens.video),
            (VISION_START, "vision_start_token_id", tokens.vision_start),
            (VISION_END, "vision_end_token_id", tokens.vision_end),
        ] {
            let what = match self.inner.token_to_id(token) {
                Some(id) if id == wanted => continue,
                Some(id) => format!("gives `{token}` the id {id}, but config.json has {key} = {wanted}"),
                None => format!("has no token `{token}`, but config.json has {key} = {wanted}"),
            };
            return Err(Error::input(&self.location, what, TOKENIZER_HELP));
        }
        Ok(())
    }

    fn check_inside(&self, vocab_size: u32) -> Result<()> {
        let added = self.inner.get_added_tokens_decoder();
        let largest = added.keys().copied().chain(self.inner.get_model().get_vocab().into_values()).max();
        match largest.filter(|&id| id >= vocab_size) {
            Some(id) => {
                let token = self.inner.id_to_token(id).unwrap_or_default();
                let what = format!("gives `{token}` the id {id}, but config.json has a vocab_size of {vocab_size}");
                Err(Error::input(&self.location, what, TOKENIZER_HELP))
            }
            None => Ok(()),
        }
    }

    /// Encodes a text. Special tokens in the text are encoded as their ids.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>> {
        catch_library_panic(&self.location, || {
            let encoding = self.inner.encode_fast(text, true).map_err(|e| {
                let what = format!("cannot encode a text of {} bytes ({e})", text.len());
                Error::input(&self.location, what, TOKENIZER_HELP)
            })?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// Decodes ids. Bytes that are not UTF-8 become U+FFFD. Ids without a token are skipped.
    pub fn decode(&self, ids: &[TokenId], skip_special_tokens: bool) -> String {
        let mut bytes = Vec::with_capacity(4 * ids.len());
        for &id in ids.iter().filter(|id| !(skip_special_tokens && self.is_special(**id))) {
            self.append_token_bytes(id, &mut bytes);
        }
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// The first id whose token differs between this tokenizer and `other`, or is special in only one of them: the id,
    /// the other tokenizer's token, this tokenizer's token. A missing token is an empty text. The rules for splitting a
    /// text into tokens are not compared.
    pub fn first_difference(&self, other: &Tokenizer) -> Option<(TokenId, String, String)> {
        let ids = self.vocab_size().max(other.vocab_size()) as u32;
        let added = |tokenizer: &Tokenizer| tokenizer.inner.get_added_tokens_decoder().keys().copied().max();
        let end = ids.max(added(self).max(added(other)).map_or(0, |id| id.saturating_add(1)));
        let name = |tokenizer: &Tokenizer, id: u32| tokenizer.inner.id_to_token(id).unwrap_or_default();
        (0..end).find_map(|id| {
            let (own, others) = (name(self, id), name(other, id));
            let differs = own != others || self.is_special(id) != other.is_special(id);
            differs.then_some((id, others, own))
        })
    }

    /// The id of the token with exactly this text.
    pub fn token_to_id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token)
    }

    /// Whether an id is a special token.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.special.contains(&id)
    }

    /// The number of tokens, including special tokens.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The bytes that a token stands for. In a byte-level token each character stands for one byte; other tokens
    /// stand for their UTF-8 bytes.
    pub fn token_bytes(&self, id: TokenId) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.append_token_bytes(id, &mut bytes);
        bytes
    }

    /// Appends the bytes of a token ([`Self::token_bytes`]) to `to`.
    fn append_token_bytes(&self, id: TokenId, to: &mut Vec<u8>) {
        let (Some(token), before) = (self.inner.id_to_token(id), to.len()) else { return };
        for character in token.chars() {
            match char_to_byte(character) {
                Some(byte) => to.push(byte),
                None => {
                    to.truncate(before);
                    to.extend_from_slice(token.as_bytes());
                    return;
                }
            }
        }
    }
}

/// Decodes a stream of ids to text without special tokens. Holds back the bytes of an incomplete UTF-8 character, so
/// text that was returned stays valid.
#[derive(Debug)]
pub struct StreamingDecoder {
    tokenizer: Arc<Tokenizer>,
    pending: Vec<u8>,
}

impl StreamingDecoder {
    /// Creates a decoder for ids that are generated one by one.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, pending: Vec::new() }
    }

    /// Adds an id. Returns the text that is now complete, which may be empty.
    pub fn push(&mut self, id: TokenId) -> String {
        if !self.tokenizer.is_special(id) {
            self.tokenizer.append_token_bytes(id, &mut self.pending);
        }
        take_complete_text(&mut self.pending)
    }

    /// Ends the text. Returns the text that was held back; an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Takes the text at the start of `bytes` that later bytes cannot change. Leaves the bytes of an incomplete UTF-8
/// character at the end; invalid bytes become U+FFFD.
pub fn take_complete_text(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = &bytes[..];
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(broken) = error.error_len() else {
                    rest = after; // an incomplete character, whose other bytes may follow
                    break;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &after[broken..];
            }
        }
    }
    let taken = bytes.len() - rest.len();
    bytes.drain(..taken);
    text
}

/// The character that represents a byte in byte-level tokens (GPT-2's table): the character of this code if it is
/// printable, otherwise the next unused character from U+0100 on.
pub fn byte_level_character(byte: u8) -> char {
    let own = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match own(byte) {
        true => char::from(byte),
        false => {
            let before = (0..byte).filter(|&b| !own(b)).count() as u32;
            char::from_u32(256 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    }
}

/// The byte that a character of a byte-level token represents.
fn char_to_byte(character: char) -> Option<u8> {
    const OTHERS: usize = 68;
    match u32::from(character) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code if (256..256 + OTHERS as u32).contains(&code) => {
            let nth = (code - 256) as u8;
            Some(match nth {
                0..=32 => nth,
                33..=66 => nth - 33 + 0x7F,
                _ => 0xAD,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::config::tests::tiny_config;

    /// A tokenizer.json of 422 tokens.
    const JSON: &str = include_str!("../../tests/golden/train/model_a/tokenizer.json");

    static TOKENIZER: LazyLock<Arc<Tokenizer>> =
        LazyLock::new(|| Arc::new(Tokenizer::parse("t", JSON.as_bytes()).unwrap()));

    #[test]
    fn each_byte_has_its_own_character() {
        let mut seen = HashSet::new();
        for byte in 0..=255u8 {
            assert!(seen.insert(byte_level_character(byte)));
            assert_eq!(char_to_byte(byte_level_character(byte)), Some(byte));
        }
        assert_eq!(
            (byte_level_character(b' '), byte_level_character(b'\n'), byte_level_character(0xAD)),
            ('Ġ', 'Ċ', 'Ń')
        );
        assert_eq!(char_to_byte('你'), None);
    }

    proptest! {
        #[test]
        fn decode_inverts_encode(text in "\\PC{0,40}|[a-z \n\t.,']{0,80}") {
            let ids = TOKENIZER.encode(&text).unwrap();
            let nfc: String = TOKENIZER.inner.decode(&ids, false).unwrap();
            prop_assert_eq!(TOKENIZER.decode(&ids, false), nfc);
        }

        #[test]
        fn stream_equals_the_library_decoder(ids in prop::collection::vec(0u32..600, 0..40)) {
            let [whole, with_special] = [true, false].map(|skip| TOKENIZER.inner.decode(&ids, skip).unwrap());
            prop_assert_eq!(&TOKENIZER.decode(&ids, true), &whole);
            prop_assert_eq!(TOKENIZER.decode(&ids, false), with_special);
            let mut stream = StreamingDecoder::new(TOKENIZER.clone());
            let mut text = String::new();
            for &id in &ids {
                let piece = stream.push(id);
                prop_assert!(whole[text.len()..].starts_with(&piece), "streamed {:?}, then {:?}, but the whole text is {:?}", text, piece, whole);
                text.push_str(&piece);
            }
            text.push_str(&stream.finish());
            prop_assert_eq!(text, whole);
        }
    }

    #[test]
    fn encodes_special_tokens_in_a_text() {
        let id = |token: &str| TOKENIZER.token_to_id(token).unwrap();
        let ids = TOKENIZER.encode("<|im_start|>a<|im_end|>\n<|image_pad|><|image_pad|>").unwrap();
        assert_eq!(ids[0], id("<|im_start|>"));
        assert_eq!(ids[ids.len() - 2..], [id("<|image_pad|>"); 2]);
        assert_eq!(TOKENIZER.decode(&ids, true), "a\n");
        assert_eq!(TOKENIZER.decode(&ids, false), "<|im_start|>a<|im_end|>\n<|image_pad|><|image_pad|>");
    }

    #[test]
    fn the_first_difference_names_id_and_tokens() {
        let json: serde_json::Value = serde_json::from_str(JSON).unwrap();
        let parse = |text: &str| Tokenizer::parse("t", text.as_bytes()).unwrap();
        assert_eq!(TOKENIZER.first_difference(&parse(&json.to_string())), None);
        let renamed = parse(&json.to_string().replace("<|im_start|>", "<|im_begin|>"));
        let id = TOKENIZER.token_to_id("<|im_start|>").unwrap();
        let difference = (id, "<|im_begin|>".to_string(), "<|im_start|>".to_string());
        assert_eq!(TOKENIZER.first_difference(&renamed), Some(difference));
        // Differences: one token more, one token less, or a token that is special in only one tokenizer.
        let mut more = json.clone();
        let added = more["added_tokens"].as_array_mut().unwrap();
        let mut last = added.last().unwrap().clone();
        let next = last["id"].as_u64().unwrap() + 40;
        (last["id"], last["content"]) = (next.into(), "<|one more|>".into());
        added.push(last);
        let more = parse(&more.to_string());
        let difference = (next as u32, "<|one more|>".to_string(), String::new());
        assert_eq!(
            TOKENIZER.first_difference(&more).map(|(_, other, own)| (other, own)),
            Some((difference.1, difference.2))
        );
        assert_eq!(more.first_difference(&TOKENIZER).map(|(_, other, _)| other), Some(String::new()));
        let mut plain = json.clone();
        let first = &mut plain["added_tokens"][0];
        let (id, name) = (first["id"].as_u64().unwrap() as u32, first["content"].as_str().unwrap().to_string());
        first["special"] = false.into();
        assert_eq!(TOKENIZER.first_difference(&parse(&plain.to_string())), Some((id, name.clone(), name)));
    }

    #[test]
    fn rejects_the_tokenizer_of_another_model() {
        let mut config = tiny_config();
        let refuse = |config: &ModelConfig, expected: &str| {
            let error = TOKENIZER.check_fits(config).unwrap_err().to_string();
            assert!(error.starts_with("t: ") && error.contains(expected), "{error}");
        };
        config.text.vocab_size = 300;
        refuse(&config, "vocab_size of 300");
        config.text.vocab_size = 1000;
        config.tokens.image = 411;
        refuse(&config, "image_token_id = 411");
        for (token, location) in [
            (IMAGE_PAD, &mut config.tokens.image),
            (VIDEO_PAD, &mut config.tokens.video),
            (VISION_START, &mut config.tokens.vision_start),
            (VISION_END, &mut config.tokens.vision_end),
        ] {
            *location = TOKENIZER.token_to_id(token).unwrap();
        }
        TOKENIZER.check_fits(&config).unwrap();
        for bad in
            ["", "{}", "[1]", r#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#]
        {
            assert!(Tokenizer::parse("t", bad.as_bytes()).unwrap_err().to_string().starts_with("t: "));
        }
    }
}
