// GELU in its exact form and in its tanh form, and their gradients, element by element.
//
//   exact, fwd: y = x * cdf(x)            bwd: dx = dy * (cdf(x) + x * density(x))
//   cdf(-z) = e^(-z^2 / 2) * R(z) for z >= 0, R a polynomial in 1 / (1 + 0.4 z), fitted as in cpu.rs;
//   this form has no cancellation in the tail
//
//   tanh form: s = 1 / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
//   fwd: y = x * s                        bwd: dx = dy * (s + x * s * (1 - s) * 2 du/dx)
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

// GELU in its exact form: the value and the derivative. `Tanh` has the same functions for the tanh form.
struct Exact {
  static __device__ __forceinline__ float value(float x) {
    float bell;
    return x * normal_cdf(x, bell);
  }

  static __device__ __forceinline__ float slope(float x) {
    float bell;
    const float cdf = normal_cdf(x, bell);
    return cdf + x * (0.3989423f * bell);
  }
};

struct Tanh {
  static __device__ __forceinline__ float share(float x) { return sigmoid(1.5957691f * (x + 0.044715f * x * x * x)); }

  static __device__ __forceinline__ float value(float x) { return x * share(x); }

  static __device__ __forceinline__ float slope(float x) {
    const float s = share(x), bend = s * (1.0f - s);
    // For large |x|, bend is 0 and the factor after it may be infinite. Their product would be NaN, so the term is left
    // out if bend is 0.
    return bend == 0.0f ? s : s + x * bend * (1.5957691f * (1.0f + 0.134145f * x * x));
  }
};

template <class Form>
struct Value {
  __device__ __forceinline__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = Form::value(x[0]); }
};

// Computes dx from x and dy.
template <class Form>
struct Gradient {
  __device__ __forceinline__ void operator()(const float (&x)[2], float (&dx)[1]) const {
    dx[0] = x[1] * Form::slope(x[0]);
  }
};

#define KERNEL(NAME, PARAMS) extern "C" __global__ void __launch_bounds__(MAP_THREADS) NAME(const __grid_constant__ PARAMS p)

#define KERNELS(FORM, T, FWD, BWD)                                                 \
  KERNEL(FWD, FwdParams) { map_each<T, T>(p.count, {p.x}, {p.y}, Value<FORM>()); } \
  KERNEL(BWD, BwdParams) { map_each<T, T>(p.count, {p.x, p.dy}, {p.dx}, Gradient<FORM>()); }

KERNELS(Exact, float, gelu_fwd_f32, gelu_bwd_f32)
KERNELS(Exact, bf16, gelu_fwd_bf16, gelu_bwd_bf16)
KERNELS(Tanh, float, gelu_tanh_fwd_f32, gelu_tanh_bwd_f32)
KERNELS(Tanh, bf16, gelu_tanh_fwd_bf16, gelu_tanh_bwd_bf16)
