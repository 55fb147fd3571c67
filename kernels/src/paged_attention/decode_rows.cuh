// Decode in bf16 on sm_90a. Sums have the order of attention/row_state.cuh, as in the forward pass, so the output of
// a decoded token is bit-identical to the output of the same token in training. Used for head_dim 64, 80 and 128.
//
//   for each item: for each block of 128 keys, descending: for each tile of 8 rows:
//     warp w: S^T = K Q^T of keys 16 w .. 16 w + 16 of both stages -> shared memory; barrier of the group of warps
//     every warp: reads the 128 scores of its rows; weights P, sums                       (RowStates of row_state.cuh)
//     warp w: O^T += V^T P^T for columns 16 w .. 16 w + 16 and 16 (w + 4) .. 16 (w + 5)
//   end of a segment: with a workspace its state is stored, and a second launch merges the segments of each row;
//     without one, or with a single segment: merged into the total in registers, o = O / sum
//
// A producer warp (decode_producer.cuh) copies, and two groups of four warps compute: tile 2 n + g of an item belongs
// to group g. A row is a (token, query head). With up to 8 query heads per key head, and no shared pages, an item has
// one tile.
//
// The second launch starts early (cuh/dependent.cuh) and costs less than a merge by the block that finishes last:
// prototypes read 3.66 and 2.93 TB/s on an H200.
//
// Scores in shared memory are f32 [8 rows][key ^ 8 f(row)] with f(row) = (row + row / 4) % 4: neither the stores (8
// keys of four even or four odd rows) nor the loads (pairs of keys of 4 rows) have bank conflicts.
#pragma once

#include "paged_attention/decode_producer.cuh"

template <int HEAD_DIM>
struct DecodeConsumer {
  using S = DecodeShared<HEAD_DIM>;
  static constexpr int STEPS = HEAD_DIM / 16;          // steps of q . k
  static constexpr int PARTS = (HEAD_DIM + 63) / 64;   // 16-column parts of the output of a warp, 64 columns apart
  static constexpr int TILES = S::QUERY_SLOTS;         // largest number of tiles of a group
  static constexpr u32 ALL = 0xffffffffu;

  using Queries = u32[STEPS][2];
  using Output = float[PARTS][4];  // parts of columns; (column g, rows 2 t and 2 t + 1), (column g + 8, the same rows)

  const Params& p;
  u32 shared;
  int group, warp, lane;  // warp: in its group
  RingPosition<S::STAGES> ring;
  RingPosition<S::QUERY_SLOTS> queries;
  u32 buffer = 0;  // offset of the buffer of scores that is used next

  __device__ __forceinline__ void arrive(u32 barrier) {
    __syncwarp();
    if (lane == 0) mbarrier_arrive(barrier);
  }
  // Waits at the barrier of the group's four warps. The barrier number is a constant, since the compiler assumes that a
  // number in a register may be any of the 16 barriers.
  __device__ __forceinline__ void sync_group() {
    if (group == 0) asm volatile("bar.sync 1, 128;" ::: "memory");
    else asm volatile("bar.sync 2, 128;" ::: "memory");
  }
  __device__ __forceinline__ u32 stage(int slot) const { return shared + slot * S::STAGE; }
  __device__ __forceinline__ void wait_for_stage() { mbarrier_wait(shared + S::FULL + 8 * ring.slot, ring.parity); }

  // Waits until the first stage (64 keys and values) of the next block of keys has been copied.
  __device__ __forceinline__ DecodeBlock next_block() {
    wait_for_stage();
    DecodeBlock block;
    block.load(shared + S::BLOCKS + 16 * ring.slot);
    return block;
  }
  // Waits until the second stage (64 keys and values) of the block of keys has been copied, if it has one. Returns the
  // ring slot of the first stage.
  __device__ __forceinline__ int second_stage(int keys) {
    const int first = ring.slot;
    if (keys > STAGE_KEYS) {
      ring.template advance<1>();
      wait_for_stage();
    }
    return first;
  }
  __device__ __forceinline__ void free_stages(int first, int keys) {
    arrive(shared + S::FREE + 8 * first);
    if (keys > STAGE_KEYS && lane == 0) mbarrier_arrive(shared + S::FREE + 8 * ring.slot);
    ring.template advance<1>();
  }

  // Loads the queries of this group's tile (8 rows) from a slot as right operands of mma.sync.
  __device__ __forceinline__ void load_queries(int slot, Queries& q) const {
    const int row = 8 * group + lane % 8;
    const u32 at = shared + S::QUERIES + slot * S::QUERY_SLOT + row * S::QUERY_PITCH + lane / 8 * 16;
#pragma unroll
    for (int step = 0; step < STEPS; step += 2) {
      u32 r[4];
      if (step + 1 < STEPS) {
        ldmatrix_x4(r, at + step * 32);
        q[step + 1][0] = r[2], q[step + 1][1] = r[3];
      } else {
        ldmatrix_x2(reinterpret_cast<u32(&)[2]>(r), at + step * 32);
      }
      q[step][0] = r[0], q[step][1] = r[1];
    }
  }

  __device__ __forceinline__ u32 score_address(int row, int key) const {
    const u32 scores = shared + S::SCORES + group * 2 * S::SCORE_BUFFER + buffer;
    return scores + (row * ROW_BLOCK_KEYS + (key ^ ((row + row / 4) & 3) << 3)) * 4;
  }

  // Computes this warp's scores, of 16 keys of each of N stages, and stores them in shared memory. Scores of keys from
  // `keys` on are -inf.
  template <int N>
  __device__ __forceinline__ void store_scores(const Queries& q, const int (&slots)[2], int keys) const {
    const int g = lane / 4, t = lane % 4;
    float s[N][4] = {};
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        u32 k[4];
        ldmatrix_x4(k, stage(slots[i]) + S::offset(16 * warp + lane % 16, 2 * step + lane / 16));
        mma_bf16(s[i], k, q[step][0], q[step][1]);
      }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = STAGE_KEYS * i + 16 * warp + g + j / 2 * 8;
        const float score = key < keys ? s[i][j] : minus_infinity();
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(score_address(2 * t + j % 2, key)), "f"(score) : "memory");
      }
    }
  }

  // o += V^T P^T for keys 16 step .. 16 step + 16 of the block, which are in the stage in `slot`. Values of keys that
  // no row sees are replaced by 0, since the cache may hold anything there.
  template <bool WHOLE>
  __device__ __forceinline__ void add_values(const float (&s)[32], Output& o, int step, int slot, int keys) const {
    const u32 p0 = pack_bf16(s[4 * step], s[4 * step + 1]), p1 = pack_bf16(s[4 * step + 2], s[4 * step + 3]);
    u32 seen[2];
    if constexpr (!WHOLE) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int key = 16 * step + 2 * (lane % 4) + 8 * h;
        seen[h] = (key < keys ? 0xffffu : 0u) | (key + 1 < keys ? 0xffff0000u : 0u);
      }
    }
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      if (HEAD_DIM % 64 != 0 && 4 * part + warp >= STEPS) continue;
      u32 v[4];
      const int row = step % 4 * 16 + lane % 8 + lane / 16 * 8, chunk = 2 * (4 * part + warp) + lane / 8 % 2;
      ldmatrix_x4_trans(v, stage(slot) + S::TILE + S::offset(row, chunk));
      if constexpr (!WHOLE) v[0] &= seen[0], v[1] &= seen[0], v[2] &= seen[1], v[3] &= seen[1];
      mma_bf16(o[part], v, p0, p1);
    }
  }

  // Adds a block of keys to the softmax state and the output of a tile. WHOLE: the rows see all 128 keys of the block.
  template <bool WHOLE>
  __device__ __forceinline__ void add_block(const Queries& q, RowStates<1>& row, Output& o, const int (&slots)[2],
                                            int keys) {
    if (WHOLE || keys > STAGE_KEYS) store_scores<2>(q, slots, WHOLE ? ROW_BLOCK_KEYS : keys);
    else store_scores<1>(q, slots, keys);
    sync_group();
    float s[ROW_BLOCK_KEYS / 4];
#pragma unroll
    for (int i = 0; i < ROW_BLOCK_KEYS / 8; ++i) {
      s[2 * i] = s[2 * i + 1] = minus_infinity();
      if (WHOLE || i < STAGE_KEYS / 8 || keys > STAGE_KEYS) {
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                     : "=f"(s[2 * i]), "=f"(s[2 * i + 1])
                     : "r"(score_address(lane / 4, 8 * i + 2 * (lane % 4)))
                     : "memory");
      }
    }
    buffer ^= S::SCORE_BUFFER;
    row.add<ROW_BLOCK_KEYS, false>(s, p.score_factor);
    if (row.rescales) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float alpha = __shfl_sync(ALL, row.alpha[0], 4 * (2 * (lane % 4) + h));
#pragma unroll
        for (int i = 0; i < 2 * PARTS; ++i) o[i / 2][i % 2 * 2 + h] = __fmul_rn(o[i / 2][i % 2 * 2 + h], alpha);
      }
    }
    if (WHOLE || keys == ROW_BLOCK_KEYS) {
#pragma unroll
      for (int step = 0; step < ROW_BLOCK_KEYS / 16; ++step) add_values<true>(s, o, step, slots[step / 4], keys);
    } else {
#pragma unroll
      for (int step = 0; step < ROW_BLOCK_KEYS / 16; ++step) {
        if (16 * step < keys) add_values<false>(s, o, step, slots[step / 4], keys);
      }
    }
  }

  __device__ __forceinline__ static void clear(RowStates<1>& row, Output& o) {
    row.clear();
#pragma unroll
    for (int i = 0; i < 4 * PARTS; ++i) o[i / 4][i % 4] = 0;
  }

  // Calls f(part, i, column) for each output element o[part][i] that this lane holds of row 2 t + h.
  template <class F>
  __device__ __forceinline__ void for_each_column(int h, const F& f) const {
#pragma unroll
    for (int i = 0; i < 2 * PARTS; ++i) {
      const int tile = i / 2 * 4 + warp;
      if (HEAD_DIM % 64 == 0 || tile < STEPS) f(i / 2, i % 2 * 2 + h, 16 * tile + i % 2 * 8 + lane / 4);
    }
  }

  // Stores the state of a tile for one segment (512 keys) in the workspace: output, maximum and sum. `first` is the
  // tile's first row.
  __device__ __forceinline__ void store_part(const DecodeBlock& block, int first, const RowStates<1>& row,
                                             const Output& o) const {
    const int own = first + lane / 4;
    if (warp == 0 && lane % 4 == 0 && own < block.rows()) {
      *part_of(p, block.head_index(p, own), block.segment()).stats = make_float2(row.m[0], row.l[0]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = first + 2 * (lane % 4) + h;
      if (r >= block.rows()) continue;
      float* const columns = part_of(p, block.head_index(p, r), block.segment()).columns;
      for_each_column(h, [&](int part, int i, int column) { columns[column] = o[part][i]; });
    }
  }

  __device__ __forceinline__ void store_output(const DecodeBlock& block, int first, float sum, const Output& o) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = 2 * (lane % 4) + h;
      const float inverse = __frcp_rn(__shfl_sync(ALL, sum, 4 * row));
      if (first + row >= block.rows()) continue;
      bf16* const to = global<bf16>(p.o) + block.head_index(p, first + row) * HEAD_DIM;
      for_each_column(h, [&](int part, int i, int column) {
        to[column] = from_f32<bf16>(__fmul_rn(o[part][i], inverse));
      });
    }
  }

  // Merges the total over the segments with later keys, which are already computed, into the state of this segment.
  __device__ __forceinline__ void merge_total(RowStates<1>& row, Output& o, float total_m, float total_l,
                                              const Output& total) const {
    const float c = p.score_factor;
    const float total_weight = merge_weight(total_m, row.m[0], c), weight = merge_weight(row.m[0], total_m, c);
    row.l[0] = merged_value(total_l, total_weight, row.l[0], weight);
    row.m[0] = fmaxf(total_m, row.m[0]);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int of = 4 * (2 * (lane % 4) + h);
      const float a = __shfl_sync(ALL, total_weight, of), b = __shfl_sync(ALL, weight, of);
#pragma unroll
      for (int i = 0; i < 2 * PARTS; ++i) {
        float& x = o[i / 2][i % 2 * 2 + h];
        x = merged_value(total[i / 2][i % 2 * 2 + h], a, x, b);
      }
    }
  }

  // Computes an item of work of at most 16 rows (token, query head): one tile of 8 rows, or two tiles, one for each
  // group of warps.
  __device__ __forceinline__ void few_rows(DecodeBlock block) {
    const bool has_tile = 8 * group < block.rows();
    const int first = 8 * group;
    Queries q;
    mbarrier_wait(shared + S::QUERY_FULL + 8 * queries.slot, queries.parity);
    load_queries(queries.slot, q);
    arrive(shared + S::QUERY_FREE + 8 * queries.slot);
    queries.template advance<1>();
    RowStates<1> row;
    Output o, total;
    float total_m = 0, total_l = 0;
    bool merged = false;  // whether there is a total
    clear(row, o);
#pragma unroll 1
    for (;;) {
      const int slot = second_stage(block.keys);
      if (has_tile) add_block<false>(q, row, o, {slot, ring.slot}, block.keys);
      free_stages(slot, block.keys);
      if (has_tile && block.state & DecodeBlock::ENDS_SEGMENT) {
        row.add_lanes();
        if (block.state & DecodeBlock::PARTIAL) {
          store_part(block, first, row, o);
        } else {
          if (merged) merge_total(row, o, total_m, total_l, total);
          if (block.state & DecodeBlock::ENDS_ITEM) {
            store_output(block, first, row.l[0], o);
          } else {
            merged = true, total_m = row.m[0], total_l = row.l[0];
#pragma unroll
            for (int i = 0; i < 4 * PARTS; ++i) total[i / 4][i % 4] = o[i / 4][i % 4];
            clear(row, o);
          }
        }
      }
      if (block.state & DecodeBlock::ENDS_ITEM) return;
      block = next_block();
    }
  }

  // Computes a segment of 512 keys for several tokens that share its pages. Every row sees all 512 keys.
  __device__ __forceinline__ void many_rows(DecodeBlock block) {
    const int slots = ceil_div(block.rows(), QUERY_ROWS), tiles = ceil_div(block.rows() - 8 * group, QUERY_ROWS);
    const RingPosition<S::QUERY_SLOTS> begin = queries;
    RowStates<1> row[TILES];
    Output o[TILES];
#pragma unroll
    for (int n = 0; n < TILES; ++n) clear(row[n], o[n]);
#pragma unroll 1
    for (;;) {
      const int slot = second_stage(ROW_BLOCK_KEYS);
      queries = begin;
#pragma unroll
      for (int n = 0; n < TILES; ++n) {
        if (n < slots) {
          mbarrier_wait(shared + S::QUERY_FULL + 8 * queries.slot, queries.parity);
          Queries q;
          load_queries(queries.slot, q);
          if (block.state & DecodeBlock::ENDS_ITEM) arrive(shared + S::QUERY_FREE + 8 * queries.slot);
          if (n < tiles) add_block<true>(q, row[n], o[n], {slot, ring.slot}, ROW_BLOCK_KEYS);
          queries.template advance<1>();
        }
      }
      free_stages(slot, ROW_BLOCK_KEYS);
      if (block.state & DecodeBlock::ENDS_ITEM) break;
      block = next_block();
    }
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      if (n >= tiles) continue;
      row[n].add_lanes();
      store_part(block, QUERY_ROWS * n + 8 * group, row[n], o[n]);
    }
  }

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (;;) {
      const DecodeBlock block = next_block();
      if (block.state & DecodeBlock::NO_MORE) return;
      if (block.rows() <= QUERY_ROWS) few_rows(block);
      else many_rows(block);
    }
  }
};

template <int HEAD_DIM>
__device__ __forceinline__ void decode_rows(const Params& p) {
  using S = DecodeShared<HEAD_DIM>;
  extern __shared__ __align__(1024) char decode_memory[];
  const u32 shared = shared_address(decode_memory);
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::STAGES; ++i) {
      mbarrier_init(shared + S::FULL + 8 * i, 1);
      mbarrier_init(shared + S::FREE + 8 * i, DECODE_WARPS);  // an arrival for each warp
    }
    for (int i = 0; i < S::QUERY_SLOTS; ++i) {
      mbarrier_init(shared + S::QUERY_FULL + 8 * i, 1);
      mbarrier_init(shared + S::QUERY_FREE + 8 * i, DECODE_WARPS);
    }
    // redundant: the producer's fence before each copy (wait_for_stage, copy_queries) covers mbarriers, too.
    fence_mbarrier_init();
  }
  // Clears the slots for queries, because a tile of fewer than 8 rows also reads rows that no copy has written.
  for (int i = threadIdx.x; i < S::QUERY_SLOTS * S::QUERY_SLOT / 16; i += DECODE_THREADS) {
    reinterpret_cast<Words<16>*>(decode_memory + S::QUERIES)[i] = Words<16>{};
  }
  // redundant: the producer has a fence of its own before each copy of queries (copy_queries).
  fence_async_proxy();
  if (threadIdx.x == DECODE_WARPS * 32) prefetch_tensor_map(&p.k_map), prefetch_tensor_map(&p.v_map);
  __syncthreads();
  wait_for_previous_launch();
  let_next_launch_start();
  if (warp == DECODE_WARPS) {
    DecodeProducer<HEAD_DIM>{p, shared, {}, {}}.run(*reinterpret_cast<SharedWork*>(decode_memory + S::WORK));
  } else {
    DecodeConsumer<HEAD_DIM> consumer{p, shared, warp / 4, warp % 4, static_cast<int>(threadIdx.x % 32), {}, {}};
    consumer.run();
  }
}

// Merges the segments (512 keys each) of a row in descending order, one warp per row. Rows with only one segment
// already have their output.
__device__ __forceinline__ void combine_rows(const Params& p) {
  constexpr int LOADS = 16;  // segments that are loaded at a time
  constexpr u32 ALL = 0xffffffffu;
  // The next launch (the output projection) loads its weights to shared memory while decode still runs.
  let_next_launch_start();
  wait_for_previous_launch();
  const u64 row = static_cast<u64>(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
  if (row >= static_cast<u64>(p.tokens) * p.heads) return;
  const int segments = ceil_div(keys_of_token(p, static_cast<int>(row / p.heads)).keys, SEGMENT);
  if (segments <= 1) return;
  const int lane = threadIdx.x % 32, column = 4 * lane, d = p.head_dim;
  const float c = p.score_factor;
  float total[4] = {}, sum = 0, total_m = minus_infinity();
#pragma unroll 1
  for (int top = segments - 1; top >= 0; top -= LOADS) {
    float x[LOADS][4];
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      if (i <= top && column < d) load_vector(part_of(p, row, top - i).columns + column, x[i]);
    }
    // Lane i holds the maximum and the sum of segment top - i. `before` holds the maximum over the segments with later
    // keys.
    float2 own = make_float2(minus_infinity(), 0);
    if (lane < LOADS && lane <= top) own = *part_of(p, row, top - lane).stats;
    float up_to = own.x;
#pragma unroll
    for (int step = 1; step < LOADS; step *= 2) {
      const float y = __shfl_up_sync(ALL, up_to, step);
      if (lane >= step) up_to = fmaxf(up_to, y);
    }
    float before = __shfl_up_sync(ALL, up_to, 1);
    before = lane == 0 ? total_m : fmaxf(before, total_m);
    total_m = fmaxf(total_m, __shfl_sync(ALL, up_to, LOADS - 1));
    const float total_weight = merge_weight(before, own.x, c), weight = merge_weight(own.x, before, c);
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const float a = __shfl_sync(ALL, total_weight, i), b = __shfl_sync(ALL, weight, i);
      const float l = __shfl_sync(ALL, own.y, i);
      if (i > top) continue;
      const bool first = i == 0 && top == segments - 1;  // the first segment is the total
      sum = first ? l : merged_value(sum, a, l, b);
#pragma unroll
      for (int j = 0; j < 4; ++j) total[j] = first ? x[i][j] : merged_value(total[j], a, x[i][j], b);
    }
  }
  if (column >= d) return;
  const float inverse = __frcp_rn(sum);
#pragma unroll
  for (int j = 0; j < 4; ++j) total[j] = __fmul_rn(total[j], inverse);
  store_vector(global<bf16>(p.o) + row * d + column, total);
}
