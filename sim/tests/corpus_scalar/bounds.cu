// Out-of-bounds and misaligned accesses. `//@ launch:` gives the launch of the kernel below it
// and the kind of its finding; `//!` marks the lines that the finding may name.
struct __align__(16) Quad { float x, y, z, w; };
struct __align__(8) Pair { float x, y; };

//@ launch: grid=2 block=64 args=buf:100:zeros,u32=100
extern "C" __global__ void global_store_ok(float* out, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = 1.0f;
}
//@ launch: grid=2 block=64 args=buf:100:zeros,u32=100 finding=out-of-bounds
extern "C" __global__ void global_store_bug(float* out, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) out[i] = 1.0f; //!
}

//@ launch: grid=1 block=64 args=buf:64:arange,buf:64:zeros
extern "C" __global__ void global_load_ok(const float* in, float* out) {
    unsigned i = threadIdx.x;
    out[i] = i > 0 ? in[i - 1] : 0.0f;
}
//@ launch: grid=1 block=64 args=buf:64:arange,buf:64:zeros finding=out-of-bounds
extern "C" __global__ void global_load_bug(const float* in, float* out) {
    int i = threadIdx.x;
    out[i] = in[i - 1]; //!
}

//@ launch: grid=1 block=64 args=buf:128:arange,buf:128:zeros,i32=1
extern "C" __global__ void between_buffers_ok(const float* in, float* out, int stride) {
    out[threadIdx.x] = in[threadIdx.x * stride];
}
//@ launch: grid=1 block=64 args=buf:128:arange,buf:128:zeros,i32=1024 finding=out-of-bounds
extern "C" __global__ void between_buffers_bug(const float* in, float* out, int stride) {
    out[threadIdx.x] = in[threadIdx.x * stride]; //!
}

//@ launch: grid=1 block=8 args=buf:30:zeros
extern "C" __global__ void vector_end_ok(float* out) {
    unsigned i = threadIdx.x;
    if (4 * i + 4 <= 30) {
        reinterpret_cast<Quad*>(out)[i] = Quad{1, 2, 3, 4};
    } else {
        for (unsigned k = 4 * i; k < 30; ++k) out[k] = 1;
    }
}
//@ launch: grid=1 block=8 args=buf:30:zeros finding=out-of-bounds
extern "C" __global__ void vector_end_bug(float* out) {
    unsigned i = threadIdx.x;
    reinterpret_cast<Quad*>(out)[i] = Quad{1, 2, 3, 4}; //!
}

//@ launch: grid=1 block=64 args=buf:64:zeros,i32=0
extern "C" __global__ void shared_static_ok(float* out, int shift) {
    __shared__ float s[64];
    s[threadIdx.x + shift] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = s[63 - threadIdx.x];
}
//@ launch: grid=1 block=64 args=buf:64:zeros,i32=0 finding=out-of-bounds
extern "C" __global__ void shared_static_bug(float* out, int shift) {
    __shared__ float s[64];
    s[threadIdx.x + shift] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = s[64 - threadIdx.x + shift]; //!
}

//@ launch: grid=1 block=64 args=buf:64:zeros,i32=0
extern "C" __global__ void shared_neighbour_ok(float* out, int shift) {
    __shared__ float a[64];
    __shared__ float b[64];
    a[threadIdx.x + shift] = threadIdx.x;
    b[threadIdx.x + shift] = 2 * threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = a[63 - threadIdx.x] + b[63 - threadIdx.x];
}
//@ launch: grid=1 block=64 args=buf:64:zeros,i32=1 finding=out-of-bounds
extern "C" __global__ void shared_neighbour_bug(float* out, int shift) {
    __shared__ float a[64];
    __shared__ float b[64];
    b[threadIdx.x] = 2 * threadIdx.x;
    __syncthreads();
    a[threadIdx.x + shift] = threadIdx.x; //!
    __syncthreads();
    out[threadIdx.x] = (threadIdx.x ? a[threadIdx.x] : 0) + b[63 - threadIdx.x];
}

//@ launch: grid=1 block=64 dynamic_shared=256 args=buf:64:zeros,i32=0
extern "C" __global__ void shared_dynamic_ok(float* out, int shift) {
    extern __shared__ float d[];
    d[threadIdx.x + shift] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = d[63 - threadIdx.x];
}
//@ launch: grid=1 block=64 dynamic_shared=252 args=buf:64:zeros,i32=0 finding=out-of-bounds
extern "C" __global__ void shared_dynamic_bug(float* out, int shift) {
    extern __shared__ float d[];
    d[threadIdx.x + shift] = threadIdx.x; //!
    __syncthreads();
    out[threadIdx.x] = d[(63 - threadIdx.x) & 31];
}

//@ launch: grid=1 block=32 args=buf:32:zeros,i32=1
extern "C" __global__ void shared_negative_ok(float* out, int shift) {
    __shared__ float s[32];
    s[threadIdx.x] = 1;
    __syncwarp();
    out[threadIdx.x] = threadIdx.x >= shift ? s[threadIdx.x - shift] : 0;
}
//@ launch: grid=1 block=32 args=buf:32:zeros,i32=1 finding=out-of-bounds
extern "C" __global__ void shared_negative_bug(float* out, int shift) {
    __shared__ float s[32];
    s[threadIdx.x] = 1;
    __syncwarp();
    out[threadIdx.x] = s[(int)threadIdx.x - shift]; //!
}

//@ launch: grid=1 block=32 args=buf:32:zeros,i32=7
extern "C" __global__ void local_ok(float* out, int n) {
    float a[8];
    for (int i = 0; i < 8; ++i) a[(i * 3 + n) & 7] = i;
    out[threadIdx.x] = a[(threadIdx.x + n) & 7];
}
//@ launch: grid=1 block=32 args=buf:32:zeros,i32=7 finding=out-of-bounds
extern "C" __global__ void local_bug(float* out, int n) {
    float a[8];
    for (int i = 0; i < 8; ++i) a[(i * 3 + n) & 7] = i;
    out[threadIdx.x] = a[(threadIdx.x & 7) + n]; //!
}

//@ launch: grid=1 block=32 args=buf:8:zeros,u32=8
extern "C" __global__ void atomic_ok(unsigned* out, unsigned n) { atomicAdd(out + threadIdx.x % n, 1u); }
//@ launch: grid=1 block=32 args=buf:8:zeros,u32=9 finding=out-of-bounds
extern "C" __global__ void atomic_bug(unsigned* out, unsigned n) { atomicAdd(out + threadIdx.x % n, 1u); } //!

__constant__ float table[4] = {1, 2, 3, 4};
//@ launch: grid=1 block=4 args=buf:4:zeros,i32=0
extern "C" __global__ void constant_read_ok(float* out, int i) { out[threadIdx.x] = table[threadIdx.x + i]; }
//@ launch: grid=1 block=4 args=buf:4:zeros,i32=1 finding=out-of-bounds
extern "C" __global__ void constant_read_bug(float* out, int i) { out[threadIdx.x] = table[threadIdx.x + i]; } //!

//@ launch: grid=1 block=1 args=buf:4:zeros,i32=0
extern "C" __global__ void constant_write_ok(float* out, int i) {
    float* p = i ? const_cast<float*>(table) : out;
    p[0] = 3;
}
//@ launch: grid=1 block=1 args=buf:4:zeros,i32=1 finding=out-of-bounds
extern "C" __global__ void constant_write_bug(float* out, int i) {
    float* p = i ? const_cast<float*>(table) : out;
    p[0] = 3; //!
}

//@ launch: grid=1 block=8 args=buf:64:arange,buf:64:zeros,i32=0
extern "C" __global__ void vector_misaligned_ok(const float* in, Quad* out, int shift) {
    out[threadIdx.x] = *reinterpret_cast<const Quad*>(in + 4 * threadIdx.x + shift);
}
//@ launch: grid=1 block=8 args=buf:64:arange,buf:64:zeros,i32=1 finding=misaligned
extern "C" __global__ void vector_misaligned_bug(const float* in, Quad* out, int shift) {
    out[threadIdx.x] = *reinterpret_cast<const Quad*>(in + 4 * threadIdx.x + shift); //!
}

//@ launch: grid=1 block=8 args=buf:64:zeros,i32=2
extern "C" __global__ void shared_misaligned_ok(float* out, int shift) {
    __shared__ __align__(16) float s[64];
    for (int i = threadIdx.x; i < 64; i += 8) s[i] = i;
    __syncwarp(0xff);
    Pair p = *reinterpret_cast<const Pair*>(s + 2 * threadIdx.x + shift);
    out[threadIdx.x] = p.x + p.y;
}
//@ launch: grid=1 block=8 args=buf:64:zeros,i32=1 finding=misaligned
extern "C" __global__ void shared_misaligned_bug(float* out, int shift) {
    __shared__ __align__(16) float s[64];
    for (int i = threadIdx.x; i < 64; i += 8) s[i] = i;
    __syncwarp(0xff);
    Pair p = *reinterpret_cast<const Pair*>(s + 2 * threadIdx.x + shift); //!
    out[threadIdx.x] = p.x + p.y;
}

__device__ __noinline__ float read_at(const char* bytes, int at) { return *reinterpret_cast<const float*>(bytes + at); } //!
//@ launch: grid=1 block=8 args=buf:64:arange,buf:64:zeros,i32=4
extern "C" __global__ void generic_misaligned_ok(const float* in, float* out, int at) {
    __shared__ float s[64];
    for (int i = threadIdx.x; i < 64; i += 8) s[i] = i;
    __syncwarp(0xff);
    const char* bytes = reinterpret_cast<const char*>(threadIdx.x & 1 ? in : s);
    out[threadIdx.x] = read_at(bytes, at);
}
//@ launch: grid=1 block=8 args=buf:64:arange,buf:64:zeros,i32=2 finding=misaligned
extern "C" __global__ void generic_misaligned_bug(const float* in, float* out, int at) {
    __shared__ float s[64];
    for (int i = threadIdx.x; i < 64; i += 8) s[i] = i;
    __syncwarp(0xff);
    const char* bytes = reinterpret_cast<const char*>(threadIdx.x & 1 ? in : s);
    out[threadIdx.x] = read_at(bytes, at);
}

// The function is defined in this file, so a finding names its line in the function, although it is inlined.
__device__ __forceinline__ void put(float* out, unsigned at) {
    out[at] = 1; //!
}
//@ launch: grid=1 block=32 args=buf:32:zeros,u32=0
extern "C" __global__ void inlined_ok(float* out, unsigned shift) {
    put(out, threadIdx.x + shift);
}
//@ launch: grid=1 block=32 args=buf:32:zeros,u32=1 finding=out-of-bounds
extern "C" __global__ void inlined_bug(float* out, unsigned shift) {
    put(out, threadIdx.x + shift);
}

// The functions are defined in a header, so a finding names the line of this file that calls them.
#include "bounds.h"
//@ launch: grid=1 block=32 args=buf:32:zeros,u32=0
extern "C" __global__ void header_ok(float* out, unsigned shift) {
    put_from_header(out, threadIdx.x + shift);
}
//@ launch: grid=1 block=32 args=buf:32:zeros,u32=1 finding=out-of-bounds
extern "C" __global__ void header_bug(float* out, unsigned shift) {
    put_from_header(out, threadIdx.x + shift); //!
}
