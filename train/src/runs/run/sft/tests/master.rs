//! Tests that bf16 weights learn from updates far below the resolution of bf16, thanks to the low 16 bits of their f32
//! master weights.

use reel_model::widen::widen_to_f32;
use safetensors::SafeTensors;

use super::*;

/// Reads a weight of a model folder, converted to f32.
fn weights(folder: &Path, name: &str) -> Vec<f32> {
    let files = Checkpoint::open(folder).unwrap();
    let view = files.tensor(name).unwrap();
    widen_to_f32(view.dtype, view.bytes).unwrap()
}

/// Reads the f32 master weight of a weight in a checkpoint: the bf16 weight is its upper 16 bits, and the optimizer
/// state stores its low 16 bits.
fn master(folder: &Path, name: &str) -> Vec<f32> {
    let bytes = fs::read(folder.join("training/optimizer.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let low = stored.tensor(&format!("low/{name}")).unwrap();
    let low = low.data().chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]]));
    weights(folder, name)
        .iter()
        .zip(low)
        .map(|(hi, low)| f32::from_bits(hi.to_bits().wrapping_add_signed(i32::from(low))))
        .collect()
}

fn change(after: &[f32], before: &[f32]) -> Vec<f64> {
    after.iter().zip(before).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[test]
fn small_updates_are_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let [wide, narrow] = ["f32", "bf16"].map(|name| dir.path().join(name));
    let case = |out: &Path, dtype| {
        let case = Case::new("sft_all_tokens", "model_a", out)
            .with(|o| (o.learning_rate, o.per_device_train_batch_size) = (1e-5, 4));
        Case { dtype, ..case }.run().unwrap()
    };
    case(&wide, DType::F32);
    case(&narrow, DType::BF16);
    for name in ["model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"] {
        let start = weights(&golden("model_a"), name);
        let rounded: Vec<f32> = start.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
        let want = change(&weights(&wide, name), &start);
        let got = change(&master(&narrow.join("checkpoint-4"), name), &rounded);
        let off: Vec<f64> = got.iter().zip(&want).map(|(g, w)| g - w).collect();
        // Adam's first steps depend mainly on the sign of a gradient. Rounding of bf16 activations may flip the sign of
        // a gradient near 0, so the tolerance is wide.
        assert!(norm(&off) < 0.25 * norm(&want), "{name}: {:.3}", norm(&off) / norm(&want));
        // The updates went into the low bits: more than half of the bf16 weights still have their initial bits.
        let moved = change(&weights(&narrow, name), &rounded).iter().filter(|&&d| d != 0.0).count();
        assert!(moved * 2 < rounded.len(), "{name}: {moved} of {}", rounded.len());
    }
}
