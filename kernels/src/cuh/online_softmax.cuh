// Online softmax of one query row over its keys, 64 keys at a time. All attention kernels use this header, so they
// add up a row's terms in the same order:
//
//   total = empty (max = -inf, sum = 0)
//   for each segment of 512 keys, counted from the sequence's first key:
//     row = empty
//     for each block of 64 keys: raise the maximum to the block's largest score, rescale sum and output, add the block
//     total = merge(total, row)
//   output = total.output / total.sum;  lse = ln of the sum of e^(scale * score)
//
// A block or segment in which the query sees no key changes no bit of the result. A row's bits therefore depend on
// its own query and keys alone, and packed and paged kernels give the same bits, with segments split over blocks or
// not.
//
// Weights are powers of 2: `factor` is scale * log2(e) and positive, maxima are score * factor, and the weight
// 2^(score * factor - max) takes one fused multiply-add and one exponential.
#pragma once

#include "cuh/base.cuh"
#include "cuh/exp2.cuh"
#include "cuh/math.cuh"
#include "cuh/warp.cuh"

constexpr int BLOCK_KEYS = 64;
constexpr int SEGMENT_BLOCKS = 8;

// The maximum and the sum of one row's softmax over the keys so far. The row's output is kept separately.
struct SoftmaxRow {
  float max;  // the largest score times `factor`; -inf before the first score
  float sum;  // this lane's part of the sum of the weights 2^(score * factor - max)
};

__device__ __forceinline__ SoftmaxRow empty_row() { return {minus_infinity(), 0.0f}; }

// Returns the number that is subtracted before the exponential: the row's maximum, or 0 while the row has seen no
// key, because -inf - -inf would be NaN.
__device__ __forceinline__ float reference(float max) { return max == minus_infinity() ? 0.0f : max; }

// Returns the maximum of x over the LANES neighbouring lanes that share a row.
template <int LANES>
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
  for (int mask = 1; mask < LANES; mask *= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

// Returns the sum of x over the LANES neighbouring lanes that share a row; all of them get the same bits.
template <int LANES>
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
  for (int mask = 1; mask < LANES; mask *= 2) x = __fadd_rn(x, shuffle_xor(x, mask));
  return x;
}

// Raises a row's maximum to `largest`, a block's largest score, and rescales the row's sum. Returns the scale factor,
// by which the caller must multiply the row's output.
__device__ __forceinline__ float raise_max(SoftmaxRow& row, float largest, float factor) {
  const float max = fmaxf(row.max, __fmul_rn(largest, factor));
  const float rescale = exp2_approx(__fsub_rn(row.max, reference(max)));
  row.max = max;
  row.sum = __fmul_rn(row.sum, rescale);
  return rescale;
}

// Returns the unnormalised softmax weight of a score; 0 for a score of -inf.
__device__ __forceinline__ float weight(float score, float factor, float reference) {
  return exp2_approx(__fmaf_rn(score, factor, -reference));
}

// Adds one block of scores to two rows and replaces the scores by their weights. With g = lane / 4 and t = lane % 4,
// a lane holds the scores of rows g and g + 8 as 16 x 8 result tiles of mma.sync; it adds its keys 2t and 2t + 1 of
// every tile first, then the tiles in order. `rescale` receives the scale factors of the two rows' outputs.
template <int TILES>
__device__ __forceinline__ void add_scores(SoftmaxRow (&row)[2], float (&s)[TILES][4], float factor,
                                           float (&rescale)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float largest = minus_infinity();
#pragma unroll
    for (int n = 0; n < TILES; ++n) largest = fmaxf(largest, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
    rescale[h] = raise_max(row[h], row_max<4>(largest), factor);
    const float ref = reference(row[h].max);
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      s[n][2 * h] = weight(s[n][2 * h], factor, ref);
      s[n][2 * h + 1] = weight(s[n][2 * h + 1], factor, ref);
      row[h].sum = __fadd_rn(row[h].sum, __fadd_rn(s[n][2 * h], s[n][2 * h + 1]));
    }
  }
}

// Adds one block of 64 scores to a row that 16 lanes share, replaces the scores by their weights, and returns the
// factor by which the row's output must be scaled. Lane x holds the scores of the keys x, x + 16, x + 32 and x + 48.
__device__ __forceinline__ float add_scores(SoftmaxRow& row, float (&s)[4], float factor) {
  const float largest = row_max<16>(fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3])));
  const float rescale = raise_max(row, largest, factor);
  const float ref = reference(row.max);
#pragma unroll
  for (int j = 0; j < 4; ++j) s[j] = weight(s[j], factor, ref);
  row.sum = __fadd_rn(row.sum, __fadd_rn(__fadd_rn(s[0], s[1]), __fadd_rn(s[2], s[3])));
  return rescale;
}

// The factors by which the outputs of two segments (512 keys each) are multiplied when they are merged. The sum of the
// products is the merged output.
struct MergeWeights {
  float total, part;
};

// Merges a segment's maximum and sum into `total`, the maximum and sum of the segments before it. `part.sum` is
// already summed over the row's lanes (row_sum).
__device__ __forceinline__ MergeWeights merge(SoftmaxRow& total, SoftmaxRow part) {
  const float max = fmaxf(total.max, part.max), ref = reference(max);
  const MergeWeights w = {exp2_approx(__fsub_rn(total.max, ref)), exp2_approx(__fsub_rn(part.max, ref))};
  total.max = max;
  total.sum = __fmaf_rn(part.sum, w.part, __fmul_rn(total.sum, w.total));
  return w;
}

// Returns one element of the merged output. `total` is the element of the output over the segments before, `part`
// over this segment; neither is divided by its sum of weights yet.
__device__ __forceinline__ float merged(float total, float part, MergeWeights w) {
  return __fmaf_rn(part, w.part, __fmul_rn(total, w.total));
}

// Returns 1 / sum, by which the summed output is multiplied at the end; infinity for a row without keys.
__device__ __forceinline__ float inverse_sum(SoftmaxRow total) { return __frcp_rn(total.sum); }

// Returns ln of the sum of e^(scale * score) over the row's keys.
__device__ __forceinline__ float log_sum(SoftmaxRow total) { return __fmaf_rn(total.max, LN_2, logf(total.sum)); }
