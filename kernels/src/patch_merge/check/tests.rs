use super::*;
use crate::checks::run_test_on_sim;
use crate::checks::traffic::assert_traffic_matches_cost;

#[test]
fn reads_each_row_once() {
    run_test_on_sim(|| {
        let (rows, cols, dtype) = (4096, 1280, BF16);
        let ([x, w, dy], index) = (inputs(dtype, rows, cols, 1.0), index(rows));
        let (y, mut rstd) = (TestArray::output(dtype, rows * cols), vec![1.0f32; rows]);
        let (mut dw, mut partial) = (vec![0.0; cols], vec![f32::NAN; row_block_count(rows) * cols]);
        let (x, w, y, dy) = (x.addr(), w.addr(), y.addr(), dy.addr());
        let (index, rstd, rows, cols) = (addr(&index), addr_mut(&mut rstd), rows as u32, cols as u32);
        let params = FwdParams { x, index, w, y, rstd, rows, cols, eps: EPS, reserved: 0 };
        let (dw, partial) = (addr_mut(&mut dw), addr_mut(&mut partial));
        let gradient = BwdParams { x, index, w, rstd, dy, dx: y, dw, partial, rows, cols, accumulate: 1, reserved: 0 };
        for launch in [fwd(dtype, &params), bwd(dtype, &gradient)] {
            let count = assert_traffic_matches_cost(&launch);
            assert_eq!(count.wavefronts, count.wavefronts_least, "{}", launch.name());
        }
    });
}
