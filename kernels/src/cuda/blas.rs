//! Matrix products of a GPU as [`Blas`], the interface of cuBLASLt ([`super::cublaslt`]) and of the fake driver's products.

use super::algorithms::Algorithms;
use super::error::CudaError;
use super::types::Stream;
use crate::DType;
use crate::matmul::Matmul;

/// Bytes of workspace that products are chosen for: what NVIDIA recommends for Hopper.
pub const WORKSPACE: usize = 32 << 20;

/// Matrix products of one GPU.
pub trait Blas: Send + Sync {
    /// Which library, with its version: `cuBLASLt 13.1.0`.
    fn version(&self) -> String;

    /// The algorithms of the products so far. Which one a product gets is a function of its [`Shape`], the GPU and the library.
    fn algorithms(&self) -> Algorithms;

    /// Asks for a product on the stream, with m and n above 0 and k too.
    ///
    /// # Safety
    /// The operands lie in memory of this GPU with the sizes that the product has; `workspace` has [`WORKSPACE`] bytes that nothing else
    /// on another stream uses.
    unsafe fn product(&self, product: &Matmul, workspace: u64, stream: Stream) -> Result<(), CudaError>;
}

/// A product with its shape, for messages: `matmul_fwd [5, 7] of 9 bf16 x bf16 -> f32`.
pub fn describe(p: &Matmul) -> String {
    let bias = if p.bias.is_null() { "" } else { " + bias" };
    let old = if p.accumulate { " + c" } else { "" };
    format!("{} [{}, {}] over {}: {} x {} to {}{bias}{old}", p.name(), p.m, p.n, p.k, p.a.dtype, p.b.dtype, p.c_dtype)
}

/// What cuBLASLt cannot do of our products; None where it can.
pub fn refused(p: &Matmul) -> Option<String> {
    let types = [p.a.dtype, p.b.dtype, p.c_dtype];
    if p.a.dtype != p.b.dtype {
        return Some(format!("operands of two types, {} and {}; cast one", p.a.dtype, p.b.dtype));
    }
    if !types.iter().all(|t| matches!(t, DType::F32 | DType::BF16))
        || (p.a.dtype, p.c_dtype) == (DType::F32, DType::BF16)
    {
        return Some(format!("a result of {} from operands of {}; cast it afterwards", p.c_dtype, p.a.dtype));
    }
    if p.m == 0 || p.n == 0 || p.k == 0 {
        return Some("an empty operand".into());
    }
    if [p.m, p.n, p.k].iter().any(|&d| d > i32::MAX as usize) {
        return Some(format!("a dimension beyond {}", i32::MAX));
    }
    None
}
