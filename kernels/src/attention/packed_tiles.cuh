// The tiles of queries of packed sequences, for the forward and the backward pass on sm_90a.
#pragma once

#include "attention/position_tiles.cuh"
#include "attention/sequences.cuh"

// Numbers the tiles of packed sequences (PositionTiles). The earlier positions of a sequence are the keys of its
// prefix.
template <int POSITIONS = TILE_POSITIONS, class P>
__device__ __forceinline__ PositionTiles<POSITIONS> packed_tiles(const P& p) {
  return {p, p.max_seqlen, p.prefix != 0};
}

// Finds a tile of packed sequences, and the prefix of its sequence. Returns false if no tile has the number.
template <int POSITIONS = TILE_POSITIONS, class P>
__device__ __forceinline__ bool find_packed(const P& p, u32 number, PositionTile& tile, TokenRange& prefix) {
  return packed_tiles<POSITIONS>(p).find(p, number, tile, [&](int sequence, int) {
    prefix = prefix_of(p, sequence);
    return prefix.count;
  });
}
