//! Example calls of the kernels for `reel kernels list`, `show` and `bench`.

use crate::advance;
use crate::folder::{BATCH, Calls, Sizes, TOKENS, placeholders};

/// Returns the example calls, each with a text that describes its size.
pub(crate) fn examples(_: &Sizes) -> Calls {
    let p = advance::Params { rows: BATCH, max_blocks: TOKENS / 64, page: 64, history_cols: TOKENS, ..placeholders() };
    vec![("16 rows of 8192 keys", advance::advance(&p))]
}
