// Samples the next token of each row; steps and their order: mod.rs. One block samples a row.
//
// Grid: one block of 1024 threads per row. Each of the 32 warps takes four runs of the row (row.cuh). The row is read
// once for every step that needs all of it (at most 16 times, from L2 after the first); none of it is stored. Tokens of
// the history and those with a bias keep their changed scores in the workspace, marked by a bit in shared memory; a
// second bit marks tokens that must not be sampled.
//
// Order. Weights w = e^((score - row_max) / T), at most 1, are summed as integers, multiples of 2^-40, and sums are
// compared as integers: no sum depends on an order. Selections are by the exact bits of a score (top-k) or a weight
// (top-p), eleven bits per pass: a histogram in shared memory sums what each value of these bits adds, then a scan
// starts from the highest bin. Of equal weights the lower ids come first: the run that holds the last kept id is
// searched again.
//
//   marks; row_max = max score, first id of it, largest logit, any NaN
//   T > 0: least = k-th largest score                               3 passes, with top-k
//          total = sum of w over score >= least                     1, with top-p
//          w* = weight at which the descending sum reaches p total  3, with top-p; 1 for the last id of it
//          id = first whose running sum exceeds u * (sum of kept)   1
//   log-probabilities from the unchanged logits: exact sums of e^x, 1 pass; the best n: 3 passes by bits, 1, 1
//
// A weight below 2^-41 of the largest counts as 0 and is never sampled. Numerics: e^x to 2^-22 of itself; a
// log-probability is rounded once from f64. Bound by reading the row from L2.
#include "cuh/base.cuh"
#include "cuh/dependent.cuh"
#include "cuh/philox.cuh"
#include "cuh/warp.cuh"
#include "sample/row.cuh"

constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / 32;
constexpr int BINS = 2 * THREADS;
constexpr int DIGIT = 11;  // bits

extern __shared__ __align__(16) u32 mark_bits[];

struct Shared {
  u64 bins[BINS];
  u64 scratch[WARPS];
  u64 scaled[ExpSum::WORDS][RUNS], plain[ExpSum::WORDS][RUNS];
  Settings settings;
  u64 above;
  u32 digit;
  int id;
  u32 count;
  float top_logit[MAX_TOPS];
  int top_id[MAX_TOPS];
};

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

// One row: its logits, the bits that mark its changed and its forbidden tokens, and the size of the vocabulary.
struct Row {
  const float* logits;
  Marks marks;
  int vocab;
  bool vector;

  // The ids that this warp processes: from begin() up to, but not including, end().
  __device__ __forceinline__ int begin() const { return begin_of(threadIdx.x / 32 * (RUNS / WARPS)); }
  __device__ __forceinline__ int end() const { return begin_of((threadIdx.x / 32 + 1) * (RUNS / WARPS)); }

  // Returns the first id of a run (a range of token ids), or the size of the vocabulary if the run is empty.
  __device__ __forceinline__ int begin_of(int run) const {
    const int id = run * ids_per_run(vocab);
    return id < vocab ? id : vocab;
  }

  // Calls f(id, logit, score) for the four tokens of this lane in the tile of 128 ids that begins at `tile`, except
  // those beyond the vocabulary.
  template <class F>
  __device__ __forceinline__ void tokens(int tile, F f) const {
    const int id = tile + threadIdx.x % 32 * 4;
    if (id >= vocab) return;
    float logit[4], score[4];
    load_elements(logits, id, vocab, vector, logit);
    marks.scores(id, logit, score);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (id + j < vocab) f(id + j, logit[j], score[j]);
    }
  }

  // Calls f(id, logit, score) for all of this lane's tokens among the ids from `from` up to, but not including, `to`.
  template <class F>
  __device__ __forceinline__ void each(int from, int to, F f) const {
    for (int tile = from; tile < to; tile += TILE) tokens(tile, f);
  }

  // Calls f(id, logit, score) for all of this lane's tokens among the ids of its warp.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    each(begin(), end(), f);
  }
};

// The result of `select`: the key at which a cumulative sum over descending keys reaches its target.
struct Reached {
  u32 key;
  u64 above;  // the sum over greater keys
};

// Adds up amount(id, logit, score, key) over all tokens in descending order of key. Returns the key at which the sum
// reaches `target`, a number from 1 to the total. `amount` also sets the token's key, which has BITS bits.
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
    // Each thread reads two bins of the histogram; thread 0 reads the two highest bins.
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

// Returns a random token among those that top-k, top-p and min-p keep; -1 if they keep no token.
__device__ __forceinline__ int draw(const Row& row, Shared& s, const Settings& settings, float top) {
  const int k = settings.top_k;
  float least = minus_infinity();
  if (k > 0 && k < row.vocab) {
    least = unordered(select<32>(row, s, k, [](int, float, float score, u32& key) {
                        key = ordered(score);
                        return static_cast<u64>(1);
                      }).key);
  }
  const float scale = __fdiv_rn(1.0f, settings.temperature);
  auto weight = [&](float score) {
    return score >= least ? expf(__fmul_rn(__fsub_rn(score, top), scale)) : 0.0f;
  };
  const float top_p = settings.top_p;
  u32 last_weight = 0;
  int last_id = row.vocab;
  if (top_p < 1.0f) {
    u64 total = 0;
    row.each([&](int, float, float score) { total += fixed(weight(score)); });
    total = block_reduce(total, s.scratch, Add());
    if (total == 0) return -1;
    const u64 target = top_p_target(top_p, total);
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
  const float min_p = settings.min_p;
  const u64 u = random_of(settings);
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
  write_tops(p, r, n, s.top_logit, s.top_id, largest, log_sum);
}

// Sums the exponentials of this warp's runs (ranges of token ids). Computing the sums for two scales at once would
// need more registers than a thread has.
__device__ __forceinline__ void sum_runs(const Row& row, const RowExps& exps, u64 (&sums)[ExpSum::WORDS][RUNS]) {
  for (int j = 0; j < RUNS / WARPS; ++j) {
    const int run = threadIdx.x / 32 * (RUNS / WARPS) + j;
    ExpSum sum = exps.none();
    row.each(row.begin_of(run), row.begin_of(run + 1), [&](int, float logit, float) { exps.add(sum, logit); });
#pragma unroll
    for (int i = 0; i < ExpSum::WORDS; ++i) {
      const u64 words = warp_sum(sum.words[i]);
      if (threadIdx.x % 32 == 0) sums[i][run] = words;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) sample(const __grid_constant__ Params p) {
  __shared__ Shared s;
  let_next_launch_start();
  wait_for_previous_launch();
  const int r = blockIdx.x;
  if (threadIdx.x == 0) s.settings = settings_of(p, r);
  Row row;
  row.logits = global<const float>(p.logits) + static_cast<u64>(r) * p.vocab;
  row.vocab = p.vocab;
  row.vector = aligned16(p.logits, static_cast<u64>(p.vocab) * sizeof(float));
  u32* changed = p.workspace == 0 ? nullptr : global<u32>(p.workspace) + static_cast<u64>(r) * p.vocab;
  row.marks = {mark_bits, 0, row.vocab, ceil_div(row.vocab, 32), changed};
  prepare<THREADS>(p, row.marks, row.logits, changed, s.settings, r);

  u64 first = 0;
  float largest = minus_infinity();
  int bad = 0;
  row.each([&](int id, float logit, float score) {
    bad |= logit != logit || score != score;
    largest = fmaxf(largest, logit);
    const u64 key = score_and_id(score, id);
    first = key > first ? key : first;
  });
  // redundant: the first barrier of block_reduce, as no thread has used the scratch memory yet.
  bad = block_reduce(bad, s.scratch, Max());
  first = block_reduce(first, s.scratch, Max());
  largest = block_reduce(largest, s.scratch, Max()) + 0.0f;  // -0 becomes 0
  const float top = score_of(first);

  const float temperature = s.settings.temperature;
  const bool greedy = !(temperature > 0.0f);
  int id = -1;
  if (!bad && top != minus_infinity()) id = greedy ? id_of(first) : draw(row, s, s.settings, top);
  if (threadIdx.x == 0) global<int>(p.ids)[r] = id;
  if (p.log_prob == 0 && p.raw_log_prob == 0 && p.tops == 0) return;

  // Log-probabilities under the logits without penalties and biases, at the row's temperature and at temperature 1.
  const float scale = greedy ? 1.0f : __fdiv_rn(1.0f, temperature);
  const RowExps plain_exps(1.0f, largest), scaled_exps(scale, largest);
  sum_runs(row, plain_exps, s.plain);
  if (scale != 1.0f) sum_runs(row, scaled_exps, s.scaled);
  __syncthreads();
  const double plain = plain_exps.log_above(s.plain);
  const double scaled = scale == 1.0f ? plain : scaled_exps.log_above(s.scaled);
  if (threadIdx.x == 0) write_log_probs(p, r, id, id < 0 ? largest : row.logits[id], largest, scale, scaled, plain);
  if (p.tops == 0) return;
  if (bad) {
    write_tops(p, r, 0, s.top_logit, s.top_id, largest, plain);
  } else {
    best(p, row, s, r, largest, plain);
  }
}
