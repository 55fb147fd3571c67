//! Tests of a warp-specialised GEMM with tensor copies, mbarriers and wgmma, with and without a cluster.

use super::common::*;
use reel_sim::exec::LaunchConfig;
use reel_sim::memory::SimMemory;
use reel_sim::tensor_map::{DataType, Swizzle, TensorMap};

const K: usize = 64 * 5;

/// Sets up an m×n product, of which each block computes 128×128 elements.
fn setup(m: usize, n: usize, cluster: u32) -> impl Fn(&mut SimMemory) -> LaunchConfig {
    move |memory| {
        let a = memory.alloc(bf16_bytes((0..m * K).map(multiple_of_quarter)));
        let b = memory.alloc(bf16_bytes((0..n * K).map(|i| multiple_of_quarter(i + 5))));
        let d = memory.alloc_uninitialized(4 * m * n);
        let operand = |address, rows: usize, of_box| {
            let (dims, strides) = ([K as u64, rows as u64], [2 * K as u64]);
            let map = TensorMap::tiled(DataType::Bf16, address, &dims, &strides, &[64, of_box], Swizzle::B128);
            map.and_then(|m| m.encode()).expect("a good map")
        };
        let result =
            TensorMap::tiled(DataType::F32, d, &[n as u64, m as u64], &[4 * n as u64], &[32, 64], Swizzle::None);
        let params = Params::default()
            .append_aligned(128, &operand(a, m, 128))
            .append_aligned(128, &operand(b, n, 64))
            .append_aligned(128, &result.and_then(|m| m.encode()).expect("a good map"))
            .append_i32(K as i32);
        LaunchConfig {
            grid: [m as u32 / 128, n as u32 / 128, 1],
            block: [384, 1, 1],
            cluster: [cluster, 1, 1],
            dynamic_shared: 3 * 2 * 16384 + 65536 + 64,
            params: params.0,
        }
    }
}

fn product(m: usize, n: usize) -> Vec<f32> {
    let (a, b): (Vec<f32>, Vec<f32>) =
        ((0..m * K).map(multiple_of_quarter).collect(), (0..n * K).map(|i| multiple_of_quarter(i + 5)).collect());
    let dot = |i: usize, j: usize| (0..K).map(|k| a[i * K + k] * b[j * K + k]).sum();
    (0..m * n).map(|at| dot(at / n, at % n)).collect()
}

fn check(m: usize, n: usize) -> impl Fn(&SimMemory) {
    let want = product(m, n);
    move |memory| {
        let got = buffer_floats(memory, 2);
        assert!(got == want, "the product differs");
    }
}

#[test]
fn warp_specialised_gemm() {
    assert_no_finding("gemm", "gemm_0", &setup(128, 256, 1), &check(128, 256));
}

#[test]
fn gemm_in_a_cluster() {
    assert_no_finding("gemm", "gemm_cluster", &setup(256, 128, 2), &check(256, 128));
}

#[test]
fn reports_planted_bugs() {
    (1..=8).for_each(|variant| assert_planted_bug_is_reported("gemm", "gemm", variant, &setup(128, 128, 1)));
}
