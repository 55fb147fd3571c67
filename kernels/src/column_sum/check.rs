use reel_device::DType::{BF16, F32};

use super::{Params, SummedMatrix, column_sums, formula, test_shapes};
use crate::checks::{TestArray, checks, normal_numbers, run};
use crate::compare::assert_rounded;

checks!(equals_the_formula_on_any_number_of_threads, several_matrices_have_the_bits_of_each_alone);

/// Tolerance as a multiple of the error of one rounding. An f32 sum of 128 terms needs ten.
const ROUNDING_FACTOR_SUM: f64 = 10.0;

fn equals_the_formula_on_any_number_of_threads() {
    for (dtype, accumulate) in [(F32, 0), (F32, 1), (BF16, 0), (BF16, 1)] {
        for (rows, cols) in test_shapes() {
            let x = TestArray::new(dtype, &normal_numbers(rows * cols, 1, 1.0));
            let start = if accumulate == 1 { normal_numbers(cols, 2, 1.0) } else { vec![f32::NAN; cols] };
            let mut all = Vec::new();
            for threads in 1..4 {
                let sum = TestArray::new(F32, &start);
                let accumulate = accumulate == 1;
                let matrix = SummedMatrix { x: x.addr(), sum: sum.addr(), cols: cols as u32, accumulate };
                run(&column_sums(dtype, &Params::new(rows as u64, &[matrix])), threads);
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

fn several_matrices_have_the_bits_of_each_alone() {
    let (rows, widths) = (130, [70, 1, 257, 64]);
    for dtype in [F32, BF16] {
        let x: Vec<TestArray> = (1..)
            .zip(widths)
            .map(|(seed, cols)| TestArray::new(dtype, &normal_numbers(rows * cols, seed, 1.0)))
            .collect();
        let sums = || -> Vec<TestArray> {
            (5..).zip(widths).map(|(seed, cols)| TestArray::new(F32, &normal_numbers(cols, seed, 1.0))).collect()
        };
        let (alone, together) = (sums(), sums());
        let matrices = |sums: &[TestArray]| -> Vec<SummedMatrix> {
            let matrix = |i: usize| SummedMatrix {
                x: x[i].addr(),
                sum: sums[i].addr(),
                cols: widths[i] as u32,
                accumulate: i % 2 == 1,
            };
            (0..widths.len()).map(matrix).collect()
        };
        for matrix in matrices(&alone) {
            run(&column_sums(dtype, &Params::new(rows as u64, &[matrix])), 2);
        }
        // A launch may have fewer matrices than the maximum of four.
        let all = matrices(&together);
        run(&column_sums(dtype, &Params::new(rows as u64, &all[..1])), 2);
        run(&column_sums(dtype, &Params::new(rows as u64, &all[1..])), 2);
        let values = |sums: &[TestArray]| sums.iter().map(TestArray::values).collect::<Vec<_>>();
        assert_eq!(values(&alone), values(&together), "{dtype}");
        let four = sums();
        run(&column_sums(dtype, &Params::new(rows as u64, &matrices(&four))), 2);
        assert_eq!(values(&alone), values(&four), "{dtype}");
    }
}
