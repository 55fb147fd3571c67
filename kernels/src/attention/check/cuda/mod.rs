//! Checks of the attention kernels in CUDA, on the simulator or on a GPU.

pub(super) mod backward_wgmma;
pub(super) mod many_tiles;
#[cfg(test)]
mod tile_order;
pub(super) mod wgmma;

use reel_device::DType::{self, BF16, F32};
use reel_device::{Addr, Arch};

use super::{Given, bits, lse_bounds, test_shapes};
use crate::attention::formula::Roundings;
use crate::attention::plan::has_tensor_core_backward;
use crate::attention::{PackedBatch, bwd, formula, fwd};
use crate::checks::{TestArray, addr, run, run_once, with_only_gpu};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_close, assert_rounded};
use crate::paged_attention;

fn equals_the_formula(dtype: DType) {
    for case in test_shapes() {
        let (given, name) = (Given::new(&case, dtype), format!("{dtype} {case:?}"));
        let rows = given.tokens() * case.heads;
        let (q, k, v, scale) = (given.q.to_f64(), given.k.to_f64(), given.v.to_f64(), given.scale as f64);
        let (want, want_lse) = formula::fwd(&case, &q, &k, &v, scale);
        let (o, lse) = (TestArray::output(dtype, rows * case.head_dim), TestArray::output(F32, rows));
        run(&fwd(dtype, &given.fwd(o.addr(), lse.addr()), given.query_key_pair_count()), 1);
        let bounds = lse_bounds(&case, [&q, &k], scale, &want_lse);
        assert_close(&format!("lse {name}"), &lse.values(), &want_lse, 1e-6, |i| bounds[i]);
        let (o, lse) = (TestArray::new(dtype, &o.values()), TestArray::new(F32, &lse.values()));
        let (d_o, scratch) = (given.d_o.to_f64(), given.scratch(dtype));
        let want_grads = formula::bwd(&case, [&q, &k, &v], &o.to_f64(), &d_o, scale);
        let grads = want_grads.each_ref().map(|w| TestArray::output(dtype, w.len()));
        let gradient = given.bwd(&o, &lse, &scratch, grads.each_ref());
        run(&bwd(dtype, &gradient, given.query_key_pair_count()), 1);
        let f32 = dtype == F32;
        let roundings = if f32 { Roundings::F32 } else { Roundings::BF16 };
        let [of_o, of_gradient] =
            if f32 { output_and_gradient_tolerances(&case) } else { [DEFAULT_ROUNDING_FACTOR; 2] };
        let with = formula::fwd_rounded(&case, &q, &k, &v, scale, roundings);
        assert_rounded(&format!("o {name}"), dtype, &o.values(), &with, &want, of_o);
        let with = match f32 || has_tensor_core_backward(case.head_dim as u32) {
            true => formula::bwd_rounded(&case, [&q, &k, &v], &o.to_f64(), &d_o, scale, roundings),
            false => want_grads.clone(),
        };
        let with = if f32 { with_fourfold_query_and_key_errors(with, &want_grads) } else { with };
        for (i, which) in ["dq", "dk", "dv"].into_iter().enumerate() {
            let got = grads[i].values();
            assert_rounded(&format!("{which} {name}"), dtype, &got, &with[i], &want_grads[i], of_gradient);
        }
    }
}

/// Returns the tolerances of o and of the gradients in f32, as multiples of the error of one rounding. Each element of
/// o is a sum over head_dim and the keys, a gradient is the difference of two such sums, and a saturated softmax
/// amplifies the rounding errors of its large scores.
pub(super) fn output_and_gradient_tolerances(case: &PackedBatch) -> [f64; 2] {
    let saturated = f64::from(case.spread / 2.0).max(1.0);
    [20.0 * saturated, 300.0 * saturated]
}

/// Returns the gradients `rounded` (dq, dk, dv) after multiplying the differences of dq and dk from `exact` by four.
/// A kernel that sums in another order gets a slightly different delta for a row, which shifts the whole row of dq
/// and dk. Rows with an outlier have most of this error.
pub(super) fn with_fourfold_query_and_key_errors(rounded: [Vec<f64>; 3], exact: &[Vec<f64>; 3]) -> [Vec<f64>; 3] {
    let [dq, dk, dv] = rounded;
    let wide = |x: Vec<f64>, exact: &[f64]| x.iter().zip(exact).map(|(x, e)| e + 4.0 * (x - e)).collect();
    [wide(dq, &exact[0]), wide(dk, &exact[1]), dv]
}

// The checks below simulate an A100. On an H100 the plan chooses wgmma kernels, which separate checks compare.

pub(super) fn equals_the_formula_in_f32() {
    with_only_gpu(Arch::A100, || equals_the_formula(F32));
}

pub(super) fn equals_the_formula_in_bf16() {
    with_only_gpu(Arch::A100, || equals_the_formula(BF16));
}

pub(super) fn other_sequences_and_how_a_prefix_is_given_change_no_bit() {
    with_only_gpu(Arch::A100, every_row_is_independent);
}

fn every_row_is_independent() {
    let case = |lengths: &[usize], prefix: &[(usize, usize)], head_dim, causal| PackedBatch {
        lengths: lengths.to_vec(),
        heads: 2,
        kv_heads: 1,
        head_dim,
        causal,
        spread: 1.0,
        prefix: prefix.to_vec(),
    };
    let cases = [
        case(&[3, 70, 0, 17], &[], 64, true),
        case(&[65, 2], &[], 80, false),
        case(&[70, 5, 66], &[(0, 0), (0, 70), (1, 64)], 64, true),
        case(&[530, 9], &[(0, 0), (0, 529)], 72, true),
        case(&[40, 30], &[(0, 0), (2, 37)], 20, false),
    ];
    for (case, dtype) in cases.iter().flat_map(|c| [(c, F32), (c, BF16)]) {
        let mut given = Given::new(case, dtype);
        let all = given.everything_by(dtype, run_once);
        let (heads, kv_heads, d) = (case.heads, case.kv_heads, case.head_dim);
        for n in (0..case.lengths.len()).filter(|&n| case.lengths[n] > 0) {
            let alone = given.alone(n, dtype).everything_by(dtype, run_once);
            let (from, to) = (given.cu_seqlens[n] as usize, given.cu_seqlens[n + 1] as usize);
            let skip = case.visible_tokens(n).len() - (to - from);
            let outputs = if case.prefix.is_empty() { 5 } else { 3 };
            let widths = [heads * d, heads, heads * d, kv_heads * d, kv_heads * d];
            for (i, width) in widths.into_iter().enumerate().take(outputs) {
                assert!(
                    all[i][from * width..to * width] == alone[i][skip * width..],
                    "sequence {n} alone differs in output {i} (o, lse, dq, dk, dv): {dtype} {case:?}"
                );
            }
        }
        if case.prefix.is_empty() {
            // Even if the operands of the last sequence are NaN or infinite, the results of all other sequences stay
            // the same.
            let last = given.cu_seqlens[case.lengths.len() - 1] as usize;
            let poisoned = |data: &TestArray, row: usize| {
                let mut values = data.values();
                values[last * row..].fill(f32::NAN);
                TestArray::new(dtype, &values)
            };
            (given.k, given.v) = (poisoned(&given.k, kv_heads * d), poisoned(&given.v, kv_heads * d));
            let with = given.everything_by(dtype, run_once);
            assert!(with[0][..last * heads * d] == all[0][..last * heads * d], "{dtype} {case:?}");
            assert!(with[3][..last * kv_heads * d] == all[3][..last * kv_heads * d], "{dtype} {case:?}");
        }
    }
}

pub(super) fn paged_and_packed_kernels_give_the_same_bits() {
    let sizes = [(70usize, 64usize), (70, 20), (66, 72), (530, 64), (66, 128), (40, 256), (33, 7)];
    for ((len, head_dim), dtype) in sizes.into_iter().flat_map(|s| [(s, F32), (s, BF16)]) {
        let (heads, prefix) = (2, Vec::new());
        let case = PackedBatch { lengths: vec![len], heads, kv_heads: 1, head_dim, causal: true, spread: 1.0, prefix };
        let given = Given::new(&case, dtype);
        let (o, paged_o) =
            (TestArray::output(dtype, len * heads * head_dim), TestArray::output(dtype, len * heads * head_dim));
        run_once(&fwd(dtype, &given.fwd(o.addr(), Addr::NULL), given.query_key_pair_count()));
        let (pages, lens) = (len.div_ceil(64), [len as i32]);
        let table: Vec<i32> = (0..pages as i32).collect();
        let cache = |data: &TestArray| {
            let mut values = data.values();
            values.resize(pages * 64 * head_dim, f32::NAN);
            TestArray::new(dtype, &values)
        };
        let (k_cache, v_cache) = (cache(&given.k), cache(&given.v));
        let p = paged_attention::Params {
            q: given.q.addr(),
            k_cache: k_cache.addr(),
            v_cache: v_cache.addr(),
            o: paged_o.addr(),
            cu_seqlens: addr(&given.cu_seqlens),
            kv_lens: addr(&lens),
            block_tables: addr(&table),
            workspace: Addr::NULL,
            counters: Addr::NULL,
            tokens: len as u32,
            seqs: 1,
            heads: heads as u32,
            kv_heads: 1,
            head_dim: head_dim as u32,
            max_blocks: pages as u32,
            scale: given.scale,
            max_kv_len: len as u32,
            page_tokens: 64,
            ..paged_attention::Params::EMPTY
        };
        run_once(&paged_attention::fwd(dtype, &p, given.query_key_pair_count(), len as f64));
        assert!(
            bits(&o) == bits(&paged_o),
            "paged and packed outputs differ: {dtype}, {len} keys, head_dim {head_dim}"
        );
    }
}

#[cfg(test)]
mod tests;
