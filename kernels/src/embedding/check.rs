use super::{BwdParams, FwdParams, bwd, cases, formula, fwd};
use crate::DType::{BF16, F32};
use crate::checks::{Data, addr, addr_mut, checks, numbers, run};
use crate::compare::assert_rounded;

checks!(picks_rows, adds_gradients_to_rows);

/// Ids with repeats, and now and then one outside the vocabulary on either side.
fn ids(tokens: usize, vocab: usize) -> Vec<i32> {
    let spread = |t: usize| (t * t * 31 + 7 * t) % vocab;
    (0..tokens).map(|t| if t % 13 == 5 { [-1, vocab as i32][t % 2] } else { spread(t) as i32 }).collect()
}

fn picks_rows() {
    for (tokens, hidden, vocab) in cases() {
        for (from, to) in [(F32, F32), (F32, BF16), (BF16, F32), (BF16, BF16)] {
            let (table, ids) = (Data::new(from, &numbers(vocab * hidden, 1, 1.0)), ids(tokens, vocab));
            let y = Data::output(to, tokens * hidden);
            let params = FwdParams {
                table: table.addr(),
                ids: addr(&ids),
                y: y.addr(),
                tokens: tokens as u32,
                hidden: hidden as u32,
                vocab: vocab as u32,
                reserved: 0,
            };
            run(&fwd(from, to, &params), 2);
            let want: Vec<f32> = formula::fwd(&table.f64(), &ids, hidden).iter().map(|&x| x as f32).collect();
            assert_eq!(y.values(), Data::new(to, &want).values(), "{from} to {to}, {tokens} of {vocab}");
        }
    }
}

/// How many times the error of one rounding that of ten additions to an element may be.
const OF_ONE_SUM: f64 = 4.0;

fn adds_gradients_to_rows() {
    for (tokens, hidden, vocab) in cases() {
        for dtype in [F32, BF16] {
            let (dy, ids) = (Data::new(dtype, &numbers(tokens * hidden, 1, 1.0)), ids(tokens, vocab));
            let before = numbers(vocab * hidden, 2, 1.0);
            let grads = [1, 4].map(|threads| {
                let mut dw = before.clone();
                let params = BwdParams {
                    ids: addr(&ids),
                    dy: dy.addr(),
                    dw: addr_mut(&mut dw),
                    tokens: tokens as u32,
                    hidden: hidden as u32,
                    vocab: vocab as u32,
                    reserved: 0,
                };
                run(&bwd(dtype, &params), threads);
                dw
            });
            assert_eq!(grads[0], grads[1]);
            let before = Data::new(F32, &before).f64();
            let [with, want] = [formula::bwd_rounded, formula::bwd].map(|f| f(&ids, &dy.f64(), &before, hidden));
            assert_rounded(&format!("dw {dtype} {tokens} of {vocab}"), F32, &grads[0], &with, &want, OF_ONE_SUM);
        }
    }
}
