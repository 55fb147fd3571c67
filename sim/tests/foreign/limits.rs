//! Kernels that do not end, or that need more memory than there is: each run ends with a finding or an error.

use super::harness::Case;
use reel_sim::check::CheckReport;
use reel_sim::exec::{self, LaunchConfig, LaunchError, RunLimits, StopCause};
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;
use std::time::{Duration, Instant};

fn limited(threads: u32, body: &str) -> Case {
    let mut case = Case::new("sm_80", threads, body);
    case.options.patience = 100_000;
    case.options.limits = RunLimits { idle_steps: 400_000, memory_bytes: 64 << 20, ..RunLimits::default() };
    case
}

fn lines(report: &CheckReport) -> Vec<(&'static str, u32)> {
    report.findings.iter().flatten().map(|f| (f.kind.name(), f.line)).collect()
}

#[test]
fn a_loop_that_changes_memory_for_ever_is_a_finding_at_its_line() {
    let body = ".reg .b32 %r<3>; .reg .b64 %d; ld.param.u64 %d, [p];
        AGAIN:
        ld.global.u32 %r0, [%d]; add.u32 %r0, %r0, 1;
        st.global.u32 [%d], %r0;
        bra AGAIN;
        ret;";
    let report = limited(1, body).run();
    let [("deadlock", line)] = lines(&report)[..] else { panic!("{:?}", report.findings) };
    assert!((7..=9).contains(&line), "{line}");
    let message = &report.findings[0][0].message;
    assert!(message.contains("lines 7, 8, 9,"), "{message}");
    // After a run without progress, the other interleavings are not run.
    assert_eq!((report.interleavings, report.stopped.map(|s| s.cause)), (1, Some(StopCause::NoProgress)));
}

#[test]
fn loops_that_compute_or_meet_at_barriers_for_ever_are_findings() {
    for loop_body in ["add.u32 %r0, %r0, 1;", "bar.sync 0;", "call.uni sleep;"] {
        let body = format!(".reg .b32 %r<3>; mov.u32 %r0, 0; AGAIN: {loop_body} bra AGAIN; ret;");
        let case = limited(64, &body).replace(".visible", ".func sleep() { nanosleep.u32 50; ret; }\n.visible");
        let report = case.run();
        assert_eq!(lines(&report).len(), 1, "{loop_body} {:?}", report.findings);
        assert_eq!(lines(&report)[0].0, "deadlock", "{loop_body}");
    }
}

#[test]
fn long_loops_that_end_are_no_findings() {
    let body = ".reg .b32 %r<3>; .reg .pred %p; mov.u32 %r0, 0; AGAIN: add.u32 %r0, %r0, 1;
        setp.lt.u32 %p, %r0, 20000; @%p bra AGAIN; ret;";
    let report = limited(64, body).run();
    assert!(report.has_no_findings() && report.stopped.is_none(), "{:?}", report.findings);
}

/// One thread waits until `clock` has advanced by 20 million cycles (`%clock64`) or nanoseconds (`%globaltimer`);
/// `pause` is an instruction of the loop.
fn wait_for_time(clock: &str, pause: &str) -> Case {
    let body = format!(
        ".reg .b64 %d<4>; .reg .pred %p; ld.param.u64 %d3, [p]; mov.u64 %d0, {clock};
        AGAIN: mov.u64 %d1, {clock}; {pause} sub.u64 %d2, %d1, %d0; setp.lt.u64 %p, %d2, 20000000; @%p bra AGAIN; ret;"
    );
    limited(1, &body)
}

#[test]
fn waiting_for_a_clock_ends() {
    // Loops that change nothing, that sleep, and that change memory in each iteration.
    for pause in ["", "nanosleep.u32 100;", "st.global.u64 [%d3], %d1;"] {
        for clock in ["%clock64", "%globaltimer"] {
            let mut case = wait_for_time(clock, pause);
            (case.options.patience, case.options.limits.idle_steps) = (10_000_000, 2_000_000);
            let report = case.run();
            assert!(report.has_no_findings() && report.stopped.is_none(), "{clock} {pause} {:?}", report.findings);
        }
    }
    let endless = wait_for_time("%clock64", "").replace("@%p bra", "bra");
    assert_eq!(endless.finding_kinds(), ["deadlock"]);
}

/// A warp gives up (`trap`) if it has waited for a flag for `cycles`. The other warp computes without a store before
/// it sets the flag.
#[test]
fn computing_warps_are_not_given_up_early() {
    let kinds = |cycles: u64, flag: &str| {
        let body = format!(
            ".reg .b64 %d<4>; .reg .b32 %r<4>; .reg .pred %p<3>; ld.param.u64 %d3, [p]; mov.u32 %r0, %tid.x;
            mov.u32 %r1, 0; setp.lt.u32 %p0, %r0, 32; @%p0 bra COMPUTE; mov.u64 %d0, %clock64;
            AGAIN: ld.acquire.gpu.global.u32 %r2, [%d3]; setp.ne.u32 %p1, %r2, 0; @%p1 bra END;
            mov.u64 %d1, %clock64; sub.u64 %d2, %d1, %d0; setp.lt.u64 %p2, %d2, {cycles}; @%p2 bra AGAIN; trap;
            COMPUTE: add.u32 %r1, %r1, 1; setp.lt.u32 %p1, %r1, 100000; @%p1 bra COMPUTE;
            st.release.gpu.global.u32 [%d3], {flag};
            END: ret;"
        );
        let mut case = limited(64, &body);
        (case.options.patience, case.options.limits.idle_steps) = (10_000_000, 60_000_000);
        case.finding_kinds()
    };
    assert_eq!(kinds(2_000_000_000, "1"), [""; 0]);
    assert_eq!(kinds(2_000_000, "0"), ["trap"]);
}

#[test]
fn blocks_that_only_compute_end_before_others_start() {
    // All blocks together execute more instructions than the limit allows without progress.
    let body = ".reg .b32 %r<3>; .reg .pred %p; mov.u32 %r0, 0; AGAIN: add.u32 %r0, %r0, 1;
        setp.lt.u32 %p, %r0, 3000; @%p bra AGAIN; ret;";
    let case = Case { blocks: 40, ..limited(64, body) };
    let report = case.run();
    assert!(report.has_no_findings() && report.stopped.is_none(), "{:?}", report.findings);
}

#[test]
fn an_endless_loop_in_a_header_is_named_by_its_file() {
    let body = ".loc 2 3 0\n .reg .b32 %r; mov.u32 %r, 0;\n.loc 1 80 0\n AGAIN: add.u32 %r, %r, 1; bra AGAIN; ret;";
    let case = limited(32, body);
    let case = Case { ptx: format!("{}.file 1 \"loop.cuh\"\n.file 2 \"main.cu\"\n", case.ptx), ..case };
    let report = case.run();
    let message = &report.findings[0][0].message;
    assert!(message.contains("the instructions of line loop.cuh:80,"), "{message}");
}

#[test]
fn the_deadline_and_the_memory_limit_stop_a_run() {
    let mut late = limited(1, ".reg .b32 %r; mov.u32 %r, 0; AGAIN: add.u32 %r, %r, 1; bra AGAIN; ret;");
    late.options.limits.deadline = Some(Instant::now() - Duration::from_secs(1));
    let report = late.run();
    let stopped = report.stopped.clone().unwrap();
    assert_eq!((stopped.cause, stopped.line, lines(&report).len()), (StopCause::Time, 5, 0));
    let mut recursive = recursion("");
    recursive.options.limits.memory_bytes = 1 << 20;
    assert_eq!(recursive.run().stopped.map(|s| s.cause), Some(StopCause::Memory));
}

/// A kernel whose function `f` calls itself endlessly; `local` declares its variables.
fn recursion(local: &str) -> Case {
    let function = format!(
        ".func (.param .b32 out) f(.param .b32 n) {{ {local} .reg .b32 %r<4>; ld.param.u32 %r0, [n]; add.u32 %r1, %r0, 1;
        {{ .param .b32 q; .param .b32 w; st.param.b32 [q], %r1; call.uni (w), f, (q); ld.param.b32 %r2, [w]; }}
        add.u32 %r3, %r2, %r1; st.param.b32 [out], %r3; ret; }}\n.visible .entry"
    );
    let body = ".reg .b32 %r<2>; .reg .b64 %d; ld.param.u64 %d, [p];
        { .param .b32 q; .param .b32 w; st.param.b32 [q], 1; call.uni (w), f, (q); ld.param.b32 %r0, [w]; }
        st.global.u32 [%d], %r0; ret;";
    limited(64, body).replace(".visible .entry", &function)
}

#[test]
fn endless_recursion_and_large_frames_overflow_the_stack() {
    for local in ["", ".local .align 4 .b8 a[4000];"] {
        let report = recursion(local).run();
        assert_eq!(lines(&report), [("out-of-bounds", 5)], "{:?}", report.findings);
        let message = &report.findings[0][0].message;
        assert!(message.starts_with("stack overflow") && message.contains("cudaLimitStackSize"), "{message}");
    }
    let alloca = |bytes: &str| {
        limited(32, &format!(".reg .b64 %d<2>; mov.u64 %d0, {bytes}; alloca.u64 %d1, %d0; ret;")).finding_kinds()
    };
    assert_eq!(alloca("4096"), [""; 0]);
    assert_eq!(alloca("1000000"), ["out-of-bounds"]);
    assert_eq!(alloca("0x100000010"), ["out-of-bounds"]);
}

#[test]
fn wrong_function_pointers_are_findings_and_end_the_thread() {
    let call = |target: &str| {
        let functions = ".func good(.param .b32 n) { ret; }\n.func other(.param .b64 n) { ret; }\n.visible .entry";
        let body = format!(
            ".reg .b64 %d<3>; {target} {{ .param .b32 q; st.param.b32 [q], 1;
            PROTO: .callprototype ()_ (.param .b32 _); call %d0, (q), PROTO; }} mov.u64 %d1, other; ret;"
        );
        limited(32, &body).replace(".visible .entry", functions).finding_kinds()
    };
    assert_eq!(call("mov.u64 %d0, good;"), [""; 0]);
    for wrong in
        ["mov.u64 %d0, good; add.u64 %d0, %d0, 4;", "mov.u64 %d0, other;", "mov.u64 %d0, 0;", "mov.u64 %d0, -1;"]
    {
        assert_eq!(call(wrong), ["out-of-bounds"], "{wrong}");
    }
}

/// Returns the error of a launch of kernel `k` without parameters.
fn launch_error(ptx: &str) -> LaunchError {
    let program = Program::parse(&format!(".version 8.0\n.target sm_80\n.address_size 64\n{ptx}")).unwrap();
    let kernel = program.kernel("k").unwrap();
    let launch =
        LaunchConfig { grid: [1; 3], block: [1024, 1, 1], cluster: [1; 3], dynamic_shared: 0, params: Vec::new() };
    let options = limited(1, "ret;").options;
    exec::run(&program, &kernel, &launch, &mut SimMemory::new(), &options).unwrap_err()
}

#[test]
fn huge_variables_are_refused_before_they_are_allocated() {
    let e = launch_error(".global .b8 x[1099511627776];\n.entry k() { ret; }");
    assert!(matches!(&e, LaunchError::Memory { what, bytes: 1_099_511_627_776, .. } if what.contains('x')), "{e}");
    let e = launch_error(".entry k() { .local .b8 x[65536]; .reg .b64 %d; mov.u64 %d, x; ret; }");
    assert!(matches!(e, LaunchError::Memory { .. }), "{e}");
    let e = launch_error(".entry k() { .local .b8 x[600000]; .reg .b64 %d; mov.u64 %d, x; ret; }");
    assert!(matches!(e, LaunchError::Unsupported { .. }), "{e}");
    let e = launch_error(
        ".entry k() { .shared .b8 x[16000000]; .shared .b8 y[16000000]; .reg .b64 %d; mov.u64 %d, x; mov.u64 %d, y; ret; }",
    );
    assert!(matches!(e, LaunchError::Invalid { what: "smem", .. }), "{e}");
    for space in ["shared", "local"] {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k() {{ .{space} .b8 x[1099511627776]; ret; }}"
        );
        let e = Program::parse(&text).unwrap_err().to_string();
        assert!(e.contains("x is too large"), "{e}");
    }
}

#[test]
fn many_polling_warps_cost_little() {
    // 31 warps poll an mbarrier, with a clock in their loops as cuda::barrier has, while one warp computes.
    let body = "
        .reg .pred %p<3>; .reg .b32 %r<6>; .reg .b64 %d<4>; .shared .align 8 .b64 bar;
        mov.u32 %r0, %tid.x; mov.u32 %r1, bar; setp.ne.u32 %p0, %r0, 0; ld.param.u64 %d0, [p];
        @%p0 bra READY; mbarrier.init.shared.b64 [%r1], 32; READY: bar.sync 0;
        setp.lt.u32 %p1, %r0, 32; @%p1 bra WORK;
        POLL: mov.u64 %d1, %globaltimer; mbarrier.test_wait.parity.shared.b64 %p2, [%r1], 0; @%p2 bra END; nanosleep.u32 20; bra POLL;
        WORK: mov.u32 %r3, 0;
        LOOP: add.u32 %r3, %r3, 1; st.global.u32 [%d0], %r3; setp.lt.u32 %p2, %r3, 3000; @%p2 bra LOOP;
        mbarrier.arrive.shared.b64 %d2, [%r1];
        END: ret;";
    let mut case = Case::new("sm_90a", 1024, body);
    case.options.count_only = true;
    let report = case.run();
    assert!(report.has_no_findings(), "{:?}", report.findings);
    let executed: u64 = report.counters[0].by_instruction.iter().map(|c| c.warps).sum();
    // The warp that computes executes 12 000 instructions.
    assert!(executed < 40_000, "{executed}");
}
