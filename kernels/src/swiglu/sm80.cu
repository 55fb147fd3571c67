// SwiGLU and its gradient, element by element.
//
//   s = 1 / (1 + e^-g)
//   fwd: y = g * s * u        bwd: d_gate = dy * u * s * (1 + g * (1 - s)), d_up = dy * g * s, and y again if asked for
//
// Shapes and limits: mod.rs. Numerics: f32; e^x of the CUDA library (1 ulp), quotient to 2 ulp; one rounding to T at
// the store. Grid: 2048 elements per block (map.cuh). Memory-bound.

#include "cuh/map.cuh"
#include "cuh/math.cuh"

// Maps an index in y to the index in arrays whose rows of `cols` elements are `stride` elements apart.
struct RowLayout {
  u64 count, cols, stride;

  __device__ __forceinline__ u64 place(u64 at) const {
    if (stride == cols) return at;
    // A 32-bit division takes a fraction of the instructions of a 64-bit one.
    const u64 row = count >> 32 == 0 ? static_cast<u32>(at) / static_cast<u32>(cols) : at / cols;
    return at + row * (stride - cols);
  }

  // Whether v elements, from any multiple of v on, lie in one row and can be accessed as one aligned vector.
  __device__ __forceinline__ bool fits(u32 v) const { return stride == cols || (cols % v == 0 && stride % v == 0); }
};

// Computes y from gate and up.
template <class T>
struct Gated {
  static constexpr int V = VECTOR<T>;
  RowLayout rows;
  const T *gate, *up;
  T* y;

  template <int V>
  struct Values {
    float gate[V], up[V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& v) const {
    const u64 place = rows.place(at);
    load_vector(gate + place, v.gate);
    load_vector(up + place, v.up);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>& v) const {
    float out[V];
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = gated(v.gate[j], v.up[j]);
    store_vector(y + at, out);
  }
};

// Computes d_gate and d_up from gate, up and dy, and y from gate and up if y is not null.
template <class T>
struct Gradients {
  static constexpr int V = VECTOR<T>;
  RowLayout rows;
  const T *gate, *up, *dy;
  T *d_gate, *d_up, *y;

  template <int V>
  struct Values {
    float gate[V], up[V], dy[V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& v) const {
    const u64 place = rows.place(at);
    load_vector(gate + place, v.gate);
    load_vector(up + place, v.up);
    load_vector(dy + at, v.dy);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>& v) const {
    float to_gate[V], to_up[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float g = v.gate[j], dy = v.dy[j], s = sigmoid(g);
      to_gate[j] = dy * v.up[j] * s * (1.0f + g * (1.0f - s));
      to_up[j] = dy * g * s;
    }
    const u64 place = rows.place(at);
    store_vector(d_gate + place, to_gate);
    store_vector(d_up + place, to_up);
    if (y == nullptr) return;
    float again[V];
#pragma unroll
    for (int j = 0; j < V; ++j) again[j] = gated(v.gate[j], v.up[j]);
    store_vector(y + at, again);
  }
};

template <class T>
__device__ __forceinline__ void forward(const FwdParams& p) {
  const RowLayout rows{p.count, p.cols, p.stride};
  const bool vector = rows.fits(VECTOR<T>) && aligned16(p.gate, p.up, p.y);
  map(p.count, vector, Gated<T>{rows, global<const T>(p.gate), global<const T>(p.up), global<T>(p.y)});
}

template <class T>
__device__ __forceinline__ void backward(const BwdParams& p) {
  const RowLayout rows{p.count, p.cols, p.stride};
  const bool vector = rows.fits(VECTOR<T>) && aligned16(p.gate, p.up, p.dy, p.d_gate, p.d_up, p.y);
  const Gradients<T> gradients{rows,
                               global<const T>(p.gate),
                               global<const T>(p.up),
                               global<const T>(p.dy),
                               global<T>(p.d_gate),
                               global<T>(p.d_up),
                               p.y == 0 ? nullptr : global<T>(p.y)};
  map(p.count, vector, gradients);
}

#define KERNEL(NAME, PARAMS) extern "C" __global__ void __launch_bounds__(MAP_THREADS) NAME(const __grid_constant__ PARAMS p)

KERNEL(swiglu_fwd_f32, FwdParams) { forward<float>(p); }
KERNEL(swiglu_bwd_f32, BwdParams) { backward<float>(p); }
KERNEL(swiglu_fwd_bf16, FwdParams) { forward<bf16>(p); }
KERNEL(swiglu_bwd_bf16, BwdParams) { backward<bf16>(p); }
