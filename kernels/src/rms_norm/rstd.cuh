// The scale of rows in an RMS normalisation, 1 / sqrt(mean(x^2) + eps), for kernels that normalise the rows of their
// input themselves. The scale, and the rows that normalise() returns, are bit-identical to the forward kernel's
// (rows.cuh).
//
//   add_squares(...); __syncthreads(); rstd = rstd_of_row(...); normalise(x, w, rstd)
#pragma once

#include "cuh/held.cuh"
#include "cuh/math.cuh"

// Partial sums of a row: one for each warp of the threads that compute a row in the forward kernel, at most 512. The
// last element is padding, so that lanes that read the sums of neighbouring rows do not have bank conflicts.
using RowSquares = float[512 / 32 + 1];

// Returns the number of warps that compute a row of `cols` elements in the forward kernel.
__device__ __forceinline__ u32 warps_of_row(u32 cols) {
  return cols <= HELD * 32 ? 1 : cols <= HELD * 256 ? 8 : 16;
}

// Returns the sum of the squares that warp `warp` of `warps` adds up in the forward kernel, of a row of `cols`
// elements. `vector` promises that the row allows 16-byte loads.
template <class T>
__device__ __forceinline__ float squares_of_warp(const T* row, u32 cols, u32 warp, u32 warps, bool vector) {
  constexpr u32 V = VECTOR<T>;
  float square = 0.0f, e[V];
#pragma unroll 2
  for (u32 at = (warp * 32 + threadIdx.x % 32) * V; at < cols; at += warps * 32 * V) {
    unpack<T>(load_words(row, at, cols, vector), e);
#pragma unroll
    for (u32 j = 0; j < V; ++j) square = fmaf(e[j], e[j], square);
  }
  return warp_sum(square);
}

// Writes the sums of the squares of rows 0 .. rows of x to `squares`, one sum for each warp of the forward kernel. All
// BLOCK threads of the block call it. `vector` promises that the rows allow 16-byte loads.
template <class T, int BLOCK>
__device__ __forceinline__ void add_squares(const T* x, u32 rows, u32 cols, bool vector, RowSquares* squares) {
  const u32 lane = threadIdx.x % 32, warps = warps_of_row(cols);
#pragma unroll 2
  for (u32 i = threadIdx.x / 32; i < rows * warps; i += BLOCK / 32) {
    const u32 row = i / warps, warp = i % warps;
    const float square = squares_of_warp(x + static_cast<u64>(row) * cols, cols, warp, warps, vector);
    if (lane == 0) squares[row][warp] = square;
  }
}

// Returns the scale of a row whose sums add_squares wrote.
__device__ __forceinline__ float rstd_of_row(const RowSquares& squares, u32 cols, float eps) {
  float sum = squares[0];
  for (u32 warp = 1; warp < warps_of_row(cols); ++warp) sum += squares[warp];
  const float mean = divide(sum, static_cast<float>(cols));
  return rsqrtf(mean + eps);
}

// Normalises 16 bytes of a row: T(w * T(x * rstd)).
template <class T>
__device__ __forceinline__ Words<16> normalise(const Words<16>& x, const Words<16>& w, float rstd) {
  float e[VECTOR<T>], scale[VECTOR<T>];
  unpack<T>(x, e);
  unpack<T>(w, scale);
#pragma unroll
  for (int j = 0; j < VECTOR<T>; ++j) e[j] = scale[j] * rounded<T>(e[j] * rstd);
  return pack<T>(e);
}
