use super::{Params, column_sums, formula, test_shapes};
use crate::DType::{BF16, F32};
use crate::checks::{TestArray, checks, normal_numbers, run};
use crate::compare::assert_rounded;

checks!(equals_the_formula_on_any_number_of_threads);

/// Tolerance as a multiple of the error of one rounding: an f32 sum of 128 terms needs ten.
const ROUNDING_FACTOR_SUM: f64 = 10.0;

fn equals_the_formula_on_any_number_of_threads() {
    for (dtype, accumulate) in [(F32, 0), (F32, 1), (BF16, 0), (BF16, 1)] {
        for (rows, cols) in test_shapes() {
            let x = TestArray::new(dtype, &normal_numbers(rows * cols, 1, 1.0));
            let start = if accumulate == 1 { normal_numbers(cols, 2, 1.0) } else { vec![f32::NAN; cols] };
            let mut all = Vec::new();
            for threads in 1..4 {
                let sum = TestArray::new(F32, &start);
                let (rows, cols) = (rows as u64, cols as u64);
                let p = Params { x: x.addr(), sum: sum.addr(), rows, cols, accumulate, reserved: 0 };
                run(&column_sums(dtype, &p), threads);
                all.push(sum.values());
            }
            assert_eq!(all[0], all[1]);
            assert_eq!(all[0], all[2]);
            let start = if accumulate == 1 { TestArray::new(F32, &start).to_f64() } else { vec![0.0; cols] };
            let (with, want) = (
                formula::column_sums_added_rounded(&x.to_f64(), &start),
                formula::column_sums_added(&x.to_f64(), &start),
            );
            assert_rounded(
                &format!("column_sum {dtype} {rows}x{cols}, accumulate {accumulate}"),
                F32,
                &all[0],
                &with,
                &want,
                ROUNDING_FACTOR_SUM,
            );
        }
    }
}
