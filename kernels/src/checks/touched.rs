//! What kernels move and how, counted on the simulator at the widths of a model: as many bytes as `cost()` says, and no bank
//! conflict.

use super::on_sim;
use super::{Data, addr, counted_on, numbers};
use crate::DType::{self, BF16, F32};
use crate::launch::{Arch, Launch};
use crate::{
    Addr, adamw, block_copy, column_sum, columns, elementwise, embedding, gelu, grpo_loss, kv_write, layer_norm,
    log_prob, reduce, rms_norm, rope, rows, swiglu,
};
use bytemuck::Zeroable;

/// Width of the decoder.
const HIDDEN: u32 = 3584;
/// Rows of that width that a block of the norms has in a long sequence on a whole GPU, here on two multiprocessors.
const ROWS: u32 = 128;
/// Elements of the kernels that take one after the other.
const COUNT: u64 = 1 << 17;
const VOCAB: u32 = 152_064;
const BOTH: [DType; 2] = [F32, BF16];

/// Two multiprocessors, so that few rows make as many rows a block as a long sequence does on a whole GPU.
const SMALL: Arch = Arch { multiprocessors: 2, ..Arch::A100 };

/// The arrays of launches, which live as long as this does.
#[derive(Default)]
struct Arrays {
    numbers: Vec<Vec<u64>>,
    ids: Vec<Vec<i32>>,
}

impl Arrays {
    /// An array whose elements are from 0.5 to 1 as f32 and as bf16.
    fn some(&mut self, count: impl TryInto<usize>, bytes: usize) -> Addr {
        let count = count.try_into().unwrap_or_else(|_| unreachable!("sizes are small"));
        let word = |i: usize| {
            0x3f00_3f00_3f00_3f00u64 | (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0x007f_007f_007f_007f
        };
        self.numbers.push((0..(count * bytes).div_ceil(16) * 2).map(word).collect());
        addr(&self.numbers[self.numbers.len() - 1])
    }

    fn f32(&mut self, count: impl TryInto<usize>) -> Addr {
        self.some(count, 4)
    }

    fn ids(&mut self, ids: impl IntoIterator<Item = i32>) -> Addr {
        self.ids.push(ids.into_iter().collect());
        addr(&self.ids[self.ids.len() - 1])
    }
}

/// Runs launches, each asked for at most so many times the bytes of its cost; all that is wrong is named at once.
fn hold(launches: impl IntoIterator<Item = (Launch, f64)>) {
    let mut wrong = String::new();
    for (launch, times) in launches {
        let (count, cost) = (counted_on(&launch, &SMALL), launch.cost());
        let bytes = (count.global_read + count.global_written) as f64;
        let (share, extra) = (bytes / cost.bytes, count.wavefronts - count.wavefronts_least);
        if !(share <= times) {
            wrong += &format!("{}: {share:.3} times the bytes of its cost, not {times}\n", launch.name());
        }
        if extra > 0 {
            wrong += &format!("{}: {extra} of {} wavefronts are bank conflicts\n", launch.name(), count.wavefronts);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// The usual: a tenth above the cost.
fn usual(launches: impl IntoIterator<Item = Launch>) -> Vec<(Launch, f64)> {
    launches.into_iter().map(|l| (l, 1.1)).collect()
}

#[test]
fn adamw_touches_what_it_must() {
    on_sim(|| {
        let mut a = Arrays::default();
        let (n, count) = (COUNT, COUNT as usize);
        let low = a.some(count, 2);
        let clip = a.f32(2usize);
        let step = adamw::Params {
            w: a.f32(count),
            m: a.f32(count),
            v: a.f32(count),
            g: a.f32(count),
            clip,
            n,
            ..adamw::Scalars { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 2 }.params()
        };
        let adamw::Params { w, m, v, g, .. } = step;
        let scalars = adamw::Scalars { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 2 };
        let scales = a.f32(2 * count.div_ceil(adamw::BLOCK));
        let small = adamw::SmallParams { w, m, v, g, clip, n, ..scalars.small_params() };
        let mut all = vec![
            adamw::step(F32, &step),
            adamw::step(BF16, &adamw::Params { low, ..step }),
            adamw::join_master(&adamw::JoinParams { w, low, dst: m, n }),
        ];
        for (dtype, low) in [(F32, Addr::NULL), (BF16, low)] {
            all.push(adamw::step_bf16_moments(dtype, &adamw::SmallParams { low, ..small }));
            all.push(adamw::step_8bit(dtype, &adamw::SmallParams { low, scales, ..small }));
        }
        all.extend(BOTH.map(|t| adamw::split_master(t, &adamw::SplitParams { src: g, w, low, n })));
        hold(usual(all));
    });
}

#[test]
fn elements_one_by_one_touch_what_they_must() {
    on_sim(|| {
        let mut a = Arrays::default();
        let count = COUNT;
        let [x, y, z, u, v] = [(); 5].map(|()| a.f32(count as usize));
        let accumulate = elementwise::AccumulateParams { src: x, dst: y, count };
        let cast = elementwise::CastParams { src: x, dst: y, count };
        let mut all = vec![
            elementwise::accumulate(F32, F32, &accumulate),
            elementwise::accumulate(BF16, BF16, &accumulate),
            elementwise::accumulate(BF16, F32, &accumulate),
            elementwise::cast(F32, BF16, &cast),
            elementwise::cast(BF16, F32, &cast),
            elementwise::mul_scalar(&elementwise::MulScalarParams { x, scalar: u, y, count }),
            elementwise::copy(&elementwise::CopyParams { src: x, dst: y, bytes: 2 * count }),
        ];
        for t in BOTH {
            all.push(elementwise::add(t, &elementwise::AddParams { a: x, b: y, y: z, count }));
            all.push(elementwise::cast_f16(t, &cast));
            all.push(elementwise::fill(t, &elementwise::FillParams { dst: y, count, value: 1.0, reserved: 0 }));
            let (fwd, bwd) = (gelu::FwdParams { x, y, count }, gelu::BwdParams { x, dy: y, dx: z, count });
            all.extend([gelu::fwd(t, &fwd), gelu::bwd(t, &bwd), gelu::tanh_fwd(t, &fwd), gelu::tanh_bwd(t, &bwd)]);
            all.push(swiglu::fwd(t, &swiglu::FwdParams { gate: x, up: y, y: z, count }));
            let bwd = swiglu::BwdParams { gate: x, up: y, dy: z, d_gate: u, d_up: v, count };
            all.push(swiglu::bwd(t, &bwd));
        }
        hold(usual(all));
    });
}

#[test]
fn norms_touch_what_they_must() {
    on_sim(|| {
        let mut a = Arrays::default();
        let (rows, cols) = (ROWS, HIDDEN);
        let n = (rows * cols) as usize;
        let [x, y, z, s] = [(); 4].map(|()| a.f32(n));
        let [w, b, mean, rstd, dw, db] = [(); 6].map(|()| a.f32(cols as usize));
        let partial = a.f32(2 * rms_norm::parts(rows as usize) * cols as usize);
        let mut all = Vec::new();
        for t in BOTH {
            let fwd = rms_norm::FwdParams { x, w, y, rstd, rows, cols, eps: 1e-6, reserved: 0 };
            all.push(rms_norm::fwd(t, &fwd));
            let bwd = rms_norm::BwdParams { x, w, rstd, dy: y, dx: z, dw, partial, rows, cols };
            all.push(rms_norm::bwd(t, &bwd));
            all.push(rms_norm::bwd(t, &rms_norm::BwdParams { dw: Addr::NULL, partial: Addr::NULL, ..bwd }));
            let add =
                rms_norm::AddFwdParams { x, residual: y, w, sum: s, y: z, rstd, rows, cols, eps: 1e-6, reserved: 0 };
            all.push(rms_norm::add_fwd(t, &add));
            let add = rms_norm::AddBwdParams { x, w, rstd, dy: y, d_sum: s, dx: z, dw, partial, rows, cols };
            all.push(rms_norm::add_bwd(t, &add));
            let fwd = layer_norm::FwdParams { x, w, b, y, mean, rstd, rows, cols, eps: 1e-6, reserved: 0 };
            all.push(layer_norm::fwd(t, &fwd));
            let bwd = layer_norm::BwdParams { x, w, mean, rstd, dy: y, dx: z, dw, db, partial, rows, cols };
            all.push(layer_norm::bwd(t, &bwd));
            let sum = column_sum::Params { x, sum: dw, rows: rows.into(), cols: cols.into() };
            all.push(column_sum::add(t, &sum));
        }
        hold(usual(all));
    });
}

/// Of rows of more than 8192 columns those beyond are read twice and their dw goes through the workspace row by row, and weights
/// are read again for each row.
#[test]
fn wide_norms_touch_what_does_not_fit_twice() {
    on_sim(|| {
        let mut a = Arrays::default();
        let (rows, cols) = (16, 10_240);
        let [x, y, z, s] = [(); 4].map(|()| a.f32((rows * cols) as usize));
        let [w, b, mean, rstd, dw, db] = [(); 6].map(|()| a.f32(cols as usize));
        let partial = a.f32(2 * cols as usize);
        let mut all = Vec::new();
        for t in BOTH {
            let fwd = rms_norm::FwdParams { x, w, y, rstd, rows, cols, eps: 1e-6, reserved: 0 };
            all.push((rms_norm::fwd(t, &fwd), 1.25));
            let bwd = rms_norm::BwdParams { x, w, rstd, dy: y, dx: z, dw: Addr::NULL, partial, rows, cols };
            all.push((rms_norm::bwd(t, &bwd), 1.8));
            let add = rms_norm::AddBwdParams { x, w, rstd, dy: y, d_sum: s, dx: z, dw, partial, rows, cols };
            all.push((rms_norm::add_bwd(t, &add), 1.8));
            let fwd = layer_norm::FwdParams { x, w, b, y, mean, rstd, rows, cols, eps: 1e-6, reserved: 0 };
            all.push((layer_norm::fwd(t, &fwd), 2.1));
            let bwd = layer_norm::BwdParams { x, w, mean, rstd, dy: y, dx: z, dw, db, partial, rows, cols };
            all.push((layer_norm::bwd(t, &bwd), 2.25));
        }
        hold(all);
    });
}

#[test]
fn sums_to_one_number_touch_what_they_must() {
    on_sim(|| {
        let mut a = Arrays::default();
        let n = COUNT;
        let (x, w, out) = (a.f32(n as usize), a.f32(n as usize), a.f32(4usize));
        let partial = a.some(2 * reduce::parts(n as usize), 8);
        let mut all = BOTH.map(|t| reduce::sum_squares(t, &reduce::SumSquaresParams { x, partial, n })).to_vec();
        all.push(reduce::weighted_sum(&reduce::WeightedSumParams { x, w, out, n }));
        all.push(reduce::clip(&reduce::ClipParams { partials: x, out, count: n / 2, max_norm: 1.0, reserved: 0 }));
        let (tokens, completions) = (2048usize, 2u32);
        let cu_seqlens = a.ids([0, 1024, 2048]);
        let counted = a.ids([1024, 1024]);
        let [log_prob, old, reference, d_log_prob] = [(); 4].map(|()| a.f32(tokens));
        let [advantage, weight, stats] = [(); 3].map(|()| a.f32(8usize));
        let p = grpo_loss::Params {
            log_prob,
            old,
            reference,
            cu_seqlens,
            counted,
            advantage,
            weight,
            d_log_prob,
            stats,
            completions,
            epsilon_low: 0.2,
            epsilon_high: 0.2,
            beta: 0.04,
            kl_limit: 10.0,
            ..Zeroable::zeroed()
        };
        all.push(grpo_loss::loss(tokens, &p));
        hold(usual(all));
    });
}

#[test]
fn moved_rows_are_touched_once() {
    on_sim(|| {
        let mut a = Arrays::default();
        let (m, n, cols) = (ROWS, 2 * ROWS, HIDDEN);
        let [x, y] = [(); 2].map(|()| a.f32((n * cols) as usize));
        let index = a.ids((0..m as i32).map(|i| 2 * i));
        let mut all = Vec::new();
        for t in BOTH {
            all.push(rows::gather(t, &rows::GatherParams { x, index, y, m, cols, n, reserved: 0 }));
            all.push(rows::scatter(t, &rows::ScatterParams { src: x, index, dst: y, m, cols, n, reserved: 0 }));
            let p = columns::CopyParams {
                src: x,
                dst: y,
                rows: m,
                width: cols,
                src_cols: 2 * cols,
                src_start: 512,
                dst_cols: cols,
                dst_start: 0,
            };
            all.push(columns::copy(t, &p));
            let p = kv_write::Params {
                k: x,
                v: x,
                k_cache: y,
                v_cache: y.offset((n * cols * 2) as usize),
                slots: index,
                tokens: m,
                kv_heads: 4,
                head_dim: 128,
                pages: 4,
                page: 64,
                reserved: 0,
            };
            all.push(kv_write::write(t, &p));
            let (tokens, hidden, vocab) = (m, cols, n);
            let ids = index;
            for out in BOTH {
                let p = embedding::FwdParams { table: x, ids, y, tokens, hidden, vocab, ..Zeroable::zeroed() };
                all.push(embedding::fwd(t, out, &p));
            }
            let p = embedding::BwdParams { ids, dy: x, dw: y, tokens, hidden, vocab, ..Zeroable::zeroed() };
            all.push(embedding::bwd(t, &p));
        }
        let pairs = a.ids([0, 5, 1, 6, 2, 7]);
        all.push(block_copy::copy(&block_copy::Params { k_cache: x, v_cache: y, pairs, count: 3, units: 4096 }));
        hold(usual(all));
    });
}

#[test]
fn rotations_touch_what_they_must() {
    on_sim(|| {
        let mut a = Arrays::default();
        let (tokens, heads, head_dim) = (64u32, 28u32, 128u32);
        let half = head_dim / 2;
        let positions = a.ids(0..tokens as i32);
        let axis = a.ids((0..half).map(|_| 0));
        let inv_freq = a.f32(half as usize);
        let [cos, sin] = [(); 2].map(|()| a.f32((tokens * half) as usize));
        let [x, y] = [(); 2].map(|()| a.f32((tokens * heads * head_dim) as usize));
        let table = rope::table(&rope::TableParams { positions, inv_freq, axis, cos, sin, tokens, half });
        let p = rope::ApplyParams { x, y, cos, sin, tokens, heads, head_dim, inverse: 0 };
        let mut all = usual(BOTH.map(|t| rope::apply(t, &p)));
        // Positions, frequencies and axes are asked for again by every thread, and come from L1.
        all.push((table, 1.63));
        hold(all);
    });
}

#[test]
fn logits_are_touched_once() {
    on_sim(|| {
        let mut a = Arrays::default();
        let (rows, vocab) = (2u32, VOCAB);
        let n = (rows * vocab) as usize;
        let data = Data::new(F32, &numbers(n, 1, 2.0));
        let (logits, d_logits) = (data.addr(), a.f32(n));
        let targets = a.ids([5, 100_000]);
        let [log_prob, lse, grad] = [(); 3].map(|()| a.f32(8usize));
        let (entropy, d_entropy) = (a.f32(8usize), a.f32(8usize));
        let state = a.some(4 * rows as usize, 8);
        let fwd = log_prob::FwdParams {
            logits,
            targets,
            log_prob,
            lse,
            rows,
            vocab,
            columns: vocab,
            inv_temperature: 1.0,
            ..Zeroable::zeroed()
        };
        let bwd = log_prob::BwdParams {
            logits,
            targets,
            lse,
            grad,
            d_logits,
            rows,
            vocab,
            columns: vocab,
            inv_temperature: 1.0,
            ..Zeroable::zeroed()
        };
        // As the first of several launches, and as one between.
        let begins = log_prob::FwdParams { state, vocab: 3 * vocab, entropy, ..fwd };
        let between = log_prob::FwdParams { first: vocab, ..begins };
        let through_both = log_prob::BwdParams { entropy, d_entropy, first: vocab, vocab: 3 * vocab, ..bwd };
        let all = usual([
            log_prob::fwd(&fwd),
            log_prob::fwd(&log_prob::FwdParams { entropy, ..fwd }),
            log_prob::fwd(&begins),
            log_prob::fwd(&between),
            log_prob::bwd(F32, &bwd),
            log_prob::bwd(BF16, &bwd),
            log_prob::bwd(BF16, &through_both),
        ]);
        hold(all);
    });
}
