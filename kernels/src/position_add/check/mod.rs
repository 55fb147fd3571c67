use reel_device::DType::{BF16, F32};

use super::{FwdParams, formula, fwd, test_cases_rows_cols_positions};
use crate::checks::{TestArray, checks, normal_numbers, run};

checks!(adds_positions);

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

#[cfg(test)]
mod tests;
