// The products of a launch: which one a block of columns belongs to, and what becomes of a finished sum.
#pragma once

#include "cuh/base.cuh"

// Returns the product to which block `block` of COLUMNS columns belongs, and makes `block` its number in that product.
template <u32 COLUMNS>
__device__ __forceinline__ Params product_of(const JoinedParams& p, u32& block) {
  const u32 blocks0 = ceil_div<u32>(p.n0, COLUMNS), blocks1 = ceil_div<u32>(p.n1, COLUMNS);
  Params one = {};
  one.x = p.x;
  one.norm = p.norm;
  one.eps = p.eps;
  one.m = p.m;
  one.k = p.k;
  if (block < blocks0) {
    one.w = p.w0, one.scale = p.scale0, one.bias = p.bias0, one.y = p.y0, one.n = p.n0;
  } else if (block -= blocks0; block < blocks1) {
    one.w = p.w1, one.scale = p.scale1, one.bias = p.bias1, one.y = p.y1, one.n = p.n1;
  } else {
    block -= blocks1;
    one.w = p.w2, one.scale = p.scale2, one.bias = p.bias2, one.y = p.y2, one.n = p.n2;
  }
  return one;
}

// Returns an element of y before its rounding, from the sums of one product or of two (swiglu): applies the scales, then
// bias and residual, or silu and the second product. `at` is the element's index.
template <class T, int WEIGHTS>
__device__ __forceinline__ float finished(const Params& p, float (&sum)[WEIGHTS], u32 column, u64 at) {
#pragma unroll
  for (int which = 0; which < WEIGHTS; ++which) {
    const u64 scale = which == 0 ? p.scale : p.scale2;
    if (scale != 0) sum[which] = __fmul_rn(sum[which], global<const float>(scale)[column]);
  }
  float y = sum[0];
  if constexpr (WEIGHTS == 2) {
    y = __fmul_rn(__fdiv_rn(y, 1.0f + expf(-y)), sum[1]);
  } else {
    if (p.bias != 0) y = __fadd_rn(y, to_f32(global<const T>(p.bias)[column]));
    if (p.residual != 0) y = __fadd_rn(y, to_f32(global<const T>(p.residual)[at]));
  }
  return y;
}
