// Several blocks access the same global memory.

//@ launch: grid=4 block=32 args=buf:128:zeros
extern "C" __global__ void own_part_ok(unsigned* out) {
    unsigned i = blockIdx.x * 32 + threadIdx.x;
    out[i] = i;
    out[i] += 1;
}
//@ launch: grid=4 block=32 args=buf:128:zeros finding=race varies
extern "C" __global__ void own_part_bug(unsigned* out) {
    unsigned i = blockIdx.x * 31 + threadIdx.x;
    out[i] += i; //!
}

//@ launch: grid=8 block=32 args=buf:1:zeros
extern "C" __global__ void counter_ok(unsigned* out) { atomicAdd(out, 1u); }
//@ launch: grid=8 block=32 args=buf:1:zeros finding=race varies
extern "C" __global__ void counter_bug(unsigned* out) { *out += 1; } //!

//@ launch: grid=4 block=32 args=buf:1:zeros,buf:4:zeros
extern "C" __global__ void atomic_plain_ok(unsigned* n, unsigned* out) {
    if (threadIdx.x == 0) {
        atomicAdd(n, 1u);
        out[blockIdx.x] = atomicAdd(n, 0u) > 0;
    }
}
//@ launch: grid=4 block=32 args=buf:1:zeros,buf:4:zeros finding=race varies
extern "C" __global__ void atomic_plain_bug(unsigned* n, unsigned* out) {
    if (threadIdx.x == 0) {
        atomicAdd(n, 1u); //!
        out[blockIdx.x] = *n > 0; //!
    }
}

// One block passes data to another block through global memory and a flag.
//@ launch: grid=2 block=32 args=buf:32:zeros,buf:1:zeros,buf:32:zeros
extern "C" __global__ void hand_over_ok(unsigned* data, volatile unsigned* flag, unsigned* out) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) *flag = 1;
    } else {
        if (threadIdx.x == 0) while (*flag == 0) {}
        __threadfence();
        __syncthreads();
        out[threadIdx.x] = data[31 - threadIdx.x];
    }
}
//@ launch: grid=2 block=32 args=buf:32:zeros,buf:1:zeros,buf:32:zeros finding=race
extern "C" __global__ void hand_over_bug(unsigned* data, volatile unsigned* flag, unsigned* out) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x; //!
        __syncthreads();
        if (threadIdx.x == 0) *flag = 1;
    } else {
        if (threadIdx.x == 0) while (*flag == 0) {}
        __threadfence();
        __syncthreads();
        out[threadIdx.x] = data[31 - threadIdx.x]; //!
    }
}

//@ launch: grid=2 block=32 args=buf:32:zeros,buf:1:zeros,buf:32:zeros
extern "C" __global__ void release_acquire_ok(unsigned* data, unsigned* flag, unsigned* out) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x;
        __syncthreads();
        if (threadIdx.x == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" :: "l"(flag) : "memory");
    } else {
        unsigned v = 0;
        if (threadIdx.x == 0) do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory"); while (v == 0);
        __syncthreads();
        out[threadIdx.x] = data[31 - threadIdx.x];
    }
}
//@ launch: grid=2 block=32 args=buf:32:zeros,buf:1:zeros,buf:32:zeros finding=race
extern "C" __global__ void release_acquire_bug(unsigned* data, unsigned* flag, unsigned* out) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x; //!
        __syncthreads();
        if (threadIdx.x == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" :: "l"(flag) : "memory");
    } else {
        unsigned v = 0;
        if (threadIdx.x == 0) do asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory"); while (v == 0);
        __syncthreads();
        out[threadIdx.x] = data[31 - threadIdx.x]; //!
    }
}

//@ launch: grid=2 block=32 args=buf:32:zeros,buf:1:zeros,buf:32:zeros
extern "C" __global__ void scope_ok(unsigned* data, unsigned* flag, unsigned* out) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x;
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
        __syncthreads();
        if (threadIdx.x == 0) atomicExch(flag, 1u);
    } else {
        if (threadIdx.x == 0) while (atomicAdd(flag, 0u) == 0) {}
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
        __syncthreads();
        out[threadIdx.x] = data[31 - threadIdx.x];
    }
}
//@ launch: grid=2 block=32 args=buf:32:zeros,buf:1:zeros,buf:32:zeros finding=race
extern "C" __global__ void scope_bug(unsigned* data, unsigned* flag, unsigned* out) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x; //!
        asm volatile("fence.acq_rel.cta;" ::: "memory");
        __syncthreads();
        if (threadIdx.x == 0) atomicExch(flag, 1u);
    } else {
        if (threadIdx.x == 0) while (atomicAdd(flag, 0u) == 0) {}
        asm volatile("fence.acq_rel.cta;" ::: "memory");
        __syncthreads();
        out[threadIdx.x] = data[31 - threadIdx.x]; //!
    }
}

// The flag is read only once, by a plain load.
//@ launch: grid=2 block=1 args=buf:1:zeros,buf:1:zeros varies
extern "C" __global__ void poll_ok(unsigned* flag, unsigned* out) {
    if (blockIdx.x == 0) {
        *reinterpret_cast<volatile unsigned*>(flag) = 1;
    } else {
        *out = *reinterpret_cast<volatile unsigned*>(flag);
    }
}
//@ launch: grid=2 block=1 args=buf:1:zeros,buf:1:zeros finding=race varies
extern "C" __global__ void poll_bug(unsigned* flag, unsigned* out) {
    if (blockIdx.x == 0) {
        *reinterpret_cast<volatile unsigned*>(flag) = 1; //!
    } else {
        *out = *flag; //!
    }
}

// The last block to finish sums up the results of all blocks.
//@ launch: grid=6 block=32 args=buf:192:arange,buf:6:zeros,buf:1:zeros,buf:1:zeros
extern "C" __global__ void last_block_ok(const float* in, float* partial, unsigned* done, float* out) {
    __shared__ bool last;
    float v = in[blockIdx.x * 32 + threadIdx.x];
    for (int d = 16; d > 0; d >>= 1) v += __shfl_down_sync(~0u, v, d);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = v;
        __threadfence();
        last = atomicAdd(done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last) {
        __threadfence();
        if (threadIdx.x == 0) {
            float sum = 0;
            for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
            *out = sum;
        }
    }
}
//@ launch: grid=6 block=32 args=buf:192:arange,buf:6:zeros,buf:1:zeros,buf:1:zeros finding=race
extern "C" __global__ void last_block_bug(const float* in, float* partial, unsigned* done, float* out) {
    __shared__ bool last;
    float v = in[blockIdx.x * 32 + threadIdx.x];
    for (int d = 16; d > 0; d >>= 1) v += __shfl_down_sync(~0u, v, d);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = v; //!
        last = atomicAdd(done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last) {
        if (threadIdx.x == 0) {
            float sum = 0;
            for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i]; //!
            *out = sum;
        }
    }
}

// A barrier of the whole grid. The kernels below separate their two steps by it.
__device__ __forceinline__ void grid_barrier(unsigned* arrived, unsigned phase, bool fences) {
    if (fences) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(arrived, 1u);
        while (*reinterpret_cast<volatile unsigned*>(arrived) < gridDim.x * phase) {}
        if (fences) __threadfence();
    }
    __syncthreads();
}
//@ launch: grid=8 block=64 args=buf:512:arange,buf:512:zeros,buf:1:zeros
extern "C" __global__ void grid_barrier_ok(float* a, float* b, unsigned* arrived) {
    unsigned i = blockIdx.x * 64 + threadIdx.x;
    for (unsigned step = 0; step < 2; ++step) {
        b[i] = a[511 - i] + 1;
        grid_barrier(arrived, 2 * step + 1, true);
        a[i] = b[i ^ 64];
        grid_barrier(arrived, 2 * step + 2, true);
    }
}
//@ launch: grid=8 block=64 args=buf:512:arange,buf:512:zeros,buf:1:zeros finding=race
extern "C" __global__ void grid_barrier_bug(float* a, float* b, unsigned* arrived) {
    unsigned i = blockIdx.x * 64 + threadIdx.x;
    for (unsigned step = 0; step < 2; ++step) {
        b[i] = a[511 - i] + 1; //!
        grid_barrier(arrived, 2 * step + 1, false);
        a[i] = b[i ^ 64]; //!
        grid_barrier(arrived, 2 * step + 2, false);
    }
}

// Blocks take turns: each adds its part after the previous block.
//@ launch: grid=8 block=32 args=buf:256:arange,buf:32:zeros,buf:1:zeros
extern "C" __global__ void ordered_ok(const float* in, float* out, volatile unsigned* turn) {
    if (threadIdx.x == 0) while (*turn != blockIdx.x) {}
    __syncthreads();
    __threadfence();
    out[threadIdx.x] += in[blockIdx.x * 32 + threadIdx.x];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *turn = blockIdx.x + 1;
}
//@ launch: grid=8 block=32 args=buf:256:arange,buf:32:zeros,buf:1:zeros finding=race
extern "C" __global__ void ordered_bug(const float* in, float* out, volatile unsigned* turn) {
    if (threadIdx.x == 0) while (*turn != blockIdx.x) {}
    __threadfence();
    out[threadIdx.x] += in[blockIdx.x * 32 + threadIdx.x]; //!
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *turn = blockIdx.x + 1;
}

//@ launch: grid=4 block=32 args=buf:2:zeros
extern "C" __global__ void lock_ok(unsigned* state) {
    if (threadIdx.x == 0) {
        while (atomicCAS(state, 0u, 1u) != 0u) __nanosleep(100);
        __threadfence();
        state[1] += 1;
        __threadfence();
        atomicExch(state, 0u);
    }
}
//@ launch: grid=4 block=32 args=buf:2:zeros finding=race varies
extern "C" __global__ void lock_bug(unsigned* state) {
    if (threadIdx.x == 0) {
        while (atomicCAS(state, 0u, 1u) != 0u) __nanosleep(100); //!
        __threadfence();
        state[1] += 1; //!
        *state = 0; //!
    }
}

// A polling loop whose registers differ in every iteration, so that the simulator can hardly detect that it polls.
//@ launch: grid=4 block=32 args=buf:2:zeros
extern "C" __global__ void backoff_ok(unsigned* state) {
    if (threadIdx.x == 0) {
        unsigned wait = 8;
        unsigned long long tries = 0;
        while (*reinterpret_cast<volatile unsigned*>(state) != gridDim.x - 1 - blockIdx.x) {
            __nanosleep(wait);
            wait = wait < 1024 ? 2 * wait : wait;
            tries += 1;
        }
        __threadfence();
        state[1] += tries < 1ull << 60;
        __threadfence();
        atomicAdd(state, 1u);
    }
}
