// Packed sequences: which tile of which sequence a block does, and where its rows lie.
#pragma once

#include "cuh/base.cuh"

// Rows of one head in a packed tensor.
struct PackedRows {
  u64 first;   // where row 0's head begins, in elements
  u64 stride;  // from a row to the next

  __device__ __forceinline__ u64 head(int row) const { return first + row * stride; }
};

// Keys of one sequence: those of a prefix that it shares, then its own.
struct PackedKeys {
  u64 prefix, own;  // where key 0 would begin in either, in elements
  u64 stride;
  int prefix_keys;

  __device__ __forceinline__ u64 head(int key) const { return (key < prefix_keys ? prefix : own) + key * stride; }
};

// How many keys each query of one head sees.
struct CausalLimit {
  int first;  // keys that query 0 sees
  int step;   // 1, or 0 when every query sees all

  __device__ __forceinline__ int operator()(int query) const { return first + step * query; }
};

struct TokenRange {
  int first, count;
};

// The tokens whose keys come before those of a sequence. P has prefix.
template <class P>
__device__ __forceinline__ TokenRange prefix_of(const P& p, int sequence) {
  if (p.prefix == 0) return {0, 0};
  const int* const prefix = global<const int>(p.prefix) + 2 * static_cast<u64>(sequence);
  return {prefix[0], prefix[1]};
}

// A tile of a sequence.
struct Place {
  int sequence;
  int first, length;  // the sequence's first token, and how many it has
  int begin, count;   // the tile's rows within the sequence; count is at most 0 where there is no tile
};

// An upper bound on the tiles of ROWS rows of all sequences: either each has those of the longest, or none wastes more
// than one. The host's grid is this times heads.
template <int ROWS>
__device__ __forceinline__ u64 tile_slots(u64 tokens, u64 seqs, u64 max_seqlen) {
  const u64 even = seqs * ceil_div<u64>(max_seqlen, ROWS), packed = (tokens + (ROWS - 1) * seqs) / ROWS;
  return even < packed ? even : packed;
}

// The tile of slot `slot`. Slots of a sequence are neighbours.
template <int ROWS>
__device__ __forceinline__ void find_tile(const int* cu_seqlens, u32 tokens, u32 seqs, u32 max_seqlen, u64 slot,
                                          Place& place) {
  const u64 even = seqs * static_cast<u64>(ceil_div<u32>(max_seqlen, ROWS));
  u64 sequence, tile;
  if (even == tile_slots<ROWS>(tokens, seqs, max_seqlen)) {
    const u32 tiles = ceil_div<u32>(max_seqlen, ROWS);
    sequence = slot / tiles;
    tile = slot % tiles;
  } else {
    // Sequence n has the slots from (cu_seqlens[n] + (ROWS - 1) n) / ROWS on: enough, since floor(a + b) >= floor(a) +
    // floor(b). The last n that begins at or before `slot`:
    u32 low = 0, high = seqs;
    while (high - low > 1) {
      const u32 middle = (low + high) / 2;
      const u64 begin = (static_cast<u64>(cu_seqlens[middle]) + (ROWS - 1) * static_cast<u64>(middle)) / ROWS;
      if (begin <= slot) low = middle;
      else high = middle;
    }
    sequence = low;
    tile = slot - (static_cast<u64>(cu_seqlens[low]) + (ROWS - 1) * static_cast<u64>(low)) / ROWS;
  }
  place.sequence = static_cast<int>(sequence);
  place.first = cu_seqlens[sequence];
  place.length = cu_seqlens[sequence + 1] - place.first;
  place.begin = static_cast<int>(tile) * ROWS;
  place.count = min(ROWS, place.length - place.begin);
}
