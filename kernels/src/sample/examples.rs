//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` use.

use crate::folder::{BATCH_SIZE, LabeledLaunches, PLACEHOLDER, SEQUENCE_LEN, Sizes, VOCAB_SIZE};
use crate::sample;
use bytemuck::Zeroable;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let p = sample::Params {
        logits: PLACEHOLDER,
        temperature: PLACEHOLDER,
        top_p: PLACEHOLDER,
        top_k: PLACEHOLDER,
        penalty: PLACEHOLDER,
        seed: PLACEHOLDER,
        position: PLACEHOLDER,
        history: PLACEHOLDER,
        history_len: PLACEHOLDER,
        suppressed: PLACEHOLDER,
        workspace: PLACEHOLDER,
        ids: PLACEHOLDER,
        log_prob: PLACEHOLDER,
        rows: BATCH_SIZE,
        vocab: VOCAB_SIZE,
        history_cols: SEQUENCE_LEN,
        suppressed_count: 22,
        ..Zeroable::zeroed()
    };
    vec![("16 rows of 152064 logits", sample::sample(&p))]
}
