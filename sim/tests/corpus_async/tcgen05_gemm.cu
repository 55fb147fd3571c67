// D = A·Bᵀ in bf16 with f32 sums, in tiles of 128×128 (one block) or 256×128 (a pair of blocks with cta_group::2), k in
// stages of 64. Warp 0 loads tiles, warp 1 issues products, warp 3 asks for further tiles (cluster launch control),
// warps 4 to 7 store D, which has two buffers in tensor memory.
#include "blackwell.cuh"

enum { STAGES = 3, N = 128 };

struct Shared {
    alignas(1024) unsigned char a[STAGES][128 * 128];
    alignas(1024) unsigned char b[STAGES][N * 128];
    u64 full[STAGES], empty[STAGES];
    u64 sums_full[2], sums_empty[2];
    u64 next_full, next_empty;
    alignas(16) u32 next[4];
    u32 address;
};

// The tiles of a block, or of a pair: every (grid size)-th one, or those that cluster launch control gives.
template <int GROUP, bool CONTROL> struct Tiles {
    Shared& s;
    int tile, count, step;
    DEVICE Tiles(Shared& s, int count) : s(s), tile(blockIdx.x / GROUP), count(count), step(0) {}
    DEVICE bool next(bool leader) {
        step++;
        if (!CONTROL) {
            tile += gridDim.x / GROUP;
            return tile < count;
        }
        mbar_wait_cluster(smem(&s.next_full), (step - 1) & 1);
        u32 x = 0, y = 0;
        bool valid = query_cancel(smem(s.next), x, y); // gemm 14: async-not-waited
        fence_async_shared();
        tile = x / GROUP;
        if (leader) {
            if (GROUP == 2) mbar_arrive_remote(smem(&s.next_empty), 0);
            else mbar_arrive(smem(&s.next_empty));
        }
        return valid;
    }
};

// All variants share this function, so that the PTX is short.
template <int GROUP, bool CONTROL>
__device__ __noinline__ void gemm(int bug, const TensorMap& ma, const TensorMap& mb, float* out, int m, int n, int k) {
    extern __shared__ __align__(1024) unsigned char dynamic[];
    Shared& s = *(Shared*)dynamic;
    int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    u32 rank = GROUP == 2 ? cluster_rank() : 0;
    if (GROUP == 2) cluster_sync();
    if (warp == 1 && elect()) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(smem(&s.full[i]), GROUP);
            mbar_init(smem(&s.empty[i]), 1);
        }
        for (int i = 0; i < 2; i++) {
            mbar_init(smem(&s.sums_full[i]), 1);
            mbar_init(smem(&s.sums_empty[i]), GROUP * 128);
        }
        mbar_init(smem(&s.next_full), 1);
        // Of each pair: two loading threads, the thread that issues products, the storing threads, the asking thread.
        mbar_init(smem(&s.next_empty), GROUP + 1 + GROUP * 128 + 1);
        fence_init();
    }
    if (warp == 2) {
        tensor_alloc<GROUP>(smem(&s.address), 256); // gemm 11: tcgen05
        tensor_relinquish<GROUP>();
    }
    if (GROUP == 2) cluster_sync();
    else __syncthreads();
    u32 tensor = s.address;
    int columns = n / N, steps = k / 64, count = m / (128 * GROUP) * columns;
    Tiles<GROUP, CONTROL> tiles(s, count);
    if (warp == 0) {
        if (elect()) {
            int i = 0;
            do {
                int row = tiles.tile / columns * 128 * GROUP + 128 * rank, column = tiles.tile % columns * N + N / GROUP * rank;
                for (int step = 0; step < steps; step++, i++) {
                    int stage = i % STAGES;
                    u32 full = smem(&s.full[stage]);
                    if (bug != 1) mbar_wait_cluster(smem(&s.empty[stage]), (i / STAGES & 1) ^ 1); // gemm 2: deadlock, 12: deadlock
                    if (GROUP == 2) {
                        if (rank == 0) mbar_expect(full, 2 * (128 + N / 2) * 128);
                        else mbar_arrive_remote(full, 0);
                        tensor_load_2d_pair(smem(s.a[stage]), &ma, 64 * step, row, full);
                        tensor_load_2d_pair(smem(s.b[stage]), &mb, 64 * step, column, full);
                    } else {
                        mbar_expect(full, (128 + N) * 128 + (bug == 8 ? 16 : 0));
                        tensor_load_2d_cta(smem(s.a[stage]), &ma, 64 * step, row, full); // gemm 1: async-not-waited
                        tensor_load_2d_cta(smem(s.b[stage]), &mb, 64 * step, column, full); // gemm 1: async-not-waited
                    }
                }
            } while (tiles.next(true));
        }
    } else if (warp == 1 && rank == 0) {
        if (elect()) {
            constexpr u32 descriptor = instruction_descriptor(128 * GROUP, N, 1, 1, 1);
            int i = 0;
            do {
                int buffer = tiles.step % 2;
                if (bug != 5) mbar_wait_cluster(smem(&s.sums_empty[buffer]), (tiles.step / 2 & 1) ^ 1);
                if (bug != 9) tensor_fence_after();
                for (int step = 0; step < steps; step++, i++) {
                    int stage = i % STAGES;
                    if (bug != 7) mbar_wait_cluster(smem(&s.full[stage]), i / STAGES & 1); // gemm 8: mbarrier, 12: mbarrier
                    if (bug != 9) tensor_fence_after();
                    u64 a = matrix_descriptor(smem(s.a[stage]), 16, 1024, 2), b = matrix_descriptor(smem(s.b[stage]), 16, 1024, 2);
                    for (int j = 0; j < 4; j++) product_f16<GROUP>(tensor + N * buffer, a + 2 * j, b + 2 * j, descriptor, step + j > 0); // gemm 3: tcgen05, 5: tcgen05, 6: tcgen05, 7: async-not-waited, 9: tcgen05, 13: tcgen05
                    if (bug == 2) continue;
                    if (GROUP == 2 && bug != 12) tensor_commit_multicast(smem(&s.empty[stage]), 3);
                    else tensor_commit<GROUP>(smem(&s.empty[stage]));
                }
                if (GROUP == 2) tensor_commit_multicast(smem(&s.sums_full[buffer]), 3);
                else tensor_commit(smem(&s.sums_full[buffer]));
            } while (tiles.next(true));
        }
    } else if (warp == 3 && rank == 0 && CONTROL) {
        if (elect()) {
            bool valid = true;
            for (int step = 0; valid; step++) {
                if (step > 0 && bug != 14) mbar_wait_cluster(smem(&s.next_empty), (step - 1) & 1);
                if (GROUP == 2) {
                    mbar_expect(smem(&s.next_full), 16);
                    u32 other = mapa(smem(&s.next_full), 1);
                    asm volatile("mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], 16;" ::"r"(other) : "memory");
                    try_cancel_multicast(smem(s.next), smem(&s.next_full));
                } else {
                    mbar_expect(smem(&s.next_full), 16);
                    try_cancel(smem(s.next), smem(&s.next_full)); // gemm 14: async-not-waited
                }
                valid = tiles.next(true);
            }
        }
    } else if (warp >= 4) {
        int lane = threadIdx.x % 32;
        do {
            int buffer = tiles.step % 2;
            if (bug != 3) mbar_wait_cluster(smem(&s.sums_full[buffer]), tiles.step / 2 & 1);
            if (bug != 4) tensor_fence_after();
            u32 empty = smem(&s.sums_empty[buffer]);
            if (bug == 6) mbar_arrive(empty);
            int row = tiles.tile / columns * 128 * GROUP + 128 * rank + 32 * (warp - 4) + lane;
            float* to = out + (size_t)row * n + tiles.tile % columns * N;
            u32 r[16];
            #pragma unroll 1
            for (int c = 0; c < N; c += 16) {
                tensor_load_16(r, tensor + N * buffer + c + (32 * (warp - 4) << 16)); // gemm 3: tcgen05, 4: tcgen05
                tensor_wait_load();
                for (int i = 0; i < 16; i += 4) *(uint4*)(to + c + i) = make_uint4(r[i], r[i + 1], r[i + 2], r[i + 3]);
            }
            tensor_fence_before();
            if (bug != 6) {
                if (GROUP == 2) mbar_arrive_remote(empty, 0);
                else mbar_arrive(empty);
            }
        } while (tiles.next(true));
    }
    __syncwarp(); // gemm 2: deadlock, 12: deadlock
    if (GROUP == 2) cluster_sync();
    else if (bug != 10) __syncthreads();
    if (warp == 2 && bug != 11) tensor_dealloc<GROUP>(tensor, 256); // gemm 10: tcgen05
}

#define GEMM(name, bug, group, control, attributes)                                                                         \
    extern "C" __global__ void attributes __launch_bounds__(256, 1)                                                         \
        name##_##bug(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* d, int m, int n, int k) { \
        gemm<group, control>(bug, a, b, d, m, n, k);                                                                        \
    }
#define PAIR __cluster_dims__(2, 1, 1)
GEMM(gemm, 0, 1, false, )
GEMM(gemm, 1, 1, false, )
GEMM(gemm, 2, 1, false, )
GEMM(gemm, 3, 1, false, )
GEMM(gemm, 4, 1, false, )
GEMM(gemm, 5, 1, false, )
GEMM(gemm, 6, 1, false, )
GEMM(gemm, 7, 1, false, )
GEMM(gemm, 8, 1, false, )
GEMM(gemm, 9, 1, false, )
GEMM(gemm, 10, 1, false, )
GEMM(gemm, 11, 1, false, )
GEMM(gemm, 12, 2, false, PAIR)
GEMM(gemm, 14, 1, true, )
GEMM(pair, 0, 2, false, PAIR)
GEMM(control, 0, 1, true, )
GEMM(control_pair, 0, 2, true, PAIR)
