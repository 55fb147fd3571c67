//! Trains a small byte-level BPE tokenizer on a page of text, for `reel init`. Its pre-tokenizer, Unicode
//! normalization (NFC) and special tokens are those of Qwen2.5.

use std::collections::BTreeMap;

use reel_input::tokenizer::byte_level_character;
use serde_json::{Map, Value, json};

/// The pre-tokenizer regex of Qwen2.5 (a constant of its published tokenizer.json).
const SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The added tokens of Qwen2.5 in the order of their ids, each with whether it is a special token.
const ADDED: [(&str, bool); 22] = [
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<|object_ref_start|>", true),
    ("<|object_ref_end|>", true),
    ("<|box_start|>", true),
    ("<|box_end|>", true),
    ("<|quad_start|>", true),
    ("<|quad_end|>", true),
    ("<|vision_start|>", true),
    ("<|vision_end|>", true),
    ("<|vision_pad|>", true),
    ("<|image_pad|>", true),
    ("<|video_pad|>", true),
    ("<tool_call>", false),
    ("</tool_call>", false),
    ("<|fim_prefix|>", false),
    ("<|fim_middle|>", false),
    ("<|fim_suffix|>", false),
    ("<|fim_pad|>", false),
    ("<|repo_name|>", false),
    ("<|file_sep|>", false),
];

/// A pair of tokens is merged only if it occurs at least this many times.
const MIN_PAIR_COUNT: usize = 3;

/// The tokenizer files of a model folder.
pub(crate) struct SmallTokenizer {
    /// The content of tokenizer.json.
    pub(crate) json: Value,
    /// The content of tokenizer_config.json without the chat template.
    pub(crate) config: Value,
    /// The content of vocab.json.
    pub(crate) vocab: Value,
    /// The content of merges.txt.
    pub(crate) merges: String,
    /// The id of each added token.
    pub(crate) added: BTreeMap<&'static str, u32>,
    /// The largest token id plus one.
    pub(crate) end: u32,
}

/// Trains the tokenizer. The ids of added tokens begin at `first_added_token_id`; if that is `None`, they follow
/// directly after all other ids.
pub(crate) fn train_small_tokenizer(first_added_token_id: Option<u32>) -> SmallTokenizer {
    let merges = learn(include_str!("prose.txt"));
    let mut vocab = Map::new();
    let mut alphabet: Vec<char> = (0..=255).map(byte_level_character).collect();
    alphabet.sort_unstable();
    let tokens = alphabet.iter().map(char::to_string).chain(merges.iter().map(|(a, b)| format!("{a}{b}")));
    for (id, token) in tokens.enumerate() {
        vocab.insert(token, json!(id));
    }
    let first = first_added_token_id.unwrap_or(vocab.len() as u32);
    let added: BTreeMap<&str, u32> = ADDED.iter().zip(first..).map(|(&(token, _), id)| (token, id)).collect();
    let mut model_vocab = vocab.clone();
    if first_added_token_id.is_some() {
        // Tokenizer libraries keep the id of an added token only if the vocabulary has the token; otherwise they
        // number it after the vocabulary. So the added tokens go into the vocabulary too.
        model_vocab.extend(added.iter().map(|(token, id)| (token.to_string(), json!(id))));
    }
    let pairs: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    SmallTokenizer {
        json: tokenizer_json(&model_vocab, &pairs, &added),
        config: tokenizer_config(&added),
        vocab: Value::Object(model_vocab),
        merges: format!("#version: 0.2\n{}\n", pairs.join("\n")),
        end: first + ADDED.len() as u32,
        added,
    }
}

fn tokenizer_json(vocab: &Map<String, Value>, merges: &[String], added: &BTreeMap<&str, u32>) -> Value {
    let tokens: Vec<Value> = ADDED
        .iter()
        .map(|&(token, special)| {
            json!({"id": added[token], "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special})
        })
        .collect();
    let byte_level = |add_prefix_space: bool| json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": false},
            byte_level(false),
        ]},
        "post_processor": byte_level(false),
        "decoder": byte_level(false),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges},
    })
}

fn tokenizer_config(added: &BTreeMap<&str, u32>) -> Value {
    let decoder: Map<String, Value> = ADDED
        .iter()
        .map(|&(token, special)| {
            let entry = json!({"content": token, "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": special});
            (added[token].to_string(), entry)
        })
        .collect();
    let special: Vec<&str> = ADDED
        .iter()
        .filter(|(token, special)| *special && *token != "<|endoftext|>")
        .map(|(token, _)| *token)
        .collect();
    json!({
        "add_bos_token": false, "add_prefix_space": false, "added_tokens_decoder": decoder,
        "additional_special_tokens": special, "bos_token": null, "clean_up_tokenization_spaces": false,
        "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 131_072, "pad_token": "<|endoftext|>",
        "split_special_tokens": false, "tokenizer_class": "Qwen2Tokenizer", "unk_token": null,
    })
}

/// Learns the merges in order. Each step merges the most frequent pair; among equally frequent pairs it merges the
/// alphabetically first.
fn learn(prose: &str) -> Vec<(String, String)> {
    let mut words: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    for word in split(prose) {
        *words.entry(word.bytes().map(|b| byte_level_character(b).to_string()).collect()).or_default() += 1;
    }
    let mut merges = Vec::new();
    loop {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (word, n) in &words {
            for pair in word.windows(2) {
                *counts.entry((&pair[0], &pair[1])).or_default() += n;
            }
        }
        // Of the pairs with the highest count, this selects the alphabetically first one: `Reverse` turns it into the
        // maximum.
        let best = counts.into_iter().max_by_key(|&(pair, n)| (n, std::cmp::Reverse(pair)));
        let Some(((a, b), _)) = best.filter(|&(_, n)| n >= MIN_PAIR_COUNT) else { return merges };
        let (a, b) = (a.to_string(), b.to_string());
        words = words.iter().map(|(word, &n)| (merge(word, &a, &b), n)).collect();
        merges.push((a, b));
    }
}

fn merge(word: &[String], a: &str, b: &str) -> Vec<String> {
    let mut merged = Vec::with_capacity(word.len());
    let mut at = 0;
    while at < word.len() {
        if at + 1 < word.len() && word[at] == a && word[at + 1] == b {
            merged.push(format!("{a}{b}"));
            at += 2;
        } else {
            merged.push(word[at].clone());
            at += 1;
        }
    }
    merged
}

/// Splits plain English text into the same words as the regex of Qwen2.5: letters with at most one other character
/// before them; all other characters singly.
fn split(prose: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = prose;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        let letters = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_alphabetic()).len();
        let length = match first {
            c if c.is_alphabetic() => letters(rest),
            c if !c.is_numeric() && c != '\n' && letters(after) > 0 => first.len_utf8() + letters(after),
            _ => first.len_utf8(),
        };
        words.push(&rest[..length]);
        rest = &rest[length..];
    }
    words
}

#[cfg(test)]
mod tests {
    use reel_input::tokenizer::Tokenizer;

    use super::*;

    #[test]
    fn frequent_words_become_few_tokens() {
        let small = train_small_tokenizer(None);
        let tokenizer = Tokenizer::parse("t", small.json.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.vocab_size() as u32, small.end);
        let text = "<|im_start|>user\nWhich way does the circle move?<|im_end|>\n";
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.len() <= 14, "{} tokens", ids.len());
        assert_eq!(tokenizer.decode(&ids, false), text);
        assert!((400..1000).contains(&small.end), "{} ids", small.end);
    }

    #[test]
    fn added_tokens_can_have_published_ids() {
        let small = train_small_tokenizer(Some(151_643));
        let tokenizer = Tokenizer::parse("t", small.json.to_string().as_bytes()).unwrap();
        for (token, id) in
            [("<|endoftext|>", 151_643), ("<|im_end|>", 151_645), ("<|image_pad|>", 151_655), ("<|file_sep|>", 151_664)]
        {
            assert_eq!((tokenizer.token_to_id(token), small.added[token]), (Some(id), id));
            assert_eq!(tokenizer.encode(token).unwrap(), [id]);
        }
        assert_eq!(small.end, 151_665);
    }
}
