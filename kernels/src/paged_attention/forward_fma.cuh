// Attention in f32 with fused multiply-adds, for prefill and decode: a tile has 16 rows of one sequence; a row is one
// query of one of the heads that share a KV head. A thread computes the scores of two rows for four keys that are 16
// apart, then the outputs of two rows in four of 64 columns.
#pragma once

#include "paged_attention/tile.cuh"

// N: number of groups of 64 columns in a head. SHARE: one buffer holds first K, then V. SPLIT: the block computes one
// segment and stores its state for the combine stage.
template <int N, bool SHARE, bool SPLIT>
__device__ __forceinline__ void forward_fma(const Params& p) {
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
