// Adds learned position embeddings to the patches of images: y[r] = T(x[r] + pos[r mod positions]).
//
// Shapes and limits: mod.rs. Numerics: the sum rounds to T. Grid: a thread owns 16 bytes of one position's row (one
// element if rows are not a multiple of 16 bytes); 256 threads per block.
//
//   load pos; for each image, four at a time: load x; store x + pos
//
// Positions are read once, whatever the number of images. Memory-bound.

#include "cuh/base.cuh"

constexpr int THREADS = 256;
// Number of images whose elements a thread loads before it uses the first of them.
constexpr int AHEAD = 4;

template <int V, class T>
__device__ __forceinline__ void forward(const FwdParams& p) {
  const u64 total = static_cast<u64>(p.rows) * p.cols, plane = static_cast<u64>(p.positions) * p.cols;
  const u64 own = (static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x) * V;
  if (own >= plane || own >= total) return;
  float pos[V];
  load_vector(global<const T>(p.pos) + own, pos);
  for (u64 at = own; at < total; at += AHEAD * plane) {
    float x[AHEAD][V];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      if (at + k * plane < total) load_vector(global<const T>(p.x) + at + k * plane, x[k]);
    }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      if (at + k * plane >= total) continue;
#pragma unroll
      for (int j = 0; j < V; ++j) x[k][j] = __fadd_rn(x[k][j], pos[j]);
      store_vector(global<T>(p.y) + at + k * plane, x[k]);
    }
  }
}

#define KERNEL(SYMBOL, T)                                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS, 3) SYMBOL(const __grid_constant__ FwdParams p) { \
    if (p.cols % VECTOR<T> == 0) {                                                                       \
      forward<VECTOR<T>, T>(p);                                                                          \
    } else {                                                                                             \
      forward<1, T>(p);                                                                                  \
    }                                                                                                    \
  }
KERNEL(position_add_fwd_f32, float)
KERNEL(position_add_fwd_bf16, bf16)
