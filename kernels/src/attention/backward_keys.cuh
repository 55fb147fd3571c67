// Gradients of a tile of KEYS keys and values on tensor cores, with KEYS / 16 warps. With RELAY the same pass also
// adds the key tile's contribution to dq of all queries that see the keys (see "The relay of dq" in sm80.cu).
//
//   for each visit (a tile of 64 queries, visits.cuh):
//     each warp, its 16 keys:     s = k q^T; dp = v d_o^T; p = 2^(s * factor - lse * log2 e); ds = p (dp - delta);
//                                 dv += p d_o; store ds to shared memory
//     barrier
//     each warp, its 16 keys:     dk += ds q
//     each warp, its 16 queries:  dq += ds^T k     (for some of the columns)
//
// The partial sums of a query tile's dq pass from key tile to key tile in ascending order, in f32, and are the
// initial values of the accumulators. So dq has the same bits as if one block processed all keys in order
// (backward_mma.cuh). The sums are in the workspace, together with one turn counter for each head and query tile: the
// number of key tiles that have added their part, and the ticket counter. The last key tile multiplies by `scale`,
// rounds and writes dq.
#pragma once

#include "attention/backward_mma.cuh"
#include "attention/visits.cuh"

// Byte offsets in dynamic shared memory: the tile of keys, the tile of values, two tiles of q, one tile of d_o, ds as
// [key][query], and two buffers of lse and delta.
template <int HEAD_DIM, int KEYS>
struct KeyTiles {
  using T = Tile<HEAD_DIM>;
  static constexpr int THREADS = 2 * KEYS;
  static constexpr int K = 0, V = T::BYTES / TILE_ROWS * KEYS, Q = 2 * V, D_O = Q + 2 * T::BYTES;
  static constexpr int SLOPES = D_O + T::BYTES, VALUES = SLOPES + KEYS * TILE_ROWS * 2;
  static constexpr int VALUES_BYTES = 2 * TILE_ROWS * 4;
};

// The arrays through which key tiles pass partial sums of dq to the next key tile.
struct Relay {
  float* sums;  // [tokens, heads, head_dim], columns in the order of `PartialQueries`
  u32* turns;   // [tokens, heads]: a query tile uses the counter of its first row
  u32* ticket;  // [1]: number of blocks that have started
};

// Returns the addresses of the partial sums of dq and of the counters in the workspace. Every use computes them again,
// which saves registers.
template <class P>
__device__ __forceinline__ Relay relay(const P& p) {
  float* const sums = global<float>(p.workspace);
  const u64 rows = static_cast<u64>(p.tokens) * p.heads;
  u32* const turns = reinterpret_cast<u32*>(sums + rows * p.head_dim);
  return {sums, turns, turns + rows};
}

// Returns the number of blocks that have started before this one. One thread of each block calls it once.
__device__ __forceinline__ u32 draw_ticket(u32* ticket) {
  u32 number;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(number) : "l"(ticket) : "memory");
  return number;
}

// Waits until `turn` key tiles have added their part of dq. After that their stores are visible to this thread; after
// a further barrier they are visible to the whole block.
__device__ __forceinline__ void wait_for_turn(const u32* turns, int turn) {
  u32 now;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(turns) : "memory");
  } while (now != static_cast<u32>(turn));
}

// Announces that `turn` key tiles have added their part of dq. A barrier must come between the block's stores and
// this call.
__device__ __forceinline__ void pass_turn(u32* turns, int turn) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(turns), "r"(turn) : "memory");
}

// Partial sums of dq for 16 queries and TILES * 8 columns, as accumulators of mma.sync. In memory a thread's elements
// of two neighbouring 16 x 8 tiles are adjacent. Loads and stores bypass L1 (.cg), because other blocks write the
// sums.
template <int TILES>
struct PartialQueries {
  float c[TILES][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) c[n][i] = 0.0f;
    }
  }
  // Loads the sums of two of the 16 queries: g = lane / 4, at address `row`, and g + 8, `eight` elements after it.
  // `low` says whether query g exists, `high` whether query g + 8 does.
  __device__ __forceinline__ void load(const float* row, u64 eight, bool low, bool high) {
    clear();
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (!(h == 0 ? low : high)) continue;
      const float* const from = row + h * eight;
#pragma unroll
      for (int n = 0; n + 1 < TILES; n += 2) {
        asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(c[n][2 * h]), "=f"(c[n][2 * h + 1]), "=f"(c[n + 1][2 * h]), "=f"(c[n + 1][2 * h + 1])
                     : "l"(from + 8 * n + 4 * t)
                     : "memory");
      }
      if constexpr (TILES % 2 != 0) {
        asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];"
                     : "=f"(c[TILES - 1][2 * h]), "=f"(c[TILES - 1][2 * h + 1])
                     : "l"(from + 8 * (TILES - 1) + 2 * t)
                     : "memory");
      }
    }
  }
  __device__ __forceinline__ void store(float* row, u64 eight, bool low, bool high) const {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (!(h == 0 ? low : high)) continue;
      float* const to = row + h * eight;
#pragma unroll
      for (int n = 0; n + 1 < TILES; n += 2) {
        asm volatile("st.global.cg.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to + 8 * n + 4 * t), "f"(c[n][2 * h]),
                     "f"(c[n][2 * h + 1]), "f"(c[n + 1][2 * h]), "f"(c[n + 1][2 * h + 1])
                     : "memory");
      }
      if constexpr (TILES % 2 != 0) {
        asm volatile("st.global.cg.v2.f32 [%0], {%1, %2};" ::"l"(to + 8 * (TILES - 1) + 2 * t), "f"(c[TILES - 1][2 * h]),
                     "f"(c[TILES - 1][2 * h + 1])
                     : "memory");
      }
    }
  }
  // Multiplies the sums by `factor`, rounds them to bf16 and writes them to dq. In dq the columns are in ascending
  // order.
  __device__ __forceinline__ void round(bf16* row, u64 eight, bool low, bool high, float factor) const {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      bf16* const to = row + h * eight;
      const bool exists = h == 0 ? low : high;
#pragma unroll
      for (int n = 0; n + 1 < TILES; n += 2) {
        // Neighbouring lanes exchange values: the even lane then has four adjacent columns of the first 16 x 8 tile,
        // the odd lane four of the second.
        const u32 first = pack_bf16(c[n][2 * h] * factor, c[n][2 * h + 1] * factor);
        const u32 second = pack_bf16(c[n + 1][2 * h] * factor, c[n + 1][2 * h + 1] * factor);
        const u32 other = shuffle_xor(t % 2 == 0 ? second : first, 1);
        const Words<8> words = t % 2 == 0 ? Words<8>{first, other} : Words<8>{other, second};
        if (exists) *reinterpret_cast<Words<8>*>(to + 8 * (n + t % 2) + 4 * (t / 2)) = words;
      }
      if constexpr (TILES % 2 != 0) {
        const u32 pair = pack_bf16(c[TILES - 1][2 * h] * factor, c[TILES - 1][2 * h + 1] * factor);
        if (exists) *reinterpret_cast<u32*>(to + 8 * (TILES - 1) + 2 * t) = pair;
      }
    }
  }
};

// Processes a tile of 64 queries for a warp's 16 keys: adds p d_o to dv, and stores ds in rows `key` .. `key` + 16 of
// the tile at `slopes`. With MASK, only queries from index from[0] on see the thread's key g = lane / 4, and only
// those from from[1] on see its key g + 8. Queries before 16 * begin see none of the 16 keys; their ds is not
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

// Computes one warp's part of dq of a query tile: 16 queries from `row` on, TILES * 8 columns from 8 * tile on, over
// the first 16 * steps keys. `slopes` is the address that right_lane returns for ds. `meanwhile` is called between
// the load of the partial sums and their first use, to hide the latency.
template <int HEAD_DIM, int KEYS, int TILES, class P, class F>
__device__ __forceinline__ void add_to_queries(const P& p, const Visit& here, int turn, u32 slopes,
                                               u32 k_trans, int row, int tile, int steps, const F& meanwhile) {
  const int first = row + threadIdx.x % 32 / 4;
  const bool low = first < here.count, high = first + 8 < here.count;
  const u64 at = here.value(first) * HEAD_DIM + 8 * tile, eight = static_cast<u64>(here.heads) * (8 * HEAD_DIM);
  PartialQueries<TILES> dq;
  if (turn == 0) dq.clear();
  else dq.load(relay(p).sums + at, eight, low, high);
  meanwhile();
  const auto add = [&](int step) {
    u32 a[4];
    ldmatrix_x4_trans(a, fragment<TILE_ROWS>(slopes, 16 * step, row / 8));
    multiply_rows<HEAD_DIM>(dq.c, a, k_trans, 16 * step, tile);
  };
  if (steps == KEYS / 16) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; ++step) add(step);
  } else {
#pragma unroll 1
    for (int step = 0; step < steps; ++step) add(step);
  }
  if (turn == here.last) dq.round(global<bf16>(p.dq) + at, eight, low, high, p.scale);
  else dq.store(relay(p).sums + at, eight, low, high);
}

// Computes dk (without the factor `scale`) and dv of up to KEYS keys, over all visits in order. visits.start must
// have been called. `keys.head(r)` is the index of the first element of key r's head; `kv_head` and `visits` are in
// shared memory. With RELAY it also computes dq; all visits then belong to the keys' own sequence. `shared` has the
// layout KeyTiles; no thread reads it after the call.
template <int HEAD_DIM, int KEYS, bool RELAY, class P, class Keys>
__device__ __forceinline__ void key_gradients(float (&dk)[HEAD_DIM / 8][4], float (&dv)[HEAD_DIM / 8][4], char* shared,
                                              const P& p, const Keys& keys, const int& kv_head, Visits<KEYS>& visits) {
  using T = Tile<HEAD_DIM>;
  using At = KeyTiles<HEAD_DIM, KEYS>;
  constexpr int THREADS = At::THREADS;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, row = 16 * warp, count = visits.keys.count;
  const u32 tiles = shared_address(shared);
  const auto q_at = [&](int n) { return static_cast<u32>(At::Q + n % 2 * T::BYTES); };
  const auto values_at = [&](int n) { return static_cast<u32>(At::VALUES + n % 2 * At::VALUES_BYTES); };
  const auto copy_q = [&](int n) {
    const Visit& visit = visits[n];
    copy_rows<HEAD_DIM, TILE_ROWS, THREADS>(tiles + q_at(n), global<const bf16>(p.q), visit.queries(), 0, visit.count);
    if (threadIdx.x < 2 * TILE_ROWS) {
      const int r = threadIdx.x % TILE_ROWS;
      const bool valid = r < visit.count;
      const float* const source = global<const float>(threadIdx.x < TILE_ROWS ? p.lse : p.delta);
      cp_async_4(tiles + values_at(n) + threadIdx.x * 4, source + (valid ? visit.value(r) : 0), valid ? 4 : 0);
    }
  };
  // Must be called after copy_q, because its commit puts both copies into one cp.async group.
  const auto copy_d_o = [&](int n) {
    copy_rows<HEAD_DIM, TILE_ROWS, THREADS>(tiles + At::D_O, global<const bf16>(p.d_o), visits[n].queries(), 0,
                                            visits[n].count);
    cp_async_commit();
  };
  clear_padding<HEAD_DIM, KEYS, THREADS>(shared + At::K);
  clear_padding<HEAD_DIM, KEYS, THREADS>(shared + At::V);
#pragma unroll
  for (int i = 0; i < 3; ++i) clear_padding<HEAD_DIM, TILE_ROWS, THREADS>(shared + At::Q + i * T::BYTES);
  copy_rows<HEAD_DIM, KEYS, THREADS>(tiles + At::K, global<const bf16>(p.k), keys, 0, count);
  copy_rows<HEAD_DIM, KEYS, THREADS>(tiles + At::V, global<const bf16>(p.v), keys, 0, count);
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
    // After this barrier the tile of queries has arrived, no thread still reads the previous tile or ds, and the sums
    // of dq are stored.
    __syncthreads();
    // Passing the turn, waiting for the turn and finding the next visit each take as long as a matrix product, so
    // three threads in different warps start them early.
    const int turn = visits.keys.begin / KEYS;
    if (RELAY && n > 0 && threadIdx.x == 32 && turn < visits[n - 1].last) {
      pass_turn(relay(p).turns + visits[n - 1].row, turn + 1);
    }
    if (visits[n].count == 0) break;
    if (visits[n + 1].count > 0) copy_q(n + 1);
    visits.look_ahead(p, n, kv_head);
    const Visit& here = visits[n];
    if (RELAY && turn > 0 && threadIdx.x == 0) wait_for_turn(relay(p).turns + here.row, turn);
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
    __syncthreads();  // ds is complete, no thread reads d_o any more, and it is this tile's turn.
    if (visits[n + 1].count > 0) copy_d_o(n + 1);
    const auto keys_gain = [&] {
      const u32 slopes = left_lane<TILE_ROWS>(tiles + At::SLOPES) + row * (TILE_ROWS * 2);
      if (begin == 0) key_gradient<HEAD_DIM, false>(dk, slopes, left + q_at(n), 0);
      else key_gradient<HEAD_DIM, true>(dk, slopes, left + q_at(n), begin);
    };
    if constexpr (RELAY) {
      const int queries = 16 * (warp % 4);
      const int steps = ceil_div(min(here.end, queries + 16 - here.offset), 16);
      const u32 slopes = right_lane<TILE_ROWS>(tiles + At::SLOPES);
      constexpr int ALL = HEAD_DIM / 8, HALF = (ALL + 1) / 2;
      const auto nothing = [] {};
      if constexpr (KEYS > 64) {
        if (warp < 4) add_to_queries<HEAD_DIM, KEYS, HALF>(p, here, visits.keys.begin / KEYS, slopes, left, queries, 0, steps, keys_gain);
        else add_to_queries<HEAD_DIM, KEYS, ALL - HALF>(p, here, visits.keys.begin / KEYS, slopes, left, queries, HALF, steps, keys_gain);
      } else if constexpr (HEAD_DIM > 80) {
        keys_gain();
        add_to_queries<HEAD_DIM, KEYS, HALF>(p, here, visits.keys.begin / KEYS, slopes, left, queries, 0, steps, nothing);
        add_to_queries<HEAD_DIM, KEYS, ALL - HALF>(p, here, visits.keys.begin / KEYS, slopes, left, queries, HALF, steps, nothing);
      } else {
        add_to_queries<HEAD_DIM, KEYS, ALL>(p, here, visits.keys.begin / KEYS, slopes, left, queries, 0, steps, keys_gain);
      }
    } else {
      keys_gain();
    }
  }
}
