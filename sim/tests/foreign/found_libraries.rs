//! Reduced kernels with the defects that `docs/found.md` describes in the kernels of fast.cu, DeepGEMM, CUTLASS and
//! ThunderKittens, each with and without its fix.

use super::harness::Case;

#[test]
fn thunder_kittens_gives_two_warpgroups_the_same_barrier() {
    // Each of two warpgroups fills its own tile, meets at a barrier, and reads words that its other threads wrote;
    // `barrier` computes the barrier's id.
    let case = |barrier: &str| {
        let body = format!(
            ".reg .b32 %r<6>; .reg .b64 %d<3>; .shared .align 4 .b8 tiles[1024]; ld.param.u64 %d0, [p];
            mov.u32 %r0, %tid.x; mov.u32 %r1, tiles; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
            st.shared.u32 [%r3], %r0; shr.u32 %r4, %r0, 7; {barrier} bar.sync %r5, 128;
            xor.b32 %r2, %r2, 256; add.u32 %r3, %r1, %r2; ld.shared.u32 %r4, [%r3];
            cvt.u64.u32 %d1, %r2; add.u64 %d1, %d0, %d1; st.global.u32 [%d1], %r4; ret;"
        );
        Case::new("sm_80", 256, &body).finding_kinds()
    };
    assert_eq!(case("add.u32 %r5, %r4, 4;"), [""; 0]);
    assert_eq!(case("mov.u32 %r5, 4;"), ["race"]);
}

#[test]
fn fast_cu_blocks_exit_while_their_cluster_signals_them() {
    let case = |end: &str| {
        let body = format!(
            ".reg .b32 %r<6>; .reg .pred %p<2>; .shared .align 8 .b64 bar;
            mov.u32 %r0, %tid.x; mov.u32 %r1, bar; setp.ne.u32 %p0, %r0, 0; @%p0 bra READY;
            mbarrier.init.shared::cta.b64 [%r1], 1;
            READY: barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
            @%p0 bra END; mov.u32 %r2, %cluster_ctarank; xor.b32 %r2, %r2, 1; mapa.shared::cluster.u32 %r3, %r1, %r2;
            mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r3];
            END: {end} ret;"
        );
        Case { blocks: 2, cluster: 2, ..Case::new("sm_90a", 32, &body) }.finding_kinds()
    };
    assert_eq!(case("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"), [""; 0]);
    assert_eq!(case(""), ["out-of-bounds"]);
}

/// A block writes two tiles to shared memory and stores each by a bulk copy.
fn stored_tiles(fence: &str, last_wait: &str) -> Case {
    let body = format!(
        ".reg .b32 %r<6>; .reg .b64 %d<2>; .reg .pred %p<2>; .shared .align 128 .b8 tile[256];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, tile; shl.b32 %r2, %r0, 2; add.u32 %r2, %r1, %r2;
        setp.ne.u32 %p0, %r0, 0; mov.u32 %r3, 0;
        TILE: @%p0 bra FREE; cp.async.bulk.wait_group.read 0; FREE: bar.sync 0;
        st.shared.u32 [%r2], %r3; {fence} bar.sync 0; @%p0 bra STORED;
        cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 256; cp.async.bulk.commit_group;
        STORED: add.u64 %d0, %d0, 256; add.u32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, 2; @%p1 bra TILE;
        {last_wait} ret;"
    );
    Case::new("sm_90a", 64, &body)
}

#[test]
fn deep_gemm_and_fast_cu_do_not_wait_for_the_last_store() {
    let (fence, wait) = ("fence.proxy.async.shared::cta;", "cp.async.bulk.wait_group.read 0;");
    assert_eq!(stored_tiles(fence, wait).finding_kinds(), [""; 0]);
    assert_eq!(stored_tiles(fence, "").finding_kinds(), ["async-not-waited"]);
    assert_eq!(stored_tiles("", wait).finding_kinds(), ["async-proxy"]);
}

#[test]
fn fast_cu_overwrites_the_source_of_a_store_that_another_thread_waits_for() {
    let (fence, wait) = ("fence.proxy.async.shared::cta;", "cp.async.bulk.wait_group.read 0;");
    let case = stored_tiles(fence, wait).replace("FREE: bar.sync 0;", "FREE:");
    assert!(case.finding_kinds().contains(&"async-not-waited"));
}

#[test]
fn deep_gemm_reads_prefix_sums_of_other_lanes_without_a_warp_barrier() {
    let case = |between: &str| {
        let body = format!(
            ".reg .b32 %r<6>; .reg .b64 %d<3>; .shared .align 4 .b8 sums[128]; ld.param.u64 %d0, [p];
            mov.u32 %r0, %tid.x; mov.u32 %r1, sums; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
            st.shared.u32 [%r3], %r0;
            shfl.sync.idx.b32 %r5, %r0, 31, 31, -1;
            {between} xor.b32 %r4, %r2, 64; add.u32 %r4, %r1, %r4; ld.shared.u32 %r4, [%r4]; add.u32 %r4, %r4, %r5;
            cvt.u64.u32 %d1, %r2; add.u64 %d1, %d0, %d1; st.global.u32 [%d1], %r4; ret;"
        );
        Case::new("sm_80", 32, &body).finding_kinds()
    };
    assert_eq!(case("bar.warp.sync -1;"), [""; 0]);
    assert_eq!(case(""), ["race"]);
}

#[test]
fn deep_gemm_changes_the_register_count_of_one_lane() {
    let case = |guard: &str| {
        let body = format!(
            ".maxnreg 168\n{{ .reg .b32 %r; .reg .pred %p; mov.u32 %r, %tid.x; setp.ne.u32 %p, %r, 0; {guard}
            setmaxnreg.dec.sync.aligned.u32 40; END: ret; }}"
        );
        let case = Case::new("sm_90a", 128, "");
        let ptx = case.ptx.replace("{\n\n}", &body);
        Case { ptx, ..case }.finding_kinds()
    };
    assert_eq!(case(""), [""; 0]);
    assert_eq!(case("@%p bra END;"), ["setmaxnreg"]);
}

/// Warp 1 fills a tile three times; each time, warp 0 stores it by a bulk copy and waits at `end` of the iteration.
fn tile_read_by_another_warp(end: &str) -> Case {
    let body = format!(
        ".reg .b32 %r<5>; .reg .b64 %d; .reg .pred %p<3>; .shared .align 128 .b8 tile[128];
        ld.param.u64 %d, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, tile; and.b32 %r2, %r0, 31; shl.b32 %r2, %r2, 2;
        add.u32 %r2, %r1, %r2; setp.lt.u32 %p0, %r0, 32; setp.ne.u32 %p1, %r0, 0; mov.u32 %r3, 0;
        AGAIN: @%p0 bra FILLED; st.shared.u32 [%r2], %r3; fence.proxy.async.shared::cta;
        FILLED: bar.sync 0; @%p1 bra STORED;
        cp.async.bulk.global.shared::cta.bulk_group [%d], [%r1], 128; cp.async.bulk.commit_group;
        cp.async.bulk.wait_group.read 0;
        STORED: {end} add.u64 %d, %d, 128; add.u32 %r3, %r3, 1; setp.lt.u32 %p2, %r3, 3; @%p2 bra AGAIN; ret;"
    );
    Case::new("sm_90a", 64, &body)
}

#[test]
fn thunder_kittens_overwrites_a_tile_that_another_warpgroup_reads() {
    assert_eq!(tile_read_by_another_warp("bar.sync 0;").finding_kinds(), [""; 0]);
    assert!(tile_read_by_another_warp("").finding_kinds().contains(&"async-not-waited"));
}

#[test]
fn thunder_kittens_exits_before_its_last_load_arrives() {
    let case = |wait: &str| {
        let body = format!(
            ".reg .b32 %r<4>; .reg .b64 %d; .reg .pred %p<2>;
            .shared .align 16 .b8 tile[128]; .shared .align 8 .b64 bar;
            ld.param.u64 %d, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, tile; mov.u32 %r2, bar; setp.ne.u32 %p0, %r0, 0;
            @%p0 bra END; mbarrier.init.shared::cta.b64 [%r2], 1; fence.mbarrier_init.release.cluster;
            mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 128;
            cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%d], 128, [%r2];
            {wait} END: ret;"
        );
        Case::new("sm_90a", 32, &body).finding_kinds()
    };
    assert_eq!(case("WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r2], 0; @!%p1 bra WAIT;"), [""; 0]);
    assert_eq!(case(""), ["async-not-waited"]);
}

#[test]
fn thunder_kittens_initialises_mbarriers_in_all_lanes_of_a_warp() {
    let case = |thread: &str| {
        let body = format!(
            ".reg .b32 %r<3>; .reg .b64 %d; .reg .pred %p<2>; .shared .align 8 .b64 bar; mov.u32 %r0, %tid.x;
            mov.u32 %r1, bar; {thread} @%p0 bra READY; mbarrier.init.shared::cta.b64 [%r1], 64;
            READY: bar.sync 0; mbarrier.arrive.shared::cta.b64 %d, [%r1];
            WAIT: mbarrier.try_wait.shared::cta.b64 %p1, [%r1], %d; @!%p1 bra WAIT; ret;"
        );
        Case::new("sm_90a", 64, &body).finding_kinds()
    };
    assert_eq!(case("setp.ne.u32 %p0, %r0, 0;"), [""; 0]);
    assert_eq!(case("setp.ge.u32 %p0, %r0, 32;"), ["mbarrier"]);
}

#[test]
fn thunder_kittens_signals_before_the_other_lanes_have_loaded() {
    let case = |before: &str| {
        let body = format!(
            ".reg .b32 %r<6>; .reg .b64 %d<3>; .reg .pred %p<3>;
            .shared .align 8 .b64 empty; .shared .align 4 .b8 tile[128];
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, empty; mov.u32 %r2, tile; shl.b32 %r3, %r0, 2;
            setp.ge.u32 %p0, %r0, 32; @%p0 bra READY; add.u32 %r4, %r2, %r3; st.shared.u32 [%r4], %r0;
            setp.ne.u32 %p1, %r0, 0; @%p1 bra READY; mbarrier.init.shared::cta.b64 [%r1], 1;
            READY: bar.sync 0; @%p0 bra PRODUCE; ld.shared.u32 %r5, [%r4];
            {before} @%p1 bra STORE; mbarrier.arrive.shared::cta.b64 %d2, [%r1];
            STORE: cvt.u64.u32 %d1, %r3; add.u64 %d1, %d0, %d1; st.global.u32 [%d1], %r5; ret;
            PRODUCE: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1], 0; @!%p2 bra PRODUCE;
            add.u32 %r4, %r2, %r3; st.shared.u32 [%r4+-128], 7; ret;"
        );
        Case::new("sm_90a", 64, &body).finding_kinds()
    };
    assert_eq!(case("bar.warp.sync -1;"), [""; 0]);
    assert_eq!(case(""), ["race"]);
}

#[test]
fn thunder_kittens_polls_phases_that_two_later_phases_hide() {
    // In each iteration, warp 0 completes a phase of `done`. Warps 1 and 2 poll for it, and one of them in turn lets
    // warp 0 continue. Without the barrier `meet`, one warp may still poll phase n when phase n + 1 is complete. The
    // current phase n + 2 has the parity of phase n, so the warp polls for ever.
    let case = |meet: &str| {
        let body = format!(
            ".reg .b32 %r<8>; .reg .b64 %d; .reg .pred %p<4>; .shared .align 8 .b64 done; .shared .align 8 .b64 go;
            mov.u32 %r0, %tid.x; mov.u32 %r1, done; mov.u32 %r2, go; mov.u32 %r3, 0; setp.ne.u32 %p0, %r0, 0;
            @%p0 bra READY; mbarrier.init.shared::cta.b64 [%r1], 1; mbarrier.init.shared::cta.b64 [%r2], 1;
            READY: bar.sync 0; shr.u32 %r4, %r0, 5; and.b32 %r7, %r0, 31; setp.ne.u32 %p3, %r7, 0;
            NEXT: and.b32 %r5, %r3, 1; setp.ne.u32 %p1, %r4, 0; @%p1 bra POLL;
            @%p3 bra PASS; mbarrier.arrive.shared::cta.b64 %d, [%r1];
            PASS: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], %r5; @!%p2 bra PASS;
            bra ADVANCE;
            POLL: mbarrier.test_wait.parity.shared::cta.b64 %p2, [%r1], %r5; @%p2 bra SEEN; nanosleep.u32 10; bra POLL;
            SEEN: {meet} add.u32 %r6, %r5, 1; setp.ne.u32 %p1, %r4, %r6; @%p1 bra ADVANCE; @%p3 bra ADVANCE;
            mbarrier.arrive.shared::cta.b64 %d, [%r2];
            ADVANCE: add.u32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, 30; @%p1 bra NEXT; ret;"
        );
        Case::new("sm_90a", 96, &body).finding_kinds()
    };
    assert_eq!(case("bar.sync 1, 64;"), [""; 0]);
    assert_eq!(case(""), ["deadlock"]);
}

#[test]
fn thunder_kittens_completes_a_phase_before_all_warps_have_seen_the_last_one() {
    // A warpgroup waits for phase 0 and multiplies; thread 0 then completes phase 1. A warp that has not seen the end
    // of phase 0 by then waits for ever on a GPU, and so do the warps that have issued the product: a note.
    let case = |meet: &str| {
        let body = format!(
            ".reg .b32 %r<5>; .reg .b64 %d<6>; .reg .f32 %f<4>; .reg .pred %p<4>;
            .shared .align 128 .b8 tiles[2304]; .shared .align 8 .b64 full;
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, tiles; mov.u32 %r2, full; mov.u32 %r3, 0;
            shl.b32 %r4, %r0, 4; add.u32 %r4, %r1, %r4; st.shared.v4.b32 [%r4], {{%r3, %r3, %r3, %r3}};
            setp.lt.u32 %p2, %r0, 16; @%p2 st.shared.v4.b32 [%r4+2048], {{%r3, %r3, %r3, %r3}};
            fence.proxy.async.shared::cta; setp.ne.u32 %p0, %r0, 0; @%p0 bra READY;
            mbarrier.init.shared::cta.b64 [%r2], 1; mbarrier.arrive.shared::cta.b64 %d1, [%r2];
            READY: bar.sync 0;
            WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2], 0; @!%p3 bra WAIT;
            {meet} shr.u32 %r4, %r1, 4; cvt.u64.u32 %d2, %r4; or.b64 %d2, %d2, 0x1000080000; add.u64 %d3, %d2, 128;
            setp.gt.u32 %p2, %r0, 999; wgmma.fence.sync.aligned;
            wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f0, %f1, %f2, %f3}}, %d2, %d3, %p2, 1, 1, 0, 0;
            wgmma.commit_group.sync.aligned; @%p0 bra NEXT; mbarrier.arrive.shared::cta.b64 %d1, [%r2];
            NEXT: wgmma.wait_group.sync.aligned 0;
            mul.wide.u32 %d4, %r0, 16; add.u64 %d4, %d0, %d4;
            st.global.v4.f32 [%d4], {{%f0, %f1, %f2, %f3}}; ret;"
        );
        Case { buffers: vec![vec![0; 4096]], ..Case::new("sm_90a", 128, &body) }
    };
    let is_late = |note: &String| note.contains("by its parity after this phase and the next one were over");
    for (meet, late) in [("bar.sync 0;", false), ("", true)] {
        let report = case(meet).run();
        assert_eq!((report.findings.concat(), report.notes.iter().any(is_late)), (Vec::new(), late));
        let mut strict = case(meet);
        strict.options.strict_proxy = true;
        assert_eq!(strict.finding_kinds(), if late { vec!["deadlock"] } else { Vec::new() });
    }
}

#[test]
fn cutlass_multiplies_tiles_that_cp_async_wrote_without_a_proxy_fence() {
    // Warpgroup 1 copies a 64×16 and a 16×8 tile of bf16; warpgroup 0 waits for the copies and multiplies the tiles.
    let case = |fence: &str| {
        let body = format!(
            ".reg .b32 %r<6>; .reg .b64 %d<6>; .reg .f32 %f<4>; .reg .pred %p<4>;
            .shared .align 128 .b8 tiles[2304]; .shared .align 8 .b64 full;
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, tiles; mov.u32 %r2, full;
            setp.ne.u32 %p0, %r0, 0; @%p0 bra READY; mbarrier.init.shared::cta.b64 [%r2], 128;
            READY: bar.sync 0; setp.lt.u32 %p1, %r0, 128; @%p1 bra MULTIPLY;
            sub.u32 %r3, %r0, 128; shl.b32 %r4, %r3, 4; cvt.u64.u32 %d1, %r4; add.u64 %d1, %d0, %d1;
            add.u32 %r4, %r1, %r4; cp.async.cg.shared.global [%r4], [%d1], 16;
            setp.lt.u32 %p2, %r3, 16; @%p2 cp.async.cg.shared.global [%r4+2048], [%d1+2048], 16;
            cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r2]; ret;
            MULTIPLY: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2], 0; @!%p3 bra MULTIPLY;
            {fence} shr.u32 %r5, %r1, 4; cvt.u64.u32 %d2, %r5; or.b64 %d2, %d2, 0x1000080000; add.u64 %d3, %d2, 128;
            setp.gt.u32 %p2, %r0, 999; wgmma.fence.sync.aligned;
            wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f0, %f1, %f2, %f3}}, %d2, %d3, %p2, 1, 1, 0, 0;
            wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
            mul.wide.u32 %d4, %r0, 16; add.u64 %d4, %d0, %d4;
            st.global.v4.f32 [%d4+4096], {{%f0, %f1, %f2, %f3}}; ret;"
        );
        Case { buffers: vec![vec![0; 8192]], ..Case::new("sm_90a", 256, &body) }.finding_kinds()
    };
    assert_eq!(case("fence.proxy.async.shared::cta;"), [""; 0]);
    assert_eq!(case(""), ["async-proxy"]);
}

#[test]
fn thunder_kittens_layernorm_stores_elements_that_other_lanes_write() {
    // Each lane writes every 32nd element of a row in shared memory, then copies four consecutive elements to global
    // memory.
    let case = |between: &str| {
        let body = format!(
            ".reg .b32 %r<9>; .reg .b64 %d<2>; .shared .align 16 .b8 row[512];
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, row; shl.b32 %r2, %r0, 2; add.u32 %r2, %r1, %r2;
            st.shared.u32 [%r2], %r0; st.shared.u32 [%r2+128], %r0; st.shared.u32 [%r2+256], %r0;
            st.shared.u32 [%r2+384], %r0; {between} shl.b32 %r3, %r0, 4; add.u32 %r4, %r1, %r3;
            ld.shared.v4.u32 {{%r5, %r6, %r7, %r8}}, [%r4]; cvt.u64.u32 %d1, %r3; add.u64 %d1, %d0, %d1;
            st.global.v4.u32 [%d1], {{%r5, %r6, %r7, %r8}}; ret;"
        );
        Case::new("sm_80", 32, &body).finding_kinds()
    };
    assert_eq!(case("bar.warp.sync -1;"), [""; 0]);
    assert_eq!(case(""), ["race"]);
}

#[test]
fn cute_multiplies_tiles_that_other_threads_still_copy() {
    // A warpgroup copies a 64×16 and a 16×8 tile of bf16; each thread waits for its own copies, then all multiply.
    let case = |after_wait: &str| {
        let body = format!(
            ".reg .b32 %r<4>; .reg .b64 %d<5>; .reg .f32 %f<4>; .reg .pred %p<2>; .shared .align 128 .b8 tiles[2304];
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, tiles; shl.b32 %r2, %r0, 4;
            cvt.u64.u32 %d1, %r2; add.u64 %d1, %d0, %d1; add.u32 %r2, %r1, %r2;
            cp.async.cg.shared.global [%r2], [%d1], 16; setp.lt.u32 %p0, %r0, 16;
            @%p0 cp.async.cg.shared.global [%r2+2048], [%d1+2048], 16;
            cp.async.commit_group; cp.async.wait_group 0; {after_wait}
            shr.u32 %r3, %r1, 4; cvt.u64.u32 %d2, %r3; or.b64 %d2, %d2, 0x1000080000; add.u64 %d3, %d2, 128;
            setp.gt.u32 %p1, %r0, 999; wgmma.fence.sync.aligned;
            wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f0, %f1, %f2, %f3}}, %d2, %d3, %p1, 1, 1, 0, 0;
            wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
            st.global.v4.f32 [%d1+4096], {{%f0, %f1, %f2, %f3}}; ret;"
        );
        Case { buffers: vec![vec![0; 8192]], ..Case::new("sm_90a", 128, &body) }.finding_kinds()
    };
    assert_eq!(case("fence.proxy.async.shared::cta; bar.sync 0;"), [""; 0]);
    assert!(case("fence.proxy.async.shared::cta;").contains(&"async-not-waited"));
    assert_eq!(case("bar.sync 0;"), ["async-proxy"]);
}

#[test]
fn cutlass_reference_multiplies_unwritten_elements_by_zero() {
    // D = X + beta·C, where beta is zero, and C is the buffer of D, which nothing has written.
    let case = |load: &str| {
        let body = format!(
            ".reg .b32 %r; .reg .f32 %f<4>; .reg .b64 %d<2>; ld.param.u64 %d0, [p]; mov.u32 %r, %tid.x;
            mul.wide.u32 %d1, %r, 4; add.u64 %d1, %d0, %d1; cvt.rn.f32.u32 %f0, %r; mov.f32 %f1, 0f00000000; {load}
            fma.rn.f32 %f2, %f1, 0f00000000, %f0; st.global.f32 [%d1], %f2; ret;"
        );
        Case { unwritten: true, ..Case::new("sm_80", 32, &body) }.finding_kinds()
    };
    assert_eq!(case(""), [""; 0]);
    assert_eq!(case("ld.global.f32 %f1, [%d1];"), ["uninitialized"]);
}

#[test]
fn cutlass_enables_the_loads_after_the_last_tile_again() {
    // A loop over four tiles loads two tiles ahead. With `eq` it skips only the first load past the last tile; the next
    // iteration loads out of bounds.
    let case = |is_over: &str| {
        let body = format!(
            ".reg .b32 %r<6>; .reg .b64 %d<3>; .reg .pred %p<2>; ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x;
            mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1; mov.u32 %r1, 0; mov.u32 %r4, 0;
            NEXT: sub.s32 %r2, 2, %r1; setp.{is_over}.s32 %p0, %r2, 0; mul.wide.u32 %d2, %r1, 256;
            add.u64 %d2, %d1, %d2; mov.u32 %r3, 0; @!%p0 ld.global.u32 %r3, [%d2+512]; add.u32 %r4, %r4, %r3;
            add.u32 %r1, %r1, 1; setp.lt.u32 %p1, %r1, 4; @%p1 bra NEXT; st.global.u32 [%d1], %r4; ret;"
        );
        Case::new("sm_80", 64, &body).finding_kinds()
    };
    assert_eq!(case("le"), [""; 0]);
    assert_eq!(case("eq"), ["out-of-bounds"]);
}
