//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` use.

use crate::folder::{
    BATCH_SIZE, FLOAT_DTYPES, HIDDEN_SIZE, INTERMEDIATE_SIZE, LabeledLaunches, PLACEHOLDER_ADDRESS, Sizes,
    placeholder_params,
};
use crate::{Addr, skinny};

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
            m,
            n,
            k,
            ..placeholder_params()
        };
        if gated { skinny::swiglu(t, weight, &p) } else { skinny::linear(t, weight, &p) }
    };
    let calls =
        FLOAT_DTYPES.map(|t| [false, true].map(|g| [call(t, WeightFormat::Bf16, g), call(t, WeightFormat::Int8, g)]));
    calls.into_iter().flatten().flatten().map(|launch| (size, launch)).collect()
}
