// Forward pass of 64 queries over a range of key blocks on tensor cores, with 4 warps of 16 queries each.
//
// HEAD_DIM is the number of columns of queries and keys, COLUMNS that of values and output. They differ only for
// head_dim > 128, where a block of threads computes 64 columns of the output.
#pragma once

#include "attention/tile.cuh"
#include "cuh/online_softmax.cuh"

// Shared memory holds a tile of queries, then STAGES buffers, each for a tile of keys and a tile of values.
template <int HEAD_DIM>
constexpr int STAGES = HEAD_DIM > 128 ? 1 : 2;
template <int HEAD_DIM, int COLUMNS>
constexpr int STAGE_BYTES = Tile<HEAD_DIM>::BYTES + Tile<COLUMNS>::BYTES;

// State of the two rows that a thread computes, g = lane / 4 and g + 8 of its warp's 16 rows: softmax maximum and
// sum, and outputs that are not yet divided by the sum.
template <int COLUMNS>
struct Attended {
  SoftmaxRow row[2];
  float o[COLUMNS / 8][4];
};

// Adds one block of keys to the state of one warp's rows. `q`, `k` and `v` are the shared-memory addresses from which
// this lane loads its operands. With MASK, the thread's rows g = lane / 4 and g + 8 see only the first limit[0] and
// limit[1] keys of the block, and the warp's last row sees the first `visible`.
template <int HEAD_DIM, int COLUMNS, bool MASK>
__device__ __forceinline__ void add_keys(Attended<COLUMNS>& part, u32 q, u32 k, u32 v, float factor,
                                          const int (&limit)[2], int visible, int head_dim) {
  constexpr int TILES = BLOCK_KEYS / 8;
  float s[TILES][4] = {};
#pragma unroll
  for (int step = 0; step < Tile<HEAD_DIM>::STEPS; ++step) {
    if (16 * step >= head_dim) break;
    u32 a[4];
    left_fragment<HEAD_DIM>(a, q, 0, step);
#pragma unroll
    for (int pair = 0; pair < TILES / 2; ++pair) {
      if (MASK && 16 * pair >= visible) continue;
      u32 b[4];
      right_fragment<HEAD_DIM>(b, k, 16 * pair, step);
      mma_bf16(s[2 * pair], a, b[0], b[1]);
      mma_bf16(s[2 * pair + 1], a, b[2], b[3]);
    }
  }
  if (MASK) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (8 * n + 2 * t + i % 2 >= limit[i / 2]) s[n][i] = minus_infinity();
      }
    }
  }
  float rescale[2];
  add_scores(part.row, s, factor, rescale);
#pragma unroll
  for (int n = 0; n < COLUMNS / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) part.o[n][i] = __fmul_rn(part.o[n][i], rescale[i / 2]);
  }
#pragma unroll
  for (int pair = 0; pair < TILES / 2; ++pair) {
    if (MASK && 16 * pair >= visible) continue;
    u32 a[4];
    as_left(a, s[2 * pair], s[2 * pair + 1]);
    multiply_rows<COLUMNS>(part.o, a, v, 16 * pair);
  }
}

template <int COLUMNS>
__device__ __forceinline__ void clear(Attended<COLUMNS>& x) {
  x.row[0] = x.row[1] = empty_row();
#pragma unroll
  for (int n = 0; n < COLUMNS / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x.o[n][i] = 0.0f;
  }
}

template <int COLUMNS>
__device__ __forceinline__ void end_segment(Attended<COLUMNS>& total, Attended<COLUMNS>& part) {
  MergeWeights w[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    part.row[h].sum = row_sum<4>(part.row[h].sum);
    w[h] = merge(total.row[h], part.row[h]);
  }
#pragma unroll
  for (int n = 0; n < COLUMNS / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) total.o[n][i] = merged(total.o[n][i], part.o[n][i], w[i / 2]);
  }
}

// Computes attention of queries 0 .. count (at most 64) over key blocks begin .. end. Keys from `keys_end` on are not
// read. `queries.head(r)` and `keys.head(r)` are the indices of the first element of row r's head. Query r sees the
// keys below limit(r), which does not decrease with r and is at most keys_end. `shared` is aligned to 512 bytes;
// after the call each warp may reuse its own rows of the queries' tile.
template <int HEAD_DIM, int COLUMNS, bool PADDED, class Queries, class Keys, class Limit>
__device__ __forceinline__ void attend(Attended<COLUMNS>& total, char* shared, const bf16* q, const Queries& queries,
                                       int count, const bf16* k, const bf16* v, const Keys& keys, int keys_end,
                                       const Limit& limit, int begin, int end, float factor, int head_dim, int column) {
  using T = Tile<HEAD_DIM>;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, row = 16 * warp;
  const u32 tiles = shared_address(shared);
  const auto stage = [](int block) {
    return static_cast<u32>(T::BYTES + block % STAGES<HEAD_DIM> * STAGE_BYTES<HEAD_DIM, COLUMNS>);
  };
  const auto copy_block = [&](int block) {
    const u32 k_at = stage(block), v_at = k_at + T::BYTES;
    copy_rows<HEAD_DIM, PADDED>(tiles + k_at, shared + k_at, k, keys, block * BLOCK_KEYS, keys_end, head_dim, 0);
    copy_rows<COLUMNS, PADDED>(tiles + v_at, shared + v_at, v, keys, block * BLOCK_KEYS, keys_end, head_dim, column);
    cp_async_commit();
  };
  clear_padding<HEAD_DIM>(shared);
#pragma unroll
  for (int i = 0; i < STAGES<HEAD_DIM>; ++i) clear_padding<HEAD_DIM>(shared + stage(i));
  copy_rows<HEAD_DIM, PADDED>(tiles, shared, q, queries, 0, count, head_dim, 0);
  if (STAGES<HEAD_DIM> > 1) copy_block(begin);

  // Rows from `count` on do not exist. They use the limit of the last row, and their results are not stored.
  const int last = count - 1;
  const int fewest = limit(min(row, last)), most = limit(min(row + 15, last));
  const u32 left = left_lane<HEAD_DIM>(tiles), right = right_lane<HEAD_DIM>(tiles);
  const u32 q_lane = left + row * (T::PITCH * 16), trans = left_lane<COLUMNS>(tiles) + T::BYTES;
  Attended<COLUMNS> part;
  clear(total);
  clear(part);
#pragma unroll 1
  for (int block = begin; block < end; ++block) {
    if (STAGES<HEAD_DIM> == 1) {
      __syncthreads();  // No thread still reads the previous block.
      copy_block(block);
    }
    cp_async_wait<0>();
    __syncthreads();  // The block has arrived, and no thread still reads the previous one.
    if (STAGES<HEAD_DIM> > 1 && block + 1 < end) copy_block(block + 1);
    const int first = block * BLOCK_KEYS;
    const u32 k_lane = right + stage(block), v_lane = trans + stage(block);
    if (fewest - first >= BLOCK_KEYS) {
      add_keys<HEAD_DIM, COLUMNS, false>(part, q_lane, k_lane, v_lane, factor, {}, BLOCK_KEYS, head_dim);
    } else if (most > first) {
      const int limits[2] = {limit(min(row + g, last)) - first, limit(min(row + g + 8, last)) - first};
      add_keys<HEAD_DIM, COLUMNS, true>(part, q_lane, k_lane, v_lane, factor, limits, most - first, head_dim);
    }
    if ((block + 1) % SEGMENT_BLOCKS == 0 || block + 1 == end) {
      end_segment(total, part);
      clear(part);
    }
  }
}
