// Rows times the matrices of their LoRA adapters; formula and shapes: mod.rs.
//
//   down: y[i, c] = scale[a] * sum over k of x[i, k] w[a, c, k],  a = adapter[i];  0 without an adapter
//   up:   y[i, c] += sum over k of x[i, k] w[a, c, k];  unchanged without an adapter
//
// Grid: down has a block for each row and each COLUMNS columns. All threads divide the long sums over k among
// themselves, 16 bytes at a time, so that x is read once for COLUMNS rows of the matrix. up has a block for each row
// and each THREADS columns. Its sums over the rank are short: a warp has 32 columns, and a group of lanes (as many as
// the rank has units of 16 bytes, rounded up to a power of two) computes one sum at a time, so that a warp reads
// consecutive bytes.
//
//   down: for each 16 bytes of x of this thread: sums[c] += x * w[c];  warp_sum;  shared[warp] = sums;  barrier;
//         y[c] = T(scale * (sum over the warps in order))
//   up:   for each of the group's columns: sum += x * w, 16 bytes per lane; add the lanes;  y = T(y + sum)
//
// Numerics: f32, one rounding of each result. Order of a sum of down: each thread adds its elements in ascending order,
// then warp_sum adds the threads, then the warps are added in order. up: each lane of a group adds its elements in
// ascending order, then the lanes are added, half of the group apart first. The order depends on k alone. If k is not a
// multiple of 16 bytes or an array is not aligned, elements are loaded one by one, in the same order.
//
// Bound. Memory: each row reads the matrices of its adapter.
#include "cuh/warp.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int COLUMNS = 8;

// Returns the number of the row's adapter, or -1 for none.
__device__ __forceinline__ int adapter_of(const Params& p, u32 row) {
  const int a = load_for_warp(global<const int>(p.adapter) + row);
  return a >= 0 && static_cast<u32>(a) < p.adapters ? a : -1;
}

// Adds to `sum` the products of the VECTOR<T> elements of x and w that start at index `at`.
template <class T>
__device__ __forceinline__ float add_products(float sum, const float (&x)[VECTOR<T>], const T* w, u32 at, u32 k,
                                              bool vector) {
  float of_w[VECTOR<T>];
  unpack<T>(load_words(w, at, k, vector), of_w);
#pragma unroll
  for (int j = 0; j < VECTOR<T>; ++j) sum = fmaf(x[j], of_w[j], sum);
  return sum;
}

template <class T>
__device__ __forceinline__ void down(const Params& p) {
  __shared__ float partial[WARPS][COLUMNS];
  const u32 groups = ceil_div(p.n, static_cast<u32>(COLUMNS));
  const u32 row = blockIdx.x / groups, first = blockIdx.x % groups * COLUMNS;
  const int a = adapter_of(p, row);
  const u32 column = first + threadIdx.x;
  T* y = global<T>(p.y) + static_cast<u64>(row) * p.n;
  if (a < 0) {
    if (threadIdx.x < COLUMNS && column < p.n) y[column] = from_f32<T>(0.0f);
    return;
  }
  const T* x = global<const T>(p.x) + static_cast<u64>(row) * p.k;
  const T* w = global<const T>(p.w) + (static_cast<u64>(a) * p.n + first) * p.k;
  const bool vector = p.k % VECTOR<T> == 0 && aligned16(p.x, p.w);
  float sums[COLUMNS] = {};
#pragma unroll 1
  for (u32 at = threadIdx.x * VECTOR<T>; at < p.k; at += THREADS * VECTOR<T>) {
    float of_x[VECTOR<T>];
    unpack<T>(load_words(x, at, p.k, vector), of_x);
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      if (first + c < p.n) sums[c] = add_products(sums[c], of_x, w + static_cast<u64>(c) * p.k, at, p.k, vector);
    }
  }
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    sums[c] = warp_sum(sums[c]);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32][c] = sums[c];
  }
  __syncthreads();
  if (threadIdx.x >= COLUMNS || column >= p.n) return;
  float sum = partial[0][threadIdx.x];
#pragma unroll
  for (int warp = 1; warp < WARPS; ++warp) sum = __fadd_rn(sum, partial[warp][threadIdx.x]);
  y[column] = from_f32<T>(__fmul_rn(global<const float>(p.scale)[a], sum));
}

template <class T>
__device__ __forceinline__ void up(const Params& p) {
  const u32 groups = ceil_div(p.n, static_cast<u32>(THREADS));
  const u32 row = blockIdx.x / groups, lane = threadIdx.x % 32;
  const u32 first = blockIdx.x % groups * THREADS + threadIdx.x / 32 * 32;  // the warp's first column
  const int a = adapter_of(p, row);
  if (a < 0 || first >= p.n) return;
  const T* x = global<const T>(p.x) + static_cast<u64>(row) * p.k;
  const T* w = global<const T>(p.w) + static_cast<u64>(a) * p.n * p.k;
  const bool vector = p.k % VECTOR<T> == 0 && aligned16(p.x, p.w);
  u32 width = 1;  // lanes of a group
  while (width < 32 && width * VECTOR<T> < p.k) width *= 2;
  const u32 per_step = 32 / width, group = lane / width, start = lane % width * VECTOR<T>;
  // Every group of lanes needs the same elements of x, so group 0 loads them for all groups.
  Words<16> words{};
  if (group == 0) words = load_words(x, start, p.k, vector);
#pragma unroll
  for (int j = 0; j < 4; ++j) words.word[j] = __shfl_sync(0xffffffffu, words.word[j], lane % width);
  float first_of_x[VECTOR<T>];
  unpack<T>(words, first_of_x);
  float mine = 0.0f;  // the sum of column first + lane
#pragma unroll 1
  for (u32 step = 0; step < width; ++step) {
    const u32 column = first + step * per_step + group;
    float sum = 0.0f;
    if (column < p.n) {
      const T* of_column = w + static_cast<u64>(column) * p.k;
      sum = add_products(sum, first_of_x, of_column, start, p.k, vector);
#pragma unroll 1
      for (u32 at = start + width * VECTOR<T>; at < p.k; at += width * VECTOR<T>) {
        float of_x[VECTOR<T>];
        unpack<T>(load_words(x, at, p.k, vector), of_x);
        sum = add_products(sum, of_x, of_column, at, p.k, vector);
      }
    }
    for (u32 mask = width / 2; mask > 0; mask /= 2) sum = __fadd_rn(sum, shuffle_xor(sum, mask));
    const float moved = __shfl_sync(0xffffffffu, sum, lane % per_step * width);
    if (lane / per_step == step) mine = moved;
  }
  if (first + lane >= p.n) return;
  T* y = global<T>(p.y) + static_cast<u64>(row) * p.n + first + lane;
  *y = from_f32<T>(__fadd_rn(to_f32(*y), mine));
}

#define KERNEL(SYMBOL) extern "C" __global__ void __launch_bounds__(THREADS) SYMBOL(const __grid_constant__ Params p)

KERNEL(lora_rows_down_bf16) { down<bf16>(p); }
KERNEL(lora_rows_down_f32) { down<float>(p); }
KERNEL(lora_rows_up_bf16) { up<bf16>(p); }
KERNEL(lora_rows_up_f32) { up<float>(p); }
