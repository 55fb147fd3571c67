// Hashes of the bits of tensors: sums of mixed words. Formula and shapes: mod.rs.
//
// A block hashes a chunk of 65536 words of one range; a thread loads two words (16 bytes) at a time, four loads in
// flight.
//
//   for each word j of the chunk: sum += mix(x[j] + (first_word + j + 1) * GOLDEN)
//   sums[chunk][warp] = sum over the warp
//
// Exact: the sum is modulo 2^64, in any order. The last words of a range whose size is not a multiple of 16 bytes
// are assembled from bytes. Memory-bound: each byte read once; two 64-bit multiplications per word.
#include "cuh/warp.cuh"

constexpr int THREADS = 256;
constexpr int AHEAD = 4;
constexpr u64 CHUNK = 65536;  // words; equals BYTES_PER_CHUNK of mod.rs

__device__ __forceinline__ u64 mixed(u64 word, u64 at) {
  u64 z = word + (at + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 32) * 0xd6e8feb86659fd93ull;
  z = (z ^ z >> 32) * 0xd6e8feb86659fd93ull;
  return z ^ z >> 32;
}

__device__ __forceinline__ u64 both(const Words<16>& w, u64 at) {
  return mixed(w.word[0] | static_cast<u64>(w.word[1]) << 32, at) +
         mixed(w.word[2] | static_cast<u64>(w.word[3]) << 32, at + 1);
}

// Returns the partial hash of the range's last, incomplete 16 bytes, from word `at` on.
__device__ __forceinline__ u64 ends(const u8* x, u64 at, u64 bytes, u64 first_word) {
  u64 sum = 0;
  for (; at * 8 < bytes; ++at) {
    u64 word = 0;
    for (u64 i = at * 8; i < min(at * 8 + 8, bytes); ++i) word |= static_cast<u64>(x[i]) << i % 8 * 8;
    sum += mixed(word, first_word + at);
  }
  return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) fingerprint(const __grid_constant__ Params p) {
  // Loads the chunk (low 32 bits: index of its range, high 32 bits: index within the range), then the range's entry in
  // the table.
  const u64 chunk = load_for_warp(global<const u64>(p.chunks) + blockIdx.x);
  const u64* entry = global<const u64>(p.arrays) + 3 * static_cast<u32>(chunk);
  const u64 array = load_for_warp(entry), size = load_for_warp(entry + 1), before = load_for_warp(entry + 2);
  const u8* bytes = global<const u8>(array);
  const Words<16>* pairs = global<const Words<16>>(array);
  const u64 first = (chunk >> 32) * CHUNK, end = min(first + CHUNK, size / 8);
  constexpr u64 STEP = 2 * THREADS;
  u64 sum = 0, at = first + 2 * threadIdx.x;
  for (; at + (AHEAD - 1) * STEP + 2 <= end; at += AHEAD * STEP) {
    Words<16> words[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) words[k] = pairs[(at + k * STEP) / 2];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) sum += both(words[k], before + at + k * STEP);
  }
  for (; at + 2 <= end; at += STEP) sum += both(pairs[at / 2], before + at);
  // If the range ends within the 16 bytes from word `at` on, this thread hashes what is left of them.
  if (at < first + CHUNK && at * 8 < size) sum += ends(bytes, at, size, before);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) global<u64>(p.sums)[blockIdx.x * (THREADS / 32) + threadIdx.x / 32] = sum;
}
