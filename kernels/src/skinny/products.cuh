// The products of a launch: which rows of the weights belong together, and what is computed from their finished sums.
//
// A group is `width` columns of results and the WEIGHTS sets of `width` weight rows that they need. Kernels compute the
// sums of groups, by their number, and know nothing else of a product:
//
//   Single  columns of y; one weight, or the two of swiglu
//   Qkv     pairs of columns of a head of q, k or v: some of its first half and as many of its second half, which
//           are rotated together. The sets of weight rows are those of the two halves. A group is within one head.
#pragma once

#include "cuh/base.cuh"
#include "cuh/math.cuh"
#include "cuh/rotary.cuh"

// Rows of a weight from `first` on. Only rows before `end` exist.
template <class W>
struct WeightRows {
  const W* weight;
  u32 first, end;
};

// Stores two neighbouring elements of a row, or only the first one if `left`, the number of elements up to the row's
// end, is 1.
template <class T>
__device__ __forceinline__ void store_pair(u64 address, u64 at, u32 left, const float (&y)[2]) {
  T* to = global<T>(address) + at;
  if (left > 1 && reinterpret_cast<u64>(to) % (2 * sizeof(T)) == 0) {
    store_vector(to, y);
  } else {
    to[0] = from_f32<T>(y[0]);
    if (left > 1) to[1] = from_f32<T>(y[1]);
  }
}

// Returns `sum` times the scale of a row of an int8 weight.
__device__ __forceinline__ float scaled(u64 scale, u32 row, float sum) {
  return scale == 0 ? sum : __fmul_rn(sum, global<const float>(scale)[row]);
}

// The product of `linear` and `logits`, or (PAIR) the two products of `swiglu`. T: type of x, bias and residual. W:
// type of the weights. Y: type of y.
template <class T, class W, class Y, bool PAIR>
struct Single {
  static constexpr int WEIGHTS = PAIR ? 2 : 1;
  using Place = u32;  // the first column of a group
  const Params& p;

  __device__ __forceinline__ bool has_aligned_weights() const {
    return aligned16(p.w, p.w2, static_cast<u64>(p.k) * sizeof(W));
  }
  // Returns the width (columns) of each of `groups` groups, a multiple of 4.
  __device__ __forceinline__ u32 width(u32 groups) const { return ceil_div(ceil_div<u32>(p.n, groups), 4u) * 4; }
  __device__ __forceinline__ Place place_of(u32 group, u32 width) const { return group * width; }
  // Whether a group has columns.
  __device__ __forceinline__ bool exists(Place first) const { return first < p.n; }
  __device__ __forceinline__ WeightRows<W> rows_of(Place first, bool second) const {
    return {reinterpret_cast<const W*>(global<const u8>(second ? p.w2 : p.w)), first, p.n};
  }
  // The tensor map of a weight.
  __device__ __forceinline__ const TensorMapSlot* map_of(Place, bool second) const {
    return second ? &p.w2_map : &p.w_map;
  }
  // Writes columns c and c + 1 of a group, from the sums of each weight. A product is rounded to T before the next
  // operation, as if that operation were a separate launch.
  __device__ __forceinline__ void write(Place first, u32 row, u32 c, const float (&sum)[WEIGHTS][2]) const {
    const u32 column = first + c;
    if (column >= p.n) return;
    const u64 at = static_cast<u64>(row) * p.n + column;
    float y[2] = {};
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      if (column + i >= p.n) break;
      y[i] = scaled(p.scale, column + i, sum[0][i]);
      if constexpr (PAIR) {
        y[i] = gated(rounded<T>(y[i]), rounded<T>(scaled(p.scale2, column + i, sum[1][i])));
      } else {
        if (p.bias != 0) y[i] = __fadd_rn(y[i], to_f32(global<const T>(p.bias)[column + i]));
        if (p.residual != 0) y[i] = __fadd_rn(rounded<T>(y[i]), to_f32(global<const T>(p.residual)[at + i]));
      }
    }
    store_pair<Y>(p.y, at, p.n - column, y);
  }
};

// The products of `qkv`. T: type of x, biases, q and the caches. W: type of the weights.
template <class T, class W>
struct Qkv {
  static constexpr int WEIGHTS = 2;
  const QkvParams& p;

  // The position of a group: columns i, i + 1, ... of both halves of a head of one projection.
  struct Place {
    u64 weight, scale, bias;
    const TensorMapSlot* map;
    bool is_query, is_value;
    u32 head, i;
  };
  __device__ __forceinline__ u32 half() const { return p.head_dim / 2; }
  // Returns the width (pairs of columns) of each of `groups` groups, a multiple of 4.
  __device__ __forceinline__ u32 width(u32 groups) const {
    return ceil_div(ceil_div(half(), groups / (p.heads + 2 * p.kv_heads)), 4u) * 4;
  }
  __device__ __forceinline__ Place place_of(u32 group, u32 width) const {
    const u32 per_head = ceil_div(half(), width), i = group % per_head * width, head = group / per_head;
    if (head < p.heads) return {p.w_q, p.scale_q, p.bias_q, &p.q_map, true, false, head, i};
    if (head < p.heads + p.kv_heads) return {p.w_k, p.scale_k, p.bias_k, &p.k_map, false, false, head - p.heads, i};
    return {p.w_v, p.scale_v, p.bias_v, &p.v_map, false, true, head - p.heads - p.kv_heads, i};
  }

  // Whether a group has columns.
  __device__ __forceinline__ bool exists(const Place& at) const { return !at.is_value || at.head < p.kv_heads; }
  __device__ __forceinline__ bool has_aligned_weights() const {
    return aligned16(p.w_q, p.w_k, p.w_v, static_cast<u64>(p.k) * sizeof(W));
  }
  __device__ __forceinline__ WeightRows<W> rows_of(const Place& at, bool second) const {
    const u32 first = at.head * p.head_dim + (second ? half() : 0);
    return {reinterpret_cast<const W*>(global<const u8>(at.weight)), first + at.i, first + half()};
  }
  // The tensor map of a weight.
  __device__ __forceinline__ const TensorMapSlot* map_of(const Place& at, bool) const { return at.map; }
  // Writes pairs of columns c and c + 1 of a group: to q, or to the token's slot of the cache of keys or values.
  __device__ __forceinline__ void write(const Place& at, u32 row, u32 c, const float (&sum)[2][2]) const {
    const u32 i = at.i + c;
    if (i >= half()) return;
    const int slot = at.is_query ? 0 : global<const int>(p.slots)[row];
    if (slot < 0) return;  // a row of padding
    float low[2] = {}, high[2] = {};
#pragma unroll
    for (u32 j = 0; j < 2; ++j) {
      if (i + j >= half()) break;
      float x[2];
#pragma unroll
      for (u32 which = 0; which < 2; ++which) {
        const u32 column = at.head * p.head_dim + which * half() + i + j;
        x[which] = scaled(at.scale, column, sum[which][j]);
        if (at.bias != 0) x[which] = __fadd_rn(x[which], to_f32(global<const T>(at.bias)[column]));
        // Rounds to T first, as if the rotation were a launch that reads an array of type T.
        x[which] = rounded<T>(x[which]);
      }
      low[j] = x[0];
      high[j] = x[1];
      if (!at.is_value) {
        const u64 angle = static_cast<u64>(row) * half() + i + j;
        rotate(x[0], x[1], global<const float>(p.cos)[angle], global<const float>(p.sin)[angle], low[j], high[j]);
      }
    }
    const u64 to = at.is_query ? p.q : at.is_value ? p.v_cache : p.k_cache;
    const u32 heads = at.is_query ? p.heads : p.kv_heads, token = at.is_query ? row : static_cast<u32>(slot);
    const u64 first = (static_cast<u64>(token) * heads + at.head) * p.head_dim + i;
    store_pair<T>(to, first, half() - i, low);
    store_pair<T>(to, first + half(), half() - i, high);
  }
};
