// SwiGLU and its gradient, element by element.
//
//   s = 1 / (1 + e^-g)
//   fwd: y = g * s * u                     bwd: d_gate = dy * u * s * (1 + g * (1 - s)), d_up = dy * g * s
//
// Shapes and limits: mod.rs. Numerics: f32; e^x of the CUDA library (1 ulp), quotient to 2 ulp; one rounding to T at
// the store. Grid: 2048 elements per block (map.cuh). Memory-bound.

#include "cuh/map.cuh"
#include "cuh/math.cuh"

// Computes y from gate and up.
struct Gated {
  __device__ __forceinline__ void operator()(const float (&x)[2], float (&y)[1]) const {
    y[0] = divide(x[0], 1.0f + expf(-x[0])) * x[1];
  }
};

// Computes d_gate and d_up from gate, up and dy.
struct Gradients {
  __device__ __forceinline__ void operator()(const float (&x)[3], float (&d)[2]) const {
    const float g = x[0], up = x[1], dy = x[2], s = sigmoid(g);
    d[0] = dy * up * s * (1.0f + g * (1.0f - s));
    d[1] = dy * g * s;
  }
};

#define KERNEL(NAME, PARAMS) extern "C" __global__ void __launch_bounds__(MAP_THREADS) NAME(const __grid_constant__ PARAMS p)

#define KERNELS(T, NAME)                                                                                         \
  KERNEL(swiglu_fwd_##NAME, FwdParams) { map_each<T, T>(p.count, {p.gate, p.up}, {p.y}, Gated()); }              \
  KERNEL(swiglu_bwd_##NAME, BwdParams) {                                                                         \
    map_each<T, T>(p.count, {p.gate, p.up, p.dy}, {p.d_gate, p.d_up}, Gradients());                              \
  }

KERNELS(float, f32)
KERNELS(bf16, bf16)
