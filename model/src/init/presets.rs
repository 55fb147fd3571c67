//! The model sizes of `reel init`.

use std::collections::BTreeMap;

use reel_input::tensor_file::StoredDType;
use serde_json::{Value, json};

use crate::error::{ModelError, Result};

/// A model size that `reel init` can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// About a million parameters in f32, for tests and demos.
    Tiny,
    /// Qwen2.5-VL-3B: tied embeddings, bf16.
    B3,
    /// Qwen2.5-VL-7B: untied embeddings, bf16.
    B7,
    /// Qwen2.5-VL-32B: untied embeddings, bf16.
    B32,
    /// Qwen2.5-VL-72B: untied embeddings, bf16.
    B72,
}

/// The first id of the added tokens in the published Qwen2.5 tokenizers.
const FIRST_ADDED: u32 = 151_643;

impl Preset {
    /// All presets.
    pub const ALL: [Preset; 5] = [Preset::Tiny, Preset::B3, Preset::B7, Preset::B32, Preset::B72];

    /// The names of all presets, for the help of an error message.
    pub const NAMES: &str = "tiny, 3b, 7b, 32b or 72b";

    /// The preset's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Tiny => "tiny",
            Preset::B3 => "3b",
            Preset::B7 => "7b",
            Preset::B32 => "32b",
            Preset::B72 => "72b",
        }
    }

    /// Parses a preset name of the command line, one of [`Preset::NAMES`].
    pub fn parse(name: &str) -> Result<Self> {
        Preset::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let help = format!("choose {}", Preset::NAMES);
            ModelError::config("--preset", format!("there is no preset `{name}`"), help)
        })
    }

    /// The default dtype of the weights.
    pub fn default_dtype(self) -> StoredDType {
        match self {
            Preset::Tiny => StoredDType::F32,
            Preset::B3 | Preset::B7 | Preset::B32 | Preset::B72 => StoredDType::Bf16,
        }
    }

    /// The id of the first added token; `None` if added tokens follow directly after all other tokens.
    pub(crate) fn first_added_token_id(self) -> Option<u32> {
        (self != Preset::Tiny).then_some(FIRST_ADDED)
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
        let shape = self.shape();
        let vocab_size = vocab.unwrap_or_else(|| shape.vocab_size.unwrap_or((ids_end as usize).next_multiple_of(64)));
        let layers = layers.unwrap_or(shape.layers);
        let quarter = shape.hidden / shape.heads / 8;
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
            "hidden_size": shape.hidden,
            "initializer_range": 0.02,
            "intermediate_size": shape.intermediate,
            "max_position_embeddings": 128_000,
            "max_window_layers": layers,
            "model_type": "qwen2_5_vl",
            "num_attention_heads": shape.heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": shape.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "sliding_window": 32_768,
            "tie_word_embeddings": shape.tied,
            "torch_dtype": dtype.torch_dtype_name(),
            "transformers_version": "4.49.0",
            "use_cache": true,
            "use_sliding_window": false,
            "vision_config": shape.vision,
            // For head_dim 128, the published sections are 16, 24 and 24 frequencies. Other head sizes get the same
            // proportions: of head_dim / 2 frequencies, a quarter for time, and half of the rest each for height and
            // width.
            "rope_scaling": {"type": "mrope", "mrope_section": [quarter, 3 * quarter / 2, 4 * quarter - quarter - 3 * quarter / 2]},
            "vocab_size": vocab_size,
        })
    }

    fn shape(self) -> Shape {
        match self {
            Preset::Tiny => Shape {
                hidden: 128,
                intermediate: 256,
                layers: 3,
                heads: 4,
                kv_heads: 2,
                vocab_size: None,
                tied: true,
                vision: vision(Vision {
                    depth: 2,
                    hidden: 64,
                    intermediate: 128,
                    heads: 2,
                    out: 128,
                    window: 56,
                    full: &[1],
                }),
            },
            Preset::B3 => Shape {
                hidden: 2048,
                intermediate: 11_008,
                layers: 36,
                heads: 16,
                kv_heads: 2,
                vocab_size: Some(151_936),
                tied: true,
                vision: published_vision(3420, 2048),
            },
            Preset::B7 => Shape {
                hidden: 3584,
                intermediate: 18_944,
                layers: 28,
                heads: 28,
                kv_heads: 4,
                vocab_size: Some(152_064),
                tied: false,
                vision: published_vision(3420, 3584),
            },
            Preset::B32 => Shape {
                hidden: 5120,
                intermediate: 27_648,
                layers: 64,
                heads: 40,
                kv_heads: 8,
                vocab_size: Some(152_064),
                tied: false,
                vision: published_vision(3456, 5120),
            },
            Preset::B72 => Shape {
                hidden: 8192,
                intermediate: 29_568,
                layers: 80,
                heads: 64,
                kv_heads: 8,
                vocab_size: Some(152_064),
                tied: false,
                vision: published_vision(3456, 8192),
            },
        }
    }
}

struct Shape {
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab_size: Option<usize>,
    tied: bool,
    vision: Value,
}

struct Vision {
    depth: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    out: usize,
    window: usize,
    full: &'static [usize],
}

/// The vision tower of the published Qwen2.5-VL models. The models differ only in the width of the tower's MLPs and
/// of its output.
fn published_vision(intermediate: usize, out: usize) -> Value {
    vision(Vision { depth: 32, hidden: 1280, intermediate, heads: 16, out, window: 112, full: &[7, 15, 23, 31] })
}

fn vision(v: Vision) -> Value {
    json!({
        "depth": v.depth,
        "hidden_act": "silu",
        "hidden_size": v.hidden,
        "intermediate_size": v.intermediate,
        "num_heads": v.heads,
        "in_chans": 3,
        "out_hidden_size": v.out,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": v.window,
        "fullatt_block_indexes": v.full,
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    })
}
