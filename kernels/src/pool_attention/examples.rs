//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` use.

use crate::folder::{FLOAT_DTYPES, LabeledLaunches, PLACEHOLDER, Sizes};
use crate::pool_attention;
use bytemuck::Zeroable;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let (tokens, images, heads, head_dim, scale) = (16 * 729, 16, 16, 72, 1.0);
    let fwd = pool_attention::FwdParams {
        q: PLACEHOLDER,
        k: PLACEHOLDER,
        v: PLACEHOLDER,
        cu_seqlens: PLACEHOLDER,
        o: PLACEHOLDER,
        lse: PLACEHOLDER,
        tokens,
        images,
        heads,
        head_dim,
        scale,
        ..Zeroable::zeroed()
    };
    let bwd = pool_attention::BwdParams {
        q: PLACEHOLDER,
        k: PLACEHOLDER,
        v: PLACEHOLDER,
        cu_seqlens: PLACEHOLDER,
        o: PLACEHOLDER,
        lse: PLACEHOLDER,
        d_o: PLACEHOLDER,
        dq: PLACEHOLDER,
        dk: PLACEHOLDER,
        dv: PLACEHOLDER,
        partial: PLACEHOLDER,
        tokens,
        images,
        heads,
        head_dim,
        scale,
        ..Zeroable::zeroed()
    };
    let calls = FLOAT_DTYPES.map(|t| [pool_attention::fwd(t, &fwd), pool_attention::bwd(t, &bwd)]);
    calls
        .into_iter()
        .flatten()
        .map(|launch| ("16 images of 729 patches, as in SigLIP's attention pooling", launch))
        .collect()
}
