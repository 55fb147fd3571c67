// mbarriers alone, and with bulk and tensor loads. Variant 0 of a kernel is correct; each other variant has one bug.
#include "async.cuh"

#define KERNEL(name, bug)                                                                                                   \
    extern "C" __global__ void name##_##bug(const u32* in, u32* out, int n) {                                               \
        name<bug>(in, out, n);                                                                                              \
    }

// One thread loads 1 KiB by a bulk copy; 256 threads read it.
template <int BUG> DEVICE void load(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[256];
    __shared__ u64 bar;
    u32 t = threadIdx.x, b = smem(&bar);
    if (BUG == 5) {
        if (t == 0) {
            mbar_expect(b, 1024); // load 5: mbarrier
            mbar_init(b, 1);
            fence_init();
        }
    } else if (t == 0) {
        mbar_init(b, BUG == 3 ? 2 : 1);
        if (BUG == 6) mbar_init(b, 1); // load 6: mbarrier
        fence_init();
    }
    if (BUG != 7) __syncthreads();
    if (t == 0) {
        if (BUG != 5) mbar_expect(b, BUG == 1 ? 1040 : BUG == 2 ? 1008 : 1024);
        if (BUG == 4) mbar_arrive(b); // load 4: mbarrier
        bulk_load(smem(tile), in, 1024, b); // load 2: mbarrier
    }
    if (BUG == 8) {
        if (t == 0) mbar_wait(b, 0);
    } else if (BUG == 9) {
        mbar_wait(b, 1);
    } else if (BUG == 10) {
        if (t == 0) mbar_wait(b, 0);
        __syncwarp();
    } else {
        mbar_wait(b, 0); // load 1: mbarrier, 3: mbarrier, 7: mbarrier
    }
    out[t] = tile[t ^ 5]; // load 8: async-not-waited, 9: async-not-waited, 10: async-not-waited
    if (BUG == 11) *(volatile u32*)&bar = t; // load 11: mbarrier
}
KERNEL(load, 0)
KERNEL(load, 1)
KERNEL(load, 2)
KERNEL(load, 3)
KERNEL(load, 4)
KERNEL(load, 5)
KERNEL(load, 6)
KERNEL(load, 7)
KERNEL(load, 8)
KERNEL(load, 9)
KERNEL(load, 10)
KERNEL(load, 11)

// One thread waits, and a block barrier orders the others. The copy is issued before expect_tx. The mbarrier is used
// for two phases and then invalidated; its memory is used again.
template <int BUG> DEVICE void twice(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[256];
    __shared__ u64 bar;
    u32 t = threadIdx.x, b = smem(&bar), sum = 0;
    if (t == 0) {
        mbar_init(b, 1);
        fence_init();
    }
    __syncthreads();
    for (int i = 0; i < 2; i++) {
        if (t == 0) {
            if (BUG == 0) {
                bulk_load(smem(tile), in + 256 * i, 512, b);
                bulk_load(smem(tile + 128), in + 256 * i + 128, 512, b);
                mbar_expect(b, 1024);
            } else {
                mbar_expect_only(b, 512);
                bulk_load(smem(tile), in + 256 * i, 512, b);
                mbar_expect(b, 512);
                bulk_load(smem(tile + 128), in + 256 * i + 128, 512, b);
            }
            mbar_wait(b, i);
        }
        __syncthreads();
        sum = 3 * sum + tile[t];
        __syncthreads();
    }
    out[t] = sum;
    __syncthreads();
    if (t == 0) {
        mbar_inval(b);
        *(volatile u64*)&bar = 7;
        out[0] += (u32)*(volatile u64*)&bar - 7;
    }
}
KERNEL(twice, 0)

// A ring buffer of two stages: warp 0 writes with plain stores, warps 1 to 3 read with plain loads.
template <int BUG> DEVICE void ring(const u32* in, u32* out, int n) {
    __shared__ u32 tile[2][96];
    __shared__ u64 full[2], empty[2];
    u32 t = threadIdx.x;
    if (t == 0) {
        for (int i = 0; i < 2; i++) {
            mbar_init(smem(&full[i]), 32);
            mbar_init(smem(&empty[i]), BUG == 3 ? 4 : BUG == 4 ? 2 : 3);
        }
        fence_init();
    }
    __syncthreads();
    if (t < 32) {
        for (int i = 0; i < n; i++) {
            int s = i % 2, p = i / 2 & 1;
            if (BUG != 2) mbar_wait(smem(&empty[s]), BUG == 1 ? p : p ^ 1); // ring 1: deadlock, 3: mbarrier
            for (int j = 0; j < 3; j++) tile[s][t + 32 * j] = in[96 * i + t + 32 * j]; // ring 2: race, 4: race, 5: race
            mbar_arrive(smem(&full[s]));
        }
    } else {
        u32 sum = 0;
        for (int i = 0; i < n; i++) {
            int s = i % 2, p = i / 2 & 1;
            mbar_wait(smem(&full[s]), p);
            if (BUG == 5 && t % 32 == 0) mbar_arrive(smem(&empty[s]));
            sum = 3 * sum + tile[s][95 - (t - 32)];
            __syncwarp();
            if (BUG != 5 && t % 32 == 0) mbar_arrive(smem(&empty[s]));
        }
        out[t - 32] = sum;
    }
}
KERNEL(ring, 0)
KERNEL(ring, 1)
KERNEL(ring, 2)
KERNEL(ring, 3)
KERNEL(ring, 4)
KERNEL(ring, 5)

// Tests mbarrier states, arrival counts, arrive_drop and pending_count.
extern "C" __global__ void states(const u32* in, u32* out, int n) {
    __shared__ u64 bar;
    __shared__ u32 value[64];
    u32 t = threadIdx.x, b = smem(&bar);
    if (t == 0) mbar_init(b, 64);
    __syncthreads();
    value[t] = in[t];
    u64 state = mbar_arrive(b);
    u32 pending;
    asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(pending) : "l"(state));
    while (!mbar_test(b, state)) {}
    u32 got = value[63 - t];
    // Threads 32 to 63 drop out of the mbarrier, so the next phase needs 32 arrivals; one thread makes them all.
    if (t >= 32) mbar_arrive_drop(b);
    else mbar_arrive(b);
    mbar_wait(b, 1);
    __syncthreads();
    if (t == 0) mbar_arrive_n(b, 32);
    mbar_wait(b, 0);
    out[t] = got;
    out[64 + t] = pending >= 1 && pending <= 64;
}

// Bulk stores from shared memory to global memory.
template <int BUG> DEVICE void store(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[256];
    u32 t = threadIdx.x;
    for (int i = 0; i < 2; i++) {
        tile[t] = in[256 * i + t] + 1; // store 1: async-not-waited
        if (BUG == 2) {} else if (BUG == 4) { __syncthreads(); if (t == 0) fence_async_shared(); }
        else fence_async_shared();
        if (BUG != 4) __syncthreads();
        if (t == 0) {
            bulk_store(out + 256 * i, smem(tile), 1024); // store 2: async-proxy, 3: async-not-waited
            bulk_commit();
            if (BUG == 1) { if (i == 1) bulk_wait_read<0>(); }
            else if (BUG == 3) { if (i == 0) bulk_wait_read<0>(); }
            else bulk_wait_read<0>();
        }
        __syncthreads();
    }
}
KERNEL(store, 0)
KERNEL(store, 1)
KERNEL(store, 2)
KERNEL(store, 3)
KERNEL(store, 4)

// Adds to the output by a bulk reduction and reads it back after it has completed.
template <int BUG> DEVICE void sum(const u32* in, u32* out, int n) {
    __shared__ alignas(16) float tile[128];
    u32 t = threadIdx.x;
    tile[t] = (float)in[t];
    fence_async_shared();
    __syncthreads();
    if (t == 0) {
        bulk_add_f32(out, smem(tile), 512);
        bulk_prefetch(in, 512);
        bulk_commit();
        if (BUG == 1) bulk_wait_read<0>();
        else bulk_wait<0>();
        out[128] = out[5]; // sum 1: async-not-waited
    }
}
KERNEL(sum, 0)
KERNEL(sum, 1)

// Plain stores write global memory, which a bulk load of the same kernel then reads.
template <int BUG> DEVICE void reload(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[128];
    __shared__ u64 bar;
    u32 t = threadIdx.x, b = smem(&bar);
    if (t == 0) {
        mbar_init(b, 1);
        fence_init();
    }
    out[128 + t] = in[t] * 3;
    if (BUG == 0) fence_async_global();
    if (BUG == 2) fence_async_shared();
    __syncthreads();
    if (t == 0) {
        mbar_expect(b, 512);
        bulk_load(smem(tile), out + 128, 512, b); // reload 1: async-proxy, 2: async-proxy
    }
    mbar_wait(b, 0);
    out[t] = tile[t ^ 3];
}
KERNEL(reload, 0)
KERNEL(reload, 1)
KERNEL(reload, 2)

// A block must not exit while a copy still writes its shared memory.
template <int BUG> DEVICE void abandon(const u32* in, u32* out, int n) {
    __shared__ alignas(16) u32 tile[256];
    __shared__ u64 bar;
    u32 t = threadIdx.x, b = smem(&bar);
    if (t == 0) {
        mbar_init(b, 1);
        fence_init();
        mbar_expect(b, 1024);
        bulk_load(smem(tile), in, 1024, b); // abandon 1: async-not-waited
        if (BUG == 0) mbar_wait(b, 0);
    }
    out[t] = in[t];
}
KERNEL(abandon, 0)
KERNEL(abandon, 1)
