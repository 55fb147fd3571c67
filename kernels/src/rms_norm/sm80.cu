// RMS normalisation of rows, and its gradient.
//
//   fwd: rstd = 1 / sqrt(mean(x^2) + eps),  y = T(w * T(x * rstd))
//   bwd: dx = rstd * dy * w - rstd^3 * mean(dy * w * x) * x,  dw += sum over rows of dy * x * rstd
//   add_fwd: the same of x = sum = T(x + residual);  add_bwd: dx as above + d_sum
//
// Shapes and limits: mod.rs; cols < 2^31.
// Numerics: f32, rsqrt to 2^-22.9, the mean's quotient to 2 ulp; fwd rounds x * rstd to T and the product with w to T; add_fwd rounds x + residual to T; bwd rounds dx to T; dw stays f32. A row's sum is one
// accumulator a thread over its columns in ascending order, then warp_sum, then warps in order: it depends on cols alone.
//
// Grid: a group of THREADS threads owns a row at a time: a warp up to HELD * 32 columns, 256 threads up to HELD * 256, beyond
// that 512 (the `_wide` symbols). Forward, and backward without dw, stride over the rows. Backward with dw: a block owns
// PART_ROWS rows, its groups equal runs of them; the groups' sums are added in order into the block's row of `partial`, and the
// `_dw` stage adds up the parts.
//
//   for each row of the group:
//     x (and dy) of the row -> registers, 16 bytes a load; up to HELD * 256 columns the next row's
//     loads are issued before this row is worked on (backward: in bf16, else registers run out)
//     reduce; write y or dx; add to dw's registers
//
// Departures: 1. w is read once a block and kept in registers (backward: where rows are multiples of 16 bytes and fit). 2. Columns beyond HELD * 512 are read twice, and their dw is
// summed in `partial` itself. 3. Rows that are not a multiple of 16 bytes go element by element, in the same order of sums.
// Bound: memory.

#include "rms_norm/rows.cuh"

// The parameters of the kernels that add a residual: types of their own, so that templates can tell them apart.
struct AddFwd : FwdParams {};
struct AddBwd : BwdParams {};

template <>
constexpr bool ADDS<AddFwd> = true;
template <>
constexpr bool ADDS<AddBwd> = true;

__device__ __forceinline__ bool bases_aligned(const FwdParams& p) { return aligned16(p.x, p.w, p.y); }
__device__ __forceinline__ bool bases_aligned(const BwdParams& p) { return aligned16(p.x, p.w, p.dy, p.dx); }
__device__ __forceinline__ bool bases_aligned(const AddFwd& p) {
  return aligned16(p.x, p.residual, p.w, p.sum, p.y);
}
__device__ __forceinline__ bool bases_aligned(const AddBwd& p) {
  return aligned16(p.x, p.w, p.dy, p.d_sum, p.dx);
}

KERNELS(float, rms_norm, f32, FwdParams, BwdParams, float, BWD_BLOCK)
KERNELS(bf16, rms_norm, bf16, FwdParams, BwdParams, float, BWD_BLOCK)
KERNELS(float, rms_norm_add, f32, AddFwd, AddBwd, float, BWD_BLOCK)
KERNELS(bf16, rms_norm_add, bf16, AddFwd, AddBwd, float, BWD_BLOCK)
