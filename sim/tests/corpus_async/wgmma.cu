// wgmma with operands in memory or registers, groups and hazards. Variant 0 is correct, each other one has one bug.
#include "async.cuh"

#define KERNEL(name, bug)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(128, 1) name##_##bug(const u32* in, float* out, int n) {                   \
        name<bug>(in, out, n);                                                                                              \
    }

// Copies 32-bit words (two bf16 each) into shared memory, swizzled as a tile with rows of SPAN bytes.
template <int SPAN> DEVICE void fill(u32* to, const u32* from, int words) {
    constexpr u32 bits = SPAN == 128 ? 7 : SPAN == 64 ? 3 : SPAN == 32 ? 1 : 0;
    for (int i = threadIdx.x; i < words; i += 128) {
        u32 at = smem(to) + 4 * i;
        at ^= (at >> 7 & bits) << 4;
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(from[i]) : "memory");
    }
}

DEVICE void write(float* out, const float (&d)[8]) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = 0; i < 8; i++) out[(16 * warp + lane / 4 + 8 * (i >> 1 & 1)) * 16 + 8 * (i >> 2) + 2 * (lane % 4) + (i & 1)] = d[i]; // basic 9: wgmma
}

// D[64][16] = A[64][64]·B[16][64]ᵀ in four steps along k; A and B are K-major with 128-byte swizzle.
template <int BUG> DEVICE void basic(const u32* in, float* out, int n) {
    __shared__ alignas(1024) u32 a[64 * 32];
    __shared__ alignas(1024) u32 b[16 * 32];
    fill<128>(a, in, 64 * 32);
    fill<128>(b, in + 64 * 32, 16 * 32);
    if (BUG == 12) {
        __syncthreads();
        fence_async();
    } else {
        if (BUG != 1) fence_async();
        __syncthreads();
    }
    u64 da = descriptor(smem(a), 16, 1024, 1), db = descriptor(smem(b), 16, 1024, 1);
    if (BUG == 2 && threadIdx.x / 32 == 3) db += 2;
    if (BUG == 3) da += 8;
    if (BUG == 4) db += 0x3000;
    float d[8];
    for (int i = 0; i < 8; i++) d[i] = (float)n;
    if (BUG != 5) wgmma_fence();
    if (BUG == 7 && threadIdx.x >= 96) return;
    for (int k = 0; k < 4; k++) wgmma_n16(d, da + 2 * k, db + 2 * k, k > 0); // basic 1: async-proxy, 2: wgmma, 3: wgmma, 4: wgmma, 5: wgmma, 7: wgmma
    wgmma_commit();
    if (BUG == 8) {
        for (int i = 0; i < 8; i++) asm volatile("mul.f32 %0, %0, 0f40000000;" : "+f"(d[i])); // basic 8: wgmma
    }
    if (BUG == 9) wgmma_wait<1>();
    else wgmma_wait<0>();
    if (BUG == 6) {
        for (int i = 0; i < 8; i++) asm volatile("add.f32 %0, %0, 0f3f800000;" : "+f"(d[i]));
        wgmma_n16(d, da, db, 1); // basic 6: wgmma
        wgmma_commit();
        wgmma_wait<0>();
    }
    write(out, d);
    if (BUG == 10) {
        wgmma_fence();
        wgmma_n16(d, da, db, 0);
        wgmma_commit();
        a[threadIdx.x] = 0; // basic 10: async-not-waited
        wgmma_wait<0>();
    }
}
KERNEL(basic, 0)
KERNEL(basic, 1)
KERNEL(basic, 2)
KERNEL(basic, 3)
KERNEL(basic, 4)
KERNEL(basic, 5)
KERNEL(basic, 6)
KERNEL(basic, 7)
KERNEL(basic, 8)
KERNEL(basic, 9)
KERNEL(basic, 10)
KERNEL(basic, 12)

// Products with other layouts: B is [n = 16][k = 64] or N-major [k][n]; A is [m = 64][k = 64] or M-major [k][m].
template <int SPAN, int TA, int TB> DEVICE void layouts(const u32* in, float* out) {
    __shared__ alignas(1024) u32 a[64 * 32];
    __shared__ alignas(1024) u32 b[16 * 32];
    constexpr int layout = SPAN == 128 ? 1 : SPAN == 64 ? 2 : SPAN == 32 ? 3 : 0;
    constexpr int row = SPAN / 4; // words of a row
    // The tiles have rows of SPAN bytes and lie one after the other along the contiguous dimension.
    for (int i = 0; i < 32 / row; i++) {
        for (int w = threadIdx.x; w < 64 * row; w += 128) {
            u32 at = smem(a) + 4 * (i * 64 * row + w);
            at ^= (at >> 7 & (SPAN / 16 - 1)) << 4;
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(in[w / row * 32 + i * row + w % row]) : "memory");
        }
    }
    constexpr int lines = TB ? 64 : 16, words = TB ? 8 : 32; // rows of B in memory, words of a row
    constexpr int brow = SPAN / 4 < words ? SPAN / 4 : words;
    for (int i = 0; i < words / brow; i++) {
        for (int w = threadIdx.x; w < lines * brow; w += 128) {
            u32 at = smem(b) + 4 * (i * lines * row + w / brow * row + w % brow);
            at ^= (at >> 7 & (SPAN / 16 - 1)) << 4;
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(in[64 * 32 + w / brow * words + i * brow + w % brow]) : "memory");
        }
    }
    fence_async();
    __syncthreads();
    float d[8];
    wgmma_fence();
    for (int k = 0; k < 4; k++) {
        // K-major: a tile holds SPAN / 32 steps along k. MN-major: each step takes 16 rows of SPAN bytes.
        u32 ka = TA ? k * 16 * SPAN : k / (SPAN / 32) * 64 * SPAN + k % (SPAN / 32) * 32;
        u32 kb = TB ? k * 16 * SPAN : k / (SPAN / 32) * 16 * SPAN + k % (SPAN / 32) * 32;
        u64 da = descriptor(smem(a) + ka, TA ? 64 * SPAN : 16, 8 * SPAN, layout);
        u64 db = descriptor(smem(b) + kb, TB ? 64 * SPAN : 16, 8 * SPAN, layout);
        wgmma_n16<TA, TB>(d, da, db, k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    write(out, d);
}
#define LAYOUT(span, ta, tb)                                                                                                \
    extern "C" __global__ void __launch_bounds__(128, 1) layout_##span##_##ta##tb(const u32* in, float* out, int n) {       \
        layouts<span, ta, tb>(in, out);                                                                                     \
    }
LAYOUT(128, 0, 0)
LAYOUT(64, 0, 0)
LAYOUT(32, 0, 0)
LAYOUT(128, 1, 0)
LAYOUT(64, 1, 0)
LAYOUT(32, 1, 0)
LAYOUT(32, 0, 1)

// wgmma with A in registers and two matrix products in flight at once.
template <int BUG> DEVICE void registers(const u32* in, float* out, int n) {
    __shared__ alignas(1024) u32 b[16 * 32];
    fill<128>(b, in + 64 * 32, 16 * 32);
    fence_async();
    __syncthreads();
    u64 db = descriptor(smem(b), 16, 1024, 1);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 a[4][4];
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 4; i++) a[k][i] = in[(16 * warp + lane / 4 + 8 * (i & 1)) * 32 + 8 * k + lane % 4 + 4 * (i >> 1)];
    float d[8];
    wgmma_fence();
    for (int k = 0; k < 2; k++) wgmma_n16_rs(d, a[k], db + 2 * k, k > 0);
    wgmma_commit();
    if (BUG == 1) asm volatile("xor.b32 %0, %0, 1;" : "+r"(a[0][0])); // registers 1: wgmma
    if (BUG == 2) asm volatile("xor.b32 %0, %0, 0;" : "+r"(a[2][0]));
    for (int k = 2; k < 4; k++) wgmma_n16_rs(d, a[k], db + 2 * k, 1); // registers 2: wgmma
    wgmma_commit();
    wgmma_wait<0>();
    if (BUG == 1) out[0] = a[0][0];
    write(out, d);
}
KERNEL(registers, 0)
KERNEL(registers, 1)
KERNEL(registers, 2)

// cp.async writes the operands of wgmma.
template <int BUG> DEVICE void copied(const u32* in, float* out, int n) {
    __shared__ alignas(1024) u32 a[64 * 32];
    __shared__ alignas(1024) u32 b[16 * 32];
    for (int i = threadIdx.x; i < 64 * 8; i += 128) {
        u32 at = smem(a) + 16 * i;
        cp_async<16>(at ^ (at >> 7 & 7) << 4, in + 4 * i);
    }
    {
        u32 at = smem(b) + 16 * threadIdx.x;
        cp_async<16>(at ^ (at >> 7 & 7) << 4, in + 64 * 32 + 4 * threadIdx.x);
    }
    cp_async_commit();
    if (BUG == 2) fence_async();
    cp_async_wait<0>();
    if (BUG == 0) fence_async();
    __syncthreads();
    u64 da = descriptor(smem(a), 16, 1024, 1), db = descriptor(smem(b), 16, 1024, 1);
    float d[8];
    wgmma_fence();
    for (int k = 0; k < 4; k++) wgmma_n16(d, da + 2 * k, db + 2 * k, k > 0); // copied 1: async-proxy, 2: async-proxy
    wgmma_commit();
    wgmma_wait<0>();
    write(out, d);
}
KERNEL(copied, 0)
KERNEL(copied, 1)
KERNEL(copied, 2)

// Warpgroups release and acquire registers (setmaxnreg).
template <int BUG> DEVICE void pool(const u32* in, float* out, int n) {
    if (threadIdx.x < 128) {
        if (BUG == 2) { if (threadIdx.x < 64) setmaxnreg_dec<24>(); } // pool 2: setmaxnreg
        else if (BUG == 3) { if (threadIdx.x % 2) setmaxnreg_dec<24>(); } // pool 3: setmaxnreg
        else setmaxnreg_dec<24>();
    } else if (threadIdx.x < 256) {
        if (BUG == 1) setmaxnreg_inc<248>(); // pool 1: setmaxnreg
        else if (BUG < 2) setmaxnreg_inc<240>();
    } else {
        if (BUG == 1) setmaxnreg_inc<248>(); // pool 1: setmaxnreg
        else if (BUG < 2) setmaxnreg_inc<240>();
    }
    out[threadIdx.x] = threadIdx.x;
}
#define POOL(bug)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(384, 1) pool_##bug(const u32* in, float* out, int n) {                     \
        pool<bug>(in, out, n);                                                                                              \
    }
POOL(0)
POOL(1)
POOL(2)
POOL(3)

// stmatrix writes four 8×8 matrices, then two transposed ones; plain loads read them back as 32-bit words.
extern "C" __global__ void stored(const u32* in, u32* out) {
    __shared__ alignas(16) u32 tile[128];
    u32 t = threadIdx.x, r[4], p[2];
    for (int i = 0; i < 4; i++) r[i] = in[32 * i + t];
    stmatrix_x4(smem(tile) + 16 * t, r);
    __syncwarp();
    for (int i = 0; i < 4; i++) out[32 * i + t] = tile[32 * i + t];
    __syncwarp();
    p[0] = r[0];
    p[1] = r[1];
    stmatrix_x2_trans(smem(tile) + 16 * (t % 16), p);
    __syncwarp();
    for (int i = 0; i < 2; i++) out[128 + 32 * i + t] = tile[32 * i + t];
}
