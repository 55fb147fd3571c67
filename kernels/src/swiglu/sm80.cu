// SwiGLU and its gradient, element by element.
//
//   s = 1 / (1 + e^-g)
//   fwd: y = g * s * u                     bwd: d_gate = dy * u * s * (1 + g * (1 - s)), d_up = dy * g * s
//
// Shapes and limits: mod.rs. Numerics: f32; e^x of the CUDA library (1 ulp), quotient to 2 ulp; one rounding to T at the store.
// Grid: 2048 elements a block (map.cuh).
// Bound: memory.

#include "cuh/map.cuh"
#include "cuh/math.cuh"

template <class T>
struct Fwd {
  static constexpr int V = 16 / sizeof(T);
  const T *gate, *up;
  T* y;

  template <int V>
  struct Values {
    float gate[V], up[V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& v) const {
    load_vector(gate + at, v.gate);
    load_vector(up + at, v.up);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>& v) const {
    float out[V];
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = divide(v.gate[j], 1.0f + expf(-v.gate[j])) * v.up[j];
    store_vector(y + at, out);
  }
};

template <class T>
struct Bwd {
  static constexpr int V = 16 / sizeof(T);
  const T *gate, *up, *dy;
  T *d_gate, *d_up;

  template <int V>
  struct Values {
    float gate[V], up[V], dy[V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& v) const {
    load_vector(gate + at, v.gate);
    load_vector(up + at, v.up);
    load_vector(dy + at, v.dy);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>& v) const {
    float to_gate[V], to_up[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float g = v.gate[j], s = sigmoid(g);
      to_gate[j] = v.dy[j] * v.up[j] * s * (1.0f + g * (1.0f - s));
      to_up[j] = v.dy[j] * g * s;
    }
    store_vector(d_gate + at, to_gate);
    store_vector(d_up + at, to_up);
  }
};

#define KERNELS(T, NAME)                                                                                            \
  extern "C" __global__ void __launch_bounds__(MAP_THREADS) swiglu_fwd_##NAME(const __grid_constant__ FwdParams p) { \
    const Fwd<T> op{global<const T>(p.gate), global<const T>(p.up), global<T>(p.y)};                                \
    map(p.count, aligned16(p.gate, p.up, p.y), op);                                                                 \
  }                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(MAP_THREADS) swiglu_bwd_##NAME(const __grid_constant__ BwdParams p) { \
    const Bwd<T> op{global<const T>(p.gate), global<const T>(p.up), global<const T>(p.dy), global<T>(p.d_gate),     \
                    global<T>(p.d_up)};                                                                             \
    map(p.count, aligned16(p.gate, p.up, p.dy, p.d_gate, p.d_up), op);                                              \
  }

KERNELS(float, f32)
KERNELS(bf16, bf16)
