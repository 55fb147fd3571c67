// The sum of e^(s l) over logits l, computed exactly, so that it has the same bits in any order and grouping of the
// logits. So sampling and training kernels, which divide a row in different ways, give bit-identical
// log-probabilities.
//
// A term is rounded once, independently of the other terms: e^(s l) = 2^n 2^f with n the integer nearest to s l log2 e
// and |f| <= 1/2, and 2^f comes from ex2.approx, whose result is a multiple of 2^-24. Terms are collected by n, in bins
// of 16 powers of two. The terms of a bin add up in a 64-bit integer: a term has at most 40 bits, so 2^24 of them fit.
// The sum keeps the bin of the largest term and the three bins below; smaller terms are less than 2^-48 of the largest.
//
// Requires |s l| < 2^20 for the logits that count. Smaller logits may be anything, -inf too.
#pragma once

#include "cuh/exp2.cuh"
#include "cuh/math.cuh"
#include "cuh/warp.cuh"

// The number s log2 e, stored as the sum of two floats; s > 0.
struct ExpFactor {
  float high, low;

  __device__ __forceinline__ explicit ExpFactor(float s) {
    constexpr float LOG2_E_REST = 1.92596299e-8f;  // log2 e - LOG2_E
    high = __fmul_rn(s, LOG2_E);
    low = __fmaf_rn(s, LOG2_E_REST, __fmaf_rn(s, LOG2_E, -high));
  }

  // Tells whether sums are exact if their largest logit is `largest`.
  __device__ __forceinline__ bool is_exact(float largest) const { return fabsf(__fmul_rn(largest, high)) < 1048576.0f; }
};

// e^(s l) = mantissa 2^(n - 24).
struct ExpTerm {
  int n;
  u32 mantissa;

  __device__ __forceinline__ ExpTerm(float logit, const ExpFactor& s) {
    const float high = __fmul_rn(logit, s.high), low = __fmaf_rn(logit, s.low, __fmaf_rn(logit, s.high, -high));
    const float whole = rintf(high);
    const u32 bits = __float_as_uint(exp2_approx(__fadd_rn(__fsub_rn(high, whole), low)));
    n = __float2int_rn(whole);
    // 2^f lies between 1/2 and 2: the lowest bit of its exponent tells on which side of 1.
    mantissa = (bits & 0x7fffffu | 0x800000u) << (bits >> 23 & 1);
  }

  __device__ __forceinline__ int bin() const { return n >> 4; }
  // The term in units of its bin.
  __device__ __forceinline__ u64 in_bin() const { return static_cast<u64>(mantissa) << (n & 15); }
};

struct ExpSum {
  static constexpr int WORDS = 4;
  int bin;
  u64 words[WORDS];  // sums of the terms of bins `bin`, `bin` - 1, ..., each in units of its bin

  // Makes an empty sum. `largest` is the row's largest logit. Another logit is allowed if no term that is added before
  // the first raise() belongs to a higher bin (16 powers of two).
  __device__ __forceinline__ ExpSum(float largest, const ExpFactor& s) : bin(ExpTerm(largest, s).bin()) {
#pragma unroll
    for (int i = 0; i < WORDS; ++i) words[i] = 0;
  }

  // Adds the term of a logit that is not larger than the sum's largest logit.
  __device__ __forceinline__ void add(float logit, const ExpFactor& s) {
    const ExpTerm term(logit, s);
    const int below = bin - term.bin();
    const u64 x = term.in_bin();
#pragma unroll
    for (int i = 0; i < WORDS; ++i) words[i] += below == i ? x : 0;
  }

  // Moves the sums of the four bins so that the first of them is bin `to`, which is not below the present first bin.
  __device__ __forceinline__ void raise(int to) {
    const int distance = to - bin;
    bin = to;
    if (distance == 0) return;
    u64 moved[WORDS] = {};
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
#pragma unroll
      for (int from = 0; from < i; ++from) moved[i] = i - from == distance ? words[from] : moved[i];
    }
#pragma unroll
    for (int i = 0; i < WORDS; ++i) words[i] = moved[i];
  }

  __device__ __forceinline__ void add(ExpSum other) {
    const int to = max(bin, other.bin);
    raise(to);
    other.raise(to);
#pragma unroll
    for (int i = 0; i < WORDS; ++i) words[i] += other.words[i];
  }

  // Returns ln of the sum minus s times the largest logit; that logit is one of the terms.
  __device__ __forceinline__ double log_above(float largest, const ExpFactor& s) const {
    const u64 first = ExpTerm(largest, s).in_bin();
    double others = 0.0;
#pragma unroll
    for (int i = WORDS - 1; i > 0; --i) others = (others + __ull2double_rn(words[i])) * 0x1p-16;
    return log1p((others + __ull2double_rn(words[0] - first)) / __ull2double_rn(first));
  }
};

// Returns the log-probability of a token. `ln_sum` is the row's ExpSum::log_above.
__device__ __forceinline__ float log_prob_of(float logit, float largest, float s, double ln_sum) {
  return static_cast<float>((static_cast<double>(logit) - static_cast<double>(largest)) * s - ln_sum);
}
