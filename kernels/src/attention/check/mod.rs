#![allow(unsafe_code)]

mod cuda;

use reel_device::DType::{self, BF16, F32};
use reel_device::cpu::simd::{Isa, isa};
use reel_device::{Addr, Launch};

use super::{BwdParams, FwdParams, KeyParts, PackedBatch, bwd, formula, fwd, plan, test_shapes};
use crate::checks::{TestArray, addr, checks, normal_numbers, run, runs_cuda_code};
use crate::compare::{F32_HALF_ULP, f32_sum_error};
use cuda::backward_wgmma::{
    gradients_by_products_of_warpgroups_equal_the_formula,
    other_sequences_and_the_grid_change_no_bit_of_gradients_by_products_of_warpgroups,
    other_sequences_that_are_not_finite_change_no_gradient_by_products_of_warpgroups,
};
use cuda::many_tiles::products_of_warps_and_of_warpgroups_agree_over_many_tiles;
use cuda::wgmma::{
    keys_and_values_of_no_query_change_nothing, keys_and_values_of_other_windows_change_nothing,
    other_sequences_and_prefixes_change_no_bit_of_products_of_warpgroups, products_of_warpgroups_equal_the_formula,
};
use cuda::{
    equals_the_formula_in_bf16, equals_the_formula_in_f32, other_sequences_and_how_a_prefix_is_given_change_no_bit,
    paged_and_packed_kernels_give_the_same_bits,
};

checks!(
    the_log_sum_may_be_left_out,
    later_tokens_and_other_sequences_change_nothing;
    cuda: equals_the_formula_in_f32,
    equals_the_formula_in_bf16,
    other_sequences_and_how_a_prefix_is_given_change_no_bit,
    paged_and_packed_kernels_give_the_same_bits,
    products_of_warpgroups_equal_the_formula,
    other_sequences_and_prefixes_change_no_bit_of_products_of_warpgroups,
    keys_and_values_of_no_query_change_nothing,
    keys_and_values_of_other_windows_change_nothing,
    gradients_by_products_of_warpgroups_equal_the_formula,
    other_sequences_and_the_grid_change_no_bit_of_gradients_by_products_of_warpgroups,
    other_sequences_that_are_not_finite_change_no_gradient_by_products_of_warpgroups,
    products_of_warps_and_of_warpgroups_agree_over_many_tiles,
);

/// A batch with its operands q, k, v and d_o.
struct Given {
    case: PackedBatch,
    cu_seqlens: Vec<i32>,
    prefix: Vec<i32>,
    q: TestArray,
    k: TestArray,
    v: TestArray,
    d_o: TestArray,
    /// One word, 0 before and after each forward launch.
    tile_counter: TestArray,
    scale: f32,
}

/// Returns bounds of the errors of `lse`, the log-sum-exp of each query row. An error of the largest score shifts `lse`
/// by as much; a relative error of the sum over the keys becomes an absolute error of its logarithm. Tensor cores
/// truncate sums, so the bounds are doubled.
fn lse_bounds(case: &PackedBatch, [q, k]: [&[f64]; 2], scale: f64, lse: &[f64]) -> Vec<f64> {
    let d = case.head_dim;
    let bound = |(row, keys): (usize, Vec<usize>)| {
        let size = |&key: &usize| (0..d).map(|c| (q[row * d + c] * k[key + c]).abs()).sum::<f64>();
        let score = scale * keys.iter().map(size).fold(0.0, f64::max);
        2.0 * (f32_sum_error(d, score) + f32_sum_error(keys.len(), 1.0) + F32_HALF_ULP * lse[row].abs())
    };
    formula::visible_keys_per_query_row(case).map(bound).collect()
}

impl Given {
    fn new(case: &PackedBatch, dtype: DType) -> Given {
        let tokens: usize = case.lengths.iter().sum();
        let (n, kv) = (tokens * case.heads * case.head_dim, tokens * case.kv_heads * case.head_dim);
        let mut cu_seqlens = vec![0];
        for &len in &case.lengths {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + len as i32);
        }
        let data = |count, seed, spread| TestArray::new(dtype, &normal_numbers(count, seed, spread));
        Given {
            case: case.clone(),
            cu_seqlens,
            prefix: case.prefix.iter().flat_map(|&(first, count)| [first as i32, count as i32]).collect(),
            q: data(n, 1, case.spread),
            k: data(kv, 2, 1.0),
            v: data(kv, 3, 1.0),
            d_o: data(n, 4, 1.0),
            tile_counter: TestArray::new(F32, &[0.0]),
            scale: (case.head_dim as f32).powf(-0.5),
        }
    }

    /// Returns a batch that holds only sequence `n`. The tokens of its prefix become the first tokens of the sequence.
    fn alone(&self, n: usize, dtype: DType) -> Given {
        let tokens = self.case.visible_tokens(n);
        let case = PackedBatch { lengths: vec![tokens.len()], prefix: Vec::new(), ..self.case.clone() };
        let mut given = Given::new(&case, dtype);
        let (row, kv_row) = (case.heads * case.head_dim, case.kv_heads * case.head_dim);
        let pick = |data: &TestArray, row: usize| {
            let values = data.values();
            let rows = tokens.iter().flat_map(|t| values[t * row..(t + 1) * row].iter().copied());
            TestArray::new(dtype, &rows.collect::<Vec<_>>())
        };
        (given.q, given.d_o) = (pick(&self.q, row), pick(&self.d_o, row));
        (given.k, given.v) = (pick(&self.k, kv_row), pick(&self.v, kv_row));
        given
    }

    /// Runs the forward and the backward launch with `run` and returns the bits of o, lse, dq, dk and dv.
    fn everything_by(&self, dtype: DType, run: impl Fn(&Launch)) -> [Vec<u32>; 5] {
        let (rows, kv_rows) = (self.tokens() * self.case.heads, self.tokens() * self.case.kv_heads);
        let (o, lse) = (TestArray::output(dtype, rows * self.case.head_dim), TestArray::output(F32, rows));
        run(&fwd(dtype, &self.fwd(o.addr(), lse.addr()), self.query_key_pair_count()));
        let (o, lse) = (TestArray::new(dtype, &o.values()), TestArray::new(F32, &lse.values()));
        let [dq, dk, dv] = [rows, kv_rows, kv_rows].map(|n| TestArray::output(dtype, n * self.case.head_dim));
        let scratch = self.scratch(dtype);
        run(&bwd(dtype, &self.bwd(&o, &lse, &scratch, [&dq, &dk, &dv]), self.query_key_pair_count()));
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
            tile_counter: self.tile_counter.addr(),
            tokens: self.tokens() as u32,
            seqs: self.case.lengths.len() as u32,
            heads: self.case.heads as u32,
            kv_heads: self.case.kv_heads as u32,
            head_dim: self.case.head_dim as u32,
            causal: self.case.causal as u32,
            scale: self.scale,
            max_seqlen: self.case.lengths.iter().copied().max().unwrap_or(0) as u32,
            ..FwdParams::EMPTY
        }
    }

    /// Returns the arrays for delta and for the workspace of the backward launch.
    fn scratch(&self, dtype: DType) -> [TestArray; 2] {
        self.scratch_in_parts(dtype, KeyParts::OF_TRAINING)
    }

    fn scratch_in_parts(&self, dtype: DType, parts: KeyParts) -> [TestArray; 2] {
        let FwdParams { tokens, seqs, heads, kv_heads, head_dim, max_seqlen, .. } = self.fwd(Addr::NULL, Addr::NULL);
        let p = BwdParams { tokens, seqs, heads, kv_heads, head_dim, max_seqlen, ..BwdParams::EMPTY };
        let is_used = dtype == BF16 && plan::has_wgmma_backward(head_dim);
        let workspace = if is_used { parts.workspace_bytes(&p) } else { 0 };
        [TestArray::output(F32, self.tokens() * self.case.heads), TestArray::output(F32, workspace / 4)]
    }

    fn bwd(
        &self,
        o: &TestArray,
        lse: &TestArray,
        [delta, sums]: &[TestArray; 2],
        [dq, dk, dv]: [&TestArray; 3],
    ) -> BwdParams {
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
            workspace: if sums.values().is_empty() { Addr::NULL } else { sums.addr() },
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
            ..BwdParams::EMPTY
        }
    }

    fn query_key_pair_count(&self) -> f64 {
        self.case.query_key_pair_count()
    }
}

pub(crate) fn bits(data: &TestArray) -> Vec<u32> {
    data.values().iter().map(|x| x.to_bits()).collect()
}

fn the_log_sum_may_be_left_out() {
    let case = &test_shapes()[0];
    let given = Given::new(case, F32);
    let rows = given.tokens() * case.heads;
    let (with, without) = (TestArray::output(F32, rows * case.head_dim), TestArray::output(F32, rows * case.head_dim));
    let lse = TestArray::output(F32, rows);
    run(&fwd(F32, &given.fwd(with.addr(), lse.addr()), given.query_key_pair_count()), 2);
    run(&fwd(F32, &given.fwd(without.addr(), Addr::NULL), given.query_key_pair_count()), 2);
    assert_eq!(bits(&with), bits(&without));
}

fn later_tokens_and_other_sequences_change_nothing() {
    let (lengths, prefix) = (vec![150, 70], Vec::new());
    let case = PackedBatch { lengths, heads: 6, kv_heads: 2, head_dim: 24, causal: true, spread: 1.0, prefix };
    let (row, kv_row) = (case.heads * case.head_dim, case.kv_heads * case.head_dim);
    // With this code, a hidden key or value must not be NaN: CUDA code and the tiles of AMX multiply the keys and
    // values that causal attention hides by 0, and 0 times NaN is NaN. The test therefore sets hidden keys and values
    // to a large finite number.
    let poison = if runs_cuda_code() || isa() >= Isa::Amx { 1e18 } else { f32::NAN };
    for dtype in [F32, BF16] {
        let mut given = Given::new(&case, dtype);
        let o = TestArray::output(dtype, given.tokens() * row);
        run(&fwd(dtype, &given.fwd(o.addr(), Addr::NULL), given.query_key_pair_count()), 2);
        let before = bits(&o);
        for cut in [1, 63, 64, 65, 127, 149] {
            let poisoned = |data: &TestArray, row: usize| {
                let mut values = data.values();
                values[cut * row..].fill(poison);
                TestArray::new(dtype, &values)
            };
            let (k, v) = (poisoned(&given.k, kv_row), poisoned(&given.v, kv_row));
            let (k, v) = (std::mem::replace(&mut given.k, k), std::mem::replace(&mut given.v, v));
            run(&fwd(dtype, &given.fwd(o.addr(), Addr::NULL), given.query_key_pair_count()), 2);
            assert_eq!(
                bits(&o)[..cut * row],
                before[..cut * row],
                "{dtype}: setting keys and values from token {cut} on to {poison} changed outputs of earlier tokens"
            );
            (given.k, given.v) = (k, v);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
