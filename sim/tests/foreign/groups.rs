//! Compare-and-swap loops, and barriers of cooperative groups in divergent code.

use super::harness::{Case, bytes_of_words};

/// 64 threads of two blocks add to one word by compare-and-swap, as an `atomicAdd` of a type that the hardware does not
/// support.
fn cas_loop(load: &str, swap: &str) -> Case {
    let body = format!(
        ".reg .b32 %r<8>; .reg .b64 %d<4>; .reg .pred %p;
        ld.param.u64 %d0, [p]; cvta.to.global.u64 %d1, %d0;
        {load}
        AGAIN: add.u32 %r2, %r1, 3;
        {swap}
        setp.ne.u32 %p, %r3, %r1; mov.b32 %r1, %r3; @%p bra AGAIN;
        ret;"
    );
    Case { blocks: 2, ..Case::new("sm_80", 64, &body) }
}

const SWAP: &str = "atom.global.cas.b32 %r3, [%d1], %r1, %r2;";

#[test]
fn the_first_read_of_a_cas_loop_is_a_note() {
    let report = cas_loop("ld.global.u32 %r0, [%d1]; mov.b32 %r1, %r0;", SWAP).run();
    assert_eq!(report.findings.concat(), []);
    assert!(report.notes.iter().any(|n| n.contains("compare-and-swap loop")), "{:?}", report.notes);
    let sum = report.memory.iter().next().map(|b| b.data[..4].to_vec());
    assert_eq!(sum, Some(bytes_of_words([128 * 3])));
    // If the loop's first load is relaxed, it does not race, so there is no note.
    let relaxed = cas_loop("ld.relaxed.gpu.global.u32 %r1, [%d1];", SWAP).run();
    assert!(relaxed.has_no_findings() && relaxed.notes.is_empty(), "{:?}", relaxed.notes);
    // Plain accesses to another word, to which each thread stores the loaded value, are a race.
    let other = "ld.global.u32 %r1, [%d1]; ld.global.u32 %r4, [%d1+4]; st.global.u32 [%d1+4], %r1;";
    assert_eq!(cas_loop(other, SWAP).finding_kinds(), ["race"]);
    // A plain store instead of the swap is a race.
    assert_eq!(
        cas_loop("ld.global.u32 %r1, [%d1];", "st.global.u32 [%d1], %r2; mov.b32 %r3, %r1;").finding_kinds(),
        ["race"]
    );
}

#[test]
fn a_plain_read_after_a_cas_loop_is_a_race() {
    let swap = format!("{SWAP} ld.global.u32 %r5, [%d1]; st.global.u32 [%d1+64], %r5;");
    assert!(cas_loop("ld.global.u32 %r0, [%d1]; mov.b32 %r1, %r0;", &swap).finding_kinds().contains(&"race"));
}

#[test]
fn equal_stores_are_a_note() {
    let same = Case::new("sm_80", 64, ".reg .b64 %d; ld.param.u64 %d, [p]; st.global.u32 [%d], 7; ret;").run();
    assert!(same.has_no_findings());
    assert!(same.notes.iter().any(|n| n.contains("the same value")), "{:?}", same.notes);
}

/// A kernel in which the upper half of each warp arrives at `other` and the lower half at `barrier.sync 0`.
fn divergent(other: &str) -> Case {
    Case::new(
        "sm_80",
        64,
        &format!(
            ".reg .b32 %r<3>; .reg .pred %p; mov.u32 %r0, %tid.x; and.b32 %r0, %r0, 16; setp.ne.u32 %p, %r0, 0;
            @%p bra OTHER; barrier.sync 0; bra END;
            OTHER: {other}
            END: ret;"
        ),
    )
}

#[test]
fn divergent_arrival_at_a_group_barrier_is_a_note() {
    let report = divergent("barrier.sync 0;").run();
    assert_eq!(report.findings.concat(), []);
    assert!(report.notes.iter().any(|n| n.contains("programming guide asks")), "{:?}", report.notes);
    assert_eq!(divergent("bar.warp.sync 0xffff0000;").finding_kinds(), [""; 0]);
    // The aligned form, __syncthreads(), is a finding, and so are threads that wait at another barrier.
    let aligned = divergent("bar.sync 0;").replace("bra OTHER; barrier.sync", "bra OTHER; bar.sync");
    assert_eq!(aligned.finding_kinds(), ["barrier"]);
    assert!(!divergent("barrier.sync 1;").finding_kinds().is_empty());
    let together = Case::new("sm_80", 64, "barrier.sync 0; ret;").run();
    assert!(together.has_no_findings() && together.notes.is_empty());
}
