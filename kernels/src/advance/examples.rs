//! Example calls of the kernels for `reel kernels list`, `show` and `bench`.

use crate::advance;
use crate::folder::{BATCH, Calls, PLACEHOLDER, Sizes, TOKENS};

/// Returns the example calls, each with a text that describes its size.
pub(crate) fn examples(_: &Sizes) -> Calls {
    let p = advance::Params {
        chosen: PLACEHOLDER,
        ids: PLACEHOLDER,
        positions: PLACEHOLDER,
        kv_lens: PLACEHOLDER,
        kv_limits: PLACEHOLDER,
        block_tables: PLACEHOLDER,
        slots: PLACEHOLDER,
        draws: PLACEHOLDER,
        history: PLACEHOLDER,
        history_lens: PLACEHOLDER,
        rows: BATCH,
        max_blocks: TOKENS / 64,
        page: 64,
        history_cols: TOKENS,
    };
    vec![("16 rows of 8192 keys", advance::advance(&p))]
}
