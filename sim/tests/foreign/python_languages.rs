//! What kernels of Triton, TileLang and CuTe DSL rely on.

use super::harness::{Case, bytes_of_words};

/// All lanes of a warp add their products by butterfly shuffles, and lanes 0 and 16 store to the same word. A compiler
/// fuses the first addition with a product, so the two lanes round different products.
#[test]
fn lanes_may_store_the_same_butterfly_sum_although_they_round_differently() {
    let case = |sum: &str, threads: u32| {
        let body = format!(
            ".reg .b32 %r<9>; .reg .b64 %d<3>; .shared .align 4 .b8 s[64];
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; cvt.u64.u32 %d1, %r0; shl.b64 %d1, %d1, 2; add.u64 %d1, %d0, %d1;
            ld.global.f32 %r1, [%d1]; mul.f32 %r2, %r1, %r1; shfl.sync.bfly.b32 %r3, %r2, 16, 31, -1;
            {sum}
            and.b32 %r5, %r0, 15; shl.b32 %r5, %r5, 2; mov.u32 %r6, s; add.u32 %r6, %r6, %r5;
            st.shared.b32 [%r6], %r4; bar.sync 0; ld.shared.b32 %r7, [%r6]; st.global.b32 [%d1], %r7; ret;"
        );
        let numbers = (0..64).map(|i| (1.0 + 0.1 * i as f32).to_bits());
        Case { buffers: vec![bytes_of_words(numbers)], ..Case::new("sm_80", threads, &body) }
    };
    let fused = case("fma.rn.f32 %r4, %r1, %r1, %r3;", 32);
    assert_eq!(fused.finding_kinds(), [""; 0]);
    assert!(fused.run().notes.iter().any(|note| note.contains("several threads store")));
    assert_eq!(case("mov.b32 %r4, %r3;", 32).finding_kinds(), ["race"]);
    assert_eq!(case("fma.rn.f32 %r4, %r1, %r1, %r1;", 32).finding_kinds(), ["race"]);
    // Two warps store their own sums to the same words.
    assert_eq!(case("fma.rn.f32 %r4, %r1, %r1, %r3;", 64).finding_kinds(), ["race"]);
}

/// The eight rows of a matrix go to one address, as in Triton's `topk`, where all lanes of a column have equal values.
#[test]
fn rows_of_one_stmatrix_may_be_equal() {
    let case = Case::new(
        "sm_90a",
        32,
        ".reg .b32 %r<6>; .reg .b64 %d<3>; .shared .align 16 .b8 tile[16];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; and.b32 %r1, %r0, 3; mov.u32 %r2, tile;
        stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r2], {%r1};
        bar.sync 0;
        shl.b32 %r3, %r1, 2; add.u32 %r2, %r2, %r3; ld.shared.u32 %r4, [%r2];
        mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1; st.global.u32 [%d1], %r4; ret;",
    );
    assert_eq!(case.finding_kinds(), [""; 0]);
    assert_eq!(case.replace("[%r2], {%r1}", "[%r2], {%r0}").finding_kinds(), ["race"]);
}

/// Triton's parity of an odd phase is -1. ptxas (of CUDA 12.8) shifts the parity left by 31 bits before it waits.
#[test]
fn the_parity_of_a_wait_is_its_lowest_bit() {
    let case = |parity: i32| {
        Case::new(
            "sm_90a",
            32,
            &format!(
                ".reg .b32 %r<4>; .reg .pred %p<2>; .shared .align 8 .b64 bar; .reg .b64 %d<2>;
                mov.u32 %r0, %tid.x; mov.u32 %r1, bar; setp.ne.u32 %p0, %r0, 0;
                @!%p0 mbarrier.init.shared::cta.b64 [%r1], 32; bar.sync 0;
                mbarrier.arrive.shared::cta.b64 _, [%r1]; mov.u32 %r2, {parity};
                WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], %r2; @!%p1 bra WAIT; ret;"
            ),
        )
    };
    assert_eq!(case(0).finding_kinds(), [""; 0]);
    assert_eq!(case(-2).finding_kinds(), [""; 0]);
    assert!(case(-1).run().notes.iter().any(|note| note.contains("parity above 1")));
}

/// Triton's warpgroups end with two equal `setmaxnreg` in a row.
#[test]
fn setmaxnreg_to_the_same_count_needs_no_barrier() {
    let case = |second: u32| {
        let body = format!("setmaxnreg.dec.sync.aligned.u32 40; setmaxnreg.dec.sync.aligned.u32 {second}; ret;");
        Case::new("sm_90a", 128, &body).replace("{\n", ".reqntid 128 .maxnreg 128 {\n")
    };
    assert_eq!(case(40).finding_kinds(), [""; 0]);
    assert_eq!(case(32).finding_kinds(), ["setmaxnreg"]);
}

/// Threads 32 to 63 load the elements of threads 0 to 31, which change them in place, as in Triton if a tile has fewer
/// elements than the block has threads.
#[test]
fn threads_that_do_not_store_may_load_before_or_after_the_store() {
    let case = Case::new(
        "sm_80",
        64,
        ".reg .b32 %r<9>; .reg .b64 %d<3>; .reg .pred %p<2>; .shared .align 4 .b8 s[256];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; and.b32 %r1, %r0, 31; mul.wide.u32 %d1, %r1, 4; add.u64 %d1, %d0, %d1;
        ld.global.f32 %r2, [%d1]; add.f32 %r3, %r2, 0f3F800000; mov.u32 %r5, s; shl.b32 %r6, %r0, 2; add.u32 %r5, %r5, %r6;
        // another use
        and.b32 %r4, %r0, 32; setp.eq.b32 %p0, %r4, 0;
        @%p0 st.global.f32 [%d1], %r3; ret;",
    );
    assert_eq!(case.finding_kinds(), [""; 0]);
    assert_eq!(case.replace("// another use", "st.shared.f32 [%r5], %r3;").finding_kinds(), ["race"]);
    assert_eq!(case.replace("setp.eq.b32 %p0, %r4, 0", "setp.ge.u32 %p0, %r0, 0").finding_kinds(), ["race"]);
}

/// A compiler packs a value with an undefined half, and uses only the other half of the sum.
#[test]
fn halves_of_a_packed_sum_are_undefined_by_themselves() {
    let case = Case::new(
        "sm_90",
        32,
        ".reg .b32 %r<9>; .reg .b16 %h<9>; .reg .b64 %d<3>; ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x;
        mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1; ld.global.b32 %r1, [%d1]; mov.b32 {_, %h1}, %r1;
        mov.b32 %r2, {%h1, %h2}; add.f16x2 %r3, %r1, %r2; mov.b32 {%h3, %h4}, %r3; st.global.b16 [%d1], %h3; ret;",
    );
    assert_eq!(case.finding_kinds(), [""; 0]);
    assert_eq!(case.replace("[%d1], %h3", "[%d1], %h4").finding_kinds(), ["uninitialized"]);
}
