//! Tests of the kernels for Hopper on the simulator.

use reel_device::launch::{Arch, KernelLaunch, Launch, Matmul};
use reel_device::{DType, Kernel};

use super::super::{gemm, plan};
use super::{FIXED, FORMS, Given, OperandLayout};
use crate::checks::{run_and_count_on, run_test_on_sim};

/// An H100 with so few multiprocessors that a cluster computes several tiles, one after the other.
const SMALL_HOPPER: Arch = Arch { multiprocessors: 2, ..Arch::H100 };

/// Returns the bytes that the schedule of tiles reads from global memory. It reads A again for each column of tiles, B
/// again for each row of the clusters' tiles, and the old C.
fn scheduled_bytes(launch: &KernelLaunch, given: &Given) -> u64 {
    let symbol = (launch.kernel.plan)(&launch.params, &SMALL_HOPPER)[0].symbol;
    let tile = plan::ALL.iter().find(|tile| tile.symbol == symbol).expect("the plan has one of the tiles");
    let [m, n, k] = given.shape.map(|size| size as u64);
    let [rows, columns, copied, blocks] = [tile.rows, tile.columns, tile.copied_columns, tile.cluster].map(u64::from);
    // The columns of B that are copied for all tiles of one row of clusters.
    let columns_of_b: u64 = (0..n).step_by(tile.columns as usize).map(|first| copied.min(n - first)).sum();
    // Tensor copies add f32 sums to memory without reading the old values first.
    let old = if given.old.is_some() && given.form.c_dtype == DType::BF16 { 2 * m * n } else { 0 };
    2 * k * (m * n.div_ceil(columns) + columns_of_b * m.div_ceil(rows * blocks)) + old
}

/// Checks kernels with a fixed tile size on products with several tiles of C and several stages of k, some of them
/// incomplete, in which the second block of a cluster also has work. Under every interleaving the results have the
/// bits of the plain kernel. The bytes read are those of the schedule, and only the f32 chunks of C have bank
/// conflicts.
fn tiles_have_the_bits_of_the_plain_kernel(selects: fn(OperandLayout) -> bool) {
    let shape = [264, 264, 136];
    let chosen = FORMS.map(|form| (form, form.kernel(), form.c_dtype == DType::F32));
    let added = [gemm::FWD, gemm::DX, gemm::DW].map(|form| (form, form.kernel(), true));
    let fixed = FIXED.map(|(form, kernel): (OperandLayout, &'static Kernel)| (form, kernel, false));
    run_test_on_sim(|| {
        for (form, kernel, accumulate) in fixed.into_iter().chain(chosen).chain(added).filter(|(f, ..)| selects(*f)) {
            let given = Given::new(form, shape, false, accumulate, 1.0);
            let bits_and_counts = |arch: &Arch, seed| {
                let c = given.output();
                let launch = form.launch(kernel, &given.params(&c));
                let count = run_and_count_on(&launch, arch, seed);
                let Launch::Kernel(launch) = launch else { unreachable!("the form launches a kernel") };
                (c.values().iter().map(|x| x.to_bits()).collect::<Vec<_>>(), count, scheduled_bytes(&launch, &given))
            };
            let want = bits_and_counts(&Arch::A100, 0).0;
            for seed in 0..4 {
                let (bits, count, bytes) = bits_and_counts(&SMALL_HOPPER, seed);
                let name = format!("{kernel:?} with {form:?}, added: {accumulate}, seed {seed}");
                assert!(bits == want, "{name}: other bits than the plain kernel");
                let written = (shape[0] * shape[1] * form.c_dtype.size()) as u64;
                assert_eq!([count.global_read, count.global_written], [bytes, written], "{name}");
                let conflicts = count.wavefronts - count.wavefronts_least;
                assert!(conflicts == 0 || form.c_dtype == DType::F32, "{name}: {conflicts} bank conflicts");
            }
        }
    });
}

#[test]
fn tiles_of_the_forward_product_have_the_bits_of_the_plain_kernel() {
    tiles_have_the_bits_of_the_plain_kernel(|form| !form.a_transposed && !form.b_transposed);
}

#[test]
fn tiles_of_the_gradient_of_the_input_have_the_bits_of_the_plain_kernel() {
    tiles_have_the_bits_of_the_plain_kernel(|form| !form.a_transposed && form.b_transposed);
}

#[test]
fn tiles_of_the_gradient_of_the_weight_have_the_bits_of_the_plain_kernel() {
    tiles_have_the_bits_of_the_plain_kernel(|form| form.a_transposed);
}

/// Tests which products the Hopper kernels accept.
#[test]
fn products_that_tensor_copies_cannot_take_have_no_launch() {
    let given = Given::new(gemm::DW, [64, 64, 72], false, false, 1.0);
    let c = given.output();
    let good = gemm::DW.matmul_of_params(&given.params(&c));
    let symbol = |p| gemm::kernel_launch(&p, &Arch::H100).map(|launch| launch.kernel.name);
    assert_eq!(symbol(good), Some("gemm_dw_bf16"));
    assert_eq!(symbol(Matmul { c_dtype: DType::F32, ..good }), Some("gemm_dw_f32"));
    // In the form of the gradient of a weight, no operand has rows of k elements, so k may have any value.
    assert_eq!(symbol(Matmul { k: 7, ..good }), Some("gemm_dw_bf16"));
    assert!(gemm::kernel_launch(&good, &Arch::A100).is_none());
    let mut others = [good; 6];
    others[0].m = 68;
    others[1].n = 16;
    others[2].a.addr = others[2].a.addr.offset(2);
    others[3].b.dtype = DType::F32;
    others[4].k = 0;
    others[5].b.transposed = false;
    assert_eq!(others.map(symbol), [None; 6]);
}
