// Products of the tensor core of sm_100 and tensor memory. Variant 0 is correct, each other one has one bug.
#include "blackwell.cuh"

#define KERNEL(name, bug)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(128, 1) name##_##bug(const u32* in, u32* out, int n) {                     \
        name<bug>(in, out, n);                                                                                              \
    }

#define VARIANT(name, bug)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 1) name##_##bug(const u32* in, u32* out, int n) {                     \
        name(bug, in, out, n);                                                                                              \
    }

// Copies words into shared memory, swizzled as a tile with rows of 128 bytes.
DEVICE void fill(u32* to, const u32* from, int words) {
    #pragma unroll 1
    for (int i = threadIdx.x; i < words; i += 128) {
        u32 at = smem(to) + 4 * i;
        at ^= (at >> 7 & 7) << 4;
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(from[i]) : "memory");
    }
}

// D[128][64] = A[128][64]·B[64][64]ᵀ in bf16, in four steps along k.
// All variants share this function, so that the PTX is short.
__device__ __noinline__ void basic(int bug, const u32* in, u32* out, int n) {
    __shared__ alignas(1024) u32 a[128 * 32];
    __shared__ alignas(1024) u32 b[64 * 32];
    __shared__ u64 done;
    __shared__ u32 address;
    int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    if (threadIdx.x == 0) {
        mbar_init(smem(&done), 1);
        fence_init();
    }
    if (warp == 1) {
        if (bug == 12) tensor_relinquish();
        tensor_alloc(smem(&address), bug == 14 ? 48 : 64); // basic 5: tcgen05, 12: tcgen05, 14: tcgen05
        if (bug != 12) tensor_relinquish();
    }
    fill(a, in, 128 * 32);
    fill(b, in + 128 * 32, 64 * 32);
    if (bug != 1) fence_async_shared();
    __syncthreads();
    u32 tensor = address;
    u32 descriptor = instruction_descriptor(128, bug == 15 ? 72 : 64, 1, 1, 1);
    if (warp == 0) {
        tensor_fence_after();
        if (bug == 13 || elect()) {
            u64 da = matrix_descriptor(smem(a), 16, 1024, 2), db = matrix_descriptor(smem(b), 16, 1024, 2);
            if (bug == 16) da &= ~(1ull << 46);
            for (int k = 0; k < 4; k++) product_f16(tensor, da + 2 * k, db + 2 * k, descriptor, k > 0 || bug == 9); // basic 1: async-proxy, 9: uninitialized, 13: tcgen05, 15: tcgen05, 16: tcgen05
        }
        __syncwarp();
        if (bug != 2 && bug != 10 && elect()) tensor_commit(smem(&done));
    }
    if (bug == 10 && warp == 1 && elect()) tensor_commit(smem(&done));
    if (bug == 8) a[threadIdx.x] = 0; // basic 8: async-not-waited
    if (bug != 3) mbar_wait(smem(&done), 0); // basic 2: deadlock
    if (bug != 4) tensor_fence_after();
    u32 r[16];
    #pragma unroll 1
    for (int c = 0; c < 64; c += 16) {
        u32 at = tensor + (bug == 7 ? c + 16 : c) + ((bug == 6 ? 32 : 32 * warp) << 16);
        tensor_load_16(r, at); // basic 3: tcgen05, 4: tcgen05, 6: tcgen05, 7: out-of-bounds, 10: tcgen05
        tensor_wait_load();
        for (int i = 0; i < 16; i++) out[threadIdx.x * 64 + c + i] = r[i];
    }
    if (bug != 11) __syncthreads();
    if (bug != 5 && warp == 1) tensor_dealloc(tensor, 64); // basic 11: tcgen05
}
VARIANT(basic, 0)
VARIANT(basic, 1)
VARIANT(basic, 2)
VARIANT(basic, 3)
VARIANT(basic, 4)
VARIANT(basic, 5)
VARIANT(basic, 6)
VARIANT(basic, 7)
VARIANT(basic, 8)
VARIANT(basic, 9)
VARIANT(basic, 10)
VARIANT(basic, 11)
VARIANT(basic, 12)
VARIANT(basic, 13)
VARIANT(basic, 14)
VARIANT(basic, 15)
VARIANT(basic, 16)

// D[128][16] = A[128][16]·B[16][16]ᵀ twice, with A stored to tensor memory by all warps; the second product overwrites D
// while the first result is read.
__device__ __noinline__ void stored(int bug, const u32* in, u32* out, int n) {
    __shared__ alignas(128) u32 b[16 * 8];
    __shared__ u64 done, free, ready;
    __shared__ u32 address;
    int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    if (threadIdx.x == 0) {
        mbar_init(smem(&done), 1);
        mbar_init(smem(&free), 128);
        mbar_init(smem(&ready), 128);
        fence_init();
    }
    if (warp == 0) tensor_alloc(smem(&address), 32);
    // K-major without swizzle: core matrices of 8 rows of 16 bytes, side by side along k.
    for (int i = threadIdx.x; i < 128; i += 128) {
        int row = i / 8, word = i % 8;
        b[row / 8 * 64 + word / 4 * 32 + row % 8 * 4 + word % 4] = in[128 * 8 + i];
    }
    fence_async_shared();
    __syncthreads();
    u32 tensor = address, mine = tensor + (32 * warp << 16);
    u32 r[16];
    for (int i = 0; i < 8; i++) r[i] = in[threadIdx.x * 8 + i];
    for (int i = 8; i < 16; i++) r[i] = 0;
    tensor_store_16(mine + 16, r);
    if (bug != 1) tensor_wait_store();
    if (bug != 7) tensor_fence_before();
    if (bug == 6 || bug == 7) {
        mbar_arrive_relaxed(smem(&ready));
        if (threadIdx.x == 0) mbar_wait_relaxed(smem(&ready), 0);
    } else if (bug != 2) {
        __syncthreads();
    }
    u64 db = matrix_descriptor(smem(b), 128, 256, 0);
    constexpr u32 descriptor = instruction_descriptor(128, 16, 1, 1, 1);
    #pragma unroll 1
    for (int step = 0; step < 2; step++) {
        if (threadIdx.x == 0) {
            if (step == 1 && bug != 5) mbar_wait(smem(&free), 0);
            if (bug != 3) tensor_fence_after();
            product_f16_from_tensor(tensor, tensor + 16, db, descriptor, 0); // stored 1: tcgen05, 2: tcgen05, 3: tcgen05, 4: tcgen05, 5: tcgen05, 7: tcgen05, 8: tcgen05
            tensor_commit(smem(&done));
        }
        __syncwarp();
        if (bug == 6 || bug == 7) mbar_wait_relaxed(smem(&done), step);
        else mbar_wait(smem(&done), step);
        tensor_fence_after();
        tensor_load_16(r, mine);
        if (bug != 4) tensor_wait_load();
        if (bug != 8) tensor_fence_before();
        if (step == 0) mbar_arrive(smem(&free));
        for (int i = 0; i < 16; i++) out[(step * 128 + threadIdx.x) * 16 + i] = r[i];
    }
    if (bug == 4) tensor_wait_load();
    __syncthreads();
    if (warp == 0) tensor_dealloc(tensor, 32);
}
VARIANT(stored, 0)
VARIANT(stored, 1)
VARIANT(stored, 2)
VARIANT(stored, 3)
VARIANT(stored, 4)
VARIANT(stored, 5)
VARIANT(stored, 6)
VARIANT(stored, 7)
VARIANT(stored, 8)

// One product of A[M][32 bytes] and B[N][32 bytes] of any kind, whose words are written as tensor memory holds them:
// column by column for each of the 128 lanes. KIND: 0 bf16, 1 f16 with f16 sums, 2 tf32, 3 e4m3 · e5m2, 4 s8 · u8,
// 5 bf16 with M = 64, 6 bf16 with N-major B, 7 bf16 without the lanes 1 and 5 and with half the old sums.
template <int KIND> DEVICE void kinds(const u32* in, u32* out, int n) {
    __shared__ alignas(128) u32 a[128 * 8];
    __shared__ alignas(128) u32 b[32 * 8];
    __shared__ u64 done;
    __shared__ u32 address;
    constexpr int M = KIND == 5 ? 64 : 128, N = 32;
    int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    if (threadIdx.x == 0) {
        mbar_init(smem(&done), 1);
        fence_init();
    }
    if (warp == 0) tensor_alloc(smem(&address), 32);
    #pragma unroll 1
    for (int i = threadIdx.x; i < 128 * 8; i += 128) {
        int row = i / 8, word = i % 8;
        a[row / 8 * 64 + word / 4 * 32 + row % 8 * 4 + word % 4] = in[i];
    }
    for (int i = threadIdx.x; i < N * 8; i += 128) {
        // N-major: the 16 rows along k have 16 words each; units of four words, then groups of eight rows.
        int row = KIND == 6 ? i / 16 : i / 8, word = KIND == 6 ? i % 16 : i % 8;
        int at = KIND == 6 ? word / 4 * 64 + row / 8 * 32 + row % 8 * 4 + word % 4 : row / 8 * 64 + word / 4 * 32 + row % 8 * 4 + word % 4;
        b[at] = in[128 * 8 + i];
    }
    fence_async_shared();
    __syncthreads();
    u32 tensor = address, mine = tensor + (32 * warp << 16);
    u32 r[16];
    for (int i = 0; i < 16; i++) r[i] = KIND == 7 ? __float_as_uint(2.0f) : 0x7fff0000;
    tensor_store_16(mine, r);
    tensor_store_16(mine + 16, r);
    tensor_wait_store();
    tensor_fence_before();
    __syncthreads();
    if (threadIdx.x == 0) {
        tensor_fence_after();
        u64 da = matrix_descriptor(smem(a), 128, 256, 0), db = matrix_descriptor(smem(b), 128, 256, 0);
        if (KIND == 6) db = matrix_descriptor(smem(b), 128, 256, 0);
        constexpr u32 d = KIND == 1 ? 0 : KIND == 4 ? 2 : 1, fa = KIND == 1 || KIND == 3 ? 0 : KIND == 2 ? 2 : 1;
        constexpr u32 fb = KIND == 3 ? 1 : KIND == 4 ? 0 : fa;
        constexpr u32 descriptor = instruction_descriptor(M, N, d, fa, fb, 0, KIND == 6);
        if (KIND == 2) product_tf32(tensor, da, db, descriptor, 0);
        else if (KIND == 3) product_f8(tensor, da, db, descriptor, 0);
        else if (KIND == 4) product_i8(tensor, da, db, descriptor, 0);
        else if (KIND == 7) product_masked(tensor, da, db, descriptor, 1, 0x22);
        else product_f16(tensor, da, db, descriptor, 0);
        tensor_commit(smem(&done));
    }
    __syncwarp();
    mbar_wait(smem(&done), 0);
    tensor_fence_after();
    #pragma unroll 1
    for (int c = 0; c < N; c += 16) {
        tensor_load_16(r, mine + c);
        tensor_wait_load();
        for (int i = 0; i < 16; i++) out[threadIdx.x * N + c + i] = r[i];
    }
    __syncthreads();
    if (warp == 0) tensor_dealloc(tensor, 32);
}
KERNEL(kinds, 0)
KERNEL(kinds, 1)
KERNEL(kinds, 2)
KERNEL(kinds, 3)
KERNEL(kinds, 4)
KERNEL(kinds, 5)
KERNEL(kinds, 6)
KERNEL(kinds, 7)

// Every shape of loads reads what one 32x32b store wrote: out[shape][thread][register].
template <int SHAPE> DEVICE void load_shape(u32* out, u32 at) {
    u32 r[8];
#define LOAD_8(shape, tail)                                                                                                 \
    asm volatile("tcgen05.ld.sync.aligned." shape ".b32 {%0,%1,%2,%3,%4,%5,%6,%7}, [%8]" tail ";"                           \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]), "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7]) : "r"(at) : "memory")
    if (SHAPE == 0) LOAD_8("32x32b.x8", "");
    if (SHAPE == 1) LOAD_8("16x64b.x8", "");
    if (SHAPE == 2) LOAD_8("16x128b.x4", "");
    if (SHAPE == 3) LOAD_8("16x256b.x2", "");
    if (SHAPE == 4) LOAD_8("16x32bx2.x8", ", 8");
    if (SHAPE == 5) LOAD_8("32x32b.x8.pack::16b", "");
    if (SHAPE == 6) LOAD_8("16x256b.x2", "");
    tensor_wait_load();
    for (int i = 0; i < 8; i++) out[(SHAPE * 128 + threadIdx.x) * 8 + i] = r[i];
}
template <int BUG> DEVICE void shapes(const u32* in, u32* out, int n) {
    __shared__ u32 address;
    int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    if (warp == 0) tensor_alloc(smem(&address), 32);
    __syncthreads();
    u32 mine = address + (32 * warp << 16);
    u32 r[16];
    for (int i = 0; i < 16; i++) r[i] = in[threadIdx.x * 16 + i];
    tensor_store_16(mine, r);
    tensor_wait_store();
    load_shape<0>(out, mine);
    load_shape<1>(out, mine);
    load_shape<2>(out, mine);
    load_shape<3>(out, mine);
    load_shape<4>(out, mine);
    load_shape<5>(out, mine);
    load_shape<6>(out, mine + (16 << 16));
    // Stores the low halves of columns 0 to 15 as columns 16 to 31 of 16 bits, and loads them again.
    asm volatile("tcgen05.st.sync.aligned.32x32b.x8.unpack::16b.b32 [%8], {%0,%1,%2,%3,%4,%5,%6,%7};" ::"r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "r"(r[4]), "r"(r[5]), "r"(r[6]), "r"(r[7]), "r"(mine + 16) : "memory");
    tensor_wait_store();
    tensor_load_16(r, mine + 16);
    tensor_wait_load();
    for (int i = 0; i < 16; i++) out[7 * 1024 + threadIdx.x * 16 + i] = r[i];
    __syncthreads();
    if (warp == 0) tensor_dealloc(address, 32);
}
KERNEL(shapes, 0)
