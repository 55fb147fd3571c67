// Barriers that some threads do not reach, wrong thread counts, and waits that never end.
#define BAR_SYNC(id, n) asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(n) : "memory")
#define BAR_ARRIVE(id, n) asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(n) : "memory")

//@ launch: grid=1 block=64 args=buf:64:zeros,u32=32
extern "C" __global__ void half_warp_ok(unsigned* out, unsigned n) {
    __shared__ unsigned s[64];
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    if (threadIdx.x < n) out[threadIdx.x] = s[63 - threadIdx.x];
}
//@ launch: grid=1 block=64 args=buf:64:zeros,u32=16 finding=barrier
extern "C" __global__ void half_warp_bug(unsigned* out, unsigned n) {
    __shared__ unsigned s[64];
    s[threadIdx.x] = threadIdx.x;
    if (threadIdx.x < n) {
        __syncthreads(); //!
        out[threadIdx.x] = s[threadIdx.x];
    }
    s[threadIdx.x] = out[threadIdx.x] + 1;
    __syncwarp();
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}

//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void else_ok(unsigned* out) {
    if (threadIdx.x < 32) {
        out[threadIdx.x] = 1;
        __syncthreads();
    } else {
        __syncthreads();
        out[threadIdx.x] = out[threadIdx.x - 32];
    }
}
//@ launch: grid=1 block=64 args=buf:64:zeros finding=barrier
extern "C" __global__ void else_bug(unsigned* out) {
    if (threadIdx.x & 1) {
        out[threadIdx.x] = 1;
        __syncthreads(); //!
    } else {
        __syncthreads(); //!
        out[threadIdx.x] = 2;
    }
}

//@ launch: grid=2 block=64 args=buf:128:zeros,u32=70
extern "C" __global__ void early_return_ok(unsigned* out, unsigned n) {
    unsigned i = blockIdx.x * 64 + threadIdx.x;
    if (i >= n) return;
    __shared__ unsigned s[64];
    s[threadIdx.x] = i;
    __syncthreads();
    out[i] = s[threadIdx.x ^ 1];
}
//@ launch: grid=2 block=64 args=buf:128:zeros,u32=70 finding=barrier
extern "C" __global__ void early_return_bug(unsigned* out, unsigned n) {
    unsigned i = blockIdx.x * 64 + threadIdx.x;
    __shared__ unsigned s[64];
    if (i < n) {
        s[threadIdx.x] = i;
        __syncthreads(); //!
        out[i] = s[threadIdx.x ^ 1];
    }
    __syncthreads(); //!
}

//@ launch: grid=1 block=96 args=buf:96:zeros
extern "C" __global__ void count_ok(unsigned* out) {
    __shared__ unsigned s[96];
    s[threadIdx.x] = threadIdx.x;
    if (threadIdx.x < 64) {
        BAR_SYNC(1, 64);
        out[threadIdx.x] = s[63 - threadIdx.x];
    }
}
//@ launch: grid=1 block=96 args=buf:96:zeros finding=barrier,deadlock
extern "C" __global__ void count_bug(unsigned* out) {
    __shared__ unsigned s[96];
    s[threadIdx.x] = threadIdx.x;
    if (threadIdx.x < 64) {
        BAR_SYNC(1, 96); //!
        out[threadIdx.x] = s[63 - threadIdx.x];
    }
}

//@ launch: grid=1 block=96 args=buf:96:zeros
extern "C" __global__ void count_low_ok(unsigned* out) {
    __shared__ unsigned s[96];
    s[threadIdx.x] = threadIdx.x;
    BAR_SYNC(1, 96);
    out[threadIdx.x] = s[95 - threadIdx.x];
}
//@ launch: grid=1 block=96 args=buf:96:zeros finding=barrier,deadlock,race,uninitialized
extern "C" __global__ void count_low_bug(unsigned* out) {
    __shared__ unsigned s[96];
    s[threadIdx.x] = threadIdx.x; //!
    BAR_SYNC(1, 64); //!
    out[threadIdx.x] = s[95 - threadIdx.x]; //!
}

//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void mismatch_ok(unsigned* out) {
    __shared__ unsigned s[64];
    s[threadIdx.x] = threadIdx.x;
    if (threadIdx.x < 32) {
        BAR_SYNC(2, 64);
    } else {
        BAR_SYNC(2, 64);
    }
    out[threadIdx.x] = s[63 - threadIdx.x];
}
//@ launch: grid=1 block=64 args=buf:64:zeros finding=barrier
extern "C" __global__ void mismatch_bug(unsigned* out) {
    if (threadIdx.x < 32) {
        BAR_SYNC(2, 64); //!
    } else {
        BAR_SYNC(2, 32); //!
    }
    out[threadIdx.x] = 1;
}

//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void two_ids_ok(unsigned* out) {
    BAR_SYNC(1, 64);
    BAR_SYNC(2, 64);
    out[threadIdx.x] = 1;
}
//@ launch: grid=1 block=64 args=buf:64:zeros finding=deadlock
extern "C" __global__ void two_ids_bug(unsigned* out) {
    if (threadIdx.x < 32) {
        BAR_SYNC(1, 64); //!
        BAR_SYNC(2, 64); //!
    } else {
        BAR_SYNC(2, 64); //!
        BAR_SYNC(1, 64); //!
    }
    out[threadIdx.x] = 1;
}

//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void bad_count_ok(unsigned* out) {
    BAR_SYNC(3, 64);
    out[threadIdx.x] = 1;
}
//@ launch: grid=1 block=64 args=buf:64:zeros finding=barrier
extern "C" __global__ void bad_count_bug(unsigned* out) {
    BAR_SYNC(3, 48); //!
    out[threadIdx.x] = 1;
}

// Warps are producer and consumer for each other: one arrives at a barrier (bar.arrive), the other waits for it.
//@ launch: grid=1 block=64 args=buf:128:zeros
extern "C" __global__ void producer_ok(unsigned* out) {
    __shared__ unsigned s[32];
    unsigned t = threadIdx.x & 31;
    for (unsigned i = 0; i < 4; ++i) {
        if (threadIdx.x < 32) {
            if (i > 0) BAR_SYNC(2, 64);
            s[t] = i * 32 + t;
            BAR_ARRIVE(1, 64);
        } else {
            BAR_SYNC(1, 64);
            out[i * 32 + t] = s[31 - t];
            if (i < 3) BAR_ARRIVE(2, 64);
        }
    }
}
//@ launch: grid=1 block=64 args=buf:128:zeros finding=race,barrier varies
extern "C" __global__ void producer_bug(unsigned* out) {
    __shared__ unsigned s[32];
    unsigned t = threadIdx.x & 31;
    for (unsigned i = 0; i < 4; ++i) {
        if (threadIdx.x < 32) {
            s[t] = i * 32 + t; //!
            BAR_ARRIVE(1, 64); //!
        } else {
            BAR_SYNC(1, 64); //!
            out[i * 32 + t] = s[31 - t]; //!
        }
    }
}

//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void arrive_ok(unsigned* out) {
    __shared__ unsigned s[32];
    if (threadIdx.x < 32) {
        s[threadIdx.x] = threadIdx.x;
        BAR_ARRIVE(1, 64);
    } else {
        BAR_SYNC(1, 64);
        out[threadIdx.x] = s[63 - threadIdx.x];
    }
}
//@ launch: grid=1 block=64 args=buf:64:zeros finding=barrier,deadlock
extern "C" __global__ void arrive_bug(unsigned* out) {
    __shared__ unsigned s[32];
    if (threadIdx.x < 32) {
        s[threadIdx.x] = threadIdx.x;
        if (threadIdx.x > 31) BAR_ARRIVE(1, 64);
    } else {
        BAR_SYNC(1, 64); //!
        out[threadIdx.x] = s[63 - threadIdx.x];
    }
}

//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void reduce_ok(unsigned* out) {
    out[threadIdx.x] = __syncthreads_count(threadIdx.x % 3 == 0) + 100 * __syncthreads_and(threadIdx.x < 64) + 1000 * __syncthreads_or(threadIdx.x == 5);
}
//@ launch: grid=1 block=64 args=buf:64:zeros finding=barrier
extern "C" __global__ void reduce_bug(unsigned* out) {
    unsigned n = 0;
    if (threadIdx.x != 40) n = __syncthreads_count(threadIdx.x % 3 == 0); //!
    out[threadIdx.x] = n;
}

// __syncwarp with a full member mask in code that some lanes do not reach.
//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void member_mask_ok(unsigned* out) {
    unsigned v = threadIdx.x;
    if (threadIdx.x < 8) v = __reduce_add_sync(0xff, v);
    out[threadIdx.x] = v;
}
//@ launch: grid=1 block=32 args=buf:32:zeros finding=barrier
extern "C" __global__ void member_mask_bug(unsigned* out) {
    unsigned v = threadIdx.x;
    if (threadIdx.x < 8) v = __reduce_add_sync(~0u, v); //!
    out[threadIdx.x] = v;
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void not_a_member_ok(unsigned* out) {
    unsigned v = threadIdx.x;
    if (threadIdx.x < 16) v = __shfl_sync(0xffff, v, 3);
    out[threadIdx.x] = v;
}
//@ launch: grid=1 block=32 args=buf:32:zeros finding=barrier
extern "C" __global__ void not_a_member_bug(unsigned* out) {
    unsigned v = threadIdx.x;
    if (threadIdx.x < 16) v = __shfl_sync(0xff, v, 3); //!
    out[threadIdx.x] = v;
}
