//! Reduced kernels with the defects that `docs/found.md` describes in the kernels of cuda-samples and llm.c, each with
//! and without its fix.

use super::harness::{Case, bytes_of_words};

/// Copies 12 tiles through two buffers by `cp.async`; `ahead` tiles are loaded before the first is used.
fn multi_stage(ahead: u32, barrier: &str) -> Case {
    let body = format!(
        "
        .reg .b32 %r<16>; .reg .b64 %d<4>; .reg .pred %p<4>; .shared .align 16 .b8 tile[512];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 2; mov.u32 %r2, tile; add.u32 %r2, %r2, %r1;
        xor.b32 %r9, %r1, 252; mov.u32 %r3, tile; add.u32 %r3, %r3, %r9;
        cvt.u64.u32 %d1, %r1; add.u64 %d0, %d0, %d1; mov.u32 %r4, 0; mov.u32 %r5, 0; mov.u32 %r8, 0;
        NEXT:
        add.u32 %r6, %r4, {ahead};
        LOAD:
        setp.ge.u32 %p0, %r5, %r6;
        @%p0 bra LOADED;
        setp.ge.u32 %p1, %r5, 12; and.b32 %r7, %r5, 1; shl.b32 %r7, %r7, 8; add.u32 %r7, %r2, %r7;
        mul.wide.u32 %d2, %r5, 256; add.u64 %d2, %d0, %d2;
        @!%p1 cp.async.ca.shared.global [%r7], [%d2], 4;
        cp.async.commit_group; add.u32 %r5, %r5, 1;
        bra LOAD;
        LOADED:
        cp.async.wait_group {};
        bar.sync 0;
        and.b32 %r7, %r4, 1; shl.b32 %r7, %r7, 8; add.u32 %r7, %r3, %r7; ld.shared.u32 %r10, [%r7];
        mad.lo.u32 %r8, %r8, 3, %r10;
        {barrier}
        add.u32 %r4, %r4, 1; setp.lt.u32 %p2, %r4, 12;
        @%p2 bra NEXT;
        st.global.u32 [%d0+4096], %r8;
        ret;",
        ahead - 1
    );
    Case { buffers: vec![bytes_of_words(0..2048)], ..Case::new("sm_80", 64, &body) }
}

#[test]
fn cuda_samples_multi_stage_loads_one_stage_too_many() {
    assert_eq!(multi_stage(2, "bar.sync 0;").finding_kinds(), [""; 0]);
    assert!(multi_stage(3, "bar.sync 0;").finding_kinds().contains(&"async-not-waited"));
    // Even with the right number of stages, a barrier is needed before a buffer is loaded again.
    assert!(multi_stage(2, "").finding_kinds().contains(&"race"));
}

#[test]
fn cuda_samples_arrive_wait_barrier_is_initialised_by_a_column_of_threads() {
    let case = |guard: &str| {
        let body = format!(
            ".reg .b32 %r<4>; .reg .b64 %d; .reg .pred %p<2>; .shared .align 8 .b64 bar;
            mov.u32 %r0, %tid.x; {guard} mov.u32 %r2, bar;
            setp.ne.u32 %p0, %r1, 0; @%p0 bra READY;
            mbarrier.init.shared.b64 [%r2], 64;
            READY: bar.sync 0;
            mbarrier.arrive.shared.b64 %d, [%r2];
            WAIT: mbarrier.test_wait.shared.b64 %p1, [%r2], %d; @!%p1 bra WAIT;
            ret;"
        );
        Case::new("sm_80", 64, &body).finding_kinds()
    };
    assert_eq!(case("mov.u32 %r1, %r0;"), [""; 0]);
    assert_eq!(case("and.b32 %r1, %r0, 15;"), ["mbarrier"]);
}

/// A block reduces twice through the same shared words; `between` separates the reductions.
fn two_reductions(between: &str) -> Case {
    let reduce = |n: u32| {
        format!(
            "@%p0 bra L{n}; st.shared.u32 [%r3], %r5; L{n}: bar.sync 0;
            @%p1 bra M{n}; ld.shared.u32 %r6, [storage]; ld.shared.u32 %r7, [storage+4]; max.u32 %r6, %r6, %r7;
            st.shared.u32 [storage], %r6; M{n}: bar.sync 0; ld.shared.u32 %r5, [storage];"
        )
    };
    let body = format!(
        ".reg .b32 %r<9>; .reg .b64 %d<4>; .reg .pred %p<3>; .shared .align 4 .b8 storage[8];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; and.b32 %r1, %r0, 31; setp.ne.u32 %p0, %r1, 0;
        shr.u32 %r2, %r0, 5; shl.b32 %r2, %r2, 2; mov.u32 %r3, storage; add.u32 %r3, %r3, %r2; setp.ne.u32 %p1, %r0, 0;
        mov.u32 %r5, %r0; {} {between} add.u32 %r5, %r5, %r0; {}
        mul.wide.u32 %d1, %r0, 4; add.u64 %d2, %d0, %d1; st.global.u32 [%d2], %r5; ret;",
        reduce(1),
        reduce(2)
    );
    Case::new("sm_80", 64, &body)
}

#[test]
fn llm_c_softmax_reuses_shared_memory_without_a_barrier() {
    assert_eq!(two_reductions("bar.sync 0;").finding_kinds(), [""; 0]);
    assert_eq!(two_reductions("").finding_kinds(), ["race"]);
}

#[test]
fn llm_c_softmax_shuffles_from_threads_that_have_exited() {
    // The first `threads` lanes of a warp continue and shuffle with a member mask of all 32 lanes.
    let case = |threads: u32| {
        let body = format!(
            ".reg .b32 %r<4>; .reg .b64 %d<2>; .reg .pred %p<2>;
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; setp.ge.u32 %p0, %r0, {threads}; @%p0 bra END;
            shfl.sync.down.b32 %r1, %r0, 16, 31, -1; setp.gt.u32 %p1, %r1, %r0;
            mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1; @!%p1 bra END; st.global.u32 [%d1], %r0; END: ret;"
        );
        Case::new("sm_80", 32, &body).finding_kinds()
    };
    assert_eq!(case(32), [""; 0]);
    assert_eq!(case(20), ["uninitialized"]);
}

#[test]
fn llm_c_layernorm_publishes_sums_without_a_fence() {
    let case = |fence: &str| {
        let body = format!(
            ".reg .b32 %r<9>; .reg .b64 %d<4>; .reg .pred %p<3>; .shared .b32 flag;
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1;
            red.relaxed.gpu.global.add.u32 [%d1+64], 1;
            {fence} bar.sync 0;
            setp.ne.u32 %p0, %r0, 0; @%p0 bra MEET;
            atom.relaxed.gpu.global.add.u32 %r1, [%d0], 1; st.shared.u32 [flag], %r1;
            MEET: bar.sync 0; {fence}
            ld.shared.u32 %r2, [flag]; setp.ne.u32 %p1, %r2, 1; @%p1 bra END;
            ld.global.u32 %r3, [%d1+64]; st.global.u32 [%d1+512], %r3;
            END: ret;"
        );
        Case { blocks: 2, ..Case::new("sm_80", 64, &body) }.finding_kinds()
    };
    assert_eq!(case("membar.gl;"), [""; 0]);
    assert_eq!(case(""), ["race"]);
}

/// Each block stores a partial sum and takes a ticket by an atomic; the block with the last ticket reads all partial
/// sums. `before` and `after` are instructions before and after the atomic.
fn last_block(before: &str, after: &str) -> Case {
    let body = format!(
        ".reg .b32 %r<9>; .reg .b64 %d<4>; .reg .pred %p<3>; .shared .b32 last;
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; setp.ne.u32 %p0, %r0, 0;
        mov.u32 %r1, %ctaid.x; mul.wide.u32 %d1, %r1, 4; add.u64 %d1, %d0, %d1;
        @%p0 bra MEET;
        st.global.u32 [%d1+64], %r1; {before} atom.global.inc.u32 %r2, [%d0], 3; {after} st.shared.u32 [last], %r2;
        MEET: bar.sync 0;
        ld.shared.u32 %r3, [last]; setp.ne.u32 %p1, %r3, 3; @%p1 bra END;
        mul.wide.u32 %d2, %r0, 4; add.u64 %d2, %d0, %d2;
        setp.gt.u32 %p2, %r0, 3; @%p2 bra END; ld.global.u32 %r4, [%d2+64]; st.global.u32 [%d2+512], %r4;
        END: ret;"
    );
    Case { blocks: 4, ..Case::new("sm_80", 32, &body) }
}

#[test]
fn cuda_samples_last_block_reads_without_a_fence() {
    assert_eq!(last_block("membar.gl;", "membar.gl;").finding_kinds(), [""; 0]);
    assert_eq!(last_block("membar.gl;", "").finding_kinds(), ["race"]);
    assert_eq!(last_block("", "membar.gl;").finding_kinds(), ["race"]);
}

#[test]
fn cuda_samples_reduction_shuffles_from_lanes_that_do_not_exist() {
    let case = |threads: u32, offset: u32| {
        let body = format!(
            ".reg .b32 %r<4>; .reg .b64 %d; .reg .pred %p; ld.param.u64 %d, [p]; mov.u32 %r0, %tid.x;
            activemask.b32 %r3; shfl.sync.down.b32 %r1, %r0, {offset}, 31, %r3; add.u32 %r2, %r0, %r1;
            setp.ne.u32 %p, %r0, 0; @%p bra END; st.global.u32 [%d], %r2; END: ret;"
        );
        Case::new("sm_80", threads, &body).finding_kinds()
    };
    assert_eq!(case(32, 16), [""; 0]);
    assert_eq!(case(8, 4), [""; 0]);
    assert_eq!(case(8, 16), ["uninitialized"]);
}

#[test]
fn llm_c_attention_clears_shared_sums_while_other_warps_write_them() {
    let case = |between: &str| {
        let body = format!(
            ".reg .b32 %r<9>; .reg .b64 %d<3>; .reg .pred %p<3>; .shared .align 4 .b8 sums[128];
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, sums; and.b32 %r2, %r0, 31; shr.u32 %r3, %r0, 5;
            setp.ne.u32 %p0, %r3, 0; setp.ne.u32 %p1, %r2, 0; shl.b32 %r4, %r2, 2; add.u32 %r4, %r1, %r4;
            @%p0 bra CLEARED; st.shared.u32 [%r4], 0;
            CLEARED: {between} @%p1 bra WRITTEN;
            shl.b32 %r5, %r3, 2; add.u32 %r5, %r1, %r5; add.u32 %r6, %r3, 1; st.shared.u32 [%r5], %r6;
            WRITTEN: bar.sync 0;
            ld.shared.u32 %r7, [%r4]; mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1; st.global.u32 [%d1], %r7; ret;"
        );
        Case::new("sm_80", 96, &body).finding_kinds()
    };
    assert_eq!(case("bar.sync 0;"), [""; 0]);
    assert_eq!(case(""), ["race"]);
}

#[test]
fn llm_c_classifier_compares_a_negative_index_as_an_unsigned_number() {
    // A loop decreases an index until the eight elements at this index lie inside the row. In small rows the first
    // index is negative.
    let case = |compare: &str, elements: u32| {
        let body = format!(
            ".reg .b32 %r<4>; .reg .b64 %d<3>; .reg .pred %p; mov.u32 %r0, %tid.x; add.s32 %r1, %r0, {};
            NEXT: add.s32 %r2, %r1, 1; cvt.s64.s32 %d1, %r2; shl.b64 %d1, %d1, 3; setp.le.{compare} %p, %d1, {elements};
            @%p bra END; add.s32 %r1, %r1, -64; bra NEXT; END: ret;",
            elements as i32 / 8 - 64
        );
        Case::new("sm_80", 64, &body).finding_kinds()
    };
    assert_eq!(case("s64", 40), [""; 0]);
    assert_eq!(case("u64", 512), [""; 0]);
    assert_eq!(case("u64", 40), ["deadlock"]);
}

#[test]
fn llm_c_bias_shuffles_in_a_loop_that_some_lanes_do_not_enter() {
    // Each group of four lanes adds `rows` numbers; every iteration shuffles with a member mask of all 32 lanes.
    let case = |rows: u32| {
        let body = format!(
            ".reg .b32 %r<6>; .reg .b64 %d<3>; .reg .pred %p<2>; ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x;
            and.b32 %r1, %r0, 3; mov.u32 %r2, 0;
            NEXT: setp.ge.u32 %p0, %r1, {rows}; @%p0 bra ADDED; shfl.sync.down.b32 %r3, %r1, 1, 7199, -1;
            add.u32 %r2, %r2, %r3; add.u32 %r1, %r1, 4; bra NEXT;
            ADDED: mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1; st.global.u32 [%d1], %r2; ret;"
        );
        Case::new("sm_80", 32, &body).finding_kinds()
    };
    assert_eq!(case(8), [""; 0]);
    assert_eq!(case(1), ["barrier", "uninitialized"]);
}

#[test]
fn cuda_samples_large_chunk_reads_b_with_the_row_length_of_a() {
    // B has 16 rows of 4 words, A has 8 rows of 16 words. `row_length` is the row length with which the kernel reads B.
    let case = |row_length: u32| {
        let body = format!(
            ".reg .b32 %r<5>; .reg .b64 %d<4>; .shared .align 4 .b8 tile[512];
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; shr.u32 %r1, %r0, 4; and.b32 %r2, %r0, 3;
            mad.lo.u32 %r1, %r1, {row_length}, %r2; mul.wide.u32 %d1, %r1, 4; add.u64 %d2, %d0, %d1;
            ld.global.u32 %r3, [%d2]; shl.b32 %r4, %r0, 2; mov.u32 %r2, tile; add.u32 %r2, %r2, %r4;
            st.shared.u32 [%r2], %r3; ret;"
        );
        Case { buffers: vec![bytes_of_words(0..64)], ..Case::new("sm_80", 128, &body) }.finding_kinds()
    };
    assert_eq!(case(4), [""; 0]);
    assert_eq!(case(16), ["out-of-bounds"]);
}

#[test]
fn llm_c_classifier_overwrites_the_logit_that_another_thread_reads() {
    let case = |between: &str| {
        let body = format!(
            ".reg .b32 %r<4>; .reg .b64 %d<3>; .reg .pred %p; ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x;
            mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1; setp.ne.u32 %p, %r0, 0; @%p bra REST;
            ld.global.u32 %r1, [%d0+160]; st.global.u32 [%d0+512], %r1;
            REST: {between} ld.global.u32 %r2, [%d1]; add.u32 %r2, %r2, 1; st.global.u32 [%d1], %r2; ret;"
        );
        Case::new("sm_80", 64, &body).finding_kinds()
    };
    assert_eq!(case("bar.sync 0;"), [""; 0]);
    assert_eq!(case(""), ["race"]);
}

#[test]
fn llm_c_classifier_visits_the_end_of_a_row_more_than_once() {
    // Each thread begins at its own of the last three elements of a row and takes steps of `step` elements.
    let case = |step: u32| {
        let body = format!(
            ".reg .b32 %r<4>; .reg .b64 %d<3>; .reg .pred %p; ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x;
            NEXT: setp.ge.u32 %p, %r0, 3; @%p bra END; mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1;
            ld.global.u32 %r1, [%d1]; mad.lo.u32 %r1, %r1, 3, 1; st.global.u32 [%d1], %r1;
            add.u32 %r0, %r0, {step}; bra NEXT; END: ret;"
        );
        Case::new("sm_80", 64, &body).finding_kinds()
    };
    assert_eq!(case(64), [""; 0]);
    assert_eq!(case(1), ["race"]);
}

#[test]
fn cuda_samples_cache_test_polls_a_counter_that_other_threads_increment() {
    // Each thread increments words of an array, at indices computed from its thread index, until a shared counter
    // reaches 500.
    let case = |load: &str, update: &str| {
        let body = format!(
            ".reg .b32 %r<6>; .reg .b64 %d<4>; .reg .pred %p; .shared .b32 hit;
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; atom.shared.exch.b32 %r1, [hit], 0; bar.sync 0;
            AGAIN: {load} %r2, [hit]; setp.ge.u32 %p, %r2, 500; @%p bra END;
            mad.lo.u32 %r0, %r0, 5, 3; and.b32 %r3, %r0, 31; mul.wide.u32 %d1, %r3, 4; add.u64 %d2, %d0, %d1;
            {update} red.shared.add.u32 [hit], 1; bra AGAIN;
            END: ret;"
        );
        Case::new("sm_80", 64, &body).finding_kinds()
    };
    let plain = "ld.global.u32 %r4, [%d2]; add.u32 %r4, %r4, 1; st.global.u32 [%d2], %r4;";
    let (relaxed, atomic) = ("ld.relaxed.cta.shared.u32", "red.global.add.u32 [%d2], 1;");
    assert_eq!(case(relaxed, atomic), [""; 0]);
    assert_eq!(case("ld.shared.u32", atomic), ["race"]);
    assert_eq!(case(relaxed, plain), ["race"]);
}

#[test]
fn cuda_samples_vector_tests_its_size_without_an_atomic_load() {
    // Thread 0 sets the index of the last element; every thread takes an element, unless none is left.
    let case = |load: &str| {
        let body = format!(
            ".reg .b32 %r<6>; .reg .b64 %d<3>; .reg .pred %p<2>; .shared .b32 top;
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1;
            setp.ne.u32 %p0, %r0, 0; @!%p0 st.shared.u32 [top], 9; bar.sync 0;
            {load} %r1, [top]; setp.lt.s32 %p1, %r1, 0; @%p1 bra END;
            atom.shared.add.u32 %r2, [top], -1; setp.lt.s32 %p1, %r2, 0; @%p1 bra END; st.global.u32 [%d1], %r2;
            END: ret;"
        );
        Case::new("sm_80", 64, &body).finding_kinds()
    };
    assert_eq!(case("ld.relaxed.cta.shared.u32"), [""; 0]);
    assert_eq!(case("ld.shared.u32"), ["race"]);
}

#[test]
fn cuda_samples_mandelbrot_compares_pixels_that_other_threads_overwrite() {
    // Each thread compares its pixel with the next one and, if they differ, stores a new pixel `out` bytes behind its
    // own.
    let case = |out: u32| {
        let pixels = bytes_of_words((0..64).map(|n| n / 3));
        let body = format!(
            ".reg .b32 %r<4>; .reg .b64 %d<3>; .reg .pred %p<2>;
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; setp.ge.u32 %p0, %r0, 63; @%p0 bra END;
            mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1; ld.global.u32 %r1, [%d1]; ld.global.u32 %r2, [%d1+4];
            setp.eq.u32 %p1, %r1, %r2; @%p1 bra END; add.u32 %r3, %r1, %r0; st.global.u32 [%d1+{out}], %r3; END: ret;"
        );
        Case { buffers: vec![[pixels, vec![0; 768]].concat()], ..Case::new("sm_80", 64, &body) }.finding_kinds()
    };
    assert_eq!(case(512), [""; 0]);
    assert_eq!(case(0), ["race"]);
}

#[test]
fn cuda_samples_colour_sums_rely_on_lanes_that_run_in_step() {
    // 16 lanes add their neighbours' sums in place; `read` is the instruction between the reads and the write of each
    // step.
    let case = |read: &str| {
        let steps: String = [32, 16, 8, 4]
            .iter()
            .map(|distance| {
                format!(
                    "xor.b32 %r4, %r2, {distance}; ld.shared.u32 %r5, [%r4]; ld.shared.u32 %r6, [%r2];
                    add.u32 %r6, %r5, %r6; {read} st.shared.u32 [%r2], %r6; bar.warp.sync 0xffff;"
                )
            })
            .collect();
        let body = format!(
            ".reg .b32 %r<8>; .reg .b64 %d<3>; .shared .align 64 .b8 sums[64];
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 2; mov.u32 %r2, sums; add.u32 %r2, %r2, %r1;
            st.shared.u32 [%r2], %r0; bar.warp.sync 0xffff; {steps} ld.shared.u32 %r7, [%r2];
            cvt.u64.u32 %d1, %r1; add.u64 %d2, %d0, %d1; st.global.u32 [%d2], %r7; ret;"
        );
        Case::new("sm_80", 16, &body).finding_kinds()
    };
    assert_eq!(case("bar.warp.sync 0xffff;"), [""; 0]);
    assert_eq!(case(""), ["race"]);
}

#[test]
fn cuda_samples_segmentation_removes_cycles_while_other_threads_follow_them() {
    // Each thread looks up the successor of its vertex's successor. If two vertices point at each other, the lower one
    // becomes a root: its new successor is stored `out` bytes behind the old one.
    let case = |out: u32| {
        let successors = bytes_of_words((0..64).map(|n| n ^ 1));
        let body = format!(
            ".reg .b32 %r<4>; .reg .b64 %d<5>; .reg .pred %p<2>;
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 4; add.u64 %d2, %d0, %d1;
            ld.global.u32 %r1, [%d2]; mul.wide.u32 %d3, %r1, 4; add.u64 %d4, %d0, %d3; ld.global.u32 %r2, [%d4];
            setp.ne.u32 %p0, %r2, %r0; @%p0 bra END; setp.gt.u32 %p1, %r0, %r1; @%p1 bra END;
            st.global.u32 [%d2+{out}], %r0; END: ret;"
        );
        Case { buffers: vec![[successors, vec![0; 768]].concat()], ..Case::new("sm_80", 64, &body) }.finding_kinds()
    };
    assert_eq!(case(512), [""; 0]);
    assert_eq!(case(0), ["race"]);
}
