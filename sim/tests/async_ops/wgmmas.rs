//! Tests of kernels with wgmma: layouts, hazards and setmaxnreg.

use super::common::*;
use reel_sim::exec::LaunchConfig;
use reel_sim::memory::SimMemory;

const FILE: &str = "wgmma";

/// Returns the input: 64×64 elements of A, then 16×64 elements of B, all small multiples of 1/4.
fn values() -> Vec<f32> {
    (0..64 * 64 + 16 * 64).map(multiple_of_quarter).collect()
}

fn setup(threads: u32) -> impl Fn(&mut SimMemory) -> LaunchConfig {
    move |memory| {
        let input = memory.alloc(bf16_bytes(values().into_iter()));
        let output = memory.alloc_uninitialized(4 * 64 * 16);
        launch_config(1, threads, Params::default().append_u64(input).append_u64(output).append_i32(1))
    }
}

/// Returns a check that the output is A·Bᵀ (64×16). In the input, A is `[m = 64][k = 64]` and B is `[n = 16][k =
/// 64]`, each transposed if its argument is true.
fn check(transpose_a: bool, transpose_b: bool) -> impl Fn(&SimMemory) {
    let (v, mut want) = (values(), Vec::new());
    for m in 0..64 {
        for n in 0..16 {
            let a = |k: usize| if transpose_a { v[64 * k + m] } else { v[64 * m + k] };
            let b = |k: usize| v[64 * 64 + if transpose_b { 16 * k + n } else { 64 * n + k }];
            want.push((0..64).map(|k| a(k) * b(k)).sum::<f32>());
        }
    }
    move |memory| {
        let got = buffer_floats(memory, 1);
        assert_eq!(got, want);
    }
}

#[test]
fn basic_wgmma_and_its_hazards() {
    assert_no_finding(FILE, "basic_0", &setup(128), &check(false, false));
    // Variant 12 is also correct: the threads that issue the wgmma execute the proxy fence, after the block barrier.
    assert_no_finding(FILE, "basic_12", &setup(128), &check(false, false));
    (1..=10).for_each(|variant| assert_planted_bug_is_reported(FILE, "basic", variant, &setup(128)));
}

#[test]
fn wgmma_layouts() {
    for (span, a, b) in [(128, 0, 0), (64, 0, 0), (32, 0, 0), (128, 1, 0), (64, 1, 0), (32, 1, 0), (32, 0, 1)] {
        assert_no_finding(FILE, &format!("layout_{span}_{a}{b}"), &setup(128), &check(a == 1, b == 1));
    }
}

#[test]
fn wgmma_with_a_from_registers() {
    assert_no_finding(FILE, "registers_0", &setup(128), &check(false, false));
    (1..=2).for_each(|variant| assert_planted_bug_is_reported(FILE, "registers", variant, &setup(128)));
}

#[test]
fn wgmma_operands_copied_by_cp_async() {
    assert_no_finding(FILE, "copied_0", &setup(128), &check(false, false));
    (1..=2).for_each(|variant| assert_planted_bug_is_reported(FILE, "copied", variant, &setup(128)));
}

#[test]
fn setmaxnreg_rules() {
    assert_no_finding(FILE, "pool_0", &setup(384), &|_| ());
    (1..=3).for_each(|variant| assert_planted_bug_is_reported(FILE, "pool", variant, &setup(384)));
}
