//! Blocks that wait for later blocks of the grid. A GPU runs all blocks that fit on it at once, in any order, so each
//! block must make progress, whatever the waiting blocks execute in their loops.

use super::harness::{Case, bytes_of_words};

/// Each block of 64 threads publishes its number plus 1 in `part` and adds 1 to `count`; `poll` waits until `count` is
/// the number of blocks, `%r2`. Then each block writes its successor's number to `out`. In `poll`, `%d0` is the address
/// of `count`, `%p0` is false in thread 0, and `%r5` is free.
fn case(blocks: u32, poll: &str) -> Case {
    let text = format!(
        ".reg .pred %p<6>; .reg .b32 %r<12>; .reg .b64 %d<9>; .shared .u32 seen;
        ld.param.u64 %d0, [p]; ld.param.u64 %d1, [part]; ld.param.u64 %d2, [out];
        mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %nctaid.x; setp.ne.u32 %p0, %r0, 0;
        mul.wide.u32 %d3, %r1, 4; add.u64 %d4, %d1, %d3; add.u64 %d5, %d2, %d3;
        @%p0 bra LOOP;
        add.u32 %r3, %r1, 1; st.global.u32 [%d4], %r3; red.release.gpu.global.add.u32 [%d0], 1;
        LOOP:
        {poll}
        @%p0 bra DONE;
        add.u32 %r6, %r1, 1; rem.u32 %r6, %r6, %r2; mul.wide.u32 %d6, %r6, 4; add.u64 %d7, %d1, %d6;
        ld.global.u32 %r7, [%d7]; st.global.u32 [%d5], %r7;
        DONE: ret;"
    );
    let case = Case::new("sm_90a", 64, &text);
    let many = vec![0; 4 * blocks as usize];
    Case {
        ptx: case.ptx.replace(".param .u64 p)", ".param .u64 p, .param .u64 part, .param .u64 out)"),
        blocks,
        buffers: vec![vec![0; 4], many.clone(), many],
        ..case
    }
}

/// The block's threads read the count in turn with block barriers, as Triton's locks do.
const EXCHANGE: &str = "bar.sync 0;
    @%p0 bra READ; ld.acquire.gpu.global.b32 %r5, [%d0]; st.shared.u32 [seen], %r5;
    READ: bar.sync 0; ld.shared.u32 %r5, [seen]; setp.lt.u32 %p1, %r5, %r2; @%p1 bra LOOP;";

/// All threads poll and then vote on whether to poll again, as in CUTLASS's semaphore.
const VOTE: &str =
    "ld.acquire.gpu.global.b32 %r5, [%d0]; setp.lt.u32 %p1, %r5, %r2; bar.red.or.pred %p2, 0, %p1; @%p2 bra LOOP;";

/// The loop of [`VOTE`], but with an atomic that changes nothing instead of the load, and a pause in each iteration.
const ATOMIC: &str = "atom.acquire.gpu.global.add.u32 %r5, [%d0], 0; nanosleep.u32 100; setp.lt.u32 %p1, %r5, %r2;
    bar.red.or.pred %p2, 0, %p1; @%p2 bra LOOP;";

/// The loop of [`EXCHANGE`], which also counts its iterations in shared memory, so that memory changes all the time.
const COUNTING: &str = "bar.sync 0;
    @%p0 bra READ; ld.acquire.gpu.global.b32 %r5, [%d0]; st.shared.u32 [seen], %r5;
    atom.shared.add.u32 %r9, [turns], 1;
    READ: bar.sync 0; ld.shared.u32 %r5, [seen]; setp.lt.u32 %p1, %r5, %r2; @%p1 bra LOOP;";

fn assert_ends(blocks: u32, case: &Case) {
    let report = case.run();
    assert_eq!(report.findings.concat(), [], "{}", case.ptx);
    let out = report.memory.iter().nth(2).unwrap().base;
    let want = bytes_of_words((0..blocks).map(|i| (i + 1) % blocks + 1));
    assert_eq!(report.memory.buffer_bytes(out).unwrap(), want);
}

#[test]
fn blocks_that_poll_with_block_barriers_let_later_blocks_start() {
    for poll in [EXCHANGE, ATOMIC] {
        assert_ends(4, &case(4, poll));
    }
    // Only eight threads per block vote, because the simulation of many acquires takes long.
    assert_ends(4, &Case { threads: 8, ..case(4, VOTE) });
    let counting = case(4, COUNTING).replace(".shared .u32 seen;", ".shared .u32 seen; .shared .u32 turns;");
    assert_ends(4, &counting.replace("@%p0 bra LOOP;\n", "@%p0 bra LOOP; st.shared.u32 [turns], 0;\n"));
}

#[test]
fn a_whole_grid_that_fits_the_gpu_may_wait_for_its_last_block() {
    // One multiprocessor holds 32 blocks of this kernel.
    let mut many = case(32, EXCHANGE);
    many.options.gpu.multiprocessors = 1;
    assert_ends(32, &many);
}

/// A grid that does not fit on the GPU ends in a deadlock on real hardware, too.
#[test]
fn blocks_that_wait_for_more_blocks_than_the_gpu_holds_are_a_deadlock() {
    // A multiprocessor holds two of these blocks, and the GPU has two multiprocessors.
    let mut large = Case { threads: 1024, ..case(6, EXCHANGE) };
    large.options.gpu.multiprocessors = 2;
    large.options.limits.idle_steps = 2_000_000;
    let findings = large.run().findings.concat();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].kind.name(), "deadlock");
    assert!(
        findings[0].message.contains("2 more blocks of the grid cannot become resident"),
        "{}",
        findings[0].message
    );
}
