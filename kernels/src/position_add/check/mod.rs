use reel_device::DType::{BF16, F32};

use super::{BwdParams, FwdParams, bwd, formula, fwd, test_cases_rows_cols_positions};
use crate::checks::{TestArray, addr_mut, checks, normal_numbers, run};
use crate::compare::{assert_close, f32_sum_error};

checks!(adds_positions, the_gradient_sums_rows_of_a_position);

fn adds_positions() {
    for (rows, cols, positions) in test_cases_rows_cols_positions() {
        for dtype in [F32, BF16] {
            let data = |count, seed| TestArray::new(dtype, &normal_numbers(count, seed, 1.0));
            let (x, pos, y) = (data(rows * cols, 1), data(positions * cols, 2), TestArray::output(dtype, rows * cols));
            let params = FwdParams {
                x: x.addr(),
                pos: pos.addr(),
                y: y.addr(),
                rows: rows as u32,
                cols: cols as u32,
                positions: positions as u32,
                reserved: 0,
            };
            run(&fwd(dtype, &params), 2);
            // The kernel adds two f32 and rounds the sum once; the f64 sum of two f32, rounded to f32, is the same
            // number.
            let want: Vec<f32> = formula::fwd(&x.to_f64(), &pos.to_f64()).iter().map(|&x| x as f32).collect();
            assert_eq!(
                y.values(),
                TestArray::new(dtype, &want).values(),
                "y differs from the formula: {dtype} {rows}x{cols}, {positions} positions"
            );
            run(&fwd(dtype, &FwdParams { y: x.addr(), ..params }), 1);
            assert_eq!(
                x.values(),
                y.values(),
                "y written over x differs from y in a separate array: {dtype} {rows}x{cols}, {positions} positions"
            );
        }
    }
}

fn the_gradient_sums_rows_of_a_position() {
    for (rows, cols, positions) in test_cases_rows_cols_positions() {
        for dtype in [F32, BF16] {
            let dy = TestArray::new(dtype, &normal_numbers(rows * cols, 1, 1.0));
            let before = normal_numbers(positions * cols, 2, 1.0);
            let mut d_pos = before.clone();
            let params = BwdParams {
                dy: dy.addr(),
                d_pos: addr_mut(&mut d_pos),
                rows: rows as u32,
                cols: cols as u32,
                positions: positions as u32,
                reserved: 0,
            };
            run(&bwd(dtype, &params), 3);
            let before = TestArray::new(F32, &before).to_f64();
            let want = formula::bwd(&dy.to_f64(), &before);
            let magnitudes = |x: &[f64]| x.iter().map(|x| x.abs()).collect::<Vec<f64>>();
            let terms = formula::bwd(&magnitudes(&dy.to_f64()), &magnitudes(&before));
            assert_close(
                &format!("d_pos differs from the formula: {dtype} {rows}x{cols}, {positions} positions"),
                &d_pos,
                &want,
                1e-6,
                |i| f32_sum_error(rows.div_ceil(positions) + 1, terms[i]),
            );
        }
    }
}

#[cfg(test)]
mod tests;
