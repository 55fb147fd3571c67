use super::*;

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

/// Every block of 16 columns of y reads all 16 rows of x again, from L2.
#[test]
fn sixteen_rows_are_read_again_by_each_block() {
    crate::checks::on_sim(|| {
        for kind in [WeightFormat::Bf16, WeightFormat::Int8] {
            let given = Given::new(BF16, kind, (16, 64, 2048));
            let y = TestArray::output(BF16, 16 * 64);
            let launch = linear(BF16, kind, &Params { w2: Addr::NULL, ..given.params(&y, 16) });
            let (count, cost) = (crate::checks::simulated_counts(&launch), launch.cost());
            let again = (64.0 / 16.0 - 1.0) * 2.0 * 16.0 * 2048.0;
            let bytes = (count.global_read + count.global_written) as f64;
            assert!(
                bytes <= 1.02 * (cost.bytes + again),
                "{bytes} bytes of memory traffic, expected {} and another {again} because x is read again",
                cost.bytes
            );
        }
    });
}
