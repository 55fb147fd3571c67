use super::{BwdParams, FwdParams, bwd, formula, fwd, test_cases_count_scale};
use crate::DType::{BF16, F32};
use crate::checks::{TestArray, checks, normal_numbers, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};

checks!(equals_the_formula, gradient_equals_differences_of_the_formula);

fn equals_the_formula() {
    for dtype in [F32, BF16] {
        for (n, scale) in test_cases_count_scale() {
            let (g, u) = (
                TestArray::new(dtype, &normal_numbers(n, 1, scale)),
                TestArray::new(dtype, &normal_numbers(n, 2, scale)),
            );
            let y = TestArray::output(dtype, n);
            run(&fwd(dtype, &FwdParams { gate: g.addr(), up: u.addr(), y: y.addr(), count: n as u64 }), 2);
            let (with, want) = (formula::fwd_rounded(&g.to_f64(), &u.to_f64()), formula::fwd(&g.to_f64(), &u.to_f64()));
            assert_rounded(&format!("swiglu {n}"), dtype, &y.values(), &with, &want, DEFAULT_ROUNDING_FACTOR);
        }
    }
}

/// Tolerance of d_gate in f32, as a multiple of the error of one rounding. It is large because the two terms of
/// d_gate cancel where the derivative of silu is near 0.
const OF_ONE_GATE: f64 = 64.0;

fn gradient_equals_differences_of_the_formula() {
    for dtype in [F32, BF16] {
        for (n, scale) in test_cases_count_scale() {
            let data = |seed| TestArray::new(dtype, &normal_numbers(n, seed, scale));
            let (g, u, dy) = (data(1), data(2), data(3));
            let (dg, du) = (TestArray::output(dtype, n), TestArray::output(dtype, n));
            let params = BwdParams {
                gate: g.addr(),
                up: u.addr(),
                dy: dy.addr(),
                d_gate: dg.addr(),
                d_up: du.addr(),
                count: n as u64,
            };
            run(&bwd(dtype, &params), 3);
            let (want_g, want_u) = formula::gradients_of_gate_up(&g.to_f64(), &u.to_f64(), &dy.to_f64());
            let (with_g, with_u) = formula::gradients_of_gate_up_rounded(&g.to_f64(), &u.to_f64(), &dy.to_f64());
            let rounding_factor = if dtype == F32 { OF_ONE_GATE } else { DEFAULT_ROUNDING_FACTOR };
            assert_rounded(&format!("d_gate {n}"), dtype, &dg.values(), &with_g, &want_g, rounding_factor);
            assert_rounded(&format!("d_up {n}"), dtype, &du.values(), &with_u, &want_u, DEFAULT_ROUNDING_FACTOR);
        }
    }
}
