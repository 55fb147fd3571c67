// The warp of a forward block on sm_90a that copies queries, keys and values to shared memory.
//
// The warp passes all operands through one ring of slots: for each tile the queries, then keys and values of each
// block of keys, descending: q, k, v, k, v, .... A slot holds 128 rows in groups of columns (head_copy.cuh). The queries
// of each of two warpgroups are 64 rows. With three warpgroups (head_dim 72 and 80) the queries have their own place
// beside the ring, where they stay while the tile is computed; they are copied after the first keys.
//
// A block of threads begins with tile blockIdx.x and takes the numbers of further tiles from an atomic counter in
// global memory when it is free (list scheduling). The results do not depend on which block computes a tile. The
// counter wraps: of n numbers, gridDim.x are the first ones of blocks and n - gridDim.x are drawn, and every block
// draws one more, which is no tile. So the last of n draws sets the counter to 0 for the next launch. Launches with the
// same counter must follow one another. After a launch that was aborted the counter must be set to 0.
//
// The type argument Source (packed_source.cuh or paged_attention/prefill_wgmma.cuh) knows where keys are, and copies
// them:
//
//   Params                             the kernel's parameters
//   ALWAYS_CAUSAL, is_causal(p)        whether queries see keys up to their own, in all launches and in this one
//   tiles<POSITIONS>(p)                the tiles of the launch, of POSITIONS queries
//   find<POSITIONS>(p, number, tile)   finds a tile, and what the source knows about the keys of its sequence
//   copy(p, tile, head, first, values, slot)
//                                      copies keys or values first .. first + 128 of the tile's sequence; all lanes of
//                                      the warp call it
//   write_padding(p)                   writes outputs that belong to no tile; all threads call it first
//
// Tensor copies load the rows, except the values of a block in which the sequence ends. The warp copies these with
// cp.async: a tensor copy would load rows of other tokens after them, and a weight of 0 times a value that is not
// finite is NaN. (Scores of keys after the end are masked, whatever the keys hold.)
#pragma once

#include "attention/head_copy.cuh"
#include "attention/position_tiles.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/tma.cuh"

// Shared memory of a block, in bytes from its start: the ring, the queries of three warpgroups, the totals over the
// segments of each warpgroup (f32), the state of their rows, mbarriers, and descriptions of the next tiles.
template <int HEAD_DIM>
struct ForwardShared {
  static constexpr int WIDTH = HeadColumns<HEAD_DIM>::WIDTH, COLUMNS = HeadColumns<HEAD_DIM>::COLUMNS;
  static constexpr int SWIZZLE = HeadColumns<HEAD_DIM>::SWIZZLE;
  static constexpr int CONSUMERS = WIDTH == 80 ? 3 : 2;  // warpgroups that compute, 64 queries each
  static constexpr int POSITIONS = 64 * CONSUMERS;
  static constexpr int GROUP = ROW_BLOCK_KEYS * SWIZZLE;  // a group of columns of a slot
  static constexpr int SLOT = WIDTH / COLUMNS * GROUP;
  static constexpr int SLOTS = HEAD_DIM == 128 ? 5 : 6;
  static constexpr int QUERIES = 64 * WIDTH * 2;         // of a warpgroup
  static constexpr bool KEEPS_QUERIES = CONSUMERS == 3;  // in shared memory beside the ring
  static constexpr int TILES = 4;                        // descriptions
  static constexpr int QUERY = SLOTS * SLOT;
  static constexpr int TOTALS = QUERY + (KEEPS_QUERIES ? CONSUMERS * QUERIES : 0), TOTAL = 64 * WIDTH * 4;
  static constexpr int STATES = TOTALS + CONSUMERS * TOTAL, STATE = 1024;
  static constexpr int FULL = STATES + CONSUMERS * STATE, FREE = FULL + 8 * SLOTS;
  static constexpr int TILE_FULL = FREE + 8 * SLOTS, TILE_FREE = TILE_FULL + 8 * TILES;
  static constexpr int TILE = TILE_FREE + 8 * TILES;
  static constexpr int QUERY_FULL = TILE + 32 * TILES;
  static constexpr int QUERY_FREE = QUERY_FULL + (KEEPS_QUERIES ? 8 * CONSUMERS : 0);
  static constexpr int BYTES = QUERY_FREE + (KEEPS_QUERIES ? 8 * CONSUMERS : 0);
  static_assert(TILE % 16 == 0 && BYTES <= 227 * 1024, "shared memory of a block");

  // Returns the offset of a 16-byte chunk of a row, in a tile with groups of GROUP_BYTES.
  template <int GROUP_BYTES>
  __device__ static __forceinline__ u32 offset(int row, int chunk) {
    const int in_group = chunk % (SWIZZLE / 16), swizzled = in_group ^ (SWIZZLE == 128 ? row & 7 : row / 4 & 1);
    return chunk / (SWIZZLE / 16) * GROUP_BYTES + row * SWIZZLE + swizzled * 16;
  }
};

// Copies rows first .. first + 128 of a head, whose row r begins at element rows.head(r) of the tensor; rows from `end`
// on become zeros, and columns from HEAD_DIM on. All lanes of the warp call the function, and the rows are then visible
// to wgmma.
template <int HEAD_DIM, class Rows>
__device__ __forceinline__ void copy_block_by_warp(u32 slot, const bf16* tensor, const Rows& rows, int first, int end) {
  constexpr int CHUNKS = HeadColumns<HEAD_DIM>::WIDTH / 8;
#pragma unroll 1
  for (int at = thread_again() % 32; at < ROW_BLOCK_KEYS * CHUNKS; at += 32) {
    const int row = at / CHUNKS, chunk = at % CHUNKS;
    const bool valid = first + row < end && chunk < HEAD_DIM / 8;
    const bf16* const source = tensor + (valid ? rows.head(first + row) + chunk * 8 : 0);
    using S = ForwardShared<HEAD_DIM>;
    cp_async_16(slot + S::template offset<S::GROUP>(row, chunk), source, valid ? 16 : 0);
  }
  cp_async_commit();
  cp_async_wait<0>();
  fence_async_proxy();
  __syncwarp();
}

// The slot of the ring to which a block of keys or values is copied.
struct KeySlot {
  u32 address, full;  // its shared memory, and the mbarrier of which the copy is one arrival
  bool leads;         // whether this lane starts tensor copies
};

// Copies the queries, keys and values of all tiles of this block of threads to the ring. All lanes of one warp call it.
template <int HEAD_DIM, class Source>
__device__ __forceinline__ void produce_tiles(const typename Source::Params& p, u32 shared) {
  using S = ForwardShared<HEAD_DIM>;
  const bool leads = threadIdx.x % 32 == 0;
  RingPosition<S::SLOTS> ring;
  RingPosition<S::TILES> next;
  if (leads) prefetch_tensor_map(&p.q_map), prefetch_tensor_map(&p.k_map), prefetch_tensor_map(&p.v_map);

  const auto wait_for_slot = [&]() { mbarrier_wait(shared + S::FREE + 8 * ring.slot, ring.parity ^ 1); };

  u32 number = blockIdx.x;
  // Without a counter, the block takes every gridDim.x-th tile. After a change here or in PositionTiles, ptxas may
  // serialise the products of head_dim 128 (C7511): it does with atomicAdd, and if lane 0 draws into a new variable.
  const auto next_number = [&]() {
    if (leads && p.tile_counter != 0) {
      asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;"
                   : "=r"(number)
                   : "l"(p.tile_counter), "r"(Source::template tiles<S::POSITIONS>(p).count(p) - 1)
                   : "memory");
    }
    number = gridDim.x + __shfl_sync(0xffffffffu, number, 0);
  };
#pragma unroll 1
  for (;;) {
    PositionTile tile;
    Source source;
    bool found = false;
#pragma unroll 1
    while (number < Source::template tiles<S::POSITIONS>(p).count(p) &&
           !(found = source.template find<S::POSITIONS>(p, number, tile))) {
      next_number();
    }
    // A tile takes at least three slots of the ring, or waits for the place of the queries of the tile before.
    // redundant: these waits imply this one.
    mbarrier_wait(shared + S::TILE_FREE + 8 * next.slot, next.parity ^ 1);
    if (leads) {
      const u32 at = shared + S::TILE + 32 * next.slot;
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n\tst.shared.b32 [%0 + 16], %5;" ::"r"(at), "r"(tile.shift),
                   "r"(tile.end), "r"(found ? tile.first : -1), "r"(tile.head), "r"(tile.no_query)
                   : "memory");
      mbarrier_arrive(shared + S::TILE_FULL + 8 * next.slot);
    }
    next.template advance<1>();
    if (!found) break;

    const int blocks = tile.blocks<S::POSITIONS>(Source::is_causal(p)), kv_head = tile.head / (p.heads / p.kv_heads);
    if constexpr (!S::KEEPS_QUERIES) {
      wait_for_slot();
      if (leads) {
        const u32 full = shared + S::FULL + 8 * ring.slot, slot = shared + ring.slot * S::SLOT;
        mbarrier_arrive_expecting(full, S::SLOT);
#pragma unroll 1
        for (int w = 0; w < S::CONSUMERS; ++w) {
          const int token = tile.shift + tile.first + 64 * w;
          copy_head<HEAD_DIM, 64>(slot + w * S::QUERIES, &p.q_map, full, token, static_cast<int>(tile.head));
        }
      }
      ring.template advance<1>();
    }
    // The copies have descending numbers i. For block n of 128 keys, the copy of the keys has i = 2 n + 1 and the
    // copy of the values i = 2 n, so keys come before values.
#pragma unroll 1
    for (int i = 2 * blocks - 1; i >= 0; --i) {
      wait_for_slot();
      const KeySlot slot = {shared + ring.slot * S::SLOT, shared + S::FULL + 8 * ring.slot, leads};
      source.template copy<HEAD_DIM>(p, tile, kv_head, i / 2 * ROW_BLOCK_KEYS, i % 2 == 0, slot);
      ring.template advance<1>();
      if (S::KEEPS_QUERIES && i == 2 * blocks - 1) {
        // Each tile is one phase of these mbarriers, so the number of the next description tells the parity.
        static_assert(S::TILES % 2 == 0, "parity of a tile");
#pragma unroll 1
        for (int w = 0; w < S::CONSUMERS; ++w) {
          mbarrier_wait(shared + S::QUERY_FREE + 8 * w, next.slot & 1);
          if (leads) {
            const u32 full = shared + S::QUERY_FULL + 8 * w, to = shared + S::QUERY + w * S::QUERIES;
            mbarrier_arrive_expecting(full, S::QUERIES);
            const int token = tile.shift + tile.first + 64 * w;
            copy_head<HEAD_DIM, 64>(to, &p.q_map, full, token, static_cast<int>(tile.head));
          }
        }
      }
    }
    next_number();
  }
}
