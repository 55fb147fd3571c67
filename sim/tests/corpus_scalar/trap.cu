// Traps, assertions and unsupported instructions.
#include <cassert>

//@ launch: grid=1 block=32 args=buf:32:zeros,u32=32
extern "C" __global__ void trap_ok(unsigned* out, unsigned n) {
    if (threadIdx.x >= n) __trap();
    out[threadIdx.x] = 1;
}
//@ launch: grid=1 block=32 args=buf:32:zeros,u32=31 finding=trap
extern "C" __global__ void trap_bug(unsigned* out, unsigned n) {
    if (threadIdx.x >= n) __trap(); //!
    out[threadIdx.x] = 1;
}

//@ launch: grid=2 block=64 args=buf:128:zeros,u32=64
extern "C" __global__ void assert_ok(unsigned* out, unsigned n) {
    assert(threadIdx.x < n);
    __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = 1;
}
//@ launch: grid=2 block=64 args=buf:128:zeros,u32=60 finding=trap varies
extern "C" __global__ void assert_bug(unsigned* out, unsigned n) {
    assert(threadIdx.x < n); //!
    __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = 1;
}

//@ launch: grid=1 block=32 args=buf:32:zeros,u32=0
extern "C" __global__ void unsupported_ok(unsigned* out, unsigned n) {
    if (n) asm volatile("vmad.u32.u32.u32 %0, %0, %0, %0;" : "+r"(out[threadIdx.x]));
    out[threadIdx.x] = 1;
}
//@ launch: grid=1 block=32 args=buf:32:zeros,u32=1 finding=unsupported
extern "C" __global__ void unsupported_bug(unsigned* out, unsigned n) {
    unsigned v = 1;
    if (n) asm volatile("vmad.u32.u32.u32 %0, %0, %0, %0;" : "+r"(v)); //!
    out[threadIdx.x] = v;
}
