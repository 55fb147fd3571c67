// Defines the ring buffer of stages of a block, the tiles of a cluster, and the code of the thread that copies A and B
// to the ring.
#pragma once

#include "cuh/base.cuh"
#include "cuh/bulk_copy.cuh"
#include "cuh/cluster.cuh"
#include "cuh/tma.cuh"
#include "cuh/wgmma.cuh"
#include "matmul/tile.cuh"

namespace gemm {

// A thread's position in the ring buffer of stages: `stage` is the next stage, and `phase` the mbarrier parity that the
// thread waits for. The ring is in shared memory from `base` on; behind it lie the chunks of C, then the mbarriers.
template <class T>
struct Ring {
  u32 base, full, empty, phase;
  int stage = 0;

  __device__ __forceinline__ Ring(u32 base, u32 first_phase)
      : base(base),
        full(base + T::STAGES * T::STAGE + T::CHUNK_BYTES),
        empty(full + 8 * T::STAGES),
        phase(first_phase) {}

  __device__ __forceinline__ u32 chunks() const { return base + T::STAGES * T::STAGE; }
  __device__ __forceinline__ u32 old_c_barrier(int warpgroup) const { return empty + 8 * (T::STAGES + warpgroup); }

  // Initialises the mbarriers. One thread of the block calls it.
  __device__ __forceinline__ void initialise() const {
    // A stage of this block is empty when the consumer warps of all blocks of the cluster have released it, since each
    // block copies its part of B to all of them.
#pragma unroll
    for (int i = 0; i < T::STAGES; ++i) {
      mbarrier_init(full + 8 * i, 1);
      mbarrier_init(empty + 8 * i, T::CLUSTER * T::WARPGROUPS * 4);
    }
    if constexpr (T::EPILOGUE == ADDED) {
#pragma unroll
      for (int i = 0; i < T::WARPGROUPS; ++i) mbarrier_init(old_c_barrier(i), 1);
    }
    fence_mbarrier_init();
  }

  __device__ __forceinline__ void advance() {
    if (++stage == T::STAGES) stage = 0, phase ^= 1;
  }
};

// The tiles of C of a launch, seen from one cluster: it computes every `clusters`-th tile.
template <class T>
struct Work {
  int rank, rows, columns, total, clusters, cluster, stages;

  __device__ __forceinline__ explicit Work(const Params& p)
      : rank(T::CLUSTER > 1 ? cluster_rank() : 0),
        rows(ceil_div<int>(p.m, T::ROWS * T::CLUSTER)),
        columns(ceil_div<int>(p.n, T::COLUMNS)),
        total(rows * columns),
        clusters(gridDim.x / T::CLUSTER),
        cluster(blockIdx.x / T::CLUSTER),
        stages(ceil_div<int>(p.k, T::K)) {}

  // Returns the first row and column of C of this block's tile when the cluster computes tile number t.
  __device__ __forceinline__ void place(int t, int& row, int& column) const {
    place_of_tile<T>(t, rows, columns, row, column);
    row = (row * T::CLUSTER + rank) * T::ROWS;
    column *= T::STORED_COLUMNS;
  }
};

// Copies the stages (64 k of A and of B) of all tiles of this block to the ring. One thread of the block calls this
// function.
template <class T>
__device__ __forceinline__ void produce(const Params& p, const Work<T>& work, Ring<T> ring) {
  // The block of a gated tile copies its share of B from the gate or from the up weights.
  const TensorMapSlot* map_b = T::GATED && work.rank == 1 ? &p.map_b2 : &p.map_b;
  // With few rows of A, B is read once, so L2 need not keep it; with more rows, later tiles find B in L2.
  const CachePolicy policy_b = p.m <= 128 ? EVICT_FIRST : EVICT_NORMAL;
  constexpr u32 ALL_BLOCKS = (1 << T::CLUSTER) - 1;
  for (int t = work.cluster; t < work.total; t += work.clusters) {
    int row, column;
    work.place(t, row, column);
#pragma unroll 1
    for (int kb = 0; kb < work.stages; ++kb) {
      mbarrier_wait(ring.empty + 8 * ring.stage, ring.phase);
      const u32 full = ring.full + 8 * ring.stage, a = ring.base + ring.stage * T::STAGE, b = a + T::A_BYTES;
      mbarrier_arrive_expecting(full, T::STAGE);
      if constexpr (T::A_MAJOR == MN_MAJOR) {
#pragma unroll
        for (int i = 0; i < T::ROWS / 64; ++i) {
          tensor_copy(a + i * T::BLOCK, &p.map_a, full, row + i * 64, kb * 64, EVICT_NORMAL);
        }
      } else {
        tensor_copy(a, &p.map_a, full, kb * 64, row, EVICT_NORMAL);
      }
      // The blocks of a cluster divide B among themselves. Each block copies its share of B to all of them.
      if constexpr (T::B_MAJOR == MN_MAJOR) {
#pragma unroll
        for (int i = 0; i < T::COPIED_COLUMNS / 64; ++i) {
          if constexpr (T::CLUSTER > 1) {
            if (i % T::CLUSTER == work.rank) {
              tensor_copy_multicast(b + i * T::BLOCK, &p.map_b, full, column + i * 64, kb * 64, ALL_BLOCKS, policy_b);
            }
          } else {
            tensor_copy(b + i * T::BLOCK, &p.map_b, full, column + i * 64, kb * 64, policy_b);
          }
        }
      } else if constexpr (T::CLUSTER > 1) {
        const int first = work.rank * (T::COLUMNS / T::CLUSTER);
        tensor_copy_multicast(b + first * 128, map_b, full, kb * 64, T::GATED ? column : column + first, ALL_BLOCKS,
                              policy_b);
      } else {
        tensor_copy(b, &p.map_b, full, kb * 64, column, policy_b);
      }
      ring.advance();
    }
  }
}

}  // namespace gemm
