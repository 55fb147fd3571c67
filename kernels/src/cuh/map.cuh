// Element-by-element kernels. A block owns MAP_BLOCK elements; each thread takes vectors of V elements of them, a block's width
// apart, and loads all before it stores any. Elements of a ragged or unaligned block go one by one, neighbours to neighbours.
//
// An operation has `static constexpr int V`, `template <int V> struct Values`, and `load(at, values)` and `store(at, values)`,
// which turn the V elements from `at` on into values and back.
#pragma once

#include "cuh/base.cuh"

constexpr int MAP_THREADS = 256;
constexpr int MAP_BLOCK = 2048;

// `vector`: V elements from any multiple of V on can be accessed at once in every operand.
template <class Op>
__device__ __forceinline__ void map(u64 n, bool vector, const Op& op) {
  constexpr int V = Op::V;
  constexpr int STEPS = MAP_BLOCK / (MAP_THREADS * V);
  const u64 first = static_cast<u64>(blockIdx.x) * MAP_BLOCK;
  if (vector && first + MAP_BLOCK <= n) {
    typename Op::template Values<V> values[STEPS];
#pragma unroll
    for (int k = 0; k < STEPS; ++k) op.load(first + (k * MAP_THREADS + threadIdx.x) * V, values[k]);
#pragma unroll
    for (int k = 0; k < STEPS; ++k) op.store(first + (k * MAP_THREADS + threadIdx.x) * V, values[k]);
    return;
  }
#pragma unroll 1
  for (int k = 0; k < MAP_BLOCK / MAP_THREADS; ++k) {
    const u64 at = first + k * MAP_THREADS + threadIdx.x;
    if (at >= n) return;
    typename Op::template Values<1> values;
    op.load(at, values);
    op.store(at, values);
  }
}
