// Dequantises a weight: y[n, k] = T((value(code[n, k]) - zero[b]) * scale[b]), b the block of the weight.
//
// Shapes and limits: mod.rs; k < 2^31. Numerics: f32, one rounding to T at the store. Grid: rows.cuh; up to 256 threads
// per row, which write 16 bytes per access if rows are a multiple of 16 bytes. The table of 16 values is in shared
// memory, a bank each; values of 8 bits are computed. Memory-bound.

#include "cuh/rows.cuh"

// Returns the V codes of BITS bits from column `at` on, the first in the lowest bits; those past the last column are 0.
// `vector` promises that rows have whole groups of V codes.
template <int BITS, int V>
__device__ __forceinline__ u64 load_codes(const u8* row, u32 at, u32 k, bool vector) {
  constexpr int BYTES = V * BITS / 8;
  const u8* from = row + at * BITS / 8;
  if (vector) {
    if constexpr (BYTES == 8) return *reinterpret_cast<const u64*>(from);
    if constexpr (BYTES == 4) return *reinterpret_cast<const u32*>(from);
    return *reinterpret_cast<const u16*>(from);
  }
  u64 codes = 0;
#pragma unroll
  for (int j = 0; j < BYTES; ++j) {
    if (at + j * 8 / BITS < k) codes |= static_cast<u64>(from[j]) << (8 * j);
  }
  return codes;
}

// Returns the value of a code of 8 bits. A float with 4 bits of exponent is 1 / 256 of the f16 that has its bits in the
// place of sign, lower exponent and upper mantissa.
__device__ __forceinline__ float value_of_8_bits(u32 code, u32 kind) {
  if (kind == 0) return static_cast<float>(code);
  if (kind == 1) return static_cast<float>(static_cast<signed char>(code));
  const u16 half = static_cast<u16>((code & 0x80) << 8 | (code & 0x7f) << 7);
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x * 256.0f;
}

template <int BITS, class T>
__device__ __forceinline__ void dequantize(const Params& p) {
  constexpr int V = VECTOR<T>;
  __shared__ float table[16];
  if constexpr (BITS == 4) {
    const u32 thread = threadIdx.y * blockDim.x + threadIdx.x;
    if (thread < 16) table[thread] = global<const float>(p.values)[thread];
    __syncthreads();
  }
  const u64 row = row_of_thread();
  if (row >= p.n) return;
  const u32 row_bytes = BITS == 4 ? p.k / 2 + p.k % 2 : p.k;
  const u8* codes = global<const u8>(p.codes) + row * row_bytes;
  const float* scales = global<const float>(p.scales);
  const bool vector = p.k % V == 0 && aligned16(p.y, p.codes);
  // Whether the V weights of an access are in one block.
  const bool one_block = vector && p.column_blocks == 0 && p.block_columns % V == 0;
  const u64 first_block = p.block_rows == 0 ? 0 : row / p.block_rows * p.blocks;
  const u64 before = p.block_rows == 0 ? row * p.k : 0;
  T* y = global<T>(p.y) + row * p.k;
#pragma unroll 1
  for (u32 at = threadIdx.x * V; at < p.k; at += blockDim.x * V) {
    const u64 packed = load_codes<BITS, V>(codes, at, p.k, vector);
    float w[V], scale = 0.0f, zero = 0.0f;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const u32 column = at + j < p.k ? at + j : at;
      if (j == 0 || !one_block) {
        u64 block;
        if (p.column_blocks != 0) {
          block = global<const int>(p.column_blocks)[column];
        } else if (p.block_rows == 0) {
          block = (before + column) / p.block_columns;
        } else {
          block = column / p.block_columns;
        }
        scale = scales[first_block + block];
        if (p.zeros != 0) zero = global<const float>(p.zeros)[first_block + block];
      }
      const u32 code = static_cast<u32>(packed >> (j * BITS)) & ((1 << BITS) - 1);
      const float value = BITS == 4 ? table[code] : value_of_8_bits(code, p.kind);
      w[j] = (value - zero) * scale;
    }
    store_elements(y, at, p.k, vector, w);
  }
}

#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ Params p)

KERNEL(dequantize_4_f32) { dequantize<4, float>(p); }
KERNEL(dequantize_4_bf16) { dequantize<4, bf16>(p); }
KERNEL(dequantize_8_f32) { dequantize<8, float>(p); }
KERNEL(dequantize_8_bf16) { dequantize<8, bf16>(p); }
