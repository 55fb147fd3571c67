// Selection in a cluster: finds the key (a score, or a weight) at which a sum over the tokens of the row, in descending
// order of their keys, reaches a target. Top-k counts tokens by score, top-p sums weights, the most likely tokens are
// counted by logit.
//
// Rounds of a selection (a radix select). A key is the distance of a score's or a weight's bits from the lower bound,
// cut into digits of 8 bits from the highest bit that the largest key has. In a round each block adds up the
// histogram of a digit over its ids in shared memory; after a cluster barrier each block reads the histograms of all
// blocks and finds the digit itself. Where at most 128 candidates may be left, they are listed as well; if the lists
// of all blocks have at most 128 keys together, each block reads them and finds the key at once. So top-k takes 1
// round if few tokens exceed its bound. Top-p takes 1 round after top-k; without top-k, 2 rounds if few weights share
// the first digit. Each takes at most 4 rounds. There are three histograms and lists: one in use, one that other
// blocks may still read, and one that is emptied for the next round.
#pragma once

#if __CUDA_ARCH__ >= 900

#include "cuh/base.cuh"
#include "cuh/cluster.cuh"
#include "cuh/warp.cuh"
#include "sample/cluster_row.cuh"
#include "sample/row.cuh"

namespace in_cluster {

// Returns a lower bound of the count-th largest key of the row: the count-th largest of the runs' largest keys,
// key_of(run). A run is a range of token ids. Returns 0 if there are fewer than `count` runs with tokens.
template <class F>
__device__ __forceinline__ u32 bound_of(Shared& s, int count, F key_of) {
  if (count > RUNS) return 0;
  static_assert(THREADS == 4 * RUNS, "four threads per run");
  const int run = threadIdx.x / 4;
  const u32 key = key_of(run);
  int rank = 0;
#pragma unroll 8
  for (int other = threadIdx.x % 4; other < RUNS; other += 4) {
    const u32 x = key_of(other);
    rank += x > key || (x == key && other < run);
  }
  rank += shuffle_xor(rank, 1);
  rank += shuffle_xor(rank, 2);
  if (rank == count - 1 && threadIdx.x % 4 == 0) s.bound = key;
  __syncthreads();
  return s.bound;
}

// Counts the rounds of `select`, modulo 3: the index of the histogram and list to use.
struct Rounds {
  int next;
};

// The result of `select`: the key at which a cumulative sum over descending keys reaches its target.
struct Reached {
  u32 key;
  u64 above;  // the sum over greater keys
};

// The keys by which `select` selects. `each(least, add)` calls add(key) for each token of this lane whose key is
// `least` or more; it may also call it for tokens with smaller keys.
struct LogitKeys {
  const Run& run;
  static __device__ __forceinline__ float floor_of(u32 least) {
    return least == 0 ? minus_infinity() : unordered(least);
  }
  template <class F>
  __device__ __forceinline__ void each(u32 least, F add) const {
    run.values_from(floor_of(least), [&](float logit) { add(ordered(logit)); });
  }
};
struct ScoreKeys {
  const Run& run;
  template <class F>
  __device__ __forceinline__ void each(u32 least, F add) const {
    const float floor = LogitKeys::floor_of(least);
    run.each_four([&](int id, const float (&logit)[4]) {
      float score[4];
      run.marks.scores(id, logit, score);
      if (max_or_nan(score) >= floor) {
#pragma unroll
        for (int j = 0; j < 4; ++j) add(ordered(score[j]));
      }
    });
  }
};
struct WeightKeys {
  const Run& run;
  template <class F>
  __device__ __forceinline__ void each(u32 least, F add) const {
    run.values_from(__uint_as_float(least), [&](float w) { add(__float_as_uint(w)); });
  }
};

// The Amount argument of `select`, what each key adds to the sum: One counts tokens, Weight sums weights.
struct One {
  static constexpr bool COUNTS = true;
  static __device__ __forceinline__ u64 of(u32) { return 1; }
};
struct Weight {
  static constexpr bool COUNTS = false;
  static __device__ __forceinline__ u64 of(u32 key) { return fixed(__uint_as_float(key)); }
};

// Finds the key at which the sum reaches `target`, among the `total` keys that all blocks of the cluster have listed.
// In lane b of each warp, `count` is the number of keys of block b, and `upto` the number of keys of blocks 0 to b.
template <class Amount>
__device__ __forceinline__ Reached select_listed(Shared& s, const u32* list, u64 target, u64 above, u32 count, u32 upto,
                                                 u32 total) {
  constexpr int EACH = THREADS / BLOCKS;
  const int block = threadIdx.x / EACH;
  const u32 own = __shfl_sync(ALL, count, block), before = __shfl_sync(ALL, upto - count, block);
  for (u32 i = threadIdx.x % EACH; i < own; i += EACH) {
    const u32 key = load_u32_of_block(shared_of_block(&list[i], block));
    s.keys[before + i] = key;
    s.amounts[before + i] = Amount::of(key);
  }
  __syncthreads();
  static_assert(THREADS == 4 * LISTED, "four threads per key");
  const u32 i = threadIdx.x / 4, key = i < total ? s.keys[i] : 0;
  u64 greater = 0, equal = 0;
  u32 same_before = 0;
#pragma unroll 4
  for (u32 j = threadIdx.x % 4; j < total; j += 4) {
    const u32 other = s.keys[j];
    const u64 amount = s.amounts[j];
    greater += other > key ? amount : 0;
    equal += other == key ? amount : 0;
    same_before += other == key && j < i;
  }
#pragma unroll
  for (int mask = 1; mask <= 2; mask *= 2) {
    greater += shuffle_xor(greater, mask);
    equal += shuffle_xor(equal, mask);
    same_before += shuffle_xor(same_before, mask);
  }
  greater += above;
  const bool reached = greater < target && greater + equal >= target;
  if (reached && i < total && same_before == 0 && threadIdx.x % 4 == 0) {
    s.key = key;
    s.sum_above = greater;
  }
  __syncthreads();
  return {s.key, s.sum_above};
}

// Adds up amounts in descending order of key and returns the key at which the sum reaches `target`, which is at least 1
// and at most the sum over the keys from `least` to `greatest`. Keys below `least` are ignored, and none is above
// `greatest`. `few`: there are probably at most LISTED keys from `least` on.
template <class Amount, class Keys>
__device__ __forceinline__ Reached select(Keys keys, Shared& s, Rounds& rounds, u64 target, u32 least, u32 greatest,
                                          bool few) {
  u32 prefix = 0;
  u64 above = 0;
  for (int shift = 32 - __clz(greatest - least); shift > 0;) {
    const int width = shift < DIGIT ? shift : DIGIT;
    shift -= width;
    u64* bins = s.bins[rounds.next];
    u32 *list = s.list[rounds.next], *listed = &s.listed[rounds.next];
    rounds.next = rounds.next == 2 ? 0 : rounds.next + 1;
    if (threadIdx.x < BINS) s.bins[rounds.next][threadIdx.x] = 0;
    if (threadIdx.x == 0) s.listed[rounds.next] = 0;
    keys.each(least, [&](u32 key) {
      const u32 distance = key - least, digits = distance >> shift;
      if (key < least || digits >> width != prefix) return;
      u64* bin = &bins[digits & ((1u << width) - 1)];
      // A count of tokens fits into the lower 32 bits of a histogram bin. 32-bit atomics on shared memory are single
      // instructions, 64-bit atomics are loops.
      if (Amount::COUNTS) {
        atomicAdd(reinterpret_cast<u32*>(bin), 1u);
      } else {
        atomicAdd(bin, Amount::of(key));
      }
      if (few) {
        const u32 at = atomicAdd(listed, 1u);
        if (at < LISTED) list[at] = key;
      }
    });
    cluster_barrier();
    if (few) {
      const u32 count = lane() < BLOCKS ? load_u32_of_block(shared_of_block(listed, lane())) : 0;
      const u32 upto = static_cast<u32>(warp_scan(count)), total = __shfl_sync(ALL, upto, 31);
      if (total <= LISTED) return select_listed<Amount>(s, list, target, above, count, upto, total);
    }
    const u32 digit = BINS - 1 - threadIdx.x;
    u64 x = 0, sum = 0;
    if (threadIdx.x < BINS) {
#pragma unroll
      for (int block = 0; block < BLOCKS; ++block) x += load_u64_of_block(shared_of_block(&bins[digit], block));
      sum = warp_scan(x);
      if (lane() == 31) s.scratch[warp()] = sum;
    }
    __syncthreads();
    if (threadIdx.x < BINS) {
      u64 before = above + sum - x;
#pragma unroll
      for (int w = 0; w < BINS / 32; ++w) before += w < warp() ? s.scratch[w] : 0;
      if (before < target && before + x >= target) {
        s.digit = digit;
        s.sum_above = before;
        // x, the sum over the keys with this digit, limits their number: each of them adds at least the amount of the
        // smallest such key.
        s.few = x <= LISTED * Amount::of(least + ((prefix << width | digit) << shift));
      }
    }
    __syncthreads();
    prefix = prefix << width | s.digit;
    above = s.sum_above;
    few = s.few;
  }
  return {least + prefix, above};
}

}  // namespace in_cluster

#endif
