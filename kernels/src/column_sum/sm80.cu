// Column sums of up to four matrices, written or added to an accumulator: sum[c] (+)= sum over r of x[r, c].
//
// Shapes and limits: mod.rs. Numerics: f32. 128 threads sum a column: thread i adds the rows i, i + 128, … in order;
// then pairs of threads within a warp, then warps in order, then the old value of sum if it accumulates. The bits
// depend on the number of rows alone. Grid: one block per strip of 64 bytes of columns, those of all matrices in order;
// four threads cover the strip's width, and the block reads 128 rows at a time. Limitation: there is no workspace, so a
// matrix with few columns leaves multiprocessors idle. Bound: memory.

#include "cuh/base.cuh"
#include "cuh/warp.cuh"

constexpr int THREADS = 512;
constexpr int SIDE = 4;
constexpr int ROWS = THREADS / SIDE;

// A matrix and the address of its column sums.
struct Matrix {
  u64 x, sum;
  u32 cols;
  bool accumulate;
};

// Returns the matrix that strip number `strip` of the launch belongs to. Replaces `strip` by the strip's number within
// that matrix.
__device__ __forceinline__ Matrix matrix_of(const Params& p, u32& strip, u32 width) {
  Matrix m{p.x0, p.sum0, p.cols0, (p.accumulate & 1) != 0};
  if (strip < ceil_div(p.cols0, width)) return m;
  strip -= ceil_div(p.cols0, width);
  m = {p.x1, p.sum1, p.cols1, (p.accumulate & 2) != 0};
  if (strip < ceil_div(p.cols1, width)) return m;
  strip -= ceil_div(p.cols1, width);
  m = {p.x2, p.sum2, p.cols2, (p.accumulate & 4) != 0};
  if (strip < ceil_div(p.cols2, width)) return m;
  strip -= ceil_div(p.cols2, width);
  return {p.x3, p.sum3, p.cols3, (p.accumulate & 8) != 0};
}

template <class T>
__device__ __forceinline__ void column_sum(const Params& p) {
  constexpr int V = VECTOR<T>, STRIP = SIDE * V, AHEAD = 4;
  __shared__ float sums[THREADS / 32][STRIP];
  u32 strip = blockIdx.x;
  const Matrix m = matrix_of(p, strip, STRIP);
  const u64 cols = m.cols, first = static_cast<u64>(strip) * STRIP, column = first + threadIdx.x % SIDE * V;
  const bool vector = cols % V == 0 && aligned16(m.x);
  const T* x = global<const T>(m.x);
  float sum[V], e[V];
#pragma unroll
  for (int j = 0; j < V; ++j) sum[j] = 0.0f;
  u64 row = threadIdx.x / SIDE;
  for (; row + (AHEAD - 1) * ROWS < p.rows; row += AHEAD * ROWS) {
    Words<16> words[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) words[k] = load_words(x + (row + k * ROWS) * cols, column, cols, vector);
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      unpack<T>(words[k], e);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += e[j];
    }
  }
  for (; row < p.rows; row += ROWS) {
    unpack<T>(load_words(x + row * cols, column, cols, vector), e);
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
  if (threadIdx.x >= STRIP || first + threadIdx.x >= cols) return;
  float total = sums[0][threadIdx.x];
#pragma unroll
  for (int w = 1; w < THREADS / 32; ++w) total += sums[w][threadIdx.x];
  float* to = global<float>(m.sum) + first + threadIdx.x;
  *to = m.accumulate ? *to + total : total;
}

#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ Params p)

KERNEL(column_sum_f32) { column_sum<float>(p); }
KERNEL(column_sum_bf16) { column_sum<bf16>(p); }
