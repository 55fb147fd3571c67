// Code that the kernels of paged attention share: tiles of rows, copies of keys and values from the pages of the KV
// cache to shared memory, and the states of segments in the workspace.
#pragma once

#include "cuh/base.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/mma.cuh"
#include "cuh/online_softmax.cuh"

constexpr int THREADS = 128;
constexpr int KEYS = BLOCK_KEYS;
constexpr int SEGMENT = KEYS * SEGMENT_BLOCKS;

extern __shared__ __align__(16) unsigned char shared[];

// The keys that one block of threads reads.
struct KeyRange {
  int seq, kv_head;
  int begin, end;  // range of key blocks
  int keys;        // keys 0 .. keys of the sequence may be read
};

// The work of one block of threads in prefill: some packed rows (new token, query head) of one sequence and key head,
// over a range of key blocks. `keys` is the number of keys that the last row sees.
struct Tile : KeyRange {
  int first, rows;  // packed rows first .. first + rows
  int token;        // the sequence's first new token
  int before;       // number of keys before the new tokens
  int group, slice;

  // Returns the number of keys that a row of the tile attends to. Rows past the tile's end get the number of the last
  // row.
  __device__ __forceinline__ int limit(int row) const {
    const int last = rows - 1;
    return before + (first + (row < last ? row : last)) / group + 1;
  }
  // Returns the index in q and o of row `row` of the tile, a (token, query head).
  __device__ __forceinline__ u64 head_index(const Params& p, int row) const {
    const int packed = first + row;
    return static_cast<u64>(token + packed / group) * p.heads + kv_head * group + packed % group;
  }
};

// Returns 1 / sum, by which a row's output is multiplied at the end. A padding row has no keys and a sum of 0: then the
// result is 0, which keeps the output 0.
__device__ __forceinline__ float inverse_or_zero(SoftmaxRow total) {
  return total.sum == 0.0f ? 0.0f : inverse_sum(total);
}

// Finds the rows and keys of this block of threads; returns false if there are none.
template <int ROWS, int SLICES>
__device__ __forceinline__ bool find_tile(const Params& p, Tile& t) {
  u32 block = blockIdx.x;
  const u32 segments = p.workspace == 0 ? 1 : ceil_div<u32>(p.max_kv_len, SEGMENT);
  const u32 segment = block % segments;
  block /= segments;
  t.slice = block % SLICES;
  block /= SLICES;
  t.kv_head = block % p.kv_heads;
  t.group = p.heads / p.kv_heads;
  const int* cu = global<const int>(p.cu_seqlens);
  // The last tiles of a prompt attend to the most keys and take longest, so the first blocks get them.
  const int tiles = static_cast<int>(static_cast<u64>(p.tokens) * t.group / ROWS) + p.seqs;
  const int tile = tiles - 1 - static_cast<int>(block / p.kv_heads);
  int low = 0, high = p.seqs;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (static_cast<int>(static_cast<u64>(cu[middle]) * t.group / ROWS) + middle <= tile) {
      low = middle;
    } else {
      high = middle;
    }
  }
  t.seq = low;
  t.token = cu[low];
  const int tokens = cu[low + 1] - t.token;
  t.first = (tile - low - static_cast<int>(static_cast<u64>(t.token) * t.group / ROWS)) * ROWS;
  const int left = tokens * t.group - t.first;
  if (left <= 0) return false;
  t.rows = left < ROWS ? left : ROWS;
  t.before = global<const int>(p.kv_lens)[low] - tokens;
  t.keys = t.limit(t.rows - 1);
  t.begin = 0;
  t.end = ceil_div(t.keys, KEYS);
  if (p.workspace != 0) {
    t.begin = segment * SEGMENT_BLOCKS;
    if (t.begin >= t.end) return false;
    t.end = t.end < t.begin + SEGMENT_BLOCKS ? t.end : t.begin + SEGMENT_BLOCKS;
  }
  return true;
}

// KV cache slots of the 64 keys of a block: lane l holds the slots of keys l and l + 32.
struct Slots {
  u32 low, high;

  // Returns the slot of a key. All lanes of the warp must call this function together.
  __device__ __forceinline__ u32 of(int key) const {
    const u32 a = __shfl_sync(0xffffffffu, low, key % 32), b = __shfl_sync(0xffffffffu, high, key % 32);
    return key < 32 ? a : b;
  }
};
__device__ __forceinline__ Slots find_slots(const Params& p, const KeyRange& t, int start) {
  const int* table = global<const int>(p.block_tables) + static_cast<u64>(t.seq) * p.max_blocks;
  const int shift = 31 - __clz(p.page_tokens);
  auto slot = [&](int key) -> u32 {
    return key < t.keys ? (static_cast<u32>(table[key >> shift]) << shift) + (key & (p.page_tokens - 1)) : 0;
  };
  const int key = start + threadIdx.x % 32;
  return {slot(key), slot(key + 32)};
}

// Copies COLUMNS columns, from `column` on, of 64 keys (or values), from key `start` on, to shared memory
// [KEYS][PITCH], element by element. Keys from t.keys on and columns from head_dim on become 0. slots.of(r) is the slot
// of key start + r.
template <int COLUMNS, int PITCH, class T, class S>
__device__ __forceinline__ void load_elements_of_block(const Params& p, const KeyRange& t, const T* cache,
                                                       const S& slots, int start, int column, T* to) {
  const int d = p.head_dim;
#pragma unroll 1
  for (int at = threadIdx.x; at < KEYS * COLUMNS; at += THREADS) {
    const int row = at / COLUMNS, c = at % COLUMNS;
    const u64 from = (static_cast<u64>(slots.of(row)) * p.kv_heads + t.kv_head) * d + column + c;
    T x = from_f32<T>(0.0f);
    if (start + row < t.keys && column + c < d) x = cache[from];
    to[row * PITCH + c] = x;
  }
}

// Does what load_elements_of_block does, but by asynchronous copies of 16 bytes if a row of head_dim elements is a
// multiple of 16 bytes.
template <int COLUMNS, int PITCH, class T>
__device__ __forceinline__ void load_block(const Params& p, const KeyRange& t, const T* cache, const Slots& slots,
                                           int start, int column, T* to) {
  constexpr int UNIT = 16 / sizeof(T), UNITS = COLUMNS / UNIT;
  static_assert(KEYS * UNITS % THREADS == 0, "the copies are divided evenly among the threads");
  const int d = p.head_dim;
  if (d % UNIT != 0) {
    load_elements_of_block<COLUMNS, PITCH>(p, t, cache, slots, start, column, to);
    return;
  }
#pragma unroll 1
  for (int at = threadIdx.x; at < KEYS * UNITS; at += THREADS) {
    const int row = at / UNITS, c = at % UNITS * UNIT;
    const bool valid = start + row < t.keys && column + c < d;
    const u64 from = (static_cast<u64>(slots.of(row)) * p.kv_heads + t.kv_head) * d + column + c;
    cp_async_16(shared_address(to + row * PITCH + c), valid ? cache + from : cache, valid ? 16 : 0);
  }
}

// Addresses in the workspace of the state of one segment of a row: `columns` is its output, `stats` its (maximum, sum),
// in an array behind all outputs.
struct Part {
  float* columns;
  float2* stats;
};
__device__ __forceinline__ Part part_of(const Params& p, u64 row, u32 segment) {
  const u64 segments = ceil_div<u32>(p.max_kv_len, SEGMENT), width = ceil_div<u64>(p.head_dim, 4) * 4;
  const u64 index = row * segments + segment, all = static_cast<u64>(p.tokens) * p.heads * segments;
  float* base = global<float>(p.workspace);
  return {base + index * width, reinterpret_cast<float2*>(base + all * width) + index};
}

// The sequence of a new token, and the number of keys that the token sees: 0 for a padding row, -1 for a token that is
// in no sequence.
struct TokenKeys {
  int seq, keys;
};
__device__ __forceinline__ TokenKeys keys_of_token(const Params& p, int token) {
  const int* cu = global<const int>(p.cu_seqlens);
  const int seqs = p.seqs;
  // In a decode step, token n usually belongs to sequence n; otherwise a binary search finds the sequence.
  int low = token < seqs ? token : 0;
  if (cu[low] > token || cu[low + 1] <= token) {
    low = 0;
    int high = seqs;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (cu[middle] <= token) {
        low = middle;
      } else {
        high = middle;
      }
    }
  }
  const int end = cu[low + 1];
  return {low, token < end ? global<const int>(p.kv_lens)[low] - (end - token) + 1 : -1};
}

// Merges the segments of one row, a (token, query head), in ascending order and writes its output. The threads of one
// warp call it together.
template <class T>
__device__ __forceinline__ void merge_row(const Params& p, u64 row, int segments) {
  const int lane = threadIdx.x % 32, d = p.head_dim;
  SoftmaxRow total_row = empty_row();
  float total[2][4] = {};
#pragma unroll 4
  for (int segment = 0; segment < segments; ++segment) {
    const Part part = part_of(p, row, segment);
    const float2 stats = *part.stats;
    const MergeWeights w = merge(total_row, {stats.x, stats.y});
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int at = n * 128 + lane * 4;
      if (at >= d) continue;
      float x[4];
      load_vector(part.columns + at, x);
#pragma unroll
      for (int i = 0; i < 4; ++i) total[n][i] = merged(total[n][i], x[i], w);
    }
  }
  T* to = global<T>(p.o) + row * d;
  const float inverse = inverse_or_zero(total_row);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) total[n][i] *= inverse;
    store_elements(to, n * 128 + lane * 4, d, d % 4 == 0, total[n]);
  }
}
