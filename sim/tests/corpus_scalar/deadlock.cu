// Waits that never end.

__device__ __forceinline__ void take(unsigned* lock) {
    while (atomicCAS(lock, 0u, 1u) != 0u) {} //!
    __threadfence();
}
__device__ __forceinline__ void give(unsigned* lock) {
    __threadfence();
    atomicExch(lock, 0u);
}

//@ grid=2 block=1 args=buf:4:zeros
extern "C" __global__ void lock_order_ok(unsigned* s) {
    for (int i = 0; i < 50; ++i) {
        take(s);
        take(s + 1);
        s[2] += 1;
        give(s + 1);
        give(s);
    }
}
//@ grid=2 block=1 args=buf:4:zeros kind=deadlock varies some
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

// More blocks than fit: resident blocks wait for a block that cannot start.
//@ grid=100 block=32 smem=120000 args=buf:1:zeros
extern "C" __global__ void resident_ok(volatile unsigned* n) {
    if (threadIdx.x == 0) {
        atomicAdd(const_cast<unsigned*>(n), 1u);
        while (*n < gridDim.x) {}
    }
}
//@ grid=140 block=32 smem=120000 args=buf:1:zeros kind=deadlock
extern "C" __global__ void resident_bug(volatile unsigned* n) {
    if (threadIdx.x == 0) {
        atomicAdd(const_cast<unsigned*>(n), 1u);
        while (*n < gridDim.x) {} //!
    }
}

//@ grid=1 block=32 args=buf:1:zeros,buf:32:zeros
extern "C" __global__ void same_warp_ok(volatile unsigned* flag, unsigned* out) {
    if (threadIdx.x == 0) {
        *flag = 1;
    } else {
        while (*flag == 0) {}
    }
    out[threadIdx.x] = 1;
}
//@ grid=1 block=32 args=buf:1:zeros,buf:32:zeros kind=deadlock
extern "C" __global__ void same_warp_bug(volatile unsigned* flag, unsigned* out) {
    if (threadIdx.x == 0) {
        *flag = 2;
    } else {
        while (*flag != 1) {} //!
    }
    out[threadIdx.x] = 1;
}

// Lane 0 holds the lock and waits for the other lanes, which wait for the lock.
//@ grid=1 block=32 args=buf:2:zeros
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
//@ grid=1 block=32 args=buf:2:zeros kind=deadlock
extern "C" __global__ void lock_in_warp_bug(unsigned* s) {
    while (atomicCAS(s, 0u, 1u) != 0u) {} //!
    __threadfence();
    s[1] += 1;
    __syncwarp(); //!
    __threadfence();
    atomicExch(s, 0u);
}

//@ grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void left_ok(unsigned* out) {
    if (threadIdx.x >= 16) return;
    __syncwarp(0xffff);
    out[threadIdx.x] = 1;
}
//@ grid=2 block=64 args=buf:1:zeros,buf:128:zeros kind=deadlock
extern "C" __global__ void barrier_and_flag_bug(volatile unsigned* flag, unsigned* out) {
    if (threadIdx.x == 40) while (*flag == 0) {} //!
    __syncthreads(); //!
    if (threadIdx.x == 0) *flag = 1;
    out[blockIdx.x * 64 + threadIdx.x] = 1;
}
//@ grid=2 block=64 args=buf:1:zeros,buf:128:zeros
extern "C" __global__ void barrier_and_flag_ok(volatile unsigned* flag, unsigned* out) {
    if (threadIdx.x == 0) *flag = 1;
    if (threadIdx.x == 40) while (*flag == 0) {}
    __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = 1;
}
