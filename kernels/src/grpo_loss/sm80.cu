// The losses of GRPO and its variants, with the gradients with respect to the log-probabilities and the entropies.
//
//   d[t] = log_prob[t] - old[t] (at both sequence levels the mean over the learned tokens), r = e^d
//   s[t] = entropy[t] >= min_entropy,  w = old[t] - sampled[t] (or its sum) as a ratio, bounded or masked
//   l[t] = s w f[t] + beta (e^x - x - 1),  x = clip(reference[t] - log_prob[t], -kl_limit, kl_limit)
//   f[t] = -min(r A, clip(r) A), or with CISPO -min(r, epsilon_high) A log_prob[t]
//   d_log_prob[t] = weight (-k r A [not clipped] - beta (e^x - 1) [x not clipped]), 0 for tokens that are not learned,
//   with k = s w, or at sequence level its mean; with CISPO -s w min(r, epsilon_high) A as the first term
//   d_entropy[t] = -entropy_weight s[t]
//
// Shapes and limits: mod.rs. Numerics: f64 with the CUDA library's exp and expm1, rounded to f32 at the store. Order
// of a sum: each thread adds every 256th token, then warp_sum adds the threads, then the warps are added in order.
// Grid: one block per completion.
//
//   at a sequence level: mean of d over the completion; for a correction per sequence: its sum; then the mean of s w
//   each thread, over its tokens: ratio, loss, gradients; sums of loss, KL, clipped tokens and entropies
// Latency-bound: a completion has about a thousand tokens.

#include "cuh/warp.cuh"

constexpr int THREADS = 256;
// The values of the parameters `level` and `correction`; mod.rs has them, too.
constexpr u32 TOKEN_LEVEL = 0, SEQUENCE_LEVEL = 1;
constexpr u32 CORRECTION_PER_SEQUENCE = 1, CORRECTION_MASKS = 2;

extern "C" __global__ void __launch_bounds__(THREADS) grpo_loss(const __grid_constant__ Params p) {
  __shared__ double scratch[7][THREADS / 32];
  const u32 i = blockIdx.x;
  const int start = load_for_warp(global<const int>(p.cu_seqlens) + i);
  const int end = load_for_warp(global<const int>(p.cu_seqlens) + i + 1);
  const int counted = load_for_warp(global<const int>(p.counted) + i), stop = start + counted;
  const float* log_prob = global<const float>(p.log_prob);
  const bool has_old = p.old != 0, has_sampled = p.sampled != 0, has_reference = p.reference != 0;
  const bool has_entropy = p.entropy != 0, is_cispo = p.cispo != 0;
  const bool of_sequence = (p.correction & CORRECTION_PER_SEQUENCE) != 0;
  const auto old_of = [&](double now, int t) {
    return has_old ? static_cast<double>(global<const float>(p.old)[t]) : now;
  };
  const auto log_ratio = [&](double now, double old) { return has_old ? now - old : 0.0; };
  const auto drift = [&](double old, int t) {
    const double sampled = global<const float>(p.sampled)[t];
    return isnan(sampled) ? 0.0 : old - sampled;
  };

  double mean = 0.0, drifts = 0.0;
  if (p.level != TOKEN_LEVEL) {
    double sum = 0.0;
    for (int t = start + threadIdx.x; t < stop; t += THREADS) sum += log_ratio(log_prob[t], old_of(log_prob[t], t));
    mean = block_sum<THREADS>(sum, scratch[3]) / (counted > 0 ? counted : 1);
  }
  if (has_sampled && of_sequence) {
    double sum = 0.0;
    for (int t = start + threadIdx.x; t < stop; t += THREADS) sum += drift(old_of(log_prob[t], t), t);
    drifts = block_sum<THREADS>(sum, scratch[4]);
  }
  // s w of a token with the entropy `entropy`.
  const auto factor = [&](double old, float entropy, int t) {
    if (has_entropy && !(entropy >= p.min_entropy)) return 0.0;
    if (!has_sampled) return 1.0;
    const double ratio = exp(of_sequence ? drifts : drift(old, t)), least = p.correction_min, most = p.correction_max;
    if (!(ratio < least || ratio > most)) return ratio;
    return (p.correction & CORRECTION_MASKS) != 0 ? 0.0 : ratio < least ? least : most;
  };
  const auto entropy_of = [&](int t) { return has_entropy ? global<const float>(p.entropy)[t] : 0.0f; };
  double mean_factor = 1.0;
  if (p.level == SEQUENCE_LEVEL && (has_entropy || has_sampled)) {
    double sum = 0.0;
    for (int t = start + threadIdx.x; t < stop; t += THREADS) sum += factor(old_of(log_prob[t], t), entropy_of(t), t);
    mean_factor = block_sum<THREADS>(sum, scratch[5]) / (counted > 0 ? counted : 1);
  }

  const double a = load_for_warp(global<const float>(p.advantage) + i);
  const double weight = load_for_warp(global<const float>(p.weight) + i);
  const double low = is_cispo ? 0.0 : 1.0 - static_cast<double>(p.epsilon_low);
  const double high = (is_cispo ? 0.0 : 1.0) + static_cast<double>(p.epsilon_high);
  const double beta = p.beta, limit = p.kl_limit;
  double loss = 0.0, distances = 0.0, clips = 0.0, entropies = 0.0;
  for (int t = start + threadIdx.x; t < end; t += THREADS) {
    double slope = 0.0;
    float of_entropy = 0.0f;
    if (t < stop) {
      const double now = log_prob[t], old = old_of(now, t);
      const double ratio = exp(p.level != TOKEN_LEVEL ? mean : log_ratio(now, old));
      const float entropy = entropy_of(t);
      const double own = factor(old, entropy, t);
      const bool clipped = (ratio < low && a < 0.0) || (ratio > high && a > 0.0);
      const double held = ratio < low ? low : high;
      double value = -a * (clipped ? held : ratio) * own;
      slope = clipped ? 0.0 : -a * ratio * (p.level == SEQUENCE_LEVEL ? mean_factor : own);
      if (is_cispo) {
        slope = -a * (ratio > high ? high : ratio) * own;
        value = slope * now;
      }
      if (has_entropy && entropy >= p.min_entropy) {
        entropies += entropy;
        of_entropy = -p.entropy_weight;
      }
      if (has_reference) {
        double x = static_cast<double>(global<const float>(p.reference)[t]) - now;
        const bool inside = !(fabs(x) >= limit);
        if (!inside) x = copysign(limit, x);
        const double growth = expm1(x), distance = growth - x;
        value += beta * distance;
        if (inside) slope -= beta * growth;
        distances += distance;
      }
      loss += value;
      clips += clipped ? 1.0 : 0.0;
    }
    global<float>(p.d_log_prob)[t] = static_cast<float>(weight * slope);
    if (p.d_entropy != 0) global<float>(p.d_entropy)[t] = of_entropy;
  }
  loss = block_sum<THREADS>(loss, scratch[0]);
  distances = block_sum<THREADS>(distances, scratch[1]);
  clips = block_sum<THREADS>(clips, scratch[2]);
  entropies = block_sum<THREADS>(entropies, scratch[6]);
  if (threadIdx.x > 0) return;
  float* stats = global<float>(p.stats) + 4ull * i;
  stats[0] = static_cast<float>(weight * loss - static_cast<double>(p.entropy_weight) * entropies);
  stats[1] = static_cast<float>(distances);
  stats[2] = static_cast<float>(clips);
  stats[3] = static_cast<float>(counted);
}
