use bytemuck::Zeroable;
use reel_device::DType::{self, BF16, F32};

use super::{MAX_HEAD_DIM, Params, formula, write};
use crate::checks::{RandomChoices, TestArray, checks, normal_numbers, rounding, run, runs_cuda_code};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};
use crate::rope_kv_write::check::Case;
use crate::rope_kv_write::formula::HeadShape;
use crate::{rms_norm, rope_kv_write};

checks!(equals_the_formula_and_writes_nothing_else, has_the_bits_of_rms_norm_and_rope_kv_write);

const EPS: f32 = 1e-6;
/// Tolerance in f32, as a multiple of the error of one rounding: that of rms_norm.
const ROUNDING_FACTOR_F32: f64 = 12.0;

/// Returns the weights of the norms of q and of k.
fn norms(dtype: DType, head_dim: usize) -> [TestArray; 2] {
    [7, 8].map(|seed| TestArray::new(dtype, &normal_numbers(head_dim, seed, 1.0)))
}

fn params(case: &Case, [q_norm, k_norm]: &[TestArray; 2]) -> Params {
    let p = case.params();
    Params {
        q: p.q,
        k: p.k,
        v: p.v,
        q_norm: q_norm.addr(),
        k_norm: k_norm.addr(),
        cos: p.cos,
        sin: p.sin,
        k_cache: p.k_cache,
        v_cache: p.v_cache,
        slots: p.slots,
        tokens: p.tokens,
        heads: p.heads,
        kv_heads: p.kv_heads,
        head_dim: p.head_dim,
        pages: p.pages,
        page_tokens: p.page_tokens,
        eps: EPS,
        reserved: 0,
    }
}

fn equals_the_formula_and_writes_nothing_else() {
    let mut picks = RandomChoices::new(4);
    for _ in 0..if runs_cuda_code() { 8 } else { 40 } {
        for dtype in [F32, BF16] {
            let case = Case::random(&mut picks, dtype);
            let weights = norms(dtype, case.shape.head_dim);
            let [q, k, v, kc, vc] = [&case.q, &case.k, &case.v, &case.k_cache, &case.v_cache].map(TestArray::to_f64);
            let [cos, sin, of_q, of_k] = [&case.cos, &case.sin, &weights[0], &weights[1]].map(TestArray::to_f64);
            let want = |rstd: fn(&[f64], f64) -> f64, round: fn(f64) -> f64, to_dtype: fn(f64) -> f64| {
                let normed = |x: &[f64], w: &[f64]| formula::normalise(x, w, |x| rstd(x, EPS.into()), to_dtype);
                let (q, k) = (normed(&q, &of_q), normed(&k, &of_k));
                rope_kv_write::formula::write([&q, &k, &v], [&cos, &sin], [&kc, &vc], &case.slots, case.shape, round)
            };
            let to_dtype = if dtype == BF16 { rounding::bf16 } else { rounding::f32 };
            let with = want(rms_norm::formula::rstd_rounded, rounding::f32, to_dtype);
            let want = want(rms_norm::formula::rstd, rounding::unrounded, rounding::unrounded);
            run(&write(dtype, &params(&case, &weights)), picks.integer_between(1, 4));
            let name = format!("{:?} {} tokens", case.shape, case.slots.len());
            let factor = if dtype == F32 { ROUNDING_FACTOR_F32 } else { DEFAULT_ROUNDING_FACTOR };
            assert_rounded(&name, dtype, &case.q.values(), &with.q, &want.q, factor);
            assert_rounded(&name, dtype, &case.k_cache.values(), &with.k_cache, &want.k_cache, factor);
            assert_eq!(case.v_cache.to_f64(), want.v_cache, "{name}");
            // Cache rows that belong to no token keep their bits.
            let row = case.shape.kv_heads * case.shape.head_dim;
            for (i, (now, before)) in case.k_cache.to_f64().chunks(row).zip(kc.chunks(row)).enumerate() {
                assert!(case.slots.contains(&(i as i32)) || now == before, "{name}: row {i}");
            }
        }
    }
}

fn has_the_bits_of_rms_norm_and_rope_kv_write() {
    for (dtype, head_dim) in [F32, BF16].into_iter().flat_map(|dtype| [64, 80, 128, 512].map(|d| (dtype, d))) {
        assert!(head_dim <= MAX_HEAD_DIM as usize);
        let (shape, weights) = (HeadShape { heads: 14, kv_heads: 2, head_dim }, norms(dtype, head_dim));
        for tokens in [1, 33] {
            let [case, other] = [(); 2].map(|()| Case::new(&mut RandomChoices::new(2), dtype, tokens, shape));
            run(&write(dtype, &params(&case, &weights)), 3);
            let [q, k] = [(&other.q, &weights[0]), (&other.k, &weights[1])].map(|(x, w)| {
                let count = x.values().len();
                let y = TestArray::output(dtype, count);
                let (rows, cols) = ((count / head_dim) as u32, head_dim as u32);
                let [x, w, y_addr] = [x, w, &y].map(TestArray::addr);
                let norm = rms_norm::FwdParams { x, w, y: y_addr, rows, cols, eps: EPS, ..Zeroable::zeroed() };
                run(&rms_norm::fwd(dtype, &norm), 2);
                y
            });
            run(&rope_kv_write::write(dtype, &rope_kv_write::Params { q: q.addr(), k: k.addr(), ..other.params() }), 3);
            let bits = |x: &TestArray| x.values().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let written = [(&case.q, &q), (&case.k_cache, &other.k_cache), (&case.v_cache, &other.v_cache)];
            for (got, want) in written {
                assert_eq!(bits(got), bits(want), "{dtype}, {tokens} tokens, heads of {head_dim}");
            }
        }
    }
}
