// D = A·Bᵀ in bf16 with f32 sums by mma.sync: 128×128 per block of eight warps, k in steps of 32 through a ring
// of three stages that cp.async fills. A second kernel tests ldmatrix, stmatrix and movmatrix alone.
#include "async.cuh"

constexpr int STAGES = 3;

// Byte offset of a 16-byte unit of a row in a stage. Rows have 64 bytes; units are permuted to avoid bank conflicts.
DEVICE u32 place(int row, int unit) {
    return row * 64 + ((unit ^ (row >> 1 & 3)) << 4);
}

template <int BUG> DEVICE void gemm(const u16* a, const u16* b, float* d, int n, int k) {
    __shared__ alignas(128) unsigned char sa[STAGES][8192], sb[STAGES][8192];
    int t = threadIdx.x, lane = t % 32, warp = t / 32;
    int wm = warp / 4 * 64, wn = warp % 4 * 32;
    a += (size_t)blockIdx.x * 128 * k;
    b += (size_t)blockIdx.y * 128 * k;
    int steps = k / 32;
    auto copy = [&](int step) {
        if (step < steps) {
            for (int i = t; i < 512; i += 256) {
                cp_async<16>(smem(sa[step % STAGES]) + place(i / 4, i % 4), a + (size_t)(i / 4) * k + 32 * step + 8 * (i % 4));
                cp_async<16>(smem(sb[step % STAGES]) + place(i / 4, i % 4), b + (size_t)(i / 4) * k + 32 * step + 8 * (i % 4));
            }
        }
        cp_async_commit();
    };
    float acc[4][4][4] = {};
    copy(0);
    copy(1);
    for (int step = 0; step < steps; step++) {
        if (BUG == 1) cp_async_wait<2>();
        else cp_async_wait<1>();
        if (BUG != 2) __syncthreads();
        copy(step + 2);
        u32 ta = smem(sa[step % STAGES]), tb = smem(sb[step % STAGES]);
#pragma unroll
        for (int kk = 0; kk < 2; kk++) {
            u32 fa[4][4], fb[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++) ldmatrix_x4(fa[i], ta + place(wm + 16 * i + lane % 16, 2 * kk + lane / 16)); // gemm 1: async-not-waited, 2: async-not-waited
#pragma unroll
            for (int j = 0; j < 2; j++) ldmatrix_x4(fb[j], tb + place(wn + 16 * j + lane % 8 + 8 * (lane / 16), 2 * kk + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) mma_bf16(acc[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                size_t row = blockIdx.x * 128 + wm + 16 * i + lane / 4 + 8 * h;
                float2 v = make_float2(acc[i][j][2 * h], acc[i][j][2 * h + 1]);
                *(float2*)(d + row * n + blockIdx.y * 128 + wn + 8 * j + 2 * (lane % 4)) = v;
            }
}
#define GEMM(bug)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) gemm_##bug(const u16* a, const u16* b, float* d, int n, int k) {      \
        gemm<bug>(a, b, d, n, k);                                                                                           \
    }
GEMM(0)
GEMM(1)
GEMM(2)

// Writes each lane's fragments of a 16×16 matrix, plain and with each 8×8 quarter transposed.
extern "C" __global__ void fragments(const u32* in, u32* out) {
    __shared__ alignas(16) u32 tile[128];
    int lane = threadIdx.x;
    for (int i = 0; i < 4; i++) tile[lane + 32 * i] = in[lane + 32 * i];
    __syncwarp();
    u32 at = smem(tile) + lane % 16 * 32 + lane / 16 * 16;
    u32 r[4], s[4], p[2], q[2];
    ldmatrix_x4(r, at);
    ldmatrix_x4_trans(s, at);
    ldmatrix_x2(p, at);
    ldmatrix_x2_trans(q, at);
    for (int i = 0; i < 4; i++) {
        out[32 * i + lane] = r[i];
        out[32 * (4 + i) + lane] = s[i];
        out[32 * (12 + i) + lane] = movmatrix(r[i]);
    }
    for (int i = 0; i < 2; i++) {
        out[32 * (8 + i) + lane] = p[i];
        out[32 * (10 + i) + lane] = q[i];
    }
    out[32 * 16 + lane] = ldmatrix_x1(at);
}
