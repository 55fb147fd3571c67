//! The losses of GRPO and its kin (GRPO, Shao et al., arXiv 2402.03300; DAPO, arXiv 2503.14476; Dr. GRPO, arXiv 2503.20783;
//! GSPO, arXiv 2507.18071), from log-probabilities, with their gradient.
//!
//! Of the `counted` first tokens of completion i with advantage A: `d[t] = log_prob[t] − old[t]` (0 without `old`), at sequence
//! level its mean over them; `r = e^d`;
//! `l[t] = −min(r A, clip(r, 1 − epsilon_low, 1 + epsilon_high) A) + beta (e^x − x − 1)` with
//! `x = clip(reference[t] − log_prob[t], −kl_limit, kl_limit)`; the loss is `Σ_i weight[i] Σ_t l[t]`. What kind of mean that is,
//! the weights say, with n_i the counted tokens of M completions in a micro-batch and C micro-batches:
//! grpo `1 / (n_i M C)`, bnpo `1 / (Σ n C)`, dr_grpo `1 / (M L C)` with L the longest completion allowed, dapo `1 / Σ n` over
//! the whole step.
//!
//! Gradient: `d_log_prob[t] = weight[i] (−r A [not clipped] − beta (e^x − 1) [|x| < kl_limit])`, with `old` and `reference`
//! constants, the same form at both levels; 0 for tokens that are not counted. Clipped: `r < 1 − epsilon_low` and A < 0, or
//! `r > 1 + epsilon_high` and A > 0.
//!
//! Shapes: log_prob, old, reference, d_log_prob f32 `[tokens]`; cu_seqlens i32 `[completions + 1]`, from 0 to tokens; counted
//! i32, advantage and weight f32 `[completions]`; stats f32 `[completions, 4]`. Numerics: f64, rounded to f32 at the store.
//! Log-probabilities are read once, at sequence level twice.
//! Bound: memory, if there were enough of it: a few numbers a token.

pub(crate) mod check;
mod cpu;
mod formula;

use crate::launch::Params as _;
use crate::{Addr, Cost, Launch, Source, cuh, kernel, params};

params! {
    /// Parameters.
    pub struct Params {
        /// f32 `[tokens]`: under the weights that are trained.
        pub log_prob: Addr,
        /// f32 `[tokens]`: under the weights at the first use of the completions; null: the same as `log_prob`.
        pub old: Addr,
        /// f32 `[tokens]`: under the reference weights; null: no such term, whatever beta.
        pub reference: Addr,
        /// i32 `[completions + 1]`: where each completion's tokens begin, and the end.
        pub cu_seqlens: Addr,
        /// i32 `[completions]`: how many of a completion's first tokens count; at most all.
        pub counted: Addr,
        /// f32 `[completions]`
        pub advantage: Addr,
        /// f32 `[completions]`
        pub weight: Addr,
        /// f32 `[tokens]`, written.
        pub d_log_prob: Addr,
        /// f32 `[completions, 4]`, written: the weighted loss, Σ (e^x − x − 1), clipped tokens, counted tokens.
        pub stats: Addr,
        /// Completions.
        pub completions: u32,
        /// 1: the ratio is that of the sequence.
        pub sequence_level: u32,
        /// How far below 1 the ratio counts.
        pub epsilon_low: f32,
        /// How far above 1 the ratio counts.
        pub epsilon_high: f32,
        /// Weight of the distance from the reference.
        pub beta: f32,
        /// Bound of the log ratio to the reference; infinite: none.
        pub kl_limit: f32,
    }
}

/// The CUDA source.
pub static SOURCE: Source =
    Source { name: "grpo_loss", sm80: include_str!("sm80.cu"), params: &[Params::c_declaration] };

kernel!(pub LOSS, "grpo_loss", Params, cpu::loss, &SOURCE, |p, _| {
    cuh::blocks("grpo_loss", p.completions.into(), 256)
});

/// Numbers of a completion in `stats`.
pub const STATS: usize = 4;

/// The launch for completions of `tokens` tokens together.
pub fn loss(tokens: usize, params: &Params) -> Launch {
    let inputs =
        2.0 + if params.old.is_null() { 0.0 } else { 1.0 } + if params.reference.is_null() { 0.0 } else { 1.0 };
    let bytes = 4.0 * inputs * tokens as f64 + 32.0 * params.completions as f64;
    Launch::kernel(&LOSS, params, Cost { flops: 60.0 * tokens as f64, bytes })
}

/// Lengths of completions that tests and benches share, each with how many of its tokens count.
pub fn cases() -> Vec<Vec<(usize, usize)>> {
    vec![
        vec![(1, 1)],
        vec![(5, 5), (0, 0), (3, 0), (17, 9)],
        vec![(1024, 1024), (700, 257), (255, 255), (256, 256)],
        vec![],
    ]
}
