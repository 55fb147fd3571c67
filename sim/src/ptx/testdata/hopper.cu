#include <cooperative_groups.h>
#include <cuda/barrier>
#include <cuda.h>
// Compiled by `nvcc -std=c++17 -ptx -arch=sm_90a hopper.cu -o hopper.ptx`.
namespace cg = cooperative_groups;
__global__ void groups(float* g) {
  __shared__ cuda::barrier<cuda::thread_scope_block> bar;
  if (threadIdx.x == 0) init(&bar, blockDim.x);
  __syncthreads();
  bar.arrive_and_wait();
  g[threadIdx.x] += cg::tiled_partition<32>(cg::this_thread_block()).shfl_xor(g[0], 1);
  cg::this_grid().sync();
}
__global__ void __cluster_dims__(2, 1, 1) tensor(const __grid_constant__ CUtensorMap map, float* g) {
  __shared__ __align__(128) char smem[4096];
  __shared__ __align__(8) unsigned long long mb;
  unsigned sm = __cvta_generic_to_shared(smem), b = __cvta_generic_to_shared(&mb);
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(4096));
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(sm), "l"(&map), "r"(0), "r"(3), "r"(b) : "memory");
  }
  asm volatile("{\n.reg .pred P1;\nLAB_WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 P1, [%0], %1;\n@P1 bra DONE;\nbra LAB_WAIT;\nDONE:\n}"
               ::"r"(b), "r"(0));
  float d[4] = {0};
  unsigned long long da = sm >> 4;
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\nwgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %5, p, 1, 1, 0, 0;\n}\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(da), "l"(da), "r"(1));
  cg::this_cluster().sync();
  unsigned r;
  asm volatile("{.reg .pred P; elect.sync _|P, 0xffffffff; selp.u32 %0, 1, 0, P;}" : "=r"(r));
  g[threadIdx.x] = d[0] + d[1] + d[2] + d[3] + r;
}
