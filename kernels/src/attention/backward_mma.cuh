// Gradients of a tile of 64 queries on tensor cores, with 4 warps of 16 queries each. Softmax weights and score
// gradients are recomputed: p = 2^(s * factor - lse * log2 e), ds = p (dp - delta), with dp = d_o . v.
#pragma once

#include "attention/tile.cuh"
#include "cuh/online_softmax.cuh"

// Bytes of dynamic shared memory: one tile of q, one tile of d_o, and two buffers, each for a tile of keys and a tile
// of values.
template <int HEAD_DIM>
constexpr int BACKWARD_BYTES = 6 * Tile<HEAD_DIM>::BYTES;

// Computes c = a b^T over all HEAD_DIM columns, for 16 rows of `a` and the first 16 * PAIRS rows of `b`. With SOME,
// `b` is divided into groups of 16 rows, and only the groups first .. last are computed.
template <int HEAD_DIM, int PAIRS, bool SOME>
__device__ __forceinline__ void multiply_heads(float (&c)[2 * PAIRS][4], u32 a_lane, u32 b_lane, int first, int last) {
#pragma unroll
  for (int n = 0; n < 2 * PAIRS; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < Tile<HEAD_DIM>::STEPS; ++step) {
    u32 a[4];
    left_fragment<HEAD_DIM>(a, a_lane, 0, step);
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
      if (SOME && (pair < first || pair >= last)) continue;
      u32 b[4];
      right_fragment<HEAD_DIM>(b, b_lane, 16 * pair, step);
      mma_bf16(c[2 * pair], a, b[0], b[1]);
      mma_bf16(c[2 * pair + 1], a, b[2], b[3]);
    }
  }
}

// Adds the contribution of one block of keys to dq of one warp's 16 queries. With MASK, the thread's queries g = lane
// / 4 and g + 8 see only the first limit[0] and limit[1] keys of the block, and the warp's last query sees the first
// `visible`.
template <int HEAD_DIM, bool MASK>
__device__ __forceinline__ void query_gradient(float (&dq)[HEAD_DIM / 8][4], u32 q, u32 d_o, u32 k, u32 v, u32 k_trans,
                                               float factor, const float (&lse)[2], const float (&delta)[2],
                                               const int (&limit)[2], int visible) {
  constexpr int PAIRS = BLOCK_KEYS / 16;
  const int pairs = MASK ? (visible + 15) / 16 : PAIRS, t = threadIdx.x % 4;
  float p[2 * PAIRS][4], ds[2 * PAIRS][4];
  multiply_heads<HEAD_DIM, PAIRS, MASK>(p, q, k, 0, pairs);
  multiply_heads<HEAD_DIM, PAIRS, MASK>(ds, d_o, v, 0, pairs);
#pragma unroll
  for (int n = 0; n < 2 * PAIRS; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float weight_here = weight(p[n][i], factor, lse[i / 2]);
      const bool seen = !MASK || 8 * n + 2 * t + i % 2 < limit[i / 2];
      ds[n][i] = seen ? weight_here * (ds[n][i] - delta[i / 2]) : 0.0f;
    }
  }
#pragma unroll
  for (int pair = 0; pair < PAIRS; ++pair) {
    if (MASK && pair >= pairs) continue;
    u32 a[4];
    as_left(a, ds[2 * pair], ds[2 * pair + 1]);
    multiply_rows<HEAD_DIM>(dq, a, k_trans, 16 * pair);
  }
}

// Computes dq of queries 0 .. count, without the factor `scale`, over all keys that they see. `lse` (times log2 e)
// and `delta` belong to this thread's rows, g = lane / 4 and g + 8 of its warp's 16. `shared` has BACKWARD_BYTES;
// after the call each warp may reuse its own rows of the first tile. forward_mma.cuh documents the other arguments
// (function `attend`).
template <int HEAD_DIM, class Queries, class Keys, class Limit>
__device__ __forceinline__ void query_gradients(float (&dq)[HEAD_DIM / 8][4], char* shared, const bf16* q,
                                                const bf16* d_o, const Queries& queries, int count, const bf16* k,
                                                const bf16* v, const Keys& keys, int keys_end, const Limit& limit,
                                                float factor, const float (&lse)[2], const float (&delta)[2]) {
  using T = Tile<HEAD_DIM>;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, row = 16 * warp, blocks = ceil_div(keys_end, BLOCK_KEYS);
  const u32 tiles = shared_address(shared);
  auto stage = [&](int block) { return static_cast<u32>((2 + 2 * (block & 1)) * T::BYTES); };
  auto copy_block = [&](int block) {
    copy_rows<HEAD_DIM>(tiles + stage(block), k, keys, block * BLOCK_KEYS, keys_end);
    copy_rows<HEAD_DIM>(tiles + stage(block) + T::BYTES, v, keys, block * BLOCK_KEYS, keys_end);
    cp_async_commit();
  };
#pragma unroll
  for (int i = 0; i < 6; ++i) clear_padding<HEAD_DIM>(shared + i * T::BYTES);
  copy_rows<HEAD_DIM>(tiles, q, queries, 0, count);
  copy_rows<HEAD_DIM>(tiles + T::BYTES, d_o, queries, 0, count);
  copy_block(0);

  const int last = count - 1;
  const int fewest = limit(min(row, last)), most = limit(min(row + 15, last));
  const u32 left = left_lane<HEAD_DIM>(tiles), right = right_lane<HEAD_DIM>(tiles);
  const u32 q_lane = left + row * (T::PITCH * 16), d_o_lane = q_lane + T::BYTES;
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) dq[n][i] = 0.0f;
  }
#pragma unroll 1
  for (int block = 0; block < blocks; ++block) {
    cp_async_wait<0>();
    __syncthreads();  // The block has arrived, and no thread still reads the previous one.
    if (block + 1 < blocks) copy_block(block + 1);
    const int first = block * BLOCK_KEYS;
    const u32 k_lane = right + stage(block), v_lane = k_lane + T::BYTES, k_trans = left + stage(block);
    if (fewest - first >= BLOCK_KEYS) {
      query_gradient<HEAD_DIM, false>(dq, q_lane, d_o_lane, k_lane, v_lane, k_trans, factor, lse, delta, {}, BLOCK_KEYS);
    } else if (most > first) {
      const int limits[2] = {limit(min(row + g, last)) - first, limit(min(row + g + 8, last)) - first};
      query_gradient<HEAD_DIM, true>(dq, q_lane, d_o_lane, k_lane, v_lane, k_trans, factor, lse, delta, limits,
                                     most - first);
    }
  }
}
