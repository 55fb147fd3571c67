// Kernels that each use one family of instructions; their results are known.
#include <cstdio>
struct Params { int a; float b; unsigned long long c; unsigned char d[5]; short e; };

//@ launch: grid=1 block=32 args=buf:64:zeros,buf:64:zeros
extern "C" __global__ void narrow(unsigned char* bytes, int* out) {
    unsigned t = threadIdx.x;
    bytes[t] = 0x80 + 5 * t;
    reinterpret_cast<unsigned short*>(bytes + 64)[t] = 0x7ff0 + 3 * t;
    __syncwarp();
    out[t] = reinterpret_cast<signed char*>(bytes)[31 - t] + 1000 * bytes[31 - t];
    out[32 + t] = reinterpret_cast<short*>(bytes + 64)[31 - t] * 3 + reinterpret_cast<unsigned short*>(bytes + 64)[t];
}

//@ launch: grid=1 block=32 args=buf:128:arange,buf:128:zeros
extern "C" __global__ void vectors(const float* in, float* out) {
    unsigned t = threadIdx.x;
    float4 v = __ldg(reinterpret_cast<const float4*>(in) + t);
    float2 w = __ldcs(reinterpret_cast<const float2*>(in) + 2 * (31 - t));
    double d = __ldcg(reinterpret_cast<const double*>(in) + t);
    __stcs(reinterpret_cast<float4*>(out) + t, make_float4(v.w + w.x, v.z + w.y, v.y, static_cast<float>(__double_as_longlong(d) >> 52)));
}

__constant__ unsigned constants[8] = {3, 1, 4, 1, 5, 9, 2, 6};
__device__ unsigned long long module_variable[2] = {0x1234567890abcdefull, 7};
//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void spaces(unsigned* out) {
    __shared__ unsigned s[32];
    unsigned local[8], t = threadIdx.x;
    for (unsigned k = 0; k < 8; ++k) local[(k * 5 + t) & 7] = k + t;
    s[t] = 1000 + t;
    __syncwarp();
    const unsigned* p = t % 4 == 0 ? s + t : t % 4 == 1 ? local + t % 8 : t % 4 == 2 ? out : constants + t % 8;
    unsigned where = __isShared(p) + 2 * __isLocal(p) + 4 * __isGlobal(p);
    unsigned v = t % 4 == 2 ? 0 : *p;
    out[t] = v + 10000 * where + static_cast<unsigned>(module_variable[t & 1] >> 60);
}

//@ launch: grid=1 block=4 args=buf:8:zeros,i32=-5,f32=1.5,u64=77,u64=434543264257
extern "C" __global__ void by_value(float* out, Params p) {
    unsigned t = threadIdx.x;
    out[t] = p.a + p.b + p.c + p.d[t] + p.e;
}

//@ launch: grid=2 block=32 args=buf:32:zeros
extern "C" __global__ void atomics(unsigned* m) {
    unsigned t = blockIdx.x * 32 + threadIdx.x;
    atomicAdd(m + 0, t);
    atomicSub(m + 1, 3u);
    atomicMin(reinterpret_cast<int*>(m + 2), 5 - static_cast<int>(t));
    atomicMax(m + 3, t * 7);
    atomicInc(m + 4, 9u);
    atomicDec(m + 5, 9u);
    atomicAnd(m + 6, ~(1u << t % 32));
    atomicOr(m + 7, 1u << t % 29);
    atomicXor(m + 8, t * 0x01010101u);
    atomicAdd(reinterpret_cast<float*>(m + 9), 0.5f);
    atomicAdd(reinterpret_cast<double*>(m + 10), 0.25);
    atomicAdd(reinterpret_cast<unsigned long long*>(m + 12), 1ull << 32);
    atomicMax(reinterpret_cast<long long*>(m + 14), static_cast<long long>(t) << 33);
    atomicCAS(m + 16, 0u, 5u);
    unsigned short* h = reinterpret_cast<unsigned short*>(m + 17);
    unsigned short seen = 0, expect;
    do { expect = seen; seen = atomicCAS(h, expect, static_cast<unsigned short>(expect + 1)); } while (seen != expect);
    unsigned packed = 0x3c003800u;
    asm volatile("red.global.add.noftz.f16x2 [%0], %1;" :: "l"(m + 18), "r"(packed) : "memory");
    packed = 0x3800u;
    asm volatile("{ .reg .b16 o, h; cvt.u16.u32 h, %1; atom.global.add.noftz.f16 o, [%0], h; }" :: "l"(m + 19), "r"(packed) : "memory");
    atomicExch(m + 20, 77u);
    float tiny = __uint_as_float(3u);
    atomicAdd(reinterpret_cast<float*>(m + 21), tiny);
    __shared__ float s;
    if (threadIdx.x == 0) s = 0;
    __syncthreads();
    atomicAdd(&s, tiny);
    __syncthreads();
    if (t == 0) m[22] = __float_as_uint(s);
}

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)
//@ launch: grid=1 block=32 args=buf:16:zeros,buf:64:zeros architecture=sm_90a
extern "C" __global__ void hopper(unsigned* m, unsigned* out) {
    float one = 1.0f, two = 2.0f;
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2}; red.global.add.noftz.bf16x2 [%0+48], %3;" :: "l"(m), "f"(one), "f"(two), "r"(0x3f803f00u) : "memory");
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %1, %1};" :: "l"(m + 4), "f"(one), "f"(two) : "memory");
    unsigned leader, elected;
    asm volatile("{ .reg .pred p; elect.sync %0|p, 0xffffffff; selp.u32 %1, 1, 0, p; }" : "=r"(leader), "=r"(elected));
    out[threadIdx.x] = leader + 10 * elected;
    asm volatile("{ .reg .b128 a, b, c; mov.b128 a, {0, 0}; mov.b128 b, {%1, %1}; atom.global.cas.b128 c, [%0], a, b; }" :: "l"(m + 8), "l"(5ull) : "memory");
}
#endif

//@ launch: grid=1 block=32 args=buf:256:zeros
extern "C" __global__ void shuffles(unsigned* out) {
    unsigned t = threadIdx.x, v = 100 + t;
    out[t] = __shfl_sync(~0u, v, 5 * t);
    out[32 + t] = __shfl_sync(~0u, v, t + 3, 8);
    out[64 + t] = __shfl_up_sync(~0u, v, 3);
    out[96 + t] = __shfl_up_sync(~0u, v, 1, 4);
    out[128 + t] = __shfl_down_sync(~0u, v, 5);
    out[160 + t] = __shfl_down_sync(~0u, v, 2, 16);
    out[192 + t] = __shfl_xor_sync(~0u, v, 9);
    out[224 + t] = __shfl_xor_sync(~0u, v, 12, 8);
}

//@ launch: grid=1 block=32 args=buf:320:zeros
extern "C" __global__ void votes(unsigned* out) {
    unsigned t = threadIdx.x;
    out[t] = __ballot_sync(~0u, t % 3 == 0) + __all_sync(~0u, t < 32) + 2 * __any_sync(~0u, t == 40);
    out[32 + t] = __match_any_sync(~0u, t % 5);
    int all;
    out[64 + t] = __match_all_sync(~0u, 7u, &all) + all;
    out[96 + t] = __match_any_sync(~0u, static_cast<unsigned long long>(t / 8) << 40);
    out[128 + t] = __reduce_add_sync(~0u, t);
    out[160 + t] = __reduce_min_sync(~0u, static_cast<int>(t) - 9);
    out[192 + t] = __reduce_xor_sync(~0u, t * t);
    out[224 + t] = __uni_sync(~0u, t > 40) + 2 * __activemask();
    out[256 + t] = __match_all_sync(~0u, t, &all) + all;
    out[288 + t] = __reduce_or_sync(~0u, 1u << t / 2) + __reduce_and_sync(~0u, t | 32);
}

//@ launch: grid=1 block=32 args=buf:320:zeros
extern "C" __global__ void integers(unsigned* out) {
    unsigned t = threadIdx.x, a = t * 0x9e3779b9u, b = a ^ a >> 7;
    out[t] = __byte_perm(a, b, 0x5a30 + t);
    out[32 + t] = __funnelshift_l(a, b, t) ^ __funnelshift_rc(a, b, t + 5);
    out[64 + t] = __clz(a >> t) + 100 * __ffs(a) + 10000 * __popc(b);
    out[96 + t] = __brev(a);
    out[128 + t] = __umulhi(a, b);
    out[160 + t] = static_cast<unsigned>(__mul64hi(static_cast<long long>(a) << 30, static_cast<long long>(b) << 29));
    out[192 + t] = __dp4a(a, b, 5u);
    out[224 + t] = __sad(static_cast<int>(a), static_cast<int>(b), 3u);
    out[256 + t] = static_cast<unsigned>(static_cast<int>(a) / static_cast<int>(t + 3)) + a % (t + 7);
    out[288 + t] = __vadd2(a, b);
}

//@ launch: grid=1 block=2 args=buf:2:zeros
extern "C" __global__ void prints(unsigned* out) {
    if (threadIdx.x == 1) {
        printf("%d|%5u|%-4x|%s|%c|%%|%lld|%08.3f|%e|%g\n", -3, 42u, 255u, "text", 'q', -5000000000ll, 3.14159, 12345.678, 0.5);
    }
    out[threadIdx.x] = 1;
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void heap(unsigned* out) {
    unsigned* p = static_cast<unsigned*>(malloc(4 * (threadIdx.x + 1)));
    for (unsigned k = 0; k <= threadIdx.x; ++k) p[k] = k;
    unsigned sum = 0;
    for (unsigned k = 0; k <= threadIdx.x; ++k) sum += p[k];
    out[threadIdx.x] = sum;
    free(p);
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void clocks(unsigned* out) {
    long long before = clock64();
    unsigned narrow = clock();
    unsigned v = threadIdx.x;
    for (int k = 0; k < 20; ++k) v = v * 3 + 1;
    out[threadIdx.x] = v;
    long long after = clock64();
    out[threadIdx.x] = after > before && clock() - narrow < 100000u;
}
