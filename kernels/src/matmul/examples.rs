//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` use: the products of a linear layer.

use reel_device::Addr;

use super::gemm::{self, OperandLayout, Params};
use crate::folder::{HIDDEN_SIZE, INTERMEDIATE_SIZE, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params};

pub(crate) fn example_calls(s: &Sizes) -> LabeledLaunches {
    let (m, n, k) = (s.get("m", SEQUENCE_LEN), s.get("n", INTERMEDIATE_SIZE), s.get("k", HIDDEN_SIZE));
    let call = |form: OperandLayout, [m, n, k]: [u32; 3], accumulate| {
        let p = Params { bias: Addr::NULL, b2: Addr::NULL, m, n, k, accumulate, scale: 1.0, ..placeholder_params() };
        ("8192 rows times a feed-forward matrix of 18944 x 3584", form.launch(form.kernel(), &p))
    };
    let gate_and_up = Params { bias: Addr::NULL, m, n: 2 * n, k, accumulate: 0, scale: 1.0, ..placeholder_params() };
    vec![
        ("8192 rows times gate and up of 18944 x 3584", gemm::swiglu_launch(&gate_and_up)),
        call(gemm::FWD, [m, n, k], 0),
        call(gemm::FWD_TO_F32, [m, n, k], 0),
        call(gemm::DX, [m, k, n], 0),
        call(gemm::DX_TO_F32, [m, k, n], 0),
        call(gemm::DW, [n, k, m], 0),
        call(gemm::DW_TO_F32, [n, k, m], 1),
    ]
}
