// cp.async with groups and with arrivals on mbarriers. Each kernel copies rows through shared memory. Variant 0 is
// correct; each other variant has one bug: the line of the finding is marked with the variant and the finding's kind.
#include "async.cuh"

#define KERNEL(name, bug)                                                                                                   \
    extern "C" __global__ void name##_##bug(const u32* in, u32* out, int n) {                                               \
        name<bug>(in, out, n);                                                                                              \
    }

// One stage: each of 128 threads copies 16 bytes and reads the bytes that its neighbour copied.
template <int BUG> DEVICE void stage(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[512];
    u32 t = threadIdx.x;
    cp_async<16>(smem(&tile[4 * t]), in + 4 * t);
    if (BUG != 3) cp_async_commit();
    if (BUG == 1) cp_async_wait<1>();
    else if (BUG == 4) { if (t < 64) cp_async_wait<0>(); }
    else cp_async_wait<0>();
    if (BUG != 2) __syncthreads();
    u32 other = (t + 33) % 128;
    for (int i = 0; i < 4; i++) out[4 * t + i] = tile[4 * other + i]; // stage 1: async-not-waited, 2: async-not-waited, 3: async-not-waited, 4: async-not-waited
}
KERNEL(stage, 0)
KERNEL(stage, 1)
KERNEL(stage, 2)
KERNEL(stage, 3)
KERNEL(stage, 4)

// A pipeline of three stages over n tiles of 128 words; each thread reads another thread's word.
template <int BUG> DEVICE void pipeline(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[3][128];
    u32 t = threadIdx.x, sum = 0;
    for (int s = 0; s < 2; s++) {
        if (s < n) cp_async<4>(smem(&tile[s][t]), in + 128 * s + t);
        cp_async_commit();
    }
    for (int i = 0; i < n; i++) {
        if (BUG == 1) cp_async_wait<2>();
        else cp_async_wait<1>();
        if (BUG != 3) __syncthreads();
        int next = i + 2;
        if (BUG == 2) next = i + 3;
        if (next < n) cp_async<4>(smem(&tile[next % 3][t]), in + 128 * next + t); // pipeline 2: race
        cp_async_commit();
        sum = sum * 3 + tile[i % 3][t ^ 37]; // pipeline 1: async-not-waited, 3: async-not-waited
    }
    out[t] = sum;
}
KERNEL(pipeline, 0)
KERNEL(pipeline, 1)
KERNEL(pipeline, 2)
KERNEL(pipeline, 3)

// cp.async copies only a part of some rows and fills the rest with zeros.
template <int BUG> DEVICE void partial(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[512];
    u32 t = threadIdx.x;
    int left = n - 16 * (int)t;
    u32 bytes = left < 0 ? 0 : left > 16 ? 16 : left;
    const char* from = (const char*)in + (left > 0 ? 16 * t : 0);
    if (BUG == 1) cp_async<16>(smem(&tile[4 * t]), (const char*)in + 16 * t); // partial 1: out-of-bounds
    else cp_async_part<16>(smem(&tile[4 * t]), from, bytes);
    cp_async_wait_all();
    for (int i = 0; i < 4; i++) out[4 * t + i] = tile[4 * t + i];
}
KERNEL(partial, 0)
KERNEL(partial, 1)

// cp.async arrivals with .noinc, one per thread: the arrival count 128 of the mbarrier includes them.
template <int BUG> DEVICE void arrival(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[256];
    __shared__ u64 bar;
    u32 t = threadIdx.x;
    if (t == 0) {
        mbar_init(smem(&bar), 128);
        fence_init();
    }
    if (BUG != 2) __syncthreads();
    cp_async<8>(smem(&tile[2 * t]), in + 2 * t);
    cp_async_arrive_noinc(smem(&bar)); // arrival 2: mbarrier
    if (BUG != 1) while (!mbar_test_parity(smem(&bar), 0)) {}
    out[2 * t] = tile[(2 * t + 66) % 256]; // arrival 1: async-not-waited
    out[2 * t + 1] = tile[(2 * t + 67) % 256];
}
KERNEL(arrival, 0)
KERNEL(arrival, 1)
KERNEL(arrival, 2)

// cp.async arrivals without .noinc: the arrival count 128 of the mbarrier does not include them.
template <int BUG> DEVICE void counted(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[256];
    __shared__ u64 bar;
    u32 t = threadIdx.x;
    if (t == 0) mbar_init(smem(&bar), 128);
    __syncthreads();
    cp_async<8>(smem(&tile[2 * t]), in + 2 * t);
    cp_async_arrive(smem(&bar));
    u64 state = mbar_arrive(smem(&bar));
    while (!mbar_test(smem(&bar), state)) {}
    out[2 * t] = tile[(2 * t + 66) % 256];
    out[2 * t + 1] = tile[(2 * t + 67) % 256];
}
KERNEL(counted, 0)

// Plain stores overwrite a stage of shared memory while the cp.async that fills it is still pending.
template <int BUG> DEVICE void overwrite(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[128];
    u32 t = threadIdx.x;
    cp_async<4>(smem(&tile[t]), in + t);
    cp_async_commit();
    if (BUG == 0) cp_async_wait<0>();
    tile[t] = t; // overwrite 1: async-not-waited
    if (BUG != 0) cp_async_wait<0>();
    out[t] = tile[t];
}
KERNEL(overwrite, 0)
KERNEL(overwrite, 1)
