use super::*;
use crate::tensor::ops::tests::relative_distance;
use crate::tensor::ops::{linear_log_prob, weighted_sum};
use crate::tensor::tape::Grads;

/// Gradients of bf16 queries, keys and values. The tensor-core kernels support the head size, and there are more keys
/// than one tile of keys holds.
fn gradients(device: &Device) -> Vec<Vec<f32>> {
    let numbers = |n: usize, seed: usize| -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1013) as f32 / 506.0 - 1.0).collect()
    };
    let tensor = |shape: &[usize], seed: usize| {
        let values = numbers(shape.iter().product(), seed);
        Tensor::from_f32(device, shape, DType::BF16, &values, MemoryCategory::Weights).unwrap()
    };
    let parameter = |shape: &[usize], seed: usize| tensor(shape, seed).into_parameter(&format!("p{seed}")).unwrap();
    let inputs = [parameter(&[70, 2, 64], 0), parameter(&[70, 1, 64], 1), parameter(&[70, 1, 64], 2)];
    let cx = Cx::training(device, DType::BF16);
    let seqs = CuSeqlens::from_lengths(device, &[70]).unwrap();
    let o = attention(&cx, &inputs[0], &inputs[1], &inputs[2], &seqs, true).unwrap();
    let targets = Tensor::from_i32(device, &[70], &[3; 70]).unwrap();
    let w = Tensor::from_f32(device, &[70], DType::F32, &numbers(70, 4), MemoryCategory::Inputs).unwrap();
    let log_prob = linear_log_prob(&cx, &o.reshape(&[70, 128]).unwrap(), &tensor(&[8, 128], 3), &targets, 1.0).unwrap();
    let loss = weighted_sum(&cx, &log_prob, &w).unwrap();
    let mut grads = Grads::new();
    cx.backward(&loss, 1.0, &mut grads).unwrap();
    grads.iter().map(|(_, g)| g.to_f32().unwrap()).collect()
}

#[test]
fn sim_gradients_equal_cpu_and_plan_counts_the_workspace() {
    let Some(()) = reel_device::compile::skip_without_nvrtc() else { return };
    let sim = Device::sim(reel_device::SimOptions { threads: 1, ..Default::default() }).unwrap();
    let (got, want) = (gradients(&sim), gradients(&Device::cpu(1)));
    assert_eq!(got.len(), 3);
    // The memory planned for a GPU of compute capability 9.0 includes the attention kernel's workspace, which earlier
    // GPUs do not need.
    let planned = |dry: Device| {
        gradients(&dry);
        dry.memory().peak
    };
    assert_eq!(planned(sim.dry_like()), sim.memory().peak);
    let of_capability = |capability| planned(Device::dry_with_capability(Kernels::Cuda, capability));
    assert!(of_capability(80) < of_capability(90));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let off = relative_distance(g, w);
        assert!(off <= 1e-2, "p{i}: relative L2 {off:.2e}");
    }
}

/// The batch has a prompt of 3 tokens, two completions of 2 and 1 tokens that share this prefix, and an independent
/// sequence.
#[test]
fn attention_pairs_count_prefixes() {
    let seqs = CuSeqlens::from_lengths(&Device::cpu(1), &[3, 2, 1, 4]).unwrap();
    assert_eq!(seqs.attention_pairs(), 6.0 + 3.0 + 1.0 + 10.0);
    let shared = seqs.with_prefixes(&[(0, 0), (0, 3), (0, 3), (0, 0)]).unwrap();
    assert_eq!(shared.attention_pairs(), 6.0 + (3.0 + 6.0) + (1.0 + 3.0) + 10.0);
}
