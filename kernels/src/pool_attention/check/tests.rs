use super::*;
use crate::checks::{run_test_on_sim, simulated_counts};

#[test]
fn keys_and_values_are_read_once_and_without_bank_conflicts() {
    run_test_on_sim(|| {
        let case = ImageBatch { lengths: vec![729], heads: 2, head_dim: 72, spread: 1.0 };
        for dtype in [F32, BF16] {
            let given = Given::new(dtype, &case);
            let o = TestArray::new(dtype, &vec![0.5; 144]);
            let launch = fwd(dtype, &given.params(&o));
            let (count, cost) = (simulated_counts(&launch), launch.cost());
            let bytes = (count.global_read + count.global_written) as f64;
            assert!(
                bytes <= 1.1 * cost.bytes,
                "{}: {bytes} bytes of memory traffic, expected about {}",
                launch.name(),
                cost.bytes
            );
            assert_eq!(count.wavefronts, count.wavefronts_least, "{}", launch.name());
        }
    });
}
