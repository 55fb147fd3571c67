//! The small files of Qwen3-VL folders, in the layout of transformers 4.57, with which the models were published.

use std::collections::BTreeMap;

use reel_input::tensor_file::StoredDType;
use serde_json::{Value, json};

/// The config.json of Qwen3-VL-8B.
pub(super) fn config_of_8b(dtype: StoredDType, ids: &BTreeMap<&str, u32>) -> Value {
    let text = json!({
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "dtype": dtype.torch_dtype_name(),
        "eos_token_id": ids["<|im_end|>"],
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 12_288,
        "max_position_embeddings": 262_144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"mrope_interleaved": true, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5_000_000,
        "use_cache": true,
        "vocab_size": 151_936,
    });
    let vision = json!({
        "deepstack_visual_indexes": [8, 16, 24],
        "depth": 27,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4304,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    });
    json!({
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "tie_word_embeddings": false,
        "transformers_version": "4.57.0",
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": vision,
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    })
}

/// The tower of the 2B and 4B models; `out_hidden_size` is the width of the decoder.
pub(super) fn small_tower(out_hidden_size: usize) -> Value {
    json!({"deepstack_visual_indexes": [5, 11, 17], "depth": 24, "hidden_size": 1024, "intermediate_size": 4096,
        "out_hidden_size": out_hidden_size})
}

/// The entries of config.json in which the tiny model differs from Qwen3-VL-8B. As in the 4B model, all query heads
/// together are wider than the residual. `ids_end` is the tokenizer's largest id plus one.
pub(super) fn differences_of_tiny(ids_end: u32) -> Value {
    json!({
        "tie_word_embeddings": true,
        "text_config": {"head_dim": 64, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
            "num_hidden_layers": 3, "num_key_value_heads": 2, "tie_word_embeddings": true,
            "vocab_size": ids_end.next_multiple_of(64),
            // In the ratio of the published 24, 20 and 20 of 64 frequencies.
            "rope_scaling": {"mrope_section": [12, 10, 10]}},
        "vision_config": {"deepstack_visual_indexes": [0, 1], "depth": 3, "hidden_size": 64, "intermediate_size": 128,
            "num_heads": 2, "num_position_embeddings": 256, "out_hidden_size": 128},
    })
}

/// The settings that the image processor and the video processor share, with the limits of a size in pixels: height x
/// width of an image, frames x height x width of a video.
fn processor(shortest_edge: u64, longest_edge: u64) -> Value {
    json!({
        "size": {"longest_edge": longest_edge, "shortest_edge": shortest_edge},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    })
}

/// The content of preprocessor_config.json.
pub(super) fn image_processor() -> Value {
    let mut image = processor(65_536, 16_777_216);
    image["image_processor_type"] = json!("Qwen2VLImageProcessorFast");
    image
}

/// The content of video_preprocessor_config.json.
pub(super) fn video_processor() -> Value {
    let mut video = processor(4096, 25_165_824);
    video["video_processor_type"] = json!("Qwen3VLVideoProcessor");
    video
}

/// The content of generation_config.json: the sampling parameters of the Instruct models.
pub(super) fn generation_config(ids: &BTreeMap<&str, u32>) -> Value {
    json!({
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "do_sample": true,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.0,
        "temperature": 0.7,
        "transformers_version": "4.56.0",
    })
}
