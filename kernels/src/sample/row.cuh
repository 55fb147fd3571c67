// The parts of sampling that are the same in each pass over a row (sm80.cu): the settings of the row, the scores of its
// tokens, and its sums.
//
// A row is cut into 128 runs of equal length, a multiple of 128 ids; the last runs may be shorter or empty. A warp
// processes 128 ids at a time, four neighbouring ones per lane. Sums are exact integers (of weights in fixed point, of
// exponentials by cuh/exp_sum.cuh), so no bit depends on their order.
#pragma once

#include "cuh/base.cuh"
#include "cuh/exp_sum.cuh"
#include "cuh/math.cuh"
#include "cuh/philox.cuh"
#include "cuh/warp.cuh"

constexpr int TILE = 128;
constexpr int RUNS = 128;
constexpr int MAX_TOPS = 32;
constexpr float UNIT = 1099511627776.0f;  // 2^40
constexpr u64 STREAM = 0x73616d706c65ull;  // "sample", as in mod.rs
constexpr u32 ALL = 0xffffffffu;

// Maps floats to integers so that larger floats give larger integers; 0 and -0 give the same integer. No float gives 0.
__device__ __forceinline__ u32 ordered(float x) {
  const u32 bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(u32 key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Joins score and id into one number. The largest such number has the largest score and, of the tokens with this score,
// the lowest id. Ids are below 2^31.
__device__ __forceinline__ u64 score_and_id(float score, int id) {
  return static_cast<u64>(ordered(score)) << 32 | ~static_cast<u32>(id);
}
__device__ __forceinline__ float score_of(u64 score_and_id) { return unordered(static_cast<u32>(score_and_id >> 32)); }
__device__ __forceinline__ int id_of(u64 score_and_id) { return static_cast<int>(~static_cast<u32>(score_and_id)); }

// Converts a weight to fixed point, a whole number of 2^-40, so that sums are exact in any order; NaN becomes 0.
__device__ __forceinline__ u64 fixed(float weight) { return __float2ull_rn(weight * UNIT); }

// Returns the largest x of the warp.
__device__ __forceinline__ u64 warp_max_u64(u64 x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) {
    const u64 other = shuffle_xor(x, mask);
    x = other > x ? other : x;
  }
  return x;
}

// Returns the sum of x over the lanes up to and including this lane.
__device__ __forceinline__ u64 warp_scan(u64 x) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const u64 before = __shfl_up_sync(ALL, x, step);
    if (lane >= step) x += before;
  }
  return x;
}

// Adds up one number of each run of a row (a run is a range of token ids). All 32 lanes of the warp call this function,
// and all get the sum.
__device__ __forceinline__ u64 sum_of_runs(const u64 (&run)[RUNS]) {
  const int lane = threadIdx.x % 32;
  u64 sum = run[lane];
#pragma unroll
  for (int j = 32; j < RUNS; j += 32) sum += run[lane + j];
  return warp_sum(sum);
}

// Returns the number of ids of a run (a range of token ids).
__device__ __forceinline__ int ids_per_run(int vocab) { return ceil_div(ceil_div(vocab, TILE), RUNS) * TILE; }

// The settings of one row.
struct Settings {
  u64 seed;
  u32 position;
  float temperature, top_p, min_p;
  int top_k;
  float penalty, frequency, presence;
  int history_len, counted_from;
};

// Reads the settings of row r. One thread of a block calls this function; its loads are in flight together, so they
// wait for memory once.
__device__ __forceinline__ Settings settings_of(const Params& p, int r) {
  Settings s;
  s.seed = global<const u64>(p.seed)[r];
  s.position = static_cast<u32>(global<const int>(p.position)[r]);
  s.temperature = global<const float>(p.temperature)[r];
  s.top_p = global<const float>(p.top_p)[r];
  s.min_p = p.min_p == 0 ? 0.0f : fminf(global<const float>(p.min_p)[r], 1.0f);
  s.top_k = global<const int>(p.top_k)[r];
  s.penalty = global<const float>(p.penalty)[r];
  s.frequency = p.frequency_penalty == 0 ? 0.0f : global<const float>(p.frequency_penalty)[r];
  s.presence = p.presence_penalty == 0 ? 0.0f : global<const float>(p.presence_penalty)[r];
  s.history_len = p.history_cols == 0 ? 0 : global<const int>(p.history_len)[r];
  s.counted_from = p.history_cols == 0 || p.counted_from == 0 ? 0 : global<const int>(p.counted_from)[r];
  return s;
}

// Returns the random number of a row, in units of 2^-64; it has 53 random bits.
__device__ __forceinline__ u64 random_of(const Settings& s) {
  const PhiloxWords random = philox(s.seed, STREAM, s.position);
  return (static_cast<u64>(random.word[0]) << 32 | random.word[1]) & ~0x7ffull;
}

// Returns the sum of weights that top-p must reach, at least 1; `total`, the sum of all weights, is not 0.
__device__ __forceinline__ u64 top_p_target(float top_p, u64 total) {
  const u64 target = __double2ull_ru(static_cast<double>(fmaxf(top_p, 0.0f)) * __ull2double_rn(total));
  return target < 1 ? 1 : target > total ? total : target;
}

// Marks of the tokens with ids from `first` up to, but not including, `end`, in shared memory. A token has two bits:
// whether a penalty or a bias changes its score, and whether it must not be sampled.
struct Marks {
  u32* bits;  // [2, words]
  int first, end;
  int words;             // at least one bit per id; a word holds the bits of 32 ids, and `first` is a multiple of 32
  const u32* changed;    // scores of changed tokens by id, as bits, in global memory

  // Computes the scores of four neighbouring tokens from their logits; `id` is a multiple of four. Returns whether one
  // of them has a mark, which is rare: without a mark, a score is the logit.
  __device__ __forceinline__ bool scores(int id, const float (&logit)[4], float (&score)[4]) const {
    const u32 at = id - first;
    const u32 other = bits[at / 32] >> at % 32, forbidden = bits[words + at / 32] >> at % 32;
#pragma unroll
    for (int j = 0; j < 4; ++j) score[j] = logit[j];
    if (((other | forbidden) & 15) == 0) return false;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (other >> j & 1) score[j] = __uint_as_float(changed[id + j]);
      if (forbidden >> j & 1) score[j] = minus_infinity();
    }
    return true;
  }
};

// Marks the tokens with changed scores and the forbidden tokens, and computes the scores of tokens with a penalty or a
// bias in `changed`. `logits` is the row. All THREADS threads of the block call this function, thread 0 after it has
// written the settings, which the first barrier in here makes visible to the others.
template <int THREADS>
__device__ __forceinline__ void prepare(const Params& p, const Marks& marks, const float* logits, u32* changed,
                                        const Settings& settings, int r) {
  const int row_words = ceil_div(static_cast<int>(p.vocab), 32), skipped = marks.first / 32;
  const u32* allowed = p.allowed == 0 ? nullptr : global<const u32>(p.allowed) + static_cast<u64>(r) * row_words;
  for (int word = threadIdx.x; word < marks.words; word += THREADS) {
    marks.bits[word] = 0;
    marks.bits[marks.words + word] = allowed == nullptr || word >= row_words - skipped ? 0 : ~allowed[skipped + word];
  }
  __syncthreads();
  auto known = [&](int id) { return id >= marks.first && id < marks.end; };
  auto mark = [&](int set, int id) {
    const u32 bit = 1u << id % 32;
    return (atomicOr(&marks.bits[set * marks.words + (id - marks.first) / 32], bit) & bit) != 0;
  };
  const float penalty = settings.penalty, frequency = settings.frequency, presence = settings.presence;
  if (p.history_cols != 0 && (penalty != 1.0f || frequency != 0.0f || presence != 0.0f)) {
    const int* history = global<const int>(p.history) + static_cast<u64>(r) * p.history_cols;
    const int given = settings.history_len, cols = static_cast<int>(p.history_cols);
    const int length = given < cols ? given : cols;
    // At first, the workspace word of a token in the history counts how often the token occurs there.
    for (int i = threadIdx.x; i < length; i += THREADS) {
      if (known(history[i])) changed[history[i]] = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < length; i += THREADS) {
      if (i >= settings.counted_from && known(history[i])) atomicAdd(&changed[history[i]], 1u);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < length; i += THREADS) {
      const int id = history[i];
      if (!known(id) || mark(0, id)) continue;
      const float count = static_cast<float>(changed[id]), logit = logits[id];
      float score = logit;
      if (penalty != 1.0f) score = logit < 0.0f ? __fmul_rn(logit, penalty) : __fdiv_rn(logit, penalty);
      score = __fsub_rn(score, __fmul_rn(count, frequency));
      if (count > 0.0f) score = __fsub_rn(score, presence);
      changed[id] = __float_as_uint(score);
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < static_cast<int>(p.bias_cols); i += THREADS) {
    const u64 at = static_cast<u64>(r) * p.bias_cols + i;
    const int id = global<const int>(p.bias_ids)[at];
    if (!known(id)) continue;
    const float score = mark(0, id) ? __uint_as_float(changed[id]) : logits[id];
    changed[id] = __float_as_uint(__fadd_rn(score, global<const float>(p.bias)[at]));
  }
  for (int i = threadIdx.x; i < static_cast<int>(p.suppressed_count); i += THREADS) {
    const int id = global<const int>(p.suppressed)[i];
    if (known(id)) mark(1, id);
  }
  __syncthreads();
}

// The exponentials of a row's logits, multiplied by a scale. If the products are too large for cuh/exp_sum.cuh, the
// largest logit is subtracted from all logits first.
struct RowExps {
  ExpFactor factor;
  float base, largest;  // `largest` is less `base`

  __device__ __forceinline__ RowExps(float scale, float max_logit) : factor(scale) {
    base = factor.is_exact(max_logit) ? 0.0f : max_logit;
    largest = __fsub_rn(max_logit, base);
  }

  __device__ __forceinline__ ExpSum none() const { return ExpSum(largest, factor); }
  __device__ __forceinline__ void add(ExpSum& sum, float logit) const { sum.add(__fsub_rn(logit, base), factor); }

  // Returns ln(sum of the exponentials over the row) minus the largest scaled logit, from the sums of the runs. All
  // lanes get the result.
  __device__ __forceinline__ double log_above(const u64 (&runs)[ExpSum::WORDS][RUNS]) const {
    ExpSum sum = none();
#pragma unroll
    for (int i = 0; i < ExpSum::WORDS; ++i) sum.words[i] = sum_of_runs(runs[i]);
    return sum.log_above(largest, factor);
  }
};

// Writes the log-probabilities of the row's token, or NaN if `id` is negative. One thread calls it. `scale` is one over
// the temperature; `scaled` and `plain` are the results of RowExps::log_above for the factors `scale` and 1.
__device__ __forceinline__ void write_log_probs(const Params& p, int r, int id, float logit, float largest, float scale,
                                                double scaled, double plain) {
  if (p.log_prob != 0) {
    global<float>(p.log_prob)[r] = id < 0 ? not_a_number() : log_prob_of(logit, largest, scale, scaled);
  }
  if (p.raw_log_prob != 0) {
    global<float>(p.raw_log_prob)[r] = id < 0 ? not_a_number() : log_prob_of(logit, largest, 1.0f, plain);
  }
}

// Writes the most likely tokens of a row: sorts the `n` tokens that are in shared memory in any order, and fills ranks
// beyond n with -1 and NaN. All threads of a block call it, after a barrier.
__device__ __forceinline__ void write_tops(const Params& p, int r, int n, const float* logits, const int* ids,
                                           float largest, double log_sum) {
  const int t = threadIdx.x;
  if (t >= static_cast<int>(p.tops)) return;
  int rank = t, id = -1;
  float value = not_a_number();
  if (t < n) {
    rank = 0;
    id = ids[t];
    const float logit = logits[t];
    for (int i = 0; i < n; ++i) rank += logits[i] > logit || (logits[i] == logit && ids[i] < id);
    value = static_cast<float>(static_cast<double>(logit) - static_cast<double>(largest) - log_sum);
  }
  const u64 at = static_cast<u64>(r) * p.tops + rank;
  global<int>(p.top_ids)[at] = id;
  global<float>(p.top_log_probs)[at] = value;
}
