// GELU in its exact form and its gradient, element by element.
//
//   fwd: y = x * cdf(x)                    bwd: dx = dy * (cdf(x) + x * density(x))
//
// cdf(-z) = e^(-z^2 / 2) * R(z) for z >= 0, R a polynomial in 1 / (1 + 0.4 z): the fit of cpu.rs, without cancellation in the tail.
//
// Shapes and limits: mod.rs. Numerics: f32; the fit to 7e-8, e^x of the CUDA library (1 ulp), quotients to 2 ulp; one rounding to
// T at the store. Grid: 2048 elements a block (map.cuh).
// Bound: memory.

#include "cuh/map.cuh"
#include "cuh/math.cuh"

// The normal distribution function of x, and e^(-x^2 / 2).
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

template <class T>
struct Fwd {
  static constexpr int V = 16 / sizeof(T);
  const T* x;
  T* y;

  template <int V>
  struct Values {
    float x[V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& v) const {
    load_vector(x + at, v.x);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>& v) const {
    float out[V], bell;
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = v.x[j] * normal_cdf(v.x[j], bell);
    store_vector(y + at, out);
  }
};

template <class T>
struct Bwd {
  static constexpr int V = 16 / sizeof(T);
  const T *x, *dy;
  T* dx;

  template <int V>
  struct Values {
    float x[V], dy[V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& v) const {
    load_vector(x + at, v.x);
    load_vector(dy + at, v.dy);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>& v) const {
    float out[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      float bell;
      const float cdf = normal_cdf(v.x[j], bell);
      out[j] = v.dy[j] * (cdf + v.x[j] * (0.3989423f * bell));
    }
    store_vector(dx + at, out);
  }
};

#define KERNELS(T, NAME)                                                                                           \
  extern "C" __global__ void __launch_bounds__(MAP_THREADS) gelu_fwd_##NAME(const __grid_constant__ FwdParams p) { \
    const Fwd<T> op{global<const T>(p.x), global<T>(p.y)};                                                         \
    map(p.count, aligned16(p.x, p.y), op);                                                                         \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(MAP_THREADS) gelu_bwd_##NAME(const __grid_constant__ BwdParams p) { \
    const Bwd<T> op{global<const T>(p.x), global<const T>(p.dy), global<T>(p.dx)};                                 \
    map(p.count, aligned16(p.x, p.dy, p.dx), op);                                                                  \
  }

KERNELS(float, f32)
KERNELS(bf16, bf16)
