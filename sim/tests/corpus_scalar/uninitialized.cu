// Reads of uninitialised memory and of undefined registers.

//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void shared_ok(float* out) {
    __shared__ float s[128];
    s[threadIdx.x] = 1;
    s[threadIdx.x + 64] = 2;
    __syncthreads();
    out[threadIdx.x] = s[127 - threadIdx.x];
}
//@ launch: grid=1 block=64 args=buf:64:zeros finding=uninitialized
extern "C" __global__ void shared_bug(float* out) {
    __shared__ float s[128];
    s[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = s[127 - threadIdx.x]; //!
}

//@ launch: grid=2 block=32 dynamic_shared=256 args=buf:64:zeros,u32=64
extern "C" __global__ void shared_ragged_ok(float* out, unsigned n) {
    extern __shared__ float d[];
    for (unsigned i = threadIdx.x; i < n; i += 32) d[i] = i;
    __syncthreads();
    out[blockIdx.x * 32 + threadIdx.x] = d[n - 1 - threadIdx.x];
}
//@ launch: grid=2 block=32 dynamic_shared=256 args=buf:64:zeros,u32=63 finding=uninitialized
extern "C" __global__ void shared_ragged_bug(float* out, unsigned n) {
    extern __shared__ float d[];
    for (unsigned i = threadIdx.x; i < n; i += 32) d[i] = i;
    __syncthreads();
    out[blockIdx.x * 32 + threadIdx.x] = d[63 - threadIdx.x]; //!
}

//@ launch: grid=2 block=32 args=buf:64:uninit,buf:64:zeros
extern "C" __global__ void global_ok(float* scratch, float* out) {
    unsigned i = blockIdx.x * 32 + threadIdx.x;
    scratch[i] = i;
    out[i] = scratch[i];
}
//@ launch: grid=2 block=32 args=buf:64:uninit,buf:64:zeros finding=uninitialized
extern "C" __global__ void global_bug(float* scratch, float* out) {
    unsigned i = blockIdx.x * 32 + threadIdx.x;
    if (i != 40) scratch[i] = i;
    out[i] = scratch[i]; //!
}

//@ launch: grid=1 block=32 args=buf:1:zeros
extern "C" __global__ void global_atomic_ok(unsigned* sum) { atomicAdd(sum, threadIdx.x); }
//@ launch: grid=1 block=32 args=buf:1:uninit finding=uninitialized
extern "C" __global__ void global_atomic_bug(unsigned* sum) { atomicAdd(sum, threadIdx.x); } //!

//@ launch: grid=1 block=32 args=buf:32:zeros,i32=8
extern "C" __global__ void local_ok(float* out, int n) {
    float a[8];
    for (int i = 0; i < n; ++i) a[i & 7] = i;
    out[threadIdx.x] = a[threadIdx.x & 7];
}
//@ launch: grid=1 block=32 args=buf:32:zeros,i32=6 finding=uninitialized
extern "C" __global__ void local_bug(float* out, int n) {
    float a[8];
    for (int i = 0; i < n; ++i) a[i & 7] = i;
    out[threadIdx.x] = a[threadIdx.x & 7]; //!
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void bytes_ok(unsigned* out) {
    __shared__ unsigned s[32];
    unsigned char* b = reinterpret_cast<unsigned char*>(s + threadIdx.x);
    b[0] = 1;
    b[1] = 2;
    b[2] = 3;
    b[3] = 4;
    out[threadIdx.x] = s[threadIdx.x];
}
//@ launch: grid=1 block=32 args=buf:32:zeros finding=uninitialized
extern "C" __global__ void bytes_bug(unsigned* out) {
    __shared__ unsigned s[32];
    unsigned char* b = reinterpret_cast<unsigned char*>(s + threadIdx.x);
    b[0] = 1;
    b[1] = 2;
    b[3] = 4;
    out[threadIdx.x] = s[threadIdx.x]; //!
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void register_store_ok(unsigned* out) {
    unsigned v;
    asm volatile("{ .reg .u32 r; mov.u32 r, 1; add.u32 %0, r, %1; }" : "=r"(v) : "r"(threadIdx.x));
    out[threadIdx.x] = v;
}
//@ launch: grid=1 block=32 args=buf:32:zeros finding=uninitialized
extern "C" __global__ void register_store_bug(unsigned* out) {
    unsigned v;
    asm volatile("{ .reg .u32 r; add.u32 %0, r, %1; }" : "=r"(v) : "r"(threadIdx.x));
    out[threadIdx.x] = v; //!
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void register_branch_ok(unsigned* out) {
    unsigned v;
    asm volatile("{ .reg .u32 r; .reg .pred p; mov.u32 r, 5; mov.u32 %0, 1; setp.eq.u32 p, r, 5; @p bra L%=; mov.u32 %0, 2; L%=: }" : "=r"(v));
    out[threadIdx.x] = v;
}
//@ launch: grid=1 block=32 args=buf:32:zeros finding=uninitialized
extern "C" __global__ void register_branch_bug(unsigned* out) {
    unsigned v;
    asm volatile("{ .reg .u32 r; .reg .pred p; mov.u32 %0, 1; setp.eq.u32 p, r, 5; @p bra L%=; mov.u32 %0, 2; L%=: }" : "=r"(v)); //!
    out[threadIdx.x] = v;
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void register_guard_ok(unsigned* out) {
    asm volatile("{ .reg .pred p; setp.eq.u32 p, %1, 3; @p st.global.u32 [%0], 7; }" :: "l"(out), "r"(threadIdx.x) : "memory");
}
//@ launch: grid=1 block=32 args=buf:32:zeros finding=uninitialized
extern "C" __global__ void register_guard_bug(unsigned* out) {
    asm volatile("{ .reg .pred p; @p st.global.u32 [%0], 7; }" :: "l"(out), "r"(threadIdx.x) : "memory"); //!
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void register_address_ok(unsigned* out) {
    asm volatile("{ .reg .u64 a; mov.u64 a, %0; add.u64 a, a, 16; st.global.u32 [a], %1; }" :: "l"(out + threadIdx.x % 8), "r"(1) : "memory");
}
//@ launch: grid=1 block=32 args=buf:32:zeros finding=uninitialized
extern "C" __global__ void register_address_bug(unsigned* out) {
    asm volatile("{ .reg .u64 a; add.u64 a, a, %0; st.global.u32 [a], %1; }" :: "l"(out), "r"(1) : "memory"); //!
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void shuffle_ok(unsigned* out) {
    unsigned v = threadIdx.x;
    if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffu, v, 1);
    out[threadIdx.x] = v;
}
//@ launch: grid=1 block=32 args=buf:32:zeros finding=uninitialized
extern "C" __global__ void shuffle_bug(unsigned* out) {
    unsigned v = threadIdx.x;
    if (threadIdx.x < 16) v = __shfl_sync(0xffffu, v, 20);
    out[threadIdx.x] = v; //!
}
