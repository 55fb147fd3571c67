// Element-wise operations: add, accumulate, cast, fill, multiply by a scalar in memory, copy.
//
//   add: y = a + b          accumulate: dst = dst + src          cast: dst = src in another type
//   fill: dst = value       mul_scalar: y = x * scalar[0]        copy: bytes
//
// Shapes and limits: mod.rs. Numerics: f32, one rounding to the element type at the store; casts to nearest, ties to
// even. A thread's vector is 16 bytes of the widest operand type. Grid: 2048 elements per
// block (map.cuh); copy: 32 KiB per block, in words of 16 bytes if both addresses are aligned to 16, else of 4 bytes
// if they are aligned to 4, else in single bytes. Memory-bound.

#include "cuh/map.cuh"

struct Sum {
  __device__ __forceinline__ void operator()(const float (&x)[2], float (&y)[1]) const { y[0] = x[0] + x[1]; }
};

struct Same {
  __device__ __forceinline__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = x[0]; }
};

struct Scale {
  float by;

  __device__ __forceinline__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = x[0] * by; }
};

// dst += src for src and dst of different types.
template <class S, class D>
struct Accumulate {
  static constexpr int V = 16 / (sizeof(S) > sizeof(D) ? sizeof(S) : sizeof(D));
  const S* src;
  D* dst;

  template <int V>
  struct Values {
    float src[V], dst[V];
  };

  template <int V>
  __device__ __forceinline__ void load(u64 at, Values<V>& v) const {
    load_vector(src + at, v.src);
    load_vector(dst + at, v.dst);
  }

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>& v) const {
    float out[V];
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = v.dst[j] + v.src[j];
    store_vector(dst + at, out);
  }
};

template <class T>
struct Fill {
  static constexpr int V = 16 / sizeof(T);
  float value;
  T* dst;

  template <int V>
  struct Values {};

  template <int V>
  __device__ __forceinline__ void load(u64, Values<V>&) const {}

  template <int V>
  __device__ __forceinline__ void store(u64 at, const Values<V>&) const {
    float out[V];
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = value;
    store_vector(dst + at, out);
  }
};

#define KERNEL(NAME, PARAMS) extern "C" __global__ void __launch_bounds__(MAP_THREADS) NAME(const __grid_constant__ PARAMS p)

#define KERNELS(T, ADD, ACCUMULATE, FILL)                                                           \
  KERNEL(ADD, AddParams) { map_each<T, T>(p.count, {p.a, p.b}, {p.y}, Sum()); }                     \
  KERNEL(ACCUMULATE, AccumulateParams) { map_each<T, T>(p.count, {p.dst, p.src}, {p.dst}, Sum()); } \
  KERNEL(FILL, FillParams) { map(p.count, aligned16(p.dst), Fill<T>{p.value, global<T>(p.dst)}); }

KERNELS(float, add_f32, accumulate_f32_f32, fill_f32)
KERNELS(bf16, add_bf16, accumulate_bf16_bf16, fill_bf16)
KERNEL(cast_f32_bf16, CastParams) { map_each<float, bf16>(p.count, {p.src}, {p.dst}, Same()); }
KERNEL(cast_bf16_f32, CastParams) { map_each<bf16, float>(p.count, {p.src}, {p.dst}, Same()); }

KERNEL(accumulate_bf16_f32, AccumulateParams) {
  map(p.count, aligned16(p.src, p.dst), Accumulate<bf16, float>{global<const bf16>(p.src), global<float>(p.dst)});
}

KERNEL(mul_scalar_f32, MulScalarParams) {
  map_each<float, float>(p.count, {p.x}, {p.y}, Scale{*global<const float>(p.scalar)});
}

// Bytes that a thread block copies.
constexpr int COPY_BLOCK = 32 * 1024;

// Copies the bytes from offset `first` up to `end`: whole words first, then the rest byte by byte.
template <class Word>
__device__ __forceinline__ void copy_words(const CopyParams& p, u64 first, u64 end) {
  constexpr int STEPS = 8;
  const Word* src = global<const Word>(p.src + first);
  Word* dst = global<Word>(p.dst + first);
  const u32 count = static_cast<u32>((end - first) / sizeof(Word));
  u32 at = threadIdx.x;
  for (; at + (STEPS - 1) * MAP_THREADS < count; at += STEPS * MAP_THREADS) {
    Word words[STEPS];
#pragma unroll
    for (int k = 0; k < STEPS; ++k) words[k] = src[at + k * MAP_THREADS];
#pragma unroll
    for (int k = 0; k < STEPS; ++k) dst[at + k * MAP_THREADS] = words[k];
  }
  for (; at < count; at += MAP_THREADS) dst[at] = src[at];
  const u64 rest = first + static_cast<u64>(count) * sizeof(Word) + threadIdx.x;
  if (rest < end) global<u8>(p.dst)[rest] = global<const u8>(p.src)[rest];
}

KERNEL(copy, CopyParams) {
  const u64 first = static_cast<u64>(blockIdx.x) * COPY_BLOCK, end = min(first + COPY_BLOCK, p.bytes);
  const u64 either = p.src | p.dst;
  if (either % 16 == 0) {
    copy_words<Words<16>>(p, first, end);
  } else if (either % 4 == 0) {
    copy_words<u32>(p, first, end);
  } else {
    copy_words<u8>(p, first, end);
  }
}
