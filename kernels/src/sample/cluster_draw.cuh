// Draws a token in a cluster: top-p finds the weights that are kept, then the run in which the running sum of these
// weights, in the order of ids, exceeds the random number is searched again.
#pragma once

#if __CUDA_ARCH__ >= 900

#include "cuh/base.cuh"
#include "cuh/cluster.cuh"
#include "cuh/warp.cuh"
#include "sample/cluster_row.cuh"
#include "sample/cluster_select.cuh"
#include "sample/row.cuh"

namespace in_cluster {

// The weights that top-p keeps.
struct TopP {
  u32 last;   // bits of the least kept weight; 0: all weights are kept
  u64 count;  // number of tokens of this weight that are kept, those of the lowest ids
};

// Finds which of the weights in `run.values` top-p keeps. Their sum over the row is `total`. `few_weights`: probably at
// most LISTED of them are not 0.
__device__ __forceinline__ TopP top_p_of(const Run& run, Shared& s, Rounds& rounds, float p, u64 total, int vocab,
                                         bool few_weights) {
  const u64 target = top_p_target(p, total);
  // Weights below this bound add up to less than the weight that top-p drops, so none of them is kept.
  const u64 few = (total - target) / (2 * static_cast<u64>(vocab));
  // Every weight w with fixed(w) >= `few` and fixed(w) > 0 is at least `least`; its bits are at least `lowest`.
  const float least = few > 1 ? __fdiv_rn(__ull2float_rd(few - 1), UNIT) : __fdiv_rn(0.5f, UNIT);
  const u32 lowest = __float_as_uint(least), highest = __float_as_uint(1.0f);
  const Reached reached = select<Weight>(WeightKeys{run}, s, rounds, target, lowest, highest, few_weights);
  return {reached.key, ceil_div(target - reached.above, fixed(__uint_as_float(reached.key)))};
}

// Loads the elements of `above` and `equal` of four neighbouring runs (ranges of token ids). `run`, the first of
// them, is a multiple of four.
__device__ __forceinline__ void load_four(const Shared& s, int run, u64 (&above)[4], u32 (&equal)[4]) {
  const Words<16> counts = *reinterpret_cast<const Words<16>*>(&s.equal[run]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Words<16> pair = *reinterpret_cast<const Words<16>*>(&s.above[run + 2 * half]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      above[2 * half + j] = static_cast<u64>(pair.word[2 * j + 1]) << 32 | pair.word[2 * j];
      equal[2 * half + j] = counts.word[2 * half + j];
    }
  }
}

// What a lane of `draw` finds.
struct Drawn {
  int id;      // the token, in one lane of the cluster; else -1
  bool empty;  // no token is kept; the same in all lanes
};

// Draws a token by the random number u, in units of 2^-64, among the weights in `run.values` that top-p and min-p keep.
__device__ __forceinline__ Drawn draw(const Run& run, Shared& s, u32 rank, const TopP& top_p, float min_p, u64 u) {
  auto is_above = [&](float w) { return __float_as_uint(w) > top_p.last && w >= min_p; };
  auto is_last = [&](float w) { return top_p.last != 0 && __float_as_uint(w) == top_p.last; };
  const float last_weight = __uint_as_float(top_p.last);
  const u64 last = last_weight >= min_p ? fixed(last_weight) : 0;
  const float smallest = __fdiv_rn(0.5f, UNIT);  // a smaller weight is 0 in fixed point
  u64 above = 0;
  u32 equal = 0;
  run.values_from(fmaxf(fmaxf(last_weight, min_p), smallest), [&](float w) {
    above += is_above(w) ? fixed(w) : 0;
    equal += is_last(w);
  });
  above = warp_sum(above);
  equal = __reduce_add_sync(ALL, equal);
  const int number = rank * WARPS + warp();
  give_to_all(s.above[number], above);
  give_to_all(s.equal[number], equal);
  cluster_barrier();

  // Lane i takes the runs (ranges of token ids) 4 i to 4 i + 3.
  constexpr int EACH = RUNS / 32;
  const int from = lane() * EACH;
  static_assert(EACH == 4, "two vectors of u64, one of u32");
  u64 weights[EACH];
  u32 equal_of[EACH], equals = 0;
  load_four(s, from, weights, equal_of);
#pragma unroll
  for (int j = 0; j < EACH; ++j) equals += equal_of[j];
  u64 seen = warp_scan(equals) - equals, sum = 0;
  u32 kept[EACH];
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const u64 left = top_p.count > seen ? top_p.count - seen : 0;
    kept[j] = left < equal_of[j] ? static_cast<u32>(left) : equal_of[j];
    weights[j] += kept[j] * last;
    seen += equal_of[j];
    sum += weights[j];
  }
  const u64 sums = warp_scan(sum), total = __shfl_sync(ALL, sums, 31);
  if (total == 0) return {-1, true};
  const u64 bound = __umul64hi(u, total);
  const int holder = __ffs(__ballot_sync(ALL, sums > bound)) - 1;
  u64 before = sums - sum;
  int held = from;
  u32 left = kept[0];
#pragma unroll
  for (int j = 0; j + 1 < EACH; ++j) {
    if (held == from + j && before + weights[j] <= bound) {
      before += weights[j];
      held = from + j + 1;
      left = kept[j + 1];
    }
  }
  before = __shfl_sync(ALL, before, holder);
  left = __shfl_sync(ALL, left, holder);
  if (__shfl_sync(ALL, held, holder) != number) return {-1, false};

  for (int tile = run.begin; tile < run.end; tile += TILE) {
    const int id = tile + lane() * 4;
    float w[4];
    run.load_tile(tile, 0.0f, w);
    u32 own = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) own += is_last(w[j]);
    const u32 through = static_cast<u32>(warp_scan(own));
    u32 earlier = through - own;
    u64 x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = is_above(w[j]) ? fixed(w[j]) : 0;
      if (is_last(w[j]) && earlier++ < left) x[j] = last;
    }
    const u64 four = x[0] + x[1] + x[2] + x[3], upto = before + warp_scan(four);
    const u32 beyond = __ballot_sync(ALL, upto > bound);
    if (beyond != 0) {
      if (lane() != __ffs(beyond) - 1) break;
      const u64 start = upto - four;
      const int skip = (start + x[0] <= bound) + (start + x[0] + x[1] <= bound) + (start + x[0] + x[1] + x[2] <= bound);
      return {id + skip, false};
    }
    before = __shfl_sync(ALL, upto, 31);
    const u32 tile_equals = __shfl_sync(ALL, through, 31);
    left = tile_equals < left ? left - tile_equals : 0;
  }
  return {-1, false};
}

}  // namespace in_cluster

#endif
