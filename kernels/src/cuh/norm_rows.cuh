// Shared code of the normalisation kernels (rms_norm, layer_norm): which rows a group of threads processes, and the
// gradient of the weight, which is a sum over all rows (dw of rms_norm).
//
// How column sums over all rows are computed:
//   1. A block processes rows_per_block(rows) rows, so many that all blocks of an H100 run at once; each of its groups
//      of THREADS threads has a contiguous range of them.
//   2. Each thread adds up its HELD columns over the rows of its group, in ascending order, in registers.
//   3. add_groups adds the groups' sums in order; the block writes them as one row of `partial`.
//   4. A second launch (sum_parts) adds up the rows of `partial`.
#pragma once

#include "cuh/held.cuh"
#include "cuh/math.cuh"

constexpr int FWD_BLOCK = 256;
constexpr int BWD_BLOCK = 512;
constexpr int WIDE = 512;

// Returns the number of rows that a block of a backward kernel with column sums processes: one block for each of 132
// multiprocessors, in multiples of 16 rows from 48 (fewer rows would make `partial` a large part of the traffic) to
// 256. norm_rows.rs plans the same number of blocks. The number depends only on the number of rows, so the order of
// sums does too.
__device__ __forceinline__ u32 rows_per_block(u32 rows) {
  const u32 even = ceil_div(ceil_div(rows, 132u), 16u) * 16;
  return min(max(even, 48u), 256u);
}

// The rows of a group in a backward kernel: row, row + step, ... below `end`. `steps` is the largest number of rows
// of any group of the block; every group loops `steps` times, so that all threads reach the same barriers.
struct GroupRows {
  u64 row, end, step;
  u32 steps;
};

// Returns the rows of one of the block's GROUPS groups of threads. For column sums a group has a contiguous range of
// the block's rows; otherwise the groups of all blocks take the rows round robin.
template <int GROUPS>
__device__ __forceinline__ GroupRows rows_of_group(u32 group, u64 rows, bool column_sums) {
  GroupRows r;
  r.end = rows;
  if (column_sums) {
    const u32 block = rows_per_block(static_cast<u32>(rows)), run = block / GROUPS;
    const u64 first = static_cast<u64>(blockIdx.x) * block;
    r.row = first + group * run;
    r.end = min(r.row + run, r.end);
    r.step = 1;
    r.steps = static_cast<u32>(min(static_cast<u64>(run), rows - first));
  } else {
    const u64 first = static_cast<u64>(blockIdx.x) * GROUPS;
    r.row = first + group;
    r.step = static_cast<u64>(gridDim.x) * GROUPS;
    r.steps = static_cast<u32>(ceil_div(r.end - first, r.step));
  }
  return r;
}

// Shared memory of a block of a backward kernel.
struct SharedSums {
  // With two buffers, one barrier per row is enough: a thread that is one row ahead writes to the other buffer.
  float scratch[2][BWD_BLOCK / 32];
  // Column sums of every group of threads except the first: HELD / 4 vectors of four f32 per thread.
  Words<16> sums[(BWD_BLOCK - 32) * HELD / 4];
};

// Adds the column sums of the other groups of threads, in order, to the sums in the registers of the block's first
// group. No thread may still use `shared` when this function is called.
template <int THREADS>
__device__ __forceinline__ void add_groups(float (&sum)[HELD], Words<16>* shared) {
  constexpr int GROUPS = BWD_BLOCK / THREADS;
  const u32 group = threadIdx.x / THREADS;
  // Each thread of the first group adds the columns that the threads with the same index in the other groups stored.
  // The words are ordered in shared memory so that accesses have no bank conflicts.
  Words<16>* sums = shared + threadIdx.x % THREADS;
  if (group > 0) {
#pragma unroll
    for (int i = 0; i < HELD; i += 4) {
      Words<16> words;
#pragma unroll
      for (int j = 0; j < 4; ++j) words.word[j] = __float_as_uint(sum[i + j]);
      sums[((group - 1) * (HELD / 4) + i / 4) * THREADS] = words;
    }
  }
  __syncthreads();
  if (group > 0) return;
  for (int other = 0; other < GROUPS - 1; ++other) {
#pragma unroll
    for (int i = 0; i < HELD; i += 4) {
      const Words<16> words = sums[(other * (HELD / 4) + i / 4) * THREADS];
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i + j] += __uint_as_float(words.word[j]);
    }
  }
}

// Writes the column sums of the block's first group of threads to one row of `partial`, which has a row for each
// block. `vector` promises that the row allows 16-byte stores.
template <class T, int THREADS>
__device__ __forceinline__ void store_column_sums(float* partial, u32 cols, bool vector, const float (&sums)[HELD]) {
  constexpr int V = VECTOR<T>;
#pragma unroll
  for (int k = 0; k < CHUNKS<T>; ++k) {
    float sum[V];
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = sums[k * V + j];
    store_elements(partial, Held<T, THREADS>::at(k), cols, vector, sum);
  }
}

// Adds up each of `columns` columns of `partial`, which has one row per block of the `rows` input rows, and calls
// write(column, sum) in one thread per column. A block sums 32 columns: warp w adds the rows w, w + 8, ... of
// `partial`; then the sums of the 8 warps are added in order.
template <class Write>
__device__ __forceinline__ void sum_parts(const float* partial, u32 rows, u64 columns, Write write) {
  constexpr int WARPS = 8;
  __shared__ float sums[WARPS][32];
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u64 c = blockIdx.x * 32ull + lane;
  const u32 parts = ceil_div(rows, rows_per_block(rows));
  float sum = 0.0f;
  if (c < columns) {
#pragma unroll 4
    for (u32 part = warp; part < parts; part += WARPS) sum += partial[part * columns + c];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= columns) return;
#pragma unroll
  for (int other = 1; other < WARPS; ++other) sum += sums[other][lane];
  write(c, sum);
}

#define KERNEL(NAME, PARAMS, ...) \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__) NAME(const __grid_constant__ PARAMS p)

// Macros that define the forward and the backward kernels for the element type T. SYMBOL: for rows that fit into the
// registers of up to 256 threads. WIDE_SYMBOL: for longer rows. DW_SYMBOL: adds up the blocks' dw. The file that uses
// the macros defines forward_any<T, BLOCK, THREADS>, backward_any<T, THREADS>, which gets a SharedSums, and
// sum_all_parts. The variadic arguments are the launch bounds of the backward kernels.
#define FORWARD(SYMBOL, WIDE_SYMBOL, T, PARAMS) \
  KERNEL(SYMBOL, PARAMS, FWD_BLOCK) {           \
    if (p.cols <= HELD * 32) {                  \
      forward_any<T, FWD_BLOCK, 32>(p);         \
    } else {                                    \
      forward_any<T, FWD_BLOCK, FWD_BLOCK>(p);  \
    }                                           \
  }                                             \
  KERNEL(WIDE_SYMBOL, PARAMS, WIDE, 1) { forward_any<T, WIDE, WIDE>(p); }
#define BACKWARD(SYMBOL, WIDE_SYMBOL, DW_SYMBOL, T, PARAMS, ...) \
  KERNEL(SYMBOL, PARAMS, __VA_ARGS__) {                          \
    __shared__ SharedSums shared;                                \
    if (p.cols <= HELD * 32) {                                   \
      backward_any<T, 32>(p, shared);                            \
    } else {                                                     \
      backward_any<T, 256>(p, shared);                           \
    }                                                            \
  }                                                              \
  KERNEL(WIDE_SYMBOL, PARAMS, __VA_ARGS__) {                     \
    __shared__ SharedSums shared;                                \
    backward_any<T, BWD_BLOCK>(p, shared);                       \
  }                                                              \
  KERNEL(DW_SYMBOL, PARAMS, 256) { sum_all_parts(p); }
