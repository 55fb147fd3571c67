//! Samples the next token of each row, greedily or at random.
//!
//! A row's scores are its logits after these steps, in this order:
//! 1. Repetition penalty: the score of every token in the history (prompt and generated, each once) is divided by the
//!    penalty, or multiplied by it if negative.
//! 2. Frequency penalty times the number of occurrences in the counted part of the history is subtracted; the
//!    presence penalty is subtracted if the token occurs there at all.
//! 3. The bias is added.
//! 4. Suppressed tokens, and tokens that are not allowed, get −∞.
//! 5. Temperature; 0 (or below) takes the largest score, the lowest id among equal ones, and skips the other steps.
//! 6. Top-k: scores below the k-th largest are dropped (those equal to it stay).
//! 7. Top-p: of the tokens in descending order of probability (equal ones: lower id first) a token stays while the
//!    sum before it is below p, so at least one stays.
//! 8. Min-p: tokens of less than this share of the largest probability are dropped.
//! 9. A uniform random number selects from the cumulative distribution over the remaining tokens, in the order of
//!    ids.
//!
//! Steps 1 and 5 to 9 are those of transformers' `generate`, 2 and 3 those of OpenAI's interface. The random number
//! is number `position` of the stream [`PHILOX_STREAM_NUMBER`] of Philox under the row's seed: the same seed and
//! position give the same token whatever else is in the batch. Steps 1 to 3 round to f32 at each operation.
//!
//! Log-probabilities ignore these steps. `log_prob` is that of the sampled token under softmax(logits / temperature),
//! with temperature 1 for greedy, and `raw_log_prob` under softmax(logits). `top_ids` and `top_log_probs` are the
//! most likely tokens under softmax(logits) in descending order (equal ones: lower id first). A NaN among logits or
//! scores, or no token left with a score above −∞, gives id −1 and NaN for both log-probabilities: the caller reports
//! the error. A NaN among the logits makes `top_ids` −1 and `top_log_probs` NaN, as do ranks beyond the vocabulary.
//!
//! Numerics: weights in f32; sums of weights in f64 block by block on the CPU, in CUDA as integers, multiples of
//! 2^-40 of the largest weight (less than half of that counts as 0). A token whose rank or share is within these
//! roundings of a limit may be kept or dropped. Log-probabilities on the CPU: exponentials in f32, summed in f64. In
//! CUDA they are bit-identical to [`crate::log_prob`]: exponentials to 2^-22 of themselves, summed exactly
//! (`cuh/exp_sum.cuh`). They are rounded once.
//!
//! Bound by memory traffic on the CPU, where top-p adds four passes over the weights of a row, and one more for each
//! halving of the range in which it looks for the last token (`cpu/top_p.rs`); on a GPU by the instructions of the
//! passes over a row.
//!
//! In CUDA one block takes a row, which exceeds its shared memory. It reads the row once from memory and again from L2:
//! 2 times in all with log-probabilities, 3 to sample, 8 with top-p, 11 with top-k too, 1 more at another temperature
//! than 0 or 1, 5 more for the most likely tokens; one of 32 warps reads its part again for each search. It computes the
//! exponentials in each pass: up to 8 per token.
//!
//! The cost counts the logits, the rows of the history as if they were full, biases, suppressed and allowed tokens,
//! each once. Only rows with a penalty read their history, three times.
//!
//! Bank conflicts of the histograms depend on the data: tokens of one bin are added one after the other.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::{Addr, Arch, Cost, Launch, Stage, kernel, params};

use crate::folder::kernel_folder;

/// The number of the Philox stream from which the random numbers for sampling come.
pub const PHILOX_STREAM_NUMBER: u64 = 0x7361_6d70_6c65; // "sample"

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// f32 `[rows, vocab]`
        pub logits: Addr,
        /// f32 `[rows]`; 0: greedy.
        pub temperature: Addr,
        /// f32 `[rows]`; 1: off.
        pub top_p: Addr,
        /// i32 `[rows]`; 0: off.
        pub top_k: Addr,
        /// f32 `[rows]`, repetition penalty; 1: off.
        pub penalty: Addr,
        /// u64 `[rows]`
        pub seed: Addr,
        /// i32 `[rows]`: index of the row's random number in the sequence that its seed gives.
        pub position: Addr,
        /// i32 `[rows, history_cols]`: tokens so far; ids outside the vocabulary are skipped. May be null if
        /// `history_cols` is 0.
        pub history: Addr,
        /// i32 `[rows]`: number of tokens in each row's history.
        pub history_len: Addr,
        /// i32 `[suppressed_count]`: tokens that are never sampled; may be null if the count is 0.
        pub suppressed: Addr,
        /// f32 `[rows]`, frequency penalty; null: off.
        pub frequency_penalty: Addr,
        /// f32 `[rows]`, presence penalty; null: off.
        pub presence_penalty: Addr,
        /// i32 `[rows]`: index of the first token of the history that the frequency and presence penalties count;
        /// null: they count the whole history.
        pub counted_from: Addr,
        /// f32 `[rows]`, min-p; 0: off; values above 1 count as 1. Null: off for all rows.
        pub min_p: Addr,
        /// i32 `[rows, bias_cols]`: biased tokens, all different within a row; ids outside the vocabulary (such as
        /// −1) are skipped. May be null if `bias_cols` is 0.
        pub bias_ids: Addr,
        /// f32 `[rows, bias_cols]`, added to the scores of `bias_ids`.
        pub bias: Addr,
        /// u32 `[rows, ceil(vocab / 32)]`: bit `id % 32` of word `id / 32` says whether token `id` is allowed; null:
        /// all tokens are allowed.
        pub allowed: Addr,
        /// Scratch memory of [`workspace_bytes`] bytes; may be null if that is 0. Not used on the CPU.
        pub workspace: Addr,
        /// i32 `[rows]`, written.
        pub ids: Addr,
        /// f32 `[rows]`: log-probability of the token at the row's temperature, written unless null.
        pub log_prob: Addr,
        /// f32 `[rows]`: log-probability of the token at temperature 1, written unless null.
        pub raw_log_prob: Addr,
        /// i32 `[rows, tops]`, written.
        pub top_ids: Addr,
        /// f32 `[rows, tops]`, written.
        pub top_log_probs: Addr,
        /// Number of rows.
        pub rows: u32,
        /// Logits of a row.
        pub vocab: u32,
        /// Row length of `history`.
        pub history_cols: u32,
        /// Number of elements of `suppressed`.
        pub suppressed_count: u32,
        /// Number of biases of a row.
        pub bias_cols: u32,
        /// Number of most likely tokens to return, at most [`MAX_TOP_TOKENS`].
        pub tops: u32,
    }
}

impl Default for Params {
    /// No rows, every address null.
    fn default() -> Params {
        bytemuck::Zeroable::zeroed()
    }
}

/// Maximum of [`Params::tops`].
pub const MAX_TOP_TOKENS: u32 = 32;

kernel_folder! {
    name: "sample",
    params: [Params],
    headers: ["row.cuh"],
}

kernel!(pub SAMPLE, "sample", Params, cpu::sample, &SOURCE, plan_sampling);

/// Plans one block per row. Its shared memory has two bits for each token of the vocabulary.
fn plan_sampling(p: &Params, arch: &Arch) -> Vec<Stage> {
    if p.rows == 0 || p.vocab == 0 {
        return Vec::new();
    }
    let shared = 2 * 4 * p.vocab.div_ceil(32);
    vec![Stage { shared, ..Stage::one_dimensional("sample", p.rows, 1024) }.programmatic_on(arch)]
}

/// Returns the size of the workspace in bytes. The workspace holds the scores of tokens with a penalty or a bias; if
/// there are no such tokens, its size is 0.
pub fn workspace_bytes(p: &Params) -> usize {
    if p.history_cols == 0 && p.bias_cols == 0 { 0 } else { 4 * p.rows as usize * p.vocab as usize }
}

/// Returns the launch of the sampling of all rows.
///
/// # Panics
/// If more than [`MAX_TOP_TOKENS`] most likely tokens are requested.
pub fn sample(params: &Params) -> Launch {
    assert!(
        params.tops <= MAX_TOP_TOKENS,
        "{} most likely tokens are requested; at most {MAX_TOP_TOKENS} are supported",
        params.tops
    );
    let (rows, n) = (params.rows as f64, params.rows as f64 * params.vocab as f64);
    let allowed = if params.allowed.is_null() { 0.0 } else { 4.0 * rows * params.vocab.div_ceil(32) as f64 };
    let of_tokens = 4.0 * params.history_cols as f64 + 8.0 * params.bias_cols as f64;
    let bytes = 4.0 * n + allowed + rows * of_tokens + 4.0 * params.suppressed_count as f64;
    Launch::kernel(&SAMPLE, params, Cost { flops: 20.0 * n, bytes })
}
