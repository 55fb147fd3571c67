//! The matrix product `C[m, n] = scale · A · Bᵀ (+ bias) (+ C)`. Devices `cpu` and `sim` compute it with the CPU code
//! in this folder, device `cuda` with the CUDA code or with cuBLASLt.
//!
//! A is `[m, k]` (or stored transposed, `[k, m]`), B is `[n, k]` (or stored transposed, `[k, n]`); row-major,
//! contiguous. A linear layer is `A = x, B = weight`; the gradient of its input is `A = dy, B = weight` stored `[k,
//! n]`; that of its weight is `A = dy` stored `[k, m]`, `B = x` stored `[k, n]`.
//!
//! Numerics on the CPU: products and sums in f32 (bf16 × bf16 uses the tiles of AMX or the bf16 dot product where the
//! processor has them and they are faster, see `simd`: pairs of k, denormals as zero; with AMX, f32 of a k
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
//! `gemm_swiglu_bf16` computes SwiGLU in the launch of the products of gate and up, for passes without gradients. Both
//! sums are rounded to bf16 first, so its bits are those of two products and [`crate::swiglu`]. The gain is the traffic
//! of these products: 8 bytes of memory for each element of the result.
//!
//! On the CPU a B of f32 or bf16 may be stored in groups of `GROUP_ROWS` rows, `[n / 32][k][32]` or `[n / 32][k /
//! 2][32][2]`, which `WeightGroups` arranges: the layout that the tile functions read, so that
//! nothing has to be packed and few rows of A read one stream of memory instead of 16. The bits of C are the same.
//!
//! B may be int8 with one scale for each of its rows: `C[i, j] = scale · b_scale[j] · Σ A[i, k] B[j, k]`. It is
//! stored in groups of [`INT8_GROUP`] rows, `[n / 16][k][16]`, so that the CPU's vectors need no transposition;
//! [`arrange_in_int8_groups`] arranges it. An int8 is exact in bf16 and in f32, so the sum is bit-identical to that of
//! a product whose B holds the same numbers as bf16. Device `cuda` computes such products by [`crate::skinny`] instead,
//! with B `[n, k]`.

pub(crate) mod check;
pub mod cpu;
mod examples;
mod form;
mod formula;
pub mod gemm;
pub mod plan;
#[cfg(test)]
mod tests;

use reel_device::launch::{INT8_GROUP, Matmul, Operand, ProductCode, RightLayout};
use reel_device::{Addr, DType};

use crate::elementwise::{self, CastParams};
use crate::folder::kernel_folder;

kernel_folder! {
    name: "matmul",
    params: [gemm::Params],
    headers: ["consumer.cuh", "epilogue.cuh", "plain.cuh", "producer.cuh", "sm90a.cuh", "tile.cuh"],
    variants: gemm::VARIANTS,
}

/// The code that executes products, which each `Matmul` and each `WeightGroups` carries.
pub static PRODUCT_CODE: ProductCode = ProductCode {
    cpu: cpu::run,
    simulated: cpu::run_simulated,
    arrange: cpu::pack_into_groups,
    gpu_kernel: gemm::kernel_launch,
    wave_share: gemm::wave_share,
    cast_to_f32: |dtype, src, dst, count| {
        elementwise::cast(dtype, DType::F32, &CastParams { src, dst, count: count as u64 })
    },
};

/// The product `c = a · bᵀ` of the size `[m, n, k]`, without bias, scale or accumulation, and with a B that is not packed.
pub fn plain_product([m, n, k]: [usize; 3], a: Operand, b: Operand, c: Addr, c_dtype: DType) -> Matmul {
    let (b_scale, bias, code) = (Addr::NULL, Addr::NULL, &PRODUCT_CODE);
    Matmul {
        m,
        n,
        k,
        a,
        b,
        b_scale,
        b_layout: RightLayout::Plain,
        c,
        c_dtype,
        bias,
        accumulate: false,
        scale: 1.0,
        code,
    }
}

/// Arranges a matrix `[n, k]` of int8 as the operand B of a product: `[n / 16][k][16]`. The last group is padded with
/// rows of zeros.
pub fn arrange_in_int8_groups(rows: &[i8], n: usize, k: usize) -> Vec<i8> {
    const COLUMNS: usize = 512;
    let mut groups = vec![0; n.next_multiple_of(INT8_GROUP) * k];
    if k > 0 {
        for (group, rows) in groups.chunks_exact_mut(INT8_GROUP * k).zip(rows.chunks(INT8_GROUP * k)) {
            // Processes blocks of columns, so that the 16 rows of a block stay in the first-level cache while their
            // bytes are interleaved.
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
