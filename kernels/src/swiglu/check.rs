use reel_device::Addr;
use reel_device::DType::{self, BF16, F32};

use super::{BwdParams, FwdParams, bwd, formula, fwd, test_cases_rows_cols_gap_scale};
use crate::checks::{TestArray, checks, normal_numbers, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};

checks!(equals_the_formula, gradient_equals_differences_of_the_formula);

/// Rows of `cols` elements, each followed by `gap` elements that kernels must neither use nor change.
struct Rows {
    array: TestArray,
    cols: usize,
    stride: usize,
}

impl Rows {
    fn random(dtype: DType, [rows, cols, gap]: [usize; 3], seed: u64, scale: f32) -> Rows {
        let stride = cols + gap;
        Rows { array: TestArray::new(dtype, &normal_numbers(rows * stride, seed, scale)), cols, stride }
    }

    fn addr(&self) -> Addr {
        self.array.addr()
    }

    /// Returns the elements of the rows, and the elements between the rows.
    fn split<T: Copy>(&self, all: &[T]) -> (Vec<T>, Vec<T>) {
        let rows = || all.chunks(self.stride).map(|row| row.split_at(self.cols));
        (rows().flat_map(|(row, _)| row.to_vec()).collect(), rows().flat_map(|(_, gap)| gap.to_vec()).collect())
    }

    fn to_f64(&self) -> Vec<f64> {
        self.split(&self.array.to_f64()).0
    }
}

fn equals_the_formula() {
    for dtype in [F32, BF16] {
        for (rows, cols, gap, scale) in test_cases_rows_cols_gap_scale() {
            let shape = [rows, cols, gap];
            let (g, u) = (Rows::random(dtype, shape, 1, scale), Rows::random(dtype, shape, 2, scale));
            let y = TestArray::output(dtype, rows * cols);
            let (count, cols, stride) = ((rows * cols) as u64, cols as u64, (cols + gap) as u64);
            run(&fwd(dtype, &FwdParams { gate: g.addr(), up: u.addr(), y: y.addr(), count, cols, stride }), 2);
            let (with, want) = (formula::fwd_rounded(&g.to_f64(), &u.to_f64()), formula::fwd(&g.to_f64(), &u.to_f64()));
            assert_rounded(&format!("swiglu {shape:?}"), dtype, &y.values(), &with, &want, DEFAULT_ROUNDING_FACTOR);
        }
    }
}

/// Tolerance of d_gate in f32, as a multiple of the error of one rounding. The multiple is large because the two terms
/// of d_gate cancel where the derivative of silu is near 0.
const OF_ONE_GATE: f64 = 64.0;

fn gradient_equals_differences_of_the_formula() {
    for dtype in [F32, BF16] {
        for (rows, cols, gap, scale) in test_cases_rows_cols_gap_scale() {
            let shape = [rows, cols, gap];
            let data = |seed| Rows::random(dtype, shape, seed, scale);
            let (g, u, dy) = (data(1), data(2), TestArray::new(dtype, &normal_numbers(rows * cols, 3, scale)));
            // The backward kernel must not change the elements between the rows of the gradients.
            let (dg, du) = (data(4), data(5));
            let y = TestArray::output(dtype, rows * cols);
            let between = [&dg, &du].map(|d| d.split(&d.array.values()).1);
            let params = BwdParams {
                gate: g.addr(),
                up: u.addr(),
                dy: dy.addr(),
                d_gate: dg.addr(),
                d_up: du.addr(),
                y: if cols.is_multiple_of(2) { y.addr() } else { Addr::NULL },
                count: (rows * cols) as u64,
                cols: cols as u64,
                stride: (cols + gap) as u64,
            };
            run(&bwd(dtype, &params), 3);
            let (want_g, want_u) = formula::gradients_of_gate_up(&g.to_f64(), &u.to_f64(), &dy.to_f64());
            let (with_g, with_u) = formula::gradients_of_gate_up_rounded(&g.to_f64(), &u.to_f64(), &dy.to_f64());
            let rounding_factor = if dtype == F32 { OF_ONE_GATE } else { DEFAULT_ROUNDING_FACTOR };
            let (got, kept): (Vec<_>, Vec<_>) = [&dg, &du].map(|d| d.split(&d.array.values())).into_iter().unzip();
            assert_rounded(&format!("d_gate {shape:?}"), dtype, &got[0], &with_g, &want_g, rounding_factor);
            assert_rounded(&format!("d_up {shape:?}"), dtype, &got[1], &with_u, &want_u, DEFAULT_ROUNDING_FACTOR);
            assert!(kept[..] == between[..], "elements between the rows changed: {shape:?}");
            if !params.y.is_null() {
                let again = TestArray::output(dtype, rows * cols);
                let BwdParams { gate, up, count, cols, stride, .. } = params;
                run(&fwd(dtype, &FwdParams { gate, up, y: again.addr(), count, cols, stride }), 2);
                assert!(
                    y.values() == again.values(),
                    "y written by the backward kernel differs from y of the forward kernel: {shape:?}"
                );
            }
        }
    }
}
