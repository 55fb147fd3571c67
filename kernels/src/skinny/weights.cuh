// Converts elements of the weights, bf16 or signed bytes, to pairs of bf16.
#pragma once

#include "cuh/base.cuh"

struct i8 {
  signed char value;
};

// Returns a - b of two pairs of bf16.
__device__ __forceinline__ u32 subtract_bf16(u32 a, u32 b) {
  u32 pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(b), "r"(0xbf80bf80u), "r"(a));
  return pair;
}

// Converts the four bytes of a word, and returns the first two and the last two.
__device__ __forceinline__ void pairs_of_bytes(u32 word, u32& first, u32& last) {
  // A byte b below a high byte of 0x43 forms the bf16 number 128 + b if bit 7 of b is 0. So, with v = b & 127, the byte
  // is (128 + v) - 128 if its sign bit is 0, and (128 + v) - 256 otherwise; both are exact.
  const u32 low = __byte_perm(word, 0x43434343u, 0x4140), high = __byte_perm(word, 0x43434343u, 0x4342);
  first = subtract_bf16(low & 0xff7fff7fu, low & 0xff80ff80u);
  last = subtract_bf16(high & 0xff7fff7fu, high & 0xff80ff80u);
}

// Converts eight elements of a 16-byte unit of the weight to four pairs of bf16. `half` says which eight of the 16
// elements of an int8 unit.
__device__ __forceinline__ void weights_of(const Words<16>& unit, int, u32 (&w)[4], bf16) {
#pragma unroll
  for (int i = 0; i < 4; ++i) w[i] = unit.word[i];
}
__device__ __forceinline__ void weights_of(const Words<16>& unit, int half, u32 (&w)[4], i8) {
  pairs_of_bytes(unit.word[2 * half], w[0], w[1]);
  pairs_of_bytes(unit.word[2 * half + 1], w[2], w[3]);
}
