// The warp of a decode block on sm_90a that finds work and copies queries, keys and values to shared memory.
//
//   for each item of work (decode_work.cuh):
//     copy the queries, in slots of 16 rows (token, query head)
//     for each segment, descending (with a workspace: the item's only one)
//       for each block of 128 keys, descending: copy the keys and values of 64 keys to a stage, then those of 64 more
//
// Items. A block of threads begins with item blockIdx.x and takes the numbers of further items from a counter in
// global memory, because items differ in length: the first of several tokens that share pages has an item with the
// rows of all, and the items of the others are empty. The results do not depend on which block computes an item. The
// block that draws the last number resets the counter to 0.
//
// Copies. A stage holds 64 rows of K, then 64 of V, in groups of 64 columns with the swizzle of 128 bytes; for head_dim
// 80 in groups of 16 with the swizzle of 32 bytes. With pages of 64 tokens or more a tensor copy moves all groups of 64
// rows, with smaller pages one group of a page. The last page is copied whole: its rows beyond the last key are masked,
// and so are those of a second copy of this page where a stage would have further pages.
//
// Shared memory.                    head_dim 128   80        64
//   6 stages                             192 KiB   120 KiB   96 KiB
//   queries, 4 slots of 16 rows           17 KiB    11 KiB    9 KiB
//   scores, 2 buffers for each group      16 KiB    16 KiB   16 KiB
// Two stages are computed on while four are in flight: 128 KiB at head_dim 128. An H200 needs about 23 KiB for each
// multiprocessor.
#pragma once

#include "attention/row_state.cuh"
#include "cuh/dependent.cuh"
#include "cuh/tma.cuh"
#include "paged_attention/decode_work.cuh"

static_assert(SEGMENT == ROW_SEGMENT_BLOCKS * ROW_BLOCK_KEYS, "segments of the host's plan and of row_state.cuh");

constexpr int DECODE_GROUPS = 2;  // groups of four warps that compute
constexpr int DECODE_WARPS = 4 * DECODE_GROUPS;
constexpr int DECODE_THREADS = 32 * (DECODE_WARPS + 1);
constexpr int DECODE_ROWS = 64;  // largest number of rows of an item
constexpr int QUERY_ROWS = 16;   // rows of a slot of queries: eight for each group of warps
constexpr int STAGE_KEYS = 64;

// The layout of a block's shared memory: sizes, and offsets from its start, in bytes.
template <int HEAD_DIM>
struct DecodeShared {
  static constexpr int COLUMNS = HEAD_DIM % 64 == 0 ? 64 : 16;  // of a group
  static constexpr int GROUPS = HEAD_DIM / COLUMNS, SWIZZLE = 2 * COLUMNS, GROUP = STAGE_KEYS * SWIZZLE;
  static constexpr int TILE = GROUPS * GROUP;  // 64 rows of K or V
  static constexpr int STAGES = 6, STAGE = 2 * TILE;
  // Rows of queries are an odd number of 16-byte chunks apart, so ldmatrix has no bank conflicts.
  static constexpr int QUERY_PITCH = 2 * HEAD_DIM + 16, QUERY_SLOT = QUERY_ROWS * QUERY_PITCH;
  static constexpr int QUERY_SLOTS = DECODE_ROWS / QUERY_ROWS;
  static constexpr int SCORE_BUFFER = 8 * ROW_BLOCK_KEYS * 4;  // f32 [8 rows, keys of a block]
  static constexpr int QUERIES = STAGES * STAGE, SCORES = QUERIES + QUERY_SLOTS * QUERY_SLOT;
  static constexpr int BLOCKS = SCORES + DECODE_GROUPS * 2 * SCORE_BUFFER;  // a DecodeBlock for each stage
  static constexpr int FULL = BLOCKS + 16 * STAGES, FREE = FULL + 8 * STAGES;
  static constexpr int QUERY_FULL = FREE + 8 * STAGES, QUERY_FREE = QUERY_FULL + 8 * QUERY_SLOTS;
  static constexpr int WORK = QUERY_FREE + 8 * QUERY_SLOTS;
  static constexpr int BYTES = WORK + static_cast<int>(sizeof(SharedWork));
  static_assert(HEAD_DIM % COLUMNS == 0 && BLOCKS % 16 == 0 && BYTES <= 227 * 1024, "shared memory of a block");

  // Returns the offset of a 16-byte chunk of a row from the start of a tile.
  __device__ static __forceinline__ u32 offset(int row, int chunk) {
    const int in_group = chunk % (SWIZZLE / 16), swizzled = in_group ^ (SWIZZLE == 128 ? row & 7 : row / 4 & 1);
    return chunk / (SWIZZLE / 16) * GROUP + row * SWIZZLE + swizzled * 16;
  }
};

// The description of a block of up to 128 keys that the consumers read. It is stored in shared memory, at the index of
// the block's first stage. A block of more than 64 keys has two stages.
struct DecodeBlock {
  // Flags in `state`. The lower 8 bits of `state` hold the number of rows, the upper 16 bits the number of the segment
  // (512 keys).
  enum : u32 { PARTIAL = 1 << 8, ENDS_SEGMENT = 1 << 9, ENDS_ITEM = 1 << 10, NO_MORE = 1 << 11 };

  int token;  // first token
  u32 heads;  // first query head, and in the upper 16 bits the number of query heads of a token
  u32 state;
  int keys;  // number of keys that the rows see, up to 128

  __device__ __forceinline__ int rows() const { return state & 0xff; }
  __device__ __forceinline__ u32 segment() const { return state >> 16; }
  // Returns the index in q and o of row `row`, a (token, query head).
  __device__ __forceinline__ u64 head_index(const Params& p, u32 row) const {
    const u32 count = heads >> 16;
    return static_cast<u64>(token + row / count) * p.heads + (heads & 0xffff) + row % count;
  }
  __device__ __forceinline__ void store(u32 at) const {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(token), "r"(heads), "r"(state), "r"(keys)
                 : "memory");
  }
  __device__ __forceinline__ void load(u32 at) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(token), "=r"(heads), "=r"(state), "=r"(keys)
                 : "r"(at)
                 : "memory");
  }
};

// The producer warp; all its lanes call every function.
template <int HEAD_DIM>
struct DecodeProducer {
  using S = DecodeShared<HEAD_DIM>;

  const Params& p;
  u32 shared;
  RingPosition<S::STAGES> ring;
  RingPosition<S::QUERY_SLOTS> queries;

  __device__ __forceinline__ static bool leads() { return threadIdx.x % 32 == 0; }

  // Copies the queries of an item of work; each lane copies one row.
  __device__ __forceinline__ void copy_queries(const Work& work) {
    const bf16* const q = global<const bf16>(p.q);
#pragma unroll 1
    for (int row = 0; row < work.rows(); row += QUERY_ROWS) {
      const u32 full = shared + S::QUERY_FULL + 8 * queries.slot;
      const u32 slot = shared + S::QUERIES + queries.slot * S::QUERY_SLOT;
      const int rows = min(work.rows() - row, QUERY_ROWS), lane = threadIdx.x % 32;
      mbarrier_wait(shared + S::QUERY_FREE + 8 * queries.slot, queries.parity ^ 1);
      fence_async_proxy();
      if (leads()) mbarrier_arrive_expecting(full, rows * HEAD_DIM * sizeof(bf16));
      // redundant: bytes may be copied before they are announced, as a phase does not end before its arrival.
      __syncwarp();
      if (lane < rows) {
        const bf16* const source = q + work.head_index(p, row + lane) * HEAD_DIM;
        bulk_copy(slot + lane * S::QUERY_PITCH, source, HEAD_DIM * sizeof(bf16), full);
      }
      queries.template advance<1>();
    }
  }

  // Copies 64 keys and their values, from key `first` on, to a stage. Only the first `keys` of these keys exist.
  // `pages` are the pages of the segment.
  __device__ __forceinline__ void copy_stage(const Work& work, SegmentPages& pages, int first, int keys) {
    const int page_rows = min(p.page_tokens, STAGE_KEYS), last = (keys - 1) / page_rows * page_rows;
    const int copy_groups = page_rows == STAGE_KEYS ? S::GROUPS : 1;
    const u32 full = shared + S::FULL + 8 * ring.slot, stage = shared + ring.slot * S::STAGE;
    if (leads()) mbarrier_arrive_expecting(full, S::STAGE);
    pages.first = first;
#pragma unroll 1
    for (int row = 0; row < STAGE_KEYS; row += page_rows) {
      const int slot = static_cast<int>(pages.of(min(row, last)));
      if (!leads()) continue;
#pragma unroll 1
      for (int group = 0; group < S::GROUPS; group += copy_groups) {
        const u32 to = stage + group * S::GROUP + row * S::SWIZZLE;
        tensor_copy(to, &p.k_map, full, 0, slot, group, work.kv_head, EVICT_FIRST);
        tensor_copy(to + S::TILE, &p.v_map, full, 0, slot, group, work.kv_head, EVICT_FIRST);
      }
    }
  }

  __device__ __forceinline__ void wait_for_stage() {
    mbarrier_wait(shared + S::FREE + 8 * ring.slot, ring.parity ^ 1);
    fence_async_proxy();
  }

  __device__ __forceinline__ void copy_item(const Work& work) {
    // The slots for queries may become free only shortly before the previous item of work ends, if an item has many
    // rows. So four of the item's eight stages are copied before its queries.
    int stages_before_queries = work.rows() <= QUERY_ROWS ? 0 : 4;
    const int first_segment = work.begin / SEGMENT_BLOCKS, segments = ceil_div(work.end, SEGMENT_BLOCKS);
#pragma unroll 1
    for (int segment = segments - 1; segment >= first_segment; --segment) {
      SegmentPages pages(p, work, segment * SEGMENT_BLOCKS);
      const int keys = min(work.keys - segment * SEGMENT, SEGMENT);
#pragma unroll 1
      for (int block = (keys - 1) / ROW_BLOCK_KEYS; block >= 0; --block) {
        const int first = block * ROW_BLOCK_KEYS, block_keys = min(keys - first, ROW_BLOCK_KEYS);
#pragma unroll 1
        for (int key = 0; key < block_keys; key += STAGE_KEYS) {
          if (stages_before_queries-- == 0) copy_queries(work);
          wait_for_stage();
          if (leads() && key == 0) {
            u32 state = work.rows() | segment << 16 | (work.partial ? DecodeBlock::PARTIAL : 0);
            if (block == 0) state |= DecodeBlock::ENDS_SEGMENT;
            if (block == 0 && segment == first_segment) state |= DecodeBlock::ENDS_ITEM;
            const u32 heads = work.head | work.heads << 16;
            const DecodeBlock description = {work.token, heads, state, block_keys};
            description.store(shared + S::BLOCKS + 16 * ring.slot);
          }
          copy_stage(work, pages, first + key, block_keys - key);
          ring.template advance<1>();
        }
      }
    }
  }

  // Writes zeros as the outputs of a padding row, which has no keys.
  __device__ __forceinline__ void write_zeros(const Work& work) {
    for (int at = threadIdx.x % 32; at < work.rows() * (HEAD_DIM / 8); at += 32) {
      bf16* const row = global<bf16>(p.o) + work.head_index(p, at / (HEAD_DIM / 8)) * HEAD_DIM;
      *reinterpret_cast<Words<16>*>(row + at % (HEAD_DIM / 8) * 8) = Words<16>{};
    }
  }

  __device__ __forceinline__ void run(SharedWork& found) {
    u32* const counter = global<u32>(p.counters);
    u32 item = blockIdx.x;
#pragma unroll 1
    for (;;) {
      find_work<DECODE_ROWS>(p, item, found);
      __syncwarp();
      if (found.work.tokens < 0) break;
      u32 drawn = 0;
      if (leads()) drawn = atomicAdd(counter, 1u);  // used after the item: its latency is hidden
      if (found.work.tokens > 0) {
        const Work work = found.work;
        if (work.keys == 0) write_zeros(work);
        else copy_item(work);
      }
      item = gridDim.x + __shfl_sync(0xffffffffu, drawn, 0);
      __syncwarp();  // all lanes have read `found`
    }
    mbarrier_wait(shared + S::FREE + 8 * ring.slot, ring.parity ^ 1);
    if (!leads()) return;
    DecodeBlock{0, 0, DecodeBlock::NO_MORE, 0}.store(shared + S::BLOCKS + 16 * ring.slot);
    mbarrier_arrive(shared + S::FULL + 8 * ring.slot);
    // Every block stops at the first number that it draws beyond the last item of work, so gridDim.x such numbers are
    // drawn. The block that draws the largest number is the last to draw, and resets the counter.
    if (found.beyond == gridDim.x - 1) atomicExch(counter, 0u);
  }
};
