// The columns of a head in shared memory of the sm_90a kernels, and the tensor copy of some rows of a head.
#pragma once

#include "cuh/tma.cuh"

// Columns of a head of HEAD_DIM elements in shared memory: in groups of 64, each with the swizzle of 128 bytes; for
// head_dim 80 in groups of 16, with the swizzle of 32 bytes. Head_dim 72 has the columns of 80, the last 8 zeros.
template <int HEAD_DIM>
struct HeadColumns {
  static constexpr int WIDTH = HEAD_DIM == 72 ? 80 : HEAD_DIM;
  static constexpr int COLUMNS = WIDTH % 64 == 0 ? 64 : 16;  // of a group
  static constexpr int SWIZZLE = 2 * COLUMNS;
  static_assert(WIDTH % COLUMNS == 0, "whole groups");
};

// Starts the copy of ROWS rows of a head, from row `token` on, to shared memory. With head_dim 72 a box of the tensor
// map is one group, because the last group has fewer elements (HeadsTensor of plan.rs). POLICY: nothing, or a
// CachePolicy.
template <int HEAD_DIM, int ROWS, class... POLICY>
__device__ __forceinline__ void copy_head(u32 to, const void* map, u32 barrier, int token, int head, POLICY... policy) {
  using C = HeadColumns<HEAD_DIM>;
  if constexpr (C::WIDTH == HEAD_DIM) {
    tensor_copy(to, map, barrier, 0, token, 0, head, policy...);
  } else {
#pragma unroll 1
    for (int group = 0; group < C::WIDTH / C::COLUMNS; ++group) {
      tensor_copy(to + group * ROWS * C::SWIZZLE, map, barrier, group * C::COLUMNS, token, 0, head, policy...);
    }
  }
}
