use super::*;
use crate::Arch;

/// A GPU of four multiprocessors, each of which computes as many rows of a weight of 108 rows as one of 132 does of
/// 3584.
const FOUR_MULTIPROCESSORS: Arch = Arch { multiprocessors: 4, ..Arch::H100 };

/// The blocks of one row read x once each, normalised or not, and the weight once.
#[test]
fn one_row_reads_the_weight_once_and_little_else() {
    crate::checks::on_sim(|| {
        // The widths of the 7B model.
        for k in [3584, 18944] {
            for (kind, most) in [(WeightFormat::Bf16, 1.04), (WeightFormat::Int8, 1.08)] {
                let n = 108;
                let given = Given::new(BF16, kind, (1, n, k));
                let norm = TestArray::new(BF16, &normal_numbers(k, 6, 1.0));
                let y = TestArray::output(BF16, 3 * n);
                let wide = TestArray::output(F32, n);
                let params = given.params(&y, 1);
                let single = Params { w2: Addr::NULL, scale2: Addr::NULL, ..params };
                let normed = Params { norm: norm.addr(), ..single };
                let empty = Params { n: 0, ..single };
                let launches = [
                    (linear(BF16, kind, &single), most),
                    (logits(BF16, kind, &Params { y: wide.addr(), ..single }), most),
                    (swiglu(BF16, kind, &params), 1.05),
                    // The norm's weight is read by each block, too.
                    (swiglu(BF16, kind, &Params { norm: norm.addr(), ..params }), 2.0 * most - 1.0),
                    (joined(BF16, kind, &JoinedParams::of([normed, empty, empty])), 2.0 * most - 1.0),
                ];
                for (launch, most) in launches {
                    let count = crate::checks::simulated_counts_on(&launch, &FOUR_MULTIPROCESSORS);
                    let (bytes, name) = ((count.global_read + count.global_written) as f64, launch.name());
                    let ratio = bytes / launch.cost().bytes;
                    assert!(ratio <= most, "{name}, k = {k}: {ratio:.3} times the bytes of its cost");
                    let extra = count.wavefronts - count.wavefronts_least;
                    assert!(extra * 20 <= count.wavefronts, "{name}, k = {k}: {extra} extra wavefronts");
                    println!("{name} k {k}: {ratio:.4} of cost, {extra} of {} wavefronts", count.wavefronts);
                }
            }
        }
    });
}

/// Up to 8 rows stay in shared memory; each block reads them once.
#[test]
fn eight_rows_are_read_once_by_each_block() {
    crate::checks::on_sim(|| {
        let (n, k) = (108, 3584);
        for m in [2, 4, 8] {
            let given = Given::new(BF16, WeightFormat::Bf16, (m, n, k));
            let y = TestArray::output(BF16, m * n);
            let launch = linear(BF16, WeightFormat::Bf16, &Params { w2: Addr::NULL, ..given.params(&y, m) });
            let count = crate::checks::simulated_counts_on(&launch, &FOUR_MULTIPROCESSORS);
            let asked = launch.cost().bytes + (3 * 2 * m * k) as f64;
            let bytes = (count.global_read + count.global_written) as f64;
            assert!(bytes <= 1.01 * asked, "{m} rows: {bytes} bytes of memory traffic, expected {asked}");
            let extra = count.wavefronts - count.wavefronts_least;
            assert!(extra * 20 <= count.wavefronts, "{m} rows: {extra} extra wavefronts");
        }
    });
}

/// Blocks divide the columns evenly, to one column, whatever their number.
#[test]
fn plans_have_a_block_per_multiprocessor_or_two() {
    let shape = |n: u32, k: u32, m: u32| Params { m, n, k, ..bytemuck::Zeroable::zeroed() };
    let blocks = |launch: &Launch| {
        let Launch::Kernel(launch) = launch else { panic!("a kernel") };
        let stages = (launch.kernel.plan)(&launch.params, &Arch::H100);
        (stages[0].symbol, stages[0].grid[1])
    };
    let bf16 = |n, k, m| blocks(&linear(BF16, WeightFormat::Bf16, &shape(n, k, m)));
    assert_eq!(bf16(3584, 3584, 1), ("skinny_linear_bf16_tiles", 132));
    assert_eq!(bf16(3584, 18944, 1), ("skinny_linear_bf16_tiles", 132));
    assert_eq!(bf16(18944, 3584, 1), ("skinny_linear_bf16_wide_tiles", 264));
    assert_eq!(blocks(&swiglu(BF16, WeightFormat::Bf16, &shape(18944, 3584, 1))), ("skinny_swiglu_bf16_tiles", 264));
    assert_eq!(
        blocks(&logits(BF16, WeightFormat::Bf16, &shape(152064, 3584, 1))),
        ("skinny_logits_bf16_wide_tiles", 264)
    );
    assert_eq!(bf16(3584, 3584, 8), ("skinny_linear_bf16_tiles", 132));
    // x does not fit beside the weights in flight.
    assert_eq!(bf16(3584, 18944, 8), ("skinny_linear_bf16", 224));
    assert_eq!(bf16(3584, 3584, 9), ("skinny_linear_bf16", 224));
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
