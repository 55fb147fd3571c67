//! Writes a tiny SigLIP folder with random weights and a small tokenizer, for tests and demos of the semantic reward.
//! Because the weights are random, the similarities that this model computes have no meaning.

use std::collections::BTreeMap;
use std::path::Path;

use reel_input::tensor_file::StoredDType;
use serde_json::{Value, json};

use super::weights::{self, WeightInitializer};
use super::{InitReport, write_folder};
use crate::checkpoint::TensorNaming;
use crate::error::Result;
use crate::save::TensorSpec;
use crate::siglip::{SiglipConfig, expected_tensors};

/// Writes a SigLIP folder with 0.2 M parameters. The folder `out` must be new or empty.
///
/// # Errors
/// A folder that is not empty or cannot be written.
pub fn init_siglip(dtype: StoredDType, seed: u64, out: &Path) -> Result<InitReport> {
    let pieces = pieces(include_str!("prose.txt"));
    let config = config(dtype, pieces.len());
    let parsed = SiglipConfig::parse(&out.join("config.json").display().to_string(), &config.to_string())?;
    let tensors: Vec<TensorSpec> =
        expected_tensors(&parsed).into_iter().map(|(name, shape)| TensorSpec { name, dtype, shape }).collect();
    let pretty = |value: Value| format!("{value:#}\n");
    let files = [
        ("config.json", pretty(config)),
        ("preprocessor_config.json", pretty(preprocessor(&parsed))),
        ("tokenizer.json", pretty(tokenizer(&pieces))),
        ("tokenizer_config.json", pretty(tokenizer_config())),
    ];
    write_folder(&files, TensorNaming::Classic, &tensors, out, |spec, file| {
        weights::write_random_tensor(spec, initializer(&spec.name, &spec.shape), seed, file)
    })
}

fn config(dtype: StoredDType, vocab_size: usize) -> Value {
    let tower = |kind: &str| {
        json!({"model_type": kind, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "attention_dropout": 0.0})
    };
    let (mut text, mut vision) = (tower("siglip_text_model"), tower("siglip_vision_model"));
    (text["vocab_size"], text["max_position_embeddings"]) = (json!(vocab_size), json!(64));
    (text["pad_token_id"], text["eos_token_id"]) = (json!(1), json!(1));
    // As in so400m-patch14-384, the image side is not a multiple of the patch size.
    (vision["image_size"], vision["patch_size"], vision["num_channels"]) = (json!(64), json!(14), json!(3));
    json!({"architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip", "text_config": text,
        "torch_dtype": dtype.torch_dtype_name(), "transformers_version": "4.51.3", "vision_config": vision})
}

fn preprocessor(config: &SiglipConfig) -> Value {
    let side = config.vision.image_size;
    json!({"do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor", "resample": 3,
        "rescale_factor": 1.0 / 255.0, "size": {"height": side, "width": side}})
}

/// How a tensor is initialised: biases with 0, norm weights with 1, embedding tables and the probe (the learned query
/// of the pooling head) with standard deviation 1, and matrices so that they keep the scale of their input. The scale
/// and the bias of the loss get the initial values of the SigLIP paper (ln 10, -10).
fn initializer(name: &str, shape: &[usize]) -> WeightInitializer {
    let inputs = shape.last().map_or(1.0, |&n| n as f32);
    match name {
        "logit_scale" => WeightInitializer::Constant(std::f32::consts::LN_10),
        "logit_bias" => WeightInitializer::Constant(-10.0),
        _ if name.ends_with("bias") => WeightInitializer::Constant(0.0),
        _ if shape.len() == 1 => WeightInitializer::Constant(1.0),
        _ if name.ends_with("patch_embedding.weight") => {
            WeightInitializer::Normal(0.9 / (shape[1..].iter().product::<usize>() as f32).sqrt())
        }
        _ if name.contains("embedding.weight") || name.ends_with("probe") => WeightInitializer::Normal(1.0),
        // Large query and key weights make attention sharp. With nearly uniform attention, a short text would attend
        // mostly to its padding.
        _ if name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight") => {
            WeightInitializer::Normal(2.5 / inputs.sqrt())
        }
        _ => WeightInitializer::Normal(0.9 / inputs.sqrt()),
    }
}

/// The tokenizer's pieces and their log-probabilities: special tokens, single characters, and words that occur more
/// than once in the text.
fn pieces(prose: &str) -> Vec<(String, f64)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for word in prose.to_lowercase().split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        *counts.entry(format!("▁{word}")).or_default() += 1;
    }
    let total: usize = counts.values().sum();
    let special = ["<pad>", "</s>", "<unk>"].map(|token| (token.to_string(), 0.0));
    let characters = ['▁'].into_iter().chain('a'..='z').chain('0'..='9').map(|c| (c.to_string(), -10.0));
    let words = counts.iter().filter(|(_, n)| **n > 1).map(|(word, &n)| (word.clone(), (n as f64 / total as f64).ln()));
    special.into_iter().chain(characters).chain(words).collect()
}

fn tokenizer(pieces: &[(String, f64)]) -> Value {
    let added: Vec<Value> = pieces[..3]
        .iter()
        .enumerate()
        .map(|(id, (token, _))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true})
        })
        .collect();
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    let replace = |pattern: &str, by: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": by});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Lowercase"}, replace(r"[!-/:-@\[-`{-~]", ""), replace(r"\s+", " "),
            {"type": "Strip", "strip_left": true, "strip_right": true},
        ]},
        "pre_tokenizer": metaspace, "decoder": metaspace,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": false},
    })
}

fn tokenizer_config() -> Value {
    json!({"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "SiglipProcessor", "model_max_length": 64,
        "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "clean_up_tokenization_spaces": true,
        "model_input_names": ["input_ids"]})
}

#[cfg(test)]
mod tests {
    use reel_device::{DType, Device};
    use reel_input::media::frames::FrameView;

    use super::*;
    use crate::siglip::Siglip;

    #[test]
    fn embeddings_of_a_tiny_folder_differ() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("s");
        let report = init_siglip(StoredDType::Bf16, 3, &out).unwrap();
        assert!((100_000..500_000).contains(&report.parameters) && report.bytes == 2 * report.parameters, "{report:?}");
        assert!(init_siglip(StoredDType::F32, 3, &out).unwrap_err().to_string().contains("is not empty"));
        // With f32 activations, the vectors of a bf16 folder are converted to f32 on loading; its matrices are used
        // in place.
        for dtype in [DType::F32, DType::BF16] {
            let model = Siglip::open(&Device::cpu(2), &out, dtype).unwrap();
            let data: Vec<u8> = (0..2 * 30 * 50 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let view = FrameView::new(&data, 2, 30, 50).unwrap();
            let mut all = model.embed_frames(&[view], false).unwrap();
            all.extend(model.embed_texts(&["The circle moves up.", "The square moves down.", ""]).unwrap());
            for (i, a) in all.iter().enumerate() {
                assert!((a.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 0.02, "{i} {dtype}");
                for b in &all[..i] {
                    assert!(
                        a.iter().zip(b).any(|(a, b)| (a - b).abs() > 0.01),
                        "{dtype}: embedding {i} is close to an earlier one"
                    );
                }
            }
        }
    }

    #[test]
    fn frequent_words_are_pieces() {
        let pieces = pieces(include_str!("prose.txt"));
        let text = tokenizer(&pieces).to_string();
        let tokenizer = crate::siglip::SiglipTokenizer::parse("t", text.as_bytes(), pieces.len(), 64).unwrap();
        let ids = tokenizer.encode("The SQUARE moves, q!").unwrap();
        let spelled: Vec<&str> = ids[..5].iter().map(|&id| pieces[id as usize].0.as_str()).collect();
        assert_eq!(spelled, ["▁the", "▁square", "▁moves", "▁", "q"]);
        assert!(ids.len() == 64 && ids[5..].iter().all(|&id| id == 1));
        assert!((100..400).contains(&pieces.len()), "{}", pieces.len());
    }
}
