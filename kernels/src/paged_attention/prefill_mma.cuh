// Prefill in bf16 on tensor cores: a tile has 64 packed rows of one sequence, 16 per warp, and processes 64 keys at a
// time.
#pragma once

#include "paged_attention/tile.cuh"

// D: head_dim rounded up. V: number of output columns that a block of threads computes. STAGES: number of buffers for
// keys and values. SPLIT: the block computes one segment and stores its state for the combine stage.
template <int D, int V, int STAGES, bool SPLIT>
__device__ __forceinline__ void prefill_mma(const Params& p) {
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

  // If registers are scarce (not KEEP_Q), each thread keeps its share of the queries in shared memory, which no other
  // thread reads.
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
    // Completes the sum of the segment (512 keys), then merges the segment into the total or stores its state.
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
