// Integer types, bf16, pointers to global memory, and loads and stores that convert elements to and from f32.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// A bfloat16 number: the upper 16 bits of an f32.
struct bf16 {
  u16 bits;
};

// A value of BYTES bytes, as 32-bit words, which one memory instruction loads or stores.
template <int BYTES>
struct alignas(BYTES) Words {
  u32 word[BYTES / 4];
};

// Converts a parameter's address to a pointer to global memory.
template <class T>
__device__ __forceinline__ T* global(u64 address) {
  T* pointer = reinterpret_cast<T*>(address);
  __builtin_assume(__isGlobal(pointer));
  return pointer;
}

// Tells whether all addresses (or sizes in bytes) are multiples of 16.
template <class... A>
__device__ __forceinline__ bool aligned16(A... address) {
  return ((static_cast<u64>(address) | ...) & 15) == 0;
}

// Returns the size of dynamic shared memory in bytes.
__device__ __forceinline__ u32 dynamic_shared_bytes() {
  u32 bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  return bytes;
}

// Reads threadIdx.x again, so that the compiler does not keep values computed from it in registers between uses.
__device__ __forceinline__ int thread_again() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}

template <class T>
__device__ __forceinline__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// Converts one element to f32, exactly.
__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }

// Rounds one f32 to the element type T, to nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// Rounds x to the type T and returns the rounded value as f32.
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return to_f32(from_f32<T>(x));
}

// Rounds two f32 to bf16 and packs them into one register, `low` in the lower half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Loads or stores the V elements from address p on: f32 with one memory access per four elements, other types with
// one access for all. p is aligned to the size of an access.
template <int V>
__device__ __forceinline__ void load_vector(const float* p, float (&x)[V]) {
  constexpr int N = V < 4 ? V : 4;
#pragma unroll
  for (int k = 0; k < V / N; ++k) {
    const Words<4 * N> words = reinterpret_cast<const Words<4 * N>*>(p)[k];
#pragma unroll
    for (int j = 0; j < N; ++j) x[k * N + j] = __uint_as_float(words.word[j]);
  }
}
template <int V>
__device__ __forceinline__ void load_vector(const bf16* p, float (&x)[V]) {
  if constexpr (V == 1) {
    x[0] = to_f32(*p);
  } else {
    const Words<2 * V> words = *reinterpret_cast<const Words<2 * V>*>(p);
#pragma unroll
    for (int j = 0; j < V / 2; ++j) {
      x[2 * j] = low_bf16(words.word[j]);
      x[2 * j + 1] = high_bf16(words.word[j]);
    }
  }
}
template <int V>
__device__ __forceinline__ void store_vector(float* p, const float (&x)[V]) {
  constexpr int N = V < 4 ? V : 4;
#pragma unroll
  for (int k = 0; k < V / N; ++k) {
    Words<4 * N> words;
#pragma unroll
    for (int j = 0; j < N; ++j) words.word[j] = __float_as_uint(x[k * N + j]);
    reinterpret_cast<Words<4 * N>*>(p)[k] = words;
  }
}
template <int V>
__device__ __forceinline__ void store_vector(bf16* p, const float (&x)[V]) {
  if constexpr (V == 1) {
    *p = from_f32<bf16>(x[0]);
  } else {
    Words<2 * V> words;
#pragma unroll
    for (int j = 0; j < V / 2; ++j) words.word[j] = pack_bf16(x[2 * j], x[2 * j + 1]);
    *reinterpret_cast<Words<2 * V>*>(p) = words;
  }
}

// Number of elements of type T in 16 bytes.
template <class T>
constexpr int VECTOR = 16 / sizeof(T);

// Converts 16 bytes of elements of type T to f32.
template <class T>
__device__ __forceinline__ void unpack(const Words<16>& words, float (&x)[VECTOR<T>]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if constexpr (sizeof(T) == 4) {
      x[j] = __uint_as_float(words.word[j]);
    } else {
      x[2 * j] = low_bf16(words.word[j]);
      x[2 * j + 1] = high_bf16(words.word[j]);
    }
  }
}

// Rounds f32 values to elements of type T, each once, and packs them into 16 bytes.
template <class T>
__device__ __forceinline__ Words<16> pack(const float (&x)[VECTOR<T>]) {
  Words<16> words;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if constexpr (sizeof(T) == 4) {
      words.word[j] = __float_as_uint(x[j]);
    } else {
      words.word[j] = pack_bf16(x[2 * j], x[2 * j + 1]);
    }
  }
  return words;
}

__device__ __forceinline__ u32 bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ u32 bits(bf16 x) { return x.bits; }

// Loads the VECTOR<T> elements that start at index `at` of the array p, which has n elements. Does not convert them;
// elements beyond the end of the array read as 0. `vector` promises that n and `at` are multiples of VECTOR<T> and
// that p is 16-byte aligned.
template <class T, class I>
__device__ __forceinline__ Words<16> load_words(const T* p, I at, I n, bool vector) {
  Words<16> words{};
  if (vector) {
    if (at < n) words = *reinterpret_cast<const Words<16>*>(p + at);
    return words;
  }
#pragma unroll
  for (int j = 0; j < VECTOR<T>; ++j) {
    if (at + j < n) words.word[j * sizeof(T) / 4] |= bits(p[at + j]) << (j * sizeof(T) % 4 * 8);
  }
  return words;
}

// Rounds each x[j] once and stores it as element `at` + j of the array p, which has n elements. Elements beyond the
// end of the array are not stored. `vector` promises that n and `at` are multiples of V and that p is aligned for
// vector stores.
template <int V, class T, class I>
__device__ __forceinline__ void store_elements(T* p, I at, I n, bool vector, const float (&x)[V]) {
  if (vector) {
    if (at < n) store_vector(p + at, x);
    return;
  }
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (at + j < n) p[at + j] = from_f32<T>(x[j]);
  }
}

// Loads the V elements that start at index `at` of the array p, which has n elements, and converts them to f32.
// Elements beyond the end of the array read as 0. `vector` promises that n and `at` are multiples of V and that p is
// aligned for vector loads.
template <int V, class T, class I>
__device__ __forceinline__ void load_elements(const T* p, I at, I n, bool vector, float (&x)[V]) {
  if (vector && at < n) {
    load_vector(p + at, x);
    return;
  }
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] = at + j < n ? to_f32(p[at + j]) : 0.0f;
}
