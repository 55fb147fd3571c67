use super::{BwdParams, FwdParams, bwd, cases, formula, fwd};
use crate::DType::{BF16, F32};
use crate::checks::{Data, checks, numbers, run};
use crate::compare::assert_close;

checks!(equals_the_formula, gradient_equals_differences_of_the_formula);

fn equals_the_formula() {
    for (dtype, tol) in [(F32, 1e-6), (BF16, 4e-3)] {
        for (n, scale) in cases() {
            let (g, u) = (Data::new(dtype, &numbers(n, 1, scale)), Data::new(dtype, &numbers(n, 2, scale)));
            let y = Data::output(dtype, n);
            run(&fwd(dtype, &FwdParams { gate: g.addr(), up: u.addr(), y: y.addr(), count: n as u64 }), 2);
            assert_close(&format!("swiglu {dtype} {n}"), &y.values(), &formula::fwd(&g.f64(), &u.f64()), tol, f64::MAX);
        }
    }
}

fn gradient_equals_differences_of_the_formula() {
    for (dtype, tol) in [(F32, 1e-4), (BF16, 4e-3)] {
        for (n, scale) in cases() {
            let data = |seed| Data::new(dtype, &numbers(n, seed, scale));
            let (g, u, dy) = (data(1), data(2), data(3));
            let (dg, du) = (Data::output(dtype, n), Data::output(dtype, n));
            let params = BwdParams {
                gate: g.addr(),
                up: u.addr(),
                dy: dy.addr(),
                d_gate: dg.addr(),
                d_up: du.addr(),
                count: n as u64,
            };
            run(&bwd(dtype, &params), 3);
            let (want_g, want_u) = formula::bwd(&g.f64(), &u.f64(), &dy.f64());
            assert_close(&format!("d_gate {dtype} {n}"), &dg.values(), &want_g, tol, f64::MAX);
            assert_close(&format!("d_up {dtype} {n}"), &du.values(), &want_u, tol, f64::MAX);
        }
    }
}
