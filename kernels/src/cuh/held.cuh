// Rows that a group of THREADS threads holds in registers, so that a reduction over a row and what depends on it read
// memory once.
#pragma once

#include "cuh/warp.cuh"

// Elements of a row that one thread holds.
constexpr int HELD = 16;

template <class T>
constexpr int CHUNKS = HELD / VECTOR<T>;

// The part of a row that a thread holds: chunk k has the elements at(k) .. at(k) + VECTOR.
template <class T, int THREADS>
struct Held {
  Words<16> chunk[CHUNKS<T>];

  static __device__ __forceinline__ u32 at(int k) { return (k * THREADS + threadIdx.x % THREADS) * VECTOR<T>; }

  __device__ __forceinline__ void load(const T* row, u32 cols, bool vector) {
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) chunk[k] = load_words(row, at(k), cols, vector);
  }
};

// Calls f(at) for each vector of the columns that do not fit into the registers of a group.
template <class T, int THREADS, class F>
__device__ __forceinline__ void for_rest(u32 cols, const F& f) {
#pragma unroll 1
  for (u32 at = HELD * THREADS + threadIdx.x % THREADS * VECTOR<T>; at < cols; at += THREADS * VECTOR<T>) f(at);
}

// Two sums at once.
struct Pair {
  float a, b;

  __device__ __forceinline__ Pair& operator+=(const Pair& other) {
    a += other.a;
    b += other.b;
    return *this;
  }
};

__device__ __forceinline__ Pair shuffle_xor(const Pair& x, int mask) {
  return {shuffle_xor(x.a, mask), shuffle_xor(x.b, mask)};
}

// Returns the sum over a group of threads; `scratch` holds one T a warp and must not be in use.
template <int THREADS, class T>
__device__ __forceinline__ T group_sum(T x, T* scratch) {
  if constexpr (THREADS == 32) {
    return warp_sum(x);
  } else {
    x = warp_sum(x);
    T* own = scratch + threadIdx.x / THREADS * (THREADS / 32);
    if (threadIdx.x % 32 == 0) own[threadIdx.x % THREADS / 32] = x;
    __syncthreads();
    T sum = own[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / 32; ++warp) sum += own[warp];
    return sum;
  }
}
