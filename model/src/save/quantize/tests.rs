//! The factors of AWQ leave the function of a model as it is.

use std::fs;
use std::sync::Arc;

use half::bf16;
use serde_json::Value;

use super::*;
use crate::init::{InitOptions, Preset, init_without_weights};
use crate::linear_inputs::InputMoments;
use crate::save::{MAX_SHARD_BYTES, write_weights};

fn random(seed: usize, i: usize) -> f32 {
    ((seed ^ i) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_shr(40) as f32 / 8_388_608.0 - 1.0
}

/// Writes a small model in bf16 with this number of value heads, of 4 query heads.
fn model(folder: &Path, preset: Preset, value_heads: usize) -> Checkpoint {
    let options = InitOptions { preset, layers: Some(2), vocab: None, dtype: Some(StoredDType::Bf16), seed: 0 };
    init_without_weights(&options, folder).unwrap();
    let path = folder.join("config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let text = if json["text_config"].is_null() { &mut json } else { &mut json["text_config"] };
    text["num_key_value_heads"] = json!(value_heads);
    fs::write(&path, json.to_string()).unwrap();
    let config = ModelConfig::open(folder).unwrap();
    let expected = crate::checkpoint::expected_tensors(&config).into_iter();
    let specs: Vec<TensorSpec> =
        expected.map(|(name, shape)| TensorSpec { name, dtype: StoredDType::Bf16, shape }).collect();
    write_weights(folder, crate::checkpoint::TensorNaming::Nested, &specs, MAX_SHARD_BYTES, |spec, to| {
        let value = |i| bf16::from_f32(random(spec.name.len(), i)).to_le_bytes();
        to.write_all(&(0..spec.bytes() as usize / 2).flat_map(value).collect::<Vec<u8>>())
    })
    .unwrap();
    Checkpoint::open(folder).unwrap()
}

#[test]
fn factors_cancel_between_a_layer_and_what_computes_its_input() {
    for (preset, value_heads) in [(Preset::Tiny, 2), (Preset::Tiny, 4), (Preset::Qwen3Tiny, 2)] {
        let folder = tempfile::tempdir().unwrap();
        let files = model(&folder.path().join("model"), preset, value_heads);
        let quantizer =
            ModelQuantizer::open(&folder.path().join("model"), &folder.path().join("out"), QuantizedFormat::Awq)
                .unwrap();
        let mut inputs = LinearInputs::new();
        for (name, [_, inner]) in quantizer.linear_weights() {
            let moments = InputMoments::default();
            let size = |i: usize| random(7, i) * if i % inner % 31 == 5 { 40.0 } else { 1.0 };
            moments.add(&(0..9 * inner).map(size).collect::<Vec<f32>>(), inner);
            inputs.insert(name.strip_suffix(".weight").unwrap().to_string(), Arc::new(moments));
        }
        let folding = quantizer.folding(&inputs).unwrap();
        // Before and after, as it is written if it is not quantised.
        let values = |name: &str| {
            let before = quantizer.values(name).unwrap();
            let mut after = before.clone();
            folding.apply(name, &mut after);
            if name.ends_with("norm.weight") {
                after = widen_to_f32(StoredDType::Bf16, &narrow(StoredDType::Bf16, &after).unwrap()).unwrap();
            }
            [before, after]
        };
        let mut folded = 0;
        for (layers, before) in SAME_INPUT {
            for layer in layers {
                let layer = format!("model.layers.1.{layer}.weight");
                let Some(factors) = folding.columns.get(&layer) else { continue };
                assert!(factors.iter().any(|s| *s > 1.5) && factors.iter().any(|s| *s < 0.9), "{layer}: {factors:?}");
                let [w, scaled] = values(&layer);
                for before in before.iter().map(|name| format!("model.layers.1.{name}")) {
                    if files.tensor(&before).is_none() {
                        continue;
                    }
                    let [x, divided] = values(&before);
                    let width = x.len() / factors.len();
                    for (n, (&w, &scaled)) in w.iter().zip(&scaled).enumerate() {
                        let (x, divided) = (x[n % factors.len() * width], divided[n % factors.len() * width]);
                        let off = (scaled * divided - w * x).abs();
                        assert!(off <= 1e-6 * (w * x).abs(), "{layer} {before} [{n}]: {w} {scaled} {x} {divided}");
                    }
                    folded += 1;
                }
            }
        }
        // q, k, v, gate, up and down; and o with v's weight and, in Qwen2.5-VL, bias if each value head has one query head.
        assert_eq!(folded, if value_heads == 4 { 8 } else { 6 }, "{preset:?}");
    }
}
