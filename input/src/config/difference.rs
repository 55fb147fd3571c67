//! Checks whether two configs have the same architecture.

use super::{ModelConfig, Tower};

/// A key of config.json with two values that differ.
type Difference = (&'static str, String, String);

/// The first of the listed keys whose values in `$other` and `$own` differ: (key, other value, own value).
macro_rules! first_difference {
    ($own:expr, $other:expr; $($key:literal => $($field:ident).+),* $(,)?) => {
        [$(($own.$($field).+ != $other.$($field).+).then(|| {
            ($key, format!("{:?}", $other.$($field).+), format!("{:?}", $own.$($field).+))
        })),*].into_iter().flatten().next()
    };
}

impl ModelConfig {
    /// The first difference in architecture or special tokens between this config and `other`: the key of config.json,
    /// the other model's value, this model's value. The dtype of the weights may differ.
    pub fn first_difference(&self, other: &ModelConfig) -> Option<Difference> {
        if self.family() != other.family() {
            let name = |config: &ModelConfig| config.family().name().to_string();
            return Some(("model_type", name(other), name(self)));
        }
        let of_sizes = first_difference!(self, other;
            "vocab_size" => text.vocab_size,
            "hidden_size" => text.hidden_size,
            "intermediate_size" => text.intermediate_size,
            "num_hidden_layers" => text.num_hidden_layers,
            "num_attention_heads" => text.num_attention_heads,
            "num_key_value_heads" => text.num_key_value_heads,
            "head_dim" => text.head_dim,
            "rms_norm_eps" => text.rms_norm_eps,
            "rope_theta" => text.rope_theta,
            "rope_scaling.mrope_section" => text.mrope_section,
            "max_position_embeddings" => text.max_position_embeddings,
            "tie_word_embeddings" => tie_word_embeddings,
            "vision_config.depth" => vision.depth,
            "vision_config.hidden_size" => vision.hidden_size,
            "vision_config.intermediate_size" => vision.intermediate_size,
            "vision_config.num_heads" => vision.num_heads,
            "vision_config.in_channels" => vision.in_channels,
            "vision_config.patch_size" => vision.patch_size,
            "vision_config.temporal_patch_size" => vision.temporal_patch_size,
            "vision_config.spatial_merge_size" => vision.spatial_merge_size,
            "vision_config.out_hidden_size" => vision.out_hidden_size,
            "bos_token_id" => tokens.bos,
            "eos_token_id" => tokens.eos,
            "vision_start_token_id" => tokens.vision_start,
            "vision_end_token_id" => tokens.vision_end,
            "image_token_id" => tokens.image,
            "video_token_id" => tokens.video,
        );
        of_sizes.or_else(|| self.vision.tower.first_difference(&other.vision.tower))
    }
}

impl Tower {
    fn first_difference(&self, other: &Tower) -> Option<Difference> {
        match (self, other) {
            (Tower::Qwen25(own), Tower::Qwen25(other)) => first_difference!(own, other;
                "vision_config.window_size" => window_size,
                "vision_config.fullatt_block_indexes" => fullatt_block_indexes,
                "vision_config.tokens_per_second" => tokens_per_second,
            ),
            (Tower::Qwen3(own), Tower::Qwen3(other)) => first_difference!(own, other;
                "vision_config.num_position_embeddings" => position_side,
                "vision_config.deepstack_visual_indexes" => deepstack_block_indexes,
            ),
            _ => None,
        }
    }
}
