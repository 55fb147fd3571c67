//! Atomic operations on bytes that nothing has written.

use super::harness::Case;

/// All threads replace a shared variable by zero with the instruction `exchange`, run `after`, meet at `barrier`, and
/// add 1 to the variable.
fn cleared_by_exchange(exchange: &str, after: &str, barrier: &str) -> Case {
    let body = format!(
        ".reg .b32 %r<6>; .reg .b64 %d<6>; .reg .pred %p; .shared .align 16 .b8 s[16];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1; mov.u64 %d2, 0;
        {exchange} {after}
        {barrier}
        red.shared.add.u32 [s], 1; bar.sync 0; ld.shared.u32 %r2, [s]; st.global.u32 [%d1], %r2; ret;"
    );
    Case::new("sm_90", 64, &body)
}

#[test]
fn exchange_clears_memory_that_nothing_has_written() {
    let kinds =
        |exchange: &str, after: &str, barrier: &str| cleared_by_exchange(exchange, after, barrier).finding_kinds();
    let (exchange, barrier) = ("atom.shared.exch.b32 %r1, [s], 0;", "bar.sync 0;");
    assert_eq!(kinds(exchange, "", barrier), [""; 0]);
    assert_eq!(kinds("atom.shared.exch.b64 %d3, [s], %d2;", "", barrier), [""; 0]);
    // A use of the old value in a result, a branch or an address is a finding: the first thread reads an undefined
    // value.
    assert_eq!(kinds(exchange, "st.global.u32 [%d1+512], %r1;", barrier), ["uninitialized"]);
    assert_eq!(
        kinds(exchange, "setp.eq.u32 %p, %r1, 0; @%p bra L; add.u32 %r3, %r1, 1; L:", barrier),
        ["uninitialized"]
    );
    let address = "cvt.u64.u32 %d4, %r1; add.u64 %d4, %d0, %d4; st.global.u32 [%d4], %r0;";
    assert!(kinds(exchange, address, barrier).contains(&"uninitialized"));
    // Only thread 0 exchanges at first. The other threads exchange after a barrier, so they read values that threads
    // wrote.
    let others = "@!%p bra L; st.global.u32 [%d1+512], %r1; L:";
    let later = format!("setp.ne.u32 %p, %r0, 0; @%p bra M; {exchange} M: bar.sync 0; @!%p bra N; {exchange} N:");
    assert_eq!(kinds(&later, others, barrier), [""; 0]);
    // Operations other than an exchange compute with the old value, so an unwritten old value is a finding.
    assert_eq!(kinds("atom.shared.add.u32 %r1, [s], 0;", "", barrier), ["uninitialized"]);
    assert_eq!(kinds("atom.shared.cas.b32 %r1, [s], 0, 0;", "", barrier), ["uninitialized"]);
    // The exchange is a write: an ordinary read needs a barrier after it.
    let read = "ld.shared.u32 %r4, [s]; st.global.u32 [%d1+512], %r4;";
    assert_eq!(kinds(exchange, &format!("{barrier} {read}"), barrier), [""; 0]);
    assert_eq!(kinds(exchange, read, barrier), ["race"]);
}

/// Thread 0 executes `first`, thread 32 of another warp `second`, without synchronisation.
fn unordered(first: &str, second: &str) -> Case {
    let body = format!(
        ".reg .b32 %r<6>; .reg .b64 %d<6>; .reg .b16 %h; .reg .pred %p<2>;
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u64 %d1, 1; mov.u32 %r1, 1; mov.u32 %r2, 2; mov.b16 %h, 0;
        setp.eq.u32 %p0, %r0, 0; setp.eq.u32 %p1, %r0, 32;
        @%p0 {first}
        @%p1 {second}
        ret;"
    );
    Case::new("sm_90", 64, &body)
}

#[test]
fn unordered_strong_accesses_of_different_sizes_race() {
    let whole = "red.global.add.u64 [%d0], %d1;";
    for part in [
        "red.global.add.u32 [%d0], %r1;",
        "red.global.add.u32 [%d0+4], %r1;",
        "ld.relaxed.gpu.global.u32 %r3, [%d0];",
        "st.volatile.global.u32 [%d0+4], %r1;",
        "atom.global.cas.b16 %h, [%d0], %h, %h;",
    ] {
        for case in [unordered(whole, part), unordered(part, whole)] {
            let report = case.run();
            let [race] = &report.findings.concat()[..] else { panic!("{part} {:?}", report.findings) };
            assert_eq!(race.kind.name(), "race", "{part}");
            assert!(race.message.contains("race if their sizes differ"), "{}", race.message);
        }
    }
    for same in ["ld.relaxed.gpu.global.u64 %d2, [%d0];", "red.global.add.u32 [%d0+8], %r1;"] {
        assert_eq!(unordered(whole, same).finding_kinds(), [""; 0], "{same}");
    }
    // An access to a vector counts as one access per element, and an access to a packed type as one access per half.
    let vector = "st.relaxed.gpu.global.v2.u32 [%d0], {%r1, %r2};";
    assert_eq!(unordered(vector, "ld.relaxed.gpu.global.u32 %r3, [%d0+4];").finding_kinds(), [""; 0]);
    assert_eq!(unordered(vector, "ld.relaxed.gpu.global.u64 %d2, [%d0];").finding_kinds(), ["race"]);
    let packed = "red.global.add.noftz.f16x2 [%d0], %r1;";
    assert_eq!(unordered(packed, "red.global.add.noftz.f16 [%d0+2], %h;").finding_kinds(), [""; 0]);
    assert_eq!(unordered(packed, "ld.relaxed.gpu.global.u32 %r3, [%d0];").finding_kinds(), ["race"]);
}
