// Forward pass of 64 queries over a range of key blocks on tensor cores: 4 warps of 16 queries each.
#pragma once

#include "attention/tile.cuh"
#include "cuh/online_softmax.cuh"

// Shared memory: the queries, then twice keys and values.
template <int HEAD_DIM>
constexpr int FORWARD_BYTES = 5 * Tile<HEAD_DIM>::BYTES;

// Two rows of a thread (g and g + 8 of its warp's 16) at the end: sums complete, outputs not yet divided.
template <int HEAD_DIM>
struct Attended {
  SoftmaxRow row[2];
  float o[HEAD_DIM / 8][4];
};

// One block of keys for one warp; q, k and v: where this lane's fragments begin. MASK: rows of the warp see different keys of it, row r the first limit[r / 8].
template <int HEAD_DIM, bool MASK>
__device__ __forceinline__ void take_keys(Attended<HEAD_DIM>& part, u32 q, u32 k, u32 v, float factor,
                                          const int (&limit)[2], int visible) {
  using T = Tile<HEAD_DIM>;
  constexpr int TILES = BLOCK_KEYS / 8;
  float s[TILES][4] = {};
#pragma unroll
  for (int step = 0; step < T::STEPS; ++step) {
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
  take_block(part.row, s, factor, rescale);
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) part.o[n][i] = __fmul_rn(part.o[n][i], rescale[i / 2]);
  }
#pragma unroll
  for (int pair = 0; pair < TILES / 2; ++pair) {
    if (MASK && 16 * pair >= visible) continue;
    u32 a[4];
    as_left(a, s[2 * pair], s[2 * pair + 1]);
    multiply_rows<HEAD_DIM>(part.o, a, v, 16 * pair);
  }
}

template <int HEAD_DIM>
__device__ __forceinline__ void clear(Attended<HEAD_DIM>& x) {
  x.row[0] = x.row[1] = empty_row();
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x.o[n][i] = 0.0f;
  }
}

template <int HEAD_DIM>
__device__ __forceinline__ void end_segment(Attended<HEAD_DIM>& total, Attended<HEAD_DIM>& part) {
  MergeWeights w[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    part.row[h].sum = row_sum<4>(part.row[h].sum);
    w[h] = merge(total.row[h], part.row[h]);
  }
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) total.o[n][i] = merged(total.o[n][i], part.o[n][i], w[i / 2]);
  }
}

// Queries 0 .. count (at most 64; `queries.head(r)` where r's head begins) over key blocks begin .. end, of which keys from
// `keys_end` on are not read. Query r sees keys 0 .. limit(r), not decreasing, at most keys_end. `shared`: FORWARD_BYTES,
// aligned to 16; the queries' part of it is each warp's own when this returns.
template <int HEAD_DIM, class Queries, class Keys, class Limit>
__device__ __forceinline__ void attend(Attended<HEAD_DIM>& total, char* shared, const bf16* q, const Queries& queries,
                                       int count, const bf16* k, const bf16* v, const Keys& keys, int keys_end,
                                       const Limit& limit, int begin, int end, float factor) {
  using T = Tile<HEAD_DIM>;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, row = 16 * warp;
  const u32 q_tile = shared_address(shared);
  auto stage = [&](int block) { return static_cast<u32>((1 + 2 * (block & 1)) * T::BYTES); };
  auto copy_block = [&](int block) {
    copy_rows<HEAD_DIM, MMA_THREADS>(q_tile + stage(block), k, keys, block * BLOCK_KEYS, keys_end);
    copy_rows<HEAD_DIM, MMA_THREADS>(q_tile + stage(block) + T::BYTES, v, keys, block * BLOCK_KEYS, keys_end);
    cp_async_commit();
  };
  clear_padding<HEAD_DIM, MMA_THREADS>(shared);
  clear_padding<HEAD_DIM, MMA_THREADS>(shared + T::BYTES);
  clear_padding<HEAD_DIM, MMA_THREADS>(shared + 3 * T::BYTES);
  copy_rows<HEAD_DIM, MMA_THREADS>(q_tile, q, queries, 0, count);
  copy_block(begin);

  // Rows beyond `count` see what the last one sees; they are not stored.
  const int last = count - 1;
  const int fewest = limit(min(row, last)), most = limit(min(row + 15, last));
  const u32 left = left_lane<HEAD_DIM>(q_tile), right = right_lane<HEAD_DIM>(q_tile);
  const u32 q_lane = left + row * (T::PITCH * 16);
  Attended<HEAD_DIM> part;
  clear(total);
  clear(part);
#pragma unroll 1
  for (int block = begin; block < end; ++block) {
    cp_async_wait<0>();
    __syncthreads();  // The block has arrived, and nobody reads the one before any more.
    if (block + 1 < end) copy_block(block + 1);
    const int first = block * BLOCK_KEYS;
    const u32 k_lane = right + stage(block), v_lane = left + stage(block) + T::BYTES;
    if (fewest - first >= BLOCK_KEYS) {
      take_keys<HEAD_DIM, false>(part, q_lane, k_lane, v_lane, factor, {}, BLOCK_KEYS);
    } else if (most > first) {
      const int limit_here[2] = {limit(min(row + g, last)) - first, limit(min(row + g + 8, last)) - first};
      take_keys<HEAD_DIM, true>(part, q_lane, k_lane, v_lane, factor, limit_here, most - first);
    }
    if ((block + 1) % SEGMENT_BLOCKS == 0 || block + 1 == end) {
      end_segment(total, part);
      clear(part);
    }
  }
}
