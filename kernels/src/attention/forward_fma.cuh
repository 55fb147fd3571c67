// Forward pass of 64 queries over a range of key blocks on CUDA cores with f32 arithmetic: for f32 tensors, and for
// bf16 tensors of any head_dim.
#pragma once

#include "attention/fma_tile.cuh"
#include "cuh/online_softmax.cuh"

// A block of threads writes FMA_PARTS * 64 = 128 columns of the output. Its shared memory holds 128 columns of the
// queries, a tile of keys or values, and a tile of softmax weights.
constexpr int FMA_PARTS = 2;
constexpr int FMA_PART_COLUMNS = FMA_PARTS * FMA_COLUMNS;
constexpr int FORWARD_FMA_BYTES = (FMA_PARTS + 2) * FMA_TILE * 4;

// State of a thread's four rows 4y + i, with (y, x) = (threadIdx.x / 16, threadIdx.x % 16): softmax maximum and sum,
// and the output before division by the sum. o[part][i] has the four columns from 64 * part + 4x on.
struct AttendedFma {
  SoftmaxRow row[4];
  float o[FMA_PARTS][4][4];
};

__device__ __forceinline__ void clear(AttendedFma& x) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x.row[i] = empty_row();
#pragma unroll
    for (int part = 0; part < FMA_PARTS; ++part) {
#pragma unroll
      for (int j = 0; j < 4; ++j) x.o[part][i][j] = 0.0f;
    }
  }
}

__device__ __forceinline__ void end_segment(AttendedFma& total, AttendedFma& part) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    part.row[i].sum = row_sum<16>(part.row[i].sum);
    const MergeWeights w = merge(total.row[i], part.row[i]);
#pragma unroll
    for (int n = 0; n < FMA_PARTS; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) total.o[n][i][j] = merged(total.o[n][i][j], part.o[n][i][j], w);
    }
  }
}

// Computes attention on CUDA cores, for 128 columns of the output from `column` on. `column` is a multiple of 128.
// `shared` has FORWARD_FMA_BYTES. forward_mma.cuh documents the other arguments (function `attend`).
template <class T, class Queries, class Keys, class Limit>
__device__ __forceinline__ void attend_fma(AttendedFma& total, float* shared, const T* q, const Queries& queries, int count,
                                           const T* k, const T* v, const Keys& keys, int keys_end, const Limit& limit,
                                           int begin, int end, float factor, int head_dim, int column) {
  float* const q_tile = shared;
  float* const kv_tile = shared + FMA_PARTS * FMA_TILE;
  float* const weights = kv_tile + FMA_TILE;
  const bool resident = head_dim <= FMA_PART_COLUMNS;
  const int row = threadIdx.x / 16 * 4, x = threadIdx.x % 16;
  if (resident) {
    for (int at = 0; at < head_dim; at += FMA_COLUMNS) {
      fill_tile(q_tile + at / FMA_COLUMNS * FMA_TILE, q, queries, 0, count, at, head_dim);
    }
  }
  AttendedFma part;
  clear(total);
  clear(part);
#pragma unroll 1
  for (int block = begin; block < end; ++block) {
    const int first = block * BLOCK_KEYS;
    float s[4][4] = {};
    for (int at = 0; at < head_dim; at += FMA_COLUMNS) {
      __syncthreads();
      float* const q_part = q_tile + (resident ? at / FMA_COLUMNS * FMA_TILE : 0);
      if (!resident) fill_tile(q_part, q, queries, 0, count, at, head_dim);
      fill_tile(kv_tile, k, keys, first, keys_end, at, head_dim);
      __syncthreads();
      multiply_columns(s, q_part, kv_tile, min(FMA_COLUMNS, head_dim - at));
    }
    float rescale[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Rows from `count` on do not exist. They use the limit of the last row, and their results are not stored.
      const int visible = limit(min(row + i, count - 1)) - first;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (x + 16 * j >= visible) s[i][j] = minus_infinity();
      }
      rescale[i] = add_scores(part.row[i], s[i], factor);
    }
    store_results(weights, s);
#pragma unroll
    for (int n = 0; n < FMA_PARTS; ++n) {
      const int at = column + n * FMA_COLUMNS;
      if (at >= head_dim) break;
      __syncthreads();
      fill_tile(kv_tile, v, keys, first, keys_end, at, head_dim);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) part.o[n][i][j] = __fmul_rn(part.o[n][i][j], rescale[i]);
      }
      multiply_tiles(part.o[n], weights, kv_tile, min(BLOCK_KEYS, keys_end - first));
    }
    if ((block + 1) % SEGMENT_BLOCKS == 0 || block + 1 == end) {
      end_segment(total, part);
      clear(part);
    }
  }
}
