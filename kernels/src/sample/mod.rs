//! The next token of each row, greedy or drawn, with the steps of transformers' `generate` in its order:
//!
//! 1. repetition penalty: scores of tokens in the history (prompt and generated, each once) are divided by the penalty, or
//!    multiplied by it if negative; 2. suppressed tokens get −∞; 3. temperature; 4. top-k: scores below the k-th largest go
//!    (equals of the k-th stay); 5. top-p: of the tokens in falling order of probability (equals: lower id first) a token
//!    stays while the sum before it is below p, so at least one stays; 6. a draw by the inverse distribution function over
//!    what is left, in the order of ids.
//!
//! Temperature 0 (or below) takes the largest score, equals: the lowest id. The draw is number `position` of stream
//! [`STREAM`] of Philox under the row's seed: the same seed and position draw the same whatever else is in the batch.
//! `log_prob` is that of the token under softmax(logits / temperature), temperature 1 for greedy, before any of the steps.
//! A NaN among the logits, or no token left with a score above −∞, gives id −1 and a NaN log_prob: the caller's error.
//! Bound: memory; a few passes over the row, and a sort of the tokens that may survive top-p.

mod cpu;
#[cfg(test)]
mod formula;
#[cfg(test)]
mod tests;

use crate::{Addr, Cost, Launch, kernel, params};

/// The Philox stream of token draws.
pub const STREAM: u64 = 0x7361_6d70_6c65; // "sample"

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
        /// i32 `[rows]`, the number of the draw under its seed.
        pub position: Addr,
        /// i32 `[rows, history_cols]`, tokens so far; ids outside the vocabulary are skipped. May be null with
        /// `history_cols` 0.
        pub history: Addr,
        /// i32 `[rows]`, how many of `history_cols` count.
        pub history_len: Addr,
        /// i32 `[suppressed_count]`, tokens never taken; may be null with a count of 0.
        pub suppressed: Addr,
        /// i32 `[rows]`, written.
        pub ids: Addr,
        /// f32 `[rows]`, written unless null.
        pub log_prob: Addr,
        /// Rows.
        pub rows: u32,
        /// Logits of a row.
        pub vocab: u32,
        /// Stride of the history.
        pub history_cols: u32,
        /// Length of the suppressed list.
        pub suppressed_count: u32,
    }
}

kernel!(pub SAMPLE, "sample", Params, cpu::sample);

/// The launch.
pub fn sample(params: &Params) -> Launch {
    let n = params.rows as f64 * params.vocab as f64;
    Launch::kernel(&SAMPLE, params, Cost { flops: 20.0 * n, bytes: 4.0 * n })
}
