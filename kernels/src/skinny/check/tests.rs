use reel_device::launch::{Matmul, Operand, RightLayout};
use reel_device::{Arch, Stage};

use super::*;
use crate::matmul::PRODUCT_CODE;
use crate::matmul::gemm;

#[test]
fn the_weight_is_read_once_and_without_bank_conflicts() {
    crate::checks::run_test_on_sim(|| {
        for kind in [WeightFormat::Bf16, WeightFormat::Int8] {
            let given = Given::new(BF16, kind, (1, 64, 4096));
            let y = TestArray::output(BF16, 64);
            for launch in [linear, swiglu] {
                let launch = launch(BF16, kind, &given.params(&y, 1));
                let (count, cost) = (crate::checks::simulated_counts(&launch), launch.cost());
                let bytes = (count.global_read + count.global_written) as f64;
                // A launch reads x again for every 16 columns of y. That adds 1/16 to the bytes of a bf16 weight and
                // 1/8 to those of an int8 weight.
                let again = if kind == WeightFormat::Bf16 { 1.1 } else { 1.17 };
                assert!(
                    bytes <= again * cost.bytes,
                    "{}: {bytes} bytes of memory traffic, expected about {}",
                    launch.name(),
                    cost.bytes
                );
                let extra = count.wavefronts - count.wavefronts_least;
                assert!(
                    extra * 20 <= count.wavefronts.max(20 * 64),
                    "{}: bank conflicts cause {extra} extra wavefronts",
                    launch.name()
                );
            }
        }
    });
}

/// Every block of 16 columns of y reads all rows of x again, from L2; the weight is read once.
#[test]
fn rows_are_read_again_by_each_block_and_the_weight_is_not() {
    crate::checks::run_test_on_sim(|| {
        for (kind, m) in [(WeightFormat::Bf16, 16), (WeightFormat::Bf16, 64), (WeightFormat::Int8, 32)] {
            let given = Given::new(BF16, kind, (m, 64, 2048));
            let y = TestArray::output(BF16, m * 64);
            let launch = linear(BF16, kind, &Params { w2: Addr::NULL, ..given.params(&y, m) });
            let (count, cost) = (crate::checks::simulated_counts(&launch), launch.cost());
            let again = (64.0 / 16.0 - 1.0) * 2.0 * m as f64 * 2048.0;
            let bytes = (count.global_read + count.global_written) as f64;
            assert!(
                bytes <= 1.02 * (cost.bytes + again),
                "{kind:?}, {m} rows: {bytes} bytes of memory traffic, expected {} and another {again} because x is read \
                 again",
                cost.bytes
            );
            let extra = count.wavefronts - count.wavefronts_least;
            assert!(
                extra * 20 <= count.wavefronts,
                "{kind:?}, {m} rows: bank conflicts cause {extra} extra wavefronts"
            );
        }
    });
}

/// A block that normalises x reads its rows of x twice; each lane loads the elements of the norm's weight that it
/// needs.
#[test]
fn a_norm_reads_the_rows_twice_and_without_bank_conflicts() {
    crate::checks::run_test_on_sim(|| {
        let (m, n, k) = (8, 64, 3584);
        let given = Given::new(BF16, WeightFormat::Bf16, (m, n, k));
        let norm = TestArray::new(BF16, &normal_numbers(k, 6, 1.0));
        let y = TestArray::output(BF16, m * n);
        let launch = swiglu(BF16, WeightFormat::Bf16, &Params { norm: norm.addr(), ..given.params(&y, m) });
        let (count, cost) = (crate::checks::simulated_counts(&launch), launch.cost());
        let (x, blocks) = ((2 * m * k) as f64, (n / 16) as f64);
        // Eight lanes multiply the same columns of x, and each of them loads the norm's elements for these columns,
        // from the same address.
        let asked = cost.bytes + (2.0 * blocks - 1.0) * x + (8.0 * blocks - 1.0) * (2 * k) as f64;
        let bytes = (count.global_read + count.global_written) as f64;
        assert!(bytes <= 1.02 * asked, "{bytes} bytes of memory traffic, expected {asked}");
        let extra = count.wavefronts - count.wavefronts_least;
        assert!(extra * 20 <= count.wavefronts, "bank conflicts cause {extra} extra wavefronts");
    });
}

/// Returns a launch with the scheme `Tiles`, the simulated GPU, which has `multiprocessors` multiprocessors, and the
/// launch's only stage. `shared` lists sizes of a block's shared memory in KiB; the first size that allows a plan is
/// used.
fn by_tiles(launch: Launch, multiprocessors: u32, shared: &[u32]) -> (Launch, Arch, Stage) {
    let Launch::Kernel(launch) = launch else { unreachable!("a kernel") };
    let variant =
        crate::catalogue::variants_of(launch.kernel).find(|variant| variant.name == "tiles").expect("a variant");
    let plan = |kib: &u32| {
        let arch = Arch { multiprocessors, shared_per_block: kib << 10, ..Arch::H100 };
        let [stage] = &(variant.kernel.plan)(&launch.params, &arch)[..] else { panic!("one stage") };
        (!stage.tensor_maps.is_empty()).then(|| (arch, stage.clone()))
    };
    let (arch, stage) = shared.iter().find_map(plan).expect("a plan");
    (Launch::Kernel(KernelLaunch { kernel: variant.kernel, ..launch }), arch, stage)
}

/// With the scheme `Tiles`, every block reads its rows of x once, with a norm twice, and the weight is read once.
#[test]
fn tiles_read_the_weight_once_and_without_bank_conflicts() {
    crate::checks::run_test_on_sim(|| {
        for (kind, m, k) in [
            (WeightFormat::Bf16, 1, 3584),
            (WeightFormat::Bf16, 16, 3592),
            (WeightFormat::Bf16, 64, 1048),
            (WeightFormat::Int8, 5, 3600),
            (WeightFormat::Int8, 32, 1040),
        ] {
            let n = 288;
            let given = Given::new(BF16, kind, (m, n, k));
            let norm = TestArray::new(BF16, &normal_numbers(k, 6, 1.0));
            for_each_kind(&given, &norm, m, |launch, dtype, count| {
                for multiprocessors in [2, 8] {
                    let y = TestArray::output(dtype, count);
                    let (launch, arch, stage) = by_tiles(launch(y.addr()), multiprocessors, &[227]);
                    let counts = crate::checks::simulated_counts_on(&launch, &arch);
                    let Launch::Kernel(kernel) = &launch else { return };
                    let has_norm = kernel.operands().any(|operand| operand == norm.addr());
                    let (x, blocks) = ((2 * m * k) as f64, f64::from(stage.grid[1]));
                    // Blocks of a cluster share x, so each cluster reads x once. Four lanes of each normalising warp
                    // load the same elements of the norm's weight.
                    let clusters = stage.cluster[1] > 1;
                    let readers = blocks / f64::from(stage.cluster[1]);
                    let norms = match (has_norm, clusters) {
                        (false, _) => 0,
                        (true, true) => 2 * 4 * 2 * k,
                        (true, false) => {
                            let boxes = if stage.symbol.contains("_64_") { 2 } else { 1 };
                            boxes * 4 * (m.next_power_of_two() / 16).max(1) * 2 * k
                        }
                    };
                    let x_again = x * if has_norm { 2.0 * readers - 1.0 } else { readers - 1.0 };
                    // For every row of x, bias and scales are read; for every head of queries and keys, the cosines and
                    // sines of its pairs.
                    let of_columns = if kind == WeightFormat::Int8 { 12.0 } else { 2.0 } * (m * n) as f64;
                    let angles =
                        if stage.symbol.contains("qkv") { 2.0 * 8.0 * (m * MAX_HEAD_DIM / 2) as f64 } else { 0.0 };
                    let asked = launch.cost().bytes + x_again + blocks * norms as f64 + of_columns + angles;
                    let bytes = (counts.global_read + counts.global_written) as f64;
                    assert!(bytes <= 1.02 * asked, "{}, {m} rows: {bytes} bytes, expected {asked}", stage.symbol);
                    let extra = counts.wavefronts - counts.wavefronts_least;
                    assert!(extra == 0, "{}, {m} rows: bank conflicts cause {extra} extra wavefronts", stage.symbol);
                }
            });
        }
    });
}

/// Every element has the same bits with tiles of 4 to 144 rows of the weight and 8 to 64 rows of x, and with rings that
/// hold all stages, or only one or two.
#[test]
fn bits_do_not_depend_on_the_shape_of_tiles() {
    crate::checks::run_test_on_sim(|| {
        for (kind, k) in [(WeightFormat::Bf16, 400), (WeightFormat::Int8, 800)] {
            let (m, n) = (64, 288);
            let given = Given::new(BF16, kind, (m, n, k));
            let norm = TestArray::new(BF16, &normal_numbers(k, 6, 1.0));
            let results = |m: usize, multiprocessors: u32, shared: &[u32]| {
                let mut results = Vec::new();
                for_each_kind(&given, &norm, m, |launch, dtype, count| {
                    let y = TestArray::output(dtype, count);
                    let (launch, arch, stage) = by_tiles(launch(y.addr()), multiprocessors, shared);
                    crate::checks::run_with_every_timing_on(&launch, arch);
                    results.push((stage.symbol, bits(&y)));
                });
                results
            };
            let want = results(m, 132, &[227]);
            let shared: Vec<u32> = (8..=227).step_by(8).collect();
            for (m, multiprocessors) in [(m, 1), (m, 5), (32, 11), (16, 1), (8, 1), (1, 11)] {
                for ((symbol, got), (of, want)) in results(m, multiprocessors, &shared).into_iter().zip(&want) {
                    // The results of qkv are compared up to the end of q: with fewer rows, the keys and values behind q
                    // lie elsewhere.
                    let rows = if symbol.contains("qkv") { m * 2 * MAX_HEAD_DIM } else { got.len() };
                    assert!(
                        got[..rows] == want[..rows],
                        "{symbol} and {of}, {m} rows, {multiprocessors} multiprocessors"
                    );
                }
            }
        }
    });
}

/// On an H100, a row has the same bits in a product of few rows (decoding) and in a product of many (prefill,
/// training).
#[test]
fn bits_are_those_of_products_of_many_rows() {
    crate::checks::run_test_on_sim(|| {
        let (rows, n, k) = (130, 160, 1096);
        let given = Given::new(BF16, WeightFormat::Bf16, (rows, n, k));
        let all = TestArray::output(BF16, rows * n);
        let operand = |addr| Operand { addr, dtype: BF16, transposed: false };
        let product = Matmul {
            m: rows,
            n,
            k,
            a: operand(given.x.addr()),
            b: operand(given.weights[0].addresses().0),
            b_scale: Addr::NULL,
            b_layout: RightLayout::Plain,
            c: all.addr(),
            c_dtype: BF16,
            bias: given.bias.addr(),
            accumulate: false,
            scale: 1.0,
            code: &PRODUCT_CODE,
        };
        let many =
            gemm::kernel_launch(&product, &Arch::H100).expect("matmul has a kernel for these operands on an H100");
        crate::checks::run_with_every_timing_on(&Launch::Kernel(many), Arch::H100);
        let want = bits(&all);
        for m in [1, 7, 16, 64] {
            let y = TestArray::output(BF16, m * n);
            let params = Params { w2: Addr::NULL, bias: given.bias.addr(), ..given.params(&y, m) };
            let (launch, arch, _) = by_tiles(linear(BF16, WeightFormat::Bf16, &params), 132, &[227]);
            crate::checks::run_with_every_timing_on(&launch, arch);
            let got = bits(&y);
            assert!(got[..] == want[..got.len()], "{m} rows");
        }
    });
}
