//! Parses tokenizer.json, and checks its regular expressions and replacements, which run on every text. A regular
//! expression with lookahead or backreferences is matched by backtracking, which can take exponential time; a series of
//! replacements can multiply the length of a text. Both are checked before an expression is compiled. If the tokenizer
//! library panics at a file that passes these checks, the panic becomes an error ([`catch_library_panic`]).

use std::collections::HashMap;

use base64::Engine as _;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

use crate::error::{Error, Result};

/// A tokenizer whose model is a byte-pair encoding.
pub(crate) type BytePairTokenizer =
    TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// An error in a tokenizer.json: the key at fault (`content` if the file cannot be parsed), and what is wrong.
pub type TokenizerFault = (&'static str, String);

/// The help in errors about an invalid tokenizer.json.
pub const TOKENIZER_HELP: &str = "use the tokenizer.json that was published with these weights";

/// Regular expressions with lookahead from published tokenizers: Qwen2 and later, Llama 3, GPT-2. They are allowed
/// because each of them looks ahead by only one character.
const PUBLISHED: [&str; 3] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
];

/// The maximum length of a regular expression in bytes, except for the published expressions.
const MAX_PATTERN_BYTES: usize = 1024;

/// Maximum length of a string in bytes of the JSON text; only a table of replacements (`precompiled_charsmap`) may be
/// longer. Tokens of published vocabularies have up to a few hundred bytes. The tokenizer frees the trie of a
/// vocabulary recursively, with one call for each byte of a token, so a long token would overflow the stack.
const MAX_STRING_BYTES: usize = 2048;

/// The maximum number of components (normalizers, pre-tokenizers, …) of a tokenizer. Published tokenizers have up to
/// about ten.
const MAX_COMPONENTS: usize = 64;

/// The maximum length in bytes of a text that one component inserts (`MAX_INSERTED_BYTES`), and the maximum factor by
/// which all components together may lengthen a text (`MAX_GROWTH`).
const MAX_INSERTED_BYTES: usize = 64;
const MAX_GROWTH: usize = 256;

/// Runs calls of the tokenizer library with data of the file `location`. The library panics at some damaged files; such
/// a panic becomes an error about the file.
///
/// # Errors
/// The error or the panic of `calls`.
pub fn catch_library_panic<T, E: From<Error>>(location: &str, calls: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    reel_support::diagnostic::catch_panic(calls).unwrap_or_else(|panic| {
        let what = format!("is damaged in a way that the tokenizer library does not expect (it panicked: {panic})");
        Err(Error::input(location, what, TOKENIZER_HELP).into())
    })
}

/// The content of a tokenizer.json with a model of type `M`. The keys `truncation` and `padding` are ignored: they are
/// left over from a training script, and would change the ids.
#[derive(Deserialize)]
struct Content<M> {
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: M,
}

impl<M> Content<M> {
    /// Parses a tokenizer.json and checks its components.
    fn parse<'de>(bytes: &'de [u8]) -> Result<Self, TokenizerFault>
    where
        M: Deserialize<'de>,
    {
        let content: Self = serde_json::from_slice(bytes).map_err(|e| ("content", format!("cannot be read ({e})")))?;
        if let Some(version) = content.version.as_ref().filter(|version| *version != "1.0") {
            return Err(("version", format!("is `{version}`, not `1.0`")));
        }
        let too_long = |token: &&AddedToken| token.content.len() > MAX_STRING_BYTES;
        if let Some(token) = content.added_tokens.iter().find(too_long) {
            return Err(("added_tokens", oversized_token(token.content.len())));
        }
        let mut limits = Limits { components: 0, growth: 1 };
        for (key, value) in [
            ("normalizer", &content.normalizer),
            ("pre_tokenizer", &content.pre_tokenizer),
            ("post_processor", &content.post_processor),
            ("decoder", &content.decoder),
        ] {
            limits.check(value).map_err(|what| (key, what))?;
        }
        Ok(content)
    }
}

/// Parses a tokenizer.json whose model is a byte-pair encoding.
pub(crate) fn parse_byte_pair(bytes: &[u8]) -> Result<BytePairTokenizer, TokenizerFault> {
    fn component<T: DeserializeOwned>(key: &'static str, value: Value) -> Result<Option<T>, TokenizerFault> {
        serde_json::from_value(value).map_err(|e| (key, format!("cannot be read ({e})")))
    }
    let content: Content<BPE> = Content::parse(bytes)?;
    check_byte_pair_model(&content.model).map_err(|what| ("model", what))?;
    let mut tokenizer = BytePairTokenizer::new(content.model);
    let pre_tokenizer: Option<PreTokenizerWrapper> = component("pre_tokenizer", content.pre_tokenizer)?;
    let post_processor: Option<PostProcessorWrapper> = component("post_processor", content.post_processor)?;
    let decoder: Option<DecoderWrapper> = component("decoder", content.decoder)?;
    let normalizer: Option<NormalizerWrapper> = component("normalizer", content.normalizer)?;
    tokenizer.with_pre_tokenizer(pre_tokenizer).with_post_processor(post_processor).with_decoder(decoder);
    tokenizer.with_normalizer(normalizer).map_err(|e| ("normalizer", e.to_string()))?;
    tokenizer.add_tokens(content.added_tokens).map_err(|e| ("added_tokens", e.to_string()))?;
    Ok(tokenizer)
}

/// Refuses a model that gives the same text different tokens each time, or that is not of a byte-level tokenizer.
fn check_byte_pair_model(model: &BPE) -> Result<(), String> {
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err("has dropout, so the same text would be split into different tokens each time".to_string());
    }
    if model.byte_fallback {
        return Err("has byte_fallback; a byte-level tokenizer has a token for each byte".to_string());
    }
    for (key, value) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            return Err(format!("has the {key} `{value}`; a byte-level tokenizer has none"));
        }
    }
    let vocabulary = model.get_vocab();
    if let Some(unknown) = model.unk_token.as_ref().filter(|token| !vocabulary.contains_key(*token)) {
        return Err(format!("has the unk_token `{unknown}`, which is not in the vocabulary"));
    }
    let mut tokens = HashMap::with_capacity(vocabulary.len());
    for (token, id) in vocabulary {
        if let Some(other) = tokens.insert(id, token.clone()) {
            let (first, second) = if other < token { (other, token) } else { (token, other) };
            return Err(format!("has the tokens `{first}` and `{second}` with the same id, {id}"));
        }
    }
    Ok(())
}

/// Checks a tokenizer.json whose model is a unigram model, before the crate `tokenizers` parses it. That crate's parser
/// panics at some damaged files.
///
/// # Errors
/// The key at fault, and what is wrong.
pub fn check_unigram_tokenizer(bytes: &[u8]) -> Result<(), TokenizerFault> {
    /// The value of the key `model`.
    #[derive(Deserialize)]
    struct Model {
        #[serde(rename = "type")]
        kind: String,
        #[serde(rename = "vocab")]
        _vocab: IgnoredAny,
    }
    if let Some(length) = longest_string(bytes).filter(|length| *length > MAX_STRING_BYTES) {
        return Err(("model", oversized_token(length)));
    }
    match Content::<Model>::parse(bytes)?.model.kind.as_str() {
        "Unigram" => Ok(()),
        other => Err(("model", format!("has the type `{other}`, but SigLIP needs the type `Unigram`"))),
    }
}

fn oversized_token(length: usize) -> String {
    format!("has a token of {length} bytes, above the limit of {MAX_STRING_BYTES}")
}

/// Returns the length in bytes of the longest string in a JSON text; `None` if the text has no string. Ignores the
/// values of the key `precompiled_charsmap`, which [`longest_replacement`] checks.
fn longest_string(json: &[u8]) -> Option<usize> {
    let (mut longest, mut is_table, mut at) = (None, false, 0);
    while let Some(start) = json[at..].iter().position(|&byte| byte == b'"').map(|start| at + start + 1) {
        let mut end = start;
        while end < json.len() && json[end] != b'"' {
            end += if json[end] == b'\\' { 2 } else { 1 };
        }
        let string = &json[start..end.min(json.len())];
        if !is_table {
            longest = longest.max(Some(string.len()));
        }
        at = (end + 1).min(json.len());
        let next = json[at..].iter().find(|byte| !byte.is_ascii_whitespace());
        is_table = string == b"precompiled_charsmap" && next == Some(&b':');
    }
    longest
}

/// The number of components and the growth factor that have been counted so far.
struct Limits {
    components: usize,
    growth: usize,
}

impl Limits {
    /// Checks a component and the components inside of it.
    fn check(&mut self, value: &Value) -> Result<(), String> {
        match value {
            Value::Array(list) => list.iter().try_for_each(|value| self.check(value)),
            Value::Object(fields) => {
                self.components += 1;
                if self.components > MAX_COMPONENTS {
                    return Err(format!("has more than {MAX_COMPONENTS} components"));
                }
                if let Some(pattern) = fields.get("Regex").and_then(Value::as_str).filter(|p| !is_linear(p)) {
                    let shown: String = pattern.chars().take(60).collect();
                    return Err(format!("has the regular expression `{shown}`, which can take exponential time"));
                }
                for name in ["content", "prepend"] {
                    let Some(text) = fields.get(name).and_then(Value::as_str) else { continue };
                    self.lengthen_text(text.len())?;
                }
                let table = fields.get("precompiled_charsmap");
                // The parser of the tokenizer library panics at a normalizer of type `Precompiled` without a table.
                if table.is_none() && fields.get("type").and_then(Value::as_str) == Some("Precompiled") {
                    return Err("has no precompiled_charsmap".to_string());
                }
                if let Some(table) = table {
                    let longest = longest_replacement(table.as_str().unwrap_or_default())
                        .ok_or("has a precompiled_charsmap that is damaged")?;
                    self.lengthen_text(longest)?;
                }
                fields.values().try_for_each(|value| self.check(value))
            }
            _ => Ok(()),
        }
    }

    /// Counts a component that replaces a character with up to `bytes` bytes. Returns an error if the components
    /// counted so far can lengthen a text too much.
    fn lengthen_text(&mut self, bytes: usize) -> Result<(), String> {
        self.growth = self.growth.saturating_mul(bytes.max(1));
        match bytes > MAX_INSERTED_BYTES || self.growth > MAX_GROWTH {
            true => Err(format!("can make a text more than {MAX_GROWTH} times as long")),
            false => Ok(()),
        }
    }
}

/// Returns the length in bytes of the longest replacement in `table`, sentencepiece's `precompiled_charsmap`; `None` if
/// the table is damaged. With a damaged table the tokenizer would index out of bounds.
///
/// The table is in base64. It holds the size of a trie in bytes (u32), the trie, and the replacements, each of which
/// ends with a zero byte. The trie is a double array in the format of darts-clone. It consists of u32 units. Bit 31
/// marks a unit that is a value (the position of a replacement). In a unit that is a node, bit 8 says that the node has
/// a value, and bits 10 to 30 are the offset to its children, shifted left by 8 if bit 9 is set.
fn longest_replacement(table: &str) -> Option<usize> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(table).ok()?;
    let (size, rest) = bytes.split_first_chunk::<4>()?;
    let (trie, texts) = rest.split_at_checked(u32::from_le_bytes(*size) as usize / 4 * 4)?;
    let texts = str::from_utf8(texts).ok()?;
    let units: Vec<usize> = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    let mut longest = 0;
    // Every search begins at the first unit (u32) of the double array, so the array must not be empty.
    units.first()?;
    for (index, unit) in units.iter().enumerate().filter(|(_, unit)| *unit >> 31 == 0) {
        let children = index ^ ((unit >> 10) << ((unit & (1 << 9)) >> 6));
        // The child for a byte is at index `children ^ byte`, which is at most `children | 0xff`.
        units.get(children | 0xff)?;
        if unit >> 8 & 1 == 1 {
            let text = texts.get(units[children] & 0x7fff_ffff..)?;
            longest = longest.max(text.find('\0').unwrap_or(text.len()));
        }
    }
    Some(longest)
}

/// Whether a regular expression is matched in time linear in the length of the text. This is so for the expressions
/// in [`PUBLISHED`], and for expressions that need no backtracking: those without lookaround, backreferences,
/// possessive quantifiers and atomic groups.
fn is_linear(pattern: &str) -> bool {
    if PUBLISHED.contains(&pattern) {
        return true;
    }
    if pattern.len() > MAX_PATTERN_BYTES {
        return false;
    }
    let mut rest = pattern.chars().peekable();
    let (mut in_class, mut after_quantifier) = (0usize, false);
    while let Some(c) = rest.next() {
        let quantifies = in_class == 0 && matches!(c, '*' | '+' | '?' | '}');
        match c {
            '\\' => {
                let escaped = rest.next().unwrap_or('\\');
                if !(escaped.is_ascii_punctuation() || "pPsSdDwWrntfvxuU".contains(escaped)) {
                    return false;
                }
                // The braces of `\p{L}` or `\x{41}` are not a quantifier.
                if "pPxuU".contains(escaped) && rest.next_if_eq(&'{').is_some() {
                    rest.by_ref().find(|&c| c == '}');
                }
            }
            '[' => in_class += 1,
            ']' => in_class = in_class.saturating_sub(1),
            '(' if in_class == 0 && rest.peek() == Some(&'?') => {
                rest.next();
                let flags: String = std::iter::from_fn(|| rest.next_if(|c| "imsUux".contains(*c))).collect();
                if !matches!(rest.next(), Some(':')) && flags.is_empty() {
                    return false;
                }
            }
            // A `+` after a quantifier makes it possessive.
            '+' if after_quantifier => return false,
            _ => {}
        }
        after_quantifier = quantifies;
    }
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_linear_expressions_are_accepted() {
        for good in [
            PUBLISHED[0],
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]\^_`{|}~]"##,
            r"\s+",
            r"(?i:a|b)+|[^\r\n]{1,3}?x|\p{L}+?",
            r"(a+)+$",
            r"[0-9][a-z]*",
        ] {
            assert!(is_linear(good), "{good}");
        }
        let long = "a".repeat(1025);
        for bad in [
            r"(a+)+(?!b)",
            r"(?=a)b",
            r"(?<=a)b",
            r"(?<!a)b",
            r"(a)\1",
            r"(?>a+)b",
            r"a++b",
            r"a*+",
            r"a?+",
            r"a{2}+",
            r"(?P<n>a)\k<n>",
            r"\Ga",
            r"a\Kb",
            r"(?(1)a|b)",
            &long,
        ] {
            assert!(!is_linear(bad), "{bad}");
        }
    }

    #[test]
    fn hostile_components_are_named() {
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let replace = |by: &str| json!({"type": "Replace", "pattern": {"String": "a"}, "content": by});
        let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "normalizers": parts});
        let added = |text: &str| {
            json!({"id": 1, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let model = json!({"vocab": {"a": 0}, "merges": []});
        for (file, key) in [
            (json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(r"(a+)+(?!b)")]}}), "pre_tokenizer"),
            (json!({"normalizer": sequence(vec![replace("aaaa"); 5])}), "normalizer"),
            (json!({"normalizer": replace(&"a".repeat(65))}), "normalizer"),
            (json!({"normalizer": {"type": "Prepend", "prepend": "x".repeat(1000)}}), "normalizer"),
            (json!({"normalizer": {"type": "Precompiled"}}), "normalizer"),
            (
                json!({"normalizer": sequence(vec![json!({"type": "Precompiled", "precompiled_charsmap": null})])}),
                "normalizer",
            ),
            (json!({"decoder": sequence(vec![json!({"type": "Fuse"}); 70])}), "decoder"),
            (json!({"decoder": {"type": "Loud"}}), "decoder"),
            (json!({"version": "2.0"}), "version"),
            (json!({"added_tokens": [added(&"x".repeat(2049))]}), "added_tokens"),
        ] {
            let mut file = file;
            file["model"] = model.clone();
            let error = parse_byte_pair(file.to_string().as_bytes()).err().unwrap();
            assert_eq!(error.0, key, "{error:?}");
        }
        let good = json!({"normalizer": sequence(vec![replace(""), replace(" "), replace("▁")]), "model": model,
            "pre_tokenizer": split(PUBLISHED[0]), "post_processor": null, "added_tokens": []});
        assert_eq!(parse_byte_pair(good.to_string().as_bytes()).err(), None);
        assert_eq!(parse_byte_pair(b"{").err().unwrap().0, "content");
    }

    #[test]
    fn damaged_models_are_refused_by_what_is_wrong() {
        let good = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]});
        let parse = |model: &Value| parse_byte_pair(json!({"model": model}).to_string().as_bytes());
        assert_eq!(parse(&good).err(), None);
        for (change, what) in [
            (json!({"type": "WordPiece"}), "BPE"),
            (json!({"dropout": 0.1}), "dropout"),
            (json!({"byte_fallback": true}), "byte_fallback"),
            (json!({"end_of_word_suffix": "</w>"}), "end_of_word_suffix `</w>`"),
            (json!({"continuing_subword_prefix": "##", "merges": []}), "continuing_subword_prefix"),
            (json!({"unk_token": "?"}), "unk_token `?`"),
            (json!({"merges": ["a c"]}), "`c`"),
            (json!({"merges": ["b a"]}), "`ba`"),
            (json!({"merges": ["ab"]}), "cannot be read"),
            (json!({"merges": [["a"]]}), "cannot be read"),
            (json!({"merges": [3]}), "cannot be read"),
            (json!({"vocab": []}), "cannot be read"),
            (json!({"vocab": {"a": -1}}), "cannot be read"),
            (json!({"vocab": {"a": 7, "b": 7, "ab": 2}}), "`a` and `b` with the same id, 7"),
        ] {
            let mut model = good.clone();
            model.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let (key, error) = parse(&model).err().unwrap_or_else(|| panic!("{change} is accepted"));
            assert!(error.contains(what), "{change}: {key}: {error}");
        }
    }

    /// `parse_byte_pair` refuses every file that is known to make the library panic. So this test passes such a file to
    /// the library directly.
    #[test]
    fn panics_of_the_library_are_errors_of_the_file() {
        let damaged = json!({"version": "1.0", "normalizer": {"type": "Precompiled"},
            "model": {"type": "BPE", "vocab": {}, "merges": []}});
        let error = catch_library_panic("t.json", || {
            tokenizers::Tokenizer::from_bytes(damaged.to_string())
                .map_err(|e| Error::input("t.json", format!("is refused ({e})"), TOKENIZER_HELP))
        });
        let error = error.map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with("t.json: is damaged in a way ") && error.contains("it panicked: "), "{error}");
        assert!(error.ends_with(TOKENIZER_HELP) && error.lines().count() == 1, "{error}");
        assert!(catch_library_panic("t.json", || Ok::<_, Error>(1)).is_ok());
    }
}
