//! The names and shapes of all tensors of a SigLIP model.

use super::config::{EncoderConfig, SiglipConfig};
use crate::checkpoint::expected::{TensorNamesAndShapes, add_linear, add_tensor};

/// The name and the shape of every tensor. The last two tensors belong to the training loss and are optional
/// ([`is_optional_tensor`]).
pub fn expected_tensors(config: &SiglipConfig) -> TensorNamesAndShapes {
    let mut list = TensorNamesAndShapes::new();
    let (text, vision) = (&config.text, &config.vision);
    let width = text.encoder.hidden_size;
    add_tensor(&mut list, "text_model.embeddings.token_embedding.weight", &[text.vocab_size, width]);
    add_tensor(&mut list, "text_model.embeddings.position_embedding.weight", &[text.positions, width]);
    encoder(&mut list, "text_model", &text.encoder);
    norm(&mut list, "text_model.final_layer_norm", width);
    add_linear(&mut list, "text_model.head", text.projection_size, width);

    let (c, patch) = (vision.encoder.hidden_size, vision.patch_size);
    add_tensor(&mut list, "vision_model.embeddings.patch_embedding.weight", &[c, 3, patch, patch]);
    add_tensor(&mut list, "vision_model.embeddings.patch_embedding.bias", &[c]);
    add_tensor(&mut list, "vision_model.embeddings.position_embedding.weight", &[vision.patch_count(), c]);
    encoder(&mut list, "vision_model", &vision.encoder);
    norm(&mut list, "vision_model.post_layernorm", c);
    add_tensor(&mut list, "vision_model.head.probe", &[1, 1, c]);
    add_tensor(&mut list, "vision_model.head.attention.in_proj_weight", &[3 * c, c]);
    add_tensor(&mut list, "vision_model.head.attention.in_proj_bias", &[3 * c]);
    add_linear(&mut list, "vision_model.head.attention.out_proj", c, c);
    norm(&mut list, "vision_model.head.layernorm", c);
    mlp(&mut list, "vision_model.head.mlp", &vision.encoder);
    add_tensor(&mut list, "logit_scale", &[1]);
    add_tensor(&mut list, "logit_bias", &[1]);
    list
}

/// Whether a tensor is optional, because embeddings do not need it.
pub fn is_optional_tensor(name: &str) -> bool {
    matches!(name, "logit_scale" | "logit_bias")
}

fn norm(list: &mut TensorNamesAndShapes, name: &str, width: usize) {
    add_tensor(list, format!("{name}.weight"), &[width]);
    add_tensor(list, format!("{name}.bias"), &[width]);
}

fn mlp(list: &mut TensorNamesAndShapes, name: &str, config: &EncoderConfig) {
    add_linear(list, format!("{name}.fc1"), config.intermediate_size, config.hidden_size);
    add_linear(list, format!("{name}.fc2"), config.hidden_size, config.intermediate_size);
}

fn encoder(list: &mut TensorNamesAndShapes, tower: &str, config: &EncoderConfig) {
    let c = config.hidden_size;
    for i in 0..config.layers {
        let layer = format!("{tower}.encoder.layers.{i}");
        norm(list, &format!("{layer}.layer_norm1"), c);
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            add_linear(list, format!("{layer}.self_attn.{part}"), c, c);
        }
        norm(list, &format!("{layer}.layer_norm2"), c);
        mlp(list, &format!("{layer}.mlp"), config);
    }
}
