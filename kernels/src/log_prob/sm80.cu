// Log-probability of one token a row, and its gradient.
//
//   fwd: lse = ln sum_j e^(l_j s),  log_prob = l_target s - lse;  0 for a negative target, NaN for one beyond the vocabulary
//   bwd: d_logits[j] = grad s (1[j = target] - e^(l_j s - lse)),  0 for a negative target, NaN for one beyond the vocabulary
//
// Shapes and limits: mod.rs; vocab < 2^31. Numerics: e^((l - max) s) in f32 (argument rounded, e^x of the CUDA library), summed in
// f64; when the largest so far changes, the sum is scaled by an f32 exponential; the target's gradient by e^x - 1.
//
// fwd, a block a row, read once:
//   each thread, over vectors of four logits: largest so far, sum relative to it; the sum is scaled when the largest grows
//   threads' sums brought to the row's largest, added within warps, then warps in order
// bwd, a block 2048 logits of a row.
// Bound: memory.

#include "cuh/math.cuh"
#include "cuh/warp.cuh"

constexpr int FWD_THREADS = 512;
constexpr int BWD_THREADS = 256;
constexpr int V = 4;
constexpr int BWD_STEPS = 2;
constexpr u32 STRIP = BWD_THREADS * V * BWD_STEPS;

// A sum of exponentials relative to the largest argument seen.
struct Sum {
  float largest = -infinity();
  double sum = 0.0;

  // What arguments are relative to: not an infinity that would make NaN of terms that are 0.
  __device__ __forceinline__ float base() const { return largest == -infinity() ? 0.0f : largest; }

  template <int N>
  __device__ __forceinline__ void add(const float (&x)[N], float scale) {
    float most = x[0];
#pragma unroll
    for (int j = 1; j < N; ++j) most = fmaxf(most, x[j]);
    if (most > largest) {
      sum *= expf((largest - most) * scale);
      largest = most;
    }
    const float from = base();
#pragma unroll
    for (int j = 0; j < N; ++j) sum += expf((x[j] - from) * scale);
  }
};

extern "C" __global__ void __launch_bounds__(FWD_THREADS) log_prob_fwd(const __grid_constant__ FwdParams p) {
  constexpr int AHEAD = 4;
  __shared__ float maxima[FWD_THREADS / 32];
  __shared__ double sums[FWD_THREADS / 32];
  const u32 vocab = p.vocab;
  const u64 row = blockIdx.x;
  const float* logits = global<const float>(p.logits) + row * vocab;
  const bool vector = vocab % V == 0 && aligned16(p.logits);
  const float scale = p.inv_temperature;

  Sum sum;
  u32 at = threadIdx.x * V;
  if (vector) {
    constexpr u32 STEP = FWD_THREADS * V;
    for (; at + (AHEAD - 1) * STEP < vocab; at += AHEAD * STEP) {
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
  for (; at < vocab; at += FWD_THREADS * V) {
    float x[V];
    if (vector) {
      load_vector(logits + at, x);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) x[j] = at + j < vocab ? logits[at + j] : -infinity();
    }
    sum.add(x, scale);
  }

  const float largest = block_max<FWD_THREADS>(sum.largest, maxima);
  // A thread without logits, or with none above minus infinity, has the sum 0 or NaN and the factor 0.
  const double factor = sum.largest == largest ? 1.0 : static_cast<double>(expf((sum.largest - largest) * scale));
  const double total = block_sum<FWD_THREADS>(sum.sum * factor, sums);
  if (threadIdx.x > 0) return;
  // Nothing but minus infinities is no distribution.
  const double ln_sum = largest == -infinity() ? static_cast<double>(not_a_number()) : log(total);
  const int target = global<const int>(p.targets)[row];
  float log_prob = 0.0f;
  if (target >= 0) {
    log_prob = not_a_number();
    if (static_cast<u32>(target) < vocab) {
      const double above = static_cast<double>(logits[target]) - static_cast<double>(largest);
      log_prob = static_cast<float>(above * scale - ln_sum);
    }
  }
  global<float>(p.log_prob)[row] = log_prob;
  global<float>(p.lse)[row] = static_cast<float>(static_cast<double>(largest) * scale + ln_sum);
}

template <class T>
__device__ __forceinline__ void backward(const BwdParams& p) {
  const u32 vocab = p.vocab, strips = ceil_div(vocab, STRIP);
  const u64 row = blockIdx.x / strips;
  const u32 first = blockIdx.x % strips * STRIP + threadIdx.x * V;
  const float* logits = global<const float>(p.logits) + row * vocab;
  T* d_logits = global<T>(p.d_logits) + row * vocab;
  const bool vector = vocab % V == 0 && aligned16(p.logits, p.d_logits);
  const int target = load_for_warp(global<const int>(p.targets) + row);
  const float scale = p.inv_temperature, lse = load_for_warp(global<const float>(p.lse) + row);
  const float factor = load_for_warp(global<const float>(p.grad) + row) * scale;
  const bool ignored = target < 0, bad = !ignored && static_cast<u32>(target) >= vocab;

  float x[BWD_STEPS][V];
#pragma unroll
  for (int k = 0; k < BWD_STEPS; ++k) load_elements(logits, first + k * BWD_THREADS * V, vocab, vector, x[k]);
#pragma unroll
  for (int k = 0; k < BWD_STEPS; ++k) {
    const u32 at = first + k * BWD_THREADS * V;
    float out[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float ln_p = x[k][j] * scale - lse;
      out[j] = ignored ? 0.0f : bad ? not_a_number() : -factor * expf(ln_p);
    }
    if (!bad && static_cast<u32>(target) - at < V) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (at + j == static_cast<u32>(target)) out[j] = -factor * expm1f(x[k][j] * scale - lse);
      }
    }
    store_elements(d_logits, at, vocab, vector, out);
  }
}

#define BWD(T, NAME)                                                                                              \
  extern "C" __global__ void __launch_bounds__(BWD_THREADS) log_prob_bwd_##NAME(const __grid_constant__ BwdParams p) { \
    backward<T>(p);                                                                                               \
  }

BWD(float, f32)
BWD(bf16, bf16)
