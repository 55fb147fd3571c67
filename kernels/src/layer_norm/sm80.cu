// Layer normalisation of rows, and its gradient.
//
//   fwd: mean = mean(x), rstd = 1 / sqrt(mean((x - mean)^2) + eps),  y = (x - mean) * rstd * w + b
//   bwd: n = (x - mean) * rstd, g = dy * w:  dx = rstd * (g - mean(g) - n * mean(g * n))
//        dw (+)= sum over rows of dy * n,  db (+)= sum over rows of dy
//
// Shapes and limits: mod.rs; cols < 2^31. Numerics: f32, rsqrt to 2^-22.9, the means' quotients to 2 ulp; y and dx
// round to T once. Order of a row's sums: each thread adds its columns in ascending order, then warp_sum adds the
// threads, then the warps are added in order. The order depends on cols alone.
//
// Grid: a group of threads computes one row at a time (held.cuh): a warp for up to HELD * 32 columns, 256 threads for
// up to HELD * 256, and 512 threads beyond that (the `_wide` symbols). Forward, and backward without dw and db, groups
// stride over the rows. Backward with dw or db, a block owns rows_per_block rows, and the `_dw` stage adds up the
// blocks' sums (norm_rows.cuh).
//
//   for each row of the group:
//     x (and dy) of the row -> registers, 16 bytes per load
//     reduce (forward twice); write y or dx
//     add to the column sums in registers
//
// w and b are read once per block if rows are multiples of 16 bytes and fit into registers. Columns beyond HELD * 512
// are read again, and their dw and db are summed in `partial` itself. Rows that are not a multiple of 16 bytes are
// processed element by element, in the same order of sums. Memory-bound.

#include "cuh/norm_rows.cuh"

// Two sums over the same row, reduced together so that one reduction computes both.
struct Pair {
  float a, b;

  __device__ __forceinline__ Pair& operator+=(const Pair& other) {
    a += other.a;
    b += other.b;
    return *this;
  }
};

// Shared memory for reductions over a row, in place of SharedSums::scratch, whose elements hold one sum.
using PairScratch = Pair[2][BWD_BLOCK / 32];

// group_sum calls this function for a Pair.
__device__ __forceinline__ Pair shuffle_xor(const Pair& x, int mask) {
  return {shuffle_xor(x.a, mask), shuffle_xor(x.b, mask)};
}

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
    if (threadIdx.x % THREADS == 0) {
      if (p.mean != 0) global<float>(p.mean)[row] = mean;
      if (p.rstd != 0) global<float>(p.rstd)[row] = rstd;
    }

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

template <class T, int THREADS, bool vector>
__device__ __forceinline__ void backward(const BwdParams& p, PairScratch& scratch, Words<16>* sums) {
  constexpr int V = VECTOR<T>, GROUPS = BWD_BLOCK / THREADS;
  constexpr bool REST = THREADS == WIDE, KEEP = vector && !REST;
  using Row = Held<T, THREADS>;
  const u32 cols = p.cols, group = threadIdx.x / THREADS;
  const float count = static_cast<float>(cols);
  const bool wants_dw = p.partial != 0;
  const T *xs = global<const T>(p.x), *dys = global<const T>(p.dy), *w = global<const T>(p.w);
  float* partial_w = global<float>(p.partial) + static_cast<u64>(blockIdx.x) * 2 * cols;
  float* partial_b = partial_w + cols;

  const GroupRows mine = rows_of_group<GROUPS>(group, p.rows, wants_dw);
  const u64 end = mine.end, step = mine.step;
  u64 row = mine.row;

  Row weights;
  if (KEEP) weights.load(w, cols, vector);
  const auto weight = [&](int k) { return KEEP ? weights.chunk[k] : load_words(w, Row::at(k), cols, vector); };
  float dw[HELD], db[HELD];
#pragma unroll
  for (int i = 0; i < HELD; ++i) dw[i] = db[i] = 0.0f;
  for (u32 i = 0; i < mine.steps; ++i, row += step) {
    const T *x = xs + row * cols, *dy = dys + row * cols;
    T* dx = global<T>(p.dx) + row * cols;
    const bool live = row < end;
    Row held_x{}, held_dy{};
    float mean = 0.0f, rstd = 0.0f;
    if (live) {
      held_x.load(x, cols, vector);
      held_dy.load(dy, cols, vector);
      mean = load_for_warp(global<const float>(p.mean) + row);
      rstd = load_for_warp(global<const float>(p.rstd) + row);
    }

    // Columns past the end of the row have dy = 0, so g is 0 too.
    Pair sum{0.0f, 0.0f};
    float n[V], edy[V], ew[V];
    const auto take = [&](const Words<16>& x, const Words<16>& dy, const Words<16>& w) {
      unpack<T>(x, n);
      unpack<T>(dy, edy);
      unpack<T>(w, ew);
#pragma unroll
      for (int j = 0; j < V; ++j) n[j] = (n[j] - mean) * rstd;
    };
    const auto add = [&] {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float g = edy[j] * ew[j];
        sum.a += g;
        sum.b = fmaf(g, n[j], sum.b);
      }
    };
    const auto take_from_memory = [&](u32 at) {
      take(load_words(x, at, cols, vector), load_words(dy, at, cols, vector), load_words(w, at, cols, vector));
    };
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) {
      take(held_x.chunk[k], held_dy.chunk[k], weight(k));
      add();
    }
    if constexpr (REST) {
      if (live) {
        for_rest<T, THREADS>(cols, [&](u32 at) {
          take_from_memory(at);
          add();
        });
      }
    }
    sum = group_sum<THREADS>(sum, scratch[i % 2]);
    if (!live) continue;
    const float mean_g = divide(sum.a, count), mean_gn = divide(sum.b, count);

    const auto write = [&](u32 at) {
      float out[V];
#pragma unroll
      for (int j = 0; j < V; ++j) out[j] = rstd * (edy[j] * ew[j] - mean_g - n[j] * mean_gn);
      store_elements(dx, at, cols, vector, out);
    };
#pragma unroll
    for (int k = 0; k < CHUNKS<T>; ++k) {
      take(held_x.chunk[k], held_dy.chunk[k], weight(k));
      write(Row::at(k));
#pragma unroll
      for (int j = 0; j < V; ++j) {
        dw[k * V + j] = fmaf(edy[j], n[j], dw[k * V + j]);
        db[k * V + j] += edy[j];
      }
    }
    if constexpr (REST) {
      for_rest<T, THREADS>(cols, [&](u32 at) {
        take_from_memory(at);
        write(at);
        if (!wants_dw) return;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          if (at + j < cols) {
            partial_w[at + j] = fmaf(edy[j], n[j], i == 0 ? 0.0f : partial_w[at + j]);
            partial_b[at + j] = edy[j] + (i == 0 ? 0.0f : partial_b[at + j]);
          }
        }
      });
    }
  }
  if (!wants_dw) return;

  if constexpr (GROUPS > 1) {
    add_groups<THREADS>(dw, sums);
    // The sums of db reuse `sums`: wait until the first group has read the sums of dw from it.
    __syncthreads();
    add_groups<THREADS>(db, sums);
    if (group > 0) return;
  }
  const bool whole = cols % V == 0 && aligned16(p.partial);
  store_column_sums<T, THREADS>(partial_w, cols, whole, dw);
  store_column_sums<T, THREADS>(partial_b, cols, whole, db);
}

// Adds up the rows of `partial`, each with `cols` elements for dw, then `cols` elements for db.
__device__ __forceinline__ void sum_all_parts(const BwdParams& p) {
  sum_parts(global<const float>(p.partial), p.rows, 2ull * p.cols, [&](u64 c, float sum) {
    const bool of_w = c < p.cols;
    float* target = global<float>(of_w ? p.dw : p.db);
    if (target == nullptr) return;
    target += of_w ? c : c - p.cols;
    *target = (of_w ? p.accumulate_w : p.accumulate_b) == 0 ? sum : *target + sum;
  });
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

template <class T, int THREADS>
__device__ __forceinline__ void backward_any(const BwdParams& p, SharedSums& shared) {
  __shared__ PairScratch scratch;
  if (p.cols % VECTOR<T> == 0 && aligned16(p.x, p.w, p.dy, p.dx)) {
    backward<T, THREADS, true>(p, scratch, shared.sums);
  } else {
    backward<T, THREADS, false>(p, scratch, shared.sums);
  }
}

FORWARD(layer_norm_fwd_f32, layer_norm_fwd_f32_wide, float, FwdParams)
BACKWARD(layer_norm_bwd_f32, layer_norm_bwd_f32_wide, layer_norm_bwd_f32_dw, float, BwdParams, BWD_BLOCK, 1)
FORWARD(layer_norm_fwd_bf16, layer_norm_fwd_bf16_wide, bf16, FwdParams)
BACKWARD(layer_norm_bwd_bf16, layer_norm_bwd_bf16_wide, layer_norm_bwd_bf16_dw, bf16, BwdParams, BWD_BLOCK, 1)
