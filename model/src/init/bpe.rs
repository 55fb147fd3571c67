//! Makes the files of a small byte-level BPE tokenizer for `reel init`. Its merges were learned from a page of text.
//! Its pre-tokenizer, Unicode normalization (NFC) and special tokens are those of Qwen2.5 and Qwen3.

use std::collections::BTreeMap;

use reel_input::config::Family;
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

/// The added tokens that Qwen3-VL has after those of Qwen2.5.
const ADDED_BY_QWEN3: [(&str, bool); 4] =
    [("<tool_response>", false), ("</tool_response>", false), ("<think>", false), ("</think>", false)];

/// The added tokens of a family in the order of their ids, each with whether it is a special token.
fn added_tokens(family: Family) -> Vec<(&'static str, bool)> {
    match family {
        Family::Qwen25Vl => ADDED.to_vec(),
        Family::Qwen3Vl => ADDED.into_iter().chain(ADDED_BY_QWEN3).collect(),
    }
}

/// The content of merges.txt: the pairs of tokens that are merged, in order. They were learned from prose.txt: each
/// step merged the most frequent pair, and of equally frequent pairs the alphabetically first, while a pair occurred at
/// least three times.
pub(crate) const MERGES: &str = include_str!("merges.txt");

/// The tokenizer files of a model folder.
pub(crate) struct SmallTokenizer {
    /// The content of tokenizer.json.
    pub(crate) json: Value,
    /// The content of tokenizer_config.json without the chat template.
    pub(crate) config: Value,
    /// The content of vocab.json.
    pub(crate) vocab: Value,
    /// The id of each added token.
    pub(crate) added: BTreeMap<&'static str, u32>,
    /// The largest token id plus one.
    pub(crate) end: u32,
}

/// Makes the tokenizer for models of `family`. The ids of added tokens begin at `first_added_token_id`; if that is
/// `None`, they follow directly after all other ids.
pub(crate) fn small_tokenizer(family: Family, first_added_token_id: Option<u32>) -> SmallTokenizer {
    // The first line of merges.txt is its version.
    let merges: Vec<&str> = MERGES.lines().skip(1).collect();
    let mut vocab = Map::new();
    let mut alphabet: Vec<char> = (0..=255).map(byte_level_character).collect();
    alphabet.sort_unstable();
    let tokens = alphabet.iter().map(char::to_string).chain(merges.iter().map(|pair| pair.replace(' ', "")));
    for (id, token) in tokens.enumerate() {
        vocab.insert(token, json!(id));
    }
    let first = first_added_token_id.unwrap_or(vocab.len() as u32);
    let tokens = added_tokens(family);
    let added: BTreeMap<&str, u32> = tokens.iter().zip(first..).map(|(&(token, _), id)| (token, id)).collect();
    let mut model_vocab = vocab.clone();
    if first_added_token_id.is_some() {
        // Tokenizer libraries keep the id of an added token only if the vocabulary has the token; otherwise they
        // number it after the vocabulary. So the added tokens go into the vocabulary too.
        model_vocab.extend(added.iter().map(|(token, id)| (token.to_string(), json!(id))));
    }
    SmallTokenizer {
        json: tokenizer_json(&model_vocab, &merges, &tokens, &added),
        config: tokenizer_config(&tokens, &added),
        vocab: Value::Object(model_vocab),
        end: first + tokens.len() as u32,
        added,
    }
}

fn tokenizer_json(
    vocab: &Map<String, Value>,
    merges: &[&str],
    tokens: &[(&str, bool)],
    added: &BTreeMap<&str, u32>,
) -> Value {
    let tokens: Vec<Value> = tokens
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

fn tokenizer_config(tokens: &[(&str, bool)], added: &BTreeMap<&str, u32>) -> Value {
    let decoder: Map<String, Value> = tokens
        .iter()
        .map(|&(token, special)| {
            let entry = json!({"content": token, "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": special});
            (added[token].to_string(), entry)
        })
        .collect();
    let special: Vec<&str> = tokens
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

#[cfg(test)]
mod tests {
    use reel_input::tokenizer::Tokenizer;
    use reel_support::files::fingerprint::bytes_fingerprint;

    use super::*;

    #[test]
    fn frequent_words_become_few_tokens() {
        let small = small_tokenizer(Family::Qwen25Vl, None);
        let tokenizer = Tokenizer::parse("t", small.json.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.vocab_size() as u32, small.end);
        let text = "<|im_start|>user\nWhich way does the circle move?<|im_end|>\n";
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.len() <= 14, "{} tokens", ids.len());
        assert_eq!(tokenizer.decode(&ids, false), text);
        assert!((400..1000).contains(&small.end), "{} ids", small.end);
    }

    /// Token ids of golden data depend on these bytes.
    #[test]
    fn files_of_the_tokenizer_keep_their_bytes() {
        let small = small_tokenizer(Family::Qwen25Vl, None);
        let fingerprint = |text: String| bytes_fingerprint(text.as_bytes());
        assert_eq!(fingerprint(format!("{:#}\n", small.json)), "6de0bda465c2c58f");
        assert_eq!(fingerprint(small.vocab.to_string()), "3927a36486481629");
    }

    #[test]
    fn added_tokens_can_have_published_ids() {
        let small = small_tokenizer(Family::Qwen25Vl, Some(151_643));
        let tokenizer = Tokenizer::parse("t", small.json.to_string().as_bytes()).unwrap();
        for (token, id) in
            [("<|endoftext|>", 151_643), ("<|im_end|>", 151_645), ("<|image_pad|>", 151_655), ("<|file_sep|>", 151_664)]
        {
            assert_eq!((tokenizer.token_to_id(token), small.added[token]), (Some(id), id));
            assert_eq!(tokenizer.encode(token).unwrap(), [id]);
        }
        assert_eq!(small.end, 151_665);
    }

    /// Qwen3-VL has four more tokens, which stay in decoded text because they are not special.
    #[test]
    fn tokens_of_qwen3_follow_those_of_qwen2_5() {
        let [own, other] = [Family::Qwen3Vl, Family::Qwen25Vl].map(|family| small_tokenizer(family, Some(151_643)));
        assert!(other.added.iter().all(|(token, id)| own.added[token] == *id));
        let tokenizer = Tokenizer::parse("t", own.json.to_string().as_bytes()).unwrap();
        let text = "<tool_response></tool_response><think></think>";
        assert_eq!(tokenizer.encode(text).unwrap(), [151_665, 151_666, 151_667, 151_668]);
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap(), true), text);
        assert_eq!(own.end, 151_669);
    }
}
