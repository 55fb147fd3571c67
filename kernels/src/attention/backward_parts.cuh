// Parts of the tiles of keys in the backward pass on sm_90a.
//
// The work of a tile of keys grows with the length of the sequence and with the number of query heads of a key head. If
// a sequence has few tiles, one block of threads for each tile would leave many multiprocessors idle at the end. So the
// heads of the group are divided into parts, each with its own block of threads:
//
//   each part: dk and dv of its heads, in f32, to the workspace; count the arrival
//   the part that arrives last: dk and dv = part 0 + part 1 + ...; round and store
//
// Each warp has 16 keys, and does this for them without the other warps. The order of the sums is fixed, whichever part
// comes last.
#pragma once

#include "attention/sequences.cuh"

constexpr int KEY_ROWS = 128;  // keys of a tile

// A part of the work of a tile of keys: some of the query heads of the key head's group. Parts have numbers 0, 1, ...,
// of which some have no part; the numbers of the tiles of queries follow. From the slowest index to the fastest,
// numbers count tiles, parts of a tile, and key heads.
struct KeyPart {
  SequenceTile range;
  int kv_head;
  int part, parts;  // index of this part, and number of parts of the tile

  __device__ static __forceinline__ u32 numbers(const BwdParams& p) {
    return static_cast<u32>(tile_slots<KEY_ROWS>(p.tokens, p.seqs, p.max_seqlen)) * p.max_parts * p.kv_heads;
  }

  // Returns into how many parts each tile of a sequence of `tiles` tiles is divided: `KeyParts::count` of parts.rs. The
  // number depends on the sequence alone, so that the sums of its gradients do not depend on the batch.
  __device__ static __forceinline__ u32 count(const BwdParams& p, u32 tiles) {
    u32 parts = 1;
    // Without divisions, for which the warp has too few registers.
#pragma unroll 1
    while (parts < p.max_parts && parts * tiles * p.kv_heads < p.undivided_tiles &&
           (parts + 1) * p.part_visits * p.kv_heads <= (tiles + 1) * p.heads) {
      ++parts;
    }
    return parts;
  }

  // Finds the part with this number. Returns false if no part has the number.
  __device__ __forceinline__ bool find(const BwdParams& p, u32 number) {
    const u32 of_head = number / p.kv_heads;
    kv_head = static_cast<int>(number % p.kv_heads);
    part = static_cast<int>(of_head % p.max_parts);
    find_tile<KEY_ROWS>(global<const int>(p.cu_seqlens), p.tokens, p.seqs, p.max_seqlen, of_head / p.max_parts, range);
    parts = static_cast<int>(count(p, ceil_div<u32>(range.length, KEY_ROWS)));
    // One exit: with two, ptxas 12.9 spills registers.
    return range.count > 0 && part < parts;
  }

  // Returns the first query head of part `n`, counted from the first of the group. The first parts have the most heads.
  __device__ __forceinline__ int first_head(const BwdParams& p, int n) const {
    return ceil_div<int>(n * static_cast<int>(p.heads / p.kv_heads), parts);
  }
};

// The workspace has the ticket counter, in 16 bytes. If tiles have several parts, two arrays follow: arrivals, u32
// [tokens, kv_heads], of which a warp of a tile uses the element of its first key; and the sums of the parts, f32
// [parts, tokens, kv_heads, 2 (dk, dv), head_dim]. `KeyParts::workspace_bytes` of parts.rs is its size.
constexpr u64 ARRIVALS = 16;
__device__ __forceinline__ u64 arrivals(const BwdParams& p) { return static_cast<u64>(p.tokens) * p.kv_heads; }
__device__ __forceinline__ u64 part_sums(const BwdParams& p) {
  return p.workspace + ARRIVALS + ceil_div<u64>(arrivals(p), 4) * 16;
}

// Sets the workspace's counters to 0. All threads of a grid of at least `arrivals` threads call the function.
__device__ __forceinline__ void clear_counters(const BwdParams& p) {
  const u64 thread = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (thread == 0) *global<u32>(p.workspace) = 0;
  if (p.max_parts > 1 && thread < arrivals(p)) global<u32>(p.workspace + ARRIVALS)[thread] = 0;
}

// Counts the arrival of a part at the warp's keys, of which `token` is the first. Returns how many parts arrived
// before. The addition is acquire-release: what these parts stored is visible after it.
__device__ __forceinline__ u32 count_arrival(const BwdParams& p, int token, int kv_head) {
  u32* const counter = global<u32>(p.workspace + ARRIVALS) + static_cast<u64>(token) * p.kv_heads + kv_head;
  u32 before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}
