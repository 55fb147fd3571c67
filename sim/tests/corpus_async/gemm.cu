// D = A·Bᵀ in bf16 with f32 sums, 128×128 per block, k in stages of 64: one producer warp with tensor copies, two
// consumer warpgroups with wgmma, then tensor stores. In the cluster variant, two blocks share B's tiles by multicast.
#include "async.cuh"

constexpr int STAGES = 3, TILE = 128 * 64 * 2;

struct Shared {
    alignas(1024) unsigned char a[STAGES][TILE];
    alignas(1024) unsigned char b[STAGES][TILE];
    alignas(1024) float d[2][4][64][32];
    u64 full[STAGES];
    u64 empty[STAGES];
};

template <int CLUSTER, int BUG> DEVICE void gemm(const TensorMap& ma, const TensorMap& mb, const TensorMap& md, int k) {
    extern __shared__ __align__(1024) unsigned char dynamic[];
    Shared& s = *(Shared*)dynamic;
    int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
    u32 rank = CLUSTER > 1 ? cluster_rank() : 0;
    if (threadIdx.x == 0) {
        prefetch_map(&ma);
        prefetch_map(&mb);
        for (int i = 0; i < STAGES; i++) {
            mbar_init(smem(&s.full[i]), 1);
            mbar_init(smem(&s.empty[i]), 2 * CLUSTER);
        }
        fence_init();
    }
    if (CLUSTER > 1) cluster_sync();
    else __syncthreads();
    int steps = k / 64;
    if (group == 0) {
        setmaxnreg_dec<40>();
        if (threadIdx.x == 0) {
            for (int i = 0; i < steps; i++) {
                int stage = i % STAGES;
                u32 full = smem(&s.full[stage]);
                u32 parity = BUG == 1 ? i / STAGES & 1 : (i / STAGES & 1) ^ 1;
                if (BUG != 2) {
                    if (CLUSTER > 1) mbar_wait_cluster(smem(&s.empty[stage]), parity);
                    else mbar_wait(smem(&s.empty[stage]), parity); // gemm 1: deadlock
                }
                mbar_expect(full, BUG == 3 ? 2 * TILE + 16 : BUG == 4 ? 2 * TILE - 16 : 2 * TILE);
                tensor_load_2d(smem(s.a[stage]), &ma, 64 * i, 128 * blockIdx.x, full); // gemm 2: async-not-waited, 4: mbarrier, 5: async-not-waited
                if (CLUSTER > 1) {
                    u32 half = rank * (TILE / 2);
                    tensor_load_2d_multicast(smem(s.b[stage]) + half, &mb, 64 * i, 128 * blockIdx.y + 64 * rank, full, 3);
                } else {
                    tensor_load_2d(smem(s.b[stage]), &mb, 64 * i, 128 * blockIdx.y, full); // gemm 2: async-not-waited, 4: mbarrier, 5: async-not-waited
                    tensor_load_2d(smem(s.b[stage]) + TILE / 2, &mb, 64 * i, 128 * blockIdx.y + 64, full); // gemm 2: async-not-waited, 4: mbarrier, 5: async-not-waited
                }
            }
        }
    } else {
        setmaxnreg_inc<232>();
        int consumer = group - 1;
        float d[64];
        for (int i = 0; i < steps; i++) {
            int stage = i % STAGES;
            mbar_wait(smem(&s.full[stage]), i / STAGES & 1); // gemm 3: mbarrier
            u64 a = descriptor(smem(s.a[stage]) + consumer * (TILE / 2), 16, 1024, 1);
            u64 b = descriptor(smem(s.b[stage]), 16, 1024, 1);
            wgmma_fence();
            for (int j = 0; j < 4; j++) wgmma_n128(d, a + 2 * j, b + 2 * j, i + j > 0);
            wgmma_commit();
            if (BUG == 5) {
                if (threadIdx.x % 128 == 0) mbar_arrive(smem(&s.empty[stage]));
                continue;
            }
            wgmma_wait<1>();
            if (i > 0 && threadIdx.x % 128 == 0) {
                u32 empty = smem(&s.empty[(i - 1) % STAGES]);
                if (CLUSTER > 1) {
                    mbar_arrive_remote(empty, 0);
                    mbar_arrive_remote(empty, 1);
                } else {
                    mbar_arrive(empty);
                }
            }
        }
        if (BUG != 6) wgmma_wait<0>();
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        for (int i = 0; i < 64; i++) {
            int row = 16 * warp + lane / 4 + 8 * (i >> 1 & 1), column = 8 * (i >> 2) + 2 * (lane % 4) + (i & 1);
            s.d[consumer][column / 32][row][column % 32] = d[i]; // gemm 6: wgmma
        }
        if (BUG != 7) fence_async_shared();
        asm volatile("bar.sync %0, 128;" ::"r"(1 + consumer) : "memory");
        if (threadIdx.x % 128 == 0) {
            for (int i = 0; i < 4; i++) tensor_store_2d(&md, 128 * blockIdx.y + 32 * i, 128 * blockIdx.x + 64 * consumer, smem(s.d[consumer][i])); // gemm 7: async-proxy, 8: async-not-waited
            bulk_commit();
            if (BUG != 8) bulk_wait_read<0>();
        }
    }
    if (CLUSTER > 1) cluster_sync();
}

#define GEMM(bug)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                                    \
        gemm_##bug(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap d, int k) { \
        gemm<1, bug>(a, b, d, k);                                                                                           \
    }
GEMM(0)
GEMM(1)
GEMM(2)
GEMM(3)
GEMM(4)
GEMM(5)
GEMM(6)
GEMM(7)
GEMM(8)

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    gemm_cluster(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap d, int k) {
    gemm<2, 0>(a, b, d, k);
}
