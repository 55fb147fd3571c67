use super::*;
use crate::finding::FindingKind;
use std::time::Duration;

const HEAD: &str = ".version 9.0\n.target sm_80\n.address_size 64\n";

/// A kernel whose threads each increment one counter and store the old value at their own index.
const TICKETS: &str = "
.visible .entry tickets(.param .u64 out, .param .u64 counter) {
    .reg .b32 %r<6>; .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [out];
    ld.param.u64 %rd2, [counter];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3;
    atom.global.add.u32 %r5, [%rd2], 1;
    mul.wide.u32 %rd3, %r4, 4;
    add.s64 %rd4, %rd1, %rd3;
    st.global.u32 [%rd4], %r5;
    ret;
}";

/// A kernel whose threads all store their index at the same address.
const RACE: &str = "
.visible .entry race(.param .u64 out) {
    .reg .b32 %r<3>; .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    st.global.u32 [%rd1], %r1;
    ret;
}";

/// A kernel whose threads each double their element.
const DOUBLE: &str = "
.visible .entry double(.param .u64 x) {
    .reg .b32 %r<4>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [x];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.u32 %r2, [%rd3];
    add.s32 %r3, %r2, %r2;
    st.global.u32 [%rd3], %r3;
    ret;
}";

fn program(body: &str) -> Program {
    Program::parse(&format!("{HEAD}{body}")).expect("PTX")
}

fn launch(blocks: u32, threads: u32, params: &[u64]) -> LaunchConfig {
    let params = params.iter().flat_map(|p| p.to_le_bytes()).collect();
    LaunchConfig { grid: [blocks, 1, 1], block: [threads, 1, 1], cluster: [1; 3], dynamic_shared: 0, params }
}

fn plan(interleavings: u32, threads: usize, seed: u64) -> CheckPlan {
    CheckPlan { interleavings, threads, options: ExecOptions { seed, ..ExecOptions::default() }, buffers: Vec::new() }
}

#[test]
fn notes_buffers_that_depend_on_the_interleaving() {
    let program = program(TICKETS);
    let kernel = program.kernel("tickets").unwrap();
    let mut memory = SimMemory::new();
    let out = memory.alloc_uninitialized(4 * 256);
    let counter = memory.alloc(vec![0; 4]);
    let mut plan = plan(8, 2, 1);
    plan.buffers = vec![NamedBuffer { address: out, name: "tickets".into(), dtype: ElementType::U32 }];
    let report = check_kernel(&program, &kernel, &launch(4, 64, &[out, counter]), &memory, &plan).unwrap();
    assert!(report.has_no_findings(), "{:?}", report.findings);
    assert_eq!(report.memory.buffer_bytes(counter).unwrap(), 256u32.to_le_bytes());
    // The final value of the counter does not depend on the interleaving.
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
    let note = &report.notes[0];
    assert!(note.starts_with("results depend on the interleaving: tickets[") && note.contains("(u32) is "), "{note}");
    assert_eq!(report.counters[0].blocks, 4, "counts are of one run");
}

#[test]
fn report_does_not_depend_on_the_number_of_host_threads() {
    let (racy, tickets) = (program(RACE), program(TICKETS));
    let (race, ticket) = (racy.kernel("race").unwrap(), tickets.kernel("tickets").unwrap());
    let mut memory = SimMemory::new();
    let out = memory.alloc(vec![0; 4 * 256]);
    let counter = memory.alloc(vec![0; 4]);
    let (a, b) = (launch(1, 64, &[out]), launch(4, 64, &[out, counter]));
    let stages = [
        SimLaunch { program: &racy, kernel: &race, launch: &a },
        SimLaunch { program: &tickets, kernel: &ticket, launch: &b },
    ];
    let of = |threads| {
        let r = check(&stages, &memory, &plan(7, threads, 3)).unwrap();
        (r.findings, r.notes, r.counters, r.memory.buffer_bytes(out).unwrap().to_vec())
    };
    let one = of(1);
    assert_eq!(one.0[0].len(), 1);
    assert_eq!(one.0[0][0].kind, FindingKind::Race);
    assert_eq!(one.0[1], []);
    assert!(one.1.iter().any(|n| n.contains("buffer 0[")), "{:?}", one.1);
    for threads in [2, 3, 16] {
        assert_eq!(of(threads), one, "{threads} threads");
    }
}

#[test]
fn occurrences_add_up_and_launches_run_in_order() {
    let (racy, double) = (program(RACE), program(DOUBLE));
    let race = racy.kernel("race").unwrap();
    let mut memory = SimMemory::new();
    let out = memory.alloc(vec![0; 4]);
    let of =
        |n| check_kernel(&racy, &race, &launch(1, 64, &[out]), &memory, &plan(n, 1, 0)).unwrap().findings[0][0].count;
    assert!(of(1) > 0 && of(4) > of(1), "{} {}", of(1), of(4));

    let kernel = double.kernel("double").unwrap();
    let x = memory.alloc(ElementType::U32.arange_bytes(32));
    let l = launch(1, 32, &[x]);
    let stage = SimLaunch { program: &double, kernel: &kernel, launch: &l };
    let report = check(&[stage, stage, stage], &memory, &plan(3, 2, 0)).unwrap();
    assert!(report.has_no_findings() && report.notes.is_empty(), "{:?} {:?}", report.findings, report.notes);
    let eight: Vec<u8> = (0..32u32).flat_map(|i| (8 * i).to_le_bytes()).collect();
    assert_eq!(report.memory.buffer_bytes(x).unwrap(), eight);
    assert_eq!(memory.buffer_bytes(x).unwrap(), ElementType::U32.arange_bytes(32), "the caller's memory stays");
    assert_eq!(report.counters.len(), 3);
}

#[test]
fn runs_differ_in_seed_and_completion_timing() {
    let plan = plan(6, 1, 5);
    let all: Vec<ExecOptions> = (0..6).map(|i| options_of(&plan, i)).collect();
    let seeds: BTreeSet<u64> = all.iter().map(|o| o.seed).collect();
    assert_eq!(seeds.len(), 6);
    use CompletionTiming::{Earliest, Latest, Random};
    assert_eq!(
        all.iter().map(|o| o.completion).collect::<Vec<_>>(),
        [Latest, Earliest, Random, Latest, Earliest, Random]
    );
}

#[test]
fn invalid_launch_is_an_error() {
    let double = program(DOUBLE);
    let kernel = double.kernel("double").unwrap();
    let e = check_kernel(&double, &kernel, &launch(1, 2000, &[0]), &SimMemory::new(), &plan(4, 2, 0)).unwrap_err();
    assert!(e.to_string().starts_with("block: "), "{e}");
}

#[test]
fn findings_name_the_buffers_of_the_plan() {
    let program = program(DOUBLE);
    let kernel = program.kernel("double").unwrap();
    let mut memory = SimMemory::new();
    memory.alloc(vec![0; 64]);
    let x = memory.alloc(vec![0; 64]);
    let message = |buffers: Vec<NamedBuffer>| {
        let plan = CheckPlan { buffers, ..plan(1, 1, 0) };
        let report = check_kernel(&program, &kernel, &launch(1, 32, &[x]), &memory, &plan).unwrap();
        report.findings[0][0].message.clone()
    };
    let named = vec![NamedBuffer { address: x, name: "arg0".into(), dtype: ElementType::F32 }];
    assert!(message(named).contains("past the end of arg0, which has 64 bytes"));
    assert!(message(Vec::new()).contains("past the end of buffer 1, which has 64 bytes"));
}

/// A kernel whose warps execute about three instructions `rounds` times.
const LOOP: &str = "
.visible .entry loop(.param .u32 rounds) {
    .reg .b32 %r<3>; .reg .pred %p<2>;
    ld.param.u32 %r1, [rounds];
    mov.u32 %r2, 0;
again:
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p1, %r2, %r1;
    @%p1 bra again;
    ret;
}";

/// Estimates the check of [`LOOP`] from so many instructions of the first interleaving as run in 64 turns of warps:
/// between 20,000 and 50,000.
fn estimate_from_64_turns(blocks: u32, rounds: u32, seed: u64) -> CheckEstimate {
    let program = program(LOOP);
    let kernel = program.kernel("loop").unwrap();
    let launch = LaunchConfig { params: rounds.to_le_bytes().to_vec(), ..launch(blocks, 32, &[]) };
    let launch = SimLaunch { program: &program, kernel: &kernel, launch: &launch };
    estimate_check(launch, &SimMemory::new(), &plan(8, 1, 4 * seed), Duration::ZERO).unwrap()
}

#[test]
fn an_estimate_scales_the_measured_part() {
    let e = estimate_from_64_turns(1000, 1000, 0);
    let executed = 1000.0 * 3000.0 * e.measured_part;
    assert!((20_000.0..50_000.0).contains(&executed) && !e.counted, "{e:?}");
    let whole = e.measured_seconds / e.measured_part;
    assert!(e.seconds.is_some_and(|seconds| (4.0..8.1).contains(&(seconds / whole))), "eight interleavings: {e:?}");
}

#[test]
fn an_estimate_counts_instructions_if_no_block_ended() {
    // The seed determines how many blocks run at the same time. Several blocks have not ended after 64 turns, but the
    // first block of a counting run has.
    let estimates: Vec<CheckEstimate> = (0..8).map(|seed| estimate_from_64_turns(6, 6000, seed)).collect();
    assert!(estimates.iter().any(|e| e.counted) && estimates.iter().any(|e| !e.counted), "{estimates:?}");
    for e in estimates {
        let executed = 6.0 * 18_000.0 * e.measured_part;
        assert!(e.seconds.is_some() && (20_000.0..50_000.0).contains(&executed), "{e:?}");
    }
    let e = estimate_from_64_turns(1, 10_000_000, 0);
    assert!(e.counted && e.seconds.is_none() && e.measured_part == 0.0, "no block ends: {e:?}");
}

#[test]
fn an_estimate_of_a_short_kernel_runs_whole_interleavings() {
    let program = program(DOUBLE);
    let kernel = program.kernel("double").unwrap();
    let mut memory = SimMemory::new();
    let x = memory.alloc(vec![0; 256]);
    let launch = launch(1, 64, &[x]);
    let launch = SimLaunch { program: &program, kernel: &kernel, launch: &launch };
    let e = estimate_check(launch, &memory, &plan(2, 1, 1), Duration::from_secs(100)).unwrap();
    assert_eq!((e.measured_interleavings, e.measured_part, e.counted), (2, 1.0, false));
    assert!(e.seconds.is_some_and(|seconds| seconds <= e.measured_seconds), "{e:?}");
}
