// Forward pass on sm_90a for head_dim 64, 72, 80 and 128: blocks of threads with one producer warp (forward_producer.cuh)
// and two or three warpgroups that compute 64 queries each. Order of sums: row_state.cuh. With head_dim 64 and 128:
//
//   producer:   for each tile: copy queries; for each block of keys, descending: copy keys; copy values
//   consumer:   s = q k^T of the tile's first block; mask; p = softmax(s)
//               for each further block:
//                 issue s' = q k'^T; issue o += p v               # tensor cores
//                 p' = softmax(s') once s' is complete            # meanwhile, on the other units
//                 once o is complete: rescale o, or merge it into the total if a segment ends
//               issue s' = q k'^T of the next tile; issue o += p v; softmax(s'); store o
//
// The grid is persistent: a block of threads for each multiprocessor takes one tile after the other, and the products
// of the next tile's first block fill the tensor cores while the last tile is stored. The two warpgroups issue their
// products in turns (named barriers 1 and 2), so that the softmax of one overlaps the products of the other.
//
// Queries and the weights p are operands in registers; keys and values are read from the ring. A causal tile has one
// block on its diagonal, of which the first warpgroup multiplies only the 64 keys that its queries see (HALF).
//
// With head_dim 72 and 80 there are three warpgroups, which do not overlap their own work (run_without_overlap):
//
//   consumer:   for each block of keys: s = q k^T; p = softmax(s); o += p v; if a segment ends, merge o into the total
//
// The softmax of one overlaps the products of the other two, without turns. A prototype of this form took 0.84 times
// the time of one with two warpgroups. The queries stay in shared memory, as operands of the first product.
//
// Registers: 232 per thread in consumers, 152 if there are three. To avoid spills, values that are used once per tile
// (thread number, description of the tile) are read again each time, and the totals with their references and weights
// are in shared memory.
#pragma once

#include "attention/forward_producer.cuh"
#include "cuh/mma.cuh"
#include "cuh/wgmma.cuh"

template <int HEAD_DIM>
constexpr int WGMMA_THREADS = 128 * (ForwardShared<HEAD_DIM>::CONSUMERS + 1);

template <int ROWS, int N, class T>
__device__ __forceinline__ void keep_registers(T (&x)[ROWS][N]) {
#pragma unroll
  for (int i = 0; i < ROWS; ++i) keep_registers(x[i]);
}

__device__ __forceinline__ void load_shared(u32 at, float (&x)[4]) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "r"(at)
               : "memory");
}
__device__ __forceinline__ void store_shared(u32 at, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

// Returns log2(x) with a relative error of 2^-22; for x between 0.5 and 2 the error of 2^-22 is absolute.
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Stores row 8 r of the warp's 16 rows plus lane / 4, whose values in the products' sums are o times `inverse`. quad:
// lane % 4. All lanes of the warp call the function; lanes with `valid` store.
template <int HEAD_DIM, int N>
__device__ __forceinline__ void store_row(bf16* out, const float (&o)[N], int r, float inverse, int quad,
                                          bool valid) {
#pragma unroll
  for (int g = 0; g + 4 <= HEAD_DIM / 8; g += 4) {
    u32 v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int i = 4 * (g + k) + 2 * r;
      v[k] = pack_bf16(__fmul_rn(o[i], inverse), __fmul_rn(o[i + 1], inverse));
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
    if (valid) *reinterpret_cast<Words<16>*>(out + 8 * (g + quad)) = Words<16>{{v[0], v[1], v[2], v[3]}};
  }
#pragma unroll
  for (int g = HEAD_DIM / 32 * 4; g < HEAD_DIM / 8; ++g) {
    const int i = 4 * g + 2 * r;
    const u32 pair = pack_bf16(__fmul_rn(o[i], inverse), __fmul_rn(o[i + 1], inverse));
    if (valid) *reinterpret_cast<u32*>(out + 8 * g + 2 * quad) = pair;
  }
}

// Returns the log-sum-exp of a row with this reference and sum of weights.
__device__ __forceinline__ float log_sum(float reference, float sum, float c) {
  return __fmul_rn(__fadd_rn(__fmul_rn(reference, c), log2_approx(sum)), LN_2);
}

// State of a warpgroup that computes. HALF: in the first block of every tile, the queries of this warpgroup see only
// the first 64 keys. SECOND: the warpgroup is known to be number 1, whose turns follow those of warpgroup 0; without
// SECOND it may be either one.
template <int HEAD_DIM, bool HALF, bool SECOND>
struct ForwardConsumer {
  using S = ForwardShared<HEAD_DIM>;
  static constexpr int STEPS = S::COLUMNS / 16;  // steps of a product over a group of columns
  static constexpr int FIRST = HALF ? ROW_BLOCK_KEYS / 2 : ROW_BLOCK_KEYS;  // keys of a tile's first block

  u32 shared;
  int group;  // number of this warpgroup
  float c;
  bool causal;
  // The thread's values of rows g = lane / 4 and g + 8 of the warp's 16 rows. s: the scores, which become weights. o:
  // the output. p and q: the weights and the queries, as operands of products.
  float s[ROW_BLOCK_KEYS / 2], o[S::WIDTH / 2];
  u32 p[ROW_BLOCK_KEYS / 16][4], q[S::KEEPS_QUERIES ? 1 : HEAD_DIM / 16][4];
  RowPair rows;
  bool merged = false;    // whether there is a total in shared memory
  int keep = 0;           // 1: the next product with v adds to o; 0: it begins o
  RingPosition<S::SLOTS> keys, values;
  RingPosition<S::TILES> next;

  __device__ __forceinline__ void arrive(u32 barrier) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
  }
  __device__ __forceinline__ u32 full(int slot) const { return shared + S::FULL + 8 * slot; }
  __device__ __forceinline__ u32 free(int slot) const { return shared + S::FREE + 8 * slot; }

  // The two warpgroups issue their products in turns.
  __device__ __forceinline__ void take_turn() { named_barrier_sync(1 + group, 256); }
  __device__ __forceinline__ void pass_turn() { named_barrier_arrive(2 - group, 256); }

  // Reads the description of the next tile; returns false if there are no more tiles.
  __device__ __forceinline__ bool read_tile(PositionTile& tile) {
    mbarrier_wait(shared + S::TILE_FULL + 8 * next.slot, next.parity);
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tile.shift), "=r"(tile.end), "=r"(tile.first), "=r"(tile.head)
                 : "r"(shared + S::TILE + 32 * next.slot)
                 : "memory");
    next.template advance<1>();
    return tile.first >= 0;
  }

  __device__ __forceinline__ void load_queries() {
    mbarrier_wait(full(keys.slot), keys.parity);
    const u32 base = shared + keys.slot * S::SLOT + group * S::QUERIES;
    const int id = static_cast<int>(thread()), lane = id % 32, row = id / 32 * 16 + lane % 16;
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k) {
      ldmatrix_x4(q[k], base + S::template offset<S::GROUP / 2>(row, 2 * k + lane / 16));
    }
    fence_async_proxy();
    // redundant: in the simulator the last ldmatrix orders the lanes.
    __syncwarp();
    free_slot();
  }

  // Frees the slot at `keys`; the next slot follows.
  __device__ __forceinline__ void free_slot() {
    arrive(free(keys.slot));
    keys.template advance<1>();
  }

  // Waits until the keys or values that this warpgroup multiplies in its turn have been copied to the ring.
  __device__ __forceinline__ void wait_for_turn(const RingPosition<S::SLOTS>& at) {
    if constexpr (SECOND) {
      // redundant: warpgroup 0 has waited for the same copy before it passed this turn.
      mbarrier_wait(full(at.slot), at.parity);
    } else {
      mbarrier_wait(full(at.slot), at.parity);
    }
  }
  __device__ __forceinline__ void free_keys() {
    arrive(free(keys.slot));
    keys.template advance<2>();
  }
  __device__ __forceinline__ void free_values() {
    arrive(free(values.slot));
    values.template advance<2>();
  }

  // Issues s = q k^T for the first KEYS keys of the block, which are in this slot.
  template <int KEYS>
  __device__ __forceinline__ void issue_scores(int slot) {
    wgmma_fence();
    // The wgmma form depends on head_dim. With rs_new, the kernel of head_dim 128 spills registers. With rs, ptxas
    // serialises the products of the other head_dims in some of the kernels (C7511).
    const u64 k_tile = operand_layout<S::SWIZZLE>() | operand_address(shared + slot * S::SLOT);
#pragma unroll
    for (int k = 0; k < S::WIDTH / 16; ++k) {
      const u64 k_step = k_tile + (k / STEPS * S::GROUP + k % STEPS * 32) / 16;
      if constexpr (S::KEEPS_QUERIES) {
        const u64 q_step = operand_layout<S::SWIZZLE>() | operand_address(shared + S::QUERY + group * S::QUERIES);
        if (k == 0) Wgmma<KEYS>::template ss_new<0, K_MAJOR, K_MAJOR>(s, q_step, k_step);
        else Wgmma<KEYS>::template ss<0, K_MAJOR, K_MAJOR>(s, q_step + k * (S::GROUP / 2 / 16), k_step, 1);
      } else if (HEAD_DIM < 128 && k == 0) {
        Wgmma<KEYS>::template rs_new<0, K_MAJOR>(s, q[k], k_step);
      } else {
        Wgmma<KEYS>::template rs<0, K_MAJOR>(s, q[k], k_step, k != 0);
      }
    }
    wgmma_commit();
  }

  // Issues o += p v for the first KEYS keys of the block, whose values are in this slot.
  template <int KEYS>
  __device__ __forceinline__ void issue_output(int slot) {
    // redundant: follows the fence before the scores, but without it ptxas waits for each product.
    wgmma_fence();
    const u64 v_tile = operand_layout<S::SWIZZLE>(S::GROUP) | operand_address(shared + slot * S::SLOT);
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
      Wgmma<S::WIDTH>::template rs<0, MN_MAJOR>(o, p[k], v_tile + k * S::SWIZZLE, k == 0 ? keep : 1);
    }
    wgmma_commit();
  }

  // Whether a query of this warpgroup sees only a part of the tile's first block.
  __device__ __forceinline__ bool is_masked(const PositionTile& tile, int block) const {
    return (block + 1) * ROW_BLOCK_KEYS > (causal ? min(tile.end, tile.first + 64 * group + 1) : tile.end);
  }
  __device__ __forceinline__ void mask(const PositionTile& tile, int block) {
    const int id = static_cast<int>(thread());
    const int position = tile.first + 64 * group + id / 32 * 16 + id % 32 / 4;
    const int before = block * ROW_BLOCK_KEYS + 2 * (id % 4);
    const int low = (causal ? min(tile.end, position + 1) : tile.end) - before;
    const int high = (causal ? min(tile.end, position + 9) : tile.end) - before;
#pragma unroll
    for (int i = 0; i < FIRST / 2; ++i) {
      if (8 * (i / 4) + i % 2 >= (i & 2 ? high : low)) s[i] = minus_infinity();
    }
  }

  // Rounds the weights of KEYS keys to bf16.
  template <int KEYS>
  __device__ __forceinline__ void round_weights() {
#pragma unroll
    for (int i = 0; i < ROW_BLOCK_KEYS / 4; ++i) p[i / 4][i % 4] = i < KEYS / 4 ? pack_bf16(s[2 * i], s[2 * i + 1]) : 0;
  }

  // Layout of the total over segments, in shared memory. Output: chunk i (16 bytes) of a thread is at i * 2048 + 16 *
  // thread. State: the reference and the sum of the two rows of four lanes (a quad) are at 16 * quad. The weights of
  // the last merge are 512 bytes after the state.
  __device__ __forceinline__ u32 total_address() const { return shared + S::TOTALS + group * S::TOTAL + thread() * 16; }
  __device__ __forceinline__ u32 state_address() const { return shared + S::STATES + group * S::STATE + thread() / 4 * 16; }
  __device__ __forceinline__ static u32 thread() { return static_cast<u32>(thread_again()) % 128; }

  // Merges the references and sums of a finished segment into the total and begins the next segment. The segment's last
  // product with v may still be running.
  __device__ __forceinline__ void end_segment_state() {
    const u32 at = state_address();
    float x[4] = {minus_infinity(), 0, minus_infinity(), 0}, w[4];
    if (merged) load_shared(at, x);
    rows.add_lanes();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      w[r] = merge_weight(x[2 * r], rows.m[r], c), w[2 + r] = merge_weight(rows.m[r], x[2 * r], c);
      x[2 * r + 1] = merged_value(x[2 * r + 1], w[r], rows.l[r], w[2 + r]);
      x[2 * r] = fmaxf(x[2 * r], rows.m[r]);
    }
    // All lanes have read the old state.
    // redundant: in the simulator the shuffles of add_lanes order the lanes.
    __syncwarp();
    if (threadIdx.x % 4 == 0) {
      store_shared(at, x[0], x[1], x[2], x[3]);
      store_shared(at + 512, w[0], w[1], w[2], w[3]);
    }
    // redundant: in the simulator the wait for products before the next read orders the lanes.
    __syncwarp();
    rows.clear();
  }

  // Merges the output of a finished segment (512 keys) with the total. The result replaces the total; with LAST it
  // stays in o.
  template <bool LAST>
  __device__ __forceinline__ void end_segment_output() {
    const u32 total = total_address();
    if (merged) {
      float w[4];
      load_shared(state_address() + 512, w);
#pragma unroll
      for (int i = 0; i < S::WIDTH / 2; i += 4) {
        float x[4];
        load_shared(total + i * 512, x);
#pragma unroll
        for (int j = 0; j < 4; ++j) o[i + j] = merged_value(x[j], w[j / 2], o[i + j], w[2 + j / 2]);
      }
    }
    if constexpr (!LAST) {
#pragma unroll
      for (int i = 0; i < S::WIDTH / 2; i += 4) store_shared(total + i * 512, o[i], o[i + 1], o[i + 2], o[i + 3]);
    }
    merged = !LAST;
  }

  __device__ __forceinline__ void rescale_output() {
    if (!rows.rescales) return;
#pragma unroll
    for (int i = 0; i < S::WIDTH / 2; ++i) o[i] = __fmul_rn(o[i], rows.alpha[i / 2 % 2]);
  }

  // Computes scores and weights of `block`, while the weights of the previous block (`block` + 1, of which KEYS keys
  // are seen) are multiplied with v.
  template <int KEYS>
  __device__ __forceinline__ void step(int block) {
    // The vote tells ptxas that the condition is the same in all lanes; without it, ptxas spills registers.
    const bool ends_segment = __any_sync(0xffffffffu, block % ROW_SEGMENT_BLOCKS == ROW_SEGMENT_BLOCKS - 1);
    wait_for_turn(keys);
    take_turn();
    issue_scores<ROW_BLOCK_KEYS>(keys.slot);
    wait_for_turn(values);
    issue_output<KEYS>(values.slot);
    pass_turn();
    keep = ends_segment ? 0 : 1;
    if (ends_segment) end_segment_state();
    wgmma_wait<1>();
    keep_registers(s);
    free_keys();
    rows.add<ROW_BLOCK_KEYS, false>(s, c);
    keep_registers(s);
    compute_before_wait(rows.l[0] + rows.l[1], shared + S::TILE);
    wgmma_wait<0>();
    keep_registers(o);
    keep_registers(p);
    keep_registers(s);
    free_values();
    round_weights<ROW_BLOCK_KEYS>();
    if (ends_segment) end_segment_output<false>();
    else rescale_output();
  }

  // Stores the output and log-sum-exp of the tile whose description was read last, or of the one before if AHEAD is 1.
  template <int AHEAD, class P>
  __device__ __forceinline__ void store(const P& params) {
    end_segment_output<true>();
    float state[4];
    load_shared(state_address(), state);
    int shift, end, first, no_query;
    u32 head;
    const int stored_tile = (next.slot + S::TILES - 1 - AHEAD) % S::TILES;
    const u32 description = shared + S::TILE + 32 * stored_tile;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%5];\n\tld.shared.b32 %4, [%5 + 16];"
                 : "=r"(shift), "=r"(end), "=r"(first), "=r"(head), "=r"(no_query)
                 : "r"(description)
                 : "memory");
    // redundant: in the simulator lanes that have not diverged run together.
    __syncwarp();
    arrive(shared + S::TILE_FREE + 8 * stored_tile);
    const int id = static_cast<int>(thread()), quad = id % 4, row = 64 * group + id / 32 * 16 + id % 32 / 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = state[2 * r + 1], inverse = __frcp_rn(sum);
      const int position = first + row + 8 * r;
      const bool is_query = row + 8 * r >= no_query && position < end;
      const u64 at = static_cast<u64>(static_cast<u32>(shift + position)) * params.heads + head;
      if (is_query && quad == 0 && params.lse != 0) {
        global<float>(params.lse)[at] = log_sum(state[2 * r], sum, c);
      }
      store_row<HEAD_DIM>(global<bf16>(params.o) + at * HEAD_DIM, o, r, inverse, quad, is_query);
    }
  }

  // Sets scores of a tile's first block to -inf where queries do not see the key, and computes the weights.
  __device__ __forceinline__ void first_softmax(const PositionTile& tile, int block) {
    if (HALF || is_masked(tile, block)) mask(tile, block);
    rows.add<FIRST, true>(s, c);
  }

  template <class P>
  __device__ __forceinline__ void run(const P& params) {
    if (group == 1) pass_turn();  // warpgroup 0 has the first turn
    PositionTile tile;
    if (!read_tile(tile)) return;
    int block = tile.blocks<S::POSITIONS>(causal) - 1;
    load_queries();
    values.template advance<2>();  // queries and keys come first
    mbarrier_wait(full(keys.slot), keys.parity);
    issue_scores<FIRST>(keys.slot);
    wgmma_wait<0>();
    keep_registers(s);
    free_keys();
    first_softmax(tile, block);
    round_weights<FIRST>();
    for (;;) {
      --block;
      if (HALF && block >= 0) {
        step<FIRST>(block);
        --block;
      }
      for (; block >= 0; --block) step<ROW_BLOCK_KEYS>(block);
      PositionTile following;
      if (!read_tile(following)) break;
      // Issues the last product with v of this tile together with the first scores of the following tile.
      block = following.blocks<S::POSITIONS>(causal) - 1;
      load_queries();
      wait_for_turn(keys);
      take_turn();
      issue_scores<FIRST>(keys.slot);
      wait_for_turn(values);
      issue_output<ROW_BLOCK_KEYS>(values.slot);
      pass_turn();
      end_segment_state();
      wgmma_wait<1>();
      keep_registers(s);
      free_keys();
      first_softmax(following, block);
      keep_registers(s);
      compute_before_wait(rows.l[0] + rows.l[1], shared + S::TILE);
      wgmma_wait<0>();
      keep_registers(o);
      keep_registers(p);
      keep_registers(s);
      free_values();
      values.template advance<1>();  // the queries' slot
      round_weights<FIRST>();
      store<1>(params);
      keep = 0;
    }
    mbarrier_wait(full(values.slot), values.parity);
    issue_output<ROW_BLOCK_KEYS>(values.slot);
    end_segment_state();
    wgmma_wait<0>();
    keep_registers(o);
    keep_registers(p);
    // redundant: no copy follows that waits for the slot.
    free_values();
    // redundant: no tile follows whose description waits for the place of this one.
    store<1>(params);
  }

  // Returns x, which is the same in all lanes. ptxas then computes addresses from it in uniform registers.
  __device__ static __forceinline__ int warp_uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

  // The same for three warpgroups, which have too few registers to overlap their own products and softmax: while one
  // computes weights, the products of the others fill the tensor cores.
  template <class P>
  __device__ __forceinline__ void run_without_overlap(const P& params) {
    PositionTile tile;
    while (read_tile(tile)) {
      rows.clear();
      keep = 0;
      mbarrier_wait(shared + S::QUERY_FULL + 8 * group, (next.slot & 1) ^ 1);
      // Passes over the blocks of which this warpgroup sees no key.
      const int first = tile.first + 64 * group, end = causal ? min(tile.end, first + 64) : tile.end;
      int block = (first < tile.end ? ceil_div(end, ROW_BLOCK_KEYS) : 0) - 1;
#pragma unroll 1
      for (int i = 2 * (tile.blocks<S::POSITIONS>(causal) - 1 - block); i > 0; --i) {
        mbarrier_wait(full(keys.slot), keys.parity);
        free_slot();
      }
      if (block < 0) {
        __syncwarp();
        arrive(shared + S::QUERY_FREE + 8 * group);
        arrive(shared + S::TILE_FREE + 8 * ((next.slot + S::TILES - 1) % S::TILES));
        continue;
      }
      for (; block >= 0; --block) {
        const bool ends_segment = __any_sync(0xffffffffu, block % ROW_SEGMENT_BLOCKS == 0);
        mbarrier_wait(full(keys.slot), keys.parity);
        issue_scores<ROW_BLOCK_KEYS>(warp_uniform(keys.slot));
        wgmma_wait<0>();
        keep_registers(s);
        free_slot();
        if (block == 0) arrive(shared + S::QUERY_FREE + 8 * group);
        if (is_masked(tile, block)) mask(tile, block);
        rows.add<ROW_BLOCK_KEYS, false>(s, c);
        if (keep != 0) rescale_output();
        round_weights<ROW_BLOCK_KEYS>();
        mbarrier_wait(full(keys.slot), keys.parity);
        issue_output<ROW_BLOCK_KEYS>(warp_uniform(keys.slot));
        wgmma_wait<0>();
        keep_registers(o);
        keep_registers(p);
        free_slot();
        keep = 1;
        if (ends_segment) {
          end_segment_state();
          if (block > 0) end_segment_output<false>();
          keep = 0;
        }
      }
      store<0>(params);
    }
  }
};

template <int HEAD_DIM, bool HALF, class Source>
__device__ __forceinline__ void consume_tiles(const typename Source::Params& p, u32 shared, int group) {
  ForwardConsumer<HEAD_DIM, HALF, Source::ALWAYS_CAUSAL && !HALF> consumer;
  consumer.shared = shared;
  consumer.group = group;
  consumer.c = p.score_factor;
  consumer.causal = Source::is_causal(p);
#pragma unroll
  for (int i = 0; i < ROW_BLOCK_KEYS / 2; ++i) consumer.s[i] = 0;
#pragma unroll
  for (int i = 0; i < ForwardShared<HEAD_DIM>::WIDTH / 2; ++i) consumer.o[i] = 0;
#pragma unroll
  for (int i = 0; i < ROW_BLOCK_KEYS / 4; ++i) consumer.p[i / 4][i % 4] = 0;
  if constexpr (ForwardShared<HEAD_DIM>::CONSUMERS == 3) consumer.run_without_overlap(p);
  else consumer.run(p);
}

// Source is described in forward_producer.cuh. All threads write the source's padding at the start. If only idle
// warps of the producer wrote it, ptxas would serialise the products of head_dim 128 (C7511).
template <int HEAD_DIM, class Source>
__device__ __forceinline__ void forward_wgmma(const typename Source::Params& p) {
  using S = ForwardShared<HEAD_DIM>;
  extern __shared__ __align__(1024) char forward_memory[];
  // Start of shared memory: the address that shared_address(forward_memory) returns, but computed in 32 bits. After a
  // conversion of a 64-bit address, ptxas serialises the products of prefill with head_dim 128 (C7511).
  u32 shared;
  asm("mov.u32 %0, forward_memory;" : "=r"(shared) : "l"(forward_memory));
  Source::write_padding(p);
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::SLOTS; ++i) {
      mbarrier_init(shared + S::FULL + 8 * i, 1);
      mbarrier_init(shared + S::FREE + 8 * i, 4 * S::CONSUMERS);  // an arrival for each warp
    }
    for (int i = 0; i < S::TILES; ++i) {
      mbarrier_init(shared + S::TILE_FULL + 8 * i, 1);
      mbarrier_init(shared + S::TILE_FREE + 8 * i, 4 * S::CONSUMERS);
    }
    for (int i = 0; S::KEEPS_QUERIES && i < S::CONSUMERS; ++i) {
      mbarrier_init(shared + S::QUERY_FULL + 8 * i, 1);
      mbarrier_init(shared + S::QUERY_FREE + 8 * i, 4);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (group == 0) {
    free_registers_down_to<S::CONSUMERS == 3 ? 56 : 40>();
    if (threadIdx.x < 32) produce_tiles<HEAD_DIM, Source>(p, shared);
  } else {
    take_registers_up_to<S::CONSUMERS == 3 ? 152 : 232>();
    if (S::CONSUMERS == 2 && group == 1 && Source::is_causal(p)) consume_tiles<HEAD_DIM, true, Source>(p, shared, 0);
    else consume_tiles<HEAD_DIM, false, Source>(p, shared, group - 1);
  }
}
