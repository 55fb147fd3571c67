// Samples the next token of each row; steps and their order: mod.rs.
//
// Grid: one block of 1024 threads per row. The 32 warps take equal runs of ids, 128 ids at a time, four neighbouring
// ids per lane. The row is read once for every step that needs all of it (at most 13 times, from L2 after the first);
// none of it is stored. Tokens of the history and those with a bias keep their changed scores in the workspace,
// marked by a bit in shared memory; a second bit marks tokens that must not be sampled.
//
// Order. Weights w = e^((score - row_max) / T), at most 1, are summed as integers, multiples of 2^-40, and sums are
// compared as integers: no sum depends on an order. Selections are by the exact bits of a score (top-k) or a weight
// (top-p), eleven bits per pass: a histogram in shared memory sums what each value of these bits adds, then a scan
// starts from the highest bin. Of equal weights the lower ids come first: the run that holds the last kept id is
// searched again.
//
//   marks; row_max = max score, first id of it, largest logit, any NaN
//   T > 0: least = k-th largest score                               3 passes, with top-k
//          total = sum of w over score >= least                     1
//          w* = weight at which the descending sum reaches p total  3, with top-p; 1 for the last id of it
//          id = first whose running sum exceeds u * (sum of kept)   1
//   log-probabilities from the unchanged logits: sums of e^x in f64, 1 pass; the best n: 3 passes by bits, 1, 1
//
// A weight below 2^-41 of the largest counts as 0 and is never sampled. Numerics: e^x and ln x to 2 ulp of f32; a
// log-probability is rounded once from f64. Bound by reading the row from L2.
#include "cuh/base.cuh"
#include "cuh/dependent.cuh"
#include "cuh/philox.cuh"
#include "cuh/warp.cuh"

constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / 32;
constexpr int BINS = 2 * THREADS;
constexpr int DIGIT = 11;  // bits
constexpr int TILE = 128;
constexpr int MAX_TOPS = 32;
constexpr float UNIT = 1099511627776.0f;  // 2^40
constexpr u64 STREAM = 0x73616d706c65ull;  // "sample", as in mod.rs
constexpr u32 ALL = 0xffffffffu;

extern __shared__ __align__(16) u32 marks[];  // bits of changed tokens, then of forbidden ones

struct Shared {
  u64 bins[BINS];
  u64 scratch[WARPS];
  u64 above;
  u32 digit;
  int id;
  u32 count;
  float top_logit[MAX_TOPS];
  int top_id[MAX_TOPS];
};

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }

// Maps floats to integers so that larger floats give larger integers; 0 and -0 give the same integer.
__device__ __forceinline__ u32 ordered(float x) {
  const u32 bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(u32 key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Converts a weight to fixed point, a whole number of 2^-40, so that sums are exact in any order; NaN becomes 0.
__device__ __forceinline__ u64 fixed(float weight) { return __float2ull_rn(weight * UNIT); }

struct Add {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Reduces x over all threads of the block with `op`; all threads get the result.
template <class T, class Op>
__device__ __forceinline__ T block_reduce(T x, u64* scratch, Op op) {
  static_assert(sizeof(T) <= 8, "a word of scratch");
  T* words = reinterpret_cast<T*>(scratch);
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) x = op(x, shuffle_xor(x, mask));
  __syncthreads();
  if (threadIdx.x % 32 == 0) words[threadIdx.x / 32] = x;
  __syncthreads();
  x = words[threadIdx.x % 32];
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) x = op(x, shuffle_xor(x, mask));
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

// One row's logits, with its penalties and biases applied.
struct Row {
  const float* logits;
  const u32* changed;  // scores of changed tokens, as bits
  int vocab, words;    // words: of a set of marks
  bool vector;

  // The ids that this warp processes: from begin() up to, but not including, end().
  __device__ __forceinline__ int begin() const {
    const int tiles = ceil_div(ceil_div(vocab, TILE), WARPS);
    return threadIdx.x / 32 * tiles * TILE;
  }
  __device__ __forceinline__ int end() const {
    const int last = begin() + ceil_div(ceil_div(vocab, TILE), WARPS) * TILE;
    return last < vocab ? last : vocab;
  }

  // Calls f(id, logit, score) for the four tokens of this lane in the tile of 128 ids that begins at `tile`, except
  // those beyond the vocabulary.
  template <class F>
  __device__ __forceinline__ void tokens(int tile, F f) const {
    const int id = tile + threadIdx.x % 32 * 4;
    if (id >= vocab) return;
    float logit[4];
    load_elements(logits, id, vocab, vector, logit);
    const u32 other = marks[id / 32] >> id % 32, forbidden = marks[words + id / 32] >> id % 32;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (id + j >= vocab) break;
      float score = logit[j];
      if (other >> j & 1) score = __uint_as_float(changed[id + j]);
      if (forbidden >> j & 1) score = minus_infinity();
      f(id + j, logit[j], score);
    }
  }

  // Calls f(id, logit, score) for all of this lane's tokens among the ids of its warp.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    for (int tile = begin(); tile < end(); tile += TILE) tokens(tile, f);
  }
};

// The result of `select`: the key at which a cumulative sum over descending keys reaches its target.
struct Reached {
  u32 key;
  u64 above;  // the sum over greater keys
};

// Adds up amount(id, logit, score, key) over all tokens in descending order of key, and returns the key at which the
// sum reaches `target`, which is at least 1 and at most the total. `amount` also sets the token's key, which has BITS
// bits.
template <int BITS, class F>
__device__ __forceinline__ Reached select(const Row& row, Shared& s, u64 target, F amount) {
  u32 prefix = 0;
  u64 above = 0;
  for (int shift = BITS; shift > 0;) {
    const int width = shift < DIGIT ? shift : DIGIT;
    shift -= width;
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) s.bins[bin] = 0;
    __syncthreads();
    row.each([&](int id, float logit, float score) {
      u32 key = 0;
      const u64 x = amount(id, logit, score, key);
      if (x != 0 && static_cast<u64>(key) >> (shift + width) == prefix) {
        atomicAdd(&s.bins[key >> shift & ((1u << width) - 1)], x);
      }
    });
    __syncthreads();
    // Each thread takes two bins of the histogram; thread 0 takes the two highest ones.
    const u32 high = BINS - 1 - 2 * threadIdx.x;
    const u64 x = s.bins[high], y = s.bins[high - 1];
    const u64 sum = warp_scan(x + y);
    if (threadIdx.x % 32 == 31) s.scratch[threadIdx.x / 32] = sum;
    __syncthreads();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u64 total = s.scratch[lane], warps = warp_scan(total) - total;
    const u64 before = above + __shfl_sync(ALL, warps, warp) + sum - (x + y);
    if (before < target && before + x + y >= target) {
      const bool first = before + x >= target;
      s.digit = first ? high : high - 1;
      s.above = first ? before : before + x;
    }
    __syncthreads();
    prefix = prefix << width | s.digit;
    above = s.above;
  }
  return {prefix, above};
}

// Adds up amount(id, logit, score) in ascending order of id and returns the first id at which the sum exceeds
// target(total), which is below the total; -1 if the total is 0.
template <class T, class F>
__device__ __forceinline__ int locate(const Row& row, Shared& s, T target, F amount) {
  u64 sum = 0;
  row.each([&](int id, float logit, float score) { sum += amount(id, logit, score); });
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();
  if (lane == 0) s.scratch[warp] = sum;
  __syncthreads();
  const u64 mine = s.scratch[lane], sums = warp_scan(mine), total = __shfl_sync(ALL, sums, 31);
  if (total == 0) return -1;
  const u64 bound = target(total);
  const int holder = __ffs(__ballot_sync(ALL, sums > bound)) - 1;
  u64 before = __shfl_sync(ALL, sums - mine, holder);
  if (warp == holder) {
    for (int tile = row.begin(); tile < row.end(); tile += TILE) {
      u64 x[4] = {0, 0, 0, 0};
      int next = 0;
      row.tokens(tile, [&](int id, float logit, float score) {
        const u64 a = amount(id, logit, score);
        if (next == 0) x[0] = a;
        if (next == 1) x[1] = a;
        if (next == 2) x[2] = a;
        if (next == 3) x[3] = a;
        ++next;
      });
      const u64 four = x[0] + x[1] + x[2] + x[3], upto = before + warp_scan(four);
      const u32 beyond = __ballot_sync(ALL, upto > bound);
      if (beyond != 0) {
        if (lane == __ffs(beyond) - 1) {
          const u64 start = upto - four;
          const int skip = (start + x[0] <= bound) + (start + x[0] + x[1] <= bound) + (start + x[0] + x[1] + x[2] <= bound);
          s.id = tile + lane * 4 + skip;
        }
        break;
      }
      before = __shfl_sync(ALL, upto, 31);
    }
  }
  __syncthreads();
  return s.id;
}

// Marks the tokens with changed scores and the forbidden tokens, and computes the scores of tokens with a penalty or
// a bias.
__device__ __forceinline__ void prepare(const Params& p, const Row& row, u32* changed, int r) {
  const u32* allowed = p.allowed == 0 ? nullptr : global<const u32>(p.allowed) + static_cast<u64>(r) * row.words;
  for (int word = threadIdx.x; word < row.words; word += THREADS) {
    marks[word] = 0;
    marks[row.words + word] = allowed == nullptr ? 0 : ~allowed[word];
  }
  __syncthreads();
  auto known = [&](int id) { return id >= 0 && id < row.vocab; };
  auto mark = [&](int set, int id) {
    const u32 bit = 1u << id % 32;
    return (atomicOr(&marks[set * row.words + id / 32], bit) & bit) != 0;
  };
  auto setting = [&](u64 address, float off) { return address == 0 ? off : global<const float>(address)[r]; };
  const float penalty = global<const float>(p.penalty)[r];
  const float frequency = setting(p.frequency_penalty, 0.0f), presence = setting(p.presence_penalty, 0.0f);
  if (p.history_cols != 0 && (penalty != 1.0f || frequency != 0.0f || presence != 0.0f)) {
    const int* history = global<const int>(p.history) + static_cast<u64>(r) * p.history_cols;
    const int given = global<const int>(p.history_len)[r];
    const int length = given < static_cast<int>(p.history_cols) ? given : static_cast<int>(p.history_cols);
    const int from = p.counted_from == 0 ? 0 : global<const int>(p.counted_from)[r];
    // At first, the workspace word of a token in the history counts how often the token occurs there.
    for (int i = threadIdx.x; i < length; i += THREADS) {
      if (known(history[i])) changed[history[i]] = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < length; i += THREADS) {
      if (i >= from && known(history[i])) atomicAdd(&changed[history[i]], 1u);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < length; i += THREADS) {
      const int id = history[i];
      if (!known(id) || mark(0, id)) continue;
      const float count = static_cast<float>(changed[id]), logit = row.logits[id];
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
    const float score = mark(0, id) ? __uint_as_float(changed[id]) : row.logits[id];
    changed[id] = __float_as_uint(__fadd_rn(score, global<const float>(p.bias)[at]));
  }
  for (int i = threadIdx.x; i < static_cast<int>(p.suppressed_count); i += THREADS) {
    const int id = global<const int>(p.suppressed)[i];
    if (known(id)) mark(1, id);
  }
  __syncthreads();
}

// Returns ln of a sum of exponentials, the largest of which is e^0 = 1.
__device__ __forceinline__ double log_of_sum(double sum) {
  return sum < 2.0 ? log1pf(static_cast<float>(sum - 1.0)) : logf(static_cast<float>(sum));
}

// Returns a random token among those that top-k, top-p and min-p keep; -1 if they keep no token.
__device__ __forceinline__ int draw(const Params& p, const Row& row, Shared& s, int r, float top, float temperature) {
  const int k = global<const int>(p.top_k)[r];
  float least = minus_infinity();
  if (k > 0 && k < row.vocab) {
    least = unordered(select<32>(row, s, k, [](int, float, float score, u32& key) {
                        key = ordered(score);
                        return static_cast<u64>(1);
                      }).key);
  }
  const float scale = __fdiv_rn(1.0f, temperature);
  auto weight = [&](float score) {
    return score >= least ? expf(__fmul_rn(__fsub_rn(score, top), scale)) : 0.0f;
  };
  const float top_p = global<const float>(p.top_p)[r];
  u32 last_weight = 0;
  int last_id = row.vocab;
  if (top_p < 1.0f) {
    u64 total = 0;
    row.each([&](int, float, float score) { total += fixed(weight(score)); });
    total = block_reduce(total, s.scratch, Add());
    if (total == 0) return -1;
    const double share = static_cast<double>(fmaxf(top_p, 0.0f)) * __ull2double_rn(total);
    u64 target = __double2ull_ru(share);
    target = target < 1 ? 1 : target > total ? total : target;
    // Weights below this bound add up to less than the weight that top-p drops, so none of them is kept.
    const u64 few = (total - target) / (2 * static_cast<u64>(row.vocab));
    const Reached reached = select<30>(row, s, target, [&](int, float, float score, u32& key) {
      const float w = weight(score);
      key = __float_as_uint(w);
      const u64 x = fixed(w);
      return x < few ? 0 : x;
    });
    last_weight = reached.key;
    const u64 each = fixed(__uint_as_float(last_weight)), rest = target - reached.above;
    // redundant: the first barrier of `locate`, as `select` ends with a barrier.
    last_id = locate(
        row, s, [&](u64) { return ceil_div(rest, each) - 1; },
        [&](int, float, float score) { return static_cast<u64>(__float_as_uint(weight(score)) == last_weight); });
  }
  const float min_p = p.min_p == 0 ? 0.0f : fminf(global<const float>(p.min_p)[r], 1.0f);
  const PhiloxWords random =
      philox(global<const u64>(p.seed)[r], STREAM, static_cast<u32>(global<const int>(p.position)[r]));
  const u64 u = (static_cast<u64>(random.word[0]) << 32 | random.word[1]) & ~0x7ffull;  // of 2^64
  return locate(
      row, s, [&](u64 total) { return __umul64hi(u, total); },
      [&](int id, float, float score) {
        const float w = weight(score);
        const u32 bits = __float_as_uint(w);
        const bool kept = w >= min_p && (bits > last_weight || (bits == last_weight && id <= last_id));
        return kept ? fixed(w) : 0;
      });
}

// Writes the n most likely tokens and their log-probabilities, largest logit first; of equal logits the lower id comes
// first. No logit may be NaN.
__device__ __forceinline__ void best(const Params& p, const Row& row, Shared& s, int r, float largest, double log_sum) {
  const int n = static_cast<int>(p.tops) < row.vocab ? p.tops : row.vocab;
  const Reached kth = select<32>(row, s, n, [](int, float logit, float, u32& key) {
    key = ordered(logit);
    return static_cast<u64>(1);
  });
  const u64 rest = n - kth.above;
  // redundant: the first barrier of `locate`, as `select` ends with a barrier.
  const int last = locate(
      row, s, [&](u64) { return rest - 1; },
      [&](int, float logit, float) { return static_cast<u64>(ordered(logit) == kth.key); });
  if (threadIdx.x == 0) s.count = 0;
  __syncthreads();
  row.each([&](int id, float logit, float) {
    const u32 key = ordered(logit);
    if (key > kth.key || (key == kth.key && id <= last)) {
      const u32 at = atomicAdd(&s.count, 1u);
      s.top_logit[at] = logit;
      s.top_id[at] = id;
    }
  });
  __syncthreads();
  const int t = threadIdx.x;
  if (t < static_cast<int>(p.tops)) {
    int rank = t, id = -1;
    float value = not_a_number();
    if (t < n) {
      rank = 0;
      id = s.top_id[t];
      const float logit = s.top_logit[t];
      for (int i = 0; i < n; ++i) {
        const float other = s.top_logit[i];
        rank += other > logit || (other == logit && s.top_id[i] < id);
      }
      value = static_cast<float>(static_cast<double>(logit) - static_cast<double>(largest) - log_sum);
    }
    const u64 at = static_cast<u64>(r) * p.tops + rank;
    global<int>(p.top_ids)[at] = id;
    global<float>(p.top_log_probs)[at] = value;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) sample(const __grid_constant__ Params p) {
  __shared__ Shared s;
  let_next_launch_start();
  wait_for_previous_launch();
  const int r = blockIdx.x;
  Row row;
  row.logits = global<const float>(p.logits) + static_cast<u64>(r) * p.vocab;
  row.vocab = p.vocab;
  row.words = ceil_div(row.vocab, 32);
  row.vector = aligned16(p.logits, static_cast<u64>(p.vocab) * sizeof(float));
  u32* changed = p.workspace == 0 ? nullptr : global<u32>(p.workspace) + static_cast<u64>(r) * p.vocab;
  row.changed = changed;
  prepare(p, row, changed, r);

  // Finds the largest score and the first id that has it by one reduction: score and inverted id form one 64-bit
  // number. ids are below 2^31.
  u64 first = 0;
  float largest = minus_infinity();
  int bad = 0;
  row.each([&](int id, float logit, float score) {
    bad |= logit != logit || score != score;
    largest = fmaxf(largest, logit);
    const u64 key = static_cast<u64>(ordered(score)) << 32 | ~static_cast<u32>(id);
    first = key > first ? key : first;
  });
  // redundant: the first barrier of block_reduce, as no thread has used the scratch memory yet.
  bad = block_reduce(bad, s.scratch, Max());
  first = block_reduce(first, s.scratch, Max());
  largest = block_reduce(largest, s.scratch, Max());
  const float top = unordered(static_cast<u32>(first >> 32));

  const float temperature = global<const float>(p.temperature)[r];
  const bool greedy = !(temperature > 0.0f);
  int id = -1;
  if (!bad && top != minus_infinity()) {
    id = greedy ? static_cast<int>(~static_cast<u32>(first)) : draw(p, row, s, r, top, temperature);
  }
  if (threadIdx.x == 0) global<int>(p.ids)[r] = id;
  if (p.log_prob == 0 && p.raw_log_prob == 0 && p.tops == 0) return;

  // Log-probabilities under the logits without penalties and biases, at the row's temperature and at temperature 1.
  const float scale = greedy ? 1.0f : __fdiv_rn(1.0f, temperature);
  double scaled = 0.0, plain = 0.0;
  row.each([&](int, float logit, float) {
    const float x = __fsub_rn(logit, largest);
    scaled += expf(__fmul_rn(x, scale));
    plain += expf(x);
  });
  scaled = log_of_sum(block_reduce(scaled, s.scratch, Add()));
  plain = log_of_sum(block_reduce(plain, s.scratch, Add()));
  if (threadIdx.x == 0) {
    const double x = id < 0 ? 0.0 : static_cast<double>(row.logits[id]) - static_cast<double>(largest);
    if (p.log_prob != 0) {
      global<float>(p.log_prob)[r] = id < 0 ? not_a_number() : static_cast<float>(x * scale - scaled);
    }
    if (p.raw_log_prob != 0) global<float>(p.raw_log_prob)[r] = id < 0 ? not_a_number() : static_cast<float>(x - plain);
  }
  if (p.tops == 0) return;
  if (bad) {
    for (int i = threadIdx.x; i < static_cast<int>(p.tops); i += THREADS) {
      global<int>(p.top_ids)[static_cast<u64>(r) * p.tops + i] = -1;
      global<float>(p.top_log_probs)[static_cast<u64>(r) * p.tops + i] = not_a_number();
    }
    return;
  }
  best(p, row, s, r, largest, plain);
}
