// L2 normalisation of rows, and its gradient.
//
//   fwd: norm = sqrt(sum x^2),  y = T(x / norm);  bwd, with n = x / norm: dx = T((dy - n * sum(dy * n)) / norm)
//
// Shapes and limits: mod.rs; cols < 2^31. Numerics: f32; square root and quotients correctly rounded; y and dx round
// to T. Order of a row's sum: each thread adds its columns in ascending order, then warp_sum adds the threads, then
// the warps are added in order. Grid: groups of threads (a warp, 256 threads, or 512 in the `_wide` symbols, see
// held.cuh) stride over the rows.
//
//   for each row of the group: x (and dy) -> registers; reduce; write
//
// Columns beyond HELD * 512 are read twice. Memory-bound.

#include "cuh/held.cuh"

constexpr int WIDE = 512;

// Processes each row of the block in three steps. (1) Calls add(sum, x words, dy words) for each vector of the row.
// (2) All threads of the row call finish(row, sum), which returns a pair of values. (3) Calls write(row, x words, dy
// words, at, pair) for each vector.
template <class T, int BLOCK, int THREADS, bool TWO, class Add, class Finish, class Write>
__device__ __forceinline__ void for_rows(const T* xs, const T* dys, u32 rows, u32 cols, bool vector, Add add, Finish finish,
                                         Write write) {
  constexpr bool REST = THREADS == WIDE;
  __shared__ float scratch[2][BLOCK / 32];
  using Row = Held<T, THREADS>;
  const u64 step = static_cast<u64>(gridDim.x) * (BLOCK / THREADS);
  u64 row = static_cast<u64>(blockIdx.x) * (BLOCK / THREADS) + threadIdx.x / THREADS;
  // With two buffers for the warps' sums, one barrier per row is enough: a thread that is one row ahead writes to the
  // other buffer.
  for (int parity = 0; row < rows; row += step, parity ^= 1) {
    const T *x = xs + row * cols, *dy = dys + row * cols;
    Row held, held_dy{};
    held.load(x, cols, vector);
    if (TWO) held_dy.load(dy, cols, vector);
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) sum = add(sum, held.chunk[k], held_dy.chunk[k]);
    const auto other = [&](u32 at) { return TWO ? load_words(dy, at, cols, vector) : Words<16>{}; };
    if constexpr (REST) {
      for_rest<T, THREADS>(cols, [&](u32 at) { sum = add(sum, load_words(x, at, cols, vector), other(at)); });
    }
    const Pair pair = finish(row, group_sum<THREADS>(sum, scratch[parity]));
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) write(row, held.chunk[k], held_dy.chunk[k], Row::at(k), pair);
    if constexpr (REST) {
      for_rest<T, THREADS>(cols, [&](u32 at) { write(row, load_words(x, at, cols, vector), other(at), at, pair); });
    }
  }
}

template <class T, int BLOCK, int THREADS>
__device__ __forceinline__ void forward(const FwdParams& p) {
  constexpr int V = VECTOR<T>;
  const bool vector = p.cols % V == 0 && aligned16(p.x, p.y);
  const T* x = global<const T>(p.x);
  for_rows<T, BLOCK, THREADS, false>(
      x, x, p.rows, p.cols, vector,
      [](float sum, const Words<16>& words, const Words<16>&) {
        float e[V];
        unpack<T>(words, e);
#pragma unroll
        for (int j = 0; j < V; ++j) sum = fmaf(e[j], e[j], sum);
        return sum;
      },
      [&](u64 row, float sum) {
        const float norm = __fsqrt_rn(sum);
        if (p.norm != 0 && threadIdx.x % THREADS == 0) global<float>(p.norm)[row] = norm;
        return Pair{norm, 0.0f};
      },
      [&](u64 row, const Words<16>& words, const Words<16>&, u32 at, const Pair& pair) {
        float e[V];
        unpack<T>(words, e);
#pragma unroll
        for (int j = 0; j < V; ++j) e[j] = __fdiv_rn(e[j], pair.a);
        store_elements(global<T>(p.y) + row * p.cols, at, p.cols, vector, e);
      });
}

template <class T, int BLOCK, int THREADS>
__device__ __forceinline__ void backward(const BwdParams& p) {
  constexpr int V = VECTOR<T>;
  const bool vector = p.cols % V == 0 && aligned16(p.x, p.dy, p.dx);
  for_rows<T, BLOCK, THREADS, true>(
      global<const T>(p.x), global<const T>(p.dy), p.rows, p.cols, vector,
      [](float sum, const Words<16>& x, const Words<16>& dy) {
        float a[V], b[V];
        unpack<T>(x, a);
        unpack<T>(dy, b);
#pragma unroll
        for (int j = 0; j < V; ++j) sum = fmaf(a[j], b[j], sum);
        return sum;
      },
      [&](u64 row, float sum) {
        const float inverse = __frcp_rn(load_for_warp(global<const float>(p.norm) + row));
        return Pair{inverse, sum * inverse};
      },
      [&](u64 row, const Words<16>& x, const Words<16>& dy, u32 at, const Pair& pair) {
        const float inverse = pair.a, along = pair.b;
        float a[V], b[V];
        unpack<T>(x, a);
        unpack<T>(dy, b);
#pragma unroll
        for (int j = 0; j < V; ++j) b[j] = fmaf(-(a[j] * inverse), along, b[j]) * inverse;
        store_elements(global<T>(p.dx) + row * p.cols, at, p.cols, vector, b);
      });
}

#define KERNEL(NAME, PARAMS, BLOCK) \
  extern "C" __global__ void __launch_bounds__(BLOCK) NAME(const __grid_constant__ PARAMS p)

#define KERNELS(T, FWD, FWD_WIDE, BWD, BWD_WIDE)                   \
  KERNEL(FWD, FwdParams, 256) {                                    \
    if (p.cols <= HELD * 32) {                                     \
      forward<T, 256, 32>(p);                                      \
    } else {                                                       \
      forward<T, 256, 256>(p);                                     \
    }                                                              \
  }                                                                \
  KERNEL(FWD_WIDE, FwdParams, WIDE) { forward<T, WIDE, WIDE>(p); } \
  KERNEL(BWD, BwdParams, 256) {                                    \
    if (p.cols <= HELD * 32) {                                     \
      backward<T, 256, 32>(p);                                     \
    } else {                                                       \
      backward<T, 256, 256>(p);                                    \
    }                                                              \
  }                                                                \
  KERNEL(BWD_WIDE, BwdParams, WIDE) { backward<T, WIDE, WIDE>(p); }
KERNELS(float, normalise_fwd_f32, normalise_fwd_f32_wide, normalise_bwd_f32, normalise_bwd_f32_wide)
KERNELS(bf16, normalise_fwd_bf16, normalise_fwd_bf16_wide, normalise_bwd_bf16, normalise_bwd_bf16_wide)
