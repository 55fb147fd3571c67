// Log-probabilities of target tokens from hidden states and the output weight, without storing logits; formula and
// shapes: mod.rs.
//
// Forward: a block computes a tile of rows and one split of the vocabulary, SPLIT columns, tile by tile. Each logit
// stays in its register for the split's statistics: row_max of t, sum of 2^(t - row_max), and moment = sum of 2^(t -
// row_max) (t - row_max), with t = logit * inv_temperature * log2 e. A lane accumulates its own columns. Lanes are
// merged at the end of the split; a second launch merges the splits in ascending order. Backward: a block computes
// one tile of logits and turns them into gradients.
//
// Order: a logit is a sum over the width in ascending order, whatever its tile. The lane, tile and split of a column
// depend on the column alone, so a row's bits do not depend on the other rows. Numerics: logits in f32 (bf16: tensor
// cores; f32: fused multiply-adds), never rounded further; statistics in f32, 2^x by ex2.approx. Gradients are
// rounded once.
//
// Grid: x = row tile (fastest, so that concurrent blocks share the weight's rows in L2), then split or column tile.
//
//   for each tile of the split, for each slice of the width:
//     load hidden and weight (4 stages in flight); logits += product
//     at the last slice: statistics = with(logits), or d_logits = gradient(logits)
//   store (row_max, sum, moment, target's logit) of each row
//   combine, one thread per row: merge splits; lse, log_prob, entropy
//
// Bound by matrix products, 2 rows * vocab * width operations.
#include "cuh/base.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/exp2.cuh"
#include "cuh/math.cuh"
#include "cuh/mma.cuh"
#include "cuh/warp.cuh"

constexpr u32 SPLIT = 2048;

extern __shared__ __align__(16) unsigned char shared[];

// Softmax statistics of some columns of a row; `sum` and `moment` are relative to `row_max`, the largest scaled
// logit.
struct Statistics {
  float row_max, sum, moment;
};

__device__ __forceinline__ Statistics no_columns() { return {minus_infinity(), 0.0f, 0.0f}; }

// Returns statistics of the same columns whose sum and moment are relative to a larger maximum, `row_max`.
__device__ __forceinline__ Statistics raised(const Statistics& s, float row_max) {
  if (s.row_max == minus_infinity()) return {row_max, s.sum, s.moment};  // nothing, or NaN
  const float distance = __fsub_rn(s.row_max, row_max), factor = exp2_approx(distance);
  return {row_max, __fmul_rn(s.sum, factor), __fmul_rn(__fmaf_rn(distance, s.sum, s.moment), factor)};
}

__device__ __forceinline__ Statistics merge(const Statistics& a, const Statistics& b) {
  const float row_max = a.row_max > b.row_max ? a.row_max : b.row_max;  // of a NaN nothing is left here: the sum has it
  if (row_max == minus_infinity()) return {row_max, __fadd_rn(a.sum, b.sum), __fadd_rn(a.moment, b.moment)};
  const Statistics x = raised(a, row_max), y = raised(b, row_max);
  return {row_max, __fadd_rn(x.sum, y.sum), __fadd_rn(x.moment, y.moment)};
}

// Adds columns with logits `z` to the statistics; z is minus infinity for columns beyond the vocabulary.
template <int N>
__device__ __forceinline__ void add(Statistics& s, const float (&z)[N], float factor) {
  float largest = z[0];
#pragma unroll
  for (int n = 1; n < N; ++n) largest = fmaxf(largest, z[n]);
  const float row_max = fmaxf(s.row_max, __fmul_rn(largest, factor));
  if (row_max > s.row_max) s = raised(s, row_max);
  const float reference = row_max == minus_infinity() ? 0.0f : row_max;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float x = __fsub_rn(__fmul_rn(z[n], factor), reference);
    x = x < -1000.0f ? -1000.0f : x;  // not minus infinity, whose product with 0 is NaN
    const float e = exp2_approx(x);
    s.sum = __fadd_rn(s.sum, e);
    s.moment = __fmaf_rn(e, x, s.moment);
  }
}

// Merges the statistics of the LANES neighbouring lanes that hold columns of the same row; each of them gets the
// result.
template <int LANES>
__device__ __forceinline__ Statistics over_lanes(Statistics s) {
#pragma unroll
  for (int mask = 1; mask < LANES; mask *= 2) {
    const Statistics other = {shuffle_xor(s.row_max, mask), shuffle_xor(s.sum, mask), shuffle_xor(s.moment, mask)};
    // The lower lane's statistics come first in both lanes, so that both get the same bits.
    s = threadIdx.x & mask ? merge(other, s) : merge(s, other);
  }
  return s;
}

// The operands of a block's product: the rows of hidden, and the rows of the weight (one per token of the vocabulary)
// from `column` up to `end`.
template <class T>
struct Operands {
  const T* hidden;
  const T* weight;
  u32 row, rows, column, end, width;
};

// ---- bf16 product: 4 warps, 32 rows x 128 columns each ----

struct Bf16 {
  using T = bf16;
  static constexpr int THREADS = 128, ROWS = 128, COLUMNS = 128, SLICE = 32, STAGES = 4, LANES = 4;
  static constexpr int OPERAND = 128 * SLICE * 2;  // bytes of a stage
  static constexpr int MINE = 4, ACROSS = 32;      // rows and columns of a thread

  float sums[2][COLUMNS / 8][4];

  // A thread holds sums of several rows and columns of the tile. `row` returns the tile row of the thread's i-th row,
  // `column` the tile column of its j-th column.
  __device__ static __forceinline__ u32 row(int i) {
    return threadIdx.x / 32 * 32 + i / 2 * 16 + i % 2 * 8 + threadIdx.x % 32 / 4;
  }
  __device__ static __forceinline__ u32 column(int j) { return j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2; }
  __device__ __forceinline__ float logit(int i, int j) const { return sums[i / 2][j / 2][i % 2 * 2 + j % 2]; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < COLUMNS / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
      }
    }
  }

  // Offset of a row's 16-byte chunk in a stage, swizzled so that eight neighbouring rows use eight different bank
  // groups.
  __device__ static __forceinline__ u32 offset(u32 row, u32 chunk) { return row * 64 + ((chunk ^ (row / 2 & 3)) * 16); }

  // Loads elements `at` to `at` + 31 of the 128 rows that start with row `first` into a pipeline stage.
  __device__ static __forceinline__ void load(unsigned char* to, const bf16* from, u32 first, u32 end, u32 at, u32 width) {
    const u32 chunk = threadIdx.x % 4, k = at + chunk * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 row = threadIdx.x / 4 + i * 32;
      const bf16* source = from + static_cast<u64>(first + row) * width + k;
      if (width % 8 == 0) {
        const bool valid = first + row < end && k < width;
        cp_async_16(shared_address(to + offset(row, chunk)), valid ? source : from, valid ? 16 : 0);
      } else {
        Words<16> words = {};
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          if (first + row < end && k + j < width) words.word[j / 2] |= static_cast<u32>(source[j].bits) << j % 2 * 16;
        }
        *reinterpret_cast<Words<16>*>(to + offset(row, chunk)) = words;
      }
    }
  }

  __device__ __forceinline__ void multiply(const unsigned char* hidden, const unsigned char* weight) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 a_base = shared_address(hidden), b_base = shared_address(weight);
#pragma unroll
    for (int step = 0; step < SLICE / 16; ++step) {
      u32 a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) ldmatrix_x4(a[m], a_base + offset(warp * 32 + m * 16 + lane % 16, 2 * step + lane / 16));
#pragma unroll
      for (int n = 0; n < COLUMNS / 16; ++n) {
        u32 b[4];
        ldmatrix_x4(b, b_base + offset(n * 16 + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(sums[m][2 * n], a[m], b[0], b[1]);
          mma_bf16(sums[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
};

// ---- f32 product: a thread computes 4 rows and every sixteenth column ----

struct F32 {
  using T = float;
  static constexpr int THREADS = 256, ROWS = 64, COLUMNS = 64, SLICE = 32, STAGES = 2, LANES = 16;
  static constexpr int PITCH = SLICE + 4;  // an odd number of 16-byte units
  static constexpr int OPERAND = 64 * PITCH * 4;
  static constexpr int MINE = 4, ACROSS = 4;

  float sums[4][4];

  __device__ static __forceinline__ u32 row(int i) { return threadIdx.x / 16 * 4 + i; }
  __device__ static __forceinline__ u32 column(int j) { return threadIdx.x % 16 + j * 16; }
  __device__ __forceinline__ float logit(int i, int j) const { return sums[i][j]; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] = 0.0f;
    }
  }

  __device__ static __forceinline__ void load(unsigned char* to, const float* from, u32 first, u32 end, u32 at, u32 width) {
    const u32 chunk = threadIdx.x % 8, k = at + chunk * 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const u32 row = threadIdx.x / 8 + i * 32;
      const float* source = from + static_cast<u64>(first + row) * width + k;
      const u32 place = shared_address(to + (row * PITCH + chunk * 4) * 4);
      if (width % 4 == 0) {
        const bool valid = first + row < end && k < width;
        cp_async_16(place, valid ? source : from, valid ? 16 : 0);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool valid = first + row < end && k + j < width;
          cp_async_4(place + 4 * j, valid ? source + j : from, valid ? 4 : 0);
        }
      }
    }
  }

  __device__ __forceinline__ void multiply(const unsigned char* hidden, const unsigned char* weight) {
    const float* a_tile = reinterpret_cast<const float*>(hidden);
    const float* b_tile = reinterpret_cast<const float*>(weight);
#pragma unroll
    for (int k = 0; k < SLICE; k += 4) {
      float a[4][4], b[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load_vector(a_tile + row(i) * PITCH + k, a[i]);
        load_vector(b_tile + column(i) * PITCH + k, b[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int l = 0; l < 4; ++l) sums[i][j] = __fmaf_rn(a[i][l], b[j][l], sums[i][j]);
        }
      }
    }
  }
};

// Calls finish(product, first column) for each tile of columns, once its sums over the whole width are complete.
template <class P, class F>
__device__ __forceinline__ void products(const Operands<typename P::T>& o, F finish) {
  constexpr int STAGE = 2 * P::OPERAND;
  const u32 tiles = ceil_div<u32>(o.end - o.column, P::COLUMNS), slices = ceil_div<u32>(o.width, P::SLICE);
  u32 next_column = o.column, next = 0, left = tiles * slices;
  auto load = [&](int stage) {
    if (left > 0) {
      unsigned char* to = shared + stage * STAGE;
      P::load(to, o.hidden, o.row, o.rows, next * P::SLICE, o.width);
      P::load(to + P::OPERAND, o.weight, next_column, o.end, next * P::SLICE, o.width);
      --left;
      if (++next == slices) {
        next = 0;
        next_column += P::COLUMNS;
      }
    }
    cp_async_commit();
  };
  P product;
  product.clear();
#pragma unroll
  for (int stage = 0; stage < P::STAGES - 1; ++stage) load(stage);
  int stage = 0;
  for (u32 tile = 0; tile < tiles; ++tile) {
    for (u32 slice = 0; slice < slices; ++slice) {
      cp_async_wait<P::STAGES - 2>();
      __syncthreads();  // this slice is there for all, and all are done with the one before
      load(stage == 0 ? P::STAGES - 1 : stage - 1);
      product.multiply(shared + stage * STAGE, shared + stage * STAGE + P::OPERAND);
      stage = stage + 1 == P::STAGES ? 0 : stage + 1;
    }
    finish(product, o.column + tile * P::COLUMNS);
    product.clear();
  }
}

// Returns the address of a row's statistics in a split: row_max, sum, moment, target's logit.
__device__ __forceinline__ float4* statistics_of(u64 workspace, u32 split, u32 rows, u32 row) {
  return global<float4>(workspace) + static_cast<u64>(split) * rows + row;
}

template <class P>
__device__ __forceinline__ void forward(const FwdParams& p) {
  using T = typename P::T;
  const u32 row_tiles = ceil_div<u32>(p.rows, P::ROWS);
  const u32 split = blockIdx.x / row_tiles, first = split * SPLIT, end = p.vocab - first < SPLIT ? p.vocab : first + SPLIT;
  const Operands<T> o = {global<const T>(p.hidden), global<const T>(p.weight), blockIdx.x % row_tiles * P::ROWS,
                         p.rows, first, end, p.width};
  const float factor = p.inv_temperature * LOG2_E;
  Statistics statistics[P::MINE];
  float target_logit[P::MINE];
  u32 target[P::MINE];
#pragma unroll
  for (int i = 0; i < P::MINE; ++i) {
    statistics[i] = no_columns();
    target_logit[i] = 0.0f;
    const u32 row = o.row + P::row(i);
    target[i] = row < p.rows ? static_cast<u32>(global<const int>(p.targets)[row]) : 0;
  }
  products<P>(o, [&](const P& product, u32 column) {
#pragma unroll
    for (int i = 0; i < P::MINE; ++i) {
      float z[P::ACROSS];
#pragma unroll
      for (int j = 0; j < P::ACROSS; ++j) {
        const u32 at = column + P::column(j);
        z[j] = at < end ? product.logit(i, j) : minus_infinity();
        if (at == target[i]) target_logit[i] = z[j];
      }
      add(statistics[i], z, factor);
    }
  });
#pragma unroll
  for (int i = 0; i < P::MINE; ++i) {
    const Statistics s = over_lanes<P::LANES>(statistics[i]);
    // Only one lane of the row holds the target's logit and the others hold 0, so the sum over the lanes is that
    // logit.
    float z = target_logit[i];
#pragma unroll
    for (int mask = 1; mask < P::LANES; mask *= 2) z += shuffle_xor(z, mask);
    const u32 row = o.row + P::row(i);
    if (threadIdx.x % P::LANES == 0 && row < p.rows) {
      *statistics_of(p.workspace, split, p.rows, row) = make_float4(s.row_max, s.sum, s.moment, z);
    }
  }
}

__device__ __forceinline__ void combine(const FwdParams& p) {
  const u32 row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= p.rows) return;
  const int target = global<const int>(p.targets)[row];
  Statistics s = no_columns();
  float logit = not_a_number();
  const u32 splits = ceil_div<u32>(p.vocab, SPLIT);
  for (u32 split = 0; split < splits; ++split) {
    const float4 part = *statistics_of(p.workspace, split, p.rows, row);
    s = merge(s, {part.x, part.y, part.z});
    if (target >= 0 && static_cast<u32>(target) < p.vocab && target / SPLIT == split) logit = part.w;
  }
  const float ln_sum = logf(s.sum), scaled = __fmul_rn(logit, p.inv_temperature * LOG2_E);
  const bool ignored = target < 0;
  global<float>(p.lse)[row] = __fmaf_rn(s.row_max, LN_2, ln_sum);
  global<float>(p.log_prob)[row] = ignored ? 0.0f : __fmaf_rn(__fsub_rn(scaled, s.row_max), LN_2, -ln_sum);
  if (p.entropy != 0) {
    global<float>(p.entropy)[row] = ignored ? 0.0f : __fmaf_rn(-LN_2, __fdiv_rn(s.moment, s.sum), ln_sum);
  }
}

template <class P>
__device__ __forceinline__ void backward(const BwdParams& p) {
  using T = typename P::T;
  const u32 row_tiles = ceil_div<u32>(p.rows, P::ROWS);
  const u32 first = p.first + blockIdx.x / row_tiles * P::COLUMNS, all = p.first + p.columns;
  const u32 end = all - first < P::COLUMNS ? all : first + P::COLUMNS;
  const Operands<T> o = {global<const T>(p.hidden), global<const T>(p.weight), blockIdx.x % row_tiles * P::ROWS,
                         p.rows, first, end, p.width};
  products<P>(o, [&](const P& product, u32 column) {
#pragma unroll
    for (int i = 0; i < P::MINE; ++i) {
      const u32 row = o.row + P::row(i);
      if (row >= p.rows) continue;
      const int target = global<const int>(p.targets)[row];
      const bool ignored = target < 0, bad = target >= static_cast<int>(p.vocab);
      const float lse = global<const float>(p.lse)[row];
      const float grad = ignored ? 0.0f : global<const float>(p.d_log_prob)[row] * p.inv_temperature;
      float entropy = 0.0f, entropy_grad = 0.0f;
      if (p.d_entropy != 0 && !ignored) {
        entropy = global<const float>(p.entropy)[row];
        entropy_grad = global<const float>(p.d_entropy)[row] * p.inv_temperature;
      }
      auto gradient = [&](float log_prob, float of_log_prob) {
        const float prob = expf(log_prob);
        float d = grad * of_log_prob;
        if (entropy_grad != 0.0f) d -= entropy_grad * (prob > 0.0f ? prob * (log_prob + entropy) : 0.0f);
        if (ignored) d = 0.0f;
        return bad ? not_a_number() : d;
      };
      T* to = global<T>(p.d_logits) + static_cast<u64>(row) * p.columns + (column - p.first);
      int target_column = -1;
      float target_log_prob = 0.0f;
#pragma unroll
      for (int j = 0; j < P::ACROSS; ++j) {
        const u32 at = column + P::column(j);
        if (at >= end) continue;
        const float log_prob = __fmaf_rn(product.logit(i, j), p.inv_temperature, -lse);
        if (at == static_cast<u32>(target)) {
          target_column = P::column(j);
          target_log_prob = log_prob;
        } else {
          to[P::column(j)] = from_f32<T>(gradient(log_prob, -expf(log_prob)));
        }
      }
      // The target's gradient needs 1 - e^x, which expm1f computes without cancellation when the target's probability
      // is near 1.
      if (target_column >= 0) to[target_column] = from_f32<T>(gradient(target_log_prob, -expm1f(target_log_prob)));
    }
  });
}

extern "C" __global__ void __launch_bounds__(Bf16::THREADS, 2)
    linear_log_prob_fwd_bf16(const __grid_constant__ FwdParams p) {
  forward<Bf16>(p);
}
extern "C" __global__ void __launch_bounds__(F32::THREADS, 2) linear_log_prob_fwd_f32(const __grid_constant__ FwdParams p) {
  forward<F32>(p);
}
extern "C" __global__ void __launch_bounds__(128) linear_log_prob_fwd_bf16_combine(const __grid_constant__ FwdParams p) {
  combine(p);
}
extern "C" __global__ void __launch_bounds__(128) linear_log_prob_fwd_f32_combine(const __grid_constant__ FwdParams p) {
  combine(p);
}
extern "C" __global__ void __launch_bounds__(Bf16::THREADS, 2)
    linear_log_prob_bwd_bf16(const __grid_constant__ BwdParams p) {
  backward<Bf16>(p);
}
extern "C" __global__ void __launch_bounds__(F32::THREADS, 2) linear_log_prob_bwd_f32(const __grid_constant__ BwdParams p) {
  backward<F32>(p);
}
