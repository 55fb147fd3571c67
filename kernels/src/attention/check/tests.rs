use half::bf16;
use proptest::prelude::*;
use reel_device::Team;
use reel_device::cpu::simd::{Isa, best_isa};

use super::*;
use crate::attention::check::cuda::{output_and_gradient_tolerances, with_fourfold_query_and_key_errors};
use crate::attention::formula::Roundings;
use crate::attention::{cpu, formula};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_close, assert_rounded, rounding_error};

impl Given {
    /// Returns the bits of o, lse, dq, dk and dv, computed on device `cpu`.
    fn everything(&self, dtype: DType, threads: usize) -> [Vec<u32>; 5] {
        self.everything_by(dtype, |launch| run(launch, threads))
    }

    /// Returns what [`Self::everything`] returns, computed by the code for instruction set `isa`.
    fn everything_on(&self, isa: Isa, dtype: DType, threads: usize) -> [Vec<u32>; 5] {
        let (rows, kv_rows) = (self.tokens() * self.case.heads, self.tokens() * self.case.kv_heads);
        let (o, lse) = (TestArray::output(dtype, rows * self.case.head_dim), TestArray::output(F32, rows));
        self.fwd_on(isa, dtype, threads, &o, lse.addr());
        let (o, lse) = (TestArray::new(dtype, &o.values()), TestArray::new(F32, &lse.values()));
        let [dq, dk, dv] = [rows, kv_rows, kv_rows].map(|n| TestArray::output(dtype, n * self.case.head_dim));
        self.bwd_on(isa, dtype, threads, &self.bwd(&o, &lse, &self.scratch(dtype), [&dq, &dk, &dv]));
        [o, lse, dq, dk, dv].each_ref().map(bits)
    }

    fn fwd_on(&self, isa: Isa, dtype: DType, threads: usize, o: &TestArray, lse: Addr) {
        let (params, team) = (self.fwd(o.addr(), lse), Team::new(threads));
        // SAFETY: the addresses belong to live arrays of the documented sizes; the machine supports `isa`.
        unsafe {
            match dtype {
                F32 => cpu::fwd_on::<f32>(isa, &params, &team),
                _ => cpu::fwd_on::<bf16>(isa, &params, &team),
            }
        }
    }

    fn bwd_on(&self, isa: Isa, dtype: DType, threads: usize, params: &BwdParams) {
        self.bwd_with_stored_limit(isa, dtype, threads, params, usize::MAX);
    }

    fn bwd_with_stored_limit(&self, isa: Isa, dtype: DType, threads: usize, params: &BwdParams, max_stored: usize) {
        // SAFETY: the addresses belong to live arrays of the documented sizes; the machine supports `isa`.
        unsafe {
            match dtype {
                F32 => cpu::bwd_with_stored_limit::<f32>(isa, params, &Team::new(threads), max_stored),
                _ => cpu::bwd_with_stored_limit::<bf16>(isa, params, &Team::new(threads), max_stored),
            }
        }
    }

    /// Returns the bits of dq, dk and dv of a backward pass that stores the gradients of the scores if there are at
    /// most `max_stored` of them.
    fn gradients_storing(&self, isa: Isa, dtype: DType, max_stored: usize) -> [Vec<u32>; 3] {
        let (rows, kv_rows) = (self.tokens() * self.case.heads, self.tokens() * self.case.kv_heads);
        let (o, lse) = (TestArray::output(dtype, rows * self.case.head_dim), TestArray::output(F32, rows));
        self.fwd_on(isa, dtype, 2, &o, lse.addr());
        let (o, lse) = (TestArray::new(dtype, &o.values()), TestArray::new(F32, &lse.values()));
        let [dq, dk, dv] = [rows, kv_rows, kv_rows].map(|n| TestArray::output(dtype, n * self.case.head_dim));
        let scratch = self.scratch(dtype);
        self.bwd_with_stored_limit(isa, dtype, 2, &self.bwd(&o, &lse, &scratch, [&dq, &dk, &dv]), max_stored);
        [dq, dk, dv].each_ref().map(bits)
    }
}

/// Returns the instruction sets that this machine can run; AMX tiles are emulated if the processor has none.
pub(crate) fn supported_instruction_sets() -> impl Iterator<Item = Isa> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    let tiles = reel_device::cpu::simd::amx_emulator::install();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    let tiles = false;
    Isa::ALL.into_iter().filter(move |&isa| isa <= best_isa() || isa >= Isa::Amx && tiles)
}

/// Returns where the code for an instruction set rounds: code that multiplies pairs of bf16 rounds probabilities to
/// bf16.
fn roundings(isa: Isa, dtype: DType, head_dim: usize) -> Roundings {
    let pairs = isa >= Isa::Avx512Bf16 && dtype == BF16 && head_dim.is_multiple_of(2);
    if pairs { Roundings::BF16 } else { Roundings::F32 }
}

fn random_cases() -> impl Strategy<Value = PackedBatch> {
    let heads = (1usize..4, 1usize..4).prop_map(|(kv_heads, group)| (kv_heads * group, kv_heads));
    let lengths = prop::collection::vec((0usize..100, any::<(usize, usize)>()), 1..4);
    (lengths, heads, 1usize..50, any::<(bool, bool)>(), 0.0f32..4.0).prop_map(
        |(lengths, (heads, kv_heads), head_dim, (causal, shared), spread)| {
            let tokens: usize = lengths.iter().map(|l| l.0).sum();
            // A prefix is any range of tokens: it may span several sequences, or be empty.
            let range =
                |(first, count): (usize, usize)| (first % (tokens + 1), count % (tokens - first % (tokens + 1) + 1));
            let prefix = lengths.iter().filter(|_| shared).map(|l| range(l.1)).collect();
            let lengths = lengths.iter().map(|l| l.0).collect();
            PackedBatch { lengths, heads, kv_heads, head_dim, causal, spread, prefix }
        },
    )
}

#[test]
fn equals_the_formula_on_every_instruction_set() {
    for dtype in [F32, BF16] {
        for case in test_shapes() {
            let given = Given::new(&case, dtype);
            let (q, k, v, scale) = (given.q.to_f64(), given.k.to_f64(), given.v.to_f64(), given.scale as f64);
            let (want, want_lse) = formula::fwd(&case, &q, &k, &v, scale);
            let lse_bounds = lse_bounds(&case, [&q, &k], scale, &want_lse);
            let rounding_factor =
                if dtype == F32 { output_and_gradient_tolerances(&case)[0] } else { DEFAULT_ROUNDING_FACTOR };
            for isa in supported_instruction_sets() {
                let with = formula::fwd_rounded(&case, &q, &k, &v, scale, roundings(isa, dtype, case.head_dim));
                let (o, lse) = (TestArray::output(dtype, want.len()), TestArray::output(F32, want_lse.len()));
                given.fwd_on(isa, dtype, 2, &o, lse.addr());
                let name = format!("attention {dtype} {isa:?} {case:?}");
                assert_rounded(&name, dtype, &o.values(), &with, &want, rounding_factor);
                assert_close(&format!("{name} lse"), &lse.values(), &want_lse, 1e-6, |i| lse_bounds[i]);
            }
        }
    }
}

#[test]
fn the_chain_rule_equals_differences() {
    let (lengths, prefix) = (vec![3, 0, 5, 1], vec![(0, 0), (0, 2), (1, 2), (1, 6)]);
    let case =
        PackedBatch { lengths, heads: 4, kv_heads: 2, head_dim: 6, causal: true, spread: 1.0, prefix: Vec::new() };
    for (causal, prefix) in [(false, &[][..]), (true, &[]), (false, &prefix), (true, &prefix)] {
        let case = PackedBatch { causal, prefix: prefix.to_vec(), ..case.clone() };
        let given = Given::new(&case, F32);
        let inputs = [given.q.to_f64(), given.k.to_f64(), given.v.to_f64()];
        let d_o = given.d_o.to_f64();
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
            // The error of rounding `got` to f32 (relative), plus the error of the numerical differences (absolute).
            let bound = |i: usize| 1e-7 * want[i].abs() + 1e-8;
            assert_close(&format!("gradient {which}, causal {causal}"), &got, &want, 1e-6, bound);
        }
    }
}

#[test]
fn gradient_equals_the_formula_on_every_instruction_set() {
    for (dtype, tol_exact) in [(F32, 1e-4), (BF16, 2e-2)] {
        for case in test_shapes() {
            let tol_exact = if dtype == BF16 && case.spread > 10.0 { 5e-2 } else { tol_exact };
            let given = Given::new(&case, dtype);
            let rows = given.tokens() * case.heads;
            let (o, lse) = (TestArray::output(dtype, rows * case.head_dim), TestArray::output(F32, rows));
            run(&fwd(dtype, &given.fwd(o.addr(), lse.addr()), given.query_key_pair_count()), 2);
            let (q, k, v, scale) = (given.q.to_f64(), given.k.to_f64(), given.v.to_f64(), given.scale as f64);
            let (exact, _) = formula::fwd(&case, &q, &k, &v, scale);
            // The formula uses the stored (rounded) output, so that the comparison shows only roundings of the
            // gradients. With the exact output, delta would differ by 2^-9 of d_o . o, which a saturated softmax and
            // large queries amplify.
            let want = formula::bwd(&case, [&q, &k, &v], &o.to_f64(), &given.d_o.to_f64(), scale);
            let rounding_factor =
                if dtype == F32 { output_and_gradient_tolerances(&case)[1] } else { DEFAULT_ROUNDING_FACTOR };
            let want_exact = formula::bwd(&case, [&q, &k, &v], &exact, &given.d_o.to_f64(), scale);
            let bounds = error_bounds(dtype, &case, [&q, &k, &v], &given.d_o.to_f64(), scale);
            for isa in supported_instruction_sets() {
                let roundings = roundings(isa, dtype, case.head_dim);
                let with =
                    formula::bwd_rounded(&case, [&q, &k, &v], &o.to_f64(), &given.d_o.to_f64(), scale, roundings);
                let with = with_fourfold_query_and_key_errors(with, &want);
                let got = want.each_ref().map(|w| TestArray::output(dtype, w.len()));
                let scratch = given.scratch(dtype);
                given.bwd_on(isa, dtype, 2, &given.bwd(&o, &lse, &scratch, got.each_ref()));
                for (i, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
                    let (name, got) = (format!("{name} {dtype} {isa:?} {case:?}"), got[i].values());
                    assert_rounded(&name, dtype, &got, &with[i], &want[i], rounding_factor);
                    assert_close(&name, &got, &want_exact[i], tol_exact, |at| bounds[2 + i][at]);
                }
            }
        }
    }
}

#[test]
fn hidden_keys_change_nothing_on_any_instruction_set() {
    let (lengths, prefix) = (vec![150, 70], Vec::new());
    let case = PackedBatch { lengths, heads: 6, kv_heads: 2, head_dim: 24, causal: true, spread: 1.0, prefix };
    for (isa, dtype) in supported_instruction_sets().flat_map(|isa| [(isa, F32), (isa, BF16)]) {
        // AMX tiles multiply hidden keys and values by 0, and 0 times NaN is NaN, so they get a finite number.
        let poison = if isa >= Isa::Amx && dtype == BF16 { 1e18 } else { f32::NAN };
        let rows = 220 * case.heads * case.head_dim;
        for cut in [1, 63, 64, 65, 149] {
            let mut given = Given::new(&case, dtype);
            let [before, after] = [(); 2].map(|()| TestArray::output(dtype, rows));
            given.fwd_on(isa, dtype, 2, &before, Addr::NULL);
            let row = case.kv_heads * case.head_dim;
            for x in [&mut given.k, &mut given.v] {
                let mut values = x.values();
                values[cut * row..].fill(poison);
                *x = TestArray::new(dtype, &values);
            }
            given.fwd_on(isa, dtype, 2, &after, Addr::NULL);
            let seen = cut * case.heads * case.head_dim;
            assert!(
                bits(&before)[..seen] == bits(&after)[..seen],
                "{isa:?} {dtype}: keys from {cut} on change outputs of earlier queries"
            );
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    for dtype in [F32, BF16] {
        for case in test_shapes() {
            let given = Given::new(&case, dtype);
            let want = given.everything(dtype, 1);
            for threads in [2, 3, 6] {
                assert!(
                    given.everything(dtype, threads) == want,
                    "other bits with {threads} threads, {dtype} {case:?}"
                );
            }
        }
    }
}

const OUTPUTS: [&str; 5] = ["o", "lse", "dq", "dk", "dv"];

/// Returns, for each element of o, lse, dq, dk and dv of arrays of `dtype`, an upper bound of the error of f32
/// arithmetic, to first order and for any order of summation. In bf16 the factors of products (probabilities and
/// gradients of scores) and the results may be rounded to bf16 as well. A sum of n products a b, computed in any order,
/// is off by at most n u sum |a b| with u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, section
/// 3.1).
///
/// A fixed relative tolerance does not fit every case: where the softmax is saturated, gradients are small
/// differences of large numbers.
fn error_bounds(dtype: DType, case: &PackedBatch, [q, k, v]: [&[f64]; 3], d_o: &[f64], scale: f64) -> [Vec<f64>; 5] {
    const U: f64 = 1.1 / (1u64 << 24) as f64;
    /// Absolute error per operation, because some results below f32's smallest normal number, 1.2e-38, become 0.
    const UNDERFLOW: f64 = 1e-36;
    let stored = if dtype == BF16 { 2.0 * rounding_error(BF16) } else { 0.0 };
    let d = case.head_dim;
    let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
    let dot_abs = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| (x * y).abs()).sum() };
    // Relative error of a score: a dot product over head_dim, the scale, the change to base 2, and the rescaling when
    // the maximum grows.
    let head = (d + 16) as f64 * U;
    // Relative error of a sum over all query rows that may see one key.
    let queries_u = (case.lengths.iter().sum::<usize>() * case.heads / case.kv_heads + 8) as f64 * U;
    let (o, lse) = formula::fwd(case, q, k, v, scale);
    let mut bounds = [o.len(), lse.len(), q.len(), k.len(), v.len()].map(|n| vec![0.0; n]);
    for (row, keys) in formula::visible_keys_per_query_row(case) {
        let (a, keys_u) = (row * d, (keys.len() + 8) as f64 * U);
        let (q, d_o, o) = (&q[a..a + d], &d_o[a..a + d], &o[a..a + d]);
        let score_off: Vec<f64> = keys.iter().map(|&b| head * scale * dot_abs(q, &k[b..b + d])).collect();
        let lse_off = score_off.iter().copied().fold(0.0, f64::max) + keys_u + 2.0 * U * lse[row].abs();
        bounds[1][row] = lse_off;
        // `p`: the probability of each key. `p_off`: the bound of its error, from the errors of the exponent and of the
        // exponential.
        let p: Vec<f64> = keys.iter().map(|&b| (scale * dot(q, &k[b..b + d]) - lse[row]).exp()).collect();
        let p_off: Vec<f64> = p.iter().zip(&score_off).map(|(p, s)| p * (s + lse_off + 8.0 * U) + UNDERFLOW).collect();
        for (j, &b) in keys.iter().enumerate() {
            (0..d).for_each(|c| bounds[0][a + c] += (p_off[j] + (keys_u + stored) * p[j]) * v[b + c].abs() + UNDERFLOW);
        }
        let delta_off = dot_abs(d_o, &bounds[0][a..a + d]) + head * dot_abs(d_o, o);
        for (j, &b) in keys.iter().enumerate() {
            let slope = (dot(d_o, &v[b..b + d]) - dot(d_o, o)).abs();
            let slope_off = head * dot_abs(d_o, &v[b..b + d]) + delta_off + U * slope;
            let ds = scale * p[j] * slope;
            let ds_off = scale * (p_off[j] * slope + p[j] * slope_off) + UNDERFLOW;
            for c in 0..d {
                bounds[2][a + c] += (ds_off + (keys_u + stored) * ds) * k[b + c].abs() + UNDERFLOW;
                bounds[3][b + c] += (ds_off + (queries_u + stored) * ds) * q[c].abs() + UNDERFLOW;
                bounds[4][b + c] += (p_off[j] + (queries_u + stored) * p[j]) * d_o[c].abs() + UNDERFLOW;
            }
        }
    }
    bounds
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Covers odd head_dims, for which a kernel could read elements of a neighbouring head.
    #[test]
    fn any_size_equals_the_formula(case in random_cases(), threads in 1usize..4) {
        let given = Given::new(&case, F32);
        let (q, k, v, scale) = (given.q.to_f64(), given.k.to_f64(), given.v.to_f64(), given.scale as f64);
        let d_o = given.d_o.to_f64();
        let (o, lse) = formula::fwd(&case, &q, &k, &v, scale);
        let [dq, dk, dv] = formula::bwd(&case, [&q, &k, &v], &o, &d_o, scale);
        let bounds = error_bounds(F32, &case, [&q, &k, &v], &d_o, scale);
        let got = given.everything(F32, threads);
        for (name, ((got, want), bound)) in OUTPUTS.iter().zip(got.iter().zip([o, lse, dq, dk, dv]).zip(bounds)) {
            for (i, ((&got, want), bound)) in got.iter().zip(want).zip(bound).enumerate() {
                let got = f32::from_bits(got);
                let error = (f64::from(got) - want).abs();
                prop_assert!(error <= bound, "{name}[{i}]: {got}, want {want}, off by {error:e}, more than {bound:e}");
            }
        }
    }

    /// The results have the same bits whether the backward pass stores the gradients of the scores or computes them
    /// twice. The memory for stored gradients is reused and still holds gradients of an earlier batch.
    #[test]
    fn stored_gradients_of_scores_change_no_bit(
        case in random_cases(),
        long in 0usize..2,
        isa in prop::sample::select(supported_instruction_sets().collect::<Vec<_>>()),
    ) {
        let mut case = case;
        case.lengths[0] += 150 * long;
        for dtype in [F32, BF16] {
            let given = Given::new(&case, dtype);
            let [computed, stored] = [0, usize::MAX].map(|most| given.gradients_storing(isa, dtype, most));
            prop_assert!(computed == stored, "{dtype} {isa:?}");
        }
    }

    /// A sequence's output and gradients have the same bits without the other sequences, and with its prefix copied
    /// to its own first tokens.
    #[test]
    fn sequences_do_not_see_each_other(
        case in random_cases(),
        long in 0usize..2,
        threads in 1usize..4,
        isa in prop::sample::select(supported_instruction_sets().collect::<Vec<_>>()),
    ) {
        let mut case = case;
        case.lengths[0] += 200 * long;
        for dtype in [F32, BF16] {
            let given = Given::new(&case, dtype);
            let all = given.everything_on(isa, dtype, threads);
            for n in 0..case.lengths.len() {
                let alone = given.alone(n, dtype).everything_on(isa, dtype, 1);
                let (from, to) = (given.cu_seqlens[n] as usize, given.cu_seqlens[n + 1] as usize);
                let (heads, kv_heads, d) = (case.heads, case.kv_heads, case.head_dim);
                let skip = case.visible_tokens(n).len() - (to - from);
                // With a prefix only o, lse and dq are compared. dk and dv differ: each sequence with a key in its
                // prefix adds to the key's gradients, and without causal attention the prefix's own queries see the
                // keys after it.
                let outputs = if case.prefix.is_empty() { 5 } else { 3 };
                for (i, width) in [heads * d, heads, heads * d, kv_heads * d, kv_heads * d].into_iter().enumerate() {
                    if i < outputs {
                        prop_assert!(all[i][from * width..to * width] == alone[i][skip * width..], "sequence {n} alone differs in output {i} (o, lse, dq, dk, dv): {dtype} {isa:?}");
                    }
                }
            }
        }
    }
}
