// Copies of rows: blockDim.x threads copy one row, and a block copies blockDim.y rows (`plan_row_copy` in cuh/mod.rs
// chooses both).
#pragma once

#include "cuh/base.cuh"

// Returns the index of the row that this thread copies; it may lie beyond the last row.
__device__ __forceinline__ u64 row_of_thread() { return static_cast<u64>(blockIdx.x) * blockDim.y + threadIdx.y; }

// Copies `count` words with blockDim.x threads; each thread loads four words before it stores the first.
template <class Word>
__device__ __forceinline__ void move_words(const Word* src, Word* dst, u32 count) {
  constexpr int STEPS = 4;
  const u32 step = blockDim.x;
  for (u32 at = threadIdx.x; at < count; at += STEPS * step) {
    Word words[STEPS];
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
      if (at + k * step < count) words[k] = src[at + k * step];
    }
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
      if (at + k * step < count) dst[at + k * step] = words[k];
    }
  }
}

// Copies a row of `cols` elements. `vector` says that the row's size is a multiple of 16 bytes and both addresses are
// 16-byte aligned.
template <class E>
__device__ __forceinline__ void move_row(const E* src, E* dst, u32 cols, bool vector) {
  if (vector) {
    move_words(reinterpret_cast<const Words<16>*>(src), reinterpret_cast<Words<16>*>(dst), cols / VECTOR<E>);
  } else {
    move_words(src, dst, cols);
  }
}

// Writes zeros to a row of `cols` elements. `vector` says that the row's size is a multiple of 16 bytes and `to` is
// 16-byte aligned.
template <class E>
__device__ __forceinline__ void clear_row(E* dst, u32 cols, bool vector) {
  if (vector) {
    for (u32 at = threadIdx.x; at < cols / VECTOR<E>; at += blockDim.x) {
      reinterpret_cast<Words<16>*>(dst)[at] = Words<16>{};
    }
  } else {
    for (u32 at = threadIdx.x; at < cols; at += blockDim.x) dst[at] = E{};
  }
}
