// Log-probability of a target token in each row, entropy, and their gradient; a launch reads one chunk of the
// vocabulary.
//
//   fwd: lse = ln sum_j e^(l_j s),  log_prob = l_target s - lse
//        entropy = ln sum_j e^(x_j) - sum_j x_j e^(x_j) / sum_j e^(x_j) with x = (l - max) s
//        log_prob is 0 for a negative target, NaN for one beyond the vocabulary; entropy is 0 for a negative target
//   bwd: d_logits[j] = s (grad (1[j = target] - p_j) - d_entropy p_j (ln p_j + entropy)), p_j = e^(l_j s - lse);
//        0 for a negative target, NaN for one beyond the vocabulary
//
// Shapes, limits and the state between launches: mod.rs. Numerics: e^((l - max) s) in f32 (argument rounded, e^x of
// the CUDA library), summed in f64. When the running maximum changes, the sum is scaled by an f32 exponential;
// between launches it is scaled by an f64 one. The target's gradient uses e^x - 1.
//
// fwd, one block per row, which is read once:
//   each thread, over vectors of four logits: running maximum, sums relative to it
//     (the sums are scaled when the maximum grows)
//   scale the threads' sums to the row's maximum; add within warps, then warps in order; merge with the given state
// bwd: one block per 2048 logits of a row. Memory-bound.

#include "cuh/math.cuh"
#include "cuh/warp.cuh"

constexpr int FWD_THREADS = 512;
constexpr int BWD_THREADS = 256;
constexpr int V = 4;
constexpr int BWD_STEPS = 2;
constexpr u32 STRIP = BWD_THREADS * V * BWD_STEPS;

// Sums of e^x over some of a row's logits, and if MOMENT also of x e^x, where x is the scaled distance of a logit
// from their maximum.
template <bool MOMENT>
struct Sums {
  float largest = -infinity();
  double sum = 0.0, moment = 0.0;

  // The value that is subtracted from logits: their maximum, or 0 if that is minus infinity, since subtracting minus
  // infinity would turn terms that are 0 into NaN.
  __device__ __forceinline__ float base() const { return largest == -infinity() ? 0.0f : largest; }

  // Makes the sums relative to `most`, a larger maximum than that of the logits so far. If all logits so far are
  // minus infinity, the sums are 0 or NaN and stay so.
  __device__ __forceinline__ void relative_to(float most, float scale) {
    const float change = (largest - most) * scale, factor = expf(change);
    if (MOMENT) moment = largest == -infinity() ? sum * factor : (moment + change * sum) * factor;
    sum *= factor;
    largest = most;
  }

  template <int N>
  __device__ __forceinline__ void add(const float (&x)[N], float scale) {
    float most = x[0];
#pragma unroll
    for (int j = 1; j < N; ++j) most = fmaxf(most, x[j]);
    if (most > largest) relative_to(most, scale);
    const float from = base();
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float argument = (x[j] - from) * scale, e = expf(argument);
      sum += e;
      // A token of probability 0 adds nothing to the moment; `argument` may be minus infinity, and its product with 0
      // would be NaN.
      if (MOMENT) moment += e == 0.0f ? 0.0f : argument * e;
    }
  }
};

// The state of a row that each launch over a chunk of the vocabulary hands to the launch over the next chunk; mod.rs
// documents it.
struct State {
  double largest, sum, moment, target;
};

__device__ __forceinline__ State relative_to(State s, double most, double scale) {
  if (s.largest == most) return s;
  const double change = (s.largest - most) * scale, factor = exp(change);
  s.moment = s.sum == 0.0 ? 0.0 : (s.moment + change * s.sum) * factor;
  s.sum *= factor;
  return s;
}

__device__ __forceinline__ State merge(State a, State b, double scale) {
  const double most = a.largest > b.largest ? a.largest : b.largest;
  a = relative_to(a, most, scale);
  b = relative_to(b, most, scale);
  // At most one of the two states contains the target; the target logit of the other is 0.
  return {most, a.sum + b.sum, a.moment + b.moment, a.target + b.target};
}

template <bool MOMENT>
__device__ __forceinline__ void forward(const FwdParams& p) {
  constexpr int AHEAD = 4;
  __shared__ float maxima[FWD_THREADS / 32];
  __shared__ double sums[FWD_THREADS / 32], moments[FWD_THREADS / 32];
  const u32 columns = p.columns;
  const u64 row = blockIdx.x;
  const float* logits = global<const float>(p.logits) + row * columns;
  const bool vector = columns % V == 0 && aligned16(p.logits);
  const float scale = p.inv_temperature;

  Sums<MOMENT> sum;
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
      sum.add(x, scale);
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
    sum.add(x, scale);
  }

  const float largest = block_max<FWD_THREADS>(sum.largest, maxima);
  if (sum.largest != largest) sum.relative_to(largest, scale);
  State state = {largest, block_sum<FWD_THREADS>(sum.sum, sums), 0.0, 0.0};
  if (MOMENT) state.moment = block_sum<FWD_THREADS>(sum.moment, moments);
  if (threadIdx.x > 0) return;

  const int target = global<const int>(p.targets)[row];
  const u32 place = static_cast<u32>(target) - p.first;
  if (place < columns) state.target = logits[place];
  State* handed_on = global<State>(p.state) + row;
  if (p.first > 0) state = merge(*handed_on, state, scale);
  if (p.first + columns < p.vocab) {
    *handed_on = state;
    return;
  }
  // If every logit is minus infinity there is no distribution: the result is NaN.
  const double ln_sum = state.largest == -infinity() ? static_cast<double>(not_a_number()) : log(state.sum);
  float log_prob = 0.0f;
  if (target >= 0) {
    log_prob = not_a_number();
    if (static_cast<u32>(target) < p.vocab) {
      log_prob = static_cast<float>((state.target - state.largest) * scale - ln_sum);
    }
  }
  global<float>(p.log_prob)[row] = log_prob;
  global<float>(p.lse)[row] = static_cast<float>(state.largest * scale + ln_sum);
  if (MOMENT) {
    const double entropy = target >= 0 ? ln_sum - state.moment / state.sum : 0.0;
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
  // The target's column in this chunk; beyond all columns if another chunk has the target.
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

#define BWD(T, NAME)                                                                                              \
  extern "C" __global__ void __launch_bounds__(BWD_THREADS) log_prob_bwd_##NAME(const __grid_constant__ BwdParams p) { \
    backward<T>(p);                                                                                               \
  }

BWD(float, f32)
BWD(bf16, bf16)
