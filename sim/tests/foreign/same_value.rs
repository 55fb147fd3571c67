//! Stores of the same value by lanes that are ordered after different accesses.

use super::harness::{Case, bytes_of_words};

/// Lanes for which `%p0` is true execute `some`; then every lane stores `value` to one word, which holds 1.
fn store_by_all_lanes(some: &str, value: &str) -> Case {
    let body = format!(
        "
        .reg .b32 %r<4>; .reg .b64 %d<2>; .reg .pred %p<2>;
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, 1;
        {some}
        {value}
        st.global.u32 [%d0], %r1;
        ret;"
    );
    Case { buffers: vec![bytes_of_words([1; 8])], ..Case::new("sm_80", 32, &body) }
}

const HALF_WARP_SYNC: &str = "setp.lt.u32 %p0, %r0, 16; @!%p0 bra J; bar.warp.sync 0xffff; J:";
const LANE_0_ACQUIRES: &str = "setp.eq.u32 %p0, %r0, 0; @!%p0 bra J; bar.warp.sync 1; J:";

#[test]
fn equal_values_are_a_note_although_the_lanes_have_different_clocks() {
    for some in [HALF_WARP_SYNC, LANE_0_ACQUIRES] {
        for old in [0, 1, 7] {
            let case = Case { buffers: vec![bytes_of_words([old; 8])], ..store_by_all_lanes(some, "") };
            let report = case.run();
            assert_eq!(report.findings.concat(), [], "{some}");
            assert!(report.notes.iter().any(|n| n.contains("the same value")), "{:?}", report.notes);
        }
    }
}

#[test]
fn different_values_are_a_race_although_one_of_them_is_in_memory() {
    let other_value = "setp.eq.u32 %p1, %r0, 0; selp.b32 %r1, 1, 2, %p1;";
    for some in [HALF_WARP_SYNC, LANE_0_ACQUIRES] {
        assert_eq!(store_by_all_lanes(some, other_value).finding_kinds(), ["race"], "{some}");
    }
}

/// Two warps store the same matrix to the same bytes, as Triton's warps do if a tile has fewer elements than the block
/// has threads.
#[test]
fn matrices_that_two_warps_store_may_be_equal() {
    let case = Case::new(
        "sm_90a",
        64,
        ".reg .b32 %r<6>; .reg .b64 %d<3>; .shared .align 16 .b8 tile[128];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; and.b32 %r1, %r0, 31; shl.b32 %r2, %r0, 4; and.b32 %r2, %r2, 0x70;
        mov.u32 %r3, tile; add.u32 %r3, %r3, %r2;
        stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], {%r1};
        bar.sync 0;
        shl.b32 %r2, %r1, 2; mov.u32 %r3, tile; add.u32 %r3, %r3, %r2; ld.shared.u32 %r4, [%r3];
        cvt.u64.u32 %d1, %r2; add.u64 %d1, %d0, %d1; st.global.u32 [%d1], %r4; ret;",
    );
    let report = case.run();
    assert_eq!(report.findings.concat(), []);
    assert!(report.notes.iter().any(|n| n.contains("the same value")), "{:?}", report.notes);
    assert_eq!(case.replace("[%r3], {%r1}", "[%r3], {%r0}").finding_kinds(), ["race"]);
}
