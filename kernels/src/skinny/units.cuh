// Units of 16 bytes of x and of the weight: copies to shared memory, and conversion to the operands of mma.sync.
#pragma once

#include "cuh/base.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/mma.cuh"

struct i8 {
  signed char value;
};

// Loads 16 bytes of elements, from index `at` on, of the row of k elements at p. Elements beyond the end of the row
// are 0. `vector` promises that the row allows 16-byte loads.
template <class T>
__device__ __forceinline__ Words<16> load_unit(const T* p, int at, int k, bool vector) {
  constexpr int N = 16 / sizeof(T), PER_WORD = 4 / sizeof(T);
  Words<16> x = {};
  if (vector) {
    if (at < k) x = *reinterpret_cast<const Words<16>*>(p + at);
    return x;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    u32 bits = 0;
    if (at + i < k) {
      if constexpr (sizeof(T) == 1) bits = reinterpret_cast<const u8*>(p)[at + i];
      if constexpr (sizeof(T) == 2) bits = reinterpret_cast<const u16*>(p)[at + i];
      if constexpr (sizeof(T) == 4) bits = reinterpret_cast<const u32*>(p)[at + i];
    }
    x.word[i / PER_WORD] |= bits << i % PER_WORD * (8 * sizeof(T) % 32);
  }
  return x;
}

// Converts eight elements of a 16-byte unit of the weight to four pairs of bf16. `half` says which eight of the 16
// elements of an int8 unit.
__device__ __forceinline__ void weights_of(const Words<16>& unit, int, u32 (&w)[4], bf16) {
#pragma unroll
  for (int i = 0; i < 4; ++i) w[i] = unit.word[i];
}
__device__ __forceinline__ void weights_of(const Words<16>& unit, int half, u32 (&w)[4], i8) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // XOR with 128 adds 128 to each signed byte. Put into the low mantissa bits of 2^23, the result gives the f32
    // number 2^23 + 128 + byte.
    const u32 bytes = unit.word[2 * half + i / 2] ^ 0x80808080u;
    const float low = __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7540 + i % 2 * 2)) - 8388736.0f;
    const float high = __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7541 + i % 2 * 2)) - 8388736.0f;
    w[i] = pack_bf16(low, high);
  }
}

// Starts the copy of the 16-byte unit from index `at` on of a row to shared memory. Elements beyond the end of the row,
// and all elements if the row does not exist, are 0. Without 16-byte loads the unit is copied at once. CACHED: L1 keeps
// the unit for other blocks.
template <bool CACHED, class T>
__device__ __forceinline__ void start_copy(Words<16>* to, const T* row, bool exists, int at, int k, bool vector) {
  const bool reads = exists && at < k;
  if (!vector) {
    *to = reads ? load_unit(row, at, k, false) : Words<16>{};
  } else if constexpr (CACHED) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(row + (reads ? at : 0)),
                 "r"(reads ? 16 : 0)
                 : "memory");
  } else {
    cp_async_16(shared_address(to), row + (reads ? at : 0), reads ? 16 : 0);
  }
}

// Returns the size of dynamic shared memory in bytes.
__device__ __forceinline__ u32 dynamic_shared_bytes() {
  u32 bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  return bytes;
}

// Eight elements of a row of x as COUNT sets of four bf16 pairs. bf16 needs one set. An f32 is split into the sum of
// three bf16 numbers, one per set; the smallest comes first. `add` writes the pairs of the 16-byte unit `j` of the
// eight elements.
template <class T>
struct Parts;
template <>
struct Parts<bf16> {
  static constexpr int COUNT = 1;
  __device__ static __forceinline__ void add(const Words<16>& unit, int, u32 (&x)[1][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[0][i] = unit.word[i];
  }
};
template <>
struct Parts<float> {
  static constexpr int COUNT = 3;
  __device__ static __forceinline__ void add(const Words<16>& unit, int j, u32 (&x)[3][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float low = __uint_as_float(unit.word[2 * i]), high = __uint_as_float(unit.word[2 * i + 1]);
#pragma unroll
      for (int part = 2; part >= 0; --part) {
        const u32 pair = pack_bf16(low, high);
        x[part][2 * j + i] = pair;
        low = __fsub_rn(low, low_bf16(pair));
        high = __fsub_rn(high, high_bf16(pair));
      }
    }
  }
};
