// The epilogue of a product: multiplies finished sums by the scale, adds bias and old C, and rounds once (tile.cuh
// lists the ways to store C). To fuse another operation with a product, add a type with a function `finish`.
#pragma once

#include "cuh/base.cuh"
#include "cuh/math.cuh"
#include "cuh/mma.cuh"
#include "cuh/wgmma.cuh"

namespace gemm {

// Sums that need no operation: scale 1 and no bias.
struct Unchanged {
  // Returns in x the four sums from index `at` on. They belong to two rows and two neighbouring columns of C: x[0],
  // x[1] to one row, x[2], x[3] to the other.
  template <int N>
  __device__ __forceinline__ void finish(const float (&sums)[N], int at, int column, float (&x)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = sums[at + i];
  }
};

// SwiGLU of sums of gate and up, both rounded to bf16 first, as the product and SwiGLU in launches of their own do.
struct Gated {
  // Returns in x the four results for the sums of gate from index `at` on (see Unchanged::finish). Those of up are N / 2
  // further.
  template <int N>
  __device__ __forceinline__ void finish(const float (&sums)[N], int at, int, float (&x)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const u32 gate = pack_bf16(sums[at + i], sums[at + i + 1]);
      const u32 up = pack_bf16(sums[N / 2 + at + i], sums[N / 2 + at + i + 1]);
      x[i] = gated(low_bf16(gate), low_bf16(up)), x[i + 1] = gated(high_bf16(gate), high_bf16(up));
    }
  }
};

// The scale and the bias of a launch; C is the element type of the output. If the scale is 1 and there is no bias,
// callers pass Unchanged instead, and test this once for many sums: the test inside `finish` would add several hundred
// instructions to the epilogue of each tile, and not all epilogues overlap with products.
template <class C>
struct Output {
  float scale;
  const C* bias;
  int n;
  bool unchanged;

  __device__ __forceinline__ explicit Output(const Params& p)
      : scale(p.scale), bias(global<C>(p.bias)), n(p.n), unchanged(p.scale == 1.0f && p.bias == 0) {}

  // Returns in x the four sums from index `at` on (see Unchanged::finish), scaled and with the bias added. They belong
  // to columns `column` and `column` + 1 of C.
  template <int N>
  __device__ __forceinline__ void finish(const float (&sums)[N], int at, int column, float (&x)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = __fmul_rn(sums[at + i], scale);
    if (bias != nullptr && column < n) {
      float b[2];
      load_vector(bias + column, b);
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = __fadd_rn(x[i], b[i % 2]);
    }
  }
};

// Returns the address that lane `lane` passes to stmatrix_x4 or ldmatrix_x4 for columns 16 g .. 16 g + 16 of a warp's
// 16 rows. A chunk (64 rows of ROW_BYTES, 128 or 64, in shared memory) has the swizzle of tensor maps of its row.
template <int ROW_BYTES>
__device__ __forceinline__ u32 matrix_address(u32 chunk, int warp, int lane, int g) {
  const int swizzle = ROW_BYTES == 128 ? lane & 7 : lane >> 1 & 3;
  return chunk + (warp * 16 + lane % 16) * ROW_BYTES + (((2 * g + lane / 16) ^ swizzle) << 4);
}

// Finishes a warp's sums of a chunk's COLUMNS columns (64 or 32), rounds them to bf16 and writes them to the chunk in
// shared memory. `first`: index in `sums` of the chunk's first sum; `column`: the column in C of the lane's first sum.
template <int COLUMNS, class Out, int N>
__device__ __forceinline__ void write_bf16_chunk(const Out& out, const float (&sums)[N], int first, u32 chunk,
                                                 int warp, int lane, int column) {
#pragma unroll
  for (int g = 0; g < COLUMNS / 16; ++g) {
    float x[4], y[4];
    out.finish(sums, first + g * 8, column + g * 16, x);
    out.finish(sums, first + g * 8 + 4, column + g * 16 + 8, y);
    stmatrix_x4(matrix_address<2 * COLUMNS>(chunk, warp, lane, g), pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]),
                pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3]));
  }
}

// Adds a warp's sums, in f32, to the old C that the chunk in shared memory holds as bf16, and writes the rounded
// results back.
template <class Out, int N>
__device__ __forceinline__ void add_to_bf16_chunk(const Out& out, const float (&sums)[N], int first, u32 chunk,
                                                  int warp, int lane, int column) {
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    const u32 at = matrix_address<128>(chunk, warp, lane, g);
    u32 c[4];
    ldmatrix_x4(c, at);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float x[4];
      out.finish(sums, first + g * 8 + h * 4, column + g * 16 + h * 8, x);
      c[2 * h] = pack_bf16(__fadd_rn(x[0], low_bf16(c[2 * h])), __fadd_rn(x[1], high_bf16(c[2 * h])));
      c[2 * h + 1] =
          pack_bf16(__fadd_rn(x[2], low_bf16(c[2 * h + 1])), __fadd_rn(x[3], high_bf16(c[2 * h + 1])));
    }
    stmatrix_x4(at, c[0], c[1], c[2], c[3]);
  }
}

// Writes a warp's f32 sums of a chunk's 32 columns to the chunk in shared memory.
template <class Out, int N>
__device__ __forceinline__ void write_f32_chunk(const Out& out, const float (&sums)[N], int first, u32 chunk,
                                                int warp, int lane, int column) {
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    float x[4];
    out.finish(sums, first + g * 4, column + g * 8, x);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp * 16 + lane / 4 + 8 * h;
      const u32 at = chunk + row * 128 + (((2 * g + lane % 4 / 2) ^ (row & 7)) << 4) + lane % 2 * 8;
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(x[2 * h]), "f"(x[2 * h + 1]) : "memory");
    }
  }
}

// Stores a warpgroup's sums of 64 rows from `row` on and COLUMNS columns from `column` on to C `[m, n]` in global memory,
// without shared memory. With `accumulate`, adds the old C. n is even.
template <int COLUMNS, class C, class Out, int N>
__device__ __forceinline__ void store_directly(const Out& out, const Params& p, const float (&sums)[N], int warp,
                                               int lane, int row, int column, u32 n) {
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j) {
    const int c = column + 8 * j + 2 * (lane % 4);
    float x[4];
    out.finish(sums, 4 * j, c, x);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const u32 r = row + warp * 16 + lane / 4 + 8 * h;
      if (r < p.m && static_cast<u32>(c) < n) {
        C* to = global<C>(p.c) + static_cast<u64>(r) * n + c;
        float y[2] = {x[2 * h], x[2 * h + 1]};
        if (p.accumulate != 0) {
          float old[2];
          load_vector(to, old);
          y[0] = __fadd_rn(y[0], old[0]), y[1] = __fadd_rn(y[1], old[1]);
        }
        store_vector(to, y);
      }
    }
  }
}

}  // namespace gemm
