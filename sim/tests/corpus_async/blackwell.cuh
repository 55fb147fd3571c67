// Wrappers of the tensor-core instructions of sm_100. They are in a header so that findings name the lines that call
// them.
#pragma once
#include "async.cuh"

// Tensor memory
template <int GROUP = 1> DEVICE void tensor_alloc(u32 dst, u32 columns) {
    asm volatile("tcgen05.alloc.cta_group::%2.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(dst), "r"(columns), "n"(GROUP) : "memory");
}
template <int GROUP = 1> DEVICE void tensor_dealloc(u32 address, u32 columns) {
    asm volatile("tcgen05.dealloc.cta_group::%2.sync.aligned.b32 %0, %1;" ::"r"(address), "r"(columns), "n"(GROUP) : "memory");
}
template <int GROUP = 1> DEVICE void tensor_relinquish() {
    asm volatile("tcgen05.relinquish_alloc_permit.cta_group::%0.sync.aligned;" ::"n"(GROUP) : "memory");
}
DEVICE void tensor_fence_before() {
    asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
}
DEVICE void tensor_fence_after() {
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
}
DEVICE void tensor_wait_load() {
    asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
}
DEVICE void tensor_wait_store() {
    asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory");
}
DEVICE void tensor_load_16(u32 (&r)[16], u32 at) {
    asm volatile("tcgen05.ld.sync.aligned.32x32b.x16.b32 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, [%16];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]), "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7]), "=r"(r[8]),
                   "=r"(r[9]), "=r"(r[10]), "=r"(r[11]), "=r"(r[12]), "=r"(r[13]), "=r"(r[14]), "=r"(r[15])
                 : "r"(at) : "memory");
}
DEVICE void tensor_store_16(u32 at, const u32 (&r)[16]) {
    asm volatile("tcgen05.st.sync.aligned.32x32b.x16.b32 [%16], {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15};"
                 ::"r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "r"(r[4]), "r"(r[5]), "r"(r[6]), "r"(r[7]), "r"(r[8]),
                   "r"(r[9]), "r"(r[10]), "r"(r[11]), "r"(r[12]), "r"(r[13]), "r"(r[14]), "r"(r[15]), "r"(at) : "memory");
}

// The relaxed arrivals and waits of the PTX ISA's patterns, which the fences of tcgen05 make sufficient.
DEVICE void mbar_arrive_relaxed(u32 bar) {
    asm volatile("mbarrier.arrive.relaxed.cluster.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
DEVICE void mbar_wait_relaxed(u32 bar, u32 parity) {
    u32 done = 0;
    while (!done)
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(bar), "r"(parity) : "memory");
}

// Products
DEVICE bool elect() {
    u32 elected;
    asm volatile("{.reg .pred p; elect.sync _|p, -1; selp.u32 %0, 1, 0, p;}" : "=r"(elected));
    return elected;
}
// layout: 0 none, 2 128-byte swizzle, 4 64-byte swizzle, 6 32-byte swizzle
DEVICE u64 matrix_descriptor(u32 start, u32 leading, u32 stride, u32 layout) {
    return (u64)((start & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | 1ull << 46 | (u64)layout << 61;
}
// d: 0 f16, 1 f32, 2 s32; a and b: f16 0, bf16 1, tf32 2, e4m3 0, e5m2 1, u8 0, s8 1
constexpr u32 instruction_descriptor(u32 m, u32 n, u32 d, u32 a, u32 b, u32 transpose_a = 0, u32 transpose_b = 0) {
    return d << 4 | a << 7 | b << 10 | transpose_a << 15 | transpose_b << 16 | n / 8 << 17 | m / 16 << 24;
}
#define PRODUCT(name, kind)                                                                                                 \
    template <int GROUP = 1> DEVICE void name(u32 d, u64 a, u64 b, u32 descriptor, u32 accumulate) {                        \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %4, 0;\n"                                                               \
                     "tcgen05.mma.cta_group::%5.kind::" kind " [%0], %1, %2, %3, p;}" ::"r"(d), "l"(a), "l"(b), "r"(descriptor), "r"(accumulate), "n"(GROUP) : "memory"); \
    }                                                                                                                       \
    template <int GROUP = 1> DEVICE void name##_from_tensor(u32 d, u32 a, u64 b, u32 descriptor, u32 accumulate) {          \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %4, 0;\n"                                                               \
                     "tcgen05.mma.cta_group::%5.kind::" kind " [%0], [%1], %2, %3, p;}" ::"r"(d), "r"(a), "l"(b), "r"(descriptor), "r"(accumulate), "n"(GROUP) : "memory"); \
    }
PRODUCT(product_f16, "f16")
PRODUCT(product_tf32, "tf32")
PRODUCT(product_f8, "f8f6f4")
PRODUCT(product_i8, "i8")
DEVICE void product_masked(u32 d, u64 a, u64 b, u32 descriptor, u32 accumulate, u32 mask) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %4, 0;\n"
                 "tcgen05.mma.cta_group::1.kind::f16 [%0], %1, %2, %3, {%5, 0, 0, 0}, p, 1;}" ::"r"(d), "l"(a), "l"(b), "r"(descriptor), "r"(accumulate), "r"(mask) : "memory");
}
template <int GROUP = 1> DEVICE void tensor_commit(u32 bar) {
    asm volatile("tcgen05.commit.cta_group::%1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(bar), "n"(GROUP) : "memory");
}
template <int GROUP = 2> DEVICE void tensor_commit_multicast(u32 bar, u16 mask) {
    asm volatile("tcgen05.commit.cta_group::%2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%0], %1;" ::"r"(bar), "h"(mask), "n"(GROUP) : "memory");
}

// Tensor copies whose mbarrier is in the even block of the pair
DEVICE void tensor_load_2d_pair(u32 dst, const TensorMap* map, int x, int y, u32 bar) {
    asm volatile("cp.async.bulk.tensor.2d.cta_group::2.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(dst), "l"(map), "r"(x), "r"(y), "r"(bar & 0xfeffffff) : "memory");
}
DEVICE void tensor_load_2d_cta(u32 dst, const TensorMap* map, int x, int y, u32 bar) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(dst), "l"(map), "r"(x), "r"(y), "r"(bar) : "memory");
}

// Cluster launch control
DEVICE void try_cancel(u32 response, u32 bar) {
    asm volatile("clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes.b128 [%0], [%1];" ::"r"(response), "r"(bar) : "memory");
}
DEVICE void try_cancel_multicast(u32 response, u32 bar) {
    asm volatile("clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes.multicast::cluster::all.b128 [%0], [%1];" ::"r"(response), "r"(bar) : "memory");
}
DEVICE bool query_cancel(u32 response, u32& x, u32& y) {
    u32 valid;
    asm volatile("{.reg .pred p; .reg .b128 r; ld.shared.b128 r, [%3];\n"
                 "clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 p, r; selp.u32 %0, 1, 0, p;\n"
                 "@p clusterlaunchcontrol.query_cancel.get_first_ctaid.v4.b32.b128 {%1, %2, _, _}, r;}"
                 : "=r"(valid), "+r"(x), "+r"(y) : "r"(response) : "memory");
    return valid;
}
