// Sums and maxima over a warp and over a block, in a fixed order.
#pragma once

#include "cuh/base.cuh"

// Exchanges one value with the lane whose number differs in the bits of `mask`.
template <class T>
__device__ __forceinline__ T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

// Loads one number for the whole warp with a single memory access.
template <class T>
__device__ __forceinline__ T load_for_warp(const T* p) {
  T x{};
  if (threadIdx.x % 32 == 0) x = *p;
  return __shfl_sync(0xffffffffu, x, 0);
}

// Returns the sum over the warp, the same bits in all lanes: pairs 16 lanes apart first, neighbours last.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) x += shuffle_xor(x, mask);
  return x;
}

// Returns the maximum over the warp, ignoring NaN.
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

// Returns the sum over a block of THREADS threads, the same bits in all: within warps, then warp after warp.
// `scratch` has one element a warp; it must not be in use and stays in use until the caller's next barrier.
template <int THREADS, class T>
__device__ __forceinline__ T block_sum(T x, T* scratch) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = scratch[0];
#pragma unroll
  for (int warp = 1; warp < THREADS / 32; ++warp) sum += scratch[warp];
  return sum;
}

// Returns the maximum over a block of THREADS threads, ignoring NaN; `scratch` as for block_sum.
template <int THREADS>
__device__ __forceinline__ float block_max(float x, float* scratch) {
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float largest = scratch[0];
#pragma unroll
  for (int warp = 1; warp < THREADS / 32; ++warp) largest = fmaxf(largest, scratch[warp]);
  return largest;
}
