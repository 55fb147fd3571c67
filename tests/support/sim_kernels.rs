//! PTX of the kernels for the tests of `reel sim run`.

/// The first lines of a PTX module for sm_80.
pub const PTX_HEADER: &str = ".version 9.0\n.target sm_80\n.address_size 64\n";

/// PTX of y[i] = a·x[i] + y[i] for i < n; the kernel has the mangled symbol that nvcc generates.
pub const SAXPY_PTX: &str = "
.visible .entry _Z5saxpyPKfPffj(.param .u64 px, .param .u64 py, .param .f32 pa, .param .u32 pn) {
    .reg .pred %p<2>; .reg .b32 %r<6>; .reg .b64 %rd<8>; .reg .f32 %f<5>;
    ld.param.u64 %rd1, [px];
    ld.param.u64 %rd2, [py];
    ld.param.f32 %f1, [pa];
    ld.param.u32 %r5, [pn];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3;
    setp.ge.u32 %p1, %r4, %r5;
    @%p1 bra DONE;
    mul.wide.u32 %rd3, %r4, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    ld.global.f32 %f3, [%rd5];
    fma.rn.f32 %f4, %f1, %f2, %f3;
    st.global.f32 [%rd5], %f4;
DONE:
    ret;
}";

/// PTX of a kernel with a race: each thread writes a word to shared memory and, without a barrier, reads the word of
/// its neighbour.
pub const RACY_SHIFT_PTX: &str = "
.visible .entry shift(.param .u64 px) {
    .reg .b32 %r<6>; .reg .b64 %rd<4>;
    .shared .align 4 .b8 tile[256];
    ld.param.u64 %rd1, [px];
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 2;
    mov.u32 %r3, tile;
    add.u32 %r4, %r3, %r2;
    st.shared.u32 [%r4], %r1;
    xor.b32 %r2, %r2, 4;
    add.u32 %r4, %r3, %r2;
    ld.shared.u32 %r5, [%r4];
    cvt.u64.u32 %rd2, %r2;
    add.u64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r5;
    ret;
}";

/// PTX of a kernel that copies the bytes of its struct parameter to a buffer.
pub const UNPACK_STRUCT_PTX: &str = "
.visible .entry unpack(.param .align 8 .b8 s[32], .param .u64 out) {
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [out];
    ld.param.u64 %rd2, [s];
    st.global.u64 [%rd1], %rd2;
    ld.param.u64 %rd2, [s+8];
    st.global.u64 [%rd1+8], %rd2;
    ld.param.u64 %rd3, [s+16];
    ld.global.u64 %rd2, [%rd3];
    st.global.u64 [%rd1+16], %rd2;
    ld.param.u64 %rd2, [s+24];
    st.global.u64 [%rd1+24], %rd2;
    ret;
}";

/// PTX of a kernel that loads a box of a tensor through a tensor map. The box has 4 rows of 8 words and begins at
/// word 8 of row 2. The kernel stores it row by row.
pub const TENSOR_LOAD_PTX: &str = "
.version 9.0
.target sm_90a
.address_size 64
.visible .entry tensor(.param .align 64 .b8 map[128], .param .u64 src, .param .u64 out) {
    .reg .pred %p<3>; .reg .b32 %r<12>; .reg .b64 %rd<8>;
    .shared .align 128 .b8 tile[128];
    .shared .align 8 .b8 bar[8];
    ld.param.u64 %rd1, [out];
    mov.b64 %rd2, map;
    cvta.param.u64 %rd3, %rd2;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, tile;
    mov.u32 %r3, bar;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra READY;
    mbarrier.init.shared::cta.b64 [%r3], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared::cta.b64 %rd4, [%r3], 128;
    mov.u32 %r4, 8;
    mov.u32 %r5, 2;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd3, {%r4, %r5}], [%r3];
READY:
    bar.sync 0;
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0;
    @!%p2 bra WAIT;
    shl.b32 %r7, %r1, 2;
    add.u32 %r8, %r2, %r7;
    ld.shared.u32 %r9, [%r8];
    cvt.u64.u32 %rd5, %r7;
    add.u64 %rd6, %rd1, %rd5;
    st.global.u32 [%rd6], %r9;
    ret;
}";
