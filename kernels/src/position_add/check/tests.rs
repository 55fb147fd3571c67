use super::*;
use crate::checks::{run_test_on_sim, simulated_counts};

#[test]
fn each_element_moves_once() {
    run_test_on_sim(|| {
        let (rows, cols, positions) = (7 * 36, 1152, 36);
        for dtype in [F32, BF16] {
            let data = |count, seed| TestArray::new(dtype, &normal_numbers(count, seed, 1.0));
            let (x, pos, mut d_pos) = (data(rows * cols, 1), data(positions * cols, 2), vec![0.0; positions * cols]);
            let (rows, cols, positions, x) = (rows as u32, cols as u32, positions as u32, x.addr());
            let forward = FwdParams { x, pos: pos.addr(), y: x, rows, cols, positions, reserved: 0 };
            let backward = BwdParams { dy: x, d_pos: addr_mut(&mut d_pos), rows, cols, positions, reserved: 0 };
            for launch in [fwd(dtype, &forward), bwd(dtype, &backward)] {
                let count = simulated_counts(&launch);
                assert_eq!((count.global_read + count.global_written) as f64, launch.cost().bytes, "{}", launch.name());
            }
        }
    });
}
