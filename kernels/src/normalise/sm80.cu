// L2 normalisation of rows: norm = sqrt(sum x^2),  y = T(x / norm).
//
// Shapes and limits: mod.rs; cols < 2^31. Numerics: f32; square root and quotients correctly rounded; y rounds to T.
// Order of a row's sum: each thread adds its columns in ascending order, then warp_sum adds the threads, then the
// warps are added in order. Grid: groups of threads (a warp, 256 threads, or 512 in the `_wide` symbols, see held.cuh)
// stride over the rows.
//
//   for each row of the group: x -> registers; reduce; write y
//
// Columns beyond HELD * 512 are read twice. Memory-bound.

#include "cuh/held.cuh"

constexpr int WIDE = 512;

template <class T, int BLOCK, int THREADS>
__device__ __forceinline__ void forward(const FwdParams& p) {
  constexpr int V = VECTOR<T>;
  constexpr bool REST = THREADS == WIDE;
  __shared__ float scratch[2][BLOCK / 32];
  using Row = Held<T, THREADS>;
  const u32 cols = p.cols;
  const bool vector = cols % V == 0 && aligned16(p.x, p.y);
  const u64 step = static_cast<u64>(gridDim.x) * (BLOCK / THREADS);
  u64 row = static_cast<u64>(blockIdx.x) * (BLOCK / THREADS) + threadIdx.x / THREADS;
  // With two buffers for the warps' sums, one barrier per row is enough: a thread that is one row ahead writes to the
  // other buffer.
  for (int parity = 0; row < p.rows; row += step, parity ^= 1) {
    const T* x = global<const T>(p.x) + row * cols;
    T* y = global<T>(p.y) + row * cols;
    Row held;
    held.load(x, cols, vector);
    float e[V], sum = 0.0f;
    const auto add = [&](const Words<16>& words) {
      unpack<T>(words, e);
#pragma unroll
      for (int j = 0; j < V; ++j) sum = fmaf(e[j], e[j], sum);
    };
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) add(held.chunk[k]);
    if constexpr (REST) {
      for_rest<T, THREADS>(cols, [&](u32 at) { add(load_words(x, at, cols, vector)); });
    }
    const float norm = __fsqrt_rn(group_sum<THREADS>(sum, scratch[parity]));
    const auto write = [&](const Words<16>& words, u32 at) {
      unpack<T>(words, e);
#pragma unroll
      for (int j = 0; j < V; ++j) e[j] = __fdiv_rn(e[j], norm);
      store_elements(y, at, cols, vector, e);
    };
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) write(held.chunk[k], Row::at(k));
    if constexpr (REST) {
      for_rest<T, THREADS>(cols, [&](u32 at) { write(load_words(x, at, cols, vector), at); });
    }
  }
}

#define KERNEL(NAME, BLOCK) \
  extern "C" __global__ void __launch_bounds__(BLOCK) NAME(const __grid_constant__ FwdParams p)

#define KERNELS(T, FWD, FWD_WIDE) \
  KERNEL(FWD, 256) {              \
    if (p.cols <= HELD * 32) {    \
      forward<T, 256, 32>(p);     \
    } else {                      \
      forward<T, 256, 256>(p);    \
    }                             \
  }                               \
  KERNEL(FWD_WIDE, WIDE) { forward<T, WIDE, WIDE>(p); }
KERNELS(float, normalise_fwd_f32, normalise_fwd_f32_wide)
KERNELS(bf16, normalise_fwd_bf16, normalise_fwd_bf16_wide)
