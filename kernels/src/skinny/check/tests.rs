use super::*;
use crate::{Arch, Stage};

#[test]
fn the_weight_is_read_once_and_without_bank_conflicts() {
    crate::checks::on_sim(|| {
        for kind in [WeightFormat::Bf16, WeightFormat::Int8] {
            let given = Given::new(BF16, kind, (1, 64, 4096));
            let y = TestArray::output(BF16, 64);
            for launch in [linear, swiglu] {
                let launch = launch(BF16, kind, &given.params(&y, 1));
                let (count, cost) = (crate::checks::simulated_counts(&launch), launch.cost());
                let bytes = (count.global_read + count.global_written) as f64;
                // x is read again for every 16 columns of y. That adds 1/16 to the bytes of a bf16 weight and 1/8 to
                // those of an int8 weight.
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

/// A launch whose weights are copied by bulk copies.
fn with_bulk_copies(launch: Launch) -> Launch {
    let Launch::Kernel(launch) = launch else { unreachable!("a kernel") };
    let bulk = tuning::variants_of(launch.kernel).find(|variant| variant.name.starts_with("bulk copies"));
    Launch::Kernel(KernelLaunch { kernel: bulk.expect("a variant").kernel, ..launch })
}

/// Each block reads x again, as without bulk copies.
#[test]
fn bulk_copies_read_the_weight_once_and_without_bank_conflicts() {
    crate::checks::on_sim(|| {
        for (kind, m, k) in
            [(WeightFormat::Bf16, 1, 3584), (WeightFormat::Bf16, 16, 3592), (WeightFormat::Int8, 1, 3600)]
        {
            let n = 64;
            let given = Given::new(BF16, kind, (m, n, k));
            let norm = TestArray::new(BF16, &normal_numbers(k, 6, 1.0));
            for_each_kind(&given, &norm, m, |launch, dtype, count| {
                let y = TestArray::output(dtype, count);
                let launch = with_bulk_copies(launch(y.addr()));
                let Launch::Kernel(kernel) = &launch else { return };
                let [stage] = &(kernel.kernel.plan)(&kernel.params, &Arch::H100)[..] else { panic!("one stage") };
                assert!(stage.symbol.ends_with("_bulk"), "{}", stage.symbol);
                let counts = crate::checks::simulated_counts_on(&launch, &Arch::H100);
                let has_norm = kernel.operands().any(|operand| operand == norm.addr());
                let (x, blocks) = ((2 * m * k) as f64, stage.grid[1] as f64);
                // As without bulk copies: with a norm, x is read twice, and eight lanes read the norm's weight.
                let again = if has_norm {
                    (2.0 * blocks - 1.0) * x + (8.0 * blocks - 1.0) * (2 * k) as f64
                } else {
                    (blocks - 1.0) * x
                };
                let (bytes, asked) = ((counts.global_read + counts.global_written) as f64, launch.cost().bytes + again);
                assert!(bytes <= 1.02 * asked, "{}: {bytes} bytes of memory traffic, expected {asked}", stage.symbol);
                // With more than 8 rows, the partial sums of a warp have bank conflicts.
                let extra = counts.wavefronts - counts.wavefronts_least;
                assert!(
                    if m == 1 { extra == 0 } else { extra * 20 <= counts.wavefronts },
                    "{}: {extra} extra wavefronts",
                    stage.symbol
                );
            });
        }
    });
}

/// Every block of 16 columns of y reads all rows of x again, from L2, and the weight once.
#[test]
fn rows_are_read_again_by_each_block_and_the_weight_is_not() {
    crate::checks::on_sim(|| {
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
            assert!(extra * 20 <= count.wavefronts, "{kind:?}, {m} rows: {extra} extra wavefronts");
        }
    });
}

/// A block that normalises x reads its rows twice; each of its lanes loads the elements of the norm that it needs.
#[test]
fn a_norm_reads_the_rows_twice_and_without_bank_conflicts() {
    crate::checks::on_sim(|| {
        let (m, n, k) = (8, 64, 3584);
        let given = Given::new(BF16, WeightFormat::Bf16, (m, n, k));
        let norm = TestArray::new(BF16, &normal_numbers(k, 6, 1.0));
        let y = TestArray::output(BF16, m * n);
        let launch = swiglu(BF16, WeightFormat::Bf16, &Params { norm: norm.addr(), ..given.params(&y, m) });
        let (count, cost) = (crate::checks::simulated_counts(&launch), launch.cost());
        let (x, blocks) = ((2 * m * k) as f64, (n / 16) as f64);
        // Eight lanes that multiply the same columns of x each load the norm's elements there, from the same address.
        let asked = cost.bytes + (2.0 * blocks - 1.0) * x + (8.0 * blocks - 1.0) * (2 * k) as f64;
        let bytes = (count.global_read + count.global_written) as f64;
        assert!(bytes <= 1.02 * asked, "{bytes} bytes of memory traffic, expected {asked}");
        let extra = count.wavefronts - count.wavefronts_least;
        assert!(extra * 20 <= count.wavefronts, "bank conflicts cause {extra} extra wavefronts");
    });
}

/// The plan of a launch by clusters, on a GPU with `clusters` of them.
fn by_clusters(launch: Launch, clusters: u32) -> (Launch, Arch, Vec<Stage>) {
    let Launch::Kernel(launch) = launch else { unreachable!("a kernel") };
    let variant = tuning::variants_of(launch.kernel).find(|variant| variant.name == "clusters").expect("a variant");
    let arch = Arch { multiprocessors: 8 * clusters, clusters_of_8: clusters, ..Arch::H100 };
    let stages = (variant.kernel.plan)(&launch.params, &arch);
    (Launch::Kernel(KernelLaunch { kernel: variant.kernel, ..launch }), arch, stages)
}

/// Each step of a cluster reads x once; with a norm, each cluster reads it once more. Of a decode step of a 7B model
/// with one row that is less than 1.05 times the cost.
#[test]
fn clusters_read_the_weight_once_and_x_once_a_step_without_bank_conflicts() {
    crate::checks::on_sim(|| {
        for (kind, m, k) in [
            (WeightFormat::Bf16, 1, 3584),
            (WeightFormat::Bf16, 16, 3584),
            (WeightFormat::Bf16, 64, 3592),
            (WeightFormat::Int8, 16, 3600),
        ] {
            // Two clusters; without a second weight one step each.
            let n = 448;
            let given = Given::new(BF16, kind, (m, n, k));
            let norm = TestArray::new(BF16, &normal_numbers(k, 6, 1.0));
            for_each_kind(&given, &norm, m, |launch, dtype, count| {
                let y = TestArray::output(dtype, count);
                let (launch, arch, stages) = by_clusters(launch(y.addr()), 2);
                let (Launch::Kernel(kernel), [stage]) = (&launch, &stages[..]) else { panic!("one stage") };
                assert!(stage.symbol.ends_with("_cluster") && stage.grid == [8, 1, 2], "{stage:?}");
                let counts = crate::checks::simulated_counts_on(&launch, &arch);
                let has = |array: Addr| kernel.operands().any(|operand| operand == array);
                let (has_pair, has_norm) = (has(given.params(&y, m).w2), has(norm.addr()));
                let steps = if has_pair { 2.0 } else { 1.0 };
                let reads = 2.0 * steps + if has_norm { 2.0 } else { 0.0 };
                // A warp reads the norm for eight rows at once. Every row reads bias and scales.
                let norms = if has_norm { 2.0 * steps * 2.0 * (m.next_multiple_of(16) / 8 * k) as f64 } else { 0.0 };
                let expected = launch.cost().bytes + (reads - 1.0) * (2 * m * k) as f64 + norms;
                let bytes = (counts.global_read + counts.global_written) as f64;
                assert!(bytes <= 1.03 * expected, "{}, {m} rows: {bytes} bytes, expected {expected}", stage.symbol);
                if m == 1 {
                    assert!(bytes <= 1.05 * launch.cost().bytes, "{}: {bytes} bytes", stage.symbol);
                }
                let extra = counts.wavefronts - counts.wavefronts_least;
                assert!(extra * 50 <= counts.wavefronts, "{}, {m} rows: {extra} extra wavefronts", stage.symbol);
            });
        }
    });
}
