// Gradients of a tile of 64 keys and values on tensor cores, with 4 warps of 16 keys each.
//
//   for each visit (a tile of 64 queries, visits.cuh):
//     each warp, its 16 keys:     s = k q^T; dp = v d_o^T; p = 2^(s * factor - lse * log2 e); ds = p (dp - delta);
//                                 dv += p d_o; store ds to shared memory
//     barrier
//     each warp, its 16 keys:     dk += ds q
#pragma once

#include "attention/backward_mma.cuh"
#include "attention/visits.cuh"

// Byte offsets in dynamic shared memory: the tile of keys, the tile of values, two tiles of q, one tile of d_o, ds as
// [key][query], and two buffers of lse and delta.
template <int HEAD_DIM>
struct KeyTiles {
  using T = Tile<HEAD_DIM>;
  static constexpr int K = 0, V = T::BYTES, Q = 2 * V, D_O = Q + 2 * T::BYTES;
  static constexpr int SLOPES = D_O + T::BYTES, VALUES = SLOPES + TILE_ROWS * TILE_ROWS * 2;
  static constexpr int VALUES_BYTES = 2 * TILE_ROWS * 4;
};

// Processes a tile of 64 queries for a warp's 16 keys: adds p d_o to dv, and stores ds in rows `key` .. `key` + 16 of
// the tile at `slopes`. With MASK, the thread's key g = lane / 4 is seen by queries from index from[0] on, and its
// key g + 8 by queries from index from[1] on. Queries before 16 * begin see none of the 16 keys; their ds is not
// written. `logs` has 64 values of lse, then 64 of delta.
template <int HEAD_DIM, bool MASK>
__device__ __forceinline__ void value_gradient(float (&dv)[HEAD_DIM / 8][4], u32 k, u32 v, u32 q, u32 d_o, u32 d_o_trans,
                                               char* slopes, const float* logs, float factor, int key,
                                               const int (&from)[2], int begin) {
  constexpr int PAIRS = TILE_ROWS / 16;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  if (MASK && begin >= PAIRS) return;
  float p[2 * PAIRS][4], ds[2 * PAIRS][4];
  multiply_heads<HEAD_DIM, PAIRS, MASK>(p, k, q, begin, PAIRS);
  multiply_heads<HEAD_DIM, PAIRS, MASK>(ds, v, d_o, begin, PAIRS);
#pragma unroll
  for (int n = 0; n < 2 * PAIRS; ++n) {
    float lse[2], delta[2];
    load_vector(logs + 8 * n + 2 * t, lse);
    load_vector(logs + TILE_ROWS + 8 * n + 2 * t, delta);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool seen = !MASK || 8 * n + 2 * t + i % 2 >= from[i / 2];
      p[n][i] = seen ? weight(p[n][i], factor, lse[i % 2] * LOG2_E) : 0.0f;
      ds[n][i] = seen ? p[n][i] * (ds[n][i] - delta[i % 2]) : 0.0f;
    }
  }
#pragma unroll
  for (int pair = 0; pair < PAIRS; ++pair) {
    if (MASK && pair < begin) continue;
    u32 a[4];
    as_left(a, ds[2 * pair], ds[2 * pair + 1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 at = Tile<TILE_ROWS>::offset(key + g + 8 * (i % 2), 2 * pair + i / 2) + 4 * t;
      *reinterpret_cast<u32*>(slopes + at) = a[i];
    }
    as_left(a, p[2 * pair], p[2 * pair + 1]);
    multiply_rows<HEAD_DIM>(dv, a, d_o_trans, 16 * pair);
  }
}

// Computes dk += ds q for a warp's 16 keys. `slopes` is the address that left_lane returns for the rows of ds that
// belong to these keys. With SOME, queries before 16 * begin are skipped.
template <int HEAD_DIM, bool SOME>
__device__ __forceinline__ void key_gradient(float (&dk)[HEAD_DIM / 8][4], u32 slopes, u32 q_trans, int begin) {
#pragma unroll
  for (int pair = 0; pair < TILE_ROWS / 16; ++pair) {
    if (SOME && pair < begin) continue;
    u32 a[4];
    left_fragment<TILE_ROWS>(a, slopes, 0, pair);
    multiply_rows<HEAD_DIM>(dk, a, q_trans, 16 * pair);
  }
}

// Computes dk (without the factor `scale`) and dv of up to 64 keys, over all visits (pairs of a query tile and a
// head) in order. visits.start must have been called. `keys.head(r)` is the index of the first element of key r's
// head. `kv_head` and `visits` are in shared memory. `shared` has the layout KeyTiles; no thread reads it after the
// call.
template <int HEAD_DIM, class P, class Keys>
__device__ __forceinline__ void key_gradients(float (&dk)[HEAD_DIM / 8][4], float (&dv)[HEAD_DIM / 8][4], char* shared,
                                              const P& p, const Keys& keys, const int& kv_head, Visits& visits) {
  using T = Tile<HEAD_DIM>;
  using At = KeyTiles<HEAD_DIM>;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, row = 16 * warp, count = visits.keys.count;
  const u32 tiles = shared_address(shared);
  const auto q_at = [&](int n) { return static_cast<u32>(At::Q + n % 2 * T::BYTES); };
  const auto values_at = [&](int n) { return static_cast<u32>(At::VALUES + n % 2 * At::VALUES_BYTES); };
  const auto copy_q = [&](int n) {
    const Visit& visit = visits[n];
    copy_rows<HEAD_DIM>(tiles + q_at(n), global<const bf16>(p.q), visit.queries(), 0, visit.count);
    const int r = threadIdx.x % TILE_ROWS;
    const bool valid = r < visit.count;
    const float* const source = global<const float>(threadIdx.x < TILE_ROWS ? p.lse : p.delta);
    cp_async_4(tiles + values_at(n) + threadIdx.x * 4, source + (valid ? visit.value(r) : 0), valid ? 4 : 0);
  };
  // Must be called after copy_q: the commit here puts the copies of q and of d_o into one cp.async group.
  const auto copy_d_o = [&](int n) {
    copy_rows<HEAD_DIM>(tiles + At::D_O, global<const bf16>(p.d_o), visits[n].queries(), 0,
                                            visits[n].count);
    cp_async_commit();
  };
  clear_padding<HEAD_DIM>(shared + At::K);
  clear_padding<HEAD_DIM>(shared + At::V);
#pragma unroll
  for (int i = 0; i < 3; ++i) clear_padding<HEAD_DIM>(shared + At::Q + i * T::BYTES);
  copy_rows<HEAD_DIM>(tiles + At::K, global<const bf16>(p.k), keys, 0, count);
  copy_rows<HEAD_DIM>(tiles + At::V, global<const bf16>(p.v), keys, 0, count);
  copy_q(0);
  copy_d_o(0);

#pragma unroll
  for (int n = 0; n < HEAD_DIM / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) dk[n][i] = dv[n][i] = 0.0f;
  }
  const float factor = p.scale * LOG2_E;
#pragma unroll 1
  for (int n = 0;; ++n) {
    cp_async_wait<0>();
    // After this barrier the tile of queries has arrived, and no thread still reads the previous tile of queries or its
    // ds.
    __syncthreads();
    if (visits[n].count == 0) break;
    if (visits[n + 1].count > 0) copy_q(n + 1);
    visits.look_ahead(p, n, kv_head);
    const Visit& here = visits[n];
    const u32 left = left_lane<HEAD_DIM>(tiles), right = right_lane<HEAD_DIM>(tiles);
    const u32 k_lane = left + row * (T::PITCH * 16), v_lane = k_lane + At::V;
    const float* const logs = reinterpret_cast<const float*>(shared + values_at(n));
    int begin = 0;
    if (here.all_see(row, row + 16)) {
      value_gradient<HEAD_DIM, false>(dv, k_lane, v_lane, right + q_at(n), right + At::D_O, left + At::D_O,
                                      shared + At::SLOPES, logs, factor, row, {}, 0);
    } else {
      const int from[2] = {here.seen_from(row + g), here.seen_from(row + g + 8)};
      begin = here.seen_from(row, row + 16) / 16;
      value_gradient<HEAD_DIM, true>(dv, k_lane, v_lane, right + q_at(n), right + At::D_O, left + At::D_O,
                                     shared + At::SLOPES, logs, factor, row, from, begin);
    }
    __syncthreads();  // ds is complete, and no thread reads d_o any more.
    if (visits[n + 1].count > 0) copy_d_o(n + 1);
    const u32 slopes = left_lane<TILE_ROWS>(tiles + At::SLOPES) + row * (TILE_ROWS * 2);
    if (begin == 0) key_gradient<HEAD_DIM, false>(dk, slopes, left + q_at(n), 0);
    else key_gradient<HEAD_DIM, true>(dk, slopes, left + q_at(n), begin);
  }
}
