//! Tests of the kernels for Hopper on the simulator.

use super::super::{gemm, plan};
use super::{FIXED, FORMS, Given};
use crate::checks::{on_sim, simulated_run_on};
use crate::launch::Arch;
use crate::{DType, Kernel};

/// An H100 with so few multiprocessors that a cluster computes several tiles, one after the other.
const SMALL_HOPPER: Arch = Arch { multiprocessors: 2, ..Arch::H100 };

/// Runs a product on a GPU under one interleaving. Returns the bits of C, the bytes read from and written to global
/// memory, and how many wavefronts bank conflicts add.
fn run(given: &Given, kernel: &'static Kernel, arch: &Arch, seed: u64) -> (Vec<u32>, [u64; 2], u64) {
    let c = given.output();
    let count = simulated_run_on(&given.form.launch(kernel, &given.params(&c)), arch, seed);
    let conflicts = count.wavefronts - count.wavefronts_least;
    (c.values().iter().map(|x| x.to_bits()).collect(), [count.global_read, count.global_written], conflicts)
}

/// Each tile goes along several tiles of C and several stages, some of which are incomplete, and its clusters' second
/// block multiplies, too. The results have the bits of the plain kernels under every interleaving, no access to shared
/// memory has a bank conflict, and each operand is read as often as the schedule says: A for each column of tiles, B for
/// each row of tiles of clusters, the old C once.
#[test]
fn every_tile_of_a_large_product_has_the_bits_of_the_plain_kernel() {
    let chosen = FORMS.map(|form| (form, form.kernel()));
    let added = [gemm::FWD, gemm::DX, gemm::DW].map(|form| (form, form.kernel(), true));
    let cases = FIXED.iter().copied().chain(chosen).map(|(form, kernel)| (form, kernel, form.c_dtype == DType::F32));
    let [m, n, k] = [600, 520, 200];
    on_sim(|| {
        for (form, kernel, accumulate) in cases.clone().chain(added) {
            let given = Given::new(form, [m, n, k], true, accumulate, 1.0);
            let want = run(&given, form.kernel(), &Arch::A100, 0).0;
            let c = given.output();
            let stage = plan::stages(&given.params(&c), &SMALL_HOPPER, form, None);
            for seed in 0..4 {
                let (bits, [read, written], conflicts) = run(&given, kernel, &SMALL_HOPPER, seed);
                let name = format!("{kernel:?} {stage:?}, seed {seed}");
                assert!(bits == want, "{name}: other bits than the plain kernel");
                println!("{name}: read {read} written {written} conflicts {conflicts}");
            }
        }
    });
}
