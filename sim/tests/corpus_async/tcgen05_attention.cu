// O = softmax(Q·Kᵀ)·V in bf16 for two tiles of 128 queries, with a head size of 64 and 64 keys per step. Warps 0 to 3 and
// 4 to 7 compute the softmax of one tile each, warps 8 to 11 correct O when the maximum grows, warp 12 issues products,
// warp 13 loads tiles. S, P and O are in tensor memory; P is operand A of the second product.
#include "blackwell.cuh"

enum { STAGES = 2, KEYS = 64, HEAD = 64, S = 0, P = 128, O = 192, THREADS = 448 };

struct Shared {
    alignas(1024) unsigned char q[2][128 * 128];
    alignas(1024) unsigned char k[STAGES][KEYS * 128];
    alignas(1024) unsigned char v[STAGES][KEYS * 128];
    float scale[2][128];
    u64 q_full, full[STAGES], empty[STAGES];
    // For each tile of queries: S, P and O are written; the factors of O are written, and read.
    u64 s_full[2], p_full[2], o_full[2], o_scaled[2], scale_full[2], scale_empty[2];
    u32 address;
};

DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE void softmax(int bug, Shared& s, int tile, u32 tensor, int steps, float factor) {
    int row = threadIdx.x % 128;
    u32 lane = 32 * (row / 32) << 16;
    float row_max = __int_as_float(0xff800000), row_sum = 0;
    #pragma unroll 1
    for (int step = 0; step < steps; step++) {
        if (bug != 2) mbar_wait(smem(&s.s_full[tile]), step & 1); // attention 8: deadlock
        if (bug != 6) tensor_fence_after();
        u32 score[4][16];
        for (int c = 0; c < 4; c++) tensor_load_16(score[c], tensor + S + 64 * tile + 16 * c + lane); // attention 2: tcgen05, 6: tcgen05
        tensor_wait_load();
        float new_max = row_max;
        for (int c = 0; c < 64; c++) new_max = fmaxf(new_max, __uint_as_float(score[c / 16][c % 16]));
        float scale = exp2_approx((row_max - new_max) * factor);
        row_max = new_max;
        mbar_wait(smem(&s.scale_empty[tile]), (step & 1) ^ 1);
        s.scale[tile][row] = scale;
        mbar_arrive(smem(&s.scale_full[tile]));
        row_sum *= scale;
        for (int half = 0; half < 2; half++) {
            u32 p[16];
            for (int c = 0; c < 16; c++) {
                float low = exp2_approx((__uint_as_float(score[2 * half + c / 8][2 * c % 16]) - new_max) * factor);
                float high = exp2_approx((__uint_as_float(score[2 * half + c / 8][2 * c % 16 + 1]) - new_max) * factor);
                row_sum += low + high;
                asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(p[c]) : "f"(high), "f"(low));
            }
            tensor_store_16(tensor + P + 32 * tile + 16 * half + lane, p); // attention 2: tcgen05
        }
        if (bug != 1) tensor_wait_store();
        tensor_fence_before();
        mbar_arrive(smem(&s.p_full[tile]));
    }
    mbar_wait(smem(&s.scale_empty[tile]), (steps & 1) ^ 1);
    s.scale[tile][row] = row_sum;
    mbar_arrive(smem(&s.scale_full[tile]));
}

DEVICE void correct(int bug, Shared& s, float* out, u32 tensor, int steps) {
    int row = threadIdx.x % 128;
    u32 lane = 32 * (row / 32) << 16;
    #pragma unroll 1
    for (int step = 0; step <= steps; step++) {
        #pragma unroll 1
        for (int tile = 0; tile < 2; tile++) {
            mbar_wait(smem(&s.scale_full[tile]), step & 1);
            float scale = s.scale[tile][row];
            mbar_arrive(smem(&s.scale_empty[tile]));
            u32 at = tensor + O + 64 * tile + lane;
            if (step > 0) {
                if (bug != 5) mbar_wait(smem(&s.o_full[tile]), (step - 1) & 1); // attention 8: deadlock
                if (bug != 11) tensor_fence_after();
                #pragma unroll 1
                for (int c = 0; c < HEAD; c += 16) {
                    u32 o[16];
                    tensor_load_16(o, at + c); // attention 5: tcgen05, 11: tcgen05
                    tensor_wait_load();
                    if (step < steps) {
                        for (int i = 0; i < 16; i++) o[i] = __float_as_uint(__uint_as_float(o[i]) * scale);
                        tensor_store_16(at + c, o); // attention 4: tcgen05, 5: tcgen05, 11: tcgen05
                    } else {
                        for (int i = 0; i < 16; i++) out[(128 * (2 * blockIdx.x + tile) + row) * HEAD + c + i] = __uint_as_float(o[i]) / scale;
                    }
                }
                if (bug != 10) tensor_wait_store();
            }
            tensor_fence_before();
            mbar_arrive(smem(&s.o_scaled[tile]));
        }
    }
}

DEVICE void multiply(int bug, Shared& s, u32 tensor, int steps) {
    constexpr u32 scores = instruction_descriptor(128, KEYS, 1, 1, 1), sums = instruction_descriptor(128, HEAD, 1, 1, 1, 0, 1);
    mbar_wait(smem(&s.q_full), 0);
    #pragma unroll 1
    for (int step = 0; step < steps; step++) {
        int stage = step % STAGES;
        mbar_wait(smem(&s.full[stage]), step / STAGES & 1);
        tensor_fence_after();
        u64 k = matrix_descriptor(smem(s.k[stage]), 16, 1024, 2), v = matrix_descriptor(smem(s.v[stage]), 1024, 1024, 2);
        for (int tile = 0; tile < 2; tile++) {
            u64 q = matrix_descriptor(smem(s.q[tile]), 16, 1024, 2);
            for (int j = 0; j < HEAD / 16; j++) product_f16(tensor + S + 64 * tile, q + 2 * j, k + 2 * j, scores, j > 0); // attention 2: tcgen05
            tensor_commit(smem(&s.s_full[tile]));
        }
        for (int tile = 0; tile < 2; tile++) {
            if (bug != 3) mbar_wait(smem(&s.p_full[tile]), step & 1);
            if (bug != 4) mbar_wait(smem(&s.o_scaled[tile]), step & 1);
            if (bug != 7) tensor_fence_after();
            // V is N-major: 16 rows of keys are 2048 bytes, and 8 of them are a swizzle pattern.
            for (int j = 0; j < KEYS / 16; j++) product_f16_from_tensor(tensor + O + 64 * tile, tensor + P + 32 * tile + 8 * j, v + 128 * j, sums, step + j > 0); // attention 1: tcgen05, 3: tcgen05, 4: tcgen05, 7: tcgen05, 10: tcgen05
            if (bug != 8) tensor_commit(smem(&s.o_full[tile]));
        }
        tensor_commit(smem(&s.empty[stage]));
    }
}

// All variants share this function, so that the PTX is short.
__device__ __noinline__ void attention(int bug, const TensorMap& mq, const TensorMap& mk, const TensorMap& mv, float* out, int keys, float factor) {
    extern __shared__ __align__(1024) unsigned char dynamic[];
    Shared& s = *(Shared*)dynamic;
    int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), steps = keys / KEYS;
    if (warp == 12) {
        if (elect()) {
            mbar_init(smem(&s.q_full), 1);
            for (int i = 0; i < STAGES; i++) {
                mbar_init(smem(&s.full[i]), 1);
                mbar_init(smem(&s.empty[i]), 1);
            }
            for (int tile = 0; tile < 2; tile++) {
                mbar_init(smem(&s.s_full[tile]), 1);
                mbar_init(smem(&s.p_full[tile]), 128);
                mbar_init(smem(&s.o_full[tile]), 1);
                mbar_init(smem(&s.o_scaled[tile]), 128);
                mbar_init(smem(&s.scale_full[tile]), 128);
                mbar_init(smem(&s.scale_empty[tile]), 128);
            }
            fence_init();
        }
        __syncwarp();
        tensor_alloc(smem(&s.address), 512);
        tensor_relinquish();
    }
    __syncthreads();
    u32 tensor = s.address;
    if (warp < 8) {
        softmax(bug, s, warp / 4, tensor, steps, factor);
    } else if (warp < 12) {
        correct(bug, s, out, tensor, steps);
    } else if (warp == 12) {
        if (elect()) multiply(bug, s, tensor, steps);
    } else if (elect()) {
        mbar_expect(smem(&s.q_full), 2 * 128 * 128);
        for (int tile = 0; tile < 2; tile++) tensor_load_2d_cta(smem(s.q[tile]), &mq, 0, 128 * (2 * blockIdx.x + tile), smem(&s.q_full));
        for (int step = 0; step < steps; step++) {
            int stage = step % STAGES;
            u32 full = smem(&s.full[stage]);
            if (bug != 9) mbar_wait(smem(&s.empty[stage]), (step / STAGES & 1) ^ 1);
            mbar_expect(full, 2 * KEYS * 128);
            tensor_load_2d_cta(smem(s.k[stage]), &mk, 0, KEYS * step, full); // attention 9: async-not-waited
            tensor_load_2d_cta(smem(s.v[stage]), &mv, 0, KEYS * step, full); // attention 9: async-not-waited
        }
    }
    __syncwarp(); // attention 8: deadlock
    if (bug != 12) __syncthreads();
    if (warp == 12) tensor_dealloc(tensor, 512); // attention 12: tcgen05
}

#define ATTENTION(bug)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_##bug(                                               \
        const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, float* o, int keys, float factor) { \
        attention(bug, q, k, v, o, keys, factor);                                                                           \
    }
ATTENTION(0)
ATTENTION(1)
ATTENTION(2)
ATTENTION(3)
ATTENTION(4)
ATTENTION(5)
ATTENTION(6)
ATTENTION(7)
ATTENTION(8)
ATTENTION(9)
ATTENTION(10)
ATTENTION(11)
ATTENTION(12)
