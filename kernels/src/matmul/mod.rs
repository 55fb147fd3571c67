//! The matrix product `C[m, n] = scale · A · Bᵀ (+ bias) (+ C)`. Device `cuda` computes it with cuBLASLt, `cpu` and
//! `sim` with the code in this folder.
//!
//! A is `[m, k]` (or stored transposed, `[k, m]`), B is `[n, k]` (or stored transposed, `[k, n]`); row-major,
//! contiguous. A linear layer is `A = x, B = weight`; the gradient of its input is `A = dy, B = weight` stored `[k,
//! n]`; that of its weight is `A = dy` stored `[k, m]`, `B = x` stored `[k, n]`.
//!
//! Numerics on the CPU: products and sums in f32 (bf16 × bf16 uses the tiles of AMX or the bf16 dot product where the
//! processor has them and they are faster, see [`crate::simd`]: pairs of k, denormals as zero), then scale, bias, the
//! old C, and one rounding at the store. The order of summation over k depends on k alone: not on m, n, the element's
//! position, the threads or the storage of the operands (`cpu/mod.rs` has the details). Bound by arithmetic for large
//! m, by reading B from memory for small m.

pub mod cpu;
#[cfg(test)]
mod formula;
#[cfg(test)]
mod tests;

use crate::{Addr, Cost, DType};

/// A matrix operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// Where it lies.
    pub addr: Addr,
    /// F32 or BF16.
    pub dtype: DType,
    /// True if the operand is stored transposed: k is the first dimension in memory.
    pub transposed: bool,
}

/// The sizes and operands of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matmul {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// `[m, k]`, or `[k, m]` if transposed.
    pub a: Operand,
    /// `[n, k]`, or `[k, n]` if transposed.
    pub b: Operand,
    /// `[m, n]`, written.
    pub c: Addr,
    /// F32 or BF16.
    pub c_dtype: DType,
    /// `[n]` of C's dtype, added to each row; absent if null.
    pub bias: Addr,
    /// True: the product is added to the old C; false: it replaces C.
    pub accumulate: bool,
    /// Factor by which the finished sums are multiplied; a factor of 1 leaves their bits as they are.
    pub scale: f32,
}

impl Matmul {
    /// Returns the name of the product in profiles. It names the role that a product with these operands (transposed or
    /// not) has in a linear layer: `matmul_fwd`, `matmul_dx` or `matmul_dw`.
    pub fn name(&self) -> &'static str {
        match (self.a.transposed, self.b.transposed) {
            (false, false) => "matmul_fwd",
            (false, true) => "matmul_dx",
            (true, true) => "matmul_dw",
            (true, false) => "matmul_tt",
        }
    }

    /// Returns the address and the bytes of the right operand, B. In a model it is mostly a weight.
    pub fn right_operand(&self) -> (Addr, f64) {
        (self.b.addr, self.n as f64 * self.k as f64 * self.b.dtype.size() as f64)
    }

    /// Returns the cost: 2·m·n·k operations, and the bytes of each operand once (of C twice if the product is added
    /// to it).
    pub fn cost(&self) -> Cost {
        let (m, n, k) = (self.m as f64, self.n as f64, self.k as f64);
        let c = m * n * self.c_dtype.size() as f64 * if self.accumulate { 2.0 } else { 1.0 };
        Cost {
            flops: 2.0 * m * n * k,
            bytes: m * k * self.a.dtype.size() as f64 + n * k * self.b.dtype.size() as f64 + c,
        }
    }
}
