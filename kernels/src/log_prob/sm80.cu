// Log-probability of a target token in each row, entropy, and their gradient; a launch reads one chunk of the
// vocabulary.
//
//   fwd: lse = ln sum_j e^(l_j s),  log_prob = l_target s - lse
//        entropy = ln sum_j e^(x_j) - sum_j x_j e^(x_j) / sum_j e^(x_j) with x = (l - max) s
//        log_prob is 0 for a negative target, NaN for one beyond the vocabulary; entropy is 0 for a negative target
//   bwd: d_logits[j] = s (grad (1[j = target] - p_j) - d_entropy p_j (ln p_j + entropy)), p_j = e^(l_j s - lse);
//        0 for a negative target, NaN for one beyond the vocabulary
//
// Shapes, limits and the state between launches: mod.rs. Numerics: the sum of e^(l s) is exact but for the rounding of
// each term (cuh/exp_sum.cuh), so log_prob and lse do not depend on how the row is divided. Sums for the entropy: e^((l
// - max) s) in f32 (argument rounded, e^x of the CUDA library), summed in f64. When the running maximum changes, they
// are scaled by an f32 exponential; between launches by an f64 one. The target's gradient uses e^x - 1.
//
// fwd, one block per row, which is read once:
//   each thread, over vectors of four logits: running maximum, sums relative to it
//     (the sums are moved when the maximum grows)
//   move the threads' sums to the row's maximum; add within warps, then warps in order; merge with the given state
// bwd: one block per 2048 logits of a row. Memory-bound.

#include "cuh/exp_sum.cuh"
#include "cuh/math.cuh"
#include "cuh/warp.cuh"

constexpr int FWD_THREADS = 512;
constexpr int BWD_THREADS = 256;
constexpr int V = 4;
constexpr int BWD_STEPS = 2;
constexpr u32 STRIP = BWD_THREADS * V * BWD_STEPS;

// Sums over some of a row's logits, relative to their maximum, for the entropy: the sums of e^x and of x e^x, where x
// is a logit minus the maximum, times the inverse temperature.
struct Moments {
  double sum = 0.0, moment = 0.0;

  // Makes the sums relative to a new maximum; `change` is the old maximum minus the new one, in scaled logits. If all
  // logits so far are minus infinity, the sums are 0 and stay so.
  template <class T>
  __device__ __forceinline__ void move(T change, T factor) {
    moment = sum == 0.0 ? 0.0 : (moment + change * sum) * factor;
    sum *= factor;
  }

  __device__ __forceinline__ void add(float logit, float largest, float scale) {
    const float argument = (logit - largest) * scale, e = expf(argument);
    sum += e;
    // A token of probability 0 adds nothing to the moment; `argument` may be minus infinity, and its product with 0
    // would be NaN.
    moment += e == 0.0f ? 0.0f : argument * e;
  }
};

// Sums over some of a row's logits. If one of them is NaN, `largest` is NaN and the sums are meaningless; the sums are
// also meaningless if all logits are minus infinity.
template <bool MOMENT>
struct Sums {
  float largest = -infinity();
  ExpSum exps;
  Moments moments;

  __device__ __forceinline__ explicit Sums(const ExpFactor& factor) : exps(-infinity(), factor) {}

  __device__ __forceinline__ void raise(float most, const ExpFactor& factor, float scale) {
    if (MOMENT) {
      const float change = (largest - most) * scale;
      moments.move(change, expf(change));
    }
    largest = most;
    exps.raise(ExpTerm(most, factor).bin());
  }

  template <int N>
  __device__ __forceinline__ void add(const float (&x)[N], const ExpFactor& factor, float scale) {
    float most = x[0];
#pragma unroll
    for (int j = 1; j < N; ++j) most = max_or_nan(most, x[j]);
    if (!(most <= largest)) raise(most, factor, scale);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      exps.add(x[j], factor);
      if (MOMENT && largest != -infinity()) moments.add(x[j], largest, scale);
    }
  }
};

// The state of a row after a chunk of the vocabulary: 64 bytes of FwdParams::state. A launch passes it to the launch
// over the next chunk.
struct State {
  ExpSum exps;
  float largest, target;
  Moments moments;
};
static_assert(sizeof(State) == 64, "STATE_BYTES_PER_ROW");

// Adds the sums of earlier chunks. At most one of the two states contains the target; the target logit of the other is
// 0.
template <bool MOMENT>
__device__ __forceinline__ void add_earlier(State& state, State before, float scale) {
  const float most = max_or_nan(state.largest, before.largest);
  if (MOMENT) {
    const auto move = [&](State& s) {
      const double change = (static_cast<double>(s.largest) - static_cast<double>(most)) * scale;
      if (s.largest != most) s.moments.move(change, exp(change));
    };
    move(state), move(before);
    state.moments.sum += before.moments.sum;
    state.moments.moment += before.moments.moment;
  }
  state.exps.add(before.exps);
  state.largest = most;
  state.target += before.target;
}

template <bool MOMENT>
__device__ __forceinline__ void forward(const FwdParams& p) {
  constexpr int AHEAD = 4;
  __shared__ float maxima[FWD_THREADS / 32];
  __shared__ u64 words[ExpSum::WORDS][FWD_THREADS / 32];
  __shared__ double sums[FWD_THREADS / 32], moments[FWD_THREADS / 32];
  const u32 columns = p.columns;
  const u64 row = blockIdx.x;
  const float* logits = global<const float>(p.logits) + row * columns;
  const bool vector = columns % V == 0 && aligned16(p.logits);
  const float scale = p.inv_temperature;
  const ExpFactor factor(scale);

  Sums<MOMENT> sum(factor);
  u32 at = threadIdx.x * V;
  if (vector) {
    constexpr u32 STEP = FWD_THREADS * V;
    for (; at + (AHEAD - 1) * STEP < columns; at += AHEAD * STEP) {
      float x[AHEAD * V], e[V];
      Words<16> words[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) words[k] = *reinterpret_cast<const Words<16>*>(logits + at + k * STEP);
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        unpack<float>(words[k], e);
#pragma unroll
        for (int j = 0; j < V; ++j) x[k * V + j] = e[j];
      }
      sum.add(x, factor, scale);
    }
  }
  for (; at < columns; at += FWD_THREADS * V) {
    float x[V];
    if (vector) {
      load_vector(logits + at, x);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) x[j] = at + j < columns ? logits[at + j] : -infinity();
    }
    sum.add(x, factor, scale);
  }

  // redundant: as a barrier; its result is needed, because block_max ignores NaN.
  const bool bad = __syncthreads_or(sum.largest != sum.largest);
  const float largest = bad ? not_a_number() : block_max<FWD_THREADS>(sum.largest, maxima);
  if (sum.largest != largest) sum.raise(largest, factor, scale);
  State state = {sum.exps, largest, 0.0f, {0.0, 0.0}};
#pragma unroll
  for (int i = 0; i < ExpSum::WORDS; ++i) state.exps.words[i] = block_sum<FWD_THREADS>(sum.exps.words[i], words[i]);
  if (MOMENT) {
    state.moments.sum = block_sum<FWD_THREADS>(sum.moments.sum, sums);
    state.moments.moment = block_sum<FWD_THREADS>(sum.moments.moment, moments);
  }
  if (threadIdx.x > 0) return;

  const int target = global<const int>(p.targets)[row];
  const u32 place = static_cast<u32>(target) - p.first;
  if (place < columns) state.target = logits[place];
  State* handed_on = global<State>(p.state) + row;
  if (p.first > 0) add_earlier<MOMENT>(state, *handed_on, scale);
  if (p.first + columns < p.vocab) {
    *handed_on = state;
    return;
  }
  // Without a NaN, is_exact is false only if a logit is too large, or if all logits are minus infinity and there is no
  // distribution.
  const double ln_sum = factor.is_exact(state.largest) ? state.exps.log_above(state.largest, factor)
                                                      : static_cast<double>(not_a_number());
  float log_prob = 0.0f;
  if (target >= 0) {
    log_prob = not_a_number();
    if (static_cast<u32>(target) < p.vocab) {
      log_prob = log_prob_of(state.target, state.largest, scale, ln_sum);
    }
  }
  global<float>(p.log_prob)[row] = log_prob;
  global<float>(p.lse)[row] = static_cast<float>(static_cast<double>(state.largest) * scale + ln_sum);
  if (MOMENT) {
    const double entropy = target >= 0 ? ln_sum - state.moments.moment / state.moments.sum : 0.0;
    global<float>(p.entropy)[row] = static_cast<float>(entropy);
  }
}

extern "C" __global__ void __launch_bounds__(FWD_THREADS) log_prob_fwd(const __grid_constant__ FwdParams p) {
  if (p.entropy != 0) {
    forward<true>(p);
  } else {
    forward<false>(p);
  }
}

template <class T>
__device__ __forceinline__ void backward(const BwdParams& p) {
  const u32 columns = p.columns, strips = ceil_div(columns, STRIP);
  const u64 row = blockIdx.x / strips;
  const u32 first = blockIdx.x % strips * STRIP + threadIdx.x * V;
  const float* logits = global<const float>(p.logits) + row * columns;
  T* d_logits = global<T>(p.d_logits) + row * columns;
  const bool vector = columns % V == 0 && aligned16(p.logits, p.d_logits);
  const int target = load_for_warp(global<const int>(p.targets) + row);
  // The column of the target in this chunk. If another chunk has the target, this is a number beyond all columns.
  const u32 place = static_cast<u32>(target) - p.first;
  const float scale = p.inv_temperature, lse = load_for_warp(global<const float>(p.lse) + row);
  const float factor = load_for_warp(global<const float>(p.grad) + row) * scale;
  const bool ignored = target < 0, bad = !ignored && static_cast<u32>(target) >= p.vocab;
  float entropy = 0.0f, entropy_factor = 0.0f;
  if (p.d_entropy != 0 && !ignored) {
    entropy = load_for_warp(global<const float>(p.entropy) + row);
    entropy_factor = load_for_warp(global<const float>(p.d_entropy) + row) * scale;
  }
  // Returns what the entropy contributes to a logit's gradient; the caller subtracts it.
  auto of_entropy = [&](float ln_p, float prob) {
    if (p.d_entropy == 0) return 0.0f;
    return entropy_factor * (prob > 0.0f ? prob * (ln_p + entropy) : prob);
  };

  float x[BWD_STEPS][V];
#pragma unroll
  for (int k = 0; k < BWD_STEPS; ++k) load_elements(logits, first + k * BWD_THREADS * V, columns, vector, x[k]);
#pragma unroll
  for (int k = 0; k < BWD_STEPS; ++k) {
    const u32 at = first + k * BWD_THREADS * V;
    float out[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float ln_p = x[k][j] * scale - lse, prob = expf(ln_p);
      out[j] = ignored ? 0.0f : bad ? not_a_number() : -factor * prob - of_entropy(ln_p, prob);
    }
    if (!bad && place - at < V) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (at + j == place) {
          const float ln_p = x[k][j] * scale - lse;
          out[j] = -factor * expm1f(ln_p) - of_entropy(ln_p, expf(ln_p));
        }
      }
    }
    store_elements(d_logits, at, columns, vector, out);
  }
}

#define BWD(SYMBOL, T) \
  extern "C" __global__ void __launch_bounds__(BWD_THREADS) SYMBOL(const __grid_constant__ BwdParams p) { backward<T>(p); }

BWD(log_prob_bwd_f32, float)
BWD(log_prob_bwd_bf16, bf16)
