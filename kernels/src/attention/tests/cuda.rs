//! The CUDA side on the simulator.

use super::{Given, cases};
use crate::DType::{BF16, F32};
use crate::attention::{bwd, formula, fwd};
use crate::compare::assert_close;
use crate::testing::{Data, on_sim, run};

#[test]
fn equals_the_formula() {
    on_sim(|| {
        for (dtype, tol) in [(F32, 5e-6f64), (BF16, 4e-3)] {
            for case in cases() {
                let given = Given::new(&case, dtype);
                let rows = given.tokens() * case.heads;
                let (q, k, v, scale) = (given.q.f64(), given.k.f64(), given.v.f64(), given.scale as f64);
                let (want, want_lse) = formula::fwd(&case, &q, &k, &v, scale);
                let (o, lse) = (Data::output(dtype, rows * case.head_dim), Data::output(F32, rows));
                let start = std::time::Instant::now();
                run(&fwd(dtype, &given.fwd(o.addr(), lse.addr()), given.pairs()), 1);
                let name = format!("{dtype} {case:?}");
                let tol = tol.max(case.spread as f64 * 1e-6);
                assert_close(&format!("o {name}"), &o.values(), &want, tol, f64::MAX);
                assert_close(&format!("lse {name}"), &lse.values(), &want_lse, 1e-6, f64::MAX);
                let want = formula::bwd(&case, [&q, &k, &v], &o.f64(), &given.d_o.f64(), scale);
                let got = want.each_ref().map(|w| Data::output(dtype, w.len()));
                let delta = Data::output(F32, rows);
                run(&bwd(dtype, &given.bwd(&o, &lse, &delta, got.each_ref()), given.pairs()), 1);
                for (i, which) in ["dq", "dk", "dv"].into_iter().enumerate() {
                    assert_close(&format!("{which} {name}"), &got[i].values(), &want[i], 20.0 * tol, f64::MAX);
                }
                println!("{name}: {:?}", start.elapsed());
            }
        }
    });
}
