//! The model sizes of `reel init`.

use std::collections::BTreeMap;

use reel_input::config::Family;
use reel_input::tensor_file::StoredDType;
use serde_json::{Value, json};

use super::{SmallTokenizer, qwen3, small_tokenizer};
use crate::error::{Error, Result};

/// A model size that `reel init` can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// A Qwen2.5-VL of about a million parameters in f32, for tests and demos.
    Tiny,
    /// Qwen2.5-VL-3B: tied embeddings, bf16.
    B3,
    /// Qwen2.5-VL-7B: untied embeddings, bf16.
    B7,
    /// Qwen2.5-VL-32B: untied embeddings, bf16.
    B32,
    /// Qwen2.5-VL-72B: untied embeddings, bf16.
    B72,
    /// A Qwen3-VL of about a million parameters in f32, for tests and demos.
    Qwen3Tiny,
    /// Qwen3-VL-2B: tied embeddings, bf16.
    Qwen3B2,
    /// Qwen3-VL-4B: tied embeddings, bf16.
    Qwen3B4,
    /// Qwen3-VL-8B: untied embeddings, bf16.
    Qwen3B8,
    /// Qwen3-VL-32B: untied embeddings, bf16.
    Qwen3B32,
}

/// The first id of the added tokens in the published tokenizers of both families.
const FIRST_ADDED: u32 = 151_643;

impl Preset {
    /// All presets.
    pub const ALL: [Preset; 10] = [
        Preset::Tiny,
        Preset::B3,
        Preset::B7,
        Preset::B32,
        Preset::B72,
        Preset::Qwen3Tiny,
        Preset::Qwen3B2,
        Preset::Qwen3B4,
        Preset::Qwen3B8,
        Preset::Qwen3B32,
    ];

    /// The names of all presets, for the help of an error message.
    pub const NAMES: &str = "tiny, 3b, 7b, 32b, 72b, qwen3-tiny, qwen3-2b, qwen3-4b, qwen3-8b or qwen3-32b";

    /// The preset's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Tiny => "tiny",
            Preset::B3 => "3b",
            Preset::B7 => "7b",
            Preset::B32 => "32b",
            Preset::B72 => "72b",
            Preset::Qwen3Tiny => "qwen3-tiny",
            Preset::Qwen3B2 => "qwen3-2b",
            Preset::Qwen3B4 => "qwen3-4b",
            Preset::Qwen3B8 => "qwen3-8b",
            Preset::Qwen3B32 => "qwen3-32b",
        }
    }

    /// The model family.
    pub fn family(self) -> Family {
        match self {
            Preset::Tiny | Preset::B3 | Preset::B7 | Preset::B32 | Preset::B72 => Family::Qwen25Vl,
            Preset::Qwen3Tiny | Preset::Qwen3B2 | Preset::Qwen3B4 | Preset::Qwen3B8 | Preset::Qwen3B32 => {
                Family::Qwen3Vl
            }
        }
    }

    fn is_tiny(self) -> bool {
        matches!(self, Preset::Tiny | Preset::Qwen3Tiny)
    }

    /// Parses a preset name of the command line, one of [`Preset::NAMES`].
    pub fn parse(name: &str) -> Result<Self> {
        Preset::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let help = format!("choose {}", Preset::NAMES);
            Error::input("--preset", format!("there is no preset `{name}`"), help)
        })
    }

    /// The default dtype of the weights.
    pub fn default_dtype(self) -> StoredDType {
        if self.is_tiny() { StoredDType::F32 } else { StoredDType::Bf16 }
    }

    /// The small tokenizer of this preset. The added tokens have their published ids; those of the tiny models follow
    /// directly after all other tokens.
    pub(crate) fn tokenizer(self) -> SmallTokenizer {
        small_tokenizer(self.family(), (!self.is_tiny()).then_some(FIRST_ADDED))
    }

    /// The config.json of this preset. `ids_end` is the tokenizer's largest id plus one.
    pub(crate) fn config_json(
        self,
        layers: Option<usize>,
        vocab: Option<usize>,
        dtype: StoredDType,
        ids: &BTreeMap<&str, u32>,
        ids_end: u32,
    ) -> Value {
        let mut config = match self.family() {
            Family::Qwen25Vl => qwen25_config_of_7b(dtype, ids),
            Family::Qwen3Vl => qwen3::config_of_8b(dtype, ids),
        };
        replace_values(&mut config, self.differences(ids_end));
        let text = match self.family() {
            Family::Qwen25Vl => &mut config,
            Family::Qwen3Vl => &mut config["text_config"],
        };
        if let Some(layers) = layers {
            text["num_hidden_layers"] = json!(layers);
        }
        if let Some(vocab) = vocab {
            text["vocab_size"] = json!(vocab);
        }
        if self.family() == Family::Qwen25Vl {
            config["max_window_layers"] = config["num_hidden_layers"].clone();
        }
        config
    }

    /// The entries of config.json in which this preset differs from Qwen2.5-VL-7B, or from Qwen3-VL-8B. `ids_end` is
    /// the tokenizer's largest id plus one.
    fn differences(self, ids_end: u32) -> Value {
        match self {
            Preset::Tiny => json!({
                "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 3,
                "num_key_value_heads": 2, "tie_word_embeddings": true, "vocab_size": ids_end.next_multiple_of(64),
                "vision_config": {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2,
                    "out_hidden_size": 128, "window_size": 56, "fullatt_block_indexes": [1]},
                // Like the published 16, 24 and 24 of 64 frequencies: a quarter is for time, and the rest is shared
                // equally by height and width.
                "rope_scaling": {"mrope_section": [4, 6, 6]},
            }),
            Preset::B3 => json!({
                "hidden_size": 2048, "intermediate_size": 11_008, "num_attention_heads": 16, "num_hidden_layers": 36,
                "num_key_value_heads": 2, "tie_word_embeddings": true, "vocab_size": 151_936,
                "vision_config": {"out_hidden_size": 2048},
            }),
            Preset::B7 => json!({}),
            Preset::B32 => json!({
                "hidden_size": 5120, "intermediate_size": 27_648, "num_attention_heads": 40, "num_hidden_layers": 64,
                "num_key_value_heads": 8, "vision_config": {"intermediate_size": 3456, "out_hidden_size": 5120},
            }),
            Preset::B72 => json!({
                "hidden_size": 8192, "intermediate_size": 29_568, "num_attention_heads": 64, "num_hidden_layers": 80,
                "num_key_value_heads": 8, "vision_config": {"intermediate_size": 3456, "out_hidden_size": 8192},
            }),
            Preset::Qwen3Tiny => qwen3::differences_of_tiny(ids_end),
            Preset::Qwen3B2 => json!({
                "tie_word_embeddings": true,
                "text_config": {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16,
                    "num_hidden_layers": 28, "tie_word_embeddings": true},
                "vision_config": qwen3::small_tower(2048),
            }),
            Preset::Qwen3B4 => json!({
                "tie_word_embeddings": true,
                "text_config": {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": true},
                "vision_config": qwen3::small_tower(2560),
            }),
            Preset::Qwen3B8 => json!({}),
            Preset::Qwen3B32 => json!({
                "text_config": {"hidden_size": 5120, "intermediate_size": 25_600, "num_attention_heads": 64,
                    "num_hidden_layers": 64},
                "vision_config": {"out_hidden_size": 5120},
            }),
        }
    }
}

/// The config.json of Qwen2.5-VL-7B.
fn qwen25_config_of_7b(dtype: StoredDType, ids: &BTreeMap<&str, u32>) -> Value {
    let vision = json!({
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    });
    json!({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 18_944,
        "max_position_embeddings": 128_000,
        "max_window_layers": null,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "sliding_window": 32_768,
        "tie_word_embeddings": false,
        "torch_dtype": dtype.torch_dtype_name(),
        "transformers_version": "4.49.0",
        "use_cache": true,
        "use_sliding_window": false,
        "vision_config": vision,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 152_064,
    })
}

/// Replaces the values of `config` by those of `changes`, and the entries of an object one by one.
fn replace_values(config: &mut Value, changes: Value) {
    match changes {
        Value::Object(entries) => entries.into_iter().for_each(|(key, value)| replace_values(&mut config[key], value)),
        value => *config = value,
    }
}
