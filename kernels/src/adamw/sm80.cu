// AdamW, weights in f32 or as a split f32 master copy, and the making and reading of a split master copy.
//
//   g' = g * factor;  m = m + rest1 (g' - m);  v = beta2 v + rest2 (g' g')
//   w = w * decay - step_size * (m / (sqrt(v) / root_bias2 + eps))
//   decay = f32(1 - lr wd), step_size = f32(lr / bias1), root_bias2 = f32(sqrt(bias2)), each from f64
//   split: hi = (bits + 0x8000) >> 16, low = bits & 0xffff;  join: bits = (hi << 16) + (signed) low
//
// Shapes and limits: mod.rs. Numerics: every operation above rounds to f32 once, none is fused: the bits are those of cpu.
// Grid: 2048 weights a block (map.cuh); 16 bytes an access of m, v, g and f32 weights, 8 of the halves of a split one.
// Bound: memory.

#include "cuh/map.cuh"

// One operation, one rounding: what the compiler may not fuse.
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }

// The upper and the lower half of V weights, or their joined bits.
template <int V>
__device__ __forceinline__ void load_halves(const u16* p, u32 (&half)[V]) {
  if constexpr (V == 1) {
    half[0] = *p;
  } else {
    const Words<2 * V> words = *reinterpret_cast<const Words<2 * V>*>(p);
#pragma unroll
    for (int j = 0; j < V; ++j) half[j] = words.word[j / 2] >> (j % 2 * 16) & 0xffff;
  }
}

template <int V>
__device__ __forceinline__ void store_halves(u16* p, const u32 (&half)[V]) {
  if constexpr (V == 1) {
    *p = static_cast<u16>(half[0]);
  } else {
    Words<2 * V> words;
#pragma unroll
    for (int j = 0; j < V / 2; ++j) words.word[j] = half[2 * j] | half[2 * j + 1] << 16;
    *reinterpret_cast<Words<2 * V>*>(p) = words;
  }
}

__device__ __forceinline__ float join(u32 hi, u32 low) {
  return __uint_as_float((hi << 16) + static_cast<u32>(static_cast<int>(low << 16) >> 16));
}

__device__ __forceinline__ void split(float x, u32& hi, u32& low) {
  const u32 bits = __float_as_uint(x);
  const bool nan = x != x;
  hi = nan ? 0x7fc0 : bits + 0x8000 >> 16;
  low = nan ? 0 : bits & 0xffff;
}

// f32 weights, or the halves of split ones.
struct Plain {
  float* w;

  template <int V>
  __device__ __forceinline__ void load(u64 at, float (&x)[V]) const {
    load_vector(w + at, x);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const float (&x)[V]) const {
    store_vector(w + at, x);
  }
};

struct Halves {
  u16 *hi, *low;

  template <int V>
  __device__ __forceinline__ void load(u64 at, float (&x)[V]) const {
    u32 h[V], l[V];
    load_halves(hi + at, h);
    load_halves(low + at, l);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = join(h[j], l[j]);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const float (&x)[V]) const {
    u32 h[V], l[V];
#pragma unroll
    for (int j = 0; j < V; ++j) split(x[j], h[j], l[j]);
    store_halves(hi + at, h);
    store_halves(low + at, l);
  }
};

template <class Weights>
struct Step {
  static constexpr int V = 4;
  Weights weights;
  float *m, *v;
  const float* g;
  float factor, decay, step_size, root_bias2, rest1, beta2, rest2, eps;

  template <int V>
  struct Values {
    float w[V], m[V], v[V], g[V];
  };

  __device__ __forceinline__ Step(const Params& p, const Weights& weights)
      : weights(weights),
        m(global<float>(p.m)),
        v(global<float>(p.v)),
        g(global<const float>(p.g)),
        factor(p.clip == 0 ? 1.0f : global<const float>(p.clip)[1]),
        decay(static_cast<float>(__dsub_rn(1.0, __dmul_rn(p.lr, p.weight_decay)))),
        step_size(static_cast<float>(static_cast<double>(p.lr) / p.bias1)),
        root_bias2(static_cast<float>(sqrt(static_cast<double>(p.bias2)))),
        rest1(p.rest1),
        beta2(p.beta2),
        rest2(p.rest2),
        eps(p.eps) {}

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& x) const {
    weights.load(at, x.w);
    load_vector(m + at, x.m);
    load_vector(v + at, x.v);
    load_vector(g + at, x.g);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>& x) const {
    float new_w[V], new_m[V], new_v[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float g = mul(x.g[j], factor);
      new_m[j] = add(x.m[j], mul(rest1, add(g, -x.m[j])));
      new_v[j] = add(mul(beta2, x.v[j]), mul(rest2, mul(g, g)));
      const float root = add(__fdiv_rn(__fsqrt_rn(new_v[j]), root_bias2), eps);
      new_w[j] = add(mul(x.w[j], decay), -mul(step_size, __fdiv_rn(new_m[j], root)));
    }
    weights.store(at, new_w);
    store_vector(m + at, new_m);
    store_vector(v + at, new_v);
  }
};

// Weights from one form to another.
template <class From, class To>
struct Convert {
  static constexpr int V = 4;
  From from;
  To to;

  template <int V>
  struct Values {
    float x[V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& v) const {
    from.load(at, v.x);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>& v) const {
    to.store(at, v.x);
  }
};

// bf16 weights, whose lower halves are 0; bits as they are.
struct SplitBf16 {
  static constexpr int V = 8;
  const u16* src;
  u16 *hi, *low;

  template <int V>
  struct Values {
    u32 half[V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& v) const {
    if (src != hi) load_halves(src + at, v.half);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>& v) const {
    const u32 zeros[V] = {};
    if (src != hi) store_halves(hi + at, v.half);
    store_halves(low + at, zeros);
  }
};

#define KERNEL(NAME, PARAMS) extern "C" __global__ void __launch_bounds__(MAP_THREADS) NAME(const __grid_constant__ PARAMS p)

KERNEL(adamw_f32, Params) {
  const Step<Plain> op(p, Plain{global<float>(p.w)});
  map(p.n, aligned16(p.w, p.m, p.v, p.g), op);
}
KERNEL(adamw_bf16, Params) {
  const Step<Halves> op(p, Halves{global<u16>(p.w), global<u16>(p.low)});
  map(p.n, aligned16(p.w, p.low, p.m, p.v, p.g), op);
}
KERNEL(split_master_f32, SplitParams) {
  const Convert<Plain, Halves> op{Plain{global<float>(p.src)}, Halves{global<u16>(p.w), global<u16>(p.low)}};
  map(p.n, aligned16(p.src, p.w, p.low), op);
}
KERNEL(split_master_bf16, SplitParams) {
  const SplitBf16 op{global<const u16>(p.src), global<u16>(p.w), global<u16>(p.low)};
  map(p.n, aligned16(p.src, p.w, p.low), op);
}
KERNEL(join_master, JoinParams) {
  const Convert<Halves, Plain> op{Halves{global<u16>(p.w), global<u16>(p.low)}, Plain{global<float>(p.dst)}};
  map(p.n, aligned16(p.w, p.low, p.dst), op);
}
