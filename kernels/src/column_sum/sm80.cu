// Column sums, written or added to an accumulator: sum[c] (+)= sum over r of x[r, c].
//
// Shapes and limits: mod.rs. Numerics: f32. 128 threads sum a column: thread i adds the rows i, i + 128, … in order;
// then pairs of threads within a warp, then warps in order, then the old value of sum if it accumulates. The bits depend on the number
// of rows alone. Grid: one block per strip of 64 bytes of columns; four threads cover the strip's width, and the
// block reads 128 rows at a time. Limitation: there is no workspace, so a matrix with few columns leaves
// multiprocessors idle. Bound: memory.

#include "cuh/base.cuh"
#include "cuh/warp.cuh"

constexpr int THREADS = 512;
constexpr int SIDE = 4;
constexpr int ROWS = THREADS / SIDE;

template <class T>
__device__ __forceinline__ void column_sum(const Params& p) {
  constexpr int V = VECTOR<T>, STRIP = SIDE * V, AHEAD = 4;
  __shared__ float sums[THREADS / 32][STRIP];
  const u64 first = static_cast<u64>(blockIdx.x) * STRIP, column = first + threadIdx.x % SIDE * V;
  const bool vector = p.cols % V == 0 && aligned16(p.x);
  const T* x = global<const T>(p.x);
  float sum[V], e[V];
#pragma unroll
  for (int j = 0; j < V; ++j) sum[j] = 0.0f;
  u64 row = threadIdx.x / SIDE;
  for (; row + (AHEAD - 1) * ROWS < p.rows; row += AHEAD * ROWS) {
    Words<16> words[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) words[k] = load_words(x + (row + k * ROWS) * p.cols, column, p.cols, vector);
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      unpack<T>(words[k], e);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += e[j];
    }
  }
  for (; row < p.rows; row += ROWS) {
    unpack<T>(load_words(x + row * p.cols, column, p.cols, vector), e);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += e[j];
  }

  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < V; ++j) {
#pragma unroll
    for (int mask = 16; mask >= SIDE; mask >>= 1) sum[j] += shuffle_xor(sum[j], mask);
    if (lane < SIDE) sums[warp][lane * V + j] = sum[j];
  }
  __syncthreads();
  if (threadIdx.x >= STRIP || first + threadIdx.x >= p.cols) return;
  float total = sums[0][threadIdx.x];
#pragma unroll
  for (int w = 1; w < THREADS / 32; ++w) total += sums[w][threadIdx.x];
  float* to = global<float>(p.sum) + first + threadIdx.x;
  *to = p.accumulate == 0 ? total : *to + total;
}

#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ Params p)

KERNEL(column_sum_f32) { column_sum<float>(p); }
KERNEL(column_sum_bf16) { column_sum<bf16>(p); }
