// Clusters of two blocks: distributed shared memory, remote arrivals, asynchronous stores, multicast.
#include "async.cuh"

#define KERNEL(name, bug)                                                                                                   \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) name##_##bug(const u32* in, u32* out, int n) {                     \
        name<bug>(in, out, n);                                                                                              \
    }

// Each block reads and writes the other block's shared memory.
template <int BUG> DEVICE void exchange(const u32* in, u32* out, int n) {
    __shared__ u32 tile[64];
    __shared__ u32 count;
    u32 t = threadIdx.x, rank = cluster_rank(), peer = rank ^ 1;
    tile[t] = in[64 * rank + t];
    if (t == 0) count = 0;
    if (BUG == 1) __syncthreads();
    else if (BUG == 2) { cluster_arrive_relaxed(); cluster_wait(); }
    else cluster_sync();
    u32 got = ld_cluster(mapa(smem(&tile[t ^ 9]), peer)); // exchange 1: race, 2: race
    atom_add_cluster(mapa(smem(&count), 0), got & 1);
    if (BUG != 4) cluster_sync();
    else if (rank == 0) __syncthreads();
    st_cluster(mapa(smem(&tile[t]), peer), got + 1); // exchange 4: race
    if (BUG != 3) cluster_sync();
    else __syncthreads();
    out[64 * rank + t] = tile[t]; // exchange 3: race
    if (rank == 0 && t == 0) out[128] = count;
}
KERNEL(exchange, 0)
KERNEL(exchange, 1)
KERNEL(exchange, 2)
KERNEL(exchange, 3)
KERNEL(exchange, 4)

// At its end, each block reads the other block's shared memory, so the other block must not have exited by then.
template <int BUG> DEVICE void leave(const u32* in, u32* out, int n) {
    __shared__ u32 tile[64];
    u32 t = threadIdx.x, rank = cluster_rank();
    tile[t] = in[64 * rank + t];
    cluster_sync();
    out[64 * rank + t] = ld_cluster(mapa(smem(&tile[t]), rank ^ 1)); // leave 1: out-of-bounds
    if (BUG == 0) cluster_sync();
}
KERNEL(leave, 0)
KERNEL(leave, 1)

// Each block fills a buffer of the other block with st.async; the other block answers with a bulk copy.
template <int BUG> DEVICE void post(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[64], back[64], total;
    __shared__ u64 bar, again, go;
    u32 t = threadIdx.x, rank = cluster_rank(), peer = rank ^ 1;
    if (t == 0) {
        mbar_init(smem(&bar), 1);
        mbar_init(smem(&again), 1);
        mbar_init(smem(&go), 64);
        fence_init();
        total = 0;
        mbar_expect(smem(&bar), BUG == 1 ? 252 : 256 + 64 * 4); // post 1: mbarrier
        mbar_expect(smem(&again), 256);
    }
    cluster_sync();
    st_async(mapa(smem(&tile[t]), peer), in[64 * rank + t], mapa(smem(&bar), peer)); // post 1: mbarrier
    red_async(mapa(smem(&total), peer), t, mapa(smem(&bar), peer)); // post 1: mbarrier
    if (BUG != 2) mbar_wait_cluster(smem(&bar), 0);
    u32 got = tile[63 - t]; // post 2: async-not-waited
    back[t] = 0;
    mbar_arrive_remote(smem(&go), BUG == 3 ? rank : peer);
    if (BUG != 4) mbar_wait_cluster(smem(&go), 0);
    if (t == 0) {
        fence_async();
        bulk_to_peer(mapa(smem(back), peer), smem(tile), 256, mapa(smem(&again), peer)); // post 3: race, 4: race
    }
    mbar_wait(smem(&again), 0);
    out[64 * rank + t] = got * 3 + back[t];
    if (t == 0) out[128 + rank] = total;
    cluster_sync();
}
KERNEL(post, 0)
KERNEL(post, 1)
KERNEL(post, 2)
KERNEL(post, 3)
KERNEL(post, 4)

// One block loads a tile for both blocks by multicast.
template <int BUG> DEVICE void multicast(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[64];
    __shared__ u64 bar;
    u32 t = threadIdx.x, rank = cluster_rank();
    if (t == 0) {
        mbar_init(smem(&bar), 1);
        fence_init();
        mbar_expect(smem(&bar), 256);
    }
    if (BUG == 1) __syncthreads(); // multicast 1: mbarrier
    else cluster_sync();
    if (rank == 0 && t == 0) bulk_load_multicast(smem(tile), in, 256, smem(&bar), BUG == 2 ? 1 : 3); // multicast 1: mbarrier
    mbar_wait(smem(&bar), 0); // multicast 2: mbarrier
    out[64 * rank + t] = tile[t];
    cluster_sync();
}
KERNEL(multicast, 0)
KERNEL(multicast, 1)
KERNEL(multicast, 2)
