// Threads access the same shared memory, with and without synchronisation.

//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void syncthreads_ok(float* out) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = s[63 - threadIdx.x];
}
//@ launch: grid=1 block=64 args=buf:64:zeros finding=race,uninitialized
extern "C" __global__ void syncthreads_bug(float* out) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x; //!
    out[threadIdx.x] = s[63 - threadIdx.x]; //!
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void syncwarp_ok(float* out) {
    __shared__ float s[32];
    s[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = s[31 - threadIdx.x];
}
//@ launch: grid=1 block=32 args=buf:32:zeros finding=race,uninitialized
extern "C" __global__ void syncwarp_bug(float* out) {
    volatile __shared__ float s[32];
    *const_cast<float*>(s + threadIdx.x) = threadIdx.x; //!
    out[threadIdx.x] = *const_cast<float*>(s + 31 - threadIdx.x); //!
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void shuffle_ok(float* out) {
    __shared__ float s[32];
    s[threadIdx.x] = threadIdx.x;
    __syncwarp();
    float v = __shfl_xor_sync(~0u, 1.0f, 1);
    out[threadIdx.x] = s[31 - threadIdx.x] + v;
}
//@ launch: grid=1 block=32 args=buf:32:zeros finding=race,uninitialized
extern "C" __global__ void shuffle_bug(float* out) {
    __shared__ float s[32];
    s[threadIdx.x] = threadIdx.x; //!
    float v = __shfl_xor_sync(~0u, 1.0f, 1);
    unsigned b = __ballot_sync(~0u, threadIdx.x & 1) + __activemask();
    out[threadIdx.x] = s[31 - threadIdx.x] + v + b; //!
}

// A reduction whose last steps rely on the lanes of a warp running in lockstep.
//@ launch: grid=1 block=64 args=buf:64:arange,buf:1:zeros
extern "C" __global__ void warp_reduction_ok(const float* in, float* out) {
    __shared__ float s[64];
    unsigned t = threadIdx.x;
    s[t] = in[t];
    __syncthreads();
    if (t < 32) {
        float v = s[t] + s[t + 32];
        for (int d = 16; d > 0; d >>= 1) v += __shfl_down_sync(~0u, v, d);
        if (t == 0) *out = v;
    }
}
//@ launch: grid=1 block=64 args=buf:64:arange,buf:1:zeros finding=race
extern "C" __global__ void warp_reduction_bug(const float* in, float* out) {
    __shared__ float s[64];
    unsigned t = threadIdx.x;
    s[t] = in[t];
    __syncthreads();
    if (t < 32) s[t] += s[t + 32]; //!
    if (t < 16) s[t] += s[t + 16]; //!
    if (t < 8) s[t] += s[t + 8]; //!
    if (t < 4) s[t] += s[t + 4]; //!
    if (t < 2) s[t] += s[t + 2]; //!
    if (t < 1) *out = s[0] + s[1]; //!
}

//@ launch: grid=1 block=64 args=buf:64:arange,buf:1:zeros
extern "C" __global__ void tree_ok(const float* in, float* out) {
    __shared__ float s[64];
    unsigned t = threadIdx.x;
    s[t] = in[t];
    for (unsigned d = 32; d > 0; d >>= 1) {
        __syncthreads();
        if (t < d) s[t] += s[t + d];
    }
    if (t == 0) *out = s[0];
}
//@ launch: grid=1 block=64 args=buf:64:arange,buf:1:zeros finding=race
extern "C" __global__ void tree_bug(const float* in, float* out) {
    __shared__ float s[64];
    unsigned t = threadIdx.x;
    s[t] = in[t];
    __syncthreads();
    for (unsigned d = 32; d > 0; d >>= 1) {
        if (t < d) s[t] += s[t + d]; //!
    }
    if (t == 0) *out = s[0];
}

//@ launch: grid=1 block=64 args=buf:256:arange,buf:64:zeros
extern "C" __global__ void loop_ok(const float* in, float* out) {
    __shared__ float s[64];
    float sum = 0;
    for (int i = 0; i < 4; ++i) {
        s[threadIdx.x] = in[64 * i + threadIdx.x];
        __syncthreads();
        sum += s[63 - threadIdx.x];
        __syncthreads();
    }
    out[threadIdx.x] = sum;
}
//@ launch: grid=1 block=64 args=buf:256:arange,buf:64:zeros finding=race
extern "C" __global__ void loop_bug(const float* in, float* out) {
    __shared__ float s[64];
    float sum = 0;
    for (int i = 0; i < 4; ++i) {
        s[threadIdx.x] = in[64 * i + threadIdx.x]; //!
        __syncthreads();
        sum += s[63 - threadIdx.x]; //!
    }
    out[threadIdx.x] = sum;
}

//@ launch: grid=1 block=64 args=buf:512:arange,buf:64:zeros
extern "C" __global__ void double_buffer_ok(const float* in, float* out) {
    __shared__ float s[2][64];
    unsigned t = threadIdx.x;
    float sum = 0;
    s[0][t] = in[t];
    for (int i = 0; i < 8; ++i) {
        __syncthreads();
        if (i + 1 < 8) s[(i + 1) & 1][t] = in[64 * (i + 1) + t];
        sum += s[i & 1][63 - t];
    }
    out[t] = sum;
}
//@ launch: grid=1 block=64 args=buf:512:arange,buf:64:zeros finding=race
extern "C" __global__ void double_buffer_bug(const float* in, float* out) {
    __shared__ float s[2][64];
    unsigned t = threadIdx.x;
    float sum = 0;
    s[0][t] = in[t]; //!
    s[1][t] = in[64 + t]; //!
    __syncthreads();
    for (int i = 0; i < 8; i += 2) {
        sum += s[0][63 - t] + s[1][63 - t]; //!
        if (i + 2 < 8) {
            s[0][t] = in[64 * (i + 2) + t]; //!
            s[1][t] = in[64 * (i + 3) + t]; //!
        }
        __syncthreads();
    }
    out[t] = sum;
}

//@ launch: grid=1 block=64 args=buf:1:zeros
extern "C" __global__ void write_write_ok(unsigned* out) {
    __shared__ unsigned winner;
    if (threadIdx.x == 5) winner = threadIdx.x;
    __syncthreads();
    if (threadIdx.x == 0) *out = winner;
}
//@ launch: grid=1 block=64 args=buf:1:zeros finding=race
extern "C" __global__ void write_write_bug(unsigned* out) {
    __shared__ unsigned winner;
    if (threadIdx.x % 5 == 0) winner = threadIdx.x; //!
    __syncthreads();
    if (threadIdx.x == 0) *out = winner;
}

// Several threads store equal values without synchronisation, which gives only a note.
//@ launch: grid=1 block=64 args=buf:64:zeros,u32=7 note=same
extern "C" __global__ void same_value_ok(unsigned* out, unsigned n) {
    __shared__ unsigned flag;
    flag = n;
    __syncthreads();
    out[threadIdx.x] = flag;
}

//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void atomic_plain_ok(unsigned* out) {
    __shared__ unsigned n;
    if (threadIdx.x == 0) n = 0;
    __syncthreads();
    atomicAdd(&n, 1u);
    __syncthreads();
    out[threadIdx.x] = n;
}
//@ launch: grid=1 block=64 args=buf:64:zeros finding=race varies
extern "C" __global__ void atomic_plain_bug(unsigned* out) {
    __shared__ unsigned n;
    if (threadIdx.x == 0) n = 0;
    __syncthreads();
    atomicAdd(&n, 1u); //!
    out[threadIdx.x] = n; //!
}

// Two lanes store the two halves of one word.
//@ launch: grid=1 block=64 args=buf:32:zeros
extern "C" __global__ void halves_ok(unsigned* out) {
    __shared__ unsigned short s[64];
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    if (threadIdx.x < 32) out[threadIdx.x] = reinterpret_cast<unsigned*>(s)[threadIdx.x];
}
//@ launch: grid=1 block=64 args=buf:32:zeros finding=race
extern "C" __global__ void halves_bug(unsigned* out) {
    __shared__ unsigned s[32];
    reinterpret_cast<unsigned short*>(s)[threadIdx.x] = threadIdx.x; //!
    if (threadIdx.x % 2) reinterpret_cast<unsigned short*>(s)[threadIdx.x - 1] = 9; //!
    __syncthreads();
    if (threadIdx.x < 32) out[threadIdx.x] = s[threadIdx.x];
}

// Lanes 0 to 3 in turn broadcast a value to their warp.
//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void broadcast_ok(unsigned* out) {
    __shared__ unsigned s;
    unsigned sum = 0;
    for (unsigned i = 0; i < 4; ++i) {
        if (threadIdx.x == i) s = i + 1;
        __syncwarp();
        sum += s;
        __syncwarp();
    }
    out[threadIdx.x] = sum;
}
//@ launch: grid=1 block=32 args=buf:32:zeros finding=race
extern "C" __global__ void broadcast_bug(unsigned* out) {
    __shared__ unsigned s;
    unsigned sum = 0;
    for (unsigned i = 0; i < 4; ++i) {
        if (threadIdx.x == i) s = i + 1; //!
        __syncwarp();
        sum += s; //!
    }
    out[threadIdx.x] = sum;
}

// Warps synchronise through flags in shared memory.
//@ launch: grid=1 block=64 args=buf:32:zeros
extern "C" __global__ void flag_ok(unsigned* out) {
    __shared__ unsigned data[32];
    __shared__ volatile unsigned flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (threadIdx.x < 32) {
        data[threadIdx.x] = threadIdx.x;
        __syncwarp();
        __threadfence_block();
        if (threadIdx.x == 0) flag = 1;
    } else {
        if (threadIdx.x == 32) while (flag == 0) {}
        __threadfence_block();
        __syncwarp();
        out[threadIdx.x - 32] = data[63 - threadIdx.x];
    }
}
//@ launch: grid=1 block=64 args=buf:32:zeros finding=race
extern "C" __global__ void flag_bug(unsigned* out) {
    __shared__ unsigned data[32];
    __shared__ volatile unsigned flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (threadIdx.x < 32) {
        data[threadIdx.x] = threadIdx.x; //!
        __syncwarp();
        if (threadIdx.x == 0) flag = 1;
    } else {
        if (threadIdx.x == 32) while (flag == 0) {}
        __threadfence_block();
        __syncwarp();
        out[threadIdx.x - 32] = data[63 - threadIdx.x]; //!
    }
}

// A lock within a block.
//@ launch: grid=1 block=64 args=buf:1:zeros
extern "C" __global__ void lock_ok(unsigned* out) {
    __shared__ unsigned lock, n;
    if (threadIdx.x == 0) lock = 0, n = 0;
    __syncthreads();
    while (atomicCAS(&lock, 0u, 1u) != 0u) {}
    __threadfence_block();
    n += 1;
    __threadfence_block();
    atomicExch(&lock, 0u);
    __syncthreads();
    if (threadIdx.x == 0) *out = n;
}
//@ launch: grid=1 block=64 args=buf:1:zeros finding=race
extern "C" __global__ void lock_bug(unsigned* out) {
    __shared__ unsigned lock, n;
    if (threadIdx.x == 0) lock = 0, n = 0;
    __syncthreads();
    while (atomicCAS(&lock, 0u, 1u) != 0u) {}
    n += 1; //!
    atomicExch(&lock, 0u);
    __syncthreads();
    if (threadIdx.x == 0) *out = n;
}
