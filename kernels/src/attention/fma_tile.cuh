// Tiles of 64 x 64 f32 in shared memory, and their products on CUDA cores with 256 threads. They serve f32 tensors
// and any head_dim.
//
// Thread (y, x) = (threadIdx.x / 16, threadIdx.x % 16) computes 4 x 4 results. Each result is one sum in ascending
// order of the inner index.
#pragma once

#include "cuh/base.cuh"

constexpr int FMA_THREADS = 256;
constexpr int FMA_ROWS = 64;
constexpr int FMA_COLUMNS = 64;
// Rows are padded by four floats. Rows that are 1 apart or 4 apart are then in different banks for 16-byte accesses.
constexpr int FMA_PITCH = FMA_COLUMNS + 4;
constexpr int FMA_TILE = FMA_ROWS * FMA_PITCH;

// Fills a tile with rows first .. first + 64, columns column .. column + 64, of a tensor, converted to f32. Rows from
// `end` on and columns from `head_dim` on are not read; the tile has zeros there.
template <class T, class Rows>
__device__ __forceinline__ void fill_tile(float* tile, const T* tensor, const Rows& rows, int first, int end, int column,
                                          int head_dim) {
  const bool vector = head_dim % 4 == 0;
#pragma unroll
  for (int i = 0; i < FMA_ROWS * FMA_COLUMNS / 4 / FMA_THREADS; ++i) {
    const int at = i * FMA_THREADS + static_cast<int>(threadIdx.x), row = at / 16, quad = 4 * (at % 16);
    float x[4] = {};
    if (first + row < end) load_elements<4>(tensor + rows.head(first + row), column + quad, head_dim, vector, x);
    store_vector(tile + row * FMA_PITCH + quad, x);
  }
}

// Thread (y, x) = (threadIdx.x / 16, threadIdx.x % 16) computes c[i][j] += (row 4y + i of a) . (row x + 16j of b)
// over the first `columns` columns. `columns` is rounded up to a multiple of 4; both tiles must have zeros in the
// additional columns.
__device__ __forceinline__ void multiply_columns(float (&c)[4][4], const float* a, const float* b, int columns) {
  a += threadIdx.x / 16 * 4 * FMA_PITCH;
  b += threadIdx.x % 16 * FMA_PITCH;
#pragma unroll 2
  for (int at = 0; at < columns; at += 4) {
    float x[4][4], y[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) load_vector(a + i * FMA_PITCH + at, x[i]);
#pragma unroll
    for (int j = 0; j < 4; ++j) load_vector(b + 16 * j * FMA_PITCH + at, y[j]);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) c[i][j] = __fmaf_rn(x[i][e], y[j][e], c[i][j]);
      }
    }
  }
}

// Thread (y, x) = (threadIdx.x / 16, threadIdx.x % 16) computes c[i][j] += (row 4y + i of a) . (column 4x + j of b)
// over the first `rows` columns of a and rows of b. `rows` is rounded up to a multiple of 4; a must have zeros in the
// additional columns.
__device__ __forceinline__ void multiply_tiles(float (&c)[4][4], const float* a, const float* b, int rows) {
  a += threadIdx.x / 16 * 4 * FMA_PITCH;
  b += threadIdx.x % 16 * 4;
#pragma unroll 2
  for (int at = 0; at < rows; at += 4) {
    float x[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) load_vector(a + i * FMA_PITCH + at, x[i]);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float y[4];
      load_vector(b + (at + e) * FMA_PITCH, y);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) c[i][j] = __fmaf_rn(x[i][e], y[j], c[i][j]);
      }
    }
  }
}

// Thread (y, x) = (threadIdx.x / 16, threadIdx.x % 16) computes c[i][j] += (column 4y + i of a) . (column 4x + j of
// b) over the rows first .. 64.
__device__ __forceinline__ void multiply_tiles_trans(float (&c)[4][4], const float* a, const float* b, int first) {
  a += threadIdx.x / 16 * 4;
  b += threadIdx.x % 16 * 4;
#pragma unroll 4
  for (int row = first; row < FMA_ROWS; ++row) {
    float x[4], y[4];
    load_vector(a + row * FMA_PITCH, x);
    load_vector(b + row * FMA_PITCH, y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) c[i][j] = __fmaf_rn(x[i], y[j], c[i][j]);
    }
  }
}

// Stores the results c[i][j] of multiply_columns as elements (4y + i, x + 16j) of a tile, for thread (y, x) =
// (threadIdx.x / 16, threadIdx.x % 16).
__device__ __forceinline__ void store_results(float* tile, const float (&c)[4][4]) {
  tile += threadIdx.x / 16 * 4 * FMA_PITCH + threadIdx.x % 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) tile[i * FMA_PITCH + 16 * j] = c[i][j];
  }
}

// Multiplies c[i][j] by factor[i], rounds once, and writes it to the tensor at row 4y + i, column column + 4x + j,
// for thread (y, x) = (threadIdx.x / 16, threadIdx.x % 16). Rows from `end` on and columns from `head_dim` on are not
// written.
template <class T, class Rows>
__device__ __forceinline__ void write_tile(T* tensor, const Rows& rows, int end, int column, int head_dim,
                                           const float (&c)[4][4], const float (&factor)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = static_cast<int>(threadIdx.x) / 16 * 4 + i;
    if (row >= end) continue;
    float x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = __fmul_rn(c[i][j], factor[i]);
    store_elements<4>(tensor + rows.head(row), column + 4 * static_cast<int>(threadIdx.x % 16), head_dim, head_dim % 4 == 0, x);
  }
}
