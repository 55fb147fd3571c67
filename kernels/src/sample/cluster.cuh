// Samples the next token of each row by a cluster of blocks (sm_90); steps and their order: mod.rs. The results have
// the bits of the kernel in sm80.cu.
//
// Grid: a cluster of 8 blocks of 512 threads per row, at most two blocks on a multiprocessor. Each of the 128 warps of
// a cluster takes one run of the row (row.cuh) and copies its logits to shared memory, so the row is read once. All
// other passes go over shared memory, and a lane reads only the ids that it copied. Marks and changed scores are those
// of sm80.cu, each block with the marks of its own ids.
//
//   start     copy the run, marks
//   1 pass    max score, first id of it, largest logit, any NaN, each by run                       1 cluster barrier
//   top-k     lower bound: the k-th largest of the runs' maxima (k <= 128), else none
//             least = k-th largest score of those above the bound                                  1 each round
//   1 pass    w = e^((score - row_max) / T) replaces the logit, 0 below least; total = sum of w;
//             sums of e^x and e^(x / T) of the unchanged logits, x = logit - largest               1
//   top-p     w* = weight at which the descending sum reaches p total; weights that cannot be
//             kept are skipped                                                                     1 each round
//   1 pass    by run: sum of the weights above w*, number of those equal to it                     1
//             the run in which the running sum of kept weights exceeds u * (their sum) is searched again
//
// The exponential of a token is computed once for its weight: if no penalty or bias changes the score and the largest
// logit is the largest score, e^(x / T) is the weight. So a row of n tokens takes n exponentials without
// log-probabilities or at temperature 1 or 0, else 2 n. With top-k and without log-probabilities it takes four for each
// four neighbouring tokens of which one is kept.
//
// Rounds of a selection. A key is the distance of a score's or a weight's bits from the lower bound, cut into digits of
// 8 bits from the highest bit that the largest key has. In a round each block adds up the histogram of a digit over its
// ids in shared memory; after a cluster barrier each block reads the histograms of all blocks and finds the digit
// itself. Where at most 128 candidates may be left, they are listed as well; if the lists of all blocks have at most
// 128 keys together, each block reads them and finds the key at once. So top-k takes 1 round if few tokens exceed its
// bound, and top-p 1 after top-k, else 2 if few weights share the first digit; at most 4 rounds each. There are three
// histograms and lists: one in use, one that other blocks may still read, and one that is emptied for the next round.
//
// Before a barrier every warp stores what it found to the shared memory of all blocks, so that after it only local
// memory is read. Histograms and lists are read from the other blocks, but never after the last barrier. So a block may
// end while others still run.
//
// Bound by the instructions of the passes: at a vocabulary of 152 064, a block executes a ninth of those of the kernel
// of one block for a greedy token, an eighteenth with top-k, top-p and log-probabilities.
#pragma once

#if __CUDA_ARCH__ >= 900

#include "cuh/base.cuh"
#include "cuh/cluster.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/dependent.cuh"
#include "cuh/warp.cuh"
#include "sample/row.cuh"

namespace in_cluster {

constexpr int BLOCKS = 8;
constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr int DIGIT = 8;  // bits
constexpr int BINS = 1 << DIGIT;
constexpr int LISTED = 128;  // keys
static_assert(BLOCKS * WARPS == RUNS, "one warp per run");

// Marks of the block's ids, then their logits, later their weights. At its size: mod.rs.
extern __shared__ __align__(16) u32 ids_of_block[];

// Arrays of RUNS elements have one element per run of the row, written by the warp that has the run.
struct Shared {
  u64 bins[3][BINS];
  u32 list[3][LISTED];        // keys of this block's candidates
  u32 listed[3];              // their number, also of those that the list does not hold
  u64 amounts[LISTED];        // of the candidates of all blocks
  u32 keys[LISTED];
  u64 first[RUNS];            // score_and_id of the largest score; 0 without a score above -inf
  u64 logit[RUNS];            // the largest logit, ordered, in the upper half; whether there is a NaN in the lower half
  u64 top_counts[RUNS];       // tokens above the last of the most likely tokens (upper half) and equal to it
  u64 total[RUNS];
  double scaled[RUNS], plain[RUNS];
  alignas(16) u64 above[RUNS];
  alignas(16) u32 equal[RUNS];
  u64 scratch[BINS / 32];
  u64 sum_above;
  u32 digit, key, bound;
  bool few;
  Settings settings;
  float top_logit[MAX_TOPS];
  int top_id[MAX_TOPS];
};
// SHARED_OF_CLUSTER_KERNEL in mod.rs.
static_assert(sizeof(Shared) <= 20 * 1024, "static shared memory");

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }

// Returns the larger of two numbers, NaN if one is NaN.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float max;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(max) : "f"(a), "f"(b));
  return max;
}
__device__ __forceinline__ float max_or_nan(const float (&x)[4]) {
  return max_or_nan(max_or_nan(x[0], x[1]), max_or_nan(x[2], x[3]));
}

// The run of this warp.
struct Run {
  // Of this block's ids, in shared memory: logits, then weights. If the vocabulary is no multiple of four, logits of
  // -inf follow, which become weights of 0.
  float* values;
  Marks marks;
  int begin, end;

  // Calls f(id, values) for the four neighbouring tokens of this lane in each tile, `id` being the first.
  template <class F>
  __device__ __forceinline__ void each_four(F f) const {
    for (int id = begin + lane() * 4; id < end; id += TILE) {
      float x[4];
      load_vector(values + (id - marks.first), x);
      f(id, x);
    }
  }

  // Calls f(value) for this lane's values, except fours of values that are all below `floor`.
  template <class F>
  __device__ __forceinline__ void values_from(float floor, F f) const {
    each_four([&](int, const float (&x)[4]) {
      if (max_or_nan(x) >= floor) {
#pragma unroll
        for (int j = 0; j < 4; ++j) f(x[j]);
      }
    });
  }

  // Returns this lane's values in the tile of 128 ids that begins at `tile`, `outside` for ids beyond the run.
  __device__ __forceinline__ void load_tile(int tile, float outside, float (&x)[4]) const {
    const int id = tile + lane() * 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = outside;
    if (id < end) load_vector(values + (id - marks.first), x);
  }
};

// Stores x at the same place in the shared memory of every block. All lanes of the warp have the same x.
template <class T>
__device__ __forceinline__ void give_to_all(T& place, T x) {
  if (lane() < BLOCKS) store_of_block(shared_of_block(&place, lane()), x);
}

// Returns a number that at least `count` tokens of the row reach: the count-th largest of the largest key of each run,
// key_of(run). 0 if so many runs do not have one.
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

// Counts the rounds of `select`, modulo 3.
struct Rounds {
  int next;
};

// The result of `select`: the key at which a cumulative sum over descending keys reaches its target.
struct Reached {
  u32 key;
  u64 above;  // the sum over greater keys
};

// The keys by which `select` selects: `each(least, add)` calls add(key) for each token of this lane whose key is
// `least` or more, and for some others.
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

// The amounts of counting tokens, and of summing weights.
struct One {
  static constexpr bool COUNTS = true;
  static __device__ __forceinline__ u64 of(u32) { return 1; }
};
struct Weight {
  static constexpr bool COUNTS = false;
  static __device__ __forceinline__ u64 of(u32 key) { return fixed(__uint_as_float(key)); }
};

// Finds the key at which the sum reaches `target` among the lists of all blocks, which have `total` keys together. Lane
// b of each warp has the number of keys of block b, and the sum of this number and those of the blocks before it.
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
      // Counts fit into the lower half. 32-bit atomics on shared memory are single instructions, 64-bit ones are loops.
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
        // Each key with this digit adds at least the amount of the least of them.
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

// Copies the n most likely tokens to block 0, in any order, where they are after the next cluster barrier. `largest` is
// the largest logit, ordered.
__device__ __forceinline__ void collect_tops(const Run& run, Shared& s, Rounds& rounds, u32 rank, int n, u32 largest) {
  const u32 least = bound_of(s, n, [&](int i) { return static_cast<u32>(s.logit[i] >> 32); });
  const Reached nth = select<One>(LogitKeys{run}, s, rounds, n, least, largest, true);
  // Counts of tokens above the n-th in the upper half, of those equal to it in the lower half.
  auto counts = [&](float logit) {
    const u32 key = ordered(logit);
    return static_cast<u64>(key > nth.key) << 32 | static_cast<u64>(key == nth.key);
  };
  u64 own = 0;
  run.values_from(LogitKeys::floor_of(nth.key), [&](float logit) { own += counts(logit); });
  own = warp_sum(own);
  const u32 number = rank * WARPS + warp();
  give_to_all(s.top_counts[number], own);
  cluster_barrier();
  u64 before = 0;
#pragma unroll
  for (int j = 0; j < RUNS / 32; ++j) {
    const u32 other = lane() + 32 * j;
    before += other < number ? s.top_counts[other] : 0;
  }
  before = warp_sum(before);
  if (own == 0) return;
  for (int tile = run.begin; tile < run.end; tile += TILE) {
    // Numbers that follow the row are below or equal to all others, and have no place among the first n.
    const int id = tile + lane() * 4;
    float logit[4];
    run.load_tile(tile, minus_infinity(), logit);
    u64 four = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) four += counts(logit[j]);
    const u64 upto = before + warp_scan(four);
    u64 next = upto - four;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const u64 one = counts(logit[j]);
      // Tokens above the n-th come first, in the order of ids; then those equal to it.
      const u64 place = one >> 32 ? next >> 32 : nth.above + static_cast<u32>(next);
      next += one;
      if (one != 0 && place < static_cast<u64>(n)) {
        store_of_block(shared_of_block(&s.top_logit[place], 0), logit[j]);
        store_of_block(shared_of_block(&s.top_id[place], 0), id + j);
      }
    }
    before = __shfl_sync(ALL, upto, 31);
  }
}

// The weights that top-p keeps.
struct TopP {
  u32 last;   // bits of the least kept weight; 0: all weights are kept
  u64 count;  // number of tokens of this weight that are kept, those of the lowest ids
};

// Finds the weights that top-p keeps of the weights in `run.values`, whose sum over the row is `total`. `few_weights`:
// probably at most LISTED of them are not 0.
__device__ __forceinline__ TopP top_p_of(const Run& run, Shared& s, Rounds& rounds, float p, u64 total, int vocab,
                                         bool few_weights) {
  const u64 target = top_p_target(p, total);
  // Weights below this bound add up to less than the weight that top-p drops, so none of them is kept.
  const u64 few = (total - target) / (2 * static_cast<u64>(vocab));
  // A weight of which fixed() is at least `few` and not 0 has at least these bits.
  const float least = few > 1 ? __fdiv_rn(__ull2float_rd(few - 1), UNIT) : __fdiv_rn(0.5f, UNIT);
  const u32 lowest = __float_as_uint(least), highest = __float_as_uint(1.0f);
  const Reached reached = select<Weight>(WeightKeys{run}, s, rounds, target, lowest, highest, few_weights);
  return {reached.key, ceil_div(target - reached.above, fixed(__uint_as_float(reached.key)))};
}

// Loads the elements of `above` and `equal` of four runs, the first of which is a multiple of four.
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

  // Lane i takes runs 4 i to 4 i + 3.
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

extern "C" __global__ void __launch_bounds__(in_cluster::THREADS, 2) sample_cluster(const __grid_constant__ Params p) {
  using namespace in_cluster;
  __shared__ in_cluster::Shared s;
  let_next_launch_start();
  cluster_arrive();
  if (threadIdx.x < in_cluster::BINS) s.bins[0][threadIdx.x] = 0;
  if (threadIdx.x == 0) s.listed[0] = 0;
  wait_for_previous_launch();
  const int r = blockIdx.x / BLOCKS, vocab = p.vocab, per_run = ids_per_run(vocab);
  const u32 rank = cluster_rank(), number = rank * in_cluster::WARPS + warp();
  const bool writer = rank == 0 && threadIdx.x == 0;
  if (threadIdx.x == 0) s.settings = settings_of(p, r);
  const float* logits = global<const float>(p.logits) + static_cast<u64>(r) * vocab;
  u32* changed = p.workspace == 0 ? nullptr : global<u32>(p.workspace) + static_cast<u64>(r) * vocab;
  const int per_block = in_cluster::WARPS * per_run, first_id = rank * per_block;
  auto clamped = [&](int id) { return id < vocab ? id : vocab; };
  Run run;
  run.marks = {ids_of_block, first_id, clamped(first_id + per_block), per_block / 32, changed};
  run.values = reinterpret_cast<float*>(ids_of_block + 2 * run.marks.words);
  run.begin = number * per_run;
  run.end = clamped(run.begin + per_run);

  const bool vector = aligned16(p.logits, static_cast<u64>(vocab) * sizeof(float));
  for (int id = run.begin + lane() * 4; id < run.end; id += TILE) {
    const u32 to = static_cast<u32>(__cvta_generic_to_shared(run.values + (id - first_id)));
    if (vector) {
      cp_async_16(to, logits + id);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (id + j < run.end) {
          cp_async_4(to + 4 * j, logits + id + j);
        } else {
          run.values[id + j - first_id] = minus_infinity();
        }
      }
    }
  }
  cp_async_commit();
  prepare<in_cluster::THREADS>(p, run.marks, logits, changed, s.settings, r);
  cp_async_wait<0>();

  float max_logit = minus_infinity(), max_score = minus_infinity();
  int max_id = -1;
  bool bad = false;
  run.each_four([&](int id, const float (&logit)[4]) {
    float score[4], max = max_or_nan(logit);
    max_logit = max_or_nan(max_logit, max);
    if (run.marks.scores(id, logit, score)) {
      max = max_or_nan(score);
      bad |= max != max;
    }
    if (max > max_score) {
      max_score = max;
      max_id = id + (score[0] == max ? 0 : score[1] == max ? 1 : score[2] == max ? 2 : 3);
    }
  });
  u64 first = warp_max_u64(max_id < 0 ? 0 : score_and_id(max_score, max_id));
  u32 largest_key = __reduce_max_sync(ALL, ordered(max_logit));
  bad = __any_sync(ALL, bad || max_logit != max_logit);
  // redundant: in the simulator all blocks of a cluster start together; on a GPU the others may start later.
  cluster_wait();
  give_to_all(s.first[number], first);
  give_to_all(s.logit[number], static_cast<u64>(largest_key) << 32 | bad);
  cluster_barrier();
  first = 0;
  u64 largest_logit = 0;
  u32 any = 0;
#pragma unroll
  for (int i = lane(); i < RUNS; i += 32) {
    first = s.first[i] > first ? s.first[i] : first;
    largest_logit = s.logit[i] > largest_logit ? s.logit[i] : largest_logit;
    any |= static_cast<u32>(s.logit[i]);
  }
  first = warp_max_u64(first);
  largest_key = __reduce_max_sync(ALL, static_cast<u32>(largest_logit >> 32));
  bad = __any_sync(ALL, any != 0);
  const float top = first == 0 ? minus_infinity() : score_of(first), largest = unordered(largest_key);

  const bool greedy = !(s.settings.temperature > 0.0f);
  const bool sampled = !bad && !greedy && top != minus_infinity();
  int id = !bad && greedy && top != minus_infinity() ? id_of(first) : -1;
  const bool log_probs = p.log_prob != 0 || p.raw_log_prob != 0 || p.tops != 0;
  const int tops = p.tops < p.vocab ? p.tops : p.vocab;
  if (bad || (!sampled && !log_probs)) {
    if (writer) {
      global<int>(p.ids)[r] = id;
      write_log_probs(p, r, id, largest, largest, 1.0f, 0.0, 0.0);
    }
    if (rank == 0) write_tops(p, r, 0, s.top_logit, s.top_id, largest, 0.0);
    return;
  }
  Rounds rounds{0};
  if (tops > 0) collect_tops(run, s, rounds, rank, tops, largest_key);

  const int k = s.settings.top_k;
  float least = minus_infinity();
  if (sampled && k > 0 && k < vocab) {
    const u32 bound = bound_of(s, k, [&](int i) { return static_cast<u32>(s.first[i] >> 32); });
    const bool few = bound != 0;
    least = unordered(in_cluster::select<One>(ScoreKeys{run}, s, rounds, k, bound, ordered(top), few).key);
  }

  const float scale = greedy ? 1.0f : __fdiv_rn(1.0f, s.settings.temperature);
  const bool same_top = log_probs && top == largest;
  const float top_p = s.settings.top_p;
  u64 total = 0;
  double scaled = 0.0, plain = 0.0;
  run.each_four([&](int id, const float (&logit)[4]) {
    float e[4] = {0.0f, 0.0f, 0.0f, 0.0f}, score[4];
    if (log_probs) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        e[j] = expf(__fsub_rn(logit[j], largest));
        plain += e[j];
      }
      if (scale != 1.0f) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          e[j] = expf(__fmul_rn(__fsub_rn(logit[j], largest), scale));
          scaled += e[j];
        }
      }
    }
    if (!sampled) return;
    const bool marked = run.marks.scores(id, logit, score);
    if (max_or_nan(score) < least) {
#pragma unroll
      for (int j = 0; j < 4; ++j) e[j] = 0.0f;
    } else {
      if (marked || !same_top) {
#pragma unroll
        for (int j = 0; j < 4; ++j) e[j] = expf(__fmul_rn(__fsub_rn(score[j], top), scale));
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) e[j] = score[j] >= least ? e[j] : 0.0f;
      if (top_p < 1.0f) {
#pragma unroll
        for (int j = 0; j < 4; ++j) total += fixed(e[j]);
      }
    }
    store_vector(run.values + (id - first_id), e);
  });
  if (sampled && top_p < 1.0f) give_to_all(s.total[number], warp_sum(total));
  if (log_probs) {
    give_to_all(s.plain[number], warp_sum(plain));
    if (scale != 1.0f) give_to_all(s.scaled[number], warp_sum(scaled));
  }

  bool mine = writer;  // whether this thread writes the row's token
  if (!sampled) {
    cluster_barrier();
  } else {
    TopP kept{0, 0};
    bool empty = false;
    if (top_p < 1.0f) {
      cluster_barrier();
      total = sum_of_runs(s.total);
      empty = total == 0;
      if (!empty) kept = top_p_of(run, s, rounds, top_p, total, vocab, k > 0 && k <= LISTED);
    }
    if (!empty) {
      const Drawn drawn = in_cluster::draw(run, s, rank, kept, s.settings.min_p, random_of(s.settings));
      id = drawn.id;
      mine = drawn.empty ? writer : id >= 0;
    }
  }
  if (mine) global<int>(p.ids)[r] = id;
  if (!log_probs) return;
  const bool writes_tops = rank == 0 && tops > 0;
  if (!__any_sync(ALL, mine) && !writes_tops) return;
  const double log_plain = log_of_sum(sum_of_runs(s.plain));
  const double log_scaled = scale == 1.0f ? log_plain : log_of_sum(sum_of_runs(s.scaled));
  if (mine) write_log_probs(p, r, id, id < 0 ? largest : logits[id], largest, scale, log_scaled, log_plain);
  if (writes_tops) write_tops(p, r, tops, s.top_logit, s.top_id, largest, log_plain);
}

#endif
