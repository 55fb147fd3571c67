// Adds learned position embeddings to the patches of images, and their gradient.
//
//   fwd: y[r] = T(x[r] + pos[r mod positions]);  bwd: d_pos[i] += sum of dy[r] over r = i, i + positions, ...
//
// Shapes and limits: mod.rs. Numerics: fwd rounds the sum to T; bwd adds in f32, rows ascending, then to the old
// value of d_pos. Grid: a thread owns 16 bytes of one position's row (one element if rows are not a multiple of 16
// bytes); 256 threads per block.
//
//   fwd: load pos; for each image, four at a time: load x; store x + pos
//   bwd: for each image, four at a time: load dy; add to the sum. Add the sum to d_pos
//
// Positions are read once, whatever the number of images. Memory-bound.

#include "cuh/base.cuh"

constexpr int THREADS = 256;
// Number of images whose elements a thread loads before it uses the first of them.
constexpr int AHEAD = 4;

// Loops over images of `plane` elements each. Each thread handles the V elements that start at index `own` of every
// image: it calls begin(own), then f(at, vector) for these elements of each image, where `at` is their index in
// `from`, then end(own).
template <int V, class T, class Begin, class F, class End>
__device__ __forceinline__ void for_places(const T* from, u64 total, u64 plane, Begin begin, F f, End end) {
  const u64 own = (static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x) * V;
  if (own >= plane || own >= total) return;
  begin(own);
  for (u64 at = own; at < total; at += AHEAD * plane) {
    float x[AHEAD][V];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      if (at + k * plane < total) load_vector(from + at + k * plane, x[k]);
    }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      if (at + k * plane < total) f(at + k * plane, x[k]);
    }
  }
  end(own);
}

template <int V, class T>
__device__ __forceinline__ void forward(const FwdParams& p) {
  const u64 total = static_cast<u64>(p.rows) * p.cols, plane = static_cast<u64>(p.positions) * p.cols;
  float pos[V];
  for_places<V>(
      global<const T>(p.x), total, plane, [&](u64 own) { load_vector(global<const T>(p.pos) + own, pos); },
      [&](u64 at, float(&x)[V]) {
#pragma unroll
        for (int j = 0; j < V; ++j) x[j] = __fadd_rn(x[j], pos[j]);
        store_vector(global<T>(p.y) + at, x);
      },
      [](u64) {});
}

template <int V, class T>
__device__ __forceinline__ void backward(const BwdParams& p) {
  const u64 total = static_cast<u64>(p.rows) * p.cols, plane = static_cast<u64>(p.positions) * p.cols;
  float sum[V];
#pragma unroll
  for (int j = 0; j < V; ++j) sum[j] = 0.0f;
  for_places<V>(
      global<const T>(p.dy), total, plane, [](u64) {},
      [&](u64, const float(&dy)[V]) {
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] = __fadd_rn(sum[j], dy[j]);
      },
      [&](u64 own) {
        float before[V];
        float* d_pos = global<float>(p.d_pos) + own;
        load_vector(d_pos, before);
#pragma unroll
        for (int j = 0; j < V; ++j) before[j] = __fadd_rn(before[j], sum[j]);
        store_vector(d_pos, before);
      });
}

#define KERNEL(SYMBOL, PARAMS, T, CALL)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 3) SYMBOL(const __grid_constant__ PARAMS p) { \
    if (p.cols % VECTOR<T> == 0) {                                                                    \
      CALL<VECTOR<T>, T>(p);                                                                          \
    } else {                                                                                          \
      CALL<1, T>(p);                                                                                  \
    }                                                                                                 \
  }
KERNEL(position_add_fwd_f32, FwdParams, float, forward)
KERNEL(position_add_bwd_f32, BwdParams, float, backward)
KERNEL(position_add_fwd_bf16, FwdParams, bf16, forward)
KERNEL(position_add_bwd_bf16, BwdParams, bf16, backward)
