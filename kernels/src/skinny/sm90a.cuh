// Products of more than 16 bf16 rows with bf16 weights on Hopper: like sm90.cuh, but with wgmma, with x as the
// operand of 64 rows, and in clusters of four blocks that share x. Without clusters, a block with 32 rows of the
// weight would read twice as many bytes of x, from L2, as of the weight.
//
//   grid: blocks of 64 rows of x, x blocks of up to N columns, or of N pairs of columns; clusters of four along columns
//   a stage has BOXES boxes of 64 k: of up to N rows of each of SETS weights, and of 64 rows of x
//   share: 16 of the 64 rows of x, by the rank of the block in its cluster
//
//   one thread: init mbarriers; barrier of the cluster
//   producer: start the weights of the first stages; wait for the previous launch; start its share of x:
//             without a norm to all blocks of the cluster (multicast), with a norm to its own
//   with a norm, all: squares of the rows of the share -> shared; block barrier
//   producer, for each further stage: wait until all blocks have freed it; start weights and share
//   with a norm, normalising warps, for each stage: wait until the share has arrived; normalise it in place; copy it to
//             the other blocks
//   multiplying warpgroup, for each stage: wait until weights and all shares have arrived; sums += x w^T; wait for the
//             products of the stage before, which is free now, in all blocks
//   multiplying warpgroup: y = epilogue(sums)
//
// Order. As in sm90.cuh and matmul/sm90a.cuh: one accumulator, k ascending in steps of 16. The first products replace
// the sums. So a row is bit-identical in all three kernels.
//
// Norm. A cluster normalises each row once, bit-identical to rms_norm (rstd.cuh): a block reads and normalises its
// share only.
//
// Ends. Elements beyond the rows of x, its k and the rows of the weights are zeros (TMA). Rows of a set that belong to
// no box are cleared once. Blocks beyond the columns take part in the cluster and write nothing.
//
// Departures. Those of sm90.cuh.
//
// Bound. Memory. Each cluster reads x once, with a norm twice, from L2. With 32 rows of the weight, shared memory is
// the next limit: for each 16 k it takes 3 KiB from the copies and gives 3 KiB to wgmma, 48 clocks at 128 bytes a
// clock. That is 32 us for the down projection of a 7B model at 1.755 GHz, whose weight takes 33 us to read at 4.13
// TB/s. Computed, not measured.
#pragma once

#include "cuh/cluster.cuh"
#include "cuh/wgmma.cuh"
#include "skinny/sm90.cuh"

namespace by_clusters {

using by_tiles::add_squares_of_four;
using by_tiles::load_shared_16;
using by_tiles::memory;
using by_tiles::Position;
using by_tiles::store_shared_16;

// ROWS is the number of rows of x of a block, and CLUSTER the number of blocks of a cluster. Each of these blocks
// copies SHARE rows of x.
constexpr int ROWS = 64, CLUSTER = 4, SHARE = ROWS / CLUSTER;
// MULTIPLIERS warps multiply, and NORMALISERS warps normalise ROWS_EACH rows each. With more normalising warps, a
// quarter of a multiprocessor would have three warps, and too few registers for the sums of swiglu.
constexpr int MULTIPLIERS = 4, NORMALISERS = 2, ROWS_EACH = SHARE / NORMALISERS;
// X_BYTES is the size of the 64 rows of x in a box, SHARE_BYTES that of a block's share, which is 16 of these rows.
constexpr u32 X_BYTES = ROWS * 128, SHARE_BYTES = SHARE * 128;

// The shape of a block's tiles; clusters.rs has the same numbers. SETS: sets of weight rows (products.cuh). N: maximum
// number of columns of the products, and of rows of a box of a weight.
template <int SETS_, int N_, int BOXES_, bool NORM_>
struct Shape {
  static constexpr int SETS = SETS_, N = N_, BOXES = BOXES_;
  static constexpr bool NORM = NORM_;
  static constexpr int THREADS = 32 * (MULTIPLIERS + (NORM ? NORMALISERS : 0) + 1);
  static constexpr u32 SET_BYTES = N * 128, X = BOXES * SETS * SET_BYTES, STAGE_BYTES = X + BOXES * X_BYTES;
};

// The ring of a block in shared memory: `stages` stages, each with its boxes of weights, in the order of boxes and then
// sets, and its boxes of x; behind the ring, three mbarriers for each stage: full, share, free.
template <class S>
struct Ring {
  u32 base, stages;

  __device__ __forceinline__ u32 weights(u32 stage) const { return base + stage * S::STAGE_BYTES; }
  __device__ __forceinline__ u32 x(u32 stage) const { return weights(stage) + S::X; }
  __device__ __forceinline__ u32 full(u32 stage) const { return weights(stages) + 8 * stage; }
  __device__ __forceinline__ u32 share(u32 stage) const { return full(stages + stage); }
  __device__ __forceinline__ u32 free(u32 stage) const { return full(2 * stages + stage); }
  __device__ __forceinline__ u32 end() const { return full(3 * stages); }
};

// Normalises the rows of this block's share in all stages, and copies them to the other blocks. Warp `warp` has eight
// neighbouring rows; a lane has a 16-byte unit of two of these rows. `rows`: number of rows of the share that exist.
template <class S, class P>
__device__ __forceinline__ void normalise_share(const P& p, const Ring<S>& ring, u32 rank, u32 warp, int rows,
                                                u32 stages, const RowSquares* squares) {
  const int lane = threadIdx.x % 32, unit = lane % 8;
  int row[2];
  float rstd[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    row[i] = warp * ROWS_EACH + i * 4 + lane / 8;
    rstd[i] = row[i] < rows ? rstd_of_row(squares[row[i]], p.k, p.eps) : 0.0f;
  }
  const u32 own = rank * SHARE_BYTES, of_warp = own + warp * (ROWS_EACH * 128);
  Position at = {};
#pragma unroll 1
  for (u32 stage = 0; stage < stages; ++stage, at.advance(ring.stages)) {
    Words<16> scale[S::BOXES] = {};
#pragma unroll
    for (int box = 0; box < S::BOXES; ++box) {
      const u32 column = (stage * S::BOXES + box) * 64 + unit * 8;
      if (column < p.k) scale[box] = *reinterpret_cast<const Words<16>*>(global<const bf16>(p.norm) + column);
    }
    mbarrier_wait(ring.share(at.stage), at.parity);
    const u32 x = ring.x(at.stage);
#pragma unroll
    for (int box = 0; box < S::BOXES; ++box) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const u32 place = x + box * X_BYTES + own + row[i] * 128 + (unit ^ row[i] % 8) * 16;
        if (row[i] < rows) store_shared_16(place, normalise<bf16>(load_shared_16(place), scale[box], rstd[i]));
      }
    }
    // The fence makes this thread's writes visible to wgmma and to the copies to other blocks.
    fence_async_proxy();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(ring.full(at.stage));
    if (lane > 0 && lane < CLUSTER) {
#pragma unroll
      for (int box = 0; box < S::BOXES; ++box) {
        copy_to_block(x + box * X_BYTES + of_warp, ROWS_EACH * 128, ring.full(at.stage), (rank + lane) % CLUSTER);
      }
    }
  }
}

// Adds the products of all stages to the sums of the multiplying warpgroup.
template <class S>
__device__ __forceinline__ void multiply_stages(const Ring<S>& ring, u32 stages, float (&sums)[S::SETS][S::N / 2]) {
  constexpr u64 LAYOUT = operand_layout<128>();
  const int lane = threadIdx.x % 32;
  const auto release = [&](u32 stage) {
    if (lane < CLUSTER) mbarrier_arrive_of_block(ring.free(stage), lane);
  };
  Position at = {};
  u32 previous = 0;
#pragma unroll 1
  for (u32 i = 0; i < stages; ++i, at.advance(ring.stages)) {
    mbarrier_wait(ring.full(at.stage), at.parity);
    const u64 x = LAYOUT | operand_address(ring.x(at.stage)), w = LAYOUT | operand_address(ring.weights(at.stage));
    // redundant: needed by the first products only; those that follow add to the same sums.
    wgmma_fence();
#pragma unroll
    for (int box = 0; box < S::BOXES; ++box) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int set = 0; set < S::SETS; ++set) {
          Wgmma<S::N>::template ss<0, K_MAJOR, K_MAJOR>(
              sums[set], x + (box * X_BYTES >> 4) + 2 * step,
              w + ((box * S::SETS + set) * S::SET_BYTES >> 4) + 2 * step, i | box | step);
        }
      }
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (i > 0) release(previous);
    previous = at.stage;
  }
  wgmma_wait<0>();
#pragma unroll
  for (int set = 0; set < S::SETS; ++set) keep_registers(sums[set]);
}

// Computes the products `op` for block blockIdx.y of columns and block blockIdx.x of rows of x. P: the parameters, of
// which x, x_map, norm, m, k and eps are read here.
template <class S, class P, class Op>
__device__ __forceinline__ void product(const P& p, const Op& op) {
  constexpr int PRODUCER = S::THREADS / 32 - 1;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const u32 rank = cluster_rank(), width = op.width(gridDim.y), stages = ceil_div<u32>(p.k, S::BOXES * 64);
  const typename Op::Place place = op.place_of(blockIdx.y, width);
  const u32 first_row = blockIdx.x * ROWS, first_of_share = first_row + rank * SHARE;
  const int rows = min(p.m - first_row, ROWS), rows_of_share = min(max(rows - static_cast<int>(rank * SHARE), 0), SHARE);
  const bool normalised = S::NORM && p.norm != 0;

  Ring<S> ring;
  ring.base = (shared_address(memory) + 1023) & ~1023u;
  const u32 squares_bytes = normalised ? SHARE * sizeof(RowSquares) : 0;
  ring.stages = (dynamic_shared_bytes() - 1024 - squares_bytes) / (S::STAGE_BYTES + 24);

  if (threadIdx.x == 0) {
    for (u32 i = 0; i < ring.stages; ++i) {
      mbarrier_init(ring.full(i), normalised ? 1 + NORMALISERS : 1);
      mbarrier_init(ring.share(i), 1);
      mbarrier_init(ring.free(i), CLUSTER * MULTIPLIERS);
    }
    fence_mbarrier_init();  // redundant: the fence of all threads below is one of mbarriers, too.
  }
  // Rows that no copy writes.
  const u32 cleared = (S::N - width) * 8;
  for (u32 i = threadIdx.x; i < ring.stages * S::BOXES * S::SETS * cleared; i += S::THREADS) {
    const u32 set = i / cleared, stage = set / (S::BOXES * S::SETS), of_stage = set % (S::BOXES * S::SETS);
    store_shared_16(ring.weights(stage) + of_stage * S::SET_BYTES + width * 128 + i % cleared * 16, Words<16>{});
  }
  fence_async_proxy();
  cluster_barrier();
  let_next_launch_start();

  const CachePolicy policy = gridDim.x == 1 ? EVICT_FIRST : EVICT_NORMAL;
  const auto start_weights = [&](u32 stage, u32 to) {
    // With a norm, the copy of this block's own share is not counted by the mbarrier `full`.
    const u32 x_bytes = S::BOXES * (normalised ? X_BYTES - SHARE_BYTES : X_BYTES);
    mbarrier_arrive_expecting(ring.full(to), S::BOXES * S::SETS * width * 128 + x_bytes);
#pragma unroll
    for (int box = 0; box < S::BOXES; ++box) {
#pragma unroll
      for (int set = 0; set < S::SETS; ++set) {
        tensor_copy(ring.weights(to) + (box * S::SETS + set) * S::SET_BYTES, op.map_of(place, set), ring.full(to),
                    (stage * S::BOXES + box) * 64, op.rows_of(place, set).first, policy);
      }
    }
  };
  const auto start_share = [&](u32 stage, u32 to) {
    if (normalised) mbarrier_arrive_expecting(ring.share(to), S::BOXES * SHARE_BYTES);
#pragma unroll
    for (int box = 0; box < S::BOXES; ++box) {
      const u32 at = ring.x(to) + box * X_BYTES + rank * SHARE_BYTES, k = (stage * S::BOXES + box) * 64;
      if (normalised) {
        tensor_copy(at, &p.x_map, ring.share(to), k, first_of_share, EVICT_LAST);
      } else {
        tensor_copy_multicast(at, &p.x_map, ring.full(to), k, first_of_share, (1 << CLUSTER) - 1, EVICT_LAST);
      }
    }
  };
  const u32 first = min(ring.stages, stages);
  if (warp == PRODUCER && elect_one()) {
    prefetch_tensor_map(op.map_of(place, 0));
    prefetch_tensor_map(&p.x_map);
#pragma unroll 1
    for (u32 i = 0; i < first; ++i) start_weights(i, i);
  }
  wait_for_previous_launch();
  if (warp == PRODUCER && elect_one()) {
#pragma unroll 1
    for (u32 i = 0; i < first; ++i) start_share(i, i);
  }
  RowSquares* squares = reinterpret_cast<RowSquares*>(memory + (ring.end() - shared_address(memory)));
  if (normalised) {
    add_squares_of_four(global<const bf16>(p.x) + static_cast<u64>(first_of_share) * p.k, rows_of_share, p.k, squares);
    __syncthreads();
  }

  if (warp == PRODUCER) {
    if (elect_one()) {
      Position at = {};
#pragma unroll 1
      for (u32 i = first; i < stages; ++i, at.advance(ring.stages)) {
        mbarrier_wait(ring.free(at.stage), at.parity);
        start_weights(i, at.stage);
        start_share(i, at.stage);
      }
    }
  } else if (warp >= MULTIPLIERS) {
    if (normalised) normalise_share(p, ring, rank, warp - MULTIPLIERS, rows_of_share, stages, squares);
  } else {
    float sums[S::SETS][S::N / 2];
    multiply_stages(ring, stages, sums);
    const bool exists = op.exists(place);
#pragma unroll
    for (int j = 0; j < S::N / 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp * 16 + lane / 4 + half * 8;
        const u32 column = j * 8 + lane % 4 * 2;
        float pair[S::SETS][2];
#pragma unroll
        for (int set = 0; set < S::SETS; ++set) {
          pair[set][0] = sums[set][4 * j + 2 * half], pair[set][1] = sums[set][4 * j + 2 * half + 1];
        }
        if (exists && row < rows && column < width) op.write(place, first_row + row, column, pair);
      }
    }
  }
  // No block may end while other blocks of the cluster arrive at its mbarriers or copy to its shared memory.
  __syncwarp();  // redundant: the simulator lets the lanes of a warp arrive at the barrier one after the other.

  cluster_barrier();
}

}  // namespace by_clusters
