// dk and dv of tiles of 128 keys with wgmma: the first part of backward_wgmma.cuh.
//
//   take turn; issue s = k q^T; issue dp = v d_o^T; pass turn
//   for each visit:
//     once s is complete: p = softmax(s)                     # while dp is computed
//     issue dv += p d_o
//     once dp is complete: ds = p (dp - delta)               # while dv is computed
//     once dv is complete: take turn; issue dk += ds q; issue s and dp of the next visit; pass turn
//
// A warpgroup has s, dp and ds as [64 keys][64 queries]. So p and ds, rounded, are operands in registers; q and d_o are
// read from the slot of the visit, once as they are and once transposed.
#pragma once

#include "attention/backward_producer.cuh"
#include "cuh/exp2.cuh"
#include "cuh/math.cuh"
#include "cuh/warp.cuh"

// The order in which the two warpgroups issue wgmma products: they take turns.
struct GradientTurns {
  int group;  // number of this warpgroup

  // Gives the first turn to warpgroup 0.
  __device__ __forceinline__ void start() const {
    if (group == GRADIENT_GROUPS - 1) pass();
  }
  __device__ __forceinline__ void take() const { named_barrier_sync(1 + group, 128 * GRADIENT_GROUPS); }
  __device__ __forceinline__ void pass() const { named_barrier_arrive(2 - group, 128 * GRADIENT_GROUPS); }
};

// Forces the compiler to keep the operands x in their registers up to this point (see keep_registers).
template <int ROWS, int N>
__device__ __forceinline__ void keep_operands(u32 (&x)[ROWS][N]) {
#pragma unroll
  for (int i = 0; i < ROWS; ++i) keep_registers(x[i]);
}

// Writes half of a warp's 16 rows of HEAD_DIM sums: the rows g = lane / 4 with R 0, the rows g + 8 with R 1. Multiplies
// the sums by `factor`, rounds them to bf16 and writes them to `row`, if the row exists. All lanes of the warp call
// this function.
template <int HEAD_DIM, int R, int N>
__device__ __forceinline__ void store_gradient(bf16* row, bool exists, const float (&sums)[N], float factor) {
  const int quad = thread_again() % 4;
#pragma unroll
  for (int g = 0; g + 4 <= HEAD_DIM / 8; g += 4) {
    u32 v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int i = 4 * (g + k) + 2 * R;
      v[k] = pack_bf16(sums[i] * factor, sums[i + 1] * factor);
    }
    // Transposes the 4 x 4 words of four lanes: lane n gets the four words of columns 8 (g + n) .. 8 (g + n) + 8.
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      const u32 x = shuffle_xor(quad & 1 ? v[k] : v[k + 1], 1);
      if (quad & 1) v[k] = x;
      else v[k + 1] = x;
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const u32 x = shuffle_xor(quad & 2 ? v[k] : v[k + 2], 2);
      if (quad & 2) v[k] = x;
      else v[k + 2] = x;
    }
    if (exists) *reinterpret_cast<Words<16>*>(row + 8 * (g + quad)) = Words<16>{{v[0], v[1], v[2], v[3]}};
  }
#pragma unroll
  for (int g = HEAD_DIM / 32 * 4; g < HEAD_DIM / 8; ++g) {
    const int i = 4 * g + 2 * R;
    if (exists) *reinterpret_cast<u32*>(row + 8 * g + 2 * quad) = pack_bf16(sums[i] * factor, sums[i + 1] * factor);
  }
}

template <int HEAD_DIM>
struct KeyConsumer {
  using S = BackwardShared<HEAD_DIM>;
  static constexpr int STEPS = S::COLUMNS / 16;  // steps of a product over a group of columns

  const BwdParams& params;
  u32 shared;
  GradientTurns turns;
  // The thread's values of rows g = lane / 4 and g + 8 of the warp's 16 keys.
  float dk[S::WIDTH / 2], dv[S::WIDTH / 2], s[QUERY_ROWS / 2], dp[QUERY_ROWS / 2];
  u32 p[QUERY_ROWS / 16][4], ds[QUERY_ROWS / 16][4];
  SlotRing<S::VISITS> visit;

  // Computes sums = the warpgroup's rows of a tile of keys or values times q^T or d_o^T. A wgmma_fence must precede the
  // call.
  __device__ __forceinline__ void issue_product_of_heads(float (&sums)[QUERY_ROWS / 2], u32 keys, u32 queries) {
    const u64 a = operand_layout<S::SWIZZLE>() | operand_address(shared + keys + turns.group * (QUERY_ROWS * S::SWIZZLE));
    const u64 b = operand_layout<S::SWIZZLE>() | operand_address(shared + queries + visit.slot * S::KEY_TILE);
    Wgmma<QUERY_ROWS>::template ss_new<0, K_MAJOR, K_MAJOR>(sums, a, b);
#pragma unroll
    for (int k = 1; k < S::WIDTH / 16; ++k) {
      const int column = k % STEPS * 32;
      Wgmma<QUERY_ROWS>::template ss<0, K_MAJOR, K_MAJOR>(sums, a + (k / STEPS * S::KEY_GROUP + column) / 16,
                                                          b + (k / STEPS * S::QUERY_GROUP + column) / 16, 1);
    }
    wgmma_commit();
  }
  __device__ __forceinline__ void issue_scores_and_dp() {
    issue_product_of_heads(s, S::K, S::VISIT);
    // redundant: no instruction accesses dp between the fence before the scores and these products.
    wgmma_fence();
    issue_product_of_heads(dp, S::V, S::VISIT + S::QUERY_TILE);
  }

  // gradient += a times q or d_o.
  __device__ __forceinline__ void issue_gradient(float (&gradient)[S::WIDTH / 2], u32 (&a)[QUERY_ROWS / 16][4], u32 queries,
                                                 int slot) {
    const u64 b = operand_layout<S::SWIZZLE>(S::QUERY_GROUP) | operand_address(shared + queries + slot * S::KEY_TILE);
    keep_operands(a);
    keep_registers(gradient);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < QUERY_ROWS / 16; ++k) Wgmma<S::WIDTH>::template rs<0, MN_MAJOR>(gradient, a[k], b + k * S::SWIZZLE, 1);
    wgmma_commit();
  }

  // Computes p = 2^(s * factor - lse * log2 e); p is 0 where the query does not see the key.
  __device__ __forceinline__ void softmax() {
    int seen, begin, end, unused;
    load_words(shared + S::SEEN + 16 * visit.slot, seen, begin, end, unused);
    if (seen + QUERY_ROWS * (turns.group + 1) > 0 || begin > 0 || end < KEY_ROWS) {
      const int id = thread_again() % 128, key = QUERY_ROWS * turns.group + id / 32 * 16 + id % 32 / 4, before = 2 * (id % 4);
      const int low = key >= begin && key < end ? seen + key - before : QUERY_ROWS;
      const int high = key + 8 >= begin && key + 8 < end ? seen + key + 8 - before : QUERY_ROWS;
#pragma unroll
      for (int i = 0; i < QUERY_ROWS / 2; ++i) {
        if (8 * (i / 4) + i % 2 < (i & 2 ? high : low)) s[i] = minus_infinity();
      }
    }
    const u32 values = shared + S::VALUES_OF_ROWS + 512 * visit.slot + 8 * (threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < QUERY_ROWS / 8; ++n) {
      float lse[2];
      load_pair(values + 32 * n, lse);
#pragma unroll
      for (int i = 0; i < 4; ++i) s[4 * n + i] = exp2_approx(__fmaf_rn(s[4 * n + i], params.score_factor, -lse[i % 2]));
      p[n / 2][n % 2 * 2] = pack_bf16(s[4 * n], s[4 * n + 1]);
      p[n / 2][n % 2 * 2 + 1] = pack_bf16(s[4 * n + 2], s[4 * n + 3]);
    }
  }

  __device__ __forceinline__ void score_gradient() {
    const u32 values = shared + S::VALUES_OF_ROWS + 512 * visit.slot + 256 + 8 * (threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < QUERY_ROWS / 8; ++n) {
      float delta[2];
      load_pair(values + 32 * n, delta);
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        ds[n / 2][n % 2 * 2 + i / 2] =
            pack_bf16(s[4 * n + i] * (dp[4 * n + i] - delta[0]), s[4 * n + i + 1] * (dp[4 * n + i + 1] - delta[1]));
      }
    }
  }

  // Computes a visit (64 queries of a head) except dk. The products s and dp of the visit have been issued and may
  // still be running.
  __device__ __forceinline__ void compute_visit() {
    wgmma_wait<1>();
    keep_registers(s);
    softmax();
    issue_gradient(dv, p, S::VISIT + S::QUERY_TILE, visit.slot);
    wgmma_wait<1>();
    keep_registers(dp);
    score_gradient();
    // redundant: the next wait for dk includes dv. But ptxas serialises products in flight over the edge of a loop.
    wgmma_wait<0>();
    keep_operands(p);
    keep_registers(dv);
  }

  __device__ __forceinline__ void free_visit(int slot) {
    keep_operands(ds);
    keep_registers(dk);
    arrive_of_warp(shared + S::VISIT_FREE + 8 * slot);
  }

  // The index of key `row` of the tile in an array [tokens, kv_heads, head_dim], divided by head_dim.
  __device__ __forceinline__ u64 head_index(const KeyRows& keys, int row) const {
    return static_cast<u64>(static_cast<u32>(keys.token() + row)) * params.kv_heads + static_cast<u32>(keys.kv_head());
  }
  // The sums of part `part` for key `row`: those of dk, then those of dv.
  __device__ __forceinline__ float* sums_of_part(const KeyRows& keys, int part, int row) const {
    return global<float>(part_sums(params)) + (part * arrivals(params) + head_index(keys, row)) * (2 * HEAD_DIM);
  }

  // Stores the sums of a part of a tile. The warp that is the last to store sums of its 16 keys adds those of all
  // parts.
  __device__ __forceinline__ void store_part(const KeyRows& keys) {
    const int lane = thread_again() & 31, first = QUERY_ROWS * turns.group + thread_again() % 128 / 32 * 16;
    const int rows = min(16, keys.count() - first), parts = keys.parts() & 0xffff;
    if (rows <= 0) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + 8 * r;
      float* const to = sums_of_part(keys, keys.parts() >> 16, first + row) + 2 * (lane % 4);
      if (row >= rows) continue;
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; ++n) {
        *reinterpret_cast<float2*>(to + 8 * n) = {dk[4 * n + 2 * r], dk[4 * n + 2 * r + 1]};
        *reinterpret_cast<float2*>(to + HEAD_DIM + 8 * n) = {dv[4 * n + 2 * r], dv[4 * n + 2 * r + 1]};
      }
    }
    __syncwarp();  // all lanes have stored their sums
    u32 before = 0;
    if (lane == 0) before = count_arrival(params, keys.token() + first, keys.kv_head());
    if (__shfl_sync(0xffffffffu, before, 0) + 1 < static_cast<u32>(parts)) return;
    __syncwarp();  // all lanes see the sums of the parts that arrived before
    add_parts(keys, first, rows, parts);
  }

  // Adds the sums of `rows` keys from key `first` on over the parts, ascending, and writes dk and dv. A lane has 8
  // columns of up to ITEMS rows at a time.
  __device__ __forceinline__ void add_parts(const KeyRows& keys, int first, int rows, int parts) const {
    constexpr int ITEMS = 4, CHUNKS = HEAD_DIM / 8;
    const int lane = thread_again() & 31;
#pragma unroll 1
    for (int begin = lane; begin < rows * 2 * CHUNKS; begin += 32 * ITEMS) {
      float sum[ITEMS][8] = {};
#pragma unroll 1
      for (int part = 0; part < parts; ++part) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
          const int at = begin + 32 * i;
          if (at >= rows * 2 * CHUNKS) continue;
          const float* const from = sums_of_part(keys, part, first + at / (2 * CHUNKS)) + at % (2 * CHUNKS) * 8;
          const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
          const float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
          for (int e = 0; e < 8; ++e) sum[i][e] += x[e];
        }
      }
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) {
        const int at = begin + 32 * i, chunk = at % (2 * CHUNKS);
        if (at >= rows * 2 * CHUNKS) continue;
        const bool is_dk = chunk < CHUNKS;
        const float factor = is_dk ? params.scale : 1.0f;
        bf16* const to = global<bf16>(is_dk ? params.dk : params.dv) +
                         head_index(keys, first + at / (2 * CHUNKS)) * HEAD_DIM + (is_dk ? chunk : chunk - CHUNKS) * 8;
        Words<16> words;
#pragma unroll
        for (int e = 0; e < 4; ++e) words.word[e] = pack_bf16(sum[i][2 * e] * factor, sum[i][2 * e + 1] * factor);
        *reinterpret_cast<Words<16>*>(to) = words;
      }
    }
  }

  __device__ __forceinline__ void store(const KeyRows& keys) {
    const int id = thread_again() % 128, row = QUERY_ROWS * turns.group + id / 32 * 16 + id % 32 / 4;
    const u64 stride = static_cast<u64>(params.kv_heads) * HEAD_DIM, at = head_index(keys, row) * HEAD_DIM;
    bf16 *const dk_row = global<bf16>(params.dk) + at, *const dv_row = global<bf16>(params.dv) + at;
    const bool low = row < keys.count(), high = row + 8 < keys.count();
    store_gradient<HEAD_DIM, 0>(dk_row, low, dk, params.scale);
    store_gradient<HEAD_DIM, 1>(dk_row + 8 * stride, high, dk, params.scale);
    store_gradient<HEAD_DIM, 0>(dv_row, low, dv, 1.0f);
    store_gradient<HEAD_DIM, 1>(dv_row + 8 * stride, high, dv, 1.0f);
  }

  __device__ __forceinline__ void run(SlotRing<S::TILES>& tiles) {
    u32 own_parity = 0;
    for (;;) {
      mbarrier_wait(shared + S::TILE_FULL + 8 * tiles.slot, tiles.parity);
      const KeyRows keys{shared + S::TILE + 32 * tiles.slot};
      int left = keys.visits();
      if (left == 0) break;
#pragma unroll
      for (int i = 0; i < S::WIDTH / 2; ++i) dk[i] = dv[i] = 0.0f;
      mbarrier_wait(shared + S::OWN_FULL, own_parity);
      own_parity ^= 1;
      mbarrier_wait(shared + S::VISIT_FULL + 8 * visit.slot, visit.parity);
      turns.take();
      wgmma_fence();
      issue_scores_and_dp();
      turns.pass();
      compute_visit();
      while (--left > 0) {
        const int before = visit.slot;
        visit.advance();
        mbarrier_wait(shared + S::VISIT_FULL + 8 * visit.slot, visit.parity);
        turns.take();
        issue_gradient(dk, ds, S::VISIT, before);
        // redundant: no instruction accesses s between the fence before the products of dk and these products.
        wgmma_fence();
        issue_scores_and_dp();
        turns.pass();
        wgmma_wait<2>();
        free_visit(before);
        compute_visit();
      }
      turns.take();
      issue_gradient(dk, ds, S::VISIT, visit.slot);
      turns.pass();
      wgmma_wait<0>();
      free_visit(visit.slot);
      visit.advance();
      arrive_of_warp(shared + S::OWN_FREE);
      if (keys.parts() == 1) store(keys);
      else store_part(keys);
      __syncwarp();
      arrive_of_warp(shared + S::TILE_FREE + 8 * tiles.slot);
      tiles.advance();
    }
    __syncwarp();
    arrive_of_warp(shared + S::TILE_FREE + 8 * tiles.slot);
    tiles.advance();
  }
};

template <int HEAD_DIM>
__device__ __forceinline__ void compute_key_gradients(const BwdParams& p, u32 shared, const GradientTurns& turns,
                                                      SlotRing<BackwardShared<HEAD_DIM>::TILES>& tiles) {
  KeyConsumer<HEAD_DIM> consumer{p, shared, turns};
  consumer.run(tiles);
}
