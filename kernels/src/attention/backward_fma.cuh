// Gradients of a tile of 64 queries, and of a tile of 64 keys and values, on CUDA cores with f32 arithmetic: for f32
// tensors, and for bf16 tensors of any head_dim.
#pragma once

#include "attention/forward_fma.cuh"
#include "attention/visits.cuh"

// Dynamic shared memory of a block: four f32 tiles. Two are operands of the products, one holds the softmax weights
// p, and one the gradients ds of the scores.
constexpr int BACKWARD_FMA_BYTES = 4 * FMA_TILE * 4;

using FmaTiles = float[FMA_PARTS][4][4];

__device__ __forceinline__ void clear(FmaTiles& c) {
#pragma unroll
  for (int n = 0; n < FMA_PARTS; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) c[n][i][j] = 0.0f;
    }
  }
}

// Computes c = a b^T over all head_dim columns, for 64 rows of `a` from a_first on and 64 rows of `b` from b_first
// on. `tiles` is memory for two tiles. It is overwritten only after a barrier, so other threads may still read its
// old contents when this thread calls the function.
template <class T, class A, class B>
__device__ __forceinline__ void multiply_heads(float (&c)[4][4], float* tiles, const T* a, const A& a_rows, int a_first,
                                               int a_end, const T* b, const B& b_rows, int b_first, int b_end,
                                               int head_dim) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) c[i][j] = 0.0f;
  }
  for (int at = 0; at < head_dim; at += FMA_COLUMNS) {
    __syncthreads();
    fill_tile(tiles, a, a_rows, a_first, a_end, at, head_dim);
    fill_tile(tiles + FMA_TILE, b, b_rows, b_first, b_end, at, head_dim);
    __syncthreads();
    multiply_columns(c, tiles, tiles + FMA_TILE, min(FMA_COLUMNS, head_dim - at));
  }
}

// Computes 128 columns of dq, from `column` on, for the queries 0 .. count, without the factor `scale`. `lse` (times
// log2 e) and `delta` belong to the thread's four rows 4y + i (y = threadIdx.x / 16). `shared` has
// BACKWARD_FMA_BYTES. forward_mma.cuh documents the other arguments (function `attend`).
template <class T, class Queries, class Keys, class Limit>
__device__ __forceinline__ void query_gradients_fma(FmaTiles& dq, float* shared, const T* q, const T* d_o,
                                                    const Queries& queries, int count, const T* k, const T* v,
                                                    const Keys& keys, int keys_end, const Limit& limit, float factor,
                                                    const float (&lse)[4], const float (&delta)[4], int head_dim,
                                                    int column) {
  const int row = threadIdx.x / 16 * 4, x = threadIdx.x % 16;
  float* const k_tile = shared + FMA_TILE;
  float* const slopes = shared + 3 * FMA_TILE;
  clear(dq);
#pragma unroll 1
  for (int first = 0; first < keys_end; first += BLOCK_KEYS) {
    float p[4][4], ds[4][4];
    multiply_heads(p, shared, q, queries, 0, count, k, keys, first, keys_end, head_dim);
    multiply_heads(ds, shared, d_o, queries, 0, count, v, keys, first, keys_end, head_dim);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int visible = limit(min(row + i, count - 1)) - first;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        ds[i][j] = x + 16 * j < visible ? weight(p[i][j], factor, lse[i]) * (ds[i][j] - delta[i]) : 0.0f;
      }
    }
    store_results(slopes, ds);
#pragma unroll
    for (int n = 0; n < FMA_PARTS; ++n) {
      const int at = column + n * FMA_COLUMNS;
      if (at >= head_dim) break;
      __syncthreads();
      fill_tile(k_tile, k, keys, first, keys_end, at, head_dim);
      __syncthreads();
      multiply_tiles(dq[n], slopes, k_tile, min(BLOCK_KEYS, keys_end - first));
    }
  }
}

// Computes 128 columns of dk (without the factor `scale`) and of dv, from `column` on, for the keys 0 .. count (at
// most 64), over all visits (pairs of a query tile and a head) in order. visits.start must have been called.
template <class T, class P, class Keys>
__device__ __forceinline__ void key_gradients_fma(FmaTiles& dk, FmaTiles& dv, float* shared, const P& p, const Keys& keys,
                                                  int count, int kv_head, Visits& visits, int column) {
  const T* const q = global<const T>(p.q);
  const T* const d_o = global<const T>(p.d_o);
  const float* const lse = global<const float>(p.lse);
  const float* const delta = global<const float>(p.delta);
  const int head_dim = static_cast<int>(p.head_dim);
  const float factor = p.scale * LOG2_E;
  const int row = threadIdx.x / 16 * 4, x = threadIdx.x % 16;
  float* const weights = shared + 2 * FMA_TILE;
  float* const slopes = shared + 3 * FMA_TILE;
  clear(dk);
  clear(dv);
#pragma unroll 1
  for (int at_visit = 0; visits[at_visit].count > 0; ++at_visit) {
    visits.look_ahead(p, at_visit, kv_head);
    const Visit& visit = visits[at_visit];
    const PackedRows queries = visit.queries();
    float w[4][4], ds[4][4];
    multiply_heads(w, shared, q, queries, 0, visit.count, global<const T>(p.k), keys, 0, count, head_dim);
    multiply_heads(ds, shared, d_o, queries, 0, visit.count, global<const T>(p.v), keys, 0, count, head_dim);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u64 at = visit.value(min(row + i, visit.count - 1));
      const float log = lse[at] * LOG2_E, d = delta[at];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool seen = row + i < visit.count && visit.seen_from(x + 16 * j) <= row + i;
        w[i][j] = seen ? weight(w[i][j], factor, log) : 0.0f;
        ds[i][j] = seen ? w[i][j] * (ds[i][j] - d) : 0.0f;
      }
    }
    store_results(weights, w);
    store_results(slopes, ds);
#pragma unroll
    for (int n = 0; n < FMA_PARTS; ++n) {
      const int at = column + n * FMA_COLUMNS;
      if (at >= head_dim) break;
      __syncthreads();
      fill_tile(shared, d_o, queries, 0, visit.count, at, head_dim);
      fill_tile(shared + FMA_TILE, q, queries, 0, visit.count, at, head_dim);
      __syncthreads();
      multiply_tiles_trans(dv[n], weights, shared, 0);
      multiply_tiles_trans(dk[n], slopes, shared + FMA_TILE, 0);
    }
  }
}

// Computes delta[i] = d_o_i . o_i for each of `rows` rows of head_dim elements; 16 neighbouring threads compute one
// row.
template <class T>
__device__ __forceinline__ void row_products(float* delta, const T* d_o, const T* o, u64 rows, int head_dim) {
  const u64 row = blockIdx.x * static_cast<u64>(FMA_THREADS / 16) + threadIdx.x / 16;
  float sum = 0.0f;
  if (row < rows) {
    for (int at = threadIdx.x % 16 * 4; at < head_dim; at += FMA_COLUMNS) {
      float a[4], b[4];
      load_elements<4>(d_o + row * head_dim, at, head_dim, head_dim % 4 == 0, a);
      load_elements<4>(o + row * head_dim, at, head_dim, head_dim % 4 == 0, b);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum = __fmaf_rn(a[j], b[j], sum);
    }
  }
  sum = row_sum<16>(sum);
  if (row < rows && threadIdx.x % 16 == 0) delta[row] = sum;
}
