// Element-by-element kernels. A block of threads computes MAP_BLOCK elements. Each thread loads STEPS vectors of V
// elements, MAP_THREADS vectors apart, before it stores the first result. If the last block is incomplete or an
// address is unaligned, the threads process single elements.
//
// An operation `Op` has `static constexpr int V` and `template <int V> struct Values`. `load(at, values)` reads V
// elements from index `at`; `store(at, values)` computes their results and writes them.
#pragma once

#include "cuh/base.cuh"

constexpr int MAP_THREADS = 256;
constexpr int MAP_BLOCK = 2048;

// Runs an operation on the MAP_BLOCK elements from `first` on, of n elements. `vector` promises that all arrays of the
// operation are aligned for accesses of V elements.
template <class Op>
__device__ __forceinline__ void map_block(u64 first, u64 n, bool vector, const Op& op) {
  constexpr int V = Op::V;
  constexpr int STEPS = MAP_BLOCK / (MAP_THREADS * V);
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

// Runs an operation on n elements. Each block of threads processes MAP_BLOCK of them.
template <class Op>
__device__ __forceinline__ void map(u64 n, bool vector, const Op& op) {
  map_block(static_cast<u64>(blockIdx.x) * MAP_BLOCK, n, vector, op);
}

// Runs an operation on the elements first .. end with one block of threads. `first` is a multiple of MAP_BLOCK.
template <class Op>
__device__ __forceinline__ void map_range(u64 first, u64 end, bool vector, const Op& op) {
#pragma unroll 1
  for (; first < end; first += MAP_BLOCK) map_block(first, end, vector, op);
}

// An operation whose results at one index depend on the operands at the same index only: f(x, y) computes the results
// y[0 .. WRITES] from the operands x[0 .. READS].
template <class S, class D, int READS, int WRITES, class F>
struct Each {
  // The number of elements of the wider of the two types in 16 bytes.
  static constexpr int V = 16 / (sizeof(S) > sizeof(D) ? sizeof(S) : sizeof(D));
  const S* from[READS];
  D* to[WRITES];
  F f;

  template <int V>
  struct Values {
    float x[READS][V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& v) const {
#pragma unroll
    for (int k = 0; k < READS; ++k) load_vector(from[k] + at, v.x[k]);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>& v) const {
    float out[WRITES][V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      float x[READS], y[WRITES];
#pragma unroll
      for (int k = 0; k < READS; ++k) x[k] = v.x[k][j];
      f(x, y);
#pragma unroll
      for (int i = 0; i < WRITES; ++i) out[i][j] = y[i];
    }
#pragma unroll
    for (int i = 0; i < WRITES; ++i) store_vector(to[i] + at, out[i]);
  }
};

// Runs f on n elements with the operands at addresses `from` (type S) and the results at addresses `to` (type D).
template <class S, class D, int READS, int WRITES, class F>
__device__ __forceinline__ void map_each(u64 n, const u64 (&from)[READS], const u64 (&to)[WRITES], const F& f) {
  Each<S, D, READS, WRITES, F> op{{}, {}, f};
  bool vector = true;
#pragma unroll
  for (int k = 0; k < READS; ++k) {
    op.from[k] = global<const S>(from[k]);
    vector = vector && aligned16(from[k]);
  }
#pragma unroll
  for (int i = 0; i < WRITES; ++i) {
    op.to[i] = global<D>(to[i]);
    vector = vector && aligned16(to[i]);
  }
  map(n, vector, op);
}
