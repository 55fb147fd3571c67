// Tensor copies of one to five dimensions: swizzles, out-of-bounds fill, stores, reductions, maps changed by a kernel.
#include "async.cuh"

// Loads the box at coordinates `at` and writes its words to `out` in the order of shared memory.
template <int RANK> DEVICE void load(const TensorMap& map, u32* out, int bytes, const int* at) {
    __shared__ alignas(1024) u32 tile[8192];
    __shared__ u64 bar;
    u32 b = smem(&bar);
    if (threadIdx.x == 0) {
        mbar_init(b, 1);
        fence_init();
        mbar_expect(b, bytes);
        if (RANK == 1) tensor_load_1d(smem(tile), &map, at[0], b);
        if (RANK == 2) tensor_load_2d(smem(tile), &map, at[0], at[1], b);
        if (RANK == 3) tensor_load_3d(smem(tile), &map, at[0], at[1], at[2], b);
        if (RANK == 4) tensor_load_4d(smem(tile), &map, at[0], at[1], at[2], at[3], b);
        if (RANK == 5) tensor_load_5d(smem(tile), &map, at[0], at[1], at[2], at[3], at[4], b);
    }
    __syncthreads();
    mbar_wait(b, 0);
    for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) out[i] = tile[i];
}
#define LOAD(rank)                                                                                                          \
    extern "C" __global__ void load_##rank(const __grid_constant__ TensorMap map, u32* out, int bytes, const int* at) {     \
        load<rank>(map, out, bytes, at);                                                                                    \
    }
LOAD(1)
LOAD(2)
LOAD(3)
LOAD(4)
LOAD(5)

// Copies a box from one tensor to another; if `add`, adds it to the other tensor instead.
extern "C" __global__ void move(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap to, int bytes, int x, int y, int add) {
    __shared__ alignas(1024) u32 tile[8192];
    __shared__ u64 bar;
    if (threadIdx.x != 0) return;
    u32 b = smem(&bar);
    mbar_init(b, 1);
    fence_init();
    tensor_prefetch_2d(&from, x, y);
    mbar_expect(b, bytes);
    tensor_load_2d(smem(tile), &from, x, y, b);
    mbar_wait(b, 0);
    if (add) tensor_add_2d(&to, x, y, smem(tile));
    else tensor_store_2d(&to, x, y, smem(tile));
    bulk_commit();
    bulk_wait<0>();
}

// One block copies a map, changes its address and row count and publishes it; another block uses it.
template <int BUG> DEVICE void replaced(const TensorMap& map, TensorMap* made, const u32* in, u32* out, u32* flag) {
    __shared__ alignas(128) u32 copy[32];
    __shared__ alignas(128) u32 tile[64];
    __shared__ u64 bar;
    u32 t = threadIdx.x;
    if (blockIdx.x == 0) {
        copy[t] = ((const u32*)&map)[t];
        __syncwarp();
        if (t == 0) {
            asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(smem(copy)), "l"(in) : "memory");
            asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(smem(copy)), "r"(3) : "memory");
        }
        __syncwarp();
        asm volatile("tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%0], [%1], 128;" ::"l"(made), "r"(smem(copy)) : "memory");
        __syncwarp();
        if (t == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(flag) : "memory");
    } else if (t == 0) {
        u32 set = 0;
        while (!set) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(set) : "l"(flag) : "memory");
        asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(made) : "memory");
        mbar_init(smem(&bar), 1);
        fence_init();
        mbar_expect(smem(&bar), 256);
        tensor_load_2d(smem(tile), made, 0, 0, smem(&bar));
        mbar_wait(smem(&bar), 0);
        for (int i = 0; i < 64; i++) out[i] = tile[i];
    }
}
extern "C" __global__ void replaced_0(const __grid_constant__ TensorMap map, TensorMap* made, const u32* in, u32* out, u32* flag) {
    replaced<0>(map, made, in, out, flag);
}

// Stores a box that is partly outside of the tensor: its elements there may be uninitialised in shared memory.
template <int BUG> DEVICE void ragged(const TensorMap& map, const float* in) {
    __shared__ alignas(128) float tile[64];
    u32 t = threadIdx.x;
    if (t < (BUG == 1 ? 24 : 32)) tile[t] = in[t];
    fence_async_shared();
    __syncwarp();
    if (t == 0) {
        tensor_store_2d(&map, 8, 16, smem(tile)); // ragged 1: uninitialized
        bulk_commit();
        bulk_wait<0>();
    }
}
#define RAGGED(bug)                                                                                                         \
    extern "C" __global__ void ragged_##bug(const __grid_constant__ TensorMap map, const float* in) {                       \
        ragged<bug>(map, in);                                                                                               \
    }
RAGGED(0)
RAGGED(1)
