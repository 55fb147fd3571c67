use super::*;
use crate::checks::run_test_on_sim;
use crate::checks::traffic::assert_traffic_matches_cost;

#[test]
fn each_element_moves_once() {
    run_test_on_sim(|| {
        let (rows, cols) = (64usize, 1152usize);
        for dtype in [F32, BF16] {
            let x = TestArray::new(dtype, &normal_numbers(rows * cols, 1, 1.0));
            let y = TestArray::output(dtype, rows * cols);
            let launch = fwd(dtype, &FwdParams { x: x.addr(), y: y.addr(), rows: rows as u32, cols: cols as u32 });
            let count = assert_traffic_matches_cost(&launch);
            assert_eq!(count.wavefronts, count.wavefronts_least, "{}", launch.name());
        }
    });
}
