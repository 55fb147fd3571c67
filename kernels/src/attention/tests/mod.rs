#![allow(unsafe_code)]

mod cuda;

use super::{BwdParams, Case, FwdParams, bwd, cases, cpu, formula, fwd};
use crate::DType::{BF16, F32};
use crate::compare::{assert_close, close};
use crate::simd::{Isa, isa};
use crate::testing::{Data, addr, numbers, run};
use crate::{Addr, DType, Launch, Team};
use half::bf16;
use proptest::prelude::*;

/// A case with its data: q, k, v, d_o.
struct Given {
    case: Case,
    cu_seqlens: Vec<i32>,
    prefix: Vec<i32>,
    q: Data,
    k: Data,
    v: Data,
    d_o: Data,
    scale: f32,
}

impl Given {
    fn new(case: &Case, dtype: DType) -> Given {
        let tokens: usize = case.lengths.iter().sum();
        let (n, kv) = (tokens * case.heads * case.head_dim, tokens * case.kv_heads * case.head_dim);
        let mut cu_seqlens = vec![0];
        for &len in &case.lengths {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + len as i32);
        }
        let data = |count, seed, spread| Data::new(dtype, &numbers(count, seed, spread));
        Given {
            case: case.clone(),
            cu_seqlens,
            prefix: case.prefix.iter().flat_map(|&(first, count)| [first as i32, count as i32]).collect(),
            q: data(n, 1, case.spread),
            k: data(kv, 2, 1.0),
            v: data(kv, 3, 1.0),
            d_o: data(n, 4, 1.0),
            scale: (case.head_dim as f32).powf(-0.5),
        }
    }

    /// Sequence `n` by itself, with its prefix as tokens of its own.
    fn alone(&self, n: usize, dtype: DType) -> Given {
        let tokens = self.case.keys(n);
        let case = Case { lengths: vec![tokens.len()], prefix: Vec::new(), ..self.case.clone() };
        let mut given = Given::new(&case, dtype);
        let (row, kv_row) = (case.heads * case.head_dim, case.kv_heads * case.head_dim);
        let pick = |data: &Data, row: usize| {
            let values = data.values();
            let rows = tokens.iter().flat_map(|t| values[t * row..(t + 1) * row].iter().copied());
            Data::new(dtype, &rows.collect::<Vec<_>>())
        };
        (given.q, given.d_o) = (pick(&self.q, row), pick(&self.d_o, row));
        (given.k, given.v) = (pick(&self.k, kv_row), pick(&self.v, kv_row));
        given
    }

    /// Output, log-sum-exp and gradients, as bits, by the launches that a device runs.
    fn everything(&self, dtype: DType, threads: usize) -> [Vec<u32>; 5] {
        self.everything_by(dtype, |launch| run(launch, threads))
    }

    /// The same with `run` for each launch.
    fn everything_by(&self, dtype: DType, run: impl Fn(&Launch)) -> [Vec<u32>; 5] {
        let (rows, kv_rows) = (self.tokens() * self.case.heads, self.tokens() * self.case.kv_heads);
        let (o, lse) = (Data::output(dtype, rows * self.case.head_dim), Data::output(F32, rows));
        run(&fwd(dtype, &self.fwd(o.addr(), lse.addr()), self.pairs()));
        let (o, lse) = (Data::new(dtype, &o.values()), Data::new(F32, &lse.values()));
        let [dq, dk, dv] = [rows, kv_rows, kv_rows].map(|n| Data::output(dtype, n * self.case.head_dim));
        let delta = Data::output(F32, rows);
        run(&bwd(dtype, &self.bwd(&o, &lse, &delta, [&dq, &dk, &dv]), self.pairs()));
        [o, lse, dq, dk, dv].each_ref().map(bits)
    }

    fn tokens(&self) -> usize {
        self.case.lengths.iter().sum()
    }

    fn fwd(&self, o: Addr, lse: Addr) -> FwdParams {
        FwdParams {
            q: self.q.addr(),
            k: self.k.addr(),
            v: self.v.addr(),
            o,
            lse,
            cu_seqlens: addr(&self.cu_seqlens),
            prefix: if self.prefix.is_empty() { Addr::NULL } else { addr(&self.prefix) },
            tokens: self.tokens() as u32,
            seqs: self.case.lengths.len() as u32,
            heads: self.case.heads as u32,
            kv_heads: self.case.kv_heads as u32,
            head_dim: self.case.head_dim as u32,
            causal: self.case.causal as u32,
            scale: self.scale,
            max_seqlen: self.case.lengths.iter().copied().max().unwrap_or(0) as u32,
        }
    }

    fn bwd(&self, o: &Data, lse: &Data, delta: &Data, [dq, dk, dv]: [&Data; 3]) -> BwdParams {
        let p = self.fwd(o.addr(), lse.addr());
        BwdParams {
            q: p.q,
            k: p.k,
            v: p.v,
            o: p.o,
            lse: p.lse,
            d_o: self.d_o.addr(),
            dq: dq.addr(),
            dk: dk.addr(),
            dv: dv.addr(),
            delta: delta.addr(),
            cu_seqlens: p.cu_seqlens,
            prefix: p.prefix,
            tokens: p.tokens,
            seqs: p.seqs,
            heads: p.heads,
            kv_heads: p.kv_heads,
            head_dim: p.head_dim,
            causal: p.causal,
            scale: p.scale,
            max_seqlen: p.max_seqlen,
        }
    }

    fn pairs(&self) -> f64 {
        self.case.pairs()
    }
}

/// The instruction sets that this machine can try.
pub(crate) fn isas() -> impl Iterator<Item = Isa> {
    [Isa::Plain, Isa::Avx2, Isa::Avx512].into_iter().filter(|&i| i <= isa())
}

fn bits(data: &Data) -> Vec<u32> {
    data.values().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn equals_the_formula_on_every_instruction_set() {
    for (dtype, tol) in [(F32, 2e-6f64), (BF16, 4e-3)] {
        for case in cases() {
            let given = Given::new(&case, dtype);
            let (want, want_lse) =
                formula::fwd(&case, &given.q.f64(), &given.k.f64(), &given.v.f64(), given.scale as f64);
            for isa in isas() {
                let (o, lse) = (Data::output(dtype, want.len()), Data::output(F32, want_lse.len()));
                let params = given.fwd(o.addr(), lse.addr());
                let team = Team::new(2);
                // SAFETY: the addresses are those of live arrays of the documented sizes; the machine has `isa`.
                unsafe {
                    match dtype {
                        F32 => cpu::fwd_on::<f32>(isa, &params, &team),
                        _ => cpu::fwd_on::<bf16>(isa, &params, &team),
                    }
                }
                let name = format!("attention {dtype} {isa:?} {case:?}");
                // A saturated softmax passes the rounding of its scores, which are large, on to its output.
                let tol = tol.max(case.spread as f64 * 1e-6);
                assert_close(&name, &o.values(), &want, tol, f64::MAX);
                assert_close(&format!("{name} lse"), &lse.values(), &want_lse, 1e-6, f64::MAX);
            }
        }
    }
}

#[test]
fn the_chain_rule_equals_differences() {
    let (lengths, prefix) = (vec![3, 0, 5, 1], vec![(0, 0), (0, 2), (1, 2), (1, 6)]);
    let case = Case { lengths, heads: 4, kv_heads: 2, head_dim: 6, causal: true, spread: 1.0, prefix: Vec::new() };
    for (causal, prefix) in [(false, &[][..]), (true, &[]), (false, &prefix), (true, &prefix)] {
        let case = Case { causal, prefix: prefix.to_vec(), ..case.clone() };
        let given = Given::new(&case, F32);
        let inputs = [given.q.f64(), given.k.f64(), given.v.f64()];
        let d_o = given.d_o.f64();
        let loss = |x: &[Vec<f64>; 3]| -> f64 {
            formula::fwd(&case, &x[0], &x[1], &x[2], 0.4).0.iter().zip(&d_o).map(|(o, d)| o * d).sum()
        };
        let (o, _) = formula::fwd(&case, &inputs[0], &inputs[1], &inputs[2], 0.4);
        let got = formula::bwd(&case, inputs.each_ref().map(|x| &x[..]), &o, &d_o, 0.4);
        for (which, got) in got.iter().enumerate() {
            let want: Vec<f64> = (0..got.len())
                .map(|i| {
                    let at = |h: f64| {
                        let mut x = inputs.clone();
                        x[which][i] += h;
                        loss(&x)
                    };
                    (at(1e-5) - at(-1e-5)) / 2e-5
                })
                .collect();
            let got: Vec<f32> = got.iter().map(|&x| x as f32).collect();
            assert_close(&format!("gradient {which}, causal {causal}"), &got, &want, 1e-6, f64::MAX);
        }
    }
}

#[test]
fn gradient_equals_the_formula_on_every_instruction_set() {
    for (dtype, tol, tol_exact) in [(F32, 1e-4, 1e-4), (BF16, 4e-3, 2e-2)] {
        for case in cases() {
            let tol_exact = if dtype == BF16 && case.spread > 10.0 { 5e-2 } else { tol_exact };
            let given = Given::new(&case, dtype);
            let rows = given.tokens() * case.heads;
            let (o, lse) = (Data::output(dtype, rows * case.head_dim), Data::output(F32, rows));
            run(&fwd(dtype, &given.fwd(o.addr(), lse.addr()), given.pairs()), 2);
            let (q, k, v, scale) = (given.q.f64(), given.k.f64(), given.v.f64(), given.scale as f64);
            let (exact, _) = formula::fwd(&case, &q, &k, &v, scale);
            // With the output as it was stored, what is left is the rounding of the gradient itself. With the exact
            // output, delta is off by 2^-9 of d_o . o, which a saturated softmax and large queries make the most of.
            let want = formula::bwd(&case, [&q, &k, &v], &o.f64(), &given.d_o.f64(), scale);
            let want_exact = formula::bwd(&case, [&q, &k, &v], &exact, &given.d_o.f64(), scale);
            for isa in isas() {
                let got = want.each_ref().map(|w| Data::output(dtype, w.len()));
                let delta = Data::output(F32, rows);
                let params = given.bwd(&o, &lse, &delta, got.each_ref());
                let team = Team::new(2);
                // SAFETY: the addresses are those of live arrays of the documented sizes; the machine has `isa`.
                unsafe {
                    match dtype {
                        F32 => cpu::bwd_on::<f32>(isa, &params, &team),
                        _ => cpu::bwd_on::<bf16>(isa, &params, &team),
                    }
                }
                for (i, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
                    let (name, got) = (format!("{name} {dtype} {isa:?} {case:?}"), got[i].values());
                    assert_close(&name, &got, &want[i], tol, f64::MAX);
                    assert_close(&name, &got, &want_exact[i], tol_exact, f64::MAX);
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    for dtype in [F32, BF16] {
        for case in cases() {
            let given = Given::new(&case, dtype);
            let want = given.everything(dtype, 1);
            for threads in [2, 3, 6] {
                assert!(given.everything(dtype, threads) == want, "{threads} threads, {dtype} {case:?}");
            }
        }
    }
}

fn random_cases() -> impl Strategy<Value = Case> {
    let heads = (1usize..4, 1usize..4).prop_map(|(kv_heads, group)| (kv_heads * group, kv_heads));
    let lengths = prop::collection::vec((0usize..100, any::<(usize, usize)>()), 1..4);
    (lengths, heads, 1usize..50, any::<(bool, bool)>(), 0.0f32..4.0).prop_map(
        |(lengths, (heads, kv_heads), head_dim, (causal, shared), spread)| {
            let tokens: usize = lengths.iter().map(|l| l.0).sum();
            // A prefix is any range: it may lie in several sequences, or be empty.
            let range =
                |(first, count): (usize, usize)| (first % (tokens + 1), count % (tokens - first % (tokens + 1) + 1));
            let prefix = lengths.iter().filter(|_| shared).map(|l| range(l.1)).collect();
            let lengths = lengths.iter().map(|l| l.0).collect();
            Case { lengths, heads, kv_heads, head_dim, causal, spread, prefix }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Also for odd sizes of a head: no element of a neighbour may slip in.
    #[test]
    fn any_size_equals_the_formula(case in random_cases(), threads in 1usize..4) {
        let given = Given::new(&case, F32);
        let (q, k, v, scale) = (given.q.f64(), given.k.f64(), given.v.f64(), given.scale as f64);
        let (o, lse) = formula::fwd(&case, &q, &k, &v, scale);
        let [dq, dk, dv] = formula::bwd(&case, [&q, &k, &v], &o, &given.d_o.f64(), scale);
        let got = given.everything(F32, threads);
        for (i, want) in [o, lse, dq, dk, dv].iter().enumerate() {
            let got: Vec<f32> = got[i].iter().map(|&x| f32::from_bits(x)).collect();
            let (name, tol) = if i < 2 { ("output", 5e-6) } else { ("gradient", 1e-4) };
            prop_assert!(close(name, &got, want, tol, f64::MAX).is_ok(), "{:?}", close(name, &got, want, tol, f64::MAX));
        }
    }

    /// A sequence's output and gradients have the bits that they have without the other sequences, and with the prefix as
    /// tokens of its own.
    #[test]
    fn sequences_do_not_see_each_other(case in random_cases(), long in 0usize..2, threads in 1usize..4) {
        let mut case = case;
        case.lengths[0] += 500 * long;
        for dtype in [F32, BF16] {
            let given = Given::new(&case, dtype);
            let all = given.everything(dtype, threads);
            for n in 0..case.lengths.len() {
                let alone = given.alone(n, dtype).everything(dtype, 1);
                let (from, to) = (given.cu_seqlens[n] as usize, given.cu_seqlens[n + 1] as usize);
                let (heads, kv_heads, d) = (case.heads, case.kv_heads, case.head_dim);
                let skip = case.keys(n).len() - (to - from);
                // Without causality a prefix's own queries see what comes after it; and who has it in a prefix adds to
                // the gradients of a key.
                let outputs = if case.prefix.is_empty() { 5 } else { 3 };
                for (i, width) in [heads * d, heads, heads * d, kv_heads * d, kv_heads * d].into_iter().enumerate() {
                    if i < outputs {
                        prop_assert!(all[i][from * width..to * width] == alone[i][skip * width..], "sequence {n}, {i}, {dtype}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_log_sum_may_be_left_out() {
    let case = &cases()[0];
    let given = Given::new(case, F32);
    let rows = given.tokens() * case.heads;
    let (with, without) = (Data::output(F32, rows * case.head_dim), Data::output(F32, rows * case.head_dim));
    let lse = Data::output(F32, rows);
    run(&fwd(F32, &given.fwd(with.addr(), lse.addr()), given.pairs()), 2);
    run(&fwd(F32, &given.fwd(without.addr(), Addr::NULL), given.pairs()), 2);
    assert_eq!(bits(&with), bits(&without));
}

#[test]
fn later_tokens_and_other_sequences_change_nothing() {
    let (lengths, prefix) = (vec![150, 70], Vec::new());
    let case = Case { lengths, heads: 6, kv_heads: 2, head_dim: 24, causal: true, spread: 1.0, prefix };
    let (row, kv_row) = (case.heads * case.head_dim, case.kv_heads * case.head_dim);
    for dtype in [F32, BF16] {
        let mut given = Given::new(&case, dtype);
        let o = Data::output(dtype, given.tokens() * row);
        run(&fwd(dtype, &given.fwd(o.addr(), Addr::NULL), given.pairs()), 2);
        let before = bits(&o);
        for cut in [1, 63, 64, 65, 127, 149] {
            let poisoned = |data: &Data, row: usize| {
                let mut values = data.values();
                values[cut * row..].fill(f32::NAN);
                Data::new(dtype, &values)
            };
            let (k, v) = (poisoned(&given.k, kv_row), poisoned(&given.v, kv_row));
            let (k, v) = (std::mem::replace(&mut given.k, k), std::mem::replace(&mut given.v, v));
            run(&fwd(dtype, &given.fwd(o.addr(), Addr::NULL), given.pairs()), 2);
            assert_eq!(bits(&o)[..cut * row], before[..cut * row], "{dtype}, NaN from token {cut} on");
            (given.k, given.v) = (k, v);
        }
    }
}
