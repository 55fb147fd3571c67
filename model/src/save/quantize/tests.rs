//! The factors of AWQ leave the function of a model as it is.

use std::sync::Arc;

use super::*;
use crate::init::{InitOptions, Preset, init_model_folder};
use crate::linear_inputs::InputMoments;

fn random(i: usize) -> f32 {
    ((i as u64 ^ 7).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8_388_608.0 - 1.0
}

#[test]
fn factors_cancel_between_a_layer_and_what_scales_its_input() {
    for preset in [Preset::Tiny, Preset::Qwen3Tiny] {
        let folder = tempfile::tempdir().unwrap();
        let (model, out) = (folder.path().join("model"), folder.path().join("out"));
        let options = InitOptions { preset, layers: Some(2), vocab: None, dtype: Some(StoredDType::Bf16), seed: 0 };
        init_model_folder(&options, &model).unwrap();
        let quantizer = ModelQuantizer::open(&model, &out, true).unwrap();
        let mut inputs = LinearInputs::new();
        for (name, &[_, inner]) in &quantizer.linear {
            let moments = InputMoments::default();
            let x = |i: usize| random(i) * if i % inner % 31 == 5 { 40.0 } else { 1.0 };
            moments.add(&(0..9 * inner).map(x).collect::<Vec<f32>>(), inner);
            assert_eq!(moments.means().0, 9);
            inputs.insert(name.strip_suffix(".weight").unwrap().to_string(), Arc::new(moments));
        }
        let folding = quantizer.folding(&inputs).unwrap();
        // Before and after, as it is written if it is not quantised.
        let values = |name: &str| {
            let (dtype, before) = quantizer.values(name).unwrap();
            let mut after = before.clone();
            folding.apply(name, &mut after);
            match name.ends_with("norm.weight") {
                true => [before, widen_to_f32(dtype, &narrow(dtype, &after).unwrap()).unwrap()],
                false => [before, after],
            }
        };
        for (layers, before) in SAME_INPUT {
            let [x, divided] = values(&format!("model.layers.1.{before}"));
            for layer in layers {
                let layer = format!("model.layers.1.{layer}.weight");
                let factors = &folding.columns[&layer];
                assert!(factors.iter().any(|s| *s > 1.5) && factors.iter().any(|s| *s < 0.9), "{layer}: {factors:?}");
                let ([w, scaled], width) = (values(&layer), x.len() / factors.len());
                // A row of up_proj is also divided by a factor of down_proj, which is not of interest here.
                let of_rows = folding.rows.get(&layer);
                for (n, (&w, &scaled)) in w.iter().zip(&scaled).enumerate() {
                    let scaled = scaled * of_rows.map_or(1.0, |rows| rows[n / factors.len()]);
                    let (x, divided) = (x[n % factors.len() * width], divided[n % factors.len() * width]);
                    // The divided weight of a norm, or of the row of up_proj and its own column, is rounded.
                    let own = folding.columns.get(&format!("model.layers.1.{before}")).map_or(1.0, |own| own[0]);
                    let off = (scaled * divided - w * x * own).abs();
                    assert!(off <= 0.004 * (w * x * own).abs(), "{layer} [{n}]: {w} {scaled} {x} {divided}");
                }
            }
        }
        assert_eq!((folding.columns.len(), folding.rows.len()), (12, 6), "{preset:?}");
    }
}
