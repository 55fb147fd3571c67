// dq of tiles of 128 queries with wgmma: the second part of backward_wgmma.cuh.
//
//   take turn; issue s = q k^T; issue dp = d_o v^T; pass turn
//   for each block of 128 keys, descending:
//     once s is complete: p = softmax(s)                         # while dp is computed
//     once dp is complete: ds = p (dp - delta)
//     take turn; issue dq += ds k; issue s of the next block; once dq is complete: issue dp; pass turn
//
// A warpgroup has 64 queries, with s, dp and ds as [64 queries][128 keys], ds rounded as an operand in registers.
#pragma once

#include "attention/backward_wgmma_keys.cuh"

// EARLY: 64 additions make ptxas compute the exponentials while dp is computed. The bits are the same.
template <int HEAD_DIM, bool EARLY>
struct QueryConsumer {
  using S = BackwardShared<HEAD_DIM>;
  static constexpr int STEPS = S::COLUMNS / 16;  // steps of a product over a group of columns

  const BwdParams& params;
  u32 shared;
  GradientTurns turns;
  // The thread's values of rows g = lane / 4 and g + 8 of the warp's 16 queries.
  float dq[S::WIDTH / 2], s[KEY_ROWS / 2], dp[KEY_ROWS / 2], lse[2], delta[2];
  u32 ds[KEY_ROWS / 16][4];
  SlotRing<S::KEY_SLOTS> keys;
  SlotRing<S::VALUE_SLOTS> values;

  // Computes sums = the warpgroup's rows of q or d_o times k^T or v^T. A wgmma_fence must precede the call.
  __device__ __forceinline__ void issue_product_of_heads(float (&sums)[KEY_ROWS / 2], u32 queries, u32 block) {
    const u64 a = operand_layout<S::SWIZZLE>() | operand_address(shared + queries + turns.group * S::QUERY_TILE);
    const u64 b = operand_layout<S::SWIZZLE>() | operand_address(shared + block);
    Wgmma<KEY_ROWS>::template ss_new<0, K_MAJOR, K_MAJOR>(sums, a, b);
#pragma unroll
    for (int k = 1; k < S::WIDTH / 16; ++k) {
      const int column = k % STEPS * 32;
      Wgmma<KEY_ROWS>::template ss<0, K_MAJOR, K_MAJOR>(sums, a + (k / STEPS * S::QUERY_GROUP + column) / 16,
                                                        b + (k / STEPS * S::KEY_GROUP + column) / 16, 1);
    }
    wgmma_commit();
  }
  __device__ __forceinline__ void issue_scores() { issue_product_of_heads(s, S::Q, S::KEYS + keys.slot * S::KEY_TILE); }
  __device__ __forceinline__ void issue_dp() { issue_product_of_heads(dp, S::D_O, S::VALUES + values.slot * S::KEY_TILE); }

  // dq += ds k.
  __device__ __forceinline__ void issue_gradient(int slot) {
    const u64 b = operand_layout<S::SWIZZLE>(S::KEY_GROUP) | operand_address(shared + S::KEYS + slot * S::KEY_TILE);
    keep_operands(ds);
    keep_registers(dq);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < KEY_ROWS / 16; ++k) Wgmma<S::WIDTH>::template rs<0, MN_MAJOR>(dq, ds[k], b + k * S::SWIZZLE, 1);
    wgmma_commit();
  }
  __device__ __forceinline__ void free_keys(int slot) {
    keep_operands(ds);
    keep_registers(dq);
    arrive_of_warp(shared + S::KEYS_FREE + 8 * slot);
  }

  // Computes ds of the block of keys that begins with key `first`; the products s and dp have been issued and may still
  // be running. The thread's queries are at positions `position` and `position` + 8 of a sequence with `end` keys.
  __device__ __forceinline__ void compute_block(int first, int position, int end) {
    const bool causal = params.causal != 0;
    wgmma_wait<1>();
    keep_registers(s);
    const int warpgroup_first = position - thread_again() % 128 / 32 * 16 - thread_again() % 32 / 4;
    if (first + KEY_ROWS > (causal ? min(end, warpgroup_first + 1) : end)) {
      const int before = first + 2 * (thread_again() % 4);
      const int low = (causal ? min(end, position + 1) : end) - before;
      const int high = (causal ? min(end, position + 9) : end) - before;
#pragma unroll
      for (int i = 0; i < KEY_ROWS / 2; ++i) {
        if (8 * (i / 4) + i % 2 >= (i & 2 ? high : low)) s[i] = minus_infinity();
      }
    }
#pragma unroll
    for (int i = 0; i < KEY_ROWS / 2; ++i) s[i] = exp2_approx(__fmaf_rn(s[i], params.score_factor, -lse[i / 2 % 2]));
    if constexpr (EARLY) compute_exponentials_before_wait();
    wgmma_wait<0>();
    keep_registers(dp);
    arrive_of_warp(shared + S::VALUES_FREE + 8 * values.slot);
    values.advance();
#pragma unroll
    for (int i = 0; i < KEY_ROWS / 4; ++i) {
      const float d = delta[i % 2];
      ds[i / 4][i % 4] = pack_bf16(s[2 * i] * (dp[2 * i] - d), s[2 * i + 1] * (dp[2 * i + 1] - d));
    }
  }

  // Without this, ptxas computes the exponentials after the wait for dp, where they are used. It knows that
  // exponentials are not negative, so the argument has another term.
  __device__ __forceinline__ void compute_exponentials_before_wait() const {
    float sum[4] = {params.score_factor, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < KEY_ROWS / 2; ++i) sum[i % 4] += s[i];
    compute_before_wait(sum[0] + sum[1] + (sum[2] + sum[3]), shared);
  }

  __device__ __forceinline__ void wait_for_block() const {
    mbarrier_wait(shared + S::KEYS_FULL + 8 * keys.slot, keys.parity);
    mbarrier_wait(shared + S::VALUES_FULL + 8 * values.slot, values.parity);
  }

  // Index in lse and delta of query `row` (0 to 127) of a tile, modulo 2^64: rows before the sequence's first query may
  // have a negative token number.
  __device__ __forceinline__ u64 value_of(const PositionTile& tile, int row) const {
    return static_cast<u64>(static_cast<long long>(tile.shift + tile.first + row)) * params.heads + tile.head;
  }

  __device__ __forceinline__ void run(SlotRing<S::TILES>& tiles) {
    u32 pair_parity = 0;
    for (;;) {
      mbarrier_wait(shared + S::TILE_FULL + 8 * tiles.slot, tiles.parity);
      const QueryRows queries{shared + S::TILE + 32 * tiles.slot};
      PositionTile tile;
      queries.load(tile);
      if (tile.first < 0) break;
      const int id = thread_again() % 128, row = QUERY_ROWS * turns.group + id / 32 * 16 + id % 32 / 4;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r;
        const bool is_query = at >= static_cast<int>(tile.no_query) && tile.first + at < tile.end;
        lse[r] = is_query ? global<const float>(params.lse)[value_of(tile, at)] * LOG2_E : infinity();
        delta[r] = is_query ? global<const float>(params.delta)[value_of(tile, at)] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < S::WIDTH / 2; ++i) dq[i] = 0.0f;
      const int position = tile.first + row, end = tile.end;
      int first = (tile.blocks(params.causal != 0) - 1) * KEY_ROWS;
      mbarrier_wait(shared + S::PAIR_FULL, pair_parity);
      pair_parity ^= 1;
      wait_for_block();
      turns.take();
      wgmma_fence();
      issue_scores();
      // redundant: no instruction accesses dp between the fence before the scores and these products.
      wgmma_fence();
      issue_dp();
      turns.pass();
      compute_block(first, position, end);
      while ((first -= KEY_ROWS) >= 0) {
        const int before = keys.slot;
        keys.advance();
        wait_for_block();
        turns.take();
        issue_gradient(before);
        // redundant: no instruction accesses s between the fence before the products of dq and these products.
        wgmma_fence();
        issue_scores();
        wgmma_wait<1>();
        free_keys(before);
        // redundant: no instruction accesses dp between the fence before the products of dq and these products.
        wgmma_fence();
        issue_dp();
        turns.pass();
        compute_block(first, position, end);
      }
      arrive_of_warp(shared + S::PAIR_FREE);  // the last dp has read d_o
      turns.take();
      issue_gradient(keys.slot);
      turns.pass();
      wgmma_wait<0>();
      free_keys(keys.slot);
      keys.advance();
      queries.load(tile);
      const int query = position - tile.first, no_query = static_cast<int>(tile.no_query);
      bf16* const out = global<bf16>(params.dq) + value_of(tile, query) * HEAD_DIM;
      store_gradient<HEAD_DIM, 0>(out, query >= no_query && position < end, dq, params.scale);
      store_gradient<HEAD_DIM, 1>(out + 8ull * params.heads * HEAD_DIM, query + 8 >= no_query && position + 8 < end, dq, params.scale);
      __syncwarp();
      arrive_of_warp(shared + S::TILE_FREE + 8 * tiles.slot);
      tiles.advance();
    }
  }
};

template <int HEAD_DIM, bool EARLY>
__device__ __forceinline__ void compute_query_gradients(const BwdParams& p, u32 shared, const GradientTurns& turns,
                                                        SlotRing<BackwardShared<HEAD_DIM>::TILES>& tiles) {
  QueryConsumer<HEAD_DIM, EARLY> consumer{p, shared, turns};
  consumer.run(tiles);
}
