// Products of up to 64 rows by clusters of blocks (sm_90), with the bits of the kernels in sm80.cu. x is bf16.
//
// In sm80.cu a block computes whole sums of 16 or 32 columns, so each of these blocks reads all of x. Here the eight
// blocks of a cluster divide k: block r computes the partial sums that warp r computes there, of up to 320 columns at a
// time (160 of swiglu). So a block reads an eighth of x, and x is read once a step. The blocks then exchange the
// partial sums through their shared memory and add them in the same order.
//
//   grid: 8 blocks of a cluster x blocks of rows of x x clusters; one block on a multiprocessor
//   a cluster has a range of columns, in steps of at most 320 weight rows; all clusters have equally many but for one
//     tile
//   a step has tiles of 8 weight rows, those of its units (products.cuh); warp w of a block has tiles w, w + 8, …,
//     w + 32
//
//   start the copies of the first stages' weights; wait for the previous launch; start those of x
//   with a norm: squares of an eighth of x -> shared memory of all blocks; cluster barrier; rstd
//   for each step:
//     for each group of k of this block:
//       wait for own copies of the stage; with a norm: normalise the units of x that this thread copied; block barrier
//       start the copies of the stage STAGES - 1 further on, which may belong to the next step; sums += x w^T
//     cluster wait (all have read the partial sums of the step before); partial sums -> shared; cluster barrier
//     y = epilogue(sum over blocks) of an eighth of the step's elements; cluster arrive
//
// Ring. A stage has one group of k: the units of the weight as each lane multiplies them, so that no other lane reads
// them, and those of x, which all warps read. A barrier of the block makes the latter visible; it also shows that all
// warps have read the stage before, whose place the next copies take. A warp loads 512 consecutive bytes, so there are
// no bank conflicts.
//
// Bound. Memory. 120 multiprocessors that read 3.8 TB/s take 31 bytes/ns each, 20 a clock at 1.58 GHz. For 512 bytes of
// the weight, one unit of each lane, a warp executes with 64 rows:
//
//   matrices       8 mma of 2048 multiply-adds in 26 clocks: 0.3 of the tensor cores' rate, of which mma.sync reaches 0.6
//   instructions   64, with a norm 86 to 101 (counted by checks/model_inputs.rs); 102 can be issued in the time of
//                  these bytes
//   shared memory  1 load of the weight and 8 of x for the warp's 4.6 tiles, and the copies: 3.9 bytes for each byte of
//                  the weight, 78 of 128 bytes a clock
//   L2             x once for 240 to 312 weight rows: 1.2 to 1.3 times the bytes of the weight; 1.46 times may come from
//                  L2 at 5.5 TB/s in the time of memory
//   latency        4 of 5 stages in flight are 56 to 80 KiB of weights; 31 bytes/ns times 700 ns are 22 KiB
//
// An H100 has 15 clusters of eight at a time, which use 120 of 132 multiprocessors (Arch::clusters_of_8). Blocks have
// equally many groups of k but for four: with k = 3584 half of them have a seventh more than the average, the others a
// seventh less. The copies of the next step run during the exchange of partial sums. Nothing of this has been timed on
// a GPU.
#pragma once

#if __CUDA_ARCH__ >= 900

#include "cuh/cluster.cuh"
#include "cuh/cp_async.cuh"
#include "cuh/dependent.cuh"
#include "cuh/mma.cuh"
#include "rms_norm/rstd.cuh"
#include "skinny/products.cuh"
#include "skinny/weights.cuh"

namespace in_cluster {

// mod.rs and cluster.rs have the same numbers.
constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int BLOCKS = 8;
constexpr int RUN = 4;    // number of consecutive groups of a block
constexpr int TILES = 5;  // tiles of a warp in a step, at most
constexpr int STAGES = 5;
constexpr int ROWS = 64;  // rows of x of a block, at most

extern __shared__ __align__(16) char memory[];

// Adds the products of one stage to the sums of the warp's tiles, for 16 R rows. `from` is the lane's place in the
// stage, whose units of x begin `x_units` after those of the weight. Y: type of y.
template <int R, class W, class Y>
__device__ __forceinline__ void multiply(const Words<16>* from, int x_units, int tiles, float (&sums)[TILES][4][4]) {
  constexpr int X_UNITS = 2 / sizeof(W);
#pragma unroll
  for (int half = 0; half < X_UNITS; ++half) {
    u32 a[R][2][4];
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Words<16> unit = from[x_units + ((2 * r + h) * X_UNITS + half) * 32];
#pragma unroll
        for (int i = 0; i < 4; ++i) a[r][h][i] = unit.word[i];
      }
    }
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      if (n >= tiles) break;
      u32 b[4];
      const Words<16> unit = from[n * WARPS * 32];
      weights_of(unit, half, b, W());
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const u32 low[4] = {a[r][0][0], a[r][1][0], a[r][0][1], a[r][1][1]};
        const u32 high[4] = {a[r][0][2], a[r][1][2], a[r][0][3], a[r][1][3]};
        if constexpr (sizeof(Y) == 2) {
          mma_bf16(sums[n][r], low, b[0], b[1]);
          mma_bf16(sums[n][r], high, b[2], b[3]);
        } else {
          float few[4] = {};
          mma_bf16(few, low, b[0], b[1]);
          mma_bf16(few, high, b[2], b[3]);
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[n][r][j] = __fadd_rn(sums[n][r][j], few[j]);
        }
      }
    }
  }
}

// The units of this cluster. P: the parameters, of which x, norm, m, k and eps are read here. NORM: x is normalised if
// p.norm is not null.
template <class W, class Y, bool NORM, class Op, class P>
__device__ __forceinline__ void product(const P& p, const Op& op) {
  constexpr int UNIT = 16 / sizeof(W), GROUP = 4 * UNIT, X_UNITS = UNIT / 8, WEIGHTS = Op::WEIGHTS;
  // Units of x of a stage that a thread copies, at most.
  constexpr int COPIES = ROWS / 8 * X_UNITS * 32 / THREADS;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, k = p.k;
  const u32 rank = blockIdx.x, clusters = gridDim.z;
  const u32 rows_per_block = ceil_div<u32>(ceil_div<u32>(p.m, gridDim.y), 8) * 8;
  const u32 first_row = blockIdx.y * rows_per_block;
  const int rows = min(p.m - first_row, rows_per_block);
  const int sets = rows_per_block <= 16 ? 1 : rows_per_block <= 32 ? 2 : 4;  // of 16 rows

  // The units of this cluster, and those of a step.
  const u32 units = op.units(), begin = units * blockIdx.z / clusters, end = units * (blockIdx.z + 1) / clusters;
  const u32 most = ceil_div(units, clusters), steps = ceil_div<u32>(most, WARPS * TILES / WEIGHTS);
  const u32 per_step = ceil_div(most, steps);
  // A step has a tile of each unit of the first weight, then those of the second one.
  const auto units_from = [&](u32 unit) { return static_cast<int>(min(per_step, end - unit)); };

  // The groups of k of this block, and the first element of each.
  const u32 all_groups = ceil_div<u32>(k, GROUP), in_rounds = all_groups / (BLOCKS * RUN) * RUN;
  const int in_last_round = all_groups % (BLOCKS * RUN) - rank * RUN;
  const u32 groups = in_rounds + min(max(in_last_round, 0), RUN);
  const auto start_of = [&](u32 i) { return static_cast<int>((i / RUN * BLOCKS + rank) * RUN + i % RUN) * GROUP; };

  // Shared memory: the ring, the partial sums of a step, the squares and the scales of the rows.
  const int x_units = per_step * WEIGHTS * 32, stage_units = x_units + sets * 2 * X_UNITS * 32;
  const int pitch = (per_step * WEIGHTS | 1) * 8;
  Words<16>* ring = reinterpret_cast<Words<16>*>(memory);
  float* partial = reinterpret_cast<float*>(ring + STAGES * stage_units);
  RowSquares* squares = reinterpret_cast<RowSquares*>(partial + sets * 16 * pitch);
  float* rstd = reinterpret_cast<float*>(squares + rows_per_block);

  // Copies of weights: the stage that is started next.
  const u32 ring_address = shared_address(ring + threadIdx.x), stage_bytes = stage_units * 16;
  u32 next_unit = begin, next_group = 0, next_slot = 0;
  const W* row[TILES];  // this lane's first unit of its row of each tile
  u32 row_bytes[TILES];  // of a copy, 0 if the row does not exist
  const auto find_rows = [&]() {
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      const int tile = warp + WARPS * n, count = units_from(next_unit);
      const bool second = tile >= count;
      const int unit = second ? tile - count : tile;
      const WeightRows<W> tile_rows = op.rows_of(next_unit + (unit < count ? unit : 0), second && WEIGHTS == 2);
      const bool exists = tile_rows.first + g < tile_rows.end;
      row[n] = tile_rows.weight + static_cast<u64>(exists ? tile_rows.first + g : 0) * k + t * UNIT;
      row_bytes[n] = exists ? 16 : 0;
    }
  };
  const auto start_weights = [&]() {
    if (groups == 0 || next_unit >= end) return;
    const int start = start_of(next_group), tiles = units_from(next_unit) * WEIGHTS;
    const bool within = start + t * UNIT < k;
    const u32 offset = within ? start : 0, to = ring_address + next_slot * stage_bytes;
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      if (warp + WARPS * n >= tiles) break;
      cp_async_16(to + n * (WARPS * 512), row[n] + offset, within ? row_bytes[n] : 0);
    }
    next_slot = next_slot + 1 == STAGES ? 0 : next_slot + 1;
    if (++next_group == groups) {
      next_group = 0;
      next_unit += per_step;
      if (next_unit < end) find_rows();
    }
  };
  // Copies of x. Copy c of this thread is unit threadIdx.x + 256 c of a stage, in the order of eight rows, units of x
  // for a unit of the weight, rows, lanes.
  const bf16* x = global<const bf16>(p.x) + static_cast<u64>(first_row) * k;
  const auto row_of_copy = [&](int c) { return (warp + WARPS * c) / X_UNITS * 8 + g; };
  const auto offset_of_copy = [&](int c) { return t * UNIT + (warp + WARPS * c) % X_UNITS * 8; };
  const auto is_copy = [&](int c) { return warp + WARPS * c < sets * 2 * X_UNITS; };
  const bf16* x_row[COPIES];
  u32 x_bytes[COPIES];
#pragma unroll
  for (int c = 0; c < COPIES; ++c) {
    const bool exists = row_of_copy(c) < rows;
    x_row[c] = x + static_cast<u64>(exists ? row_of_copy(c) : 0) * k + offset_of_copy(c);
    x_bytes[c] = exists ? 16 : 0;
  }
  u32 x_stages = begin < end ? ceil_div(end - begin, per_step) * groups : 0, x_group = 0, x_slot = 0;
  const auto start_x = [&]() {
    if (x_stages > 0) {
      --x_stages;
      const int start = start_of(x_group);
      const u32 to = ring_address + x_slot * stage_bytes + x_units * 16;
#pragma unroll
      for (int c = 0; c < COPIES; ++c) {
        if (!is_copy(c)) break;
        const bool within = start + offset_of_copy(c) < k;
        cp_async_16(to + c * (THREADS * 16), x_row[c] + (within ? start : 0), within ? x_bytes[c] : 0);
      }
      x_slot = x_slot + 1 == STAGES ? 0 : x_slot + 1;
      x_group = x_group + 1 == groups ? 0 : x_group + 1;
    }
    cp_async_commit();
  };

  if constexpr (NORM) cluster_arrive();
  if (begin < end) find_rows();
#pragma unroll 1
  for (int stage = 0; stage < STAGES - 1; ++stage) start_weights();
  let_next_launch_start();
  wait_for_previous_launch();
#pragma unroll 1
  for (int stage = 0; stage < STAGES - 1; ++stage) start_x();

  if constexpr (NORM) {
    // redundant: in the simulator all blocks of a cluster start together; on a GPU the others may start later.
    cluster_wait();
    if (p.norm != 0) {
      const u32 warps = warps_of_row(k);
      for (u32 of = rank; of < warps; of += BLOCKS) {
#pragma unroll 2
        for (int r = warp; r < rows; r += WARPS) {
          const float square = squares_of_warp(x + static_cast<u64>(r) * k, k, of, warps, true);
          if (lane < BLOCKS) store_of_block(shared_of_block(&squares[r][of], lane), square);
        }
      }
      cluster_barrier();
      if (static_cast<int>(threadIdx.x) < rows) rstd[threadIdx.x] = rstd_of_row(squares[threadIdx.x], k, p.eps);
      __syncthreads();
    }
  }

  int slot = 0;
#pragma unroll 1
  for (u32 unit = begin; unit < end; unit += per_step) {
    const int step_units = units_from(unit), tiles = ceil_div(step_units * WEIGHTS - warp, WARPS);
    float sums[TILES][4][4];
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
#pragma unroll
      for (int i = 0; i < 16; ++i) sums[n][i / 4][i % 4] = 0.0f;
    }
#pragma unroll 1
    for (u32 i = 0; i < groups; ++i) {
      Words<16>* stage = ring + slot * stage_units;
      // The weight of the norm: one lane loads a unit for the eight that need it.
      Words<16> scale[COPIES] = {};
      if constexpr (NORM) {
        if (p.norm != 0) {
#pragma unroll
          for (int c = 0; c < COPIES; ++c) {
            const int at = start_of(i) + offset_of_copy(c);
            if (is_copy(c) && g == 0 && at < k) {
              scale[c] = *reinterpret_cast<const Words<16>*>(global<const bf16>(p.norm) + at);
            }
          }
        }
      }
      cp_async_wait<STAGES - 2>();
      if constexpr (NORM) {
        if (p.norm != 0) {
#pragma unroll
          for (int c = 0; c < COPIES; ++c) {
            if (!is_copy(c)) break;
#pragma unroll
            for (int j = 0; j < 4; ++j) scale[c].word[j] = __shfl_sync(0xffffffffu, scale[c].word[j], t);
            if (row_of_copy(c) >= rows) continue;
            Words<16>& own = stage[x_units + threadIdx.x + c * THREADS];
            own = normalise<bf16>(own, scale[c], rstd[row_of_copy(c)]);
          }
        }
      }
      __syncthreads();
      start_weights();
      start_x();
      const Words<16>* from = stage + lane;
      if (sets == 1) {
        multiply<1, W, Y>(from + warp * 32, x_units - warp * 32, tiles, sums);
      } else if (sets == 2) {
        multiply<2, W, Y>(from + warp * 32, x_units - warp * 32, tiles, sums);
      } else {
        multiply<4, W, Y>(from + warp * 32, x_units - warp * 32, tiles, sums);
      }
      slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    if (unit != begin) cluster_wait();
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      if (n >= tiles) break;
#pragma unroll
      for (int h = 0; h < 8; ++h) {
        if (h >= 2 * sets) break;
        *reinterpret_cast<float2*>(partial + (g + 8 * h) * pitch + (warp + WARPS * n) * 8 + t * 2) =
            make_float2(sums[n][h / 2][h % 2 * 2], sums[n][h / 2][h % 2 * 2 + 1]);
      }
    }
    cluster_barrier();
    // Pairs of columns of a row, of which there are four in a unit.
    const u32 pairs = step_units * 4;
#pragma unroll 1
    for (u32 i = rank * THREADS + threadIdx.x; i < rows * pairs; i += BLOCKS * THREADS) {
      const u32 r = i / pairs, c = i % pairs;
      float sum[WEIGHTS][2];
#pragma unroll
      for (int which = 0; which < WEIGHTS; ++which) {
        const float* own = partial + r * pitch + which * step_units * 8 + c * 2;
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
          const u64 two = load_u64_of_block(shared_of_block(own, block));
          const float low = __uint_as_float(static_cast<u32>(two)), high = __uint_as_float(static_cast<u32>(two >> 32));
          sum[which][0] = block == 0 ? low : __fadd_rn(sum[which][0], low);
          sum[which][1] = block == 0 ? high : __fadd_rn(sum[which][1], high);
        }
      }
      op.write(unit + c / 4, first_row + r, c % 4 * 2, sum);
    }
    cluster_arrive();
  }
  if (begin < end) cluster_wait();
}

}  // namespace in_cluster

#endif
