// Copies blocks of the key cache and the value cache; shapes: mod.rs.
//
// A thread block copies CHUNK units of one pair in one cache. A thread makes four accesses of 16 bytes at a time.
//
//   for each 16 bytes of the chunk: to[i] = from[i]
//
// Numerics: bits are copied. Bound: memory, each byte read and written once.
#include "cuh/base.cuh"

constexpr int THREADS = 256;
constexpr int PER_THREAD = 4;
constexpr u32 CHUNK = THREADS * PER_THREAD;  // units of 16 bytes

extern "C" __global__ void __launch_bounds__(THREADS) block_copy(const __grid_constant__ Params p) {
  const u32 chunks = ceil_div(p.copied, CHUNK);
  const u32 chunk = blockIdx.x % chunks, pair = blockIdx.x / chunks / 2;
  Words<16>* cache = global<Words<16>>(blockIdx.x / chunks % 2 == 0 ? p.k_cache : p.v_cache);
  const int* blocks = global<const int>(p.pairs) + 2 * static_cast<u64>(pair);
  const Words<16>* from = cache + static_cast<u64>(blocks[0]) * p.units;
  Words<16>* to = cache + static_cast<u64>(blocks[1]) * p.units;
  Words<16> words[PER_THREAD];
#pragma unroll
  for (int i = 0; i < PER_THREAD; ++i) {
    const u32 at = chunk * CHUNK + i * THREADS + threadIdx.x;
    if (at < p.copied) words[i] = from[at];
  }
#pragma unroll
  for (int i = 0; i < PER_THREAD; ++i) {
    const u32 at = chunk * CHUNK + i * THREADS + threadIdx.x;
    if (at < p.copied) to[at] = words[i];
  }
}
