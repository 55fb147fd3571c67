// The losses of GRPO and its variants, with the gradient with respect to the log-probabilities.
//
//   d[t] = log_prob[t] - old[t] (at sequence level the mean over the learned tokens), r = e^d
//   l[t] = -min(r A, clip(r) A) + beta (e^x - x - 1),  x = clip(reference[t] - log_prob[t], -kl_limit, kl_limit)
//   d_log_prob[t] = weight (-r A [not clipped] - beta (e^x - 1) [x not clipped]), 0 for tokens that are not learned
//
// Shapes and limits: mod.rs. Numerics: f64 with the CUDA library's exp and expm1, rounded to f32 at the store. Order
// of a sum: each thread adds every 256th token, then warp_sum adds the threads, then the warps are added in order.
// Grid: one block per completion.
//
//   at sequence level: mean of d over the completion
//   each thread, over its tokens: ratio, loss, gradient; sums of loss, KL and clipped tokens
// Latency-bound: a completion has about a thousand tokens.

#include "cuh/warp.cuh"

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS) grpo_loss(const __grid_constant__ Params p) {
  __shared__ double scratch[4][THREADS / 32];
  const u32 i = blockIdx.x;
  const int start = load_for_warp(global<const int>(p.cu_seqlens) + i);
  const int end = load_for_warp(global<const int>(p.cu_seqlens) + i + 1);
  const int counted = load_for_warp(global<const int>(p.counted) + i), stop = start + counted;
  const double a = load_for_warp(global<const float>(p.advantage) + i);
  const double weight = load_for_warp(global<const float>(p.weight) + i);
  const float* log_prob = global<const float>(p.log_prob);
  const bool has_old = p.old != 0, has_reference = p.reference != 0;
  const auto log_ratio = [&](double now, int t) {
    return has_old ? now - static_cast<double>(global<const float>(p.old)[t]) : 0.0;
  };

  double mean = 0.0;
  if (p.sequence_level != 0) {
    double sum = 0.0;
    for (int t = start + threadIdx.x; t < stop; t += THREADS) sum += log_ratio(log_prob[t], t);
    mean = block_sum<THREADS>(sum, scratch[3]) / (counted > 0 ? counted : 1);
  }

  const double low = 1.0 - static_cast<double>(p.epsilon_low), high = 1.0 + static_cast<double>(p.epsilon_high);
  const double beta = p.beta, limit = p.kl_limit;
  double loss = 0.0, distances = 0.0, clips = 0.0;
  for (int t = start + threadIdx.x; t < end; t += THREADS) {
    double slope = 0.0;
    if (t < stop) {
      const double now = log_prob[t], ratio = exp(p.sequence_level != 0 ? mean : log_ratio(now, t));
      const bool clipped = (ratio < low && a < 0.0) || (ratio > high && a > 0.0);
      const double held = ratio < low ? low : high;
      double value = -a * (clipped ? held : ratio);
      slope = clipped ? 0.0 : -a * ratio;
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
  }
  loss = block_sum<THREADS>(loss, scratch[0]);
  distances = block_sum<THREADS>(distances, scratch[1]);
  clips = block_sum<THREADS>(clips, scratch[2]);
  if (threadIdx.x > 0) return;
  float* stats = global<float>(p.stats) + 4ull * i;
  stats[0] = static_cast<float>(weight * loss);
  stats[1] = static_cast<float>(distances);
  stats[2] = static_cast<float>(clips);
  stats[3] = static_cast<float>(counted);
}
