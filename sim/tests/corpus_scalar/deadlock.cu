// Waits that never end.

__device__ __forceinline__ void take(unsigned* lock) {
    while (atomicCAS(lock, 0u, 1u) != 0u) {} //!
    __threadfence();
}
__device__ __forceinline__ void give(unsigned* lock) {
    __threadfence();
    atomicExch(lock, 0u);
}

//@ launch: grid=2 block=1 args=buf:4:zeros
extern "C" __global__ void lock_order_ok(unsigned* s) {
    for (int i = 0; i < 50; ++i) {
        take(s);
        take(s + 1);
        s[2] += 1;
        give(s + 1);
        give(s);
    }
}
//@ launch: grid=2 block=1 args=buf:4:zeros finding=deadlock varies some
extern "C" __global__ void lock_order_bug(unsigned* s) {
    unsigned first = blockIdx.x & 1;
    for (int i = 0; i < 50; ++i) {
        take(s + first);
        take(s + (first ^ 1));
        s[2] += 1;
        give(s + (first ^ 1));
        give(s + first);
    }
}

// The grid has more blocks than fit on the GPU: resident blocks wait for a block that cannot start.
//@ launch: grid=100 block=32 dynamic_shared=120000 args=buf:1:zeros
extern "C" __global__ void resident_ok(volatile unsigned* n) {
    if (threadIdx.x == 0) {
        atomicAdd(const_cast<unsigned*>(n), 1u);
        while (*n < gridDim.x) {}
    }
}
//@ launch: grid=140 block=32 dynamic_shared=120000 args=buf:1:zeros finding=deadlock
extern "C" __global__ void resident_bug(volatile unsigned* n) {
    if (threadIdx.x == 0) {
        atomicAdd(const_cast<unsigned*>(n), 1u);
        while (*n < gridDim.x) {} //!
    }
}

//@ launch: grid=1 block=32 args=buf:1:zeros,buf:32:zeros
extern "C" __global__ void same_warp_ok(volatile unsigned* flag, unsigned* out) {
    if (threadIdx.x == 0) {
        *flag = 1;
    } else {
        while (*flag == 0) {}
    }
    out[threadIdx.x] = 1;
}
//@ launch: grid=1 block=32 args=buf:1:zeros,buf:32:zeros finding=deadlock
extern "C" __global__ void same_warp_bug(volatile unsigned* flag, unsigned* out) {
    if (threadIdx.x == 0) {
        *flag = 2;
    } else {
        while (*flag != 1) {} //!
    }
    out[threadIdx.x] = 1;
}

// Lane 0 holds the lock and waits for the other lanes, which wait for the lock.
//@ launch: grid=1 block=32 args=buf:2:zeros
extern "C" __global__ void lock_in_warp_ok(unsigned* s) {
    bool done = false;
    while (!done) {
        if (atomicCAS(s, 0u, 1u) == 0u) {
            __threadfence();
            s[1] += 1;
            __threadfence();
            atomicExch(s, 0u);
            done = true;
        }
    }
}
//@ launch: grid=1 block=32 args=buf:2:zeros finding=deadlock
extern "C" __global__ void lock_in_warp_bug(unsigned* s) {
    while (atomicCAS(s, 0u, 1u) != 0u) {} //!
    __threadfence();
    s[1] += 1;
    __syncwarp(); //!
    __threadfence();
    atomicExch(s, 0u);
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void left_ok(unsigned* out) {
    if (threadIdx.x >= 16) return;
    __syncwarp(0xffff);
    out[threadIdx.x] = 1;
}
//@ launch: grid=2 block=64 args=buf:1:zeros,buf:128:zeros finding=deadlock
extern "C" __global__ void barrier_and_flag_bug(volatile unsigned* flag, unsigned* out) {
    if (threadIdx.x == 40) while (*flag == 0) {} //!
    __syncthreads(); //!
    if (threadIdx.x == 0) *flag = 1;
    out[blockIdx.x * 64 + threadIdx.x] = 1;
}
//@ launch: grid=2 block=64 args=buf:1:zeros,buf:128:zeros
extern "C" __global__ void barrier_and_flag_ok(volatile unsigned* flag, unsigned* out) {
    if (threadIdx.x == 0) *flag = 1;
    if (threadIdx.x == 40) while (*flag == 0) {}
    __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = 1;
}
