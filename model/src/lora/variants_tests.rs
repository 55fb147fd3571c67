//! Adapters whose layers have ranks and scales of their own, and adapters that replace tensors of the base model.

use std::fs;
use std::path::Path;

use reel_input::tensor_file::StoredDType;
use serde_json::{Value, json};

use super::config::AdapterConfig;
use super::tests::{base, config, logits, off, open, weights_are_the_formula};
use super::*;
use crate::checkpoint::Checkpoint;
use crate::save::{TensorSpec, write_tensor_file_and_finish};

/// The rules of PEFT 0.18 and 0.21 (`get_pattern_key`): the first key that matches the whole name, or its end after a
/// point; keys are regular expressions.
#[test]
fn ranks_and_scales_follow_pefts_patterns() {
    let parsed = |ranks: Value, alphas: Value, rslora: bool| {
        let fields = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": ranks,
                            "alpha_pattern": alphas, "use_rslora": rslora});
        AdapterConfig::parse("a", fields.as_object().unwrap()).unwrap()
    };
    let (q, up) = ("model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.11.mlp.up_proj");
    for (ranks, alphas, rslora, layer, want) in [
        (json!({}), Value::Null, false, q, (4, 2.0)),
        (json!({"q_proj": 2}), json!({}), false, q, (2, 4.0)),
        (json!({"q_proj": 2}), json!({}), false, up, (4, 2.0)),
        (json!({"proj": 2, "_proj": 2, "layers.1.mlp.up_proj": 2}), json!({}), false, up, (4, 2.0)),
        (json!({"layers.0.self_attn.q_proj": 16, "q_proj": 2}), json!({"q_proj": 1.5}), false, q, (16, 1.5 / 16.0)),
        (json!({r"layers\.\d+\.(mlp|self_attn)\.\w+": 3}), json!({"^model.*up_proj": 6}), false, up, (3, 2.0)),
        (json!({q: 1}), json!({}), false, q, (1, 8.0)),
        // The name of another naming scheme: PEFT applies the default.
        (json!({"model.layers.0.self_attn.q_proj": 1}), json!({}), false, q, (4, 2.0)),
        (json!({"q_proj": 9}), json!({"q_proj": 6}), true, q, (9, 2.0)),
    ] {
        let of_layer = parsed(ranks.clone(), alphas.clone(), rslora).rank_and_scale(layer);
        assert_eq!(of_layer, want, "{ranks} {alphas} {layer}");
    }
}

/// Writes an adapter whose tensors have pseudo-random values.
fn write_adapter(folder: &Path, config: &Value, tensors: &[(&str, Vec<usize>)]) {
    let mut whole = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 6});
    whole.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(ADAPTER_CONFIG_FILE), whole.to_string()).unwrap();
    let spec = |(name, shape): &(&str, Vec<usize>)| TensorSpec {
        name: format!("base_model.model.{name}"),
        dtype: StoredDType::F32,
        shape: shape.clone(),
    };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let file = folder.join(ADAPTER_WEIGHTS_FILE);
    write_tensor_file_and_finish(Vec::new(), &file, str::to_string, &specs, |spec, to| {
        to.write_all(bytemuck::cast_slice(&uniform(7, &spec.name, spec.shape.iter().product(), 0.3)))
    })
    .unwrap();
}

fn adapted(device: &Device, folder: &Path) -> QwenVl {
    let adapter = Adapter::open(folder).unwrap();
    adapter.check(&config()).unwrap();
    let (files, config) = adapter.replace_tensors(Checkpoint::open(&base()).unwrap(), &config()).unwrap();
    let model = QwenVl::open(device, &files, &config, DType::F32).unwrap();
    model.with_adapter(device, DType::F32, AdapterSource::Files(&adapter), false).unwrap()
}

fn merged(device: &Device, adapter: &Path, out: &Path) -> QwenVl {
    merge_adapter(&base(), adapter, out, &[], None, device).unwrap();
    open(device, out)
}

#[test]
fn each_layer_has_its_own_rank_and_scale() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::cpu(2));
    let (adapter, out) = (dir.path().join("adapter"), dir.path().join("out"));
    let fields = json!({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 9, "qkv": 1}});
    let tensors = [
        ("model.language_model.layers.0.self_attn.q_proj.lora_A.weight", vec![2, 64]),
        ("model.language_model.layers.0.self_attn.q_proj.lora_B.weight", vec![64, 2]),
        ("model.language_model.layers.1.self_attn.q_proj.lora_A.weight", vec![2, 64]),
        ("model.language_model.layers.1.self_attn.q_proj.lora_B.weight", vec![64, 2]),
        ("model.visual.blocks.0.attn.qkv.lora_A.weight", vec![4, 32]),
        ("model.visual.blocks.0.attn.qkv.lora_B.weight", vec![96, 4]),
    ];
    write_adapter(&adapter, &fields, &tensors);
    let opened = Adapter::open(&adapter).unwrap();
    let scales = opened.adapted_layers().map(|layer| opened.scale(layer).unwrap());
    assert_eq!(scales.collect::<Vec<_>>(), [3.0, 4.5, 0.25]);
    let off = off(&logits(&device, &merged(&device, &adapter, &out)), &logits(&device, &adapted(&device, &adapter)));
    assert!(off <= 3e-6, "off by {off:.2e}");
    weights_are_the_formula(&out, &adapter);
    write_adapter(&adapter, &json!({}), &tensors);
    let error = Adapter::open(&adapter).unwrap().check(&config()).unwrap_err().to_string();
    assert!(error.contains("has shape [2, 64], expected [4, 64] by the model and r = 4; "), "{error}");
}

/// `modules_to_save` and tensors that PEFT saves without it, such as resized embeddings, replace tensors of the base.
#[test]
fn saved_modules_replace_tensors_of_the_base() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::cpu(2));
    let (adapter, out) = (dir.path().join("adapter"), dir.path().join("out"));
    let fields = json!({"modules_to_save": ["lm_head", "model.norm", "merger.mlp.2", "classifier"]});
    let mut tensors = vec![
        ("lm_head.weight", vec![config().text.vocab_size, 64]),
        ("model.norm.weight", vec![64]),
        ("visual.merger.mlp.2.modules_to_save.default.weight", vec![64, 128]),
        ("visual.merger.mlp.2.modules_to_save.default.bias", vec![64]),
        ("model.layers.1.input_layernorm.weight", vec![64]),
    ];
    write_adapter(&adapter, &fields, &tensors);
    let with_adapter = logits(&device, &adapted(&device, &adapter));
    assert!(off(&with_adapter, &logits(&device, &open(&device, &base()))) > 0.1);
    assert_eq!(with_adapter, logits(&device, &merged(&device, &adapter, &out)));
    let error = Adapter::open(&adapter).unwrap().check_shared(&config()).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight: replaces a tensor of the base model (modules_to_save)"), "{error}");
    let check = |tensors: &[(&str, Vec<usize>)]| {
        write_adapter(&adapter, &fields, tensors);
        Adapter::open(&adapter).and_then(|adapter| adapter.check(&config())).unwrap_err().to_string()
    };
    let lacks = check(&tensors[..3]);
    assert!(lacks.contains("lacks visual.merger.mlp.2.bias, although modules_to_save lists its module"), "{lacks}");
    let mut misshapen = tensors.clone();
    misshapen[0].1 = vec![3, 64];
    let wrong = check(&misshapen);
    assert!(wrong.contains("lm_head.weight: has shape [3, 64], expected "), "{wrong}");
    tensors.push(("model.layers.9.mlp.up_proj.weight", vec![2]));
    assert!(check(&tensors).contains("layers.9.mlp.up_proj.weight: is not a tensor of the model; "));
    let twice = [("model.norm.weight", vec![64]), ("model.language_model.norm.weight", vec![64])];
    assert!(check(&twice).contains("names the same matrix as "));
}
