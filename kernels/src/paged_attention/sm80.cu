// Attention of new tokens over keys and values in the pages of a KV cache; formula, shapes, limits and segments:
// mod.rs.
//
//   for each segment of 512 keys that the tile sees (with a workspace: only this block's segment)
//     for each block of 64 keys: load K, V; S = Q K^T; mask; online softmax (cuh/online_softmax.cuh); O += P V
//     without a workspace: total = merge(total, segment); with one: store O, maximum, sum
//   without a workspace: o = total.O / total.sum; with one: the combine stage does the same, one warp per row
//
// Rows. The query heads of one key head are packed: row r of a sequence is its new token r / group, head r % group of
// the group. A tile has 64 rows (bf16; 16 per warp) or 16 rows (f32). A decoded token has one tile with few rows;
// warps without rows help to load.
//
// Order. Keys ascend in blocks of 64 counted from the sequence's first key. 8 blocks are a segment with a sum of its
// own; segments are merged in order. A row's bits depend on its query and the keys that it sees, not on the tile, the
// split, the pages or the batch: a key that the row does not see has probability 0 or is skipped, which gives the
// same sum.
//
// Numerics. Scores, maxima and sums are in f32. bf16: tensor-core products; probabilities are rounded to bf16 for the
// product with V, while their sum takes the unrounded values. f32: fused multiply-adds. The output is rounded once.
//
// Grid. x = tile, key head, range of columns (64 columns for head_dim above 128 in bf16), and with a workspace also
// segment. Sequence s has the tiles from floor(cu_seqlens[s] * group / ROWS) + s on, at least as many as it needs; a
// binary search finds the sequence of a tile.
//
// Departures. (1) A row multiplies the keys that only later rows of its tile see by probability 0, so a value there
// that is not finite makes the row NaN; keys beyond the tile's last key are never read. (2) For a head_dim that is
// not a multiple of 8 (bf16) or 4 (f32), keys and values are loaded element by element.
//
// Bound. Decode: memory, K and V are read once. Prefill: matrix products.
#include "cuh/base.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/mma.cuh"
#include "cuh/online_softmax.cuh"

constexpr int THREADS = 128;
constexpr int KEYS = BLOCK_KEYS;
constexpr int SEGMENT = KEYS * SEGMENT_BLOCKS;

extern __shared__ __align__(16) unsigned char shared[];

// What one block of threads computes: some packed rows of one sequence and key head, over a range of key blocks.
struct Tile {
  int seq, first, rows;  // packed rows first .. first + rows
  int token;             // the sequence's first new token
  int before;            // number of keys before the new tokens
  int group, kv_head, slice;
  int begin, end;        // range of key blocks
  int keys;              // number of keys that the last row sees

  // Returns the number of keys that a row of the tile attends to. Rows past the tile's end get the number of the last
  // row.
  __device__ __forceinline__ int limit(int row) const {
    const int last = rows - 1;
    return before + (first + (row < last ? row : last)) / group + 1;
  }
  // Returns the index of the (token, query head) of a row in q and o.
  __device__ __forceinline__ u64 head_index(const Params& p, int row) const {
    const int packed = first + row;
    return static_cast<u64>(token + packed / group) * p.heads + kv_head * group + packed % group;
  }
};

// Returns 1 / sum, by which a row's output is multiplied at the end. For a padding row, which has no keys, the sum is
// 0; the result is 0 then, which keeps its output 0.
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

  // Returns the slot of a key; all lanes of the warp must call it together.
  __device__ __forceinline__ u32 of(int key) const {
    const u32 a = __shfl_sync(0xffffffffu, low, key % 32), b = __shfl_sync(0xffffffffu, high, key % 32);
    return key < 32 ? a : b;
  }
};
__device__ __forceinline__ Slots find_slots(const Params& p, const Tile& t, int start) {
  const int* table = global<const int>(p.block_tables) + static_cast<u64>(t.seq) * p.max_blocks;
  const int shift = 31 - __clz(p.page);
  auto slot = [&](int key) -> u32 {
    return key < t.keys ? (static_cast<u32>(table[key >> shift]) << shift) + (key & (p.page - 1)) : 0;
  };
  const int key = start + threadIdx.x % 32;
  return {slot(key), slot(key + 32)};
}

// Starts to copy COLUMNS columns, from `column` on, of 64 keys (or values), from key `start` on, to shared memory
// [KEYS][PITCH]. Keys from t.keys on and columns from head_dim on become 0.
template <int COLUMNS, int PITCH, class T>
__device__ __forceinline__ void load_block(const Params& p, const Tile& t, const T* cache, const Slots& slots, int start,
                                           int column, T* to) {
  constexpr int UNIT = 16 / sizeof(T), UNITS = COLUMNS / UNIT;
  static_assert(KEYS * UNITS % THREADS == 0, "the copies are divided evenly among the threads");
  const int d = p.head_dim;
  auto element = [&](int row) { return (static_cast<u64>(slots.of(row)) * p.kv_heads + t.kv_head) * d + column; };
  if (d % UNIT == 0) {
#pragma unroll 1
    for (int at = threadIdx.x; at < KEYS * UNITS; at += THREADS) {
      const int row = at / UNITS, c = at % UNITS * UNIT;
      const bool valid = start + row < t.keys && column + c < d;
      const u64 from = element(row) + c;
      cp_async_16(shared_address(to + row * PITCH + c), valid ? cache + from : cache, valid ? 16 : 0);
    }
    return;
  }
  for (int at = threadIdx.x; at < KEYS * COLUMNS; at += THREADS) {
    const int row = at / COLUMNS, c = at % COLUMNS;
    const u64 from = element(row) + c;
    T x = from_f32<T>(0.0f);
    if (start + row < t.keys && column + c < d) x = cache[from];
    to[row * PITCH + c] = x;
  }
}

// Where the workspace keeps the state of one segment of a row: its output (`columns`), and its (maximum, sum) in an
// array that follows all outputs.
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

// ---- bf16: 16 rows per warp, 64 keys at a time ----

// D: head_dim rounded up. V: number of output columns that a block of threads computes. STAGES: number of buffers for
// keys and values. SPLIT: the block computes one segment and stores its state for the combine stage.
template <int D, int V, int STAGES, bool SPLIT>
__device__ __forceinline__ void forward_bf16(const Params& p) {
  constexpr int ROWS = 64, SLICES = D / V;
  // Rows are an odd number of 16-byte chunks apart, so ldmatrix has no bank conflicts.
  constexpr int K_PITCH = (D / 8 | 1) * 8, V_PITCH = (V / 8 | 1) * 8;
  constexpr bool KEEP_Q = SPLIT ? D <= 128 : D <= 80;
  Tile t;
  if (!find_tile<ROWS, SLICES>(p, t)) return;
  bf16* k_stage = reinterpret_cast<bf16*>(shared);
  bf16* v_stage = k_stage + STAGES * KEYS * K_PITCH;
  const bf16* k_cache = global<const bf16>(p.k_cache);
  const bf16* v_cache = global<const bf16>(p.v_cache);
  const int column = t.slice * V, d = p.head_dim;
  const int lane = threadIdx.x % 32, g = lane / 4, c2 = lane % 4 * 2;
  const int row = threadIdx.x / 32 * 16;  // the warp's first row
  const bool has_rows = row < t.rows;
  const float factor = p.scale * LOG2_E;

  // The two rows of the tile whose mma.sync results this thread holds.
  const int rows[2] = {row + g, row + g + 8};
  const int limits[2] = {t.limit(rows[0]), t.limit(rows[1])};
  const int fewest = t.limit(row), most = t.limit(row + 15);
  const bf16* q[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    q[h] = global<const bf16>(p.q) + t.head_index(p, rows[h] < t.rows ? rows[h] : t.rows - 1) * d;
  }
  // Loads the 16 columns of the warp's queries that start with column 16 * step, as the left operand of mma.sync.
  auto load_q = [&](int step, u32(&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = step * 16 + c2 + (i / 2) * 8;
      const int columns = rows[i % 2] < t.rows ? d : 0;
      if (d % 2 == 0) {
        a[i] = at < columns ? *reinterpret_cast<const u32*>(q[i % 2] + at) : 0;
      } else {
        const u32 low = at < columns ? q[i % 2][at].bits : 0, high = at + 1 < columns ? q[i % 2][at + 1].bits : 0;
        a[i] = low | high << 16;
      }
    }
  };
  Slots slots = find_slots(p, t, t.begin * KEYS);
  auto load_keys = [&](int block) {
    const int stage = STAGES == 1 ? 0 : block % STAGES;
    load_block<D, K_PITCH>(p, t, k_cache, slots, block * KEYS, 0, k_stage + stage * KEYS * K_PITCH);
    load_block<V, V_PITCH>(p, t, v_cache, slots, block * KEYS, column, v_stage + stage * KEYS * V_PITCH);
    slots = find_slots(p, t, (block + 1) * KEYS);  // loaded early: the next block needs them
  };

  // If registers are scarce (not KEEP_Q), each thread keeps its part of the queries in shared memory; no other thread
  // reads it.
  u32 q_fragment[KEEP_Q ? D / 16 : 1][4];
  u32* q_kept = reinterpret_cast<u32*>(v_stage + STAGES * KEYS * V_PITCH) + threadIdx.x;
  if (has_rows) {
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      u32(&a)[4] = q_fragment[KEEP_Q ? step : 0];
      load_q(step, a);
      if (!KEEP_Q) {
#pragma unroll
        for (int i = 0; i < 4; ++i) q_kept[(step * 4 + i) * THREADS] = a[i];
      }
    }
  }
  SoftmaxRow total_row[2] = {empty_row(), empty_row()};
  float total[SPLIT ? 1 : V / 8][4];
#pragma unroll
  for (int n = 0; n < (SPLIT ? 1 : V / 8); ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) total[n][i] = 0.0f;
  }
  if (STAGES > 1) {
    load_keys(t.begin);
    cp_async_commit();
  }
  for (int segment = t.begin; segment < t.end; segment += SEGMENT_BLOCKS) {
    const int segment_end = segment + SEGMENT_BLOCKS < t.end ? segment + SEGMENT_BLOCKS : t.end;
    SoftmaxRow sums[2] = {empty_row(), empty_row()};
    float o[V / 8][4];
#pragma unroll
    for (int n = 0; n < V / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[n][i] = 0.0f;
    }
    for (int block = segment; block < segment_end; ++block) {
      if (STAGES == 1) {
        __syncthreads();  // no thread still reads the previous block
        load_keys(block);
        cp_async_commit();
      }
      cp_async_wait<0>();
      __syncthreads();  // this block has arrived, and no thread still reads the previous one
      if (STAGES > 1 && block + 1 < t.end) {
        load_keys(block + 1);
        cp_async_commit();
      }
      const int start = block * KEYS;
      if (!has_rows || start >= most) continue;
      const int stage = STAGES == 1 ? 0 : block % STAGES;
      const bf16* k = k_stage + stage * KEYS * K_PITCH;
      const bf16* v = v_stage + stage * KEYS * V_PITCH;

      float s[KEYS / 8][4];
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = 0.0f;
      }
      const u32 k_address = shared_address(k + (lane % 8 + lane / 16 * 8) * K_PITCH + lane / 8 % 2 * 8);
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        u32 fresh[4];
        if (!KEEP_Q) {
#pragma unroll
          for (int i = 0; i < 4; ++i) fresh[i] = q_kept[(step * 4 + i) * THREADS];
        }
        u32(&a)[4] = KEEP_Q ? q_fragment[KEEP_Q ? step : 0] : fresh;
#pragma unroll
        for (int n = 0; n < KEYS / 16; ++n) {
          u32 b[4];
          ldmatrix_x4(b, k_address + (n * 16 * K_PITCH + step * 16) * 2);
          mma_bf16(s[2 * n], a, b[0], b[1]);
          mma_bf16(s[2 * n + 1], a, b[2], b[3]);
        }
      }
      if (start + KEYS > fewest) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (start + n * 8 + c2 + i % 2 >= limits[i / 2]) s[n][i] = minus_infinity();
          }
        }
      }
      float rescale[2];
      add_scores(sums, s, factor, rescale);
#pragma unroll
      for (int n = 0; n < V / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] *= rescale[i / 2];
      }
      const u32 v_address = shared_address(v + lane % 16 * V_PITCH + lane / 16 * 8);
#pragma unroll
      for (int step = 0; step < KEYS / 16; ++step) {
        const u32 a[4] = {pack_bf16(s[2 * step][0], s[2 * step][1]), pack_bf16(s[2 * step][2], s[2 * step][3]),
                          pack_bf16(s[2 * step + 1][0], s[2 * step + 1][1]),
                          pack_bf16(s[2 * step + 1][2], s[2 * step + 1][3])};
#pragma unroll
        for (int n = 0; n < V / 16; ++n) {
          u32 b[4];
          ldmatrix_x4_trans(b, v_address + (step * 16 * V_PITCH + n * 16) * 2);
          mma_bf16(o[2 * n], a, b[0], b[1]);
          mma_bf16(o[2 * n + 1], a, b[2], b[3]);
        }
      }
    }
    // Completes the segment's sum, then merges the segment into the total or stores its state.
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sums[h].sum = row_sum<4>(sums[h].sum);
      if (SPLIT) {
        if (rows[h] < t.rows && segment * KEYS < limits[h]) {
          const Part part = part_of(p, t.head_index(p, rows[h]), segment / SEGMENT_BLOCKS);
          if (c2 == 0 && t.slice == 0) *part.stats = make_float2(sums[h].max, sums[h].sum);
#pragma unroll
          for (int n = 0; n < V / 8; ++n) {
            const int at = column + n * 8 + c2;
            if (at < ceil_div(d, 4) * 4) *reinterpret_cast<float2*>(part.columns + at) = make_float2(o[n][2 * h], o[n][2 * h + 1]);
          }
        }
      } else {
        const MergeWeights w = merge(total_row[h], sums[h]);
#pragma unroll
        for (int n = 0; n < (SPLIT ? 1 : V / 8); ++n) {
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; ++i) total[n][i] = merged(total[n][i], o[n][i], w);
        }
      }
    }
  }
  if constexpr (!SPLIT) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (rows[h] >= t.rows) continue;
      bf16* to = global<bf16>(p.o) + t.head_index(p, rows[h]) * d;
      const float inverse = inverse_or_zero(total_row[h]);
#pragma unroll
      for (int n = 0; n < (SPLIT ? 1 : V / 8); ++n) {
        const int at = column + n * 8 + c2;
        const float x = total[n][2 * h] * inverse, y = total[n][2 * h + 1] * inverse;
        if (d % 2 == 0) {
          if (at < d) *reinterpret_cast<u32*>(to + at) = pack_bf16(x, y);
        } else {
          if (at < d) to[at] = from_f32<bf16>(x);
          if (at + 1 < d) to[at + 1] = from_f32<bf16>(y);
        }
      }
    }
  }
}

// ---- f32: 16 rows per block of threads. A thread computes the scores of two rows for four keys that are 16 apart,
// then the outputs of two rows in four of 64 columns. ----

// N: number of groups of 64 columns in a head. SHARE: K and V use the same buffer in turn. SPLIT: as for bf16.
template <int N, bool SHARE, bool SPLIT>
__device__ __forceinline__ void forward_f32(const Params& p) {
  constexpr int ROWS = 16, D = N * 64, PITCH = D + 4;  // an odd number of 16-byte chunks
  constexpr int P_PITCH = 72;                          // rows two apart are 16 banks apart
  Tile t;
  if (!find_tile<ROWS, 1>(p, t)) return;
  float* q = reinterpret_cast<float*>(shared);
  float* probabilities = q + ROWS * PITCH;
  float* k = probabilities + ROWS * P_PITCH;
  float* v = SHARE ? k : k + KEYS * PITCH;
  const float* k_cache = global<const float>(p.k_cache);
  const float* v_cache = global<const float>(p.v_cache);
  const int d = p.head_dim, x = threadIdx.x % 16, y = threadIdx.x / 16 * 2;  // y: this thread's first row
  const int warp_row = threadIdx.x / 32 * 4;
  const float factor = p.scale * LOG2_E;
  const int limits[2] = {t.limit(y), t.limit(y + 1)};
  const int most = t.limit(warp_row + 3);
  const bool has_rows = warp_row < t.rows;

  for (int at = threadIdx.x; at < ROWS * D; at += THREADS) {
    const int row = at / D, column = at % D;
    float value = 0.0f;
    if (row < t.rows && column < d) value = global<const float>(p.q)[t.head_index(p, row) * d + column];
    q[row * PITCH + column] = value;
  }
  SoftmaxRow total_row[2] = {empty_row(), empty_row()};
  float total[2][SPLIT ? 1 : N][4];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int n = 0; n < (SPLIT ? 1 : N); ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) total[r][n][i] = 0.0f;
    }
  }
  Slots slots = find_slots(p, t, t.begin * KEYS), next = slots;
  load_block<D, PITCH>(p, t, k_cache, slots, t.begin * KEYS, 0, k);
  cp_async_commit();
  for (int segment = t.begin; segment < t.end; segment += SEGMENT_BLOCKS) {
    const int segment_end = segment + SEGMENT_BLOCKS < t.end ? segment + SEGMENT_BLOCKS : t.end;
    SoftmaxRow sums[2] = {empty_row(), empty_row()};
    float o[2][N][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[r][n][i] = 0.0f;
      }
    }
    for (int block = segment; block < segment_end; ++block) {
      const int start = block * KEYS;
      const bool sees = has_rows && start < most;
      next = find_slots(p, t, start + KEYS);
      if (!SHARE) {
        load_block<D, PITCH>(p, t, v_cache, slots, start, 0, v);
        cp_async_commit();
      }
      cp_async_wait<SHARE ? 0 : 1>();
      __syncthreads();  // K has arrived
      float rescale[2] = {1.0f, 1.0f};
      if (sees) {
        float s[2][4];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int j = 0; j < 4; ++j) s[r][j] = 0.0f;
        }
#pragma unroll 4
        for (int at = 0; at < D; at += 4) {
          float a[2][4];
          load_vector(q + y * PITCH + at, a[0]);
          load_vector(q + (y + 1) * PITCH + at, a[1]);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float b[4];
            load_vector(k + (x + 16 * j) * PITCH + at, b);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
#pragma unroll
              for (int i = 0; i < 4; ++i) s[r][j] = __fmaf_rn(a[r][i], b[i], s[r][j]);
            }
          }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (start + x + 16 * j >= limits[r]) s[r][j] = minus_infinity();
          }
          rescale[r] = add_scores(sums[r], s[r], factor);
#pragma unroll
          for (int j = 0; j < 4; ++j) probabilities[(y + r) * P_PITCH + x + 16 * j] = s[r][j];
        }
      }
      __syncthreads();  // no thread still reads K
      if (SHARE) {
        load_block<D, PITCH>(p, t, v_cache, slots, start, 0, v);
      } else if (block + 1 < t.end) {
        load_block<D, PITCH>(p, t, k_cache, next, start + KEYS, 0, k);
      }
      cp_async_commit();
      cp_async_wait<SHARE ? 0 : 1>();
      __syncthreads();  // V has arrived
      if (sees) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) o[r][n][i] *= rescale[r];
          }
        }
#pragma unroll 2
        for (int key = 0; key < KEYS; key += 4) {
          float a[2][4];
          load_vector(probabilities + y * P_PITCH + key, a[0]);
          load_vector(probabilities + (y + 1) * P_PITCH + key, a[1]);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
              float b[4];
              load_vector(v + (key + j) * PITCH + n * 64 + x * 4, b);
#pragma unroll
              for (int r = 0; r < 2; ++r) {
#pragma unroll
                for (int i = 0; i < 4; ++i) o[r][n][i] = __fmaf_rn(a[r][j], b[i], o[r][n][i]);
              }
            }
          }
        }
      }
      __syncthreads();  // no thread still reads V
      if (SHARE && block + 1 < t.end) {
        load_block<D, PITCH>(p, t, k_cache, next, start + KEYS, 0, k);
        cp_async_commit();
      }
      slots = next;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sums[r].sum = row_sum<16>(sums[r].sum);
      if (SPLIT) {
        if (y + r < t.rows && segment * KEYS < limits[r]) {
          const Part part = part_of(p, t.head_index(p, y + r), segment / SEGMENT_BLOCKS);
          if (x == 0) *part.stats = make_float2(sums[r].max, sums[r].sum);
#pragma unroll
          for (int n = 0; n < N; ++n) {
            if (n * 64 + x * 4 < d) store_vector(part.columns + n * 64 + x * 4, o[r][n]);
          }
        }
      } else {
        const MergeWeights w = merge(total_row[r], sums[r]);
#pragma unroll
        for (int n = 0; n < (SPLIT ? 1 : N); ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) total[r][n][i] = merged(total[r][n][i], o[r][n][i], w);
        }
      }
    }
  }
  if constexpr (!SPLIT) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (y + r >= t.rows) continue;
      float* to = global<float>(p.o) + t.head_index(p, y + r) * d;
      const float inverse = inverse_or_zero(total_row[r]);
#pragma unroll
      for (int n = 0; n < (SPLIT ? 1 : N); ++n) {
        float out[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) out[i] = total[r][n][i] * inverse;
        store_elements(to, n * 64 + x * 4, d, d % 4 == 0, out);
      }
    }
  }
}

// ---- combine stage: merges the segments of a row and writes its output, one warp per row ----

template <class T>
__device__ __forceinline__ void combine(const Params& p) {
  const u64 row = static_cast<u64>(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
  if (row >= static_cast<u64>(p.tokens) * p.heads) return;
  const int token = static_cast<int>(row / p.heads), lane = threadIdx.x % 32, d = p.head_dim;
  const int* cu = global<const int>(p.cu_seqlens);
  int low = 0, high = p.seqs;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (cu[middle] <= token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  if (token >= cu[low + 1]) return;  // the token is in no sequence
  const int limit = global<const int>(p.kv_lens)[low] - (cu[low + 1] - token) + 1;
  const int segments = ceil_div(limit, SEGMENT);
  SoftmaxRow total_row = empty_row();
  float total[2][4] = {};
#pragma unroll 2
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

#define KERNEL(SYMBOL, CALL)                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) SYMBOL(const __grid_constant__ Params p) { \
    CALL(p);                                                                                           \
  }
KERNEL(paged_attention_fwd_bf16_64, (forward_bf16<64, 64, 2, false>))
KERNEL(paged_attention_fwd_bf16_80, (forward_bf16<80, 80, 2, false>))
KERNEL(paged_attention_fwd_bf16_128, (forward_bf16<128, 128, 2, false>))
KERNEL(paged_attention_fwd_bf16_256, (forward_bf16<256, 64, 1, false>))
KERNEL(paged_attention_fwd_bf16_64_split, (forward_bf16<64, 64, 2, true>))
KERNEL(paged_attention_fwd_bf16_80_split, (forward_bf16<80, 80, 2, true>))
KERNEL(paged_attention_fwd_bf16_128_split, (forward_bf16<128, 128, 2, true>))
KERNEL(paged_attention_fwd_bf16_256_split, (forward_bf16<256, 64, 1, true>))
KERNEL(paged_attention_fwd_bf16_combine, combine<bf16>)
KERNEL(paged_attention_fwd_f32_64, (forward_f32<1, false, false>))
KERNEL(paged_attention_fwd_f32_128, (forward_f32<2, false, false>))
KERNEL(paged_attention_fwd_f32_256, (forward_f32<4, true, false>))
KERNEL(paged_attention_fwd_f32_64_split, (forward_f32<1, false, true>))
KERNEL(paged_attention_fwd_f32_128_split, (forward_f32<2, false, true>))
KERNEL(paged_attention_fwd_f32_256_split, (forward_f32<4, true, true>))
KERNEL(paged_attention_fwd_f32_combine, combine<float>)
