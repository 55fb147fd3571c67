//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

use crate::folder::{BATCH_SIZE, LabeledLaunches, PLACEHOLDER_ADDRESS, SEQUENCE_LEN, Sizes, VOCAB_SIZE};
use crate::sample;
use bytemuck::Zeroable;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let p = sample::Params {
        logits: PLACEHOLDER_ADDRESS,
        temperature: PLACEHOLDER_ADDRESS,
        top_p: PLACEHOLDER_ADDRESS,
        top_k: PLACEHOLDER_ADDRESS,
        penalty: PLACEHOLDER_ADDRESS,
        seed: PLACEHOLDER_ADDRESS,
        position: PLACEHOLDER_ADDRESS,
        history: PLACEHOLDER_ADDRESS,
        history_len: PLACEHOLDER_ADDRESS,
        suppressed: PLACEHOLDER_ADDRESS,
        workspace: PLACEHOLDER_ADDRESS,
        ids: PLACEHOLDER_ADDRESS,
        log_prob: PLACEHOLDER_ADDRESS,
        rows: BATCH_SIZE,
        vocab: VOCAB_SIZE,
        history_cols: SEQUENCE_LEN,
        suppressed_count: 22,
        ..Zeroable::zeroed()
    };
    vec![("16 rows of 152064 logits", sample::sample(&p))]
}
