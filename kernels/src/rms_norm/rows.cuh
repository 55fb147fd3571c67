// RMS normalisation of rows, and its gradient, as templates over the parameter struct; rms_norm and patch_merge share
// them. Formula, order of sums and grid: rms_norm/sm80.cu.
#pragma once

#include "cuh/norm_rows.cuh"

// True for parameter structs P with a residual, which is added to x before the normalisation. These structs specialise
// this variable.
template <class P>
constexpr bool ADDS = false;

// Returns the row of x and dx that belongs to row `row` of y and dy. Kernels with an index overload this function.
// All lanes of a warp must call it together.
template <class P>
__device__ __forceinline__ u64 place_of(const P&, u64 row) {
  return row;
}

// Adds x and the residual, stores the sums rounded to T, and returns them.
template <class T>
__device__ __forceinline__ Words<16> add_and_store(const Words<16>& x, const Words<16>& residual, T* sum, u32 at, u32 cols,
                                                   bool vector) {
  float a[VECTOR<T>], b[VECTOR<T>];
  unpack<T>(x, a);
  unpack<T>(residual, b);
#pragma unroll
  for (int j = 0; j < VECTOR<T>; ++j) a[j] += b[j];
  store_elements(sum, at, cols, vector, a);
  return pack<T>(a);
}

// `scratch` has two buffers, so one barrier per row is enough: a thread that is one row ahead writes to the other
// buffer.
template <class T, int BLOCK, int THREADS, bool vector, class P>
__device__ __forceinline__ void forward(const P& p, float (&scratch)[2][BLOCK / 32]) {
  constexpr int V = VECTOR<T>;
  constexpr bool REST = THREADS == WIDE, AHEAD = vector && !REST;
  using Row = Held<T, THREADS>;
  const u32 cols = p.cols;
  const u64 step = static_cast<u64>(gridDim.x) * (BLOCK / THREADS);
  const T *xs = global<const T>(p.x), *w = global<const T>(p.w);
  T* ys = global<T>(p.y);
  const T* residuals = nullptr;
  T* sums = nullptr;
  if constexpr (ADDS<P>) {
    residuals = global<const T>(p.residual);
    sums = global<T>(p.sum);
  }
  u64 row = static_cast<u64>(blockIdx.x) * (BLOCK / THREADS) + threadIdx.x / THREADS;

  Row weights, next, next_residual;
  weights.load(w, cols, vector);
  const auto fetch = [&](u64 row) {
    next.load(xs + place_of(p, row) * cols, cols, vector);
    if constexpr (ADDS<P>) next_residual.load(residuals + row * cols, cols, vector);
  };
  if (AHEAD && row < p.rows) fetch(row);
  for (int parity = 0; row < p.rows; row += step, parity ^= 1) {
    const T* x = REST ? xs + place_of(p, row) * cols : nullptr;
    T* y = ys + row * cols;
    if (!AHEAD) fetch(row);
    Row held = next;
    if constexpr (ADDS<P>) {
#pragma unroll
      for (int k = 0; k < CHUNKS<T>; ++k) {
        held.chunk[k] =
            add_and_store(next.chunk[k], next_residual.chunk[k], sums + row * cols, Row::at(k), cols, vector);
      }
    }
    if (AHEAD && row + step < p.rows) fetch(row + step);

    float square = 0.0f, e[V];
    const auto add = [&](const Words<16>& words) {
      unpack<T>(words, e);
#pragma unroll
      for (int j = 0; j < V; ++j) square = fmaf(e[j], e[j], square);
    };
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) add(held.chunk[k]);
    if constexpr (REST) {
      for_rest<T, THREADS>(cols, [&](u32 at) {
        Words<16> words = load_words(x, at, cols, vector);
        if constexpr (ADDS<P>) {
          const Words<16> residual = load_words(residuals + row * cols, at, cols, vector);
          words = add_and_store(words, residual, sums + row * cols, at, cols, vector);
        }
        add(words);
      });
    }
    const float mean = divide(group_sum<THREADS>(square, scratch[parity]), static_cast<float>(cols));
    const float rstd = rsqrtf(mean + p.eps);
    if (p.rstd != 0 && threadIdx.x % THREADS == 0) global<float>(p.rstd)[row] = rstd;

    const auto write = [&](const Words<16>& words, const Words<16>& weight, u32 at) {
      float scale[V], out[V];
      unpack<T>(words, e);
      unpack<T>(weight, scale);
#pragma unroll
      for (int j = 0; j < V; ++j) out[j] = scale[j] * rounded<T>(e[j] * rstd);
      store_elements(y, at, cols, vector, out);
    };
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) write(held.chunk[k], weights.chunk[k], Row::at(k));
    if constexpr (REST) {
      for_rest<T, THREADS>(
          cols, [&](u32 at) {
            const T* normed = ADDS<P> ? sums + row * cols : x;
            write(load_words(normed, at, cols, vector), load_words(w, at, cols, vector), at);
          });
    }
  }
}

template <class T, int THREADS, bool vector, class P>
__device__ __forceinline__ void backward(const P& p, SharedSums& shared) {
  constexpr int V = VECTOR<T>, GROUPS = BWD_BLOCK / THREADS;
  // Kernels with a third operand (d_sum) have too few registers to load the next row ahead.
  constexpr bool REST = THREADS == WIDE, KEEP = vector && !REST, AHEAD = KEEP && sizeof(T) == 2 && !ADDS<P>;
  using Row = Held<T, THREADS>;
  const u32 cols = p.cols, group = threadIdx.x / THREADS;
  const bool wants_dw = p.dw != 0;
  const T *xs = global<const T>(p.x), *dys = global<const T>(p.dy), *w = global<const T>(p.w);
  T* dxs = global<T>(p.dx);
  const float* rstds = global<const float>(p.rstd);
  float* partial = global<float>(p.partial) + static_cast<u64>(blockIdx.x) * cols;

  const GroupRows mine = rows_of_group<GROUPS>(group, p.rows, wants_dw);
  const u64 end = mine.end, step = mine.step;
  u64 row = mine.row;

  Row weights, next_x{}, next_dy{};
  float next_rstd = 0.0f, dw[HELD];
#pragma unroll
  for (int i = 0; i < HELD; ++i) dw[i] = 0.0f;
  if (KEEP) weights.load(w, cols, vector);
  const auto weight = [&](int k) { return KEEP ? weights.chunk[k] : load_words(w, Row::at(k), cols, vector); };
  const auto fetch = [&](u64 row) {
    next_x.load(xs + place_of(p, row) * cols, cols, vector);
    next_dy.load(dys + row * cols, cols, vector);
    next_rstd = load_for_warp(rstds + row);
  };
  if (AHEAD && row < end) fetch(row);
  for (u32 i = 0; i < mine.steps; ++i, row += step) {
    const bool live = row < end;
    if (!AHEAD && live) fetch(row);
    const Row held_x = next_x, held_dy = next_dy;
    const float rstd = next_rstd;
    const u64 place = live ? place_of(p, row) : 0;
    const T *x = xs + place * cols, *dy = dys + row * cols;
    T* dx = dxs + place * cols;
    Row d_sum{};
    const auto load_other = [&](u32 at) {
      Words<16> words{};
      if constexpr (ADDS<P>) words = load_words(global<const T>(p.d_sum) + row * cols, at, cols, vector);
      return words;
    };
    if (KEEP && live) {
#pragma unroll
      for (int k = 0; k < CHUNKS<T>; ++k) d_sum.chunk[k] = load_other(Row::at(k));
    }
    if (AHEAD && row + step < end) fetch(row + step);

    float dot = 0.0f, ex[V], edy[V], ew[V];
    const auto add = [&](const Words<16>& x, const Words<16>& dy, const Words<16>& w) {
      unpack<T>(x, ex);
      unpack<T>(dy, edy);
      unpack<T>(w, ew);
#pragma unroll
      for (int j = 0; j < V; ++j) dot = fmaf(edy[j] * ew[j], ex[j], dot);
    };
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) add(held_x.chunk[k], held_dy.chunk[k], weight(k));
    if constexpr (REST) {
      for_rest<T, THREADS>(cols, [&](u32 at) {
        add(load_words(x, at, cols, vector), load_words(dy, at, cols, vector), load_words(w, at, cols, vector));
      });
    }
    const float mean = divide(group_sum<THREADS>(dot, shared.scratch[i % 2]), static_cast<float>(cols));
    const float along_x = rstd * rstd * rstd * mean;
    if (!live) continue;

    const auto write = [&](const Words<16>& x, const Words<16>& dy, const Words<16>& w, const Words<16>& d_sum, u32 at) {
      float out[V], other[V];
      unpack<T>(x, ex);
      unpack<T>(dy, edy);
      unpack<T>(w, ew);
#pragma unroll
      for (int j = 0; j < V; ++j) out[j] = fmaf(-along_x, ex[j], rstd * (edy[j] * ew[j]));
      if constexpr (ADDS<P>) {
        unpack<T>(d_sum, other);
#pragma unroll
        for (int j = 0; j < V; ++j) out[j] += other[j];
      }
      store_elements(dx, at, cols, vector, out);
    };
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) {
      write(held_x.chunk[k], held_dy.chunk[k], weight(k), KEEP ? d_sum.chunk[k] : load_other(Row::at(k)), Row::at(k));
#pragma unroll
      for (int j = 0; j < V; ++j) dw[k * V + j] = fmaf(edy[j], ex[j] * rstd, dw[k * V + j]);
    }
    if constexpr (REST) {
      for_rest<T, THREADS>(cols, [&](u32 at) {
        write(load_words(x, at, cols, vector), load_words(dy, at, cols, vector), load_words(w, at, cols, vector),
              load_other(at), at);
        if (!wants_dw) return;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          if (at + j < cols) partial[at + j] = fmaf(edy[j], ex[j] * rstd, i == 0 ? 0.0f : partial[at + j]);
        }
      });
    }
  }
  if (!wants_dw) return;

  if constexpr (GROUPS > 1) {
    add_groups<THREADS>(dw, shared.sums);
    if (group > 0) return;
  }
  store_column_sums<T, THREADS>(partial, cols, cols % V == 0 && aligned16(p.partial), dw);
}

template <class P>
__device__ __forceinline__ void sum_all_parts(const P& p) {
  float* dw = global<float>(p.dw);
  sum_parts(global<const float>(p.partial), p.rows, p.cols, [&](u64 c, float sum) {
    dw[c] = p.accumulate == 0 ? sum : dw[c] + sum;
  });
}

// Whether all rows start at a multiple of 16 bytes; `bases_aligned` is overloaded for each parameter struct.
template <class T, class P>
__device__ __forceinline__ bool aligned(const P& p) {
  return p.cols % VECTOR<T> == 0 && bases_aligned(p);
}

template <class T, int BLOCK, int THREADS, class P>
__device__ __forceinline__ void forward_any(const P& p) {
  __shared__ float scratch[2][BLOCK / 32];
  if (aligned<T>(p)) {
    forward<T, BLOCK, THREADS, true>(p, scratch);
  } else {
    forward<T, BLOCK, THREADS, false>(p, scratch);
  }
}

template <class T, int THREADS, class P>
__device__ __forceinline__ void backward_any(const P& p, SharedSums& shared) {
  if (aligned<T>(p)) {
    backward<T, THREADS, true>(p, shared);
  } else {
    backward<T, THREADS, false>(p, shared);
  }
}
