//! The matrix product `C[m, n] = scale · A · Bᵀ (+ bias) (+ C)`. Devices `cpu` and `sim` compute it with the CPU code
//! in this folder, device `cuda` with the CUDA code or with cuBLASLt.
//!
//! A is `[m, k]` (or stored transposed, `[k, m]`), B is `[n, k]` (or stored transposed, `[k, n]`); row-major,
//! contiguous. A linear layer is `A = x, B = weight`; the gradient of its input is `A = dy, B = weight` stored `[k,
//! n]`; that of its weight is `A = dy` stored `[k, m]`, `B = x` stored `[k, n]`.
//!
//! Numerics on the CPU: products and sums in f32 (bf16 × bf16 uses the tiles of AMX or the bf16 dot product where the
//! processor has them and they are faster, see [`crate::simd`]: pairs of k, denormals as zero; with AMX, f32 of a k
//! from 512 on is split into bf16 parts for the tiles, where an infinity may give NaN), then scale, bias, the old C,
//! and one rounding at the store. The order of summation over k depends on k alone: not on m, n, the element's
//! position, the threads or the storage of the operands (`cpu/mod.rs` has the details). Bound by arithmetic for large
//! m, `2 · m · n · k` operations, by reading B from memory for small m. `tests/` has the tests of the CPU code.
//!
//! Numerics in CUDA (`gemm.rs`, bf16 operands): one f32 accumulator per element of C, k ascending in steps of 16 (sums
//! of tensor cores, which truncate), then scale, bias, old C, and one rounding. The bits depend on the row of A, the
//! row of B and k alone: not on the tile, on m or n, or on the GPU's number of multiprocessors. An old C of f32 is
//! added by the memory, which takes subnormal numbers as 0. Tolerance: twice the bound of an f32 sum, plus one
//! rounding.
//!
//! On the CPU a B of f32 or bf16 may be stored in groups of [`GROUP_ROWS`] rows, `[n / 32][k][32]` or `[n / 32][k /
//! 2][32][2]`, which [`WeightGroups`] arranges: the layout that the tile functions read, so that
//! nothing has to be packed and few rows of A read one stream of memory instead of 16. The bits of C are the same.
//!
//! B may be int8 with one scale for each of its rows: `C[i, j] = scale · b_scale[j] · Σ A[i, k] B[j, k]`. It is
//! stored in groups of [`INT8_GROUP`] rows, `[n / 16][k][16]`, so that the CPU's vectors need no transposition;
//! [`int8_groups`] arranges it. An int8 is exact in bf16 and in f32, so the sum has the bits of a product whose B
//! holds the same numbers as bf16. Device `cuda` computes such products by [`crate::skinny`] instead, with B `[n,
//! k]`.

pub(crate) mod check;
pub mod cpu;
mod examples;
mod formula;
pub mod gemm;
mod plan;
#[cfg(test)]
mod tests;

use crate::folder::kernel_folder;
use crate::{Addr, Cost, DType};

kernel_folder! {
    name: "matmul",
    params: [gemm::Params],
    headers: ["consumer.cuh", "epilogue.cuh", "plain.cuh", "producer.cuh", "sm90a.cuh", "tile.cuh"],
    variants: gemm::VARIANTS,
}

/// Rows of a group of an int8 operand.
pub const INT8_GROUP: usize = 16;
/// Rows of a group of an f32 or bf16 operand that is stored in groups.
pub const GROUP_ROWS: usize = 32;

/// The number of elements of a matrix `[n, k]` of this dtype, F32 or BF16, that is stored in groups.
pub fn group_elements(dtype: DType, n: usize, k: usize) -> usize {
    n.next_multiple_of(GROUP_ROWS) * k.next_multiple_of(4 / dtype.size())
}

/// Arranges a matrix `[n, k]` of int8 as the operand B of a product: `[n / 16][k][16]`. Rows that are missing in the
/// last group are 0.
pub fn int8_groups(rows: &[i8], n: usize, k: usize) -> Vec<i8> {
    const COLUMNS: usize = 512;
    let mut groups = vec![0; n.next_multiple_of(INT8_GROUP) * k];
    if k > 0 {
        for (group, rows) in groups.chunks_exact_mut(INT8_GROUP * k).zip(rows.chunks(INT8_GROUP * k)) {
            // Blocks of columns stay in the first-level cache while the rows are written side by side.
            for (block, group) in group.chunks_mut(INT8_GROUP * COLUMNS).enumerate() {
                for (lane, row) in rows.chunks_exact(k).enumerate() {
                    let row = row[block * COLUMNS..].iter().take(COLUMNS);
                    group.chunks_exact_mut(INT8_GROUP).zip(row).for_each(|(at, x)| at[lane] = *x);
                }
            }
        }
    }
    groups
}

/// A matrix operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// Where it lies.
    pub addr: Addr,
    /// F32 or BF16; B may be I8.
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
    /// `[n, k]`, or `[k, n]` if transposed; I8: `[n / 16][k][16]`, never transposed; see also `b_grouped`.
    pub b: Operand,
    /// f32 `[n]`, the scales of an I8 B; otherwise null.
    pub b_scale: Addr,
    /// True: B is f32 or bf16 and stored in groups, see [`WeightGroups`]. Only on the CPU; B is then not transposed.
    pub b_grouped: bool,
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
        (self.b.addr, self.n as f64 * self.k as f64 * self.b.dtype.size() as f64 + self.scale_bytes())
    }

    /// Returns the cost: 2·m·n·k operations, and the bytes of each operand once (of C twice if the product is added
    /// to it).
    pub fn cost(&self) -> Cost {
        let (m, n, k) = (self.m as f64, self.n as f64, self.k as f64);
        let c = m * n * self.c_dtype.size() as f64 * if self.accumulate { 2.0 } else { 1.0 };
        Cost {
            flops: 2.0 * m * n * k,
            bytes: m * k * self.a.dtype.size() as f64 + n * k * self.b.dtype.size() as f64 + self.scale_bytes() + c,
        }
    }

    fn scale_bytes(&self) -> f64 {
        if self.b_scale.is_null() { 0.0 } else { 4.0 * self.n as f64 }
    }

    /// Returns the number of elements of B in memory: one that is stored in groups has rows of zeros up to a whole
    /// group.
    pub fn elements_of_b(&self) -> usize {
        if self.b_grouped {
            return group_elements(self.b.dtype, self.n, self.k);
        }
        let rows = if self.b.dtype == DType::I8 { self.n.next_multiple_of(INT8_GROUP) } else { self.n };
        rows * self.k
    }
}

/// A launch that arranges a plain weight `[n, k]` of f32 or bf16 in groups: f32 as `[n / 32][k][32]`, bf16 as `[n /
/// 32][k / 2][32][2]`, pairs of neighbouring k of 32 rows side by side. What is missing in the last group and in the
/// last pair is 0. Only on the CPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightGroups {
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// F32 or BF16.
    pub dtype: DType,
    /// `[n, k]`, read.
    pub from: Addr,
    /// [`group_elements`] elements, written.
    pub to: Addr,
}

impl WeightGroups {
    /// Returns the cost: each element is read and written once.
    pub fn cost(&self) -> Cost {
        let elements = self.n * self.k + group_elements(self.dtype, self.n, self.k);
        Cost { flops: 0.0, bytes: (elements * self.dtype.size()) as f64 }
    }
}
