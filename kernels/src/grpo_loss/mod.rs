//! The losses of GRPO and its variants (GRPO, Shao et al., arXiv 2402.03300; DAPO, arXiv 2503.14476; Dr. GRPO, arXiv
//! 2503.20783; GSPO, arXiv 2507.18071), from log-probabilities, with their gradient.
//!
//! ```text
//! for completion i with advantage A, over its first counted[i] tokens t, the learned ones:
//!     d[t] = log_prob[t] - old[t]            (0 without `old`; at sequence level, the mean of d over these tokens)
//!     r    = e^d                             the importance ratio
//!     x    = clip(reference[t] - log_prob[t], -kl_limit, kl_limit)
//!     l[t] = -min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A) + beta (e^x - x - 1)
//! loss = Σ_i weight[i] Σ_t l[t]
//! ```
//!
//! The caller's weights choose the mean. With n_i learned tokens in completion i, C completions per micro-batch and M
//! micro-batches per step: grpo `1 / (n_i C M)`, bnpo `1 / (Σ n M)`, dr_grpo `1 / (L C M)` with L the maximum
//! completion length, dapo `1 / Σ n` over the whole step (`LossWeights` in `train/src/step/grpo.rs`).
//!
//! Gradient: `d_log_prob[t] = weight[i] (−r A [not clipped] − beta (e^x − 1) [|x| < kl_limit])`. `old` and
//! `reference` are constants, and the formula is the same at both levels; the gradient is 0 for tokens that are not
//! counted. A token is clipped if `r < 1 − epsilon_low` and A < 0, or `r > 1 + epsilon_high` and A > 0.
//!
//! Shapes: log_prob, old, reference, d_log_prob f32 `[tokens]`; cu_seqlens i32 `[completions + 1]`, from 0 to tokens;
//! counted i32, advantage and weight f32 `[completions]`; stats f32 `[completions, 4]`. Numerics: f64, rounded to f32
//! at the store. Log-probabilities are read once, at sequence level twice. Latency-bound: a few numbers per token.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::{Addr, Cost, Launch, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters.
    pub struct Params {
        /// f32 `[tokens]`: log-probabilities under the weights being trained.
        pub log_prob: Addr,
        /// f32 `[tokens]`: log-probabilities under the weights at the first training step on these completions; null:
        /// the same as `log_prob`.
        pub old: Addr,
        /// f32 `[tokens]`: log-probabilities under the reference weights; null: the loss has no KL term, whatever
        /// `beta` is.
        pub reference: Addr,
        /// i32 `[completions + 1]`: index of each completion's first token; the last element is the number of tokens.
        pub cu_seqlens: Addr,
        /// i32 `[completions]`: number of tokens that count in the loss, from the start of each completion; at most
        /// its length.
        pub counted: Addr,
        /// f32 `[completions]`
        pub advantage: Addr,
        /// f32 `[completions]`
        pub weight: Addr,
        /// f32 `[tokens]`, written.
        pub d_log_prob: Addr,
        /// f32 `[completions, 4]`, written: weighted loss, sum of the KL terms `e^x − x − 1` (`x` as defined above),
        /// number of clipped tokens, number of counted tokens.
        pub stats: Addr,
        /// Number of completions.
        pub completions: u32,
        /// 1: one importance ratio per sequence; 0: one per token.
        pub sequence_level: u32,
        /// Lower clipping distance: ratios below 1 − epsilon_low are clipped.
        pub epsilon_low: f32,
        /// Upper clipping distance: ratios above 1 + epsilon_high are clipped.
        pub epsilon_high: f32,
        /// Weight of the KL term.
        pub beta: f32,
        /// |reference − log_prob| is clipped to this value; infinity: it is not clipped.
        pub kl_limit: f32,
    }
}

kernel_folder! {
    name: "grpo_loss",
    params: [Params],
    traffic: traffic_launches,
}

kernel!(pub LOSS, "grpo_loss", Params, cpu::loss, &SOURCE, |p, _| {
    cuh::plan_blocks("grpo_loss", p.completions.into(), 256)
});

/// Number of statistics per completion, the columns of `stats`.
pub const STATS_PER_COMPLETION: usize = 4;

/// Returns the launch of the loss over completions that have `tokens` tokens in total.
pub fn loss(tokens: usize, params: &Params) -> Launch {
    let inputs =
        2.0 + if params.old.is_null() { 0.0 } else { 1.0 } + if params.reference.is_null() { 0.0 } else { 1.0 };
    let bytes = 4.0 * inputs * tokens as f64 + 32.0 * params.completions as f64;
    Launch::kernel(&LOSS, params, Cost { flops: 60.0 * tokens as f64, bytes })
}

/// Returns the batches of completions that the checks use: for each completion, its length and its number of learned
/// tokens.
pub fn test_batches_length_learned_tokens() -> Vec<Vec<(usize, usize)>> {
    vec![
        vec![(1, 1)],
        vec![(5, 5), (0, 0), (3, 0), (17, 9)],
        vec![(1024, 1024), (700, 257), (255, 255), (256, 256)],
        vec![],
    ]
}
