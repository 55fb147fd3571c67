//! Tests of kernels with wgmma: layouts, hazards and setmaxnreg.

use super::common::*;
use reel_sim::exec::LaunchConfig;
use reel_sim::memory::SimMemory;

const FILE: &str = "wgmma";

/// Returns the input, small multiples of 1/4: 64×64 elements of A, then 1024 elements of B.
fn values() -> Vec<f32> {
    (0..64 * 64 + 16 * 64).map(multiple_of_quarter).collect()
}

fn setup(threads: u32) -> impl Fn(&mut SimMemory) -> LaunchConfig {
    move |memory| {
        let input = memory.alloc(bf16_bytes(values().into_iter()));
        let output = memory.alloc_uninitialized(4 * 64 * 16);
        launch(1, threads, Params::default().u64(input).u64(output).i32(1))
    }
}

/// Checks the 64×16 product of A (`[64][64]`, or transposed) and B (`[16][64]`, or transposed).
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
    has_no_finding(FILE, "basic_0", &setup(128), &check(false, false));
    // Variant 12 is also correct: the issuing threads execute the fence after the barrier.
    has_no_finding(FILE, "basic_12", &setup(128), &check(false, false));
    (1..=10).for_each(|variant| reports_planted_bug(FILE, "basic", variant, &setup(128)));
}

#[test]
fn wgmma_layouts() {
    for (span, a, b) in [(128, 0, 0), (64, 0, 0), (32, 0, 0), (128, 1, 0), (64, 1, 0), (32, 1, 0), (32, 0, 1)] {
        has_no_finding(FILE, &format!("layout_{span}_{a}{b}"), &setup(128), &check(a == 1, b == 1));
    }
}

#[test]
fn wgmma_with_a_from_registers() {
    has_no_finding(FILE, "registers_0", &setup(128), &check(false, false));
    (1..=2).for_each(|variant| reports_planted_bug(FILE, "registers", variant, &setup(128)));
}

#[test]
fn wgmma_operands_copied_by_cp_async() {
    has_no_finding(FILE, "copied_0", &setup(128), &check(false, false));
    (1..=2).for_each(|variant| reports_planted_bug(FILE, "copied", variant, &setup(128)));
}

#[test]
fn setmaxnreg_rules() {
    has_no_finding(FILE, "pool_0", &setup(384), &|_| ());
    (1..=3).for_each(|variant| reports_planted_bug(FILE, "pool", variant, &setup(384)));
}
