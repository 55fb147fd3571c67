//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

use reel_device::{Addr, DType};

use crate::folder::{
    BATCH_SIZE, FLOAT_DTYPES, HEAD_DIM, HEADS, HIDDEN_SIZE, INTERMEDIATE_SIZE, KV_HEADS, LabeledLaunches,
    PLACEHOLDER_ADDRESS, Sizes, VOCAB_SIZE, placeholder_params,
};
use crate::skinny;

pub(crate) fn example_calls(s: &Sizes) -> LabeledLaunches {
    use skinny::WeightFormat;
    let (m, n, k) = (s.get("batch", BATCH_SIZE), s.get("n", INTERMEDIATE_SIZE), s.get("k", HIDDEN_SIZE));
    let size = "16 rows times a feed-forward matrix of 18944 x 3584";
    let call = |t, weight: WeightFormat, gated: bool| {
        let scale = if matches!(weight, WeightFormat::Int8) { PLACEHOLDER_ADDRESS } else { Addr::NULL };
        let p = skinny::Params {
            w2: if gated { PLACEHOLDER_ADDRESS } else { Addr::NULL },
            scale,
            scale2: if gated { scale } else { Addr::NULL },
            bias: Addr::NULL,
            residual: Addr::NULL,
            norm: if gated { PLACEHOLDER_ADDRESS } else { Addr::NULL },
            m,
            n,
            k,
            ..placeholder_params()
        };
        if gated { skinny::swiglu(t, weight, &p) } else { skinny::linear(t, weight, &p) }
    };
    // Calls that compute the norm, the projections to queries, keys and values, the rotation and the writes to the
    // caches.
    let qkv = |t, weight: WeightFormat| {
        let scale = if matches!(weight, WeightFormat::Int8) { PLACEHOLDER_ADDRESS } else { Addr::NULL };
        let p = skinny::QkvParams {
            scale_q: scale,
            scale_k: scale,
            scale_v: scale,
            m,
            k: HIDDEN_SIZE,
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            pages: m.div_ceil(64),
            page_tokens: 64,
            ..placeholder_params()
        };
        skinny::qkv(t, weight, &p)
    };
    let projections = "16 rows times matrices of 3584, 512 and 512 rows of 3584";
    let qkv = FLOAT_DTYPES.map(|t| [qkv(t, WeightFormat::Bf16), qkv(t, WeightFormat::Int8)]);
    // The output layer.
    let logits = |weight: WeightFormat| {
        let scale = if matches!(weight, WeightFormat::Int8) { PLACEHOLDER_ADDRESS } else { Addr::NULL };
        let p = skinny::Params {
            w2: Addr::NULL,
            scale,
            scale2: Addr::NULL,
            bias: Addr::NULL,
            residual: Addr::NULL,
            norm: Addr::NULL,
            m,
            n: VOCAB_SIZE,
            k: HIDDEN_SIZE,
            ..placeholder_params()
        };
        ("16 rows times the output layer, 152064 x 3584", skinny::logits(DType::BF16, weight, &p))
    };
    let logits = [WeightFormat::Bf16, WeightFormat::Int8].map(logits);
    let calls =
        FLOAT_DTYPES.map(|t| [false, true].map(|g| [call(t, WeightFormat::Bf16, g), call(t, WeightFormat::Int8, g)]));
    let qkv = qkv.into_iter().flatten().map(|launch| (projections, launch));
    calls.into_iter().flatten().flatten().map(|launch| (size, launch)).chain(qkv).chain(logits).collect()
}
