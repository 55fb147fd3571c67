//! The interface to matrix products on a GPU: the trait [`Blas`], implemented by cuBLASLt ([`super::cublaslt`]) and
//! by the fake driver.

use super::algorithms::AlgorithmFingerprint;
use super::error::CudaError;
use super::types::StreamHandle;
use crate::DType;
use crate::launch::Matmul;

/// Bytes of workspace for matrix products: NVIDIA's recommendation for Hopper.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// A library for matrix products on one GPU.
pub trait Blas: Send + Sync {
    /// Returns the library's name and version, such as `cuBLASLt 13.1.0`.
    fn version(&self) -> String;

    /// Returns a summary of the algorithms used so far. The algorithm of a product depends only on its shape and
    /// dtypes, the GPU and the library.
    fn algorithms(&self) -> AlgorithmFingerprint;

    /// Enqueues a matrix product on the stream; m, n and k are at least 1.
    ///
    /// # Safety
    /// The operands are in memory of this GPU and have the sizes of the product. `workspace` has [`WORKSPACE_BYTES`]
    /// bytes that no work on another stream uses.
    unsafe fn product(&self, product: &Matmul, workspace: u64, stream: StreamHandle) -> Result<(), CudaError>;
}

/// Returns a product as text for messages, such as `matmul_fwd [5, 7] over 9: bf16 x bf16 to f32`.
fn describe_product(p: &Matmul) -> String {
    let bias = if p.bias.is_null() { "" } else { " + bias" };
    let old = if p.accumulate { " + c" } else { "" };
    format!("{} [{}, {}] over {}: {} x {} to {}{bias}{old}", p.name(), p.m, p.n, p.k, p.a.dtype, p.b.dtype, p.c_dtype)
}

/// Returns the error for a product that cannot be computed, with the reason `why`.
pub(super) fn product_error(p: &Matmul, why: impl Into<String>) -> CudaError {
    CudaError::Product { product: describe_product(p), why: why.into() }
}

/// Returns why cuBLASLt cannot compute this product; `None` if it can.
pub(super) fn unsupported_reason(p: &Matmul) -> Option<String> {
    let types = [p.a.dtype, p.b.dtype, p.c_dtype];
    if p.a.dtype != p.b.dtype {
        return Some(format!("its operands have different types, {} and {}; cast one of them", p.a.dtype, p.b.dtype));
    }
    if !types.iter().all(|t| matches!(t, DType::F32 | DType::BF16))
        || (p.a.dtype, p.c_dtype) == (DType::F32, DType::BF16)
    {
        return Some(format!(
            "a result of type {} from operands of type {} is not supported; cast the result afterwards",
            p.c_dtype, p.a.dtype
        ));
    }
    if p.m == 0 || p.n == 0 || p.k == 0 {
        return Some("an operand is empty".into());
    }
    if [p.m, p.n, p.k].iter().any(|&d| d > i32::MAX as usize) {
        return Some(format!("a dimension exceeds {}", i32::MAX));
    }
    None
}
