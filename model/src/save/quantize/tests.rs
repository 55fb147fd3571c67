//! The factors of AWQ leave the function of a model as it is.

use std::sync::Arc;

use half::bf16;

use super::*;
use crate::init::{InitOptions, Preset, init_without_weights};
use crate::linear_inputs::InputMoments;
use crate::save::{MAX_SHARD_BYTES, write_weights};

fn random(seed: usize, i: usize) -> f32 {
    ((seed ^ i) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_shr(40) as f32 / 8_388_608.0 - 1.0
}

/// Writes a small model in bf16.
fn model(folder: &Path, preset: Preset) -> Checkpoint {
    let options = InitOptions { preset, layers: Some(2), vocab: None, dtype: Some(StoredDType::Bf16), seed: 0 };
    init_without_weights(&options, folder).unwrap();
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
    for preset in [Preset::Tiny, Preset::Qwen3Tiny] {
        let folder = tempfile::tempdir().unwrap();
        let files = model(&folder.path().join("model"), preset);
        let quantizer = ModelQuantizer::open(&folder.path().join("model"), &folder.path().join("out"), true).unwrap();
        let mut inputs = LinearInputs::new();
        let recorded =
            |name: &str| SAME_INPUT.iter().any(|(layers, _)| name.ends_with(&format!("{}.weight", layers[0])));
        for (name, &[_, inner]) in quantizer.linear.iter().filter(|(name, _)| recorded(name)) {
            let moments = InputMoments::default();
            let size = |i: usize| random(7, i) * if i % inner % 31 == 5 { 40.0 } else { 1.0 };
            moments.add(&(0..9 * inner).map(size).collect::<Vec<f32>>(), inner);
            inputs.insert(name.strip_suffix(".weight").unwrap().to_string(), Arc::new(moments));
        }
        let folding = quantizer.folding(&inputs).unwrap();
        // Before and after, as it is written if it is not quantised.
        let values = |name: &str| {
            let before = quantizer.values(name).unwrap().1;
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
                let factors = &folding.columns[&layer];
                assert!(factors.iter().any(|s| *s > 1.5) && factors.iter().any(|s| *s < 0.9), "{layer}: {factors:?}");
                let [w, scaled] = values(&layer);
                let before = format!("model.layers.1.{before}");
                assert!(files.tensor(&before).is_some());
                let [x, divided] = values(&before);
                // A norm is written in bf16, which rounds by up to 2^-9.
                let most = if before.ends_with("norm.weight") { 2f32.powi(-8) } else { 1e-6 };
                let width = x.len() / factors.len();
                for (n, (&w, &scaled)) in w.iter().zip(&scaled).enumerate() {
                    let (x, divided) = (x[n % factors.len() * width], divided[n % factors.len() * width]);
                    let off = (scaled * divided - w * x).abs();
                    assert!(off <= most * (w * x).abs(), "{layer} {before} [{n}]: {w} {scaled} {x} {divided}");
                }
                folded += 1;
            }
        }
        assert_eq!(folded, 6, "{preset:?}");
    }
}
