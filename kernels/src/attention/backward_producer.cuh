// The two warps of a backward block on sm_90a that copy operands to shared memory (backward_wgmma.cuh).
//
// Warp 0 draws the numbers of tiles and starts tensor copies. Warp 1 does what a tensor copy cannot:
//   - It copies lse and delta, which lie [tokens, heads], and writes which keys the queries of a visit see.
//   - A box of 64 queries or 128 keys may reach into the next sequence, or from a prefix into tokens after it. Once the
//     box has landed, warp 1 replaces those rows: by the sequence's own keys after a prefix, else by zeros. (Their
//     probabilities are 0, but 0 times a value that is not finite would be NaN.)
//
// Registers: 24 per thread. So descriptions of tiles are in shared memory, and both warps compute the visits (pairs
// of query tile and head, visits.cuh).
#pragma once

#include "attention/backward_keys.cuh"
#include "attention/backward_parts.cuh"
#include "attention/head_copy.cuh"
#include "attention/packed_tiles.cuh"
#include "attention/tile.cuh"
#include "cuh/tma.cuh"
#include "cuh/wgmma.cuh"

constexpr int GRADIENT_GROUPS = 2;  // warpgroups that compute
constexpr int QUERY_ROWS = 64;      // queries of a visit, and of a warpgroup in the second part

// Shared memory of a block, in bytes from its start. Rows lie in groups of columns (head_copy.cuh). The first part of
// the kernel (dk, dv) and the second part (dq) use the same memory for their tiles.
template <int HEAD_DIM>
struct BackwardShared {
  static constexpr int WIDTH = HeadColumns<HEAD_DIM>::WIDTH, COLUMNS = HeadColumns<HEAD_DIM>::COLUMNS;
  static constexpr int SWIZZLE = HeadColumns<HEAD_DIM>::SWIZZLE;
  static constexpr int KEY_GROUP = KEY_ROWS * SWIZZLE, QUERY_GROUP = QUERY_ROWS * SWIZZLE;  // a group of columns
  static constexpr int KEY_TILE = WIDTH / COLUMNS * KEY_GROUP, QUERY_TILE = KEY_TILE / 2;
  static constexpr int VISITS = 4, KEY_SLOTS = 3, VALUE_SLOTS = 2;  // slots of the rings

  // First part (dk, dv). K and V are the offsets of the tile of keys and of the tile of values. VISIT is the offset of
  // a ring buffer, in which each slot has the tiles of q and d_o of one visit (64 queries of a head).
  static constexpr int K = 0, V = KEY_TILE, VISIT = 2 * KEY_TILE;
  // Second part (dq). Q and D_O are the offsets of q and d_o of 128 queries. KEYS and VALUES are the offsets of a ring
  // buffer of key tiles and of a ring buffer of value tiles.
  static constexpr int Q = 0, D_O = KEY_TILE, KEYS = 2 * KEY_TILE, VALUES = KEYS + KEY_SLOTS * KEY_TILE;
  // Offsets of the numbers that belong to a visit. VALUES_OF_ROWS: lse times log2 e, then delta, of 64 queries (512
  // bytes). SEEN: 4 words, which hold the first query that sees key 0 and the range of the keys.
  static constexpr int VALUES_OF_ROWS = VALUES + VALUE_SLOTS * KEY_TILE, SEEN = VALUES_OF_ROWS + VISITS * 512;
  // TILES is the number of tile descriptions that fit in shared memory. TILE is the offset of the descriptions of the
  // next tiles, which warp 0 writes.
  static constexpr int TILES = 2, TILE = SEEN + VISITS * 16;
  // Offsets of the mbarriers. LANDED: the copies are complete, but warp 1 must still replace rows. FULL: the operands
  // are ready. FREE: the memory may be overwritten.
  static constexpr int TILE_FULL = TILE + TILES * 32, TILE_FREE = TILE_FULL + 8 * TILES;
  static constexpr int VISIT_LANDED = TILE_FREE + 8 * TILES, VISIT_FULL = VISIT_LANDED + 8 * VISITS;
  static constexpr int VISIT_FREE = VISIT_FULL + 8 * VISITS, OWN_FULL = VISIT_FREE + 8 * VISITS, OWN_FREE = OWN_FULL + 8;
  static constexpr int PAIR_FULL = OWN_FREE + 8, PAIR_FREE = PAIR_FULL + 8;
  static constexpr int KEYS_LANDED = PAIR_FREE + 8, KEYS_FULL = KEYS_LANDED + 8 * KEY_SLOTS;
  static constexpr int KEYS_FREE = KEYS_FULL + 8 * KEY_SLOTS, VALUES_LANDED = KEYS_FREE + 8 * KEY_SLOTS;
  static constexpr int VALUES_FULL = VALUES_LANDED + 8 * VALUE_SLOTS, VALUES_FREE = VALUES_FULL + 8 * VALUE_SLOTS;
  static constexpr int BYTES = VALUES_FREE + 8 * VALUE_SLOTS;
  static_assert(TILE % 16 == 0 && BYTES <= 227 * 1024, "shared memory of a block");

  // Returns the offset of a 16-byte chunk of a row of a tile with ROWS rows.
  template <int ROWS>
  __device__ static __forceinline__ u32 offset(int row, int chunk) {
    constexpr int CHUNKS = SWIZZLE / 16;
    const int swizzled = chunk % CHUNKS ^ (SWIZZLE == 128 ? row & 7 : row / 4 & 1);
    return chunk / CHUNKS * (ROWS * SWIZZLE) + row * SWIZZLE + swizzled * 16;
  }
};

// A position in a ring buffer of SLOTS slots.
template <int SLOTS>
struct SlotRing {
  int slot = 0;
  u32 parity = 0;

  __device__ __forceinline__ void advance() {
    if (++slot == SLOTS) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Lane 0 arrives at the mbarrier for the whole warp. The lanes must have converged before, by __syncwarp or by a wait
// for products.
__device__ __forceinline__ void arrive_of_warp(u32 barrier) {
  if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
}

// Functions that load from shared memory and store to it.
__device__ __forceinline__ void load_pair(u32 at, float (&x)[2]) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x[0]), "=f"(x[1]) : "r"(at));
}
__device__ __forceinline__ int load_word(u32 at) {
  int x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
  return x;
}
__device__ __forceinline__ void load_words(u32 at, int& a, int& b, int& c, int& d) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(at) : "memory");
}
__device__ __forceinline__ void store_words(u32 at, int a, int b, int c, int d) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// Increments the ticket counter and returns its old value: the number of tickets that blocks have drawn before.
__device__ __forceinline__ u32 draw_ticket(u32* ticket) {
  u32 number;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(number) : "l"(ticket) : "memory");
  return number;
}

// Returns the number of the block's next tile. With a ticket counter (an atomic counter in global memory) blocks take
// tiles as they become free. Without one, the grid has a block for each tile. All lanes of the warp call the
// function.
__device__ __forceinline__ u32 next_tile_number(const BwdParams& p, u32 number) {
  if (p.workspace == 0) return number + gridDim.x;
  u32 ticket = 0;
  if (threadIdx.x % 32 == 0) ticket = draw_ticket(global<u32>(p.workspace));
  return gridDim.x + __shfl_sync(0xffffffffu, ticket, 0);
}

// A part of a tile of keys. Its description in shared memory has the words visits (0: there are no more tiles of keys),
// token, count, kv_head, sequence, begin, heads and parts.
struct KeyRows {
  u32 at;

  __device__ __forceinline__ int visits() const { return load_word(at); }
  __device__ __forceinline__ int token() const { return load_word(at + 4); }  // that of the first key
  __device__ __forceinline__ int count() const { return load_word(at + 8); }
  __device__ __forceinline__ int kv_head() const { return load_word(at + 12); }
  __device__ __forceinline__ int sequence() const { return load_word(at + 16); }  // of the keys
  __device__ __forceinline__ int begin() const { return load_word(at + 20); }     // first key within it
  // The query heads of the part: the first one, plus 2^16 times the end of the range.
  __device__ __forceinline__ int heads() const { return load_word(at + 24); }
  // Number of parts of the tile, plus 2^16 times the index of this part.
  __device__ __forceinline__ int parts() const { return load_word(at + 28); }

  __device__ __forceinline__ void store(const BwdParams& p, const KeyPart& part) const {
    const SequenceTile& range = part.range;
    const int head = part.kv_head * static_cast<int>(p.heads / p.kv_heads);
    store_words(at, 1, range.first + range.begin, range.count, part.kv_head);
    store_words(at + 16, range.sequence, range.begin,
                head + part.first_head(p, part.part) | (head + part.first_head(p, part.part + 1)) << 16,
                part.parts | part.part << 16);
  }
};

// The queries of one sequence that see a tile of keys, identified by a number. Number 2 n means that sequence n sees
// the keys as part of its prefix, number 2 n + 1 that the keys are its own. Visits take the numbers in ascending order.
struct SeeingQueries {
  int first, length;  // first token and number of tokens of the sequence
  int from;           // first query, a multiple of 64
  int begin, end;     // range of the tile's keys that they see

  // Returns the first number >= `number` whose queries see the keys, or 2 * seqs if there is none. All lanes of the
  // warp call the function, and each lane examines one number.
  __device__ static __forceinline__ int next(const BwdParams& p, const KeyRows& keys, int number) {
    const int numbers = 2 * static_cast<int>(p.seqs), own = 2 * keys.sequence() + 1;
    if (p.prefix == 0) return number <= own ? own : numbers;
    for (; number < numbers; number += 32) {
      const int at = number + (thread_again() & 31);
      bool sees = at == own;
      if (at < numbers && at % 2 == 0) {
        const TokenRange prefix = prefix_of(p, at / 2);
        const int token = keys.token() - prefix.first;
        const int* const cu_seqlens = global<const int>(p.cu_seqlens) + at / 2;
        sees = token < prefix.count && token + keys.count() > 0 && prefix.count > 0 && cu_seqlens[0] < cu_seqlens[1];
      }
      const u32 seeing = __ballot_sync(0xffffffffu, sees);
      if (seeing != 0) return number + __ffs(static_cast<int>(seeing)) - 1;
    }
    return numbers;
  }

  __device__ __forceinline__ SeeingQueries(const BwdParams& p, const KeyRows& keys, int number) {
    const int* const cu_seqlens = global<const int>(p.cu_seqlens) + number / 2;
    first = cu_seqlens[0];
    length = cu_seqlens[1] - first;
    from = 0;
    begin = 0;
    end = keys.count();
    if (number % 2 != 0) {
      if (p.causal != 0) from = keys.begin();
    } else {
      const TokenRange prefix = prefix_of(p, number / 2);
      begin = max(prefix.first - keys.token(), 0);
      end = min(prefix.first + prefix.count - keys.token(), end);
    }
  }
};

// Calls visit(queries, tile, head, number) for each visit of a part of a tile of keys, in the order of visits.cuh:
// `tile` is the first of up to 64 queries within their sequence.
template <class F>
__device__ __forceinline__ void for_each_visit(const BwdParams& p, const KeyRows& keys, const F& visit) {
  const int numbers = 2 * static_cast<int>(p.seqs);
#pragma unroll 1
  for (int number = SeeingQueries::next(p, keys, 0); number < numbers; number = SeeingQueries::next(p, keys, number + 1)) {
    const SeeingQueries queries(p, keys, number);
#pragma unroll 1
    for (int tile = (queries.length - 1) / QUERY_ROWS * QUERY_ROWS; tile >= queries.from; tile -= QUERY_ROWS) {
#pragma unroll 1
      for (int h = keys.heads() & 0xffff; h < keys.heads() >> 16; ++h) visit(queries, tile, h, number);
    }
  }
}

// Returns the number of visits. All lanes of the warp call the function.
__device__ __forceinline__ int visit_count(const BwdParams& p, const KeyRows& keys) {
  const int numbers = 2 * static_cast<int>(p.seqs), heads = (keys.heads() >> 16) - (keys.heads() & 0xffff);
  int visits = 0;
#pragma unroll 1
  for (int number = SeeingQueries::next(p, keys, 0); number < numbers; number = SeeingQueries::next(p, keys, number + 1)) {
    const SeeingQueries queries(p, keys, number);
    visits += ceil_div(queries.length - queries.from, QUERY_ROWS) * heads;
  }
  return visits;
}

// Replaces rows `from` .. ROWS of a tile in shared memory: row r gets the elements at source + r * stride if r < end,
// else zeros; columns from HEAD_DIM on become zeros. All lanes of the warp call it, after the tensor copy has landed. After fence_async_proxy and __syncwarp
// the rows are visible to products of threads that synchronise with any lane.
template <int HEAD_DIM, int ROWS>
__device__ __forceinline__ void replace_rows(u32 tile, const bf16* source, u64 stride, int from, int end) {
  const int lane = thread_again() & 31, chunk = lane & 15;
#pragma unroll 1
  for (int row = from + (lane >> 4); row < ROWS; row += 2) {
    Words<16> x = {};
    if (chunk < BackwardShared<HEAD_DIM>::WIDTH / 8) {
      if (row < end && chunk < HEAD_DIM / 8) x = *reinterpret_cast<const Words<16>*>(source + row * stride + chunk * 8);
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(
                       tile + BackwardShared<HEAD_DIM>::template offset<ROWS>(row, chunk)),
                   "r"(x.word[0]), "r"(x.word[1]), "r"(x.word[2]), "r"(x.word[3])
                   : "memory");
    }
  }
}

// First part of the kernel (dk, dv), warp 0: copies keys, values, queries and their d_o. Returns the number of the
// block's first tile of queries. All lanes of the warp call this function and the three functions below.
template <int HEAD_DIM>
__device__ __forceinline__ u32 copy_visits(const BwdParams& p, u32 shared, SlotRing<BackwardShared<HEAD_DIM>::TILES>& tiles) {
  using S = BackwardShared<HEAD_DIM>;
  const bool leads = threadIdx.x % 32 == 0;
  SlotRing<S::VISITS> ring;
  u32 own_parity = 1, number = blockIdx.x;
#pragma unroll 1
  for (; number < KeyPart::numbers(p); number = next_tile_number(p, number)) {
    KeyPart part;
    if (!part.find(p, number)) continue;
    const KeyRows keys{shared + S::TILE + 32 * tiles.slot};
    mbarrier_wait(shared + S::TILE_FREE + 8 * tiles.slot, tiles.parity ^ 1);
    // All lanes have read the tile that was here.
    // redundant: TILES is 2, and the barrier below, of the tile in the other slot, also comes after these reads.
    __syncwarp();
    if (leads) keys.store(p, part);
    __syncwarp();
    const int visits = visit_count(p, keys);
    if (leads) {
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(keys.at), "r"(visits) : "memory");
      mbarrier_arrive(shared + S::TILE_FULL + 8 * tiles.slot);
    }
    tiles.advance();
    bool first = true;
    for_each_visit(p, keys, [&](const SeeingQueries& queries, int tile, int head, int) {
      mbarrier_wait(shared + S::VISIT_FREE + 8 * ring.slot, ring.parity ^ 1);
      const u32 full = shared + S::VISIT_FULL + 8 * ring.slot, slot = shared + S::VISIT + ring.slot * S::KEY_TILE;
      if (leads) {
        u32 barrier = full;
        if (tile + QUERY_ROWS > queries.length) {
          mbarrier_arrive(full);
          barrier = shared + S::VISIT_LANDED + 8 * ring.slot;
        }
        mbarrier_arrive_expecting(barrier, S::KEY_TILE);
        copy_head<HEAD_DIM, QUERY_ROWS>(slot, &p.q_map, barrier, queries.first + tile, head);
        copy_head<HEAD_DIM, QUERY_ROWS>(slot + S::QUERY_TILE, &p.d_o_map, barrier, queries.first + tile, head);
      }
      if (first) {
        first = false;
        mbarrier_wait(shared + S::OWN_FREE, own_parity);
        own_parity ^= 1;
        if (leads) {
          mbarrier_arrive_expecting(shared + S::OWN_FULL, 2 * S::KEY_TILE);
          copy_head<HEAD_DIM, KEY_ROWS>(shared + S::K, &p.k_map, shared + S::OWN_FULL, keys.token(), keys.kv_head());
          copy_head<HEAD_DIM, KEY_ROWS>(shared + S::V, &p.v_map, shared + S::OWN_FULL, keys.token(), keys.kv_head());
        }
      }
      ring.advance();
    });
  }
  // redundant: the wait for OWN_FREE of the last tile follows all reads of this slot's number of visits.
  mbarrier_wait(shared + S::TILE_FREE + 8 * tiles.slot, tiles.parity ^ 1);
  __syncwarp();  // all lanes have read the last tile, whose place the first tile of queries takes
  if (leads) {
    asm volatile("st.shared.b32 [%0], 0;" ::"r"(shared + S::TILE + 32 * tiles.slot) : "memory");
    mbarrier_arrive(shared + S::TILE_FULL + 8 * tiles.slot);
  }
  tiles.advance();
  // The second part uses the same memory.
  // redundant: its first tile waits for TILE_FREE of the last tile of keys, as TILES is 2. All products precede it.
  mbarrier_wait(shared + S::OWN_FREE, own_parity);
  return number;
}

// First part of the kernel (dk, dv), warp 1: writes lse, delta and limits of each visit, and replaces rows of other
// sequences by zeros.
template <int HEAD_DIM>
__device__ __forceinline__ void complete_visits(const BwdParams& p, u32 shared,
                                                SlotRing<BackwardShared<HEAD_DIM>::TILES>& tiles) {
  using S = BackwardShared<HEAD_DIM>;
  SlotRing<S::VISITS> ring;
  u32 landed = 0;  // parity of each slot's barrier
#pragma unroll 1
  for (;;) {
    mbarrier_wait(shared + S::TILE_FULL + 8 * tiles.slot, tiles.parity);
    const KeyRows keys{shared + S::TILE + 32 * tiles.slot};
    if (keys.visits() == 0) break;
    for_each_visit(p, keys, [&](const SeeingQueries& queries, int tile, int head, int number) {
      mbarrier_wait(shared + S::VISIT_FREE + 8 * ring.slot, ring.parity ^ 1);
      const int lane = thread_again() & 31;
      const u32 values = shared + S::VALUES_OF_ROWS + 512 * ring.slot + 4 * lane;
#pragma unroll
      for (int row = 0; row < QUERY_ROWS; row += 32) {
        float lse = infinity(), delta = 0.0f;
        if (tile + row + lane < queries.length) {
          const u64 at = static_cast<u64>(static_cast<u32>(queries.first + tile + row + lane)) * p.heads + head;
          lse = global<const float>(p.lse)[at] * LOG2_E;
          delta = global<const float>(p.delta)[at];
        }
        asm volatile("st.shared.f32 [%0], %1;\n\tst.shared.f32 [%0 + 256], %2;" ::"r"(values + 4 * row), "f"(lse), "f"(delta)
                     : "memory");
      }
      if (lane == 0) {
        const int seen = number % 2 != 0 && p.causal != 0 ? keys.begin() - tile : -KEY_ROWS;
        store_words(shared + S::SEEN + 16 * ring.slot, seen, queries.begin, queries.end, 0);
      }
      if (tile + QUERY_ROWS > queries.length) {
        mbarrier_wait(shared + S::VISIT_LANDED + 8 * ring.slot, landed >> ring.slot & 1);
        landed ^= 1u << ring.slot;
        const u32 q = shared + S::VISIT + ring.slot * S::KEY_TILE;
        replace_rows<HEAD_DIM, QUERY_ROWS>(q, nullptr, 0, queries.length - tile, 0);
        replace_rows<HEAD_DIM, QUERY_ROWS>(q + S::QUERY_TILE, nullptr, 0, queries.length - tile, 0);
        fence_async_proxy();
      }
      __syncwarp();
      arrive_of_warp(shared + S::VISIT_FULL + 8 * ring.slot);
      ring.advance();
    });
    __syncwarp();
    arrive_of_warp(shared + S::TILE_FREE + 8 * tiles.slot);
    tiles.advance();
  }
  __syncwarp();
  arrive_of_warp(shared + S::TILE_FREE + 8 * tiles.slot);
  tiles.advance();
}

// A tile of queries. Its description in shared memory has the fields of PositionTile and the prefix; first < 0 means
// that there are no more tiles.
struct QueryRows {
  u32 at;

  __device__ __forceinline__ void store(const PositionTile& tile, const TokenRange& prefix) const {
    store_words(at, tile.shift, tile.end, tile.first, static_cast<int>(tile.head));
    store_words(at + 16, static_cast<int>(tile.no_query), prefix.first, prefix.count, 0);
  }
  __device__ __forceinline__ void load(PositionTile& tile) const {
    int head;
    load_words(at, tile.shift, tile.end, tile.first, head);
    tile.head = static_cast<u32>(head);
    tile.no_query = static_cast<u32>(load_word(at + 16));
  }
  __device__ __forceinline__ TokenRange prefix() const { return {load_word(at + 20), load_word(at + 24)}; }
};

// Returns how many rows of a box of 128 keys, which begins with key `first`, hold the keys first, first + 1, .... There
// are fewer than 128 if the prefix or the sequence ends in the box.
__device__ __forceinline__ int rows_of_box(int first, int prefix_keys, int end) {
  return min(KEY_ROWS, (first < prefix_keys ? min(prefix_keys, end) : end) - first);
}

// Second part of the kernel (dq), warp 0: copies tiles of queries, and blocks of keys and values in descending order.
template <int HEAD_DIM>
__device__ __forceinline__ void copy_blocks(const BwdParams& p, u32 shared, SlotRing<BackwardShared<HEAD_DIM>::TILES>& tiles,
                                            u32 number) {
  using S = BackwardShared<HEAD_DIM>;
  const bool leads = threadIdx.x % 32 == 0;
  SlotRing<S::KEY_SLOTS> keys;
  SlotRing<S::VALUE_SLOTS> values;
  u32 pair_parity = 1;
  const u32 before = KeyPart::numbers(p);
#pragma unroll 1
  for (; number - before < packed_tiles(p).count(p); number = next_tile_number(p, number)) {
    PositionTile tile;
    TokenRange prefix;
    if (!find_packed(p, number - before, tile, prefix)) continue;
    mbarrier_wait(shared + S::TILE_FREE + 8 * tiles.slot, tiles.parity ^ 1);
    const QueryRows queries{shared + S::TILE + 32 * tiles.slot};
    if (leads) {
      queries.store(tile, prefix);
      mbarrier_arrive(shared + S::TILE_FULL + 8 * tiles.slot);
    }
    tiles.advance();
    mbarrier_wait(shared + S::PAIR_FREE, pair_parity);
    pair_parity ^= 1;
    if (leads) {
      mbarrier_arrive_expecting(shared + S::PAIR_FULL, 2 * S::KEY_TILE);
#pragma unroll 1
      for (int w = 0; w < GRADIENT_GROUPS; ++w) {
        const int token = tile.shift + tile.first + QUERY_ROWS * w, head = static_cast<int>(tile.head);
        copy_head<HEAD_DIM, QUERY_ROWS>(shared + S::Q + w * S::QUERY_TILE, &p.q_map, shared + S::PAIR_FULL, token, head);
        copy_head<HEAD_DIM, QUERY_ROWS>(shared + S::D_O + w * S::QUERY_TILE, &p.d_o_map, shared + S::PAIR_FULL, token, head);
      }
    }
    const int kv_head = static_cast<int>(tile.head / (p.heads / p.kv_heads));
#pragma unroll 1
    for (int first = (tile.blocks(p.causal != 0) - 1) * KEY_ROWS; first >= 0; first -= KEY_ROWS) {
      const bool whole = rows_of_box(first, prefix.count, tile.end) == KEY_ROWS;
      const int token = first + (first < prefix.count ? prefix.first : tile.shift);
      mbarrier_wait(shared + S::KEYS_FREE + 8 * keys.slot, keys.parity ^ 1);
      if (leads) {
        const u32 barrier = shared + (whole ? S::KEYS_FULL : S::KEYS_LANDED) + 8 * keys.slot;
        mbarrier_arrive_expecting(barrier, S::KEY_TILE);
        copy_head<HEAD_DIM, KEY_ROWS>(shared + S::KEYS + keys.slot * S::KEY_TILE, &p.k_map, barrier, token, kv_head);
      }
      keys.advance();
      mbarrier_wait(shared + S::VALUES_FREE + 8 * values.slot, values.parity ^ 1);
      if (leads) {
        const u32 barrier = shared + (whole ? S::VALUES_FULL : S::VALUES_LANDED) + 8 * values.slot;
        mbarrier_arrive_expecting(barrier, S::KEY_TILE);
        copy_head<HEAD_DIM, KEY_ROWS>(shared + S::VALUES + values.slot * S::KEY_TILE, &p.v_map, barrier, token, kv_head);
      }
      values.advance();
    }
  }
  mbarrier_wait(shared + S::TILE_FREE + 8 * tiles.slot, tiles.parity ^ 1);
  if (leads) {
    asm volatile("st.shared.b32 [%0 + 8], -1;" ::"r"(shared + S::TILE + 32 * tiles.slot) : "memory");
    mbarrier_arrive(shared + S::TILE_FULL + 8 * tiles.slot);
  }
}

// Second part of the kernel (dq), warp 1: replaces the rows of keys and values that belong to other sequences.
template <int HEAD_DIM>
__device__ __forceinline__ void complete_blocks(const BwdParams& p, u32 shared,
                                                SlotRing<BackwardShared<HEAD_DIM>::TILES>& tiles) {
  using S = BackwardShared<HEAD_DIM>;
  SlotRing<S::KEY_SLOTS> keys;
  SlotRing<S::VALUE_SLOTS> values;
  u32 landed = 0;  // parity of each slot's barrier, first those of keys
#pragma unroll 1
  for (;; tiles.advance()) {
    mbarrier_wait(shared + S::TILE_FULL + 8 * tiles.slot, tiles.parity);
    const QueryRows queries{shared + S::TILE + 32 * tiles.slot};
    PositionTile tile;
    queries.load(tile);
    if (tile.first < 0) break;
#pragma unroll 1
    for (int first = (tile.blocks(p.causal != 0) - 1) * KEY_ROWS; first >= 0; first -= KEY_ROWS) {
      const int rows = rows_of_box(first, queries.prefix().count, tile.end);
      if (rows < KEY_ROWS) {
        const u64 stride = static_cast<u64>(p.kv_heads) * HEAD_DIM, head = tile.head / (p.heads / p.kv_heads) * HEAD_DIM;
        const u64 own = static_cast<u64>(static_cast<long long>(tile.shift + first)) * stride + head;
        mbarrier_wait(shared + S::KEYS_LANDED + 8 * keys.slot, landed >> keys.slot & 1);
        landed ^= 1u << keys.slot;
        replace_rows<HEAD_DIM, KEY_ROWS>(shared + S::KEYS + keys.slot * S::KEY_TILE, global<const bf16>(p.k) + own, stride, rows,
                                         tile.end - first);
        mbarrier_wait(shared + S::VALUES_LANDED + 8 * values.slot, landed >> (S::KEY_SLOTS + values.slot) & 1);
        landed ^= 1u << (S::KEY_SLOTS + values.slot);
        replace_rows<HEAD_DIM, KEY_ROWS>(shared + S::VALUES + values.slot * S::KEY_TILE, global<const bf16>(p.v) + own, stride,
                                         rows, tile.end - first);
        // One fence is enough for keys and values, because consumers wait for both arrays before they issue products.
        fence_async_proxy();
        __syncwarp();
        arrive_of_warp(shared + S::KEYS_FULL + 8 * keys.slot);
        arrive_of_warp(shared + S::VALUES_FULL + 8 * values.slot);
      }
      keys.advance();
      values.advance();
    }
    __syncwarp();
    arrive_of_warp(shared + S::TILE_FREE + 8 * tiles.slot);
  }
}
