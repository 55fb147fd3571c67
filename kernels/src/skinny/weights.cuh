// Elements of the weights: bf16, or signed bytes that become bf16.
#pragma once

#include "cuh/base.cuh"

struct i8 {
  signed char value;
};

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
