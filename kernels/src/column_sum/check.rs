use super::{Params, add, cases, formula};
use crate::DType::{BF16, F32};
use crate::checks::{Data, checks, numbers, run};
use crate::compare::assert_close;

checks!(equals_the_formula_on_any_number_of_threads);

fn equals_the_formula_on_any_number_of_threads() {
    for dtype in [F32, BF16] {
        for (rows, cols) in cases() {
            let (x, start) = (Data::new(dtype, &numbers(rows * cols, 1, 1.0)), numbers(cols, 2, 1.0));
            let mut all = Vec::new();
            for threads in 1..4 {
                let sum = Data::new(F32, &start);
                let p = Params { x: x.addr(), sum: sum.addr(), rows: rows as u64, cols: cols as u64 };
                run(&add(dtype, &p), threads);
                all.push(sum.values());
            }
            assert_eq!(all[0], all[1]);
            assert_eq!(all[0], all[2]);
            let want = formula::add(&x.f64(), &Data::new(F32, &start).f64());
            assert_close(&format!("column_sum {dtype} {rows}x{cols}"), &all[0], &want, 1e-5, f64::MAX);
        }
    }
}
