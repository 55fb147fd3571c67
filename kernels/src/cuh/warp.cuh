// Sums and maxima over a warp and over a block, in a fixed order.
#pragma once

#include "cuh/base.cuh"

// Returns the value of x in the lane whose number is this lane's number XOR `mask`.
template <class T>
__device__ __forceinline__ T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

// Loads one value with a single memory access and gives it to all lanes of the warp.
template <class T>
__device__ __forceinline__ T load_for_warp(const T* p) {
  T x{};
  if (threadIdx.x % 32 == 0) x = *p;
  return __shfl_sync(0xffffffffu, x, 0);
}

// Returns the sum of x over the warp, with the same bits in all lanes. Lanes 16 apart are added first, neighbours
// last.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) x += shuffle_xor(x, mask);
  return x;
}

// Returns the maximum of x over the warp; NaN is ignored.
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

// Returns the sum of x over a block of THREADS threads, with the same bits in all threads: first within each warp,
// then warp by warp. `scratch` has one element per warp; it must not be in use before the call, nor be written again
// before the caller's next barrier.
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

// Returns the maximum of x over a block of THREADS threads; NaN is ignored. `scratch` has one element per warp; the
// conditions of block_sum apply to it.
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
