// RMS normalisation of rows, and its gradient.
//
//   fwd: rstd = 1 / sqrt(mean(x^2) + eps),  y = T(w * T(x * rstd))
//   bwd: dx = rstd * dy * w - rstd^3 * mean(dy * w * x) * x,  dw += sum over rows of dy * x * rstd
//   add_fwd: sum = T(x + residual), then fwd with x = sum;  add_bwd: dx of bwd with x = sum, plus d_sum
//
// Shapes and limits: mod.rs; cols < 2^31. Numerics: f32, rsqrt to 2^-22.9, the mean's quotient to 2 ulp. fwd rounds
// x * rstd to T and the product with w to T; add_fwd rounds x + residual to T; bwd rounds dx to T; dw stays f32. Order
// of a row's sum: each thread adds its columns in ascending order, then warp_sum adds the threads, then the warps are
// added in order. The order depends on cols alone.
//
// Grid: a group of threads computes one row at a time (held.cuh): a warp for up to HELD * 32 columns, 256 threads for
// up to HELD * 256, and 512 threads beyond that (the `_wide` symbols). Forward, and backward without dw, groups
// stride over the rows. Backward with dw, a block owns rows_per_block rows, and the `_dw` stage adds up the blocks'
// sums (norm_rows.cuh).
//
//   for each row of the group:
//     x (and dy) of the row -> registers, 16 bytes per load
//     up to HELD * 256 columns: start the next row's loads (backward only in bf16, because registers run out)
//     reduce; write y or dx; add to the column sums in registers
//
// w is read once per block and kept in registers (backward: if rows are multiples of 16 bytes and fit). Columns
// beyond HELD * 512 are read twice, and their dw is summed in `partial` itself. Rows that are not a multiple of 16
// bytes are processed element by element, in the same order of sums. Memory-bound.

#include "rms_norm/rows.cuh"

// Parameters of the kernels that add a residual. They are separate types, so that templates can distinguish them from
// the parameters of the kernels without a residual.
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

FORWARD(rms_norm_fwd_f32, rms_norm_fwd_f32_wide, float, FwdParams)
BACKWARD(rms_norm_bwd_f32, rms_norm_bwd_f32_wide, rms_norm_bwd_f32_dw, float, BwdParams, BWD_BLOCK)
FORWARD(rms_norm_fwd_bf16, rms_norm_fwd_bf16_wide, bf16, FwdParams)
BACKWARD(rms_norm_bwd_bf16, rms_norm_bwd_bf16_wide, rms_norm_bwd_bf16_dw, bf16, BwdParams, BWD_BLOCK)
FORWARD(rms_norm_add_fwd_f32, rms_norm_add_fwd_f32_wide, float, AddFwd)
BACKWARD(rms_norm_add_bwd_f32, rms_norm_add_bwd_f32_wide, rms_norm_add_bwd_f32_dw, float, AddBwd, BWD_BLOCK)
FORWARD(rms_norm_add_fwd_bf16, rms_norm_add_fwd_bf16_wide, bf16, AddFwd)
BACKWARD(rms_norm_add_bwd_bf16, rms_norm_add_bwd_bf16_wide, rms_norm_add_bwd_bf16_dw, bf16, AddBwd, BWD_BLOCK)
