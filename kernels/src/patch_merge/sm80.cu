// Patch merging: RMS normalisation of rows in the order of an index, and its gradient.
//
//   fwd: rstd[i] = 1 / sqrt(mean(x[index[i]]^2) + eps),  y[i] = T(w * T(x[index[i]] * rstd[i]))
//   bwd, with x = x[index[i]]: dx[index[i]] = rstd * dy[i] * w - rstd^3 * mean(dy[i] * w * x) * x,
//                              dw += sum over i of dy[i] * x * rstd
//
// Shapes and limits: mod.rs; cols < 2^31. The kernels are those of rms_norm/rows.cuh; place_of tells them where a row
// of x and dx lies. See rms_norm/sm80.cu for numerics, grid, order of sums and pseudo-code. A warp loads the index of
// its next row together with the current row. Memory-bound.

#include "rms_norm/rows.cuh"

__device__ __forceinline__ u64 place_of(const FwdParams& p, u64 row) {
  return static_cast<u32>(load_for_warp(global<const int>(p.index) + row));
}
__device__ __forceinline__ u64 place_of(const BwdParams& p, u64 row) {
  return static_cast<u32>(load_for_warp(global<const int>(p.index) + row));
}
__device__ __forceinline__ bool bases_aligned(const FwdParams& p) { return aligned16(p.x, p.w, p.y); }
__device__ __forceinline__ bool bases_aligned(const BwdParams& p) { return aligned16(p.x, p.w, p.dy, p.dx); }

FORWARD(patch_merge_fwd_f32, patch_merge_fwd_f32_wide, float, FwdParams)
BACKWARD(patch_merge_bwd_f32, patch_merge_bwd_f32_wide, patch_merge_bwd_f32_dw, float, BwdParams, BWD_BLOCK)
FORWARD(patch_merge_fwd_bf16, patch_merge_fwd_bf16_wide, bf16, FwdParams)
BACKWARD(patch_merge_bwd_bf16, patch_merge_bwd_bf16_wide, patch_merge_bwd_bf16_dw, bf16, BwdParams, BWD_BLOCK)
