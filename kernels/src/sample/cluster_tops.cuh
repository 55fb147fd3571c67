// The most likely tokens of a row, which the blocks of a cluster collect in the shared memory of the first block.
#pragma once

#if __CUDA_ARCH__ >= 900

#include "cuh/base.cuh"
#include "cuh/cluster.cuh"
#include "cuh/warp.cuh"
#include "sample/cluster_row.cuh"
#include "sample/cluster_select.cuh"
#include "sample/row.cuh"

namespace in_cluster {

// Copies the n most likely tokens to the shared memory of block 0, in any order; they can be read after the next
// cluster barrier. `largest` is ordered(the largest logit).
__device__ __forceinline__ void collect_tops(const Run& run, Shared& s, Rounds& rounds, u32 rank, int n, u32 largest) {
  const u32 least = bound_of(s, n, [&](int i) { return static_cast<u32>(s.logit[i] >> 32); });
  const Reached nth = select<One>(LogitKeys{run}, s, rounds, n, least, largest, true);
  // Two counts in one number: tokens above the n-th in the upper half, tokens equal to the n-th in the lower half.
  auto counts = [&](float logit) {
    const u32 key = ordered(logit);
    return static_cast<u64>(key > nth.key) << 32 | static_cast<u64>(key == nth.key);
  };
  u64 own = 0;
  run.values_from(LogitKeys::floor_of(nth.key), [&](float logit) { own += counts(logit); });
  own = warp_sum(own);
  const u32 number = rank * WARPS + warp();
  give_to_all(s.top_counts[number], own);
  cluster_barrier();
  u64 before = 0;
#pragma unroll
  for (int j = 0; j < RUNS / 32; ++j) {
    const u32 other = lane() + 32 * j;
    before += other < number ? s.top_counts[other] : 0;
  }
  before = warp_sum(before);
  if (own == 0) return;
  for (int tile = run.begin; tile < run.end; tile += TILE) {
    // Values beyond the end of the row are -inf, so they are never among the first n tokens.
    const int id = tile + lane() * 4;
    float logit[4];
    run.load_tile(tile, minus_infinity(), logit);
    u64 four = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) four += counts(logit[j]);
    const u64 upto = before + warp_scan(four);
    u64 next = upto - four;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const u64 one = counts(logit[j]);
      // Tokens above the n-th come first, in the order of ids, then tokens equal to the n-th.
      const u64 place = one >> 32 ? next >> 32 : nth.above + static_cast<u32>(next);
      next += one;
      if (one != 0 && place < static_cast<u64>(n)) {
        store_of_block(shared_of_block(&s.top_logit[place], 0), logit[j]);
        store_of_block(shared_of_block(&s.top_id[place], 0), id + j);
      }
    }
    before = __shfl_sync(ALL, upto, 31);
  }
}

}  // namespace in_cluster

#endif
