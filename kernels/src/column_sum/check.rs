use super::{Params, add_column_sums, formula, test_shapes};
use crate::DType::{BF16, F32};
use crate::checks::{TestArray, checks, normal_numbers, run};
use crate::compare::assert_rounded;

checks!(equals_the_formula_on_any_number_of_threads);

/// Tolerance as a multiple of the error of one rounding: an f32 sum of 128 terms needs ten.
const ROUNDING_FACTOR_SUM: f64 = 10.0;

fn equals_the_formula_on_any_number_of_threads() {
    for dtype in [F32, BF16] {
        for (rows, cols) in test_shapes() {
            let (x, start) =
                (TestArray::new(dtype, &normal_numbers(rows * cols, 1, 1.0)), normal_numbers(cols, 2, 1.0));
            let mut all = Vec::new();
            for threads in 1..4 {
                let sum = TestArray::new(F32, &start);
                let p = Params { x: x.addr(), sum: sum.addr(), rows: rows as u64, cols: cols as u64 };
                run(&add_column_sums(dtype, &p), threads);
                all.push(sum.values());
            }
            assert_eq!(all[0], all[1]);
            assert_eq!(all[0], all[2]);
            let start = TestArray::new(F32, &start).to_f64();
            let (with, want) = (
                formula::column_sums_added_rounded(&x.to_f64(), &start),
                formula::column_sums_added(&x.to_f64(), &start),
            );
            assert_rounded(
                &format!("column_sum {dtype} {rows}x{cols}"),
                F32,
                &all[0],
                &with,
                &want,
                ROUNDING_FACTOR_SUM,
            );
        }
    }
}
