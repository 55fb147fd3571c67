// Order of a row's sums on sm_90a. The forward pass of packed sequences and paged decode include this header, so a
// row has bit-identical results in training, prefill and decode. Earlier architectures have the order of
// online_softmax.cuh.
//
// The keys of a row are counted from the first key of its sequence, or of its prefix if there is one. A segment has 512
// keys, four blocks of 128. Segments, and the blocks of a segment, are taken in descending order, because the block on
// the diagonal, the only one with a mask, is then the first. c = scale * log2(e).
//
//   total = none
//   for each segment, descending:
//     for each block of the segment, descending:
//       s = q . k: one sum from 0 on, over 16 columns at a time, ascending; -inf for a key that the row does not see
//       x = max of the block's s
//       first block: m = x, o = 0, l = 0, alpha = 1
//       else if x * c > fma(m, c, 8): alpha = 2^((m - x) * c), m = x, o *= alpha
//       else: alpha = 1                            # m stays: the weights are at most 2^8
//       p = 2^(fma(s, c, -(m * c)))
//       o += bf16(p) v: one sum, over 16 keys at a time, ascending
//       l = fma(l, alpha, u + w) for each of four lanes; lane i adds up the p of keys 8 n + 2 i (u) and 8 n + 2 i + 1
//         (w), n ascending
//     l = (l0 + l1) + (l2 + l3)
//     total = merge(total, segment): below; the first segment is the total
//   output = bf16(total.o * (1 / total.l))
//
// A block or segment of which the row sees no key has m = x = -inf and p = 0, and changes no bit of the total.
#pragma once

#include "cuh/exp2.cuh"
#include "cuh/math.cuh"
#include "cuh/warp.cuh"

// Makes ptxas place the arithmetic that computes x (x >= 0) before the next wgmma wait; without this, ptxas moves the
// wait before all arithmetic that does not use the products. The store never happens.
__device__ __forceinline__ void compute_before_wait(float x, u32 shared) {
  asm volatile("{\n\t.reg .pred p;\n\tsetp.lt.f32 p, %0, 0f00000000;\n\t@p st.shared.f32 [%1], %0;\n\t}" ::"f"(x), "r"(shared)
               : "memory");
}

constexpr int ROW_BLOCK_KEYS = 128;
constexpr int ROW_SEGMENT_BLOCKS = 4;

// Tells whether the reference, the maximum that weights are relative to, must move from m to x, because weights
// relative to m could exceed 2^8.
__device__ __forceinline__ bool reference_moves(float m, float x, float c) {
  return __fmul_rn(x, c) > __fmaf_rn(m, c, 8.0f);
}

// Returns the factor of sums relative to the reference m after the reference has moved to x.
__device__ __forceinline__ float reference_change(float m, float x, float c) {
  return exp2_approx(__fmul_rn(__fsub_rn(m, x), c));
}

// Returns what is subtracted from score * c before the exponential; 0 for a row that has seen no key, because
// -inf - -inf would be NaN.
__device__ __forceinline__ float scaled_reference(float m, float c) {
  return m == minus_infinity() ? 0.0f : __fmul_rn(m, c);
}

__device__ __forceinline__ float row_weight(float score, float c, float reference) {
  return exp2_approx(__fmaf_rn(score, c, -reference));
}

// Weights for merging a segment (reference m) into a total (reference M). The sums of each are multiplied by
// merge_weight(own reference, other reference), and the result has the reference max(M, m). If neither has seen a
// key, fminf turns the NaN into 0, so both weights are 1 and both sums 0.
__device__ __forceinline__ float merge_weight(float m, float other, float c) {
  return exp2_approx(fminf(0.0f, __fmul_rn(__fsub_rn(m, other), c)));
}

// Returns an element of the output, or the sum of weights, after a segment has been merged into the total.
__device__ __forceinline__ float merged_value(float total, float total_weight, float part, float part_weight) {
  return __fmaf_rn(part, part_weight, __fmul_rn(total, total_weight));
}

// The softmax states of ROWS rows whose scores are held by four lanes. m: references (the maxima that weights are
// relative to); l: this lane's part of the sums of weights; alpha: the factors of the older sums and outputs;
// rescales: whether an alpha of any row of the warp is not 1. In the forward pass a lane has two rows, in decode one.
template <int ROWS>
struct RowStates {
  float m[ROWS], l[ROWS], alpha[ROWS];
  bool rescales;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) m[r] = minus_infinity(), l[r] = 0;
  }

  // Adds a block of keys to the states and replaces its scores by their weights. Only the first KEYS keys of the block
  // count. With t = lane % 4, a lane has the scores of keys 8 n + 2 t and 8 n + 2 t + 1 of row r in s[2 (ROWS n + r)]
  // and s[2 (ROWS n + r) + 1]. NEW: the block is the first.
  template <int KEYS, bool NEW, int N>
  __device__ __forceinline__ void add(float (&s)[N], float c) {
    constexpr int STEP = 2 * ROWS, SCORES = KEYS / 8 * STEP;
    float x[ROWS], y[ROWS], reference[ROWS], u[ROWS], w[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) x[r] = fmaxf(s[2 * r], s[2 * r + 1]);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) y[r] = fmaxf(s[STEP + 2 * r], s[STEP + 2 * r + 1]);
#pragma unroll
    for (int i = 2 * STEP; i < SCORES; i += 2 * STEP) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) x[r] = fmaxf(x[r], fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
#pragma unroll
      for (int r = 0; r < ROWS; ++r) y[r] = fmaxf(y[r], fmaxf(s[i + STEP + 2 * r], s[i + STEP + 2 * r + 1]));
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) x[r] = fmaxf(x[r], y[r]);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) x[r] = fmaxf(x[r], shuffle_xor(x[r], 1));
#pragma unroll
    for (int r = 0; r < ROWS; ++r) x[r] = fmaxf(x[r], shuffle_xor(x[r], 2));
    if constexpr (NEW) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) m[r] = x[r];
    } else {
      bool moves[ROWS], any = false;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) moves[r] = reference_moves(m[r], x[r], c);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        alpha[r] = moves[r] ? reference_change(m[r], x[r], c) : 1.0f;
        any = any || moves[r];
      }
#pragma unroll
      for (int r = 0; r < ROWS; ++r) m[r] = moves[r] ? x[r] : m[r];
      rescales = __any_sync(0xffffffffu, any);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) reference[r] = scaled_reference(m[r], c), u[r] = w[r] = 0;
#pragma unroll
    for (int i = 0; i < SCORES; i += STEP) {
#pragma unroll
      for (int j = 0; j < STEP; ++j) s[i + j] = row_weight(s[i + j], c, reference[j / 2]);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        u[r] = __fadd_rn(u[r], s[i + 2 * r]), w[r] = __fadd_rn(w[r], s[i + 2 * r + 1]);
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float sum = __fadd_rn(u[r], w[r]);
      l[r] = NEW ? sum : __fmaf_rn(l[r], alpha[r], sum);
    }
  }

  // Adds up the four lanes' partial sums of each row, at the end of a segment (512 keys).
  __device__ __forceinline__ void add_lanes() {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      l[r] = __fadd_rn(l[r], shuffle_xor(l[r], 1));
      l[r] = __fadd_rn(l[r], shuffle_xor(l[r], 2));
    }
  }
};
using RowPair = RowStates<2>;
