//! The units of the model: the parts whose weights are used together, in the order of a forward pass. With ZeRO-3,
//! each rank keeps only a part of the weights and gathers the weights of one unit at a time.
//!
//! ```text
//! vision tower   patch embedding (with learned positions), each block (with its DeepStack merger), merger
//! decoder        embedding, each layer, output (the last norm and the output layer)
//! ```

use reel_input::config::ModelConfig;
use reel_runtime::WeightUnit;

const fn unit(stage: usize, index: usize) -> WeightUnit {
    WeightUnit { stage, index }
}

/// The unit of the patch embedding of the vision tower.
pub const PATCH_EMBEDDING: WeightUnit = unit(0, 0);

/// The unit of a block of the vision tower.
pub const fn vision_block(index: usize) -> WeightUnit {
    unit(1, index)
}

/// The unit of the merger of the vision tower.
pub const MERGER: WeightUnit = unit(2, 0);

/// The embedding table. If the output layer uses the embedding table as its weight, this is also the unit of the
/// output layer.
pub const EMBEDDING: WeightUnit = unit(3, 0);

/// The unit of a layer of the decoder.
pub const fn decoder_layer(index: usize) -> WeightUnit {
    unit(4, index)
}

/// The last norm and the weight of the output layer, for models without tied embeddings.
const OUTPUT: WeightUnit = unit(5, 0);

/// The unit of the last norm and the output layer.
pub const fn output_layer(has_tied_embeddings: bool) -> WeightUnit {
    if has_tied_embeddings { EMBEDDING } else { OUTPUT }
}

/// The unit of a weight, by its classic name, such as `model.layers.3.mlp.up_proj.weight`.
pub fn unit_of_weight(name: &str, config: &ModelConfig) -> WeightUnit {
    let index = |rest: &str| rest.split('.').next().and_then(|index| index.parse().ok()).unwrap_or(0);
    if let Some(rest) = name.strip_prefix("visual.blocks.") {
        vision_block(index(rest))
    } else if let Some(rest) = name.strip_prefix("visual.deepstack_merger_list.") {
        // A DeepStack merger is computed with the block whose output it reads.
        vision_block(config.vision.deepstack_blocks().get(index(rest)).copied().unwrap_or(0))
    } else if let Some(rest) = name.strip_prefix("model.layers.") {
        decoder_layer(index(rest))
    } else if name.starts_with("visual.merger.") {
        MERGER
    } else if name.starts_with("visual.") {
        PATCH_EMBEDDING
    } else if name.starts_with("model.embed_tokens.") {
        EMBEDDING
    } else {
        output_layer(config.tie_word_embeddings)
    }
}

/// The units in the order in which a forward pass begins them, with or without the vision tower. A unit may occur
/// twice.
pub fn units_in_forward_order(config: &ModelConfig, with_vision: bool) -> Vec<WeightUnit> {
    let mut units = Vec::new();
    if with_vision {
        units.push(PATCH_EMBEDDING);
        units.extend((0..config.vision.depth).map(vision_block));
        units.push(MERGER);
    }
    units.push(EMBEDDING);
    units.extend((0..config.text.num_hidden_layers).map(decoder_layer));
    units.push(output_layer(config.tie_word_embeddings));
    units
}

/// Whether the backward pass needs the weights of a unit. It does not need the embeddings of ids and patches, because
/// their inputs have no gradient.
pub fn is_used_in_backward(unit: WeightUnit) -> bool {
    ![PATCH_EMBEDDING.stage, EMBEDDING.stage].contains(&unit.stage)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::expected_tensors;
    use crate::testing::qwen3_config;

    #[test]
    fn every_weight_is_in_a_unit_of_the_forward_pass() {
        let open = |model: &str| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(model);
            ModelConfig::open(&folder).unwrap()
        };
        for config in [open("train/model_a"), open("train/model_b"), qwen3_config()] {
            let model = config.family();
            let all = units_in_forward_order(&config, true);
            let used: Vec<WeightUnit> =
                expected_tensors(&config).iter().map(|(name, _)| unit_of_weight(name, &config)).collect();
            assert!(
                used.iter().all(|unit| all.contains(unit)) && all.iter().all(|unit| used.contains(unit)),
                "{model:?}"
            );
            assert_eq!(all.first(), Some(&PATCH_EMBEDDING));
            assert_eq!(all.last(), Some(&unit_of_weight("model.norm.weight", &config)));
        }
        let unit = |name: &str| unit_of_weight(name, &ModelConfig::open(&golden()).unwrap());
        assert_eq!(unit("visual.blocks.11.attn.qkv.weight"), vision_block(11));
        assert_eq!(unit("model.layers.7.self_attn.q_proj.lora_A.weight"), decoder_layer(7));
        let unit = |name: &str| unit_of_weight(name, &qwen3_config());
        assert_eq!(unit("visual.deepstack_merger_list.1.norm.bias"), vision_block(2));
        assert_eq!(unit("visual.pos_embed.weight"), PATCH_EMBEDDING);
        assert!(MERGER < EMBEDDING && decoder_layer(9) < decoder_layer(10));
    }

    fn golden() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/train/model_a")
    }
}
