//! The parameters of the CUDA kernels for products of bf16 operands, and how their operands are stored.

use reel_device::launch::TensorMapSlot;
use reel_device::{Addr, DType, params};

params! {
    /// Parameters of the kernels. m, n and k are greater than 0; all addresses and the bytes of all rows are multiples
    /// of 16.
    pub struct Params {
        /// The tensor map of A. The launch plan fills it in.
        pub map_a: TensorMapSlot,
        /// The tensor map of B. The launch plan fills it in.
        pub map_b: TensorMapSlot,
        /// The tensor map of C. The launch plan fills it in.
        pub map_c: TensorMapSlot,
        /// The tensor map of `b2`. The launch plan fills it in.
        pub map_b2: TensorMapSlot,
        /// A: bf16 `[m, k]`; `[k, m]` in the `dw` kernels (gradient of a weight).
        pub a: Addr,
        /// B: bf16 `[n, k]`; `[k, n]` in the `dx` and `dw` kernels (gradients of input and weight).
        pub b: Addr,
        /// f32 or bf16 `[m, n]`, written.
        pub c: Addr,
        /// The bias, `[n]` of C's type, which is added to each row of C; null: no bias.
        pub bias: Addr,
        /// bf16 `[n / 2, k]`: the up weights of `gemm_swiglu_bf16`, whose gate weights B and C have n / 2 rows and columns.
        /// Null in other kernels.
        pub b2: Addr,
        /// Rows of C.
        pub m: u32,
        /// Columns of the product; with `b2` those of gate and up together.
        pub n: u32,
        /// Length of the sums (the inner dimension of the product).
        pub k: u32,
        /// 1: the product is added to the old C; 0: it replaces C.
        pub accumulate: u32,
        /// Factor of the finished sums.
        pub scale: f32,
        /// Padding.
        pub reserved: u32,
    }
}

/// How a kernel's operands are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OperandLayout {
    /// A is `[k, m]`.
    pub a_transposed: bool,
    /// B is `[k, n]`.
    pub b_transposed: bool,
    /// F32 or BF16.
    pub c_dtype: DType,
}

pub(super) const fn form(a_transposed: bool, b_transposed: bool, c_dtype: DType) -> OperandLayout {
    OperandLayout { a_transposed, b_transposed, c_dtype }
}

pub(super) const FWD: OperandLayout = form(false, false, DType::BF16);
pub(super) const FWD_TO_F32: OperandLayout = form(false, false, DType::F32);
pub(super) const DX: OperandLayout = form(false, true, DType::BF16);
pub(super) const DX_TO_F32: OperandLayout = form(false, true, DType::F32);
pub(super) const DW: OperandLayout = form(true, true, DType::BF16);
pub(super) const DW_TO_F32: OperandLayout = form(true, true, DType::F32);
