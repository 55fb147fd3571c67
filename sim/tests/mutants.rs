//! Mutation tests of two small kernels: each possible mutation is applied once, and the simulator must report a
//! finding for each mutant.

use reel_sim::exec::{self, ExecOptions, LaunchConfig};
use reel_sim::finding::FindingKind;
use reel_sim::memory::SimMemory;
use reel_sim::mutate::{all_mutants, apply_mutant, reached_mutants, run_mutants};
use reel_sim::program::{Program, ProgramError};
use reel_sim::ptx::ast::{Instruction, Operand};

/// A kernel whose warps exchange elements through shared memory, which two `cp.async` groups fill. It uses a named
/// barrier, a loop, and a counter of finished blocks: the block that finishes last computes the sum.
const EXCHANGE: &str = "
.version 9.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 x, .param .u64 out, .param .u64 done, .param .u64 sum) {
    .reg .pred %p<4>; .reg .b32 %r<24>; .reg .b64 %rd<16>;
    .shared .align 16 .b8 tile[512];
    .shared .align 4 .b8 last[4];
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [out];
    ld.param.u64 %rd3, [done];
    ld.param.u64 %rd4, [sum];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    shl.b32 %r3, %r1, 2;
    mov.u32 %r4, tile;
    add.u32 %r5, %r4, %r3;
    cvt.u64.u32 %rd5, %r3;
    add.u64 %rd6, %rd1, %rd5;
    cp.async.ca.shared.global [%r5], [%rd6], 4;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r5+256], [%rd6+256], 4;
    cp.async.commit_group;
    cp.async.wait_group 1;
    mov.u32 %r6, 64;
    bar.sync 1, %r6;
    xor.b32 %r7, %r1, 33;
    shl.b32 %r8, %r7, 2;
    add.u32 %r9, %r4, %r8;
    ld.shared.u32 %r10, [%r9];
    cp.async.wait_group 0;
    bar.sync 0;
    ld.shared.u32 %r11, [%r9+256];
    add.u32 %r12, %r10, %r11;
    shl.b32 %r13, %r2, 6;
    add.u32 %r14, %r13, %r1;
    mul.wide.u32 %rd7, %r14, 4;
    add.u64 %rd8, %rd2, %rd7;
    st.global.u32 [%rd8], %r12;
    bar.sync 0;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra WAIT;
    fence.acq_rel.gpu;
    atom.relaxed.gpu.global.add.u32 %r15, [%rd3], 1;
    fence.acq_rel.gpu;
    st.shared.u32 [last], %r15;
WAIT:
    bar.sync 0;
    ld.shared.u32 %r16, [last];
    setp.ne.u32 %p2, %r16, 1;
    @%p2 bra END;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra END;
    mov.u32 %r17, 0;
    mov.u32 %r18, 0;
LOOP:
    mul.wide.u32 %rd9, %r17, 4;
    add.u64 %rd10, %rd2, %rd9;
    ld.global.u32 %r19, [%rd10];
    add.u32 %r18, %r18, %r19;
    add.u32 %r17, %r17, 1;
    setp.lt.u32 %p3, %r17, 128;
    @%p3 bra LOOP;
    st.global.u32 [%rd4], %r18;
END:
    ret;
}";

/// A kernel with two bulk copies. It waits for each on an mbarrier, with the phase parity in a register.
const BULK: &str = "
.version 9.0
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 x, .param .u64 out) {
    .reg .pred %p<4>; .reg .b32 %r<16>; .reg .b64 %rd<8>;
    .shared .align 128 .b8 tile[128];
    .shared .align 8 .b8 bar[8];
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, tile;
    mov.u32 %r3, bar;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra READY;
    mbarrier.init.shared::cta.b64 [%r3], 1;
    fence.mbarrier_init.release.cluster;
READY:
    bar.sync 0;
    mov.u32 %r4, 0;
    mov.u32 %r5, 0;
AGAIN:
    @%p1 bra WAIT;
    mov.u32 %r6, 128;
    mbarrier.arrive.expect_tx.shared::cta.b64 %rd5, [%r3], %r6;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1], 128, [%r3];
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], %r4;
    @!%p2 bra WAIT;
    and.b32 %r10, %r1, 31;
    shl.b32 %r7, %r10, 2;
    add.u32 %r8, %r2, %r7;
    ld.shared.u32 %r9, [%r8];
    add.u32 %r5, %r5, %r9;
    bar.sync 0;
    xor.b32 %r4, %r4, 1;
    setp.eq.u32 %p3, %r4, 1;
    add.u64 %rd1, %rd1, 128;
    @%p3 bra AGAIN;
    mul.wide.u32 %rd3, %r1, 4;
    add.u64 %rd4, %rd2, %rd3;
    st.global.u32 [%rd4], %r5;
    ret;
}";

/// Runs a mutant of [`EXCHANGE`] or, if `bulk`, of [`BULK`] with several seeds. Returns the kind of the first
/// finding, the sum of the kernel's results, and how often each instruction was executed.
fn judge(program: &Program, bulk: bool) -> (Option<FindingKind>, u64, Vec<u64>) {
    let kernel = program.kernel("k").expect("a kernel");
    let mut found = None;
    let (mut result, mut executed) = (0, Vec::new());
    for seed in 0..6 {
        let mut memory = SimMemory::new();
        let x = memory.alloc((0..128u32).flat_map(u32::to_le_bytes).collect());
        let out = memory.alloc_uninitialized(512);
        let mut params = vec![x, out];
        if !bulk {
            params.push(memory.alloc(vec![0; 4]));
            params.push(memory.alloc_uninitialized(4));
        }
        let last = params[params.len() - 1];
        let launch = LaunchConfig {
            grid: [if bulk { 1 } else { 2 }, 1, 1],
            block: [64, 1, 1],
            cluster: [1; 3],
            dynamic_shared: 0,
            params: params.iter().flat_map(|p| p.to_le_bytes()).collect(),
        };
        let completion =
            [exec::CompletionTiming::Latest, exec::CompletionTiming::Earliest, exec::CompletionTiming::Random]
                [seed as usize % 3];
        let options = ExecOptions { seed, completion, patience: 100_000, ..ExecOptions::default() };
        let outcome = exec::run(program, &kernel, &launch, &mut memory, &options).expect("a launch");
        executed = outcome.counters.by_instruction.iter().map(|c| c.warps).collect();
        found = found.or(outcome.findings.into_list().first().map(|f| f.kind));
        let words = memory.buffer_bytes(last).expect("a buffer").chunks(4).take(if bulk { 64 } else { 1 });
        result = words.map(|w| u64::from(u32::from_le_bytes(w.try_into().expect("four bytes")))).sum();
    }
    (found, result, executed)
}

fn survivors(text: &str, bulk: bool) -> (usize, Vec<String>) {
    let program = Program::parse(text).expect("PTX");
    let (found, _, executed) = judge(&program, bulk);
    assert_eq!(found, None, "the kernel itself is correct");
    let kernel = program.kernel("k").expect("a kernel");
    let all = reached_mutants(&program, &kernel, |pc| executed[pc as usize] > 0);
    assert_eq!(all, all_mutants(&program.module));
    let judged = run_mutants::<ProgramError>(&program, &all, |p| Ok(judge(p, bulk).0)).expect("programs");
    let alive = judged.iter().filter(|v| v.killed_by.is_none()).map(|v| v.mutant.to_string()).collect();
    (judged.len(), alive)
}

#[test]
fn unchanged_kernels_compute_the_expected_sum() {
    let exchange = judge(&Program::parse(EXCHANGE).unwrap(), false);
    assert_eq!((exchange.0, exchange.1), (None, 2 * 127 * 64), "{exchange:?}");
    let bulk = judge(&Program::parse(BULK).unwrap(), true);
    assert_eq!((bulk.0, bulk.1), (None, 63 * 64), "{bulk:?}");
}

#[test]
fn every_mutation_is_made_once_per_instruction() {
    let of = |text: &str| -> Vec<String> {
        let program = Program::parse(text).unwrap();
        all_mutants(&program.module).iter().map(|m| format!("{} {}", m.opcode, m.change)).collect()
    };
    let exchange = of(EXCHANGE);
    for one in [
        "cp.async.commit_group deleted",
        "cp.async.wait_group waits for one group fewer",
        "bar.sync deleted",
        "bar.sync counts -32 threads",
        "bar.sync counts +32 threads",
        "fence.acq_rel.gpu .gpu is .cta",
        "atom.relaxed.gpu.global.add.u32 .gpu is .cta",
    ] {
        assert!(exchange.iter().any(|m| m == one), "no {one:?} in {exchange:?}");
    }
    assert!(!exchange.iter().any(|m| m.starts_with("atom") && m.ends_with("deleted")));
    let bulk = of(BULK);
    for one in [
        "try_wait.parity.shared::cta.b64 parity flipped",
        "expects -16 bytes",
        "expects +16 bytes",
        "fence.mbarrier_init",
    ] {
        assert!(bulk.iter().any(|m| m.contains(one)), "no {one:?} in {bulk:?}");
    }
}

#[test]
fn mutant_differs_in_one_instruction() {
    for text in [EXCHANGE, BULK] {
        let program = Program::parse(text).unwrap();
        for m in all_mutants(&program.module) {
            let changed = apply_mutant(&program, &m).unwrap();
            let (old, new) = (&program.module.functions[0].body, &changed.module.functions[0].body);
            let inserted = new.len() - old.len();
            assert!(inserted <= 1, "{m}");
            let at = m.instruction;
            let targets_follow =
                |before: &Instruction, after: &Instruction| match (before.operands.last(), after.operands.last()) {
                    (Some(Operand::Label(a)), Some(Operand::Label(b))) => {
                        new[*b as usize].line == old.get(*a as usize).map_or(0, |i| i.line)
                    }
                    (a, b) => a == b,
                };
            for (n, before) in old.iter().enumerate().filter(|(n, _)| *n != at) {
                let after = &new[n + if n > at { inserted } else { 0 }];
                assert!(before.opcode == after.opcode && targets_follow(before, after), "{m}: {before:?} {after:?}");
            }
            assert!(format!("{:?}", &new[at..=at + inserted]) != format!("{:?}", &old[at..=at]), "{m} changes nothing");
        }
    }
}

#[test]
fn mutants_of_a_grid_reduction_are_killed() {
    let (n, alive) = survivors(EXCHANGE, false);
    assert!(n >= 17, "{n}");
    assert_eq!(alive, Vec::<String>::new());
}

#[test]
fn mutants_of_a_bulk_copy_are_killed() {
    let (n, alive) = survivors(BULK, true);
    assert!(n >= 7, "{n}");
    // The mutant without fence.mbarrier_init has no finding, only a note: the block barrier already orders the
    // mbarrier's initialisation before its use.
    let alive: Vec<String> = alive.into_iter().filter(|m| !m.contains("fence.mbarrier_init")).collect();
    assert_eq!(alive, Vec::<String>::new());
}
