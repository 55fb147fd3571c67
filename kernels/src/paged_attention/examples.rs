//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

use reel_device::Addr;

use crate::folder::{
    BATCH_SIZE, FLOAT_DTYPES, HEAD_DIM, HEADS, KV_HEADS, LabeledLaunches, PLACEHOLDER_ADDRESS, SEQUENCE_LEN, Sizes,
    placeholder_params,
};
use crate::paged_attention;

pub(crate) fn example_calls(s: &Sizes) -> LabeledLaunches {
    let (batch, context) = (s.get("batch", BATCH_SIZE), s.get("context", SEQUENCE_LEN));
    let (heads, kv_heads, head_dim) = (s.get("heads", HEADS), s.get("kv_heads", KV_HEADS), s.get("head_dim", HEAD_DIM));
    let p = paged_attention::Params {
        lse: Addr::NULL,
        workspace: Addr::NULL,
        tokens: batch,
        seqs: batch,
        heads,
        kv_heads,
        head_dim,
        max_blocks: context.div_ceil(64),
        scale: 1.0 / (head_dim as f32).sqrt(),
        max_kv_len: context,
        page_tokens: 64,
        ..placeholder_params()
    };
    let workspace = |t| if paged_attention::workspace_bytes(t, &p) > 0 { PLACEHOLDER_ADDRESS } else { Addr::NULL };
    let (pairs, keys) = paged_attention::query_key_pair_and_key_counts((0..batch).map(|_| (1, context as usize)));
    let size = "16 sequences with one new token and 8192 keys each, 28 query and 4 key heads of 128 elements";
    let params = |t| paged_attention::Params { workspace: workspace(t), ..p };
    FLOAT_DTYPES.map(|t| (size, paged_attention::fwd(t, &params(t), pairs, keys))).into()
}
