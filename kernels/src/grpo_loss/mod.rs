//! The losses of GRPO and its variants (GRPO, Shao et al., arXiv 2402.03300; DAPO, arXiv 2503.14476; Dr. GRPO, arXiv
//! 2503.20783; GSPO, arXiv 2507.18071; CISPO, arXiv 2506.13585; high-entropy tokens, arXiv 2506.01939), from
//! log-probabilities and entropies, with their gradients.
//!
//! ```text
//! for completion i with advantage A, over its first counted[i] tokens t, the learned ones:
//!     d[t] = log_prob[t] - old[t]            (0 without `old`; at both sequence levels, the mean over these tokens)
//!     r    = e^d                             the importance ratio
//!     x    = clip(reference[t] - log_prob[t], -kl_limit, kl_limit)
//!     q    = e^(old[t] - sampled[t])         (log_prob for `old` without it; for a correction per sequence, of the sum
//!                                             over these tokens; 1 without `sampled`; NaN in `sampled` is like old[t])
//!     w    = q if correction_min <= q <= correction_max, else the nearer bound, or 0 if the correction masks
//!     s[t] = 1 if entropy[t] >= min_entropy, else 0      (1 without `entropy`)
//!     f[t] = -min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A)
//!     f[t] = -min(r, epsilon_high) A log_prob[t]         instead, with CISPO
//!     l[t] = s[t] w f[t] + beta (e^x - x - 1)
//! loss = Σ_i weight[i] Σ_t l[t] - entropy_weight Σ_t s[t] entropy[t]
//! ```
//!
//! The caller's weights choose the mean. With n_i learned tokens in completion i, C completions per micro-batch and M
//! micro-batches per step: grpo `1 / (n_i C M)`, bnpo `1 / (Σ n M)`, dr_grpo `1 / (L C M)` with L the maximum
//! completion length, dapo and cispo `1 / Σ n` over the whole step (`LossWeights` in `train/src/step/grpo_inputs.rs`).
//!
//! Gradients, 0 for tokens that are not counted, with `old`, `sampled`, `reference`, s, w, and CISPO's factor
//! `min(r, epsilon_high)` constant:
//!
//! ```text
//! d_log_prob[t] = weight[i] (-k r A [not clipped] - beta (e^x - 1) [|x| < kl_limit])
//!                 with k = s[t] w at the levels token and sequence_token, the mean of s w over the completion's tokens
//!                 at the level sequence, where all tokens share one ratio; with CISPO, -s[t] w min(r, epsilon_high) A
//!                 in place of the first term, at all levels
//! d_entropy[t]  = -entropy_weight s[t]
//! ```
//!
//! So sequence and sequence_token differ only if s w differs within a completion. A token is clipped if `r < 1 −
//! epsilon_low` and A < 0, or `r > 1 + epsilon_high` and A > 0; with CISPO, if `r > epsilon_high` and A > 0.
//!
//! Shapes: log_prob, old, sampled, reference, entropy, d_log_prob, d_entropy f32 `[tokens]`; cu_seqlens i32
//! `[completions + 1]`, from 0 to tokens; counted i32, advantage and weight f32 `[completions]`; stats f32
//! `[completions, 4]`. Numerics: f64, rounded to f32 at the store; if s and w are 1, the bits are those of a launch
//! without `sampled` and `entropy`. Log-probabilities are read once, and once more for each sum over a completion that
//! the options need (d, the correction, k). Latency-bound: a few numbers per token.

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
        /// f32 `[tokens]`: log-probabilities at which the tokens were sampled; null: w is 1. NaN stands for `old`.
        pub sampled: Addr,
        /// f32 `[tokens]`: log-probabilities under the reference weights; null: the loss has no KL term, whatever
        /// `beta` is.
        pub reference: Addr,
        /// f32 `[tokens]`: entropy of the distribution of each token; null: s is 1, and no entropy is in the loss.
        pub entropy: Addr,
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
        /// f32 `[tokens]`, written; null: not written, and the gradient of the entropies is not needed.
        pub d_entropy: Addr,
        /// f32 `[completions, 4]`, written: part of the loss, sum of the KL terms `e^x − x − 1` (`x` as above), number
        /// of clipped tokens, number of counted tokens.
        pub stats: Addr,
        /// Number of completions.
        pub completions: u32,
        /// [`RatioLevel`] as a number.
        pub level: u32,
        /// 1: the loss of CISPO; 0: the loss with clipped ratios.
        pub cispo: u32,
        /// 0, or [`CORRECTION_PER_SEQUENCE`] and [`CORRECTION_MASKS`] added.
        pub correction: u32,
        /// Lower clipping distance: ratios below 1 − epsilon_low are clipped.
        pub epsilon_low: f32,
        /// Upper clipping distance: ratios above 1 + epsilon_high are clipped. With CISPO, the largest ratio.
        pub epsilon_high: f32,
        /// Weight of the KL term.
        pub beta: f32,
        /// |reference − log_prob| is clipped to this value; infinity: it is not clipped.
        pub kl_limit: f32,
        /// The policy term and the entropy term have only tokens of at least this entropy, in nats.
        pub min_entropy: f32,
        /// Weight of the sum of the entropies, which is subtracted from the loss.
        pub entropy_weight: f32,
        /// Lower bound of the correction.
        pub correction_min: f32,
        /// Upper bound of the correction.
        pub correction_max: f32,
    }
}

/// For which tokens importance ratios are computed ([`Params::level`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RatioLevel {
    /// One ratio per token.
    Token,
    /// One ratio per completion (GSPO).
    Sequence,
    /// The value of the ratio of the completion, with the gradient of the token (GSPO-token).
    SequenceToken,
}
/// [`Params::correction`]: one correction per completion, not one per token.
pub const CORRECTION_PER_SEQUENCE: u32 = 1;
/// [`Params::correction`]: 0 beyond the bounds, not the nearer bound.
pub const CORRECTION_MASKS: u32 = 2;

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
    let optional = [params.old, params.sampled, params.reference, params.entropy, params.d_entropy];
    let arrays = 2 + optional.iter().filter(|array| !array.is_null()).count();
    let bytes = 4.0 * (arrays * tokens) as f64 + 32.0 * params.completions as f64;
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
