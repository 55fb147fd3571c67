// The work of decode: which tokens, heads and keys a block of threads computes, and the merge of a token's segments by
// the block that completes them.
//
//   items: for each token, ascending: for each of its segments: for each key head: for each 16 heads of its group
//   a block takes the items blockIdx.x, blockIdx.x + gridDim.x, ...
//   shared pages: tokens t .. t + n (n <= 8, within an aligned window of tokens) have the same pages in a segment and
//     see more keys than its last: the block of t computes all of them, those of t + 1 .. t + n have nothing to do
//   counters[token, key head, 16 heads] += 1 for each stored segment; the block that adds the last one sets the counter
//     back to 0 and merges the segments in ascending order
//
// Memory traffic for finding an item: one warp reads 12 bytes per token (cu_seqlens, kv_lens) and, for the
// comparison, the segment's entries of block_tables of at most 8 tokens: 8 entries each with pages of 64 tokens, 256
// bytes in all. A segment's keys and values have 256 KiB at head_dim 128.
#pragma once

#include "paged_attention/tile.cuh"

// Maximum number of tokens with shared pages that one block computes together for a segment (512 keys).
constexpr int MAX_TOGETHER = 8;
// The number of query heads of a token that a block computes: the rows of one tensor-core product.
constexpr int MAX_HEADS = 16;

// An item of work: the rows (token, query head) of `tokens` tokens from `token` on, over a range of key blocks.
struct Work : KeyRange {
  int token, tokens;
  int head, heads;  // query heads head .. head + heads of each token
  bool partial;     // the range is one of several segments: its state goes to the workspace

  __device__ __forceinline__ int rows() const { return tokens * heads; }
  // Returns the index in q and o of row `row`, a (token, query head).
  __device__ __forceinline__ u64 head_index(const Params& p, int row) const {
    return static_cast<u64>(token + row / heads) * p.heads + head + row % heads;
  }
};

// An item of work in shared memory. `tokens` is 0 if another block computes the item, and -1 if there is no item with
// this number.
struct SharedWork {
  Work work;
  u32 beyond;                  // if there is no item with the number: the number minus that of items
  int segments[MAX_TOGETHER];  // number of segments of each token
  int complete[MAX_TOGETHER];  // whether this block stored the last missing segment of a token
};

// Returns the number of segments (512 keys each) of a token with `keys` keys. This is the number of its work items for
// each key head and each 16 of its query heads.
__device__ __forceinline__ int segments_of(const Params& p, int keys) {
  if (keys < 0) return 0;
  return p.workspace == 0 || keys <= SEGMENT ? 1 : ceil_div(keys, SEGMENT);
}

// Finds the item of work with number `item`. The threads of one warp call it together. MAX_ROWS: largest number of
// rows of an item.
template <int MAX_ROWS>
__device__ __forceinline__ void find_work(const Params& p, u32 item, SharedWork& to) {
  constexpr int PER_LANE = 4;
  constexpr u32 ALL = 0xffffffffu;
  const int lane = threadIdx.x % 32, group = p.heads / p.kv_heads, parts = ceil_div(group, MAX_HEADS);
  int wanted = item / (p.kv_heads * parts);
  const int kv_head = item / parts % p.kv_heads, part = item % parts;
  int token = -1, segment = 0;
  TokenKeys own = {0, -1};
  for (int base = 0; base < static_cast<int>(p.tokens); base += 32 * PER_LANE) {
    TokenKeys keys[PER_LANE];
    int count = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
      const int t = base + lane * PER_LANE + i;
      keys[i] = t < static_cast<int>(p.tokens) ? keys_of_token(p, t) : TokenKeys{0, -1};
      count += segments_of(p, keys[i].keys);
    }
    int before = count;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int x = __shfl_up_sync(ALL, before, step);
      if (lane >= step) before += x;
    }
    const int here = __shfl_sync(ALL, before, 31);
    if (wanted >= here) {
      wanted -= here;
      continue;
    }
    before -= count;
    int found = -1;
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
      const int n = segments_of(p, keys[i].keys);
      if (wanted >= before && wanted < before + n) {
        found = base + lane * PER_LANE + i;
        segment = wanted - before;
        own = keys[i];
      }
      before += n;
    }
    const int owner = __ffs(__ballot_sync(ALL, found >= 0)) - 1;
    token = __shfl_sync(ALL, found, owner);
    segment = __shfl_sync(ALL, segment, owner);
    own = {__shfl_sync(ALL, own.seq, owner), __shfl_sync(ALL, own.keys, owner)};
    break;
  }
  if (lane == 0) to.beyond = wanted * (p.kv_heads * parts) + item % (p.kv_heads * parts);
  int tokens = token < 0 ? -1 : 1;
  const int segments = segments_of(p, own.keys), end = (segment + 1) * SEGMENT;
  if (lane == 0) to.segments[0] = segments;
  // The window is a power of two, so that all items divide the tokens into the same aligned windows.
  int window = parts == 1 ? MAX_TOGETHER : 1;
  while (window * group > MAX_ROWS) window /= 2;
  if (segments > 1 && own.keys > end && window > 1) {
    const int first = token / window * window, at = token - first;
    TokenKeys other = {0, -1};
    if (lane < window && first + lane < static_cast<int>(p.tokens)) other = keys_of_token(p, first + lane);
    u32 same = __ballot_sync(ALL, other.keys > end);
    const int shift = 31 - __clz(p.page_tokens), entries = SEGMENT >> shift;
    const int* tables = global<const int>(p.block_tables) + segment * entries + lane;
    int page[MAX_TOGETHER], own_page = 0;
    if (lane < entries) own_page = tables[static_cast<u64>(own.seq) * p.max_blocks];
#pragma unroll
    for (int k = 0; k < MAX_TOGETHER; ++k) {
      const int seq = __shfl_sync(ALL, other.seq, k);
      page[k] = own_page;
      if (lane < entries && (same >> k & 1)) page[k] = tables[static_cast<u64>(seq) * p.max_blocks];
    }
#pragma unroll
    for (int k = 0; k < MAX_TOGETHER; ++k) {
      if (!__all_sync(ALL, page[k] == own_page)) same &= ~(1u << k);
    }
    if (at > 0 && (same >> (at - 1) & 1)) {
      tokens = 0;
    } else {
      tokens = __ffs(~(same >> at)) - 1;
      if (lane >= at && lane < at + tokens) to.segments[lane - at] = ceil_div(other.keys, SEGMENT);
    }
  }
  if (lane == 0) {
    Work& work = to.work;
    const int left = group - part * MAX_HEADS, blocks = ceil_div(own.keys, KEYS);
    work.partial = segments > 1;
    work.seq = own.seq;
    work.kv_head = kv_head;
    work.keys = own.keys;
    work.begin = segment * SEGMENT_BLOCKS;
    work.end = work.partial && work.begin + SEGMENT_BLOCKS < blocks ? work.begin + SEGMENT_BLOCKS : blocks;
    work.token = token;
    work.tokens = tokens;
    work.head = kv_head * group + part * MAX_HEADS;
    work.heads = left < MAX_HEADS ? left : MAX_HEADS;
  }
}

// The pages of a segment (512 keys): lane l holds the segment's entry l in block_tables.
struct SegmentPages {
  u32 page;
  int shift;  // log2 of the tokens per page
  int first;  // first key of a block, counted from the segment's first key

  __device__ __forceinline__ SegmentPages(const Params& p, const KeyRange& range, int block)
      : page(0), shift(31 - __clz(p.page_tokens)), first(0) {
    find(p, range, block);
  }
  // Finds the pages of the segment (512 keys) that begins with key block `block`.
  __device__ __forceinline__ void find(const Params& p, const KeyRange& range, int block) {
    const int entry = (block * KEYS >> shift) + threadIdx.x % 32;
    const int* table = global<const int>(p.block_tables) + static_cast<u64>(range.seq) * p.max_blocks;
    if (threadIdx.x % 32 < SEGMENT >> shift && entry << shift < range.keys) page = table[entry];
  }
  // Returns the cache slot of key `row` of the block. All lanes of the warp must call this function together.
  __device__ __forceinline__ u32 of(int row) const {
    const int key = first + row;
    return (__shfl_sync(0xffffffffu, page, key >> shift) << shift) + (key & ((1 << shift) - 1));
  }
};

// Adds 1 to a counter and returns its former value. The addition is acquire-release at GPU scope: after it, a block
// sees the stores that other blocks made before the barrier that preceded their own additions.
__device__ __forceinline__ u32 count_segment(u32* counter) {
  u32 before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// Counts the segment that this block has stored. Merges the segments of each token for which this segment was the last
// missing one.
__device__ __forceinline__ void count_and_merge(const Params& p, const Work& work, SharedWork& state) {
  __syncthreads();  // all threads have stored their part of the segment
  const int parts = ceil_div<int>(p.heads / p.kv_heads, MAX_HEADS), n = threadIdx.x;
  if (n < work.tokens) {
    const u64 part = work.kv_head * parts + work.head % (p.heads / p.kv_heads) / MAX_HEADS;
    u32* counter = global<u32>(p.counters) + static_cast<u64>(work.token + n) * p.kv_heads * parts + part;
    const bool complete = count_segment(counter) + 1 == static_cast<u32>(state.segments[n]);
    if (complete) *counter = 0;
    state.complete[n] = complete;
  }
  __syncthreads();
  for (int row = threadIdx.x / 32; row < work.rows(); row += THREADS / 32) {
    const int token = row / work.heads;
    if (state.complete[token]) merge_row<bf16>(p, work.head_index(p, row), state.segments[token]);
  }
}
