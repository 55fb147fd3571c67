"""PTX of the tests."""

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"

#: Thread i stores to a tile and reads what its neighbour stores, with no barrier in between.
RACE = (
    HEAD
    + """.visible .entry shift(.param .u64 x, .param .u64 y) {
    .reg .b32 %r<6>; .reg .b64 %rd<6>; .shared .align 4 .b8 tile[128];
    ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y];
    mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4; add.u64 %rd1, %rd1, %rd3; add.u64 %rd2, %rd2, %rd3;
    ld.global.u32 %r2, [%rd1]; shl.b32 %r3, %r1, 2; mov.u32 %r4, tile; add.u32 %r5, %r4, %r3;
    st.shared.u32 [%r5], %r2;
    BARRIER
    xor.b32 %r3, %r3, 4; add.u32 %r5, %r4, %r3;
    ld.shared.u32 %r2, [%r5]; st.global.u32 [%rd2], %r2; ret;
}
"""
)
RIGHT = RACE.replace("BARRIER", "bar.sync 0;")
RACE = RACE.replace("BARRIER", "")

#: y[i] = a * x[i] + b, for i < n, with one type for each parameter.
AXPB = (
    HEAD
    + """.visible .entry axpb(.param .u64 x, .param .u64 y, .param .f32 a, .param .u16 b, .param .u32 n) {
    .reg .pred %p; .reg .b16 %h; .reg .b32 %r<4>; .reg .f32 %f<4>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y]; ld.param.f32 %f1, [a]; ld.param.u16 %h, [b];
    ld.param.u32 %r2, [n]; mov.u32 %r1, %tid.x; setp.ge.u32 %p, %r1, %r2; @%p ret;
    mul.wide.u32 %rd3, %r1, 4; add.u64 %rd1, %rd1, %rd3; add.u64 %rd2, %rd2, %rd3;
    cvt.rn.f32.s16 %f2, %h; ld.global.f32 %f3, [%rd1]; fma.rn.f32 %f3, %f3, %f1, %f2; st.global.f32 [%rd2], %f3; ret;
}
"""
)

#: Threads wait for a word that nobody writes, and count.
ENDLESS = (
    HEAD
    + """.visible .entry forever(.param .u64 x) {
    .reg .pred %p; .reg .b32 %r; .reg .b64 %d;
    ld.param.u64 %d, [x]; mov.u32 %r, 0;
    AGAIN: add.u32 %r, %r, 1; st.global.u32 [%d], %r; setp.ne.u32 %p, %r, 0; @%p bra AGAIN; ret;
}
"""
)

#: Copies a struct of a pointer and two integers to the memory that the pointer names.
STRUCT = (
    HEAD
    + """.visible .entry unpack(.param .align 8 .b8 s[16]) {
    .reg .b32 %r<3>; .reg .b64 %d;
    ld.param.u64 %d, [s]; ld.param.u32 %r1, [s+8]; ld.param.u32 %r2, [s+12];
    st.global.v2.u32 [%d], {%r1, %r2}; ret;
}
"""
)

#: Loads a box of 4 x 8 floats by a tensor map and stores it to y.
TENSOR_COPY = """.version 8.0
.target sm_90a
.address_size 64
.visible .entry load(.param .align 64 .b8 map[128], .param .u64 y) {
    .reg .pred %p<3>; .reg .b32 %r<8>; .reg .b64 %d<5>;
    .shared .align 128 .b8 tile[128]; .shared .align 8 .b64 bar;
    mov.u32 %r1, %tid.x; mov.u32 %r2, tile; mov.u32 %r3, bar; mov.b64 %d1, map; cvta.param.u64 %d1, %d1; ld.param.u64 %d2, [y];
    setp.ne.u32 %p1, %r1, 0; @%p1 bra WAIT;
    mbarrier.init.shared::cta.b64 [%r3], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared::cta.b64 %d3, [%r3], 128;
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r2], [%d1, {0, 4}], [%r3];
    WAIT: bar.sync 0;
    AGAIN: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0; @!%p2 bra AGAIN;
    shl.b32 %r4, %r1, 2; add.u32 %r2, %r2, %r4; ld.shared.u32 %r5, [%r2];
    cvt.u64.u32 %d4, %r4; add.u64 %d2, %d2, %d4; st.global.u32 [%d2], %r5; ret;
}
"""
