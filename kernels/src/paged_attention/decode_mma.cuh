// Decode in bf16 on tensor cores: a row is a (token, query head). All four warps compute.
//
//   for each item of work (decode_work.cuh):
//     at most 16 rows, keys over warps:
//       for each block of 64 keys: warp w computes the scores of keys 16 w .. 16 w + 16 -> shared memory
//                                  every warp reads all scores: online softmax; O += P V for a quarter of the columns
//     more rows (tokens that share their pages), rows over warps: as prefill_mma.cuh, 16 rows per warp
//     one of several segments: O, maximum, sum -> workspace; count_and_merge; else o = O / sum
//
// Order. A score does not depend on other keys and a column of O not on other columns. Every warp computes maxima,
// sums and weights from all 64 scores by the function that prefill uses (add_scores). So decode and prefill are
// bit-identical.
//
// Bytes in flight. K and V of a block of keys are separate tiles in a ring, and the kernel waits for each tile
// separately.
//   head_dim       stages   ring        in flight per block of threads   blocks per multiprocessor of an H200
//   up to 64       5        45 KiB      24 to 32 KiB                     3 (registers)
//   up to 80       5        55 KiB      30 to 40 KiB                     2 (registers)
//   up to 128      5        85 KiB      48 to 64 KiB                     2 (shared memory)
//   up to 256      2        66 KiB      0 to 32 KiB                      2 (registers)
// Shared memory also holds 4.5 KiB of scores. An H200 needs about 23 KiB in flight per multiprocessor.
#pragma once

#include "paged_attention/decode_work.cuh"

// Distance between rows of scores, in elements. It is 8 mod 32, so that 8-byte accesses of a half warp use 32 different
// banks.
constexpr int SCORE_PITCH = KEYS + 8;

// The ring of tiles in shared memory. Tile 2 b has the keys of block b, tile 2 b + 1 its values.
// D: head_dim rounded up.
template <int D>
struct Ring {
  // Rows are an odd number of 16-byte chunks apart, so ldmatrix has no bank conflicts.
  static constexpr int PITCH = (D / 8 | 1) * 8, TILE = KEYS * PITCH, STAGES = D <= 128 ? 5 : 2;

  const Params& p;
  const KeyRange& range;
  bf16* tiles;
  SegmentPages pages;  // of the keys of tile `next`
  int next;            // the tile that is copied next
  int to, from;        // the stages of the tile that is copied next and of the tile that is waited for next

  __device__ __forceinline__ Ring(const Params& params, const KeyRange& keys)
      : p(params),
        range(keys),
        tiles(reinterpret_cast<bf16*>(shared)),
        pages(params, keys, keys.begin),
        next(2 * keys.begin),
        to(0),
        from(0) {}

  // Starts to copy the next tile, if there is one. Commits a cp.async group in any case, so that waits can count
  // groups.
  __device__ __forceinline__ void copy() {
    if (next < 2 * range.end) {
      const int block = next / 2;
      const bf16* cache = global<const bf16>(next % 2 == 0 ? p.k_cache : p.v_cache);
      pages.first = block % SEGMENT_BLOCKS * KEYS;
      if (p.head_dim % 8 == 0) {
        copy_vectors(cache, block * KEYS, tiles + to * TILE);
      } else {
        load_elements_of_block<D, PITCH>(p, range, cache, pages, block * KEYS, 0, tiles + to * TILE);
      }
      // Loads the pages of the next segment (512 keys) early, because the next call needs them.
      if (next % (2 * SEGMENT_BLOCKS) == 2 * SEGMENT_BLOCKS - 1) pages.find(p, range, block + 1);
      ++next;
      to = to + 1 == STAGES ? 0 : to + 1;
    }
    cp_async_commit();
  }

  // Starts to copy 64 rows from key `start` on in units of 16 bytes. A unit with no key or column is filled with zeros;
  // its source is an address in the cache that is not read.
  __device__ __forceinline__ void copy_vectors(const bf16* cache, int start, bf16* tile) const {
    constexpr u32 UNITS = D / 8, COPIES = KEYS * UNITS / THREADS;
    static_assert(KEYS * UNITS % THREADS == 0, "the copies are divided evenly among the threads");
    // Whether all 16-byte copies that a thread makes have the same columns.
    constexpr bool EVEN = THREADS % UNITS == 0;
    const int d = p.head_dim;
    const u32 slot_bytes = p.kv_heads * d * sizeof(bf16), shared = shared_address(tile);
    const char* const heads = reinterpret_cast<const char*>(cache + range.kv_head * d);
    const int keys = range.keys - start;
#pragma unroll(COPIES < 8 ? COPIES : 8)
    for (u32 i = 0; i < COPIES; ++i) {
      const u32 at = threadIdx.x + i * THREADS;
      const int row = EVEN ? threadIdx.x / UNITS + i * (THREADS / UNITS) : at / UNITS;
      const int c = (EVEN ? threadIdx.x : at) % UNITS * 8;
      const char* source = heads + static_cast<u64>(pages.of(row)) * slot_bytes + (c < d ? c : 0) * sizeof(bf16);
      cp_async_16(shared + (row * PITCH + c) * sizeof(bf16), source, row < keys && c < d ? 16 : 0);
    }
  }

  // Waits for a tile and returns it. After the barrier no thread reads the previous tile any more, so the next copy
  // goes to the stage of that tile.
  __device__ __forceinline__ const bf16* wait() {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    copy();
    const bf16* tile = tiles + from * TILE;
    from = from + 1 == STAGES ? 0 : from + 1;
    return tile;
  }

  // Starts to copy the item's queries and the first tiles, then loads the 16 queries from `row` on as left operands of
  // mma.sync. The queries are in the last stage, which the first call of wait frees.
  __device__ __forceinline__ void start(const Work& work, int row, u32 (&q)[D / 16][4]) {
    bf16* const queries = tiles + (STAGES - 1) * TILE;
    const int d = p.head_dim, rows = ceil_div(work.rows(), 16) * 16;
    if (d % 8 == 0) {
      for (int at = threadIdx.x; at < rows * (D / 8); at += THREADS) {
        const int r = at / (D / 8), c = at % (D / 8) * 8;
        const bool valid = r < work.rows() && c < d;
        const bf16* source = global<const bf16>(p.q) + (valid ? work.head_index(p, r) * d + c : 0);
        cp_async_16(shared_address(queries + r * PITCH + c), source, valid ? 16 : 0);
      }
    } else {
      for (int at = threadIdx.x; at < rows * D; at += THREADS) {
        const int r = at / D, c = at % D;
        bf16 x = {0};
        if (r < work.rows() && c < d) x = global<const bf16>(p.q)[work.head_index(p, r) * d + c];
        queries[r * PITCH + c] = x;
      }
    }
    cp_async_commit();
#pragma unroll 1
    for (int i = 0; i < STAGES - 1; ++i) copy();
    cp_async_wait<STAGES - 1>();
    __syncthreads();  // the queries have arrived
    if (row >= rows) return;
    const int lane = threadIdx.x % 32;
    const u32 address = shared_address(queries + (row + lane % 16) * PITCH + lane / 16 * 8);
#pragma unroll
    for (int step = 0; step < D / 16; ++step) ldmatrix_x4(q[step], address + step * 32);
  }
};

template <int N>
__device__ __forceinline__ void clear(float (&x)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[n][i] = 0.0f;
  }
}

// Stores the softmax state of one segment (512 keys) of a row in the workspace. This lane stores o[..][2 h] and o[..][2
// h + 1], its elements of the N * 8 output columns from `column` on. One lane also stores the maximum and the sum.
template <int N>
__device__ __forceinline__ void store_part(const Params& p, u64 row, int segment, SoftmaxRow sums,
                                           const float (&o)[N][4], int h, int column) {
  const Part part = part_of(p, row, segment);
  const int lane = threadIdx.x % 32, c2 = lane % 4 * 2, end = ceil_div<int>(p.head_dim, 4) * 4;
  if (column == 0 && c2 == 0) *part.stats = make_float2(sums.max, sums.sum);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int at = column + n * 8 + c2;
    if (at < end) *reinterpret_cast<float2*>(part.columns + at) = make_float2(o[n][2 * h], o[n][2 * h + 1]);
  }
}

// Computes at most 16 rows: each warp has the scores of 16 keys of a block, then a quarter of the output's columns.
template <int D>
__device__ __forceinline__ void keys_over_warps(const Params& p, const Work& work) {
  // The output's columns are divided into groups of 8, N groups per warp. With 10 groups (D = 80) the last warp has one
  // group, the other warps three.
  constexpr int GROUPS = D / 8, N = (GROUPS + 3) / 4;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c2 = lane % 4 * 2;
  const int column = warp * N * 8, d = p.head_dim;
  const float factor = p.scale * LOG2_E;
  float* const scores = reinterpret_cast<float*>(shared + Ring<D>::STAGES * Ring<D>::TILE * sizeof(bf16));
  Ring<D> ring(p, work);
  u32 q[D / 16][4];
  ring.start(work, 0, q);
  SoftmaxRow total_row[2] = {empty_row(), empty_row()};
  float total[N][4];
  clear(total);
  for (int segment = work.begin; segment < work.end; segment += SEGMENT_BLOCKS) {
    const int segment_end = segment + SEGMENT_BLOCKS < work.end ? segment + SEGMENT_BLOCKS : work.end;
    SoftmaxRow sums[2] = {empty_row(), empty_row()};
    float o[N][4];
    clear(o);
#pragma unroll 1
    for (int block = segment; block < segment_end; ++block) {
      const bf16* k = ring.wait();
      float own[2][4];
      clear(own);
      const u32 k_address = shared_address(k + (warp * 16 + lane % 8 + lane / 16 * 8) * Ring<D>::PITCH + lane / 8 % 2 * 8);
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        u32 b[4];
        ldmatrix_x4(b, k_address + step * 32);
        mma_bf16(own[0], q[step], b[0], b[1]);
        mma_bf16(own[1], q[step], b[2], b[3]);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int key = warp * 16 + n * 8 + c2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (block * KEYS + key + i % 2 >= work.keys) own[n][i] = minus_infinity();
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          *reinterpret_cast<float2*>(scores + (g + 8 * h) * SCORE_PITCH + key) = make_float2(own[n][2 * h], own[n][2 * h + 1]);
        }
      }
      const bf16* v = ring.wait();  // its barrier also makes the scores of all warps visible
      float s[KEYS / 8][4];
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float2 pair = *reinterpret_cast<const float2*>(scores + (g + 8 * h) * SCORE_PITCH + n * 8 + c2);
          s[n][2 * h] = pair.x;
          s[n][2 * h + 1] = pair.y;
        }
      }
      float rescale[2];
      add_scores(sums, s, factor, rescale);
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] *= rescale[i / 2];
      }
      const u32 v_address = shared_address(v + lane * Ring<D>::PITCH + column);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        u32 a[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int tile = 4 * half + i / 4 * 2 + i % 4 / 2;
          a[i / 4][i % 4] = pack_bf16(s[tile][i % 2 * 2], s[tile][i % 2 * 2 + 1]);
        }
#pragma unroll
        for (int n = 0; n < N; ++n) {
          if (GROUPS % 4 != 0 && warp * N + n >= GROUPS) continue;
          u32 b[4];
          ldmatrix_x4_trans(b, v_address + (half * 32 * Ring<D>::PITCH + n * 8) * 2);
          mma_bf16(o[n], a[0], b[0], b[1]);
          mma_bf16(o[n], a[1], b[2], b[3]);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sums[h].sum = row_sum<4>(sums[h].sum);
      if (work.partial) {
        const int row = g + 8 * h;
        if (row < work.rows()) store_part(p, work.head_index(p, row), segment / SEGMENT_BLOCKS, sums[h], o, h, column);
      } else {
        const MergeWeights w = merge(total_row[h], sums[h]);
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; ++i) total[n][i] = merged(total[n][i], o[n][i], w);
        }
      }
    }
  }
  if (work.partial) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (g + 8 * h >= work.rows()) continue;
    bf16* to = global<bf16>(p.o) + work.head_index(p, g + 8 * h) * d;
    const float inverse = inverse_or_zero(total_row[h]);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float out[2] = {total[n][2 * h] * inverse, total[n][2 * h + 1] * inverse};
      store_elements(to, column + n * 8 + c2, d, d % 2 == 0, out);
    }
  }
}

// Computes one segment (512 keys) for up to 64 rows, 16 rows per warp. Every row sees all keys of the segment.
template <int D>
__device__ __forceinline__ void rows_over_warps(const Params& p, const Work& work) {
  const int lane = threadIdx.x % 32, g = lane / 4, row = threadIdx.x / 32 * 16;
  const bool has_rows = row < work.rows();
  const float factor = p.scale * LOG2_E;
  Ring<D> ring(p, work);
  u32 q[D / 16][4];
  ring.start(work, row, q);
  SoftmaxRow sums[2] = {empty_row(), empty_row()};
  float o[D / 8][4];
  clear(o);
#pragma unroll 1
  for (int block = work.begin; block < work.end; ++block) {
    const bf16* k = ring.wait();
    u32 weights[KEYS / 16][4];
    if (has_rows) {
      float s[KEYS / 8][4];
      clear(s);
      const u32 k_address = shared_address(k + (lane % 8 + lane / 16 * 8) * Ring<D>::PITCH + lane / 8 % 2 * 8);
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
#pragma unroll
        for (int n = 0; n < KEYS / 16; ++n) {
          u32 b[4];
          ldmatrix_x4(b, k_address + (n * 16 * Ring<D>::PITCH + step * 16) * 2);
          mma_bf16(s[2 * n], q[step], b[0], b[1]);
          mma_bf16(s[2 * n + 1], q[step], b[2], b[3]);
        }
      }
      float rescale[2];
      add_scores(sums, s, factor, rescale);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] *= rescale[i / 2];
      }
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) weights[n / 2][n % 2 * 2 + h] = pack_bf16(s[n][2 * h], s[n][2 * h + 1]);
      }
    }
    const bf16* v = ring.wait();
    if (!has_rows) continue;
    const u32 v_address = shared_address(v + lane % 16 * Ring<D>::PITCH + lane / 16 * 8);
#pragma unroll
    for (int step = 0; step < KEYS / 16; ++step) {
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        u32 b[4];
        ldmatrix_x4_trans(b, v_address + (step * 16 * Ring<D>::PITCH + n * 16) * 2);
        mma_bf16(o[2 * n], weights[step], b[0], b[1]);
        mma_bf16(o[2 * n + 1], weights[step], b[2], b[3]);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sums[h].sum = row_sum<4>(sums[h].sum);
    const int r = row + g + 8 * h;
    if (r < work.rows()) store_part(p, work.head_index(p, r), work.begin / SEGMENT_BLOCKS, sums[h], o, h, 0);
  }
}

// D: head_dim rounded up.
template <int D>
__device__ __forceinline__ void decode_mma(const Params& p) {
  // With head_dim above 128, the output of more than 16 rows does not fit in registers.
  constexpr int MAX_ROWS = D <= 128 ? 64 : 16;
  __shared__ SharedWork state;
  for (u32 item = blockIdx.x;; item += gridDim.x) {
    if (threadIdx.x < 32) find_work<MAX_ROWS>(p, item, state);
    __syncthreads();
    const Work& work = state.work;
    if (work.tokens < 0) return;
    if (work.tokens > 0) {
      if (MAX_ROWS == 16 || work.rows() <= 16) {
        keys_over_warps<D>(p, work);
      } else {
        rows_over_warps<D <= 128 ? D : 128>(p, work);
      }
      if (work.partial) count_and_merge(p, work, state);
    }
    __syncthreads();  // no thread still reads the shared memory of this item
  }
}
