// Gradients on sm_90a for head_dim 64, 72, 80 and 128 with wgmma: blocks of threads with one warpgroup that copies
// (backward_producer.cuh) and two that compute.
//
//   first part, tiles of 128 keys of a key head, 64 of each warpgroup (backward_wgmma_keys.cuh), of sequences with few
//   tiles divided by heads into parts (backward_parts.cuh):
//     for each visit (64 queries of a head that see some of the keys, in the order of visits.cuh):
//       s = k q^T; dp = v d_o^T; p = 2^(s * factor - lse * log2 e); dv += p d_o; ds = p (dp - delta); dk += ds q
//   second part, tiles of 128 queries of a head, 64 of each warpgroup (backward_wgmma_queries.cuh):
//     for each block of 128 keys, descending:
//       s = q k^T; dp = d_o v^T; ds = p (dp - delta); dq += ds k
//
// The two parts of the kernel compute seven products per pair of tiles; one pass would need five. In return, no block
// waits for the sums of another block: blocks may run in any order, dq needs no workspace, and prefixes need no special
// code. The bits of a row depend only on its own sequence (dk and dv of a prefix: on the sequences that see it).
//
// Order of sums. dk and dv: for each part of a tile one sum over sequences ascending, query tiles descending, heads of
// the part ascending, 16 queries at a time, ascending; then the sums of the parts, ascending. dq: one sum over blocks
// of 128 keys descending, 16 keys at a time, ascending. Blocks are counted from the first key of the prefix, if there
// is one.
//
// Grid. Numbers of tiles count the parts of tiles of keys first, from those with the most visits on, then the tiles of
// queries. Each block takes the next tile number from an atomic counter (a ticket) until no tile is left. So short
// tiles of queries fill the time that the blocks with the longest tiles of keys need. The results do not depend on
// which block takes a tile.
//
// The two warpgroups issue their wgmma products in turns (named barriers 1 and 2), so that the other arithmetic of
// one warpgroup overlaps the products of the other warpgroup.
//
// ptxas: if a product is in flight across a loop's back edge, ptxas serialises the products (C7512, C7514). So each
// loop begins where no product is in flight. A new accumulator must be an output of its first product (ss_new);
// otherwise its old value stays live.
#pragma once

#include "attention/backward_wgmma_keys.cuh"
#include "attention/backward_wgmma_queries.cuh"

constexpr int BACKWARD_THREADS = 128 * (GRADIENT_GROUPS + 1);

// EARLY: see QueryConsumer.
template <int HEAD_DIM, bool EARLY = false>
__device__ __forceinline__ void backward_wgmma(const BwdParams& p) {
  using S = BackwardShared<HEAD_DIM>;
  extern __shared__ __align__(1024) char backward_memory[];
  const u32 shared = shared_address(backward_memory);
  if (threadIdx.x == 0) {
    constexpr int WARPS = 4 * GRADIENT_GROUPS;
    for (int i = 0; i < S::TILES; ++i) {
      mbarrier_init(shared + S::TILE_FULL + 8 * i, 1);
      mbarrier_init(shared + S::TILE_FREE + 8 * i, WARPS + 1);  // and warp 1
    }
    for (int i = 0; i < S::VISITS; ++i) {
      mbarrier_init(shared + S::VISIT_LANDED + 8 * i, 1);
      mbarrier_init(shared + S::VISIT_FULL + 8 * i, 2);  // warps 0 and 1
      mbarrier_init(shared + S::VISIT_FREE + 8 * i, WARPS);
    }
    mbarrier_init(shared + S::OWN_FULL, 1);
    mbarrier_init(shared + S::OWN_FREE, WARPS);
    mbarrier_init(shared + S::PAIR_FULL, 1);
    mbarrier_init(shared + S::PAIR_FREE, WARPS);
    for (int i = 0; i < S::KEY_SLOTS; ++i) {
      mbarrier_init(shared + S::KEYS_LANDED + 8 * i, 1);
      mbarrier_init(shared + S::KEYS_FULL + 8 * i, 1);
      mbarrier_init(shared + S::KEYS_FREE + 8 * i, WARPS);
    }
    for (int i = 0; i < S::VALUE_SLOTS; ++i) {
      mbarrier_init(shared + S::VALUES_LANDED + 8 * i, 1);
      mbarrier_init(shared + S::VALUES_FULL + 8 * i, 1);
      mbarrier_init(shared + S::VALUES_FREE + 8 * i, WARPS);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  SlotRing<S::TILES> tiles;
  if (group == 0) {
    free_registers_down_to<24>();
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    if (warp == 0) {
      const u32 number = copy_visits<HEAD_DIM>(p, shared, tiles);
      copy_blocks<HEAD_DIM>(p, shared, tiles, number);
    } else if (warp == 1) {
      complete_visits<HEAD_DIM>(p, shared, tiles);
      complete_blocks<HEAD_DIM>(p, shared, tiles);
    }
  } else {
    take_registers_up_to<240>();
    const GradientTurns turns{group - 1};
    turns.start();
    compute_key_gradients<HEAD_DIM>(p, shared, turns, tiles);
    compute_query_gradients<HEAD_DIM, EARLY>(p, shared, turns, tiles);
  }
}
