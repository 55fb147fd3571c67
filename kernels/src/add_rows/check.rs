use reel_device::DType::{BF16, F32};

use super::{Params, add_rows, formula, test_cases_n_m_cols};
use crate::checks::{TestArray, addr, checks, normal_numbers, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};

checks!(equals_the_formula_and_changes_no_other_row);

/// Returns `m` different rows below `n` in descending order, and an index on each side of the range in place of the
/// fourth and the sixth.
fn index(n: usize, m: usize) -> Vec<i32> {
    let row = |i| match i {
        3 => n as i32,
        5 => -1,
        _ => (n - 1 - i) as i32,
    };
    (0..m).map(row).collect()
}

fn equals_the_formula_and_changes_no_other_row() {
    for (n, m, cols) in test_cases_n_m_cols() {
        for dtype in [F32, BF16] {
            let (x, index) = (TestArray::new(dtype, &normal_numbers(m * cols, 1, 1.0)), index(n, m));
            let y = TestArray::new(dtype, &normal_numbers(n * cols, 2, 1.0));
            let (before, name) = (y.to_f64(), format!("{dtype} {n} {m} {cols}"));
            let (m, n32, cols32) = (m as u32, n as u32, cols as u32);
            let params = Params { x: x.addr(), index: addr(&index), y: y.addr(), m, cols: cols32, n: n32, reserved: 0 };
            run(&add_rows(dtype, &params), 3);
            let (got, want) = (y.values(), formula::add_rows(&x.to_f64(), &index, &before, cols));
            assert_rounded(&name, dtype, &got, &want, &want, DEFAULT_ROUNDING_FACTOR);
            // Rows that are not in the index keep their bits.
            let is_other = |at: &usize| !index.contains(&((at / cols) as i32));
            assert!((0..n * cols).filter(is_other).all(|at| got[at] as f64 == before[at]), "{name}");
        }
    }
}
