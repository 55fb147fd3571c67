// Online softmax of one query over its keys, one block of keys at a time: this header fixes the order of every sum of
// an attention row.
//
//   for each segment of 512 keys, counted from the sequence's first key:
//     row = empty (row_max = -inf, sum = 0)
//     for each block of 64 keys: raise row_max to the block's maximum, rescale sum and output, add the block's weights
//     total = merge(total, row)
//   output = total.output / total.sum;  lse = ln of the sum of e^(scale * score)
//
// A block in which the query sees no key, or a segment without one, changes no bit. So a row's bits depend on its own
// query and keys alone, and packed and paged kernels, split or not, agree.
//
// `factor` is scale * log2 e and positive; maxima are in units of log2, so that 2^(s * factor - row_max) is one fused
// multiply-add.
#pragma once

#include "cuh/base.cuh"
#include "cuh/exp2.cuh"
#include "cuh/warp.cuh"

constexpr int BLOCK_KEYS = 64;
constexpr int SEGMENT_BLOCKS = 8;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// Statistics of one query's row so far, without its output.
struct SoftmaxRow {
  float top;  // the largest score times factor; -inf while there is none
  float sum;  // this lane's part of the sum of 2^(s * factor - top)
};

__device__ __forceinline__ SoftmaxRow empty_row() { return {minus_infinity(), 0.0f}; }

// What is subtracted before the exponential: the row's maximum, or 0 while no key was seen, because -inf - -inf would
// be NaN.
__device__ __forceinline__ float reference(float top) { return top == minus_infinity() ? 0.0f : top; }

// Returns the maximum over the LANES neighbouring lanes of a row.
template <int LANES>
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
  for (int mask = 1; mask < LANES; mask *= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

// Returns the sum over the lanes of a row, with the same bits in each lane.
template <int LANES>
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
  for (int mask = 1; mask < LANES; mask *= 2) x = __fadd_rn(x, shuffle_xor(x, mask));
  return x;
}

// Raises a row's maximum to a block's largest score. Returns the factor by which its sum was scaled and its output
// must be.
__device__ __forceinline__ float raise(SoftmaxRow& row, float largest, float factor) {
  const float top = fmaxf(row.top, __fmul_rn(largest, factor));
  const float rescale = exp2_approx(__fsub_rn(row.top, reference(top)));
  row.top = top;
  row.sum = __fmul_rn(row.sum, rescale);
  return rescale;
}

// Returns the softmax weight of a score; 0 for -inf.
__device__ __forceinline__ float weight(float score, float factor, float reference) {
  return exp2_approx(__fmaf_rn(score, factor, -reference));
}

// Adds the scores of a block, as 16 x 8 fragments of mma.sync (rows g and g + 8), to two rows; the scores become
// weights. `rescale` receives the factors for the outputs. A lane sums its keys 2t and 2t + 1 of every eight, pairs
// first.
template <int TILES>
__device__ __forceinline__ void take_block(SoftmaxRow (&row)[2], float (&s)[TILES][4], float factor, float (&rescale)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float largest = minus_infinity();
#pragma unroll
    for (int n = 0; n < TILES; ++n) largest = fmaxf(largest, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
    rescale[h] = raise(row[h], row_max<4>(largest), factor);
    const float ref = reference(row[h].top);
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      s[n][2 * h] = weight(s[n][2 * h], factor, ref);
      s[n][2 * h + 1] = weight(s[n][2 * h + 1], factor, ref);
      row[h].sum = __fadd_rn(row[h].sum, __fadd_rn(s[n][2 * h], s[n][2 * h + 1]));
    }
  }
}

// Adds the scores of a block to one row of 16 lanes; lane x holds keys x, x + 16, x + 32 and x + 48.
__device__ __forceinline__ float take_block(SoftmaxRow& row, float (&s)[4], float factor) {
  const float largest = row_max<16>(fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3])));
  const float rescale = raise(row, largest, factor);
  const float ref = reference(row.top);
#pragma unroll
  for (int j = 0; j < 4; ++j) s[j] = weight(s[j], factor, ref);
  row.sum = __fadd_rn(row.sum, __fadd_rn(__fadd_rn(s[0], s[1]), __fadd_rn(s[2], s[3])));
  return rescale;
}

// Factors of two outputs that are merged into one.
struct MergeWeights {
  float total, part;
};

// Merges a segment's row, whose sum is complete (row_sum), into the row of the segments before it.
__device__ __forceinline__ MergeWeights merge(SoftmaxRow& total, SoftmaxRow part) {
  const float top = fmaxf(total.top, part.top), ref = reference(top);
  const MergeWeights w = {exp2_approx(__fsub_rn(total.top, ref)), exp2_approx(__fsub_rn(part.top, ref))};
  total.top = top;
  total.sum = __fmaf_rn(part.sum, w.part, __fmul_rn(total.sum, w.total));
  return w;
}

// Merges an element of a segment's output, not yet divided by the sum, into that of the segments before it.
__device__ __forceinline__ float merged(float total, float part, MergeWeights w) {
  return __fmaf_rn(part, w.part, __fmul_rn(total, w.total));
}

// Returns the factor that turns the summed output into the result: 1 / sum, or 0 without keys.
__device__ __forceinline__ float inverse_sum(SoftmaxRow total) { return __frcp_rn(total.sum); }

// Returns the natural logarithm of the sum of e^(scale * score).
__device__ __forceinline__ float log_sum(SoftmaxRow total) { return __fmaf_rn(total.top, LN_2, logf(total.sum)); }
