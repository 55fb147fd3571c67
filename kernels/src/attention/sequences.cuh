// Packed sequences: which tile of which sequence a block of threads processes, and the addresses of the tile's rows.
#pragma once

#include "cuh/base.cuh"

// The rows of a tile in a packed tensor, for one head.
struct PackedRows {
  u64 first;   // index of the first element of row 0's head
  u64 stride;  // elements from a row to the next

  __device__ __forceinline__ u64 head(int row) const { return first + row * stride; }
};

// The keys of one sequence and key head: first the keys of its shared prefix, then its own.
struct PackedKeys {
  // Key r begins at element prefix + r * stride if it belongs to the prefix, else at element own + r * stride.
  u64 prefix, own;
  u64 stride;
  int prefix_keys;

  __device__ __forceinline__ u64 head(int key) const { return (key < prefix_keys ? prefix : own) + key * stride; }
};

// Computes how many keys each query of a tile sees.
struct CausalLimit {
  int first;  // number of keys that query 0 sees
  int step;   // 1 if causal; 0 if every query sees all keys

  __device__ __forceinline__ int operator()(int query) const { return first + step * query; }
};

struct TokenRange {
  int first, count;
};

// Returns the range of tokens that is a sequence's prefix; it is empty if the sequence has none.
template <class P>
__device__ __forceinline__ TokenRange prefix_of(const P& p, int sequence) {
  if (p.prefix == 0) return {0, 0};
  const int* const prefix = global<const int>(p.prefix) + 2 * static_cast<u64>(sequence);
  return {prefix[0], prefix[1]};
}

// A tile of consecutive tokens of one sequence.
struct SequenceTile {
  int sequence;
  int first, length;  // first token and number of tokens of the sequence
  int begin, count;   // the tile's first token within the sequence, and number of tokens; count <= 0: no such tile
};

// Returns an upper bound on the number of tiles of ROWS rows, the smaller of two numbers: (a) all sequences have as
// many tiles as the longest one; (b) all tokens are packed without gaps, and there is one additional incomplete tile
// per sequence. The host's grid has this many blocks per head (`slots` in plan.rs).
template <int ROWS>
__device__ __forceinline__ u64 tile_slots(u64 tokens, u64 seqs, u64 max_seqlen) {
  const u64 even = seqs * ceil_div<u64>(max_seqlen, ROWS), packed = (tokens + (ROWS - 1) * seqs) / ROWS;
  return even < packed ? even : packed;
}

// Finds the tile with number `slot`. The tiles of a sequence have consecutive numbers.
template <int ROWS>
__device__ __forceinline__ void find_tile(const int* cu_seqlens, u32 tokens, u32 seqs, u32 max_seqlen, u64 slot,
                                          SequenceTile& range) {
  const u64 even = seqs * static_cast<u64>(ceil_div<u32>(max_seqlen, ROWS));
  u64 sequence, tile;
  if (even == tile_slots<ROWS>(tokens, seqs, max_seqlen)) {
    const u32 tiles = ceil_div<u32>(max_seqlen, ROWS);
    sequence = slot / tiles;
    tile = slot % tiles;
  } else {
    // The first slot of sequence n is (cu_seqlens[n] + (ROWS - 1) n) / ROWS, rounded down. So each sequence has at
    // least as many slots as tiles. The binary search finds the last sequence whose first slot is not after `slot`.
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
  range.sequence = static_cast<int>(sequence);
  range.first = cu_seqlens[sequence];
  range.length = cu_seqlens[sequence + 1] - range.first;
  range.begin = static_cast<int>(tile) * ROWS;
  range.count = min(ROWS, range.length - range.begin);
}
