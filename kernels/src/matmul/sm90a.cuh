// Matrix products of bf16 operands on Hopper, with wgmma and tensor copies: C[m, n] = scale sum over k of A B (+ bias)
// (+ C). mod.rs has formula and operands, plan.rs the choice of a tile.
//
// The grid is persistent: each cluster computes tile after tile of C. In each block one thread copies stages of A and B
// to a ring in shared memory, and the consumer warpgroups multiply them:
//
//   producer:   for each tile, for each 64 k: wait until the stage is empty; copy A to this block, a part of B to all
//   consumers:  for each tile, for each 64 k: wait until the stage is full; four products of 16 k for each 64 rows;
//               wait for the products of the stage before; release that stage
//               then the epilogue: times scale, plus bias, plus old C; round; store
//
// Order. One accumulator per element of C; k ascends in steps of 16, from the first product on, which replaces the
// accumulator. Products with zeros beyond the end of k change no sum. So all tiles give the same bits, and those of a
// row depend on nothing but the row, B and k.
//
// gemm_swiglu_bf16 has two B, of gate and up, in one tile, and its epilogue stores SwiGLU of both sums.
//
// Ends. Tensor copies load 0 for elements beyond the ends of A, B and C, and do not store them.
//
// Bound. Arithmetic. Rates beside cuBLAS are in plan.rs.
#pragma once

#include "cuh/base.cuh"
#include "cuh/cluster.cuh"
#include "cuh/mma.cuh"
#include "cuh/tma.cuh"
#include "cuh/wgmma.cuh"
#include "matmul/consumer.cuh"
#include "matmul/producer.cuh"
#include "matmul/tile.cuh"

namespace gemm {

template <class T>
__device__ __forceinline__ void multiply(const Params& p) {
  extern __shared__ __align__(1024) u8 shared_bytes[];
  const u32 base = (shared_address(shared_bytes) + 1023) & ~1023u;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32, warpgroup = warp / 4 - 1;
  const Work<T> work(p);
  const Ring<T> ring(base, 1);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&p.map_a);
    prefetch_tensor_map(&p.map_b);
    if constexpr (T::GATED) prefetch_tensor_map(&p.map_b2);
    if constexpr (T::EPILOGUE != DIRECT) prefetch_tensor_map(&p.map_c);
    ring.initialise();
  }
  if constexpr (T::CLUSTER > 1) {
    cluster_barrier();
  } else {
    __syncthreads();
  }
  if (warpgroup < 0) {
    if constexpr (T::WARPGROUPS == 2) free_registers_down_to<40>();
    if (warp == 0 && elect_one()) produce(p, work, ring);
  } else {
    if constexpr (T::WARPGROUPS == 2) take_registers_up_to<232>();
    Consumer<T> consumer(p, work, base, warpgroup, warp % 4, lane);
    if constexpr (T::EPILOGUE == HELD) consume_and_hold(consumer);
    if constexpr (T::EPILOGUE == ADDED) consume_and_add(consumer);
    if constexpr (T::EPILOGUE == HALVES) consume_in_halves(consumer);
    if constexpr (T::EPILOGUE == STORE || T::EPILOGUE == F32 || T::EPILOGUE == DIRECT) consume_and_store(consumer);
    // The block's shared memory must live until the tensor stores have read it.
    if (T::EPILOGUE != DIRECT && consumer.leader) tensor_store_wait_read<0>();
  }
  if constexpr (T::CLUSTER > 1) {
    // No block may end while other blocks of the cluster arrive at its mbarriers or copy to its shared memory.
    __syncwarp();       // redundant: in the simulator shared memory outlives its block.
    cluster_barrier();  // redundant: as above.
  }
}

}  // namespace gemm

// Defines a kernel by its name and the template arguments of its tile: rows, columns, warpgroups, stages, blocks of a
// cluster, buffers of chunks. The same numbers are in plan.rs.
#define GEMM(symbol, ...)                                                                                             \
  extern "C" __global__ void __launch_bounds__(gemm::Tile<__VA_ARGS__>::THREADS, 1)                                   \
      symbol(const __grid_constant__ Params p) {                                                                      \
    gemm::multiply<gemm::Tile<__VA_ARGS__>>(p);                                                                       \
  }

GEMM(gemm_fwd_bf16_256x192_halves, 256, 192, 2, 3, 2, 3, K_MAJOR, K_MAJOR, gemm::HALVES)
GEMM(gemm_fwd_bf16_128x256, 128, 256, 2, 4, 1, 2, K_MAJOR, K_MAJOR, gemm::STORE)
GEMM(gemm_fwd_bf16_128x256_held, 128, 256, 2, 4, 2, 2, K_MAJOR, K_MAJOR, gemm::HELD)
GEMM(gemm_fwd_bf16_128x192, 128, 192, 2, 5, 1, 1, K_MAJOR, K_MAJOR, gemm::STORE)
GEMM(gemm_fwd_bf16_128x224, 128, 224, 2, 4, 2, 4, K_MAJOR, K_MAJOR, gemm::STORE)
GEMM(gemm_fwd_bf16_128x160, 128, 160, 2, 5, 2, 4, K_MAJOR, K_MAJOR, gemm::STORE)
GEMM(gemm_fwd_bf16_128x128, 128, 128, 2, 6, 2, 2, K_MAJOR, K_MAJOR, gemm::STORE)
GEMM(gemm_fwd_bf16_64x144, 64, 144, 1, 8, 1, 1, K_MAJOR, K_MAJOR, gemm::DIRECT)
GEMM(gemm_fwd_bf16_128x256_added, 128, 256, 2, 4, 2, 2, K_MAJOR, K_MAJOR, gemm::ADDED)
GEMM(gemm_fwd_f32_128x256, 128, 256, 2, 4, 2, 2, K_MAJOR, K_MAJOR, gemm::F32)
GEMM(gemm_swiglu_bf16_256x192_halves, 256, 192, 2, 3, 2, 3, K_MAJOR, K_MAJOR, gemm::HALVES, true)

GEMM(gemm_dx_bf16_256x192_halves, 256, 192, 2, 3, 2, 3, K_MAJOR, MN_MAJOR, gemm::HALVES)
GEMM(gemm_dx_bf16_128x256, 128, 256, 2, 4, 2, 2, K_MAJOR, MN_MAJOR, gemm::STORE)
GEMM(gemm_dx_bf16_128x224, 128, 224, 2, 4, 2, 4, K_MAJOR, MN_MAJOR, gemm::STORE)
GEMM(gemm_dx_bf16_128x128, 128, 128, 2, 6, 2, 2, K_MAJOR, MN_MAJOR, gemm::STORE)
GEMM(gemm_dx_bf16_128x256_added, 128, 256, 2, 4, 2, 2, K_MAJOR, MN_MAJOR, gemm::ADDED)
GEMM(gemm_dx_f32_128x256, 128, 256, 2, 4, 2, 2, K_MAJOR, MN_MAJOR, gemm::F32)

GEMM(gemm_dw_bf16_128x256_held, 128, 256, 2, 4, 2, 2, MN_MAJOR, MN_MAJOR, gemm::HELD)
GEMM(gemm_dw_bf16_128x256_added, 128, 256, 2, 4, 2, 2, MN_MAJOR, MN_MAJOR, gemm::ADDED)
GEMM(gemm_dw_f32_128x256, 128, 256, 2, 4, 2, 2, MN_MAJOR, MN_MAJOR, gemm::F32)
GEMM(gemm_dw_f32_128x160, 128, 160, 2, 4, 2, 2, MN_MAJOR, MN_MAJOR, gemm::F32)
