use super::*;
use crate::checks::{run_test_on_sim, simulated_counts};

#[test]
fn each_element_moves_once() {
    run_test_on_sim(|| {
        let (rows, cols, positions) = (7 * 36, 1152, 36);
        for dtype in [F32, BF16] {
            let data = |count, seed| TestArray::new(dtype, &normal_numbers(count, seed, 1.0));
            let (x, pos) = (data(rows * cols, 1), data(positions * cols, 2));
            let (rows, cols, positions, x) = (rows as u32, cols as u32, positions as u32, x.addr());
            let launch = fwd(dtype, &FwdParams { x, pos: pos.addr(), y: x, rows, cols, positions, reserved: 0 });
            let count = simulated_counts(&launch);
            assert_eq!((count.global_read + count.global_written) as f64, launch.cost().bytes, "{}", launch.name());
        }
    });
}
