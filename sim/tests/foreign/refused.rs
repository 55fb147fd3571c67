//! Two kinds of errors that the simulator once made: it executed a faulty instruction without a finding, or it
//! reported consequences of a finding as further findings.

use super::harness::Case;

/// Runs one warp; `%r0` is the lane, `%d0` the buffer.
fn kinds(body: &str) -> Vec<&'static str> {
    let declarations =
        ".reg .b32 %r<6>; .reg .b64 %d<4>; .reg .pred %p<3>; ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x;";
    Case::new("sm_90a", 32, &format!("{declarations} {body} ret;")).finding_kinds()
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
    assert_eq!(case.replace(".visible", ".const .u32 table = 5;\n.visible").finding_kinds(), [""; 0]);
}

#[test]
fn a_barrier_is_used_by_reductions_or_not() {
    let body = |other: &str| {
        format!(
            ".reg .b32 %r<6>; .reg .pred %p<3>; mov.u32 %r0, %tid.x; setp.ge.u32 %p0, %r0, 32; setp.ge.u32 %p1, %r0, 0;
            @%p0 bra B; bar.red.and.pred %p2, 1, 64, %p1; bra E; B: {other} E: ret;"
        )
    };
    let case = |other: &str| Case::new("sm_80", 64, &body(other)).finding_kinds();
    assert_eq!(case("bar.red.and.pred %p2, 1, 64, %p1;"), [""; 0]);
    assert_eq!(case("bar.sync 1, 64;"), ["barrier"]);
}

#[test]
fn an_undefined_index_of_a_branch_is_reported() {
    let body = |define: &str| format!("{define} TS: .branchtargets A, B; brx.idx %r4, TS; A: B:");
    assert_eq!(kinds(&body("mov.u32 %r4, 1;")), [""; 0]);
    assert_eq!(kinds(&body("")), ["uninitialized"]);
}

/// A refused copy completes its mbarrier, so that the wait for the mbarrier is not another finding.
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

/// A kernel with parameters of 8 and 16 bytes, and a function with two parameters of 4 bytes.
fn parameters(load: &str, in_function: &str) -> Case {
    let functions = format!(
        ".func (.param .b32 out) f(.param .b32 a, .param .b32 b) {{ .reg .b32 %x; {in_function} st.param.b32 [out], %x;
        ret; }}\n.visible"
    );
    let body = format!(
        ".reg .b32 %r<4>; .reg .b64 %d<2>; {load}
        {{ .param .b32 x; .param .b32 y; .param .b32 z; st.param.b32 [x], 1; st.param.b32 [y], 2;
        call.uni (z), f, (x, y); ld.param.b32 %r1, [z]; }} ret;"
    );
    Case::new("sm_80", 32, &body)
        .replace(".visible", &functions)
        .replace("(.param .u64 p)", "(.param .u64 p, .param .align 8 .b8 q[16])")
}

#[test]
fn accesses_outside_of_the_named_parameter_are_reported() {
    let with_parameters = |load: &str, in_function: &str| {
        let case = parameters(load, in_function);
        Case { buffers: vec![vec![0; 64]; 3], ..case }.run()
    };
    let (load, inside) = ("ld.param.u32 %r0, [q+12];", "ld.param.u32 %x, [b];");
    assert!(with_parameters(load, inside).has_no_findings());
    for (load, in_function, message) in [
        ("ld.param.u32 %r0, [q-4];", inside, "access of 4 bytes at offset -4 of parameter q, which has 16 bytes"),
        ("ld.param.u64 %d0, [p+8];", inside, "access of 8 bytes at offset 8 of parameter p, which has 8 bytes"),
        (load, "ld.param.u32 %x, [b-4];", "access of 4 bytes at offset -4 of parameter b, which has 4 bytes"),
        (load, "ld.param.u32 %x, [a+4];", "access of 4 bytes at offset 4 of parameter a, which has 4 bytes"),
    ] {
        let findings = with_parameters(load, in_function).findings.concat();
        assert_eq!(findings.iter().map(|f| &f.message[..]).collect::<Vec<_>>(), [message]);
    }
}

#[test]
fn findings_in_constant_memory_name_the_variable() {
    let case = |access: &str| {
        let body = format!(
            ".reg .b32 %r<3>; .reg .b64 %d<4>; ld.param.u64 %d0, [p]; mov.u64 %d1, table; cvta.const.u64 %d2, %d1;
            {access} ret;"
        );
        Case::new("sm_80", 1, &body).replace(".visible", ".global .u32 other;\n.const .u32 table[4];\n.visible")
    };
    for (access, space, message) in [
        ("ld.const.u32 %r0, [table+16];", "const", "0 bytes past the end of table, which has 16 bytes"),
        ("ld.const.u32 %r0, [%d1-4];", "const", "4 bytes before table, which has 16 bytes"),
        ("ld.const.v2.u32 {%r0, %r1}, [%d1+4];", "const", "which is not a multiple of 8"),
        ("st.u32 [%d2], 1;", "const", "a store to table, which is read-only"),
        ("red.add.u32 [%d2], 1;", "const", "an atomic operation to table, which is read-only"),
        ("ld.global.u32 %r0, [other+4];", "global", "0 bytes past the end of other, which has 4 bytes"),
        ("ld.global.u32 %r0, [%d0+1024];", "global", "0 bytes past the end of buffer 0, which has 1024 bytes"),
    ] {
        let findings = case(access).run().findings.concat();
        let [finding] = &findings[..] else { panic!("{access}: {findings:?}") };
        assert_eq!(finding.space, Some(space), "{access}");
        assert!(finding.message.contains(message), "{access}: {}", finding.message);
    }
}

#[test]
fn the_stack_is_restored() {
    // Without `stackrestore`, local memory is too small for the allocations of all iterations.
    let body = |between: &str| {
        format!(
            "mov.u32 %r1, 0; AGAIN: stacksave.u64 %d1; mov.u64 %d2, 4096; alloca.u64 %d3, %d2; st.local.u32 [%d3], %r0;
            ld.local.u32 %r2, [%d3]; setp.ne.u32 %p0, %r2, %r0; @%p0 trap; {between}
            add.u32 %r1, %r1, 1; setp.lt.u32 %p1, %r1, 300; @%p1 bra AGAIN;"
        )
    };
    assert_eq!(kinds(&body("stackrestore.u64 %d1;")), [""; 0]);
    assert_eq!(kinds(&body("")), ["out-of-bounds"]);
    assert_eq!(kinds(&body("add.u64 %d1, %d1, 8192; stackrestore.u64 %d1;")), ["out-of-bounds"]);
    assert_eq!(kinds("stacksave.u32 %r1; stackrestore.u32 %r1; st.local.u32 [%r1], %r0;"), ["out-of-bounds"]);
    assert_eq!(kinds("stackrestore.u32 %r1;"), ["uninitialized"]);
}

#[test]
fn a_kernel_outside_of_device_graphs_reads_zero_as_the_graph() {
    assert_eq!(kinds("mov.u64 %d1, %current_graph_exec; setp.ne.u64 %p0, %d1, 0; @%p0 trap;"), [""; 0]);
}

#[test]
fn an_mbarrier_that_is_used_before_its_initialisation_is_one_finding_per_use() {
    let case = |synchronise: &str| {
        Case::new(
            "sm_80",
            64,
            &format!(
                ".reg .b32 %r<2>; .reg .b64 %d; .reg .pred %p<2>; .shared .b64 bar; mov.u32 %r0, %tid.x;
                setp.ne.u32 %p0, %r0, 0;
                @!%p0 mbarrier.init.shared.b64 [bar], 64;
                {synchronise}
                mbarrier.arrive.shared.b64 %d, [bar];
                WAIT: mbarrier.test_wait.shared.b64 %p1, [bar], %d;
                @!%p1 bra WAIT;
                ret;"
            ),
        )
    };
    assert_eq!(case("bar.sync 0;").finding_kinds(), [""; 0]);
    let mut lines: Vec<u32> = case("").run().findings.concat().iter().map(|f| f.line).collect();
    let found = lines.len();
    lines.dedup();
    assert_eq!(lines.len(), found, "{:?}", case("").run().findings);
    assert!(lines.contains(&9), "{lines:?}");
}
