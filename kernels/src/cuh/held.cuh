// Keeps a row of a matrix in the registers of a group of THREADS threads, so that a kernel that needs the row twice
// (first for a reduction, then for its results) reads it from memory once.
#pragma once

#include "cuh/warp.cuh"

// Maximum number of elements of a row that one thread keeps in registers.
constexpr int HELD = 16;

template <class T>
constexpr int CHUNKS = HELD / VECTOR<T>;

// The elements of a row that one thread keeps in registers. chunk[k] has the VECTOR<T> elements that start at index
// at(k) of the row.
template <class T, int THREADS>
struct Held {
  Words<16> chunk[CHUNKS<T>];

  static __device__ __forceinline__ u32 at(int k) { return (k * THREADS + threadIdx.x % THREADS) * VECTOR<T>; }

  __device__ __forceinline__ void load(const T* row, u32 cols, bool vector) {
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) chunk[k] = load_words(row, at(k), cols, vector);
  }
};

// Calls f(at) with the index of the first element of each vector of a row that does not fit in the group's registers,
// which hold the first HELD * THREADS elements of the row.
template <class T, int THREADS, class F>
__device__ __forceinline__ void for_rest(u32 cols, const F& f) {
#pragma unroll 1
  for (u32 at = HELD * THREADS + threadIdx.x % THREADS * VECTOR<T>; at < cols; at += THREADS * VECTOR<T>) f(at);
}

// Returns the sum of x over a group of THREADS threads. `scratch` holds one T per warp and must not be in use.
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
