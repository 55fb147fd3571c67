// Reductions to one number: a weighted sum, sums of squares of chunks, and from the sums of squares the norm and the
// clip factor.
//
//   weighted_sum: out = sum of x * w             sum_squares: partials[i] = sum of x^2 over chunk i
//   clip: norm = sqrt(sum of partials), factor = min(1, max_norm / (norm + 1e-6)), NaN if the norm is NaN
//
// Shapes and limits: mod.rs. Numerics: products and sums in f64 (a square of f32 is exact), the result rounded to f32
// once. Order: each thread sums its elements, then the lanes of a warp are added, then the warps in order; it depends
// on the length alone. Grid: weighted_sum and clip have one block; sum_squares has one block per chunk. Memory-bound.
// The kernels with one block are bound by one multiprocessor's bandwidth; they read only one number per token or per
// 64 Ki weights.

#include "cuh/warp.cuh"

constexpr int ONE = 1024;
constexpr int THREADS = 256;
constexpr u64 CHUNK = 64 * 1024;  // elements; equals ELEMENTS_PER_CHUNK of mod.rs

extern "C" __global__ void __launch_bounds__(ONE) weighted_sum(const __grid_constant__ WeightedSumParams p) {
  __shared__ double scratch[ONE / 32];
  const float *x = global<const float>(p.x), *w = global<const float>(p.w);
  double sum = 0.0;
#pragma unroll 4
  for (u64 i = threadIdx.x; i < p.n; i += ONE) sum = fma(static_cast<double>(x[i]), static_cast<double>(w[i]), sum);
  sum = block_sum<ONE>(sum, scratch);
  if (threadIdx.x == 0) *global<float>(p.out) = static_cast<float>(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) sum_squares(const __grid_constant__ SumSquaresParams p) {
  constexpr int V = VECTOR<float>, AHEAD = 4, STEP = THREADS * V;
  __shared__ double scratch[THREADS / 32];
  // Loads the chunk (two 32-bit words), then its array's entry in the table (address and length).
  const u64 chunk = load_for_warp(global<const u64>(p.chunks) + blockIdx.x);
  const u64* entry = global<const u64>(p.arrays) + 2 * static_cast<u32>(chunk);
  const u64 array = load_for_warp(entry), len = load_for_warp(entry + 1);
  const u64 first = (chunk >> 32) * CHUNK, n = array == 0 ? 0 : min(CHUNK, len - first);
  const float* x = global<const float>(array) + first;
  const bool vector = aligned16(array);
  double sum = 0.0;
  float e[V];
  const auto add = [&] {
#pragma unroll
    for (int j = 0; j < V; ++j) sum = fma(static_cast<double>(e[j]), static_cast<double>(e[j]), sum);
  };
  u32 at = threadIdx.x * V;
  if (vector) {
    for (; at + (AHEAD - 1) * STEP + V <= n; at += AHEAD * STEP) {
      Words<16> words[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) words[k] = *reinterpret_cast<const Words<16>*>(x + at + k * STEP);
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        unpack<float>(words[k], e);
        add();
      }
    }
  }
  for (; at < n; at += STEP) {
    load_elements(x, static_cast<u64>(at), n, vector && at + V <= n, e);
    add();
  }
  sum = block_sum<THREADS>(sum, scratch);
  if (threadIdx.x == 0) global<double>(p.partials)[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(ONE) clip(const __grid_constant__ ClipParams p) {
  __shared__ double scratch[ONE / 32];
  const double* partials = global<const double>(p.partials);
  double sum = 0.0;
#pragma unroll 4
  for (u64 i = threadIdx.x; i < p.count; i += ONE) sum += partials[i];
  sum = block_sum<ONE>(sum, scratch);
  if (threadIdx.x > 0) return;
  const double norm = sqrt(sum), factor = static_cast<double>(p.max_norm) / (norm + 1e-6);
  global<float>(p.out)[0] = static_cast<float>(norm);
  // fmin would turn a NaN into 1.
  global<float>(p.out)[1] = factor > 1.0 ? 1.0f : static_cast<float>(factor);
}
