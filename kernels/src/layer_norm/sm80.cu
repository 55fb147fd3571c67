// Layer normalisation of rows.
//
//   mean = mean(x), rstd = 1 / sqrt(mean((x - mean)^2) + eps),  y = (x - mean) * rstd * w + b
//
// Shapes and limits: mod.rs; cols < 2^31. Numerics: f32, rsqrt to 2^-22.9, the means' quotients to 2 ulp; y rounds to
// T once. Order of a row's sums: each thread adds its columns in ascending order, then warp_sum adds the threads, then
// the warps are added in order. The order depends on cols alone.
//
// Grid: a group of threads computes one row at a time (held.cuh): a warp for up to HELD * 32 columns, 256 threads for
// up to HELD * 256, and 512 threads beyond that (the `_wide` symbols). Groups stride over the rows.
//
//   for each row of the group: x of the row -> registers, 16 bytes per load; reduce twice; write y
//
// w and b are read once per block if rows are multiples of 16 bytes and fit into registers. Columns beyond HELD * 512
// are read again. Rows that are not a multiple of 16 bytes are processed element by element, in the same order of
// sums. Memory-bound.

#include "cuh/norm_rows.cuh"

template <class T, int BLOCK, int THREADS, bool vector>
__device__ __forceinline__ void forward(const FwdParams& p, float (&scratch)[2][BLOCK / 32]) {
  constexpr int V = VECTOR<T>;
  constexpr bool REST = THREADS == WIDE, KEEP = vector && !REST;
  using Row = Held<T, THREADS>;
  const u32 cols = p.cols;
  const float count = static_cast<float>(cols);
  const u64 step = static_cast<u64>(gridDim.x) * (BLOCK / THREADS);
  const T *xs = global<const T>(p.x), *w = global<const T>(p.w), *b = global<const T>(p.b);

  Row weights, biases, next;
  if (KEEP) {
    weights.load(w, cols, vector);
    biases.load(b, cols, vector);
  }
  u64 row = static_cast<u64>(blockIdx.x) * (BLOCK / THREADS) + threadIdx.x / THREADS;
  if (KEEP && row < p.rows) next.load(xs + row * cols, cols, vector);
  for (; row < p.rows; row += step) {
    const T* x = xs + row * cols;
    T* y = global<T>(p.y) + row * cols;
    if (!KEEP) next.load(x, cols, vector);
    const Row held = next;
    if (KEEP && row + step < p.rows) next.load(x + step * cols, cols, vector);

    float e[V], sum = 0.0f;
    const auto add = [&](const Words<16>& words) {
      unpack<T>(words, e);
#pragma unroll
      for (int j = 0; j < V; ++j) sum += e[j];
    };
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) add(held.chunk[k]);
    if constexpr (REST) {
      for_rest<T, THREADS>(cols, [&](u32 at) { add(load_words(x, at, cols, vector)); });
    }
    const float mean = divide(group_sum<THREADS>(sum, scratch[0]), count);

    float square = 0.0f;
    const auto add_square = [&](const Words<16>& words, u32 at) {
      unpack<T>(words, e);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        // Elements beyond the end of the row were loaded as zeros; they must not add mean^2 to the sum of squares.
        const float d = at + j < cols ? e[j] - mean : 0.0f;
        square = fmaf(d, d, square);
      }
    };
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) add_square(held.chunk[k], Row::at(k));
    if constexpr (REST) {
      for_rest<T, THREADS>(cols, [&](u32 at) { add_square(load_words(x, at, cols, vector), at); });
    }
    // The sums over the row alternate between two scratch buffers. Before a thread writes to one buffer again, all
    // threads have passed the barrier after the write to the other buffer, so no thread still reads the first buffer.
    const float rstd = rsqrtf(divide(group_sum<THREADS>(square, scratch[1]), count) + p.eps);

    const auto write = [&](const Words<16>& words, const Words<16>& weight, const Words<16>& bias, u32 at) {
      float scale[V], shift[V], out[V];
      unpack<T>(words, e);
      unpack<T>(weight, scale);
      unpack<T>(bias, shift);
#pragma unroll
      for (int j = 0; j < V; ++j) out[j] = fmaf((e[j] - mean) * rstd, scale[j], shift[j]);
      store_elements(y, at, cols, vector, out);
    };
    const auto from_memory = [&](const T* p, u32 at) { return load_words(p, at, cols, vector); };
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) {
      write(held.chunk[k], KEEP ? weights.chunk[k] : from_memory(w, Row::at(k)),
            KEEP ? biases.chunk[k] : from_memory(b, Row::at(k)), Row::at(k));
    }
    if constexpr (REST) {
      for_rest<T, THREADS>(cols, [&](u32 at) { write(from_memory(x, at), from_memory(w, at), from_memory(b, at), at); });
    }
  }
}

template <class T, int BLOCK, int THREADS>
__device__ __forceinline__ void forward_any(const FwdParams& p) {
  __shared__ float scratch[2][BLOCK / 32];
  if (p.cols % VECTOR<T> == 0 && aligned16(p.x, p.w, p.b, p.y)) {
    forward<T, BLOCK, THREADS, true>(p, scratch);
  } else {
    forward<T, BLOCK, THREADS, false>(p, scratch);
  }
}

FORWARD(layer_norm_fwd_f32, layer_norm_fwd_f32_wide, float, FwdParams)
FORWARD(layer_norm_fwd_bf16, layer_norm_fwd_bf16_wide, bf16, FwdParams)
