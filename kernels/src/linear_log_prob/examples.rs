//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` use.

use crate::folder::{FLOAT_DTYPES, HIDDEN_SIZE, LabeledLaunches, SEQUENCE_LEN, Sizes, VOCAB_SIZE, placeholder_params};
use crate::linear_log_prob;

pub(crate) fn example_calls(s: &Sizes) -> LabeledLaunches {
    let (rows, width, vocab) =
        (s.get("tokens", SEQUENCE_LEN), s.get("hidden", HIDDEN_SIZE), s.get("vocab", VOCAB_SIZE));
    let inv_temperature = 1.0;
    let fwd = linear_log_prob::FwdParams { rows, vocab, width, inv_temperature, ..placeholder_params() };
    let bwd = |t| linear_log_prob::BwdParams {
        rows,
        vocab,
        width,
        columns: linear_log_prob::max_chunk_columns(t, rows as usize, vocab as usize) as u32,
        inv_temperature,
        ..placeholder_params()
    };
    let size = "8192 hidden states of 3584 elements, vocabulary of 152064 tokens";
    let chunk = "8192 hidden states of 3584 elements, one chunk of the vocabulary";
    let calls =
        FLOAT_DTYPES.map(|t| [(size, linear_log_prob::fwd(t, &fwd)), (chunk, linear_log_prob::bwd(t, &bwd(t)))]);
    calls.into_iter().flatten().collect()
}
