//! Defects that the simulator once missed because the instruction continued, and findings that followed from another.

use super::harness::Case;

/// Runs one warp; `%r0` is the lane, `%d0` the buffer.
fn kinds(body: &str) -> Vec<&'static str> {
    let declarations =
        ".reg .b32 %r<6>; .reg .b64 %d<4>; .reg .pred %p<3>; ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x;";
    Case::new("sm_90a", 32, &format!("{declarations} {body} ret;")).kinds()
}

#[test]
fn loads_beyond_the_parameters_are_reported() {
    assert_eq!(kinds("ld.param.u32 %r1, [p+4];"), [""; 0]);
    assert_eq!(kinds("ld.param.u32 %r1, [p+8];"), ["out-of-bounds"]);
    assert_eq!(kinds("ld.param.u32 %r1, [p+2];"), ["misaligned"]);
    let generic = "mov.u64 %d1, p; cvta.param.u64 %d1, %d1;";
    assert_eq!(kinds(&format!("{generic} ld.u32 %r1, [%d1+4];")), [""; 0]);
    assert_eq!(kinds(&format!("{generic} ld.u32 %r1, [%d1+4096];")), ["out-of-bounds"]);
}

#[test]
fn the_sizes_of_alloca_differ_between_lanes() {
    let body = "setp.eq.u32 %p0, %r0, 0; selp.b64 %d1, 16, 256, %p0; alloca.u64 %d2, %d1;
        st.local.u32 [%d2+252], %r0; ld.local.u32 %r1, [%d2+252]; setp.ne.u32 %p1, %r1, %r0; @%p1 trap;";
    assert_eq!(kinds(body), [""; 0]);
}

#[test]
fn address_spaces_of_constants_and_parameters() {
    let body = "mov.u64 %d1, p; cvta.param.u64 %d1, %d1;
        isspacep.param::entry %p0, %d1; @!%p0 trap; isspacep.global %p0, %d1; @!%p0 trap;
        isspacep.const %p0, %d1; @%p0 trap; isspacep.global %p0, %d0; @!%p0 trap; isspacep.const %p0, %d0; @%p0 trap;
        mov.u64 %d2, table; cvta.const.u64 %d2, %d2; isspacep.const %p0, %d2; @!%p0 trap;";
    let case =
        Case::new("sm_90a", 32, &format!(".reg .b64 %d<4>; .reg .pred %p<3>; ld.param.u64 %d0, [p]; {body} ret;"));
    assert_eq!(case.replace(".visible", ".const .u32 table = 5;\n.visible").kinds(), [""; 0]);
}

#[test]
fn a_barrier_is_used_by_reductions_or_not() {
    let body = |other: &str| {
        format!(
            ".reg .b32 %r<6>; .reg .pred %p<3>; mov.u32 %r0, %tid.x; setp.ge.u32 %p0, %r0, 32; setp.ge.u32 %p1, %r0, 0;
            @%p0 bra B; bar.red.and.pred %p2, 1, 64, %p1; bra E; B: {other} E: ret;"
        )
    };
    let case = |other: &str| Case::new("sm_80", 64, &body(other)).kinds();
    assert_eq!(case("bar.red.and.pred %p2, 1, 64, %p1;"), [""; 0]);
    assert_eq!(case("bar.sync 1, 64;"), ["barrier"]);
}

#[test]
fn an_undefined_index_of_a_branch_is_reported() {
    let body = |define: &str| format!("{define} TS: .branchtargets A, B; brx.idx %r4, TS; A: B:");
    assert_eq!(kinds(&body("mov.u32 %r4, 1;")), [""; 0]);
    assert_eq!(kinds(&body("")), ["uninitialized"]);
}

/// A refused copy completes its mbarrier, so that the wait for it is not another finding.
#[test]
fn a_refused_copy_is_one_finding() {
    let copy = |source: &str, target: &str| {
        format!(
            ".shared .align 128 .b8 s[64]; .shared .align 8 .b64 bar; mov.u32 %r1, bar; mov.u32 %r2, s;
            setp.ne.u32 %p0, %r0, 0; @%p0 ret;
            mbarrier.init.shared::cta.b64 [%r1], 1; fence.mbarrier_init.release.cluster;
            mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 64; add.u64 %d1, %d0, {source}; add.u32 %r3, %r2, {target};
            cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%d1], 64, [%r1];
            W: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], 0; @!%p1 bra W;
            ld.shared.u32 %r4, [%r2]; st.global.u32 [%d0], %r4;"
        )
    };
    assert_eq!(kinds(&copy("0", "0")), [""; 0]);
    assert_eq!(kinds(&copy("4", "0")), ["misaligned"]);
    assert_eq!(kinds(&copy("4096", "0")), ["out-of-bounds"]);
    assert_eq!(kinds(&copy("992", "0")), ["out-of-bounds"]);
}

#[test]
fn results_of_unsupported_instructions_are_no_further_finding() {
    let body = "vadd.s32.s32.s32 %r1, %r0, %r0; st.global.u32 [%d0], %r1;";
    assert_eq!(kinds(body), ["unsupported"]);
}
