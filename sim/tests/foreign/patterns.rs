//! Synchronisation patterns of public kernels: each kernel is correct, and each of its mutants (a fence, wait, phase or
//! count removed or changed) has a finding.

use super::harness::{Case, bytes_of_words};

/// Both blocks of a cluster initialise an mbarrier, fence the initialisation, and meet at a relaxed cluster barrier;
/// then each block's first thread arrives at both mbarriers. CUTLASS and Triton start their pipelines like this.
fn relaxed_cluster_barrier() -> Case {
    let body = "
        .reg .b32 %r<8>; .reg .b64 %d<2>; .reg .pred %p<3>; .shared .align 8 .b64 bar;
        mov.u32 %r0, %tid.x; mov.u32 %r2, bar; setp.ne.u32 %p0, %r0, 0;
        @%p0 bra READY;
        mbarrier.init.shared::cta.b64 [%r2], 2;
        fence.mbarrier_init.release.cluster; // fence
        READY:
        barrier.cluster.arrive.relaxed.aligned;
        barrier.cluster.wait.acquire.aligned;
        @%p0 bra WAIT;
        mapa.shared::cluster.u32 %r3, %r2, 0;
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r3];
        mapa.shared::cluster.u32 %r3, %r2, 1;
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r3];
        WAIT:
        mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p1, [%r2], 0;
        @!%p1 bra WAIT;
        ret;";
    Case { blocks: 2, cluster: 2, ..Case::new("sm_90a", 64, body) }
}

#[test]
fn a_fenced_mbarrier_initialisation_passes_a_relaxed_cluster_barrier() {
    let case = relaxed_cluster_barrier();
    assert_eq!(case.finding_kinds(), [""; 0]);
    let report = case.run();
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    assert_eq!(case.without_lines_marked("fence").finding_kinds(), ["mbarrier"]);
    // The fence covers only the initialisations that its own thread executed before it.
    let init = "mbarrier.init.shared::cta.b64 [%r2], 2;";
    let late = case.replace(init, "").replace("READY:\n", &format!("@!%p0 {init} READY:\n"));
    assert_eq!(late.finding_kinds(), ["mbarrier"]);
    let elsewhere =
        case.without_lines_marked("fence").replace("READY:\n", "READY: @%p0 fence.mbarrier_init.release.cluster;\n");
    assert_eq!(elsewhere.finding_kinds(), ["mbarrier"]);
    let threads_of_the_block_see_it =
        case.replace("barrier.cluster.arrive.relaxed.aligned;", "bar.sync 0; barrier.cluster.arrive.relaxed.aligned;");
    assert_eq!(threads_of_the_block_see_it.finding_kinds(), [""; 0]);
    assert_eq!(case.surviving_mutants(), Vec::<String>::new());
}

/// Threads write shared memory that the other block of the cluster reads after a relaxed cluster barrier.
fn fenced_cluster_data() -> Case {
    let body = "
        .reg .b32 %r<8>; .reg .b64 %d<3>; .shared .align 4 .b8 tile[256];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, %cluster_ctarank; shl.b32 %r2, %r0, 2;
        mov.u32 %r3, tile; add.u32 %r3, %r3, %r2; st.shared.u32 [%r3], %r0;
        fence.acq_rel.cluster; // fence
        barrier.cluster.arrive.relaxed.aligned;
        barrier.cluster.wait.acquire.aligned;
        xor.b32 %r4, %r1, 1; mapa.shared::cluster.u32 %r5, %r3, %r4; ld.shared::cluster.u32 %r6, [%r5];
        shl.b32 %r7, %r1, 8; add.u32 %r7, %r7, %r2; cvt.u64.u32 %d1, %r7; add.u64 %d2, %d0, %d1;
        st.global.u32 [%d2], %r6;
        barrier.cluster.arrive.aligned;
        barrier.cluster.wait.aligned;
        ret;";
    Case { blocks: 2, cluster: 2, ..Case::new("sm_90a", 64, body) }
}

#[test]
fn a_memory_fence_passes_data_through_a_relaxed_cluster_barrier() {
    let case = fenced_cluster_data();
    assert_eq!(case.finding_kinds(), [""; 0]);
    assert_eq!(case.without_lines_marked("fence").finding_kinds(), ["race"]);
    assert_eq!(case.replace("fence.acq_rel.cluster", "fence.acq_rel.cta").finding_kinds(), ["race"]);
    assert_eq!(case.replace("fence.acq_rel.cluster", "fence.mbarrier_init.release.cluster").finding_kinds(), ["race"]);
    assert_eq!(case.surviving_mutants(), Vec::<String>::new());
}

/// A producer warp fills two stages by bulk copies, each of them five times, and a consumer warp empties them.
fn ring_of_stages() -> Case {
    let body = "
        .reg .pred %p<6>; .reg .b32 %r<24>; .reg .b64 %d<8>; .shared .align 128 .b8 tile[256];
        .shared .align 8 .b8 full[16]; .shared .align 8 .b8 empty[16];
        ld.param.u64 %d0, [p]; mov.u64 %d1, %d0; mov.u32 %r0, %tid.x; setp.ne.u32 %p0, %r0, 0;
        mov.u32 %r1, full; mov.u32 %r2, empty; mov.u32 %r3, tile; mov.u32 %r4, 0; mov.u32 %r20, 0;
        @%p0 bra READY;
        mbarrier.init.shared::cta.b64 [%r1], 1;
        mbarrier.init.shared::cta.b64 [%r1+8], 1;
        mbarrier.init.shared::cta.b64 [%r2], 32;
        mbarrier.init.shared::cta.b64 [%r2+8], 32;
        fence.mbarrier_init.release.cluster;
        READY:
        bar.sync 0;
        and.b32 %r14, %r0, 31; shl.b32 %r14, %r14, 2; setp.ge.u32 %p1, %r0, 32;
        @%p1 bra CONSUME;
        @%p0 bra END;
        PRODUCE:
        and.b32 %r5, %r4, 1; shr.u32 %r6, %r4, 1; and.b32 %r6, %r6, 1; xor.b32 %r7, %r6, 1;
        shl.b32 %r8, %r5, 3; add.u32 %r9, %r2, %r8; add.u32 %r10, %r1, %r8; shl.b32 %r11, %r5, 7; add.u32 %r12, %r3, %r11;
        EMPTY:
        mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r9], %r7;
        @!%p2 bra EMPTY;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r10], 128;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r12], [%d0], 128, [%r10];
        add.u64 %d0, %d0, 128; add.u32 %r4, %r4, 1; setp.lt.u32 %p3, %r4, 10;
        @%p3 bra PRODUCE;
        bra END;
        CONSUME:
        and.b32 %r5, %r4, 1; shr.u32 %r6, %r4, 1; and.b32 %r6, %r6, 1;
        shl.b32 %r8, %r5, 3; add.u32 %r9, %r2, %r8; add.u32 %r10, %r1, %r8; shl.b32 %r11, %r5, 7; add.u32 %r12, %r3, %r11;
        add.u32 %r12, %r12, %r14;
        FULL:
        mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r10], %r6;
        @!%p2 bra FULL;
        ld.shared.u32 %r13, [%r12]; mad.lo.u32 %r20, %r20, 3, %r13;
        mbarrier.arrive.shared::cta.b64 %d5, [%r9];
        add.u32 %r4, %r4, 1; setp.lt.u32 %p3, %r4, 10;
        @%p3 bra CONSUME;
        cvt.u64.u32 %d2, %r14; add.u64 %d1, %d1, %d2; st.global.u32 [%d1+1280], %r20;
        END: ret;";
    Case { buffers: vec![bytes_of_words(0..512)], ..Case::new("sm_90a", 64, body) }
}

#[test]
fn a_ring_of_bulk_copies_needs_every_wait_phase_and_count() {
    let case = ring_of_stages();
    let survivors = case.surviving_mutants();
    // The block barrier orders the initialisation, so a missing `fence.mbarrier_init` gives only a note.
    assert!(survivors.iter().all(|m| m.contains("fence.mbarrier_init")), "{survivors:?}");
    assert!(!case.replace("[%r2], 32", "[%r2], 31").finding_kinds().is_empty());
    assert!(!case.replace("xor.b32 %r7, %r6, 1;", "mov.u32 %r7, %r6;").finding_kinds().is_empty());
}

/// Threads fill a tile three times; each time, one thread stores the tile by a bulk copy.
fn ordered_bulk_store() -> Case {
    let body = "
        .reg .pred %p<2>; .reg .b32 %r<8>; .reg .b64 %d<3>; .shared .align 128 .b8 tile[256];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, tile; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
        setp.ne.u32 %p0, %r0, 0; mov.u32 %r4, 0;
        AGAIN:
        st.shared.u32 [%r3], %r4;
        fence.proxy.async.shared::cta;
        bar.sync 0;
        @%p0 bra STORED;
        cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 256;
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group.read 0;
        STORED:
        bar.sync 0;
        add.u64 %d0, %d0, 256; add.u32 %r4, %r4, 1; setp.lt.u32 %p1, %r4, 3;
        @%p1 bra AGAIN;
        ret;";
    Case::new("sm_90a", 64, body)
}

#[test]
fn an_ordered_bulk_store_needs_fence_and_wait() {
    let case = ordered_bulk_store();
    assert_eq!(case.surviving_mutants(), Vec::<String>::new());
    assert_eq!(case.replace("wait_group.read 0", "wait_group.read 1").finding_kinds(), ["async-not-waited"]);
}

#[test]
fn lanes_may_issue_the_same_bulk_store() {
    let lanes = "setp.ne.u32 %p0, %r0, 0;";
    let case = ordered_bulk_store().replace(lanes, "setp.ge.u32 %p0, %r0, 32;");
    let report = case.run();
    assert_eq!(report.findings.concat(), []);
    assert!(report.notes.iter().any(|n| n.contains("one elected lane is enough")), "{:?}", report.notes);
    // The copies of all lanes read the tile, so each lane must wait for its own copy.
    let wait = "cp.async.bulk.wait_group.read 0;";
    let one_waits = format!("setp.ne.u32 %p1, %r0, 0; @%p1 bra STORED; {wait}");
    assert_eq!(case.replace(wait, &one_waits).finding_kinds(), ["async-not-waited"]);
    // Lanes that store different bytes to the same address are reported.
    let store = "cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 256;";
    let pieces = "and.b32 %r5, %r0, 15; shl.b32 %r5, %r5, 4; add.u32 %r5, %r1, %r5;
        cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r5], 16;";
    assert_eq!(case.replace(store, pieces).finding_kinds(), ["async-not-waited"]);
}

/// Warp 1 writes a shared word and then executes `leave`; warp 0 waits at `barrier` and reads the word.
fn early_exit(leave: &str, barrier: &str) -> Case {
    let body = format!(
        ".reg .b32 %r<5>; .reg .b64 %d<3>; .reg .pred %p; .shared .b32 word;
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; setp.lt.u32 %p, %r0, 32; @%p bra READ;
        setp.ne.u32 %p, %r0, 32; @%p bra LEAVE; st.shared.u32 [word], %r0;
        LEAVE: {leave}
        READ: {barrier}
        ld.shared.u32 %r1, [word]; mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1; st.global.u32 [%d1], %r1; ret;"
    );
    Case::new("sm_80", 64, &body)
}

#[test]
fn a_barrier_that_an_exit_completes_is_a_note() {
    let report = early_exit("ret;", "bar.sync 0;").run();
    // Warp 0 may pass the barrier only after warp 1 has exited, so it always reads the word.
    assert_eq!(report.findings.concat(), []);
    assert!(report.notes.iter().any(|n| n.contains("threads that have exited")), "{:?}", report.notes);
    // Without a barrier, warp 0 may read before warp 1 writes.
    assert!(early_exit("ret;", "").finding_kinds().contains(&"race"));
    // A barrier of 32 threads does not wait for warp 1.
    assert!(early_exit("ret;", "bar.sync 0, 32;").finding_kinds().contains(&"race"));
    // With all threads at the barrier there is no note.
    let both = early_exit("bar.sync 0; ret;", "bar.sync 0;").run();
    assert!(both.has_no_findings() && both.notes.is_empty(), "{:?}", both.notes);
}

/// One warp polls an mbarrier by `test_wait` with `nanosleep`, while the other warps arrive after long loops.
fn polling_barrier() -> Case {
    let body = "
        .reg .pred %p<3>; .reg .b32 %r<9>; .reg .b64 %d<4>; .shared .align 8 .b64 bar; .shared .align 4 .b8 tile[512];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, bar; setp.ne.u32 %p0, %r0, 0;
        shl.b32 %r2, %r0, 2; mov.u32 %r3, tile; add.u32 %r3, %r3, %r2;
        @%p0 bra READY;
        mbarrier.init.shared::cta.b64 [%r1], 96;
        READY:
        bar.sync 0;
        setp.lt.u32 %p1, %r0, 32;
        @%p1 bra POLL;
        mov.u32 %r4, 0;
        COMPUTE:
        add.u32 %r4, %r4, 1; setp.lt.u32 %p2, %r4, 200;
        @%p2 bra COMPUTE;
        st.shared.u32 [%r3], %r4;
        mbarrier.arrive.shared::cta.b64 %d3, [%r1];
        bra END;
        POLL:
        mbarrier.test_wait.parity.shared::cta.b64 %p2, [%r1], 0;
        @%p2 bra DONE;
        nanosleep.u32 100;
        bra POLL;
        DONE:
        ld.shared.u32 %r5, [%r3+128]; ld.shared.u32 %r6, [%r3+256]; add.u32 %r5, %r5, %r6;
        cvt.u64.u32 %d1, %r2; add.u64 %d2, %d0, %d1; st.global.u32 [%d2], %r5;
        END: ret;";
    Case::new("sm_90a", 128, body)
}

#[test]
fn a_polled_mbarrier_needs_its_wait_and_count() {
    let case = polling_barrier();
    assert_eq!(case.surviving_mutants(), Vec::<String>::new());
    assert!(!case.replace("[%r1], 96", "[%r1], 128").finding_kinds().is_empty());
    assert!(!case.replace("[%r1], 96", "[%r1], 64").finding_kinds().is_empty());
}

/// A block writes data and then a flag; the other block polls the flag and reads the data.
fn flag_between_blocks() -> Case {
    let body = "
        .reg .pred %p<3>; .reg .b32 %r<9>; .reg .b64 %d<4>;
        ld.param.u64 %d0, [p]; mov.u32 %r0, %ctaid.x; mov.u32 %r1, %tid.x; setp.ne.u32 %p0, %r0, 0;
        mul.wide.u32 %d1, %r1, 4; add.u64 %d2, %d0, %d1; setp.ne.u32 %p1, %r1, 0;
        @%p0 bra READ;
        st.global.u32 [%d2+64], %r1;
        bar.sync 0;
        @%p1 bra END;
        st.release.gpu.global.u32 [%d0], 1;
        bra END;
        READ:
        @%p1 bra MEET;
        POLL:
        ld.acquire.gpu.global.u32 %r2, [%d0]; setp.eq.u32 %p2, %r2, 0;
        @%p2 bra POLL;
        MEET:
        bar.sync 0;
        ld.global.u32 %r3, [%d2+64]; st.global.u32 [%d2+512], %r3;
        END: ret;";
    Case { blocks: 2, ..Case::new("sm_80", 64, body) }
}

#[test]
fn a_flag_between_blocks_needs_release_acquire_and_barriers() {
    let case = flag_between_blocks();
    assert_eq!(case.surviving_mutants(), Vec::<String>::new());
    for (from, to) in [("st.release", "st.relaxed"), ("ld.acquire", "ld.relaxed"), ("st.release.gpu", "st.release.cta")]
    {
        assert_eq!(case.replace(from, to).finding_kinds(), ["race"], "{to}");
    }
}

/// A warpgroup executes `access` on a tile; one lane of each warp then signals a thread, which executes `reuse`.
fn signal_by_one_lane(access: &str, reuse: &str) -> Case {
    let body = format!(
        "
        .reg .pred %p<3>; .reg .b32 %r<9>; .reg .b64 %d<4>; .shared .align 8 .b64 empty; .shared .align 8 .b64 full;
        .shared .align 16 .b8 tile[512];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, empty; mov.u32 %r7, full; setp.ne.u32 %p0, %r0, 128;
        shl.b32 %r2, %r0, 2; mov.u32 %r3, tile; add.u32 %r4, %r3, %r2; and.b32 %r5, %r0, 31; setp.ne.u32 %p1, %r5, 0;
        @%p0 bra READY;
        mbarrier.init.shared::cta.b64 [%r1], 4; mbarrier.init.shared::cta.b64 [%r7], 1; st.shared.u32 [%r3+4], %r0;
        READY: bar.sync 0;
        setp.ge.u32 %p2, %r0, 128; @%p2 bra PRODUCE;
        {access}
        wgmma.fence.sync.aligned; // fence
        @%p1 bra END;
        mbarrier.arrive.shared::cta.b64 %d3, [%r1];
        bra END;
        PRODUCE: @%p0 bra END;
        WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1], 0;
        @!%p2 bra WAIT;
        {reuse}
        END: st.global.u32 [%d0], 1; ret;"
    );
    Case::new("sm_90a", 160, &body)
}

#[test]
fn wgmma_fence_completes_the_loads_of_its_warp_but_not_the_stores() {
    let (load, store) = ("ld.shared.u32 %r6, [%r3+4];", "st.shared.u32 [%r4], %r0;");
    let bulk = "fence.proxy.async.shared::cta; mbarrier.arrive.expect_tx.shared::cta.b64 %d3, [%r7], 16;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%d0+64], 16, [%r7];
        COPY: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r7], 0; @!%p2 bra COPY;";
    for reuse in ["st.shared.u32 [%r3+4], 7;", bulk] {
        let case = signal_by_one_lane(load, reuse);
        assert_eq!(case.finding_kinds(), [""; 0], "{reuse}");
        assert_eq!(case.without_lines_marked("fence").finding_kinds()[0], "race", "{reuse}");
        // A load after the fence may not be complete when the lane signals.
        let late = signal_by_one_lane("", reuse).replace("// fence", &format!("{load} // fence"));
        assert_eq!(late.finding_kinds()[0], "race", "{reuse}");
    }
    // `wgmma.fence` does not order stores, so these accesses race: they need a barrier.
    assert_eq!(signal_by_one_lane(store, "ld.shared.u32 %r6, [%r3+8];").finding_kinds(), ["race"]);
    assert_eq!(signal_by_one_lane(store, "st.shared.u32 [%r3+8], 7;").finding_kinds(), ["race"]);
}

/// Lane 0 of warp 0 sets a shared variable, which only warp 0 uses. The compiler has moved the load ahead of the test
/// of the warp (`%p1` is true in warp 0); `use_of` uses the value.
fn variable_of_one_warp(use_of: &str) -> Case {
    let body = format!(
        ".reg .b32 %r<8>; .reg .b64 %d<3>; .reg .pred %p<5>; .shared .align 4 .b32 s;
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 4; add.u64 %d2, %d0, %d1;
        setp.ne.u32 %p0, %r0, 0; @%p0 bra READY; st.shared.u32 [s], 5;
        READY: bar.warp.sync -1;
        ld.shared.u32 %r1, [s]; setp.lt.u32 %p1, %r0, 32; {use_of} END: ret;"
    );
    Case::new("sm_80", 64, &body)
}

#[test]
fn loads_ahead_of_a_branch_count_only_where_the_value_is_used() {
    let select = variable_of_one_warp("selp.b32 %r2, %r1, 7, %p1; st.global.u32 [%d2], %r2;");
    let both = "setp.eq.u32 %p2, %r1, 5; and.pred %p3, %p2, %p1; @%p3 bra END; st.global.u32 [%d2], 1;";
    let either = "setp.eq.u32 %p2, %r1, 5; setp.ge.u32 %p4, %r0, 32; or.pred %p3, %p4, %p2; @%p3 bra END; trap;";
    for case in [select.clone(), variable_of_one_warp(both), variable_of_one_warp(either)] {
        assert_eq!(case.finding_kinds(), [""; 0], "{}", case.ptx);
        // Without the warp barrier, the accesses of warp 0 race.
        assert_eq!(case.replace("bar.warp.sync -1;", "").finding_kinds()[0], "race");
    }
    // If warp 1 uses the value, its load races with the store of warp 0.
    for wrong in
        [select.replace("%r1, 7, %p1", "7, %r1, %p1"), variable_of_one_warp(&both.replace("%p2, %p1", "%p2, !%p1"))]
    {
        assert_eq!(wrong.finding_kinds()[0], "race", "{}", wrong.ptx);
    }
    let also = variable_of_one_warp("selp.b32 %r2, %r1, 7, %p1; st.global.u32 [%d2], %r1;");
    assert_eq!(also.finding_kinds()[0], "race");
}

/// Threads 40 to 63 skip the barrier. `early` decides whether they then return by a `ret` of their own or by the `ret`
/// of the other threads.
#[test]
fn threads_that_only_return_need_no_barrier() {
    let case = |early: &str| {
        let body = format!(
            ".reg .b32 %r<2>; .reg .b64 %d<2>; .reg .pred %p;
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mad.wide.u32 %d1, %r0, 4, %d0; setp.ge.u32 %p, %r0, 40;
            @%p bra EARLY;
            bar.sync 0; st.global.u32 [%d1], 1; {early} st.global.u32 [%d1], 2; END: ret;"
        );
        Case::new("sm_80", 64, &body)
    };
    assert_eq!(case("ret; EARLY:").finding_kinds(), [""; 0]);
    assert_eq!(case("bra END; EARLY:").finding_kinds(), [""; 0]);
    // Threads that skip the barrier and then execute the same stores as the other threads are reported.
    assert_eq!(case("EARLY:").finding_kinds(), ["barrier"]);
}
