//! `setmaxnreg` in kernels whose register count is known, and in kernels of which only the launch bounds are known.

use super::harness::Case;

/// A kernel of two warpgroups: the first executes `setmaxnreg` with the operands `first`, the second with `second`.
fn pool(bounds: &str, first: &str, second: &str) -> Case {
    let case = Case::new(
        "sm_90a",
        256,
        &format!(
            ".reg .b32 %r<2>; .reg .pred %p; mov.u32 %r0, %tid.x; setp.ge.u32 %p, %r0, 128; @%p bra SECOND;
            setmaxnreg.{first}; bra END;
            SECOND: setmaxnreg.{second};
            END: ret;"
        ),
    );
    case.replace("(.param .u64 p) {", &format!("(.param .u64 p) {bounds} {{"))
}

const BOUNDS: &str = ".maxntid 256, 1, 1 .minnctapersm 1";

#[test]
fn launch_bounds_alone_give_no_setmaxnreg_finding() {
    let dec = |n: u32| format!("dec.sync.aligned.u32 {n}");
    let inc = |n: u32| format!("inc.sync.aligned.u32 {n}");
    // ptxas may assign any count up to 255 to this kernel.
    for (first, second) in [(dec(40), inc(232)), (dec(24), inc(160)), (dec(200), inc(240)), (inc(64), inc(64))] {
        assert_eq!(pool(BOUNDS, &first, &second).finding_kinds(), [""; 0], "{first} {second}");
    }
    // The launch has three warpgroups, which ask for 3 · 128 · 256 registers. A multiprocessor has 65 536.
    let case = pool(".maxntid 512, 1, 1", &inc(256), &inc(256));
    let twice = Case { threads: 384, ..case };
    assert_eq!(twice.finding_kinds(), ["setmaxnreg"]);
}

#[test]
fn setmaxnreg_without_bounds_has_no_effect_unless_the_register_count_is_known() {
    let mut case = pool("", "dec.sync.aligned.u32 40", "inc.sync.aligned.u32 232");
    assert_eq!(case.finding_kinds(), [""; 0]);
    assert!(case.run().notes.iter().any(|note| note.contains("ptxas ignores setmaxnreg")));
    assert_eq!(
        Case { threads: 384, ..pool("", "inc.sync.aligned.u32 256", "inc.sync.aligned.u32 256") }.finding_kinds(),
        [""; 0]
    );
    // ptxas was called with a limit of the registers, and obeys setmaxnreg.
    case.options.registers = Some(128);
    assert_eq!(case.finding_kinds(), ["setmaxnreg"]);
}

#[test]
fn setmaxnreg_is_checked_against_the_register_count_of_ptxas() {
    let with = |registers: u32, first: &str, second: &str| {
        let mut case = pool(BOUNDS, first, second);
        case.options.registers = Some(registers);
        case.finding_kinds()
    };
    let (dec, inc) = ("dec.sync.aligned.u32 40", "inc.sync.aligned.u32 216");
    assert_eq!(with(128, dec, inc), [""; 0]);
    assert_eq!(with(128, "dec.sync.aligned.u32 136", inc), ["setmaxnreg"]);
    assert_eq!(with(128, dec, "inc.sync.aligned.u32 120"), ["setmaxnreg"]);
    assert_eq!(with(128, "dec.sync.aligned.u32 48", inc), ["setmaxnreg"]);
    // A `.maxnreg` directive counts like a register count that ptxas reports.
    let declared = |second: &str| pool(&format!("{BOUNDS} .maxnreg 128"), dec, second).finding_kinds();
    assert_eq!(declared(inc), [""; 0]);
    assert_eq!(declared("inc.sync.aligned.u32 224"), ["setmaxnreg"]);
}

#[test]
fn the_warps_of_a_warpgroup_synchronise_between_two_setmaxnreg() {
    let twice = |between: &str| {
        let body = format!(
            ".reg .b32 %r<2>; .shared .b64 bar; setmaxnreg.dec.sync.aligned.u32 40; {between}
            setmaxnreg.inc.sync.aligned.u32 64; ret;"
        );
        let case = Case::new("sm_90a", 128, &body);
        case.replace("(.param .u64 p) {", "(.param .u64 p) .maxntid 128, 1, 1 .maxnreg 128 {").finding_kinds()
    };
    assert_eq!(twice("bar.sync 0;"), [""; 0]);
    assert_eq!(twice("bar.sync 1, 128;"), [""; 0]);
    assert_eq!(twice(""), ["setmaxnreg"]);
    assert_eq!(twice("bar.warp.sync -1;"), ["setmaxnreg"]);
}
