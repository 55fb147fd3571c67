//! Products of tiles of which some rows or columns were never written to shared memory, as at the edges of matrices.
//! The kernel is correct if it does not store the elements of the product that depend on unwritten rows or columns.

use super::harness::Case;

/// How much of its operands a kernel writes to shared memory, and how much of the product it stores.
#[derive(Clone, Copy)]
struct Extent {
    /// Rows of A and columns of B that are written to shared memory.
    loaded: (u32, u32),
    /// Rows and columns of the product that are stored.
    stored: (u32, u32),
}

const WHOLE: Extent = Extent { loaded: (16, 8), stored: (16, 8) };

/// A warp multiplies A (16×16, row-major) and B (16×8) by `mma` and stores twice the product plus one, through shared
/// memory. B is loaded by `ldmatrix` as columns or, with `.trans`, as rows. `then` runs before the result `%f0` to
/// `%f3` is stored to global memory, with `%p4` false in threads that store nothing.
fn product(extent: Extent, trans: bool, then: &str) -> Case {
    let Extent { loaded: (rows, columns), stored: (stored_rows, stored_columns) } = extent;
    let write_b = if trans {
        // Thread l < 16 writes row l of B: four columns, and four more if the tile has them.
        format!(
            "ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%d2+512]; add.u32 %r8, %r3, b; setp.ge.u32 %p1, %r0, 16;
            @%p1 bra B1; st.shared.v2.u32 [%r8], {{%r4, %r5}}; setp.gt.u32 %p2, {columns}, 4;
            @%p2 st.shared.v2.u32 [%r8+8], {{%r6, %r7}}; B1:"
        )
    } else {
        // Threads 2n and 2n + 1 write the halves of column n.
        format!(
            "ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%d2+512]; add.u32 %r8, %r3, b; setp.lt.u32 %p1, %r1, {columns};
            @%p1 st.shared.v4.u32 [%r8], {{%r4, %r5, %r6, %r7}};"
        )
    };
    let load_b = if trans {
        "and.b32 %r10, %r0, 15; shl.b32 %r10, %r10, 4; add.u32 %r10, %r10, b;
        ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%b0, %b1}, [%r10];"
    } else {
        "and.b32 %r10, %r0, 7; shl.b32 %r10, %r10, 5; and.b32 %r11, %r0, 8; shl.b32 %r11, %r11, 1;
        add.u32 %r10, %r10, %r11; add.u32 %r10, %r10, b;
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%b0, %b1}, [%r10];"
    };
    let body = format!(
        ".reg .b32 %r<16>; .reg .b32 %a<4>; .reg .b32 %b<2>; .reg .f32 %f<12>; .reg .b64 %d<4>; .reg .pred %p<6>;
        .shared .align 16 .b8 a[512]; .shared .align 16 .b8 b[256]; .shared .align 16 .b8 c[512];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; shr.u32 %r1, %r0, 1; and.b32 %r2, %r0, 1; shl.b32 %r3, %r0, 4;
        cvt.u64.u32 %d1, %r3; add.u64 %d2, %d0, %d1;
        ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%d2]; add.u32 %r8, %r3, a; setp.lt.u32 %p0, %r1, {rows};
        @%p0 st.shared.v4.u32 [%r8], {{%r4, %r5, %r6, %r7}};
        {write_b}
        bar.sync 0;
        and.b32 %r9, %r0, 15; shl.b32 %r9, %r9, 5; and.b32 %r11, %r0, 16; add.u32 %r9, %r9, %r11; add.u32 %r9, %r9, a;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%a0, %a1, %a2, %a3}}, [%r9];
        {load_b}
        mov.f32 %f4, 0f00000000;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%f0, %f1, %f2, %f3}}, {{%a0, %a1, %a2, %a3}},
            {{%b0, %b1}}, {{%f4, %f4, %f4, %f4}};
        add.f32 %f0, %f0, %f0; add.f32 %f1, %f1, %f1; add.f32 %f2, %f2, %f2; add.f32 %f3, %f3, %f3;
        shl.b32 %r12, %r0, 3; add.u32 %r12, %r12, c;
        st.shared.v2.f32 [%r12], {{%f0, %f1}}; st.shared.v2.f32 [%r12+256], {{%f2, %f3}};
        bar.sync 0;
        add.u32 %r13, %r3, c; ld.shared.v4.f32 {{%f0, %f1, %f2, %f3}}, [%r13];
        add.f32 %f0, %f0, 0f3F800000; add.f32 %f1, %f1, 0f3F800000; add.f32 %f2, %f2, 0f3F800000;
        add.f32 %f3, %f3, 0f3F800000;
        setp.lt.u32 %p3, %r1, {stored_rows}; shl.b32 %r14, %r2, 2; setp.lt.and.u32 %p4, %r14, {stored_columns}, %p3;
        {then}
        @%p4 st.global.v4.f32 [%d2+1024], {{%f0, %f1, %f2, %f3}};
        ret;"
    );
    Case { buffers: vec![vec![0x3f; 2048]], ..Case::new("sm_80", 32, &body) }
}

#[test]
fn rows_and_columns_that_no_result_depends_on_may_be_unwritten() {
    for trans in [false, true] {
        let kinds = |extent: Extent| product(extent, trans, "").finding_kinds();
        assert_eq!(kinds(WHOLE), [""; 0]);
        assert_eq!(kinds(Extent { loaded: (10, 4), stored: (10, 4) }), [""; 0]);
        assert_eq!(kinds(Extent { loaded: (5, 8), stored: (5, 8) }), [""; 0]);
        assert_eq!(kinds(Extent { loaded: (10, 8), stored: (11, 8) }), ["uninitialized"]);
        assert_eq!(kinds(Extent { loaded: (16, 4), stored: (16, 8) }), ["uninitialized"]);
    }
    let partial = Extent { loaded: (10, 4), stored: (10, 4) };
    assert_eq!(product(partial, false, "").surviving_mutants(), [""; 0]);
}

#[test]
fn a_result_that_depends_on_unwritten_memory_is_reported_at_the_load() {
    let case = product(Extent { loaded: (10, 8), stored: (16, 8) }, false, "");
    let line_of = |text: &str| 1 + case.ptx.lines().position(|line| line.contains(text)).unwrap();
    let found = case.run().findings.concat();
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!(finding.line as usize, line_of("ldmatrix.sync.aligned.m8n8.x4"));
    let used = format!("no thread has written; line {} uses the value", line_of("st.global.v4.f32"));
    assert!(finding.message.contains(&used), "{}", finding.message);
}

#[test]
fn unwritten_elements_may_be_selected_away_and_not_decide_or_leave_their_thread() {
    let partial = Extent { loaded: (10, 8), stored: (16, 8) };
    let kinds = |then: &str| product(partial, false, then).finding_kinds();
    // Rows that depend on unwritten rows of A become zero.
    let zero: String = (0..4).map(|n| format!("selp.f32 %f{n}, %f{n}, 0f00000000, %p5; ")).collect::<Vec<_>>().concat();
    assert_eq!(kinds(&format!("setp.lt.u32 %p5, %r1, 10; {zero}")), [""; 0]);
    assert_eq!(kinds(&format!("setp.lt.u32 %p5, %r1, 11; {zero}")), ["uninitialized"]);
    // A shuffle exchanges elements within a row of the product, or passes elements of unwritten rows to threads that
    // store.
    let stored = Extent { loaded: (10, 8), stored: (10, 8) };
    let kinds = |then: &str| product(stored, false, then).finding_kinds();
    assert_eq!(kinds("shfl.sync.bfly.b32 %f0, %f0, 1, 31, -1;"), [""; 0]);
    assert_eq!(kinds("shfl.sync.bfly.b32 %f0, %f0, 16, 31, -1;"), ["uninitialized"]);
    // An element of the product decides a branch, is an address, or is an operand of an atomic operation.
    assert_eq!(kinds("setp.gt.f32 %p5, %f0, 0f00000000; @%p5 bra END; END:"), ["uninitialized"]);
    let address = "mov.b32 %r4, %f0; and.b32 %r4, %r4, 12; add.u32 %r4, %r4, c; ld.shared.u32 %r5, [%r4];";
    assert_eq!(kinds(address), ["uninitialized"]);
    assert_eq!(kinds("red.global.add.f32 [%d0+1600], %f0;"), ["uninitialized"]);
}

#[test]
fn unwritten_words_that_no_result_depends_on_may_be_added() {
    // Each thread adds four words of its own row in shared memory, of which the last rows are unwritten.
    let kinds = |stored: u32| {
        let body = format!(
            ".reg .b32 %r<9>; .reg .b64 %d<3>; .reg .pred %p<2>; .shared .align 16 .b8 s[512];
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 4; add.u32 %r2, %r1, s;
            setp.lt.u32 %p0, %r0, 20; @%p0 st.shared.v4.u32 [%r2], {{%r0, %r0, %r0, %r0}};
            ld.shared.v4.u32 {{%r3, %r4, %r5, %r6}}, [%r2]; add.u32 %r3, %r3, %r4; mad.lo.u32 %r3, %r5, %r6, %r3;
            setp.lt.u32 %p1, %r0, {stored}; mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1;
            @%p1 st.global.u32 [%d1], %r3; ret;"
        );
        Case::new("sm_80", 32, &body).finding_kinds()
    };
    assert_eq!(kinds(20), [""; 0]);
    assert_eq!(kinds(21), ["uninitialized"]);
}

#[test]
fn a_warp_stores_a_tile_in_place_after_loading_it() {
    // Lanes load a matrix together, change it, and store it to the same bytes: lane 0 stores bytes that lanes 1 to 3
    // loaded. A store by single lanes still needs a barrier.
    let case = |store: &str, between: &str| {
        let body = format!(
            ".reg .b32 %r<9>; .reg .b64 %d<3>; .shared .align 16 .b8 tile[128]; ld.param.u64 %d0, [p];
            mov.u32 %r0, %tid.x; mov.u32 %r1, tile; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
            st.shared.u32 [%r3], %r0; and.b32 %r4, %r0, 7; shl.b32 %r4, %r4, 4; add.u32 %r4, %r1, %r4; bar.warp.sync -1;
            ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r5}}, [%r4]; add.u32 %r5, %r5, 1; {between} {store}
            bar.warp.sync -1; ld.shared.u32 %r6, [%r3]; cvt.u64.u32 %d1, %r2; add.u64 %d1, %d0, %d1;
            st.global.u32 [%d1], %r6; ret;"
        );
        Case::new("sm_90a", 32, &body).finding_kinds()
    };
    let together = "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r4], {%r5};";
    assert_eq!(case(together, ""), [""; 0]);
    let lane_by_lane = "xor.b32 %r7, %r2, 4; add.u32 %r7, %r1, %r7; st.shared.u32 [%r7], %r5;";
    assert_eq!(case(lane_by_lane, "bar.warp.sync -1;"), [""; 0]);
    assert_eq!(case(lane_by_lane, ""), ["race"]);
    // A store by single lanes before the `stmatrix` must still be ordered.
    assert_eq!(case(together, "st.shared.u32 [%r3], %r0;"), ["race"]);
}

#[test]
fn the_halves_of_a_packed_register_are_defined_one_by_one() {
    // A compiler packs two elements of a tile into one register and stores each half if its element is in the matrix.
    let case = |uses: &str| {
        let body = format!(
            ".reg .b16 %h<3>; .reg .b32 %r<6>; .reg .f32 %f<3>; .reg .b64 %d<2>; .shared .align 4 .b8 tile[256];
            ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, tile; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
            cvt.u64.u32 %d1, %r2; add.u64 %d1, %d0, %d1; st.shared.u32 [%r3], %r0;
            ld.shared.f32 %f0, [%r3]; add.f32 %f0, %f0, %f0; ld.shared.f32 %f1, [%r3+128]; add.f32 %f1, %f1, %f1;
            {uses} ret;"
        );
        Case::new("sm_80", 32, &body).finding_kinds()
    };
    let low_is_defined = ["cvt.rn.bf16x2.f32 %r4, %f1, %f0;", "cvt.rn.f16x2.f32 %r4, %f1, %f0;"];
    let high_is_defined = ["cvt.rn.bf16x2.f32 %r4, %f0, %f1;", "cvt.rn.f16x2.f32 %r4, %f0, %f1;"];
    let low = [
        "cvt.u16.u32 %h0, %r4; st.global.u16 [%d1], %h0;",
        "mov.b32 {%h0, %h1}, %r4; st.global.u16 [%d1], %h0;",
        "mov.b32 {%h0, %h1}, %r4; mov.b32 %r4, {%h0, %h1}; cvt.u16.u32 %h2, %r4; st.global.u16 [%d1], %h2;",
    ];
    let high = [
        "shr.u32 %r5, %r4, 16; st.global.u16 [%d1], %r5;",
        "mov.b32 {%h0, %h1}, %r4; st.global.u16 [%d1], %h1;",
        "mov.b32 {%h0, %h1}, %r4; mov.b32 %r4, {%h1, %h0}; cvt.u16.u32 %h2, %r4; st.global.u16 [%d1], %h2;",
    ];
    for (defined, undefined, packs) in [(low, high, low_is_defined), (high, low, high_is_defined)] {
        for pack in packs {
            for store in defined {
                assert_eq!(case(&format!("{pack} {store}")), [""; 0], "{pack} {store}");
            }
            for store in undefined.into_iter().chain(["st.global.u32 [%d1], %r4;"]) {
                assert_eq!(case(&format!("{pack} {store}")), ["uninitialized"], "{pack} {store}");
            }
            // An undefined value that is written to the register later does not keep the defined half of the packed
            // value.
            for store in low {
                let again = format!("{pack} mov.b32 %r4, %f1; add.u32 %r4, %r4, 1; {store}");
                assert_eq!(case(&again), ["uninitialized"], "{again}");
            }
        }
    }
}
