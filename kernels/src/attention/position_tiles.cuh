// Tiles of 128 or 192 queries for the forward pass and prefill on sm_90a, and the order in which blocks of threads take
// them.
//
// A tile consists of positions, which count the keys of a sequence from its first key. If a sequence has n earlier
// keys (of a shared prefix, or of earlier chunks in the KV cache), query i is at position n + i. With causal
// attention it sees the keys 0 .. n + i. Tiles begin at multiples of their size, so a causal tile of 128 positions has
// one block of keys on its diagonal, whatever n is. The first tile of a sequence may begin with earlier positions. They
// are not queries of this launch, and their results are not stored.
#pragma once

#include "attention/row_state.cuh"

constexpr int TILE_POSITIONS = ROW_BLOCK_KEYS;  // of a tile, except in the forward pass with head_dim 80

struct PositionTile {
  int shift;     // number of the token at position 0, if the sequence's own tokens began there; may be negative
  int end;       // number of keys of the sequence, with the earlier ones
  int first;     // first position; negative: no more tiles
  u32 head;      // query head
  u32 no_query;  // number of positions at the start of the tile that are no queries

  // Number of blocks of keys that the queries of this tile of POSITIONS positions see.
  template <int POSITIONS = TILE_POSITIONS>
  __device__ __forceinline__ int blocks(bool causal) const {
    // A special case of the next line, with which alone ptxas serialises the products of prefill with head_dim 128
    // (C7511).
    if (causal && POSITIONS == ROW_BLOCK_KEYS) return first / ROW_BLOCK_KEYS + 1;
    return ceil_div(causal ? min(end, first + POSITIONS) : end, ROW_BLOCK_KEYS);
  }
};

// The tiles of POSITIONS positions of all sequences and heads. There are two ways to number tiles; in both, some
// numbers have no tile. (1) Every sequence has as many numbers as the longest sequence has tiles. The last tiles of all
// sequences, which have the most keys, come first. (2) There are as many numbers as tiles would be needed for all
// tokens packed without gaps, plus one for an incomplete tile of each sequence (two if sequences have earlier
// positions). A binary search finds the sequence of a tile. The way with fewer numbers is used, because a block of
// threads that draws a number without a tile has to draw again. The host's grid needs only the number of tiles
// (plan.rs).
//
// The heads are divided into sections whose keys and values stay in L2 (`section_heads` of plan.rs); in training,
// normally all heads are one section. Within a section, heads are the fastest index, and tiles of a sequence come in
// descending order, so long tiles of all heads come first and the blocks of threads end nearly together.
template <int POSITIONS>
struct PositionTiles {
  u32 per_sequence;  // way 1: tiles of a sequence; way 2: 0
  u32 per_head;
  u32 padding;  // of a sequence, in tokens, in way 2

  // max_queries: the largest number of queries of a sequence; has_earlier: sequences may have keys before their first
  // query.
  template <class P>
  __device__ __forceinline__ PositionTiles(const P& p, u32 max_queries, bool has_earlier) {
    padding = has_earlier ? 2 * (POSITIONS - 1) : POSITIONS - 1;
    const u64 longest = ceil_div<u32>(max_queries, POSITIONS) + (has_earlier ? 1 : 0);
    const u64 even = p.seqs * longest, packed = (p.tokens + static_cast<u64>(padding) * p.seqs) / POSITIONS;
    per_sequence = even <= packed ? static_cast<u32>(longest) : 0;
    per_head = static_cast<u32>(even <= packed ? even : packed);
  }

  // Returns how many numbers there are.
  template <class P>
  __device__ __forceinline__ u32 count(const P& p) const {
    return per_head * p.heads;
  }

  // Finds the tile with this number. earlier(n, queries) returns the number of earlier positions of sequence n, which
  // has this many queries. Returns false if no tile has the number.
  template <class P, class Earlier>
  __device__ __forceinline__ bool find(const P& p, u32 number, PositionTile& tile, const Earlier& earlier) const {
    const int* const cu_seqlens = global<const int>(p.cu_seqlens);
    const u32 group = p.section_heads, per_section = per_head * group, in_section = number % per_section;
    u32 sequence, index;
    tile.head = number / per_section * group + in_section % group;
    if (per_sequence != 0) {
      sequence = in_section / group % p.seqs;
      index = per_sequence - 1 - in_section / group / p.seqs;
    } else {
      const u32 slot = per_head - 1 - in_section / group;
      // The first slot of sequence n is (cu_seqlens[n] + padding n) / POSITIONS, rounded down.
      const auto first_slot = [&](u32 n) {
        return static_cast<u32>((cu_seqlens[n] + static_cast<u64>(padding) * n) / POSITIONS);
      };
      u32 low = 0, high = p.seqs;
      while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (first_slot(middle) <= slot) low = middle;
        else high = middle;
      }
      sequence = low;
      index = slot - first_slot(low);
    }
    const int begin = cu_seqlens[sequence], length = cu_seqlens[sequence + 1] - begin;
    const int before = earlier(static_cast<int>(sequence), length);
    tile.shift = begin - before;
    tile.end = before + length;
    tile.first = (before / POSITIONS + static_cast<int>(index)) * POSITIONS;
    tile.no_query = static_cast<u32>(max(0, before - tile.first));
    return tile.first < tile.end && length > 0;
  }
};
