// GELU in its exact form, with its gradient, and in its tanh form, element by element.
//
//   exact, fwd: y = x * cdf(x)            bwd: dx = dy * (cdf(x) + x * density(x))
//   cdf(-z) = e^(-z^2 / 2) * R(z) for z >= 0, R a polynomial in 1 / (1 + 0.4 z), fitted as in cpu.rs;
//   this form has no cancellation in the tail
//
//   tanh form: y = x * s, s = 1 / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
//
// Shapes and limits: mod.rs. Numerics: f32; the fit is accurate to 7e-8, e^x of the CUDA library to 1 ulp, quotients
// to 2 ulp; one rounding to T at the store. Grid: 2048 elements per block (map.cuh). Memory-bound.

#include "cuh/map.cuh"
#include "cuh/math.cuh"

// Returns the normal distribution function of x, and e^(-x^2 / 2) in `bell`.
__device__ __forceinline__ float normal_cdf(float x, float& bell) {
  const float t = divide(1.0f, fmaf(0.4f, fabsf(x), 1.0f));
  float r = -4.000845e-2f;
  r = fmaf(r, t, 2.02357e-1f);
  r = fmaf(r, t, -3.7686366e-1f);
  r = fmaf(r, t, 2.5412485e-1f);
  r = fmaf(r, t, -1.4247191e-2f);
  r = fmaf(r, t, 1.5908529e-1f);
  r = fmaf(r, t, 1.5564434e-1f);
  r = fmaf(r, t, 1.5992054e-1f);
  r = fmaf(r, t, -1.2764581e-5f);
  bell = expf(-0.5f * x * x);
  const float tail = bell * r;
  return x > 0.0f ? 1.0f - tail : tail;
}

// Computes the exact form.
struct Exact {
  __device__ __forceinline__ void operator()(const float (&x)[1], float (&y)[1]) const {
    float bell;
    y[0] = x[0] * normal_cdf(x[0], bell);
  }
};

// Computes dx of the exact form from x and dy.
struct ExactGradient {
  __device__ __forceinline__ void operator()(const float (&x)[2], float (&dx)[1]) const {
    float bell;
    const float cdf = normal_cdf(x[0], bell);
    dx[0] = x[1] * (cdf + x[0] * (0.3989423f * bell));
  }
};

// Computes the tanh form.
struct Tanh {
  __device__ __forceinline__ void operator()(const float (&x)[1], float (&y)[1]) const {
    y[0] = x[0] * sigmoid(1.5957691f * (x[0] + 0.044715f * x[0] * x[0] * x[0]));
  }
};

#define KERNEL(NAME, PARAMS) extern "C" __global__ void __launch_bounds__(MAP_THREADS) NAME(const __grid_constant__ PARAMS p)

#define KERNELS(T, FWD, BWD, TANH_FWD)                                                      \
  KERNEL(FWD, FwdParams) { map_each<T, T>(p.count, {p.x}, {p.y}, Exact()); }                \
  KERNEL(BWD, BwdParams) { map_each<T, T>(p.count, {p.x, p.dy}, {p.dx}, ExactGradient()); } \
  KERNEL(TANH_FWD, FwdParams) { map_each<T, T>(p.count, {p.x}, {p.y}, Tanh()); }

KERNELS(float, gelu_fwd_f32, gelu_bwd_f32, gelu_tanh_fwd_f32)
KERNELS(bf16, gelu_fwd_bf16, gelu_bwd_bf16, gelu_tanh_fwd_bf16)
