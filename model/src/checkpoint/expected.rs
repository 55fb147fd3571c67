//! The names and shapes of all tensors of a model, computed from its config.

use reel_input::config::{ModelConfig, TextConfig, Tower, VisionConfig};

/// The classic name (as on the hub) and the shape of every tensor of the model, without `lm_head.weight` if the
/// embeddings are tied.
pub fn expected_tensors(config: &ModelConfig) -> TensorNamesAndShapes {
    let mut list = Vec::new();
    vision(&config.vision, &mut list);
    text(&config.text, &mut list);
    if !config.tie_word_embeddings {
        add_tensor(&mut list, "lm_head.weight", &[config.text.vocab_size, config.text.hidden_size]);
    }
    list
}

/// Names and shapes of tensors.
pub(crate) type TensorNamesAndShapes = Vec<(String, Vec<usize>)>;

pub(crate) fn add_tensor(list: &mut TensorNamesAndShapes, name: impl Into<String>, shape: &[usize]) {
    list.push((name.into(), shape.to_vec()));
}

/// Adds the tensors of a linear layer with bias: weight `[out, in]`, bias `[out]`.
pub(crate) fn add_linear(
    list: &mut TensorNamesAndShapes,
    name: impl std::fmt::Display,
    out_features: usize,
    in_features: usize,
) {
    add_tensor(list, format!("{name}.weight"), &[out_features, in_features]);
    add_tensor(list, format!("{name}.bias"), &[out_features]);
}

/// Adds the weight and the bias of a LayerNorm over `width` elements.
fn add_layer_norm(list: &mut TensorNamesAndShapes, name: impl std::fmt::Display, width: usize) {
    add_tensor(list, format!("{name}.weight"), &[width]);
    add_tensor(list, format!("{name}.bias"), &[width]);
}

fn vision(v: &VisionConfig, list: &mut TensorNamesAndShapes) {
    let (d, inner) = (v.hidden_size, v.intermediate_size);
    add_tensor(
        list,
        "visual.patch_embed.proj.weight",
        &[d, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size],
    );
    let merged = d * v.patches_per_vision_token();
    if let Tower::Qwen3(tower) = &v.tower {
        add_tensor(list, "visual.patch_embed.proj.bias", &[d]);
        add_tensor(list, "visual.pos_embed.weight", &[tower.position_side * tower.position_side, d]);
    }
    for i in 0..v.depth {
        let block = format!("visual.blocks.{i}");
        add_linear(list, format!("{block}.attn.qkv"), 3 * d, d);
        add_linear(list, format!("{block}.attn.proj"), d, d);
        match &v.tower {
            Tower::Qwen25(_) => {
                add_tensor(list, format!("{block}.norm1.weight"), &[d]);
                add_tensor(list, format!("{block}.norm2.weight"), &[d]);
                add_linear(list, format!("{block}.mlp.gate_proj"), inner, d);
                add_linear(list, format!("{block}.mlp.up_proj"), inner, d);
                add_linear(list, format!("{block}.mlp.down_proj"), d, inner);
            }
            Tower::Qwen3(_) => {
                add_layer_norm(list, format!("{block}.norm1"), d);
                add_layer_norm(list, format!("{block}.norm2"), d);
                add_linear(list, format!("{block}.mlp.linear_fc1"), inner, d);
                add_linear(list, format!("{block}.mlp.linear_fc2"), d, inner);
            }
        }
    }
    match &v.tower {
        Tower::Qwen25(_) => {
            add_tensor(list, "visual.merger.ln_q.weight", &[d]);
            add_linear(list, "visual.merger.mlp.0", merged, merged);
            add_linear(list, "visual.merger.mlp.2", v.out_hidden_size, merged);
        }
        Tower::Qwen3(tower) => {
            let deepstack =
                (0..tower.deepstack_block_indexes.len()).map(|i| (format!("deepstack_merger_list.{i}"), merged));
            for (merger, norm_width) in [("merger".to_string(), d)].into_iter().chain(deepstack) {
                add_layer_norm(list, format!("visual.{merger}.norm"), norm_width);
                add_linear(list, format!("visual.{merger}.linear_fc1"), merged, merged);
                add_linear(list, format!("visual.{merger}.linear_fc2"), v.out_hidden_size, merged);
            }
        }
    }
}

fn text(t: &TextConfig, list: &mut TensorNamesAndShapes) {
    let (h, inner) = (t.hidden_size, t.intermediate_size);
    let (q, kv) = (t.query_width(), t.key_value_width());
    add_tensor(list, "model.embed_tokens.weight", &[t.vocab_size, h]);
    for i in 0..t.num_hidden_layers {
        let layer = format!("model.layers.{i}");
        for (part, width) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
            add_tensor(list, format!("{layer}.self_attn.{part}.weight"), &[width, h]);
            if t.has_qkv_bias {
                add_tensor(list, format!("{layer}.self_attn.{part}.bias"), &[width]);
            }
        }
        for part in ["q_norm", "k_norm"].into_iter().filter(|_| t.has_head_norms) {
            add_tensor(list, format!("{layer}.self_attn.{part}.weight"), &[t.head_dim]);
        }
        add_tensor(list, format!("{layer}.self_attn.o_proj.weight"), &[h, q]);
        add_tensor(list, format!("{layer}.mlp.gate_proj.weight"), &[inner, h]);
        add_tensor(list, format!("{layer}.mlp.up_proj.weight"), &[inner, h]);
        add_tensor(list, format!("{layer}.mlp.down_proj.weight"), &[h, inner]);
        add_tensor(list, format!("{layer}.input_layernorm.weight"), &[h]);
        add_tensor(list, format!("{layer}.post_attention_layernorm.weight"), &[h]);
    }
    add_tensor(list, "model.norm.weight", &[h]);
}
