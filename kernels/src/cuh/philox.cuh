// The random number generator Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011). As in philox.rs, the key is the
// seed, and the counter consists of index and stream.
#pragma once

#include "cuh/base.cuh"

struct PhiloxWords {
  u32 word[4];
};

// Returns the four 32-bit random words with number `index` in the random sequence with number `stream`.
__device__ __forceinline__ PhiloxWords philox(u64 seed, u64 stream, u64 index) {
  u32 a = static_cast<u32>(index), b = static_cast<u32>(index >> 32);
  u32 c = static_cast<u32>(stream), d = static_cast<u32>(stream >> 32);
  u32 k0 = static_cast<u32>(seed), k1 = static_cast<u32>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u32 p_high = __umulhi(a, 0xd2511f53u), p_low = a * 0xd2511f53u;
    const u32 q_high = __umulhi(c, 0xcd9e8d57u), q_low = c * 0xcd9e8d57u;
    a = q_high ^ b ^ k0;
    b = q_low;
    c = p_high ^ d ^ k1;
    d = p_low;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return {{a, b, c, d}};
}

// Converts the upper 24 bits of a random word to a uniform number in [0, 1).
__device__ __forceinline__ float uniform(u32 word) { return static_cast<float>(word >> 8) * 5.9604644775390625e-8f; }
