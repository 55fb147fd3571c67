//! Copies of struct padding, as `nvcc -G` compiles them, and uses of the copied padding.

use super::harness::Case;

/// A kernel that fills a struct `{ char c; int x; }` in local memory, copies it word by word to another struct, and
/// then executes `then`. At the end, the kernel stores `%r9` in the output.
fn structs(then: &str) -> Case {
    Case::new(
        "sm_80",
        32,
        &format!(
            ".reg .b32 %r<12>; .reg .b16 %h<4>; .reg .b64 %d<4>; .reg .pred %p;
            .local .align 4 .b8 a[8]; .local .align 4 .b8 b[8]; .shared .align 4 .b8 s[256];
            ld.param.u64 %d0, [p]; mov.u32 %r10, %tid.x; mul.wide.u32 %d1, %r10, 8; add.u64 %d0, %d0, %d1;
            shl.b32 %r10, %r10, 3; mov.u32 %r11, s; add.u32 %r11, %r11, %r10; mov.u32 %r9, 1;
            mov.u32 %r0, 5; st.local.u8 [a], %r0; st.local.u32 [a+4], 7;
            ld.local.u32 %r1, [a]; mov.b32 %r2, %r1; st.local.u32 [b], %r2;
            ld.local.u32 %r3, [a+4]; st.local.u32 [b+4], %r3;
            {then}
            st.global.u32 [%d0+512], %r9;
            ret;"
        ),
    )
}

#[test]
fn copied_padding_is_no_finding_and_its_use_is() {
    let field = "ld.local.u8 %r9, [b]; add.u32 %r9, %r9, 1;";
    let padding = "ld.local.u8 %r9, [b+1]; add.u32 %r9, %r9, 1;";
    assert_eq!(structs("").finding_kinds(), [""; 0]);
    assert_eq!(structs(field).finding_kinds(), [""; 0]);
    assert_eq!(structs(padding).finding_kinds(), ["uninitialized"]);
    // A branch depends on a word that contains padding.
    assert_eq!(
        structs("ld.local.u32 %r4, [b]; setp.eq.u32 %p, %r4, 5; @%p bra END; END:").finding_kinds(),
        ["uninitialized"]
    );
    // The struct is copied byte by byte, as compilers copy large structs.
    let bytes = "ld.local.u8 %r4, [a+1]; st.local.u8 [b+2], %r4; ld.local.u8 %r5, [a]; st.local.u8 [b+1], %r5;";
    assert_eq!(structs(&format!("{bytes} {padding}")).finding_kinds(), [""; 0]);
    assert_eq!(
        structs(&format!("{bytes} ld.local.u8 %r9, [b+2]; add.u32 %r9, %r9, 1;")).finding_kinds(),
        ["uninitialized"]
    );
}

#[test]
fn copied_padding_stays_unwritten_in_shared_and_global_memory() {
    for (space, base) in [("shared", "%r11"), ("global", "%d0")] {
        let copy = format!(
            "ld.local.u32 %r4, [b]; st.{space}.u32 [{base}], %r4; ld.local.u32 %r5, [b+4]; st.{space}.u32 [{base}+4], %r5;"
        );
        assert_eq!(structs(&copy).finding_kinds(), [""; 0], "{space}");
        let use_of = |at: u32| format!("{copy} ld.{space}.u8 %r9, [{base}+{at}]; add.u32 %r9, %r9, 1;");
        assert_eq!(structs(&use_of(0)).finding_kinds(), [""; 0], "{space}");
        // The host has written the buffer, but the copied padding makes the bytes that it overwrites uninitialised
        // again.
        assert_eq!(structs(&use_of(2)).finding_kinds(), ["uninitialized"], "{space}");
        let back = format!("{copy} ld.{space}.u32 %r6, [{base}]; st.local.u32 [a], %r6;");
        assert_eq!(structs(&format!("{back} ld.local.u8 %r9, [a]; add.u32 %r9, %r9, 1;")).finding_kinds(), [""; 0]);
        assert_eq!(
            structs(&format!("{back} ld.local.u8 %r9, [a+3]; add.u32 %r9, %r9, 1;")).finding_kinds(),
            ["uninitialized"]
        );
    }
}

#[test]
fn unwritten_words_that_become_results_are_findings() {
    // The whole word is unwritten, so it does not count as padding.
    let word = ".local .align 4 .b8 c[4]; ld.local.u32 %r9, [c];";
    assert_eq!(structs(word).finding_kinds(), ["uninitialized"]);
    let moved = ".local .align 4 .b8 c[4]; ld.local.u32 %r8, [c]; mov.b32 %r9, %r8;";
    assert_eq!(structs(moved).finding_kinds(), ["uninitialized"]);
    // Unwritten bytes in shared memory do not count as padding of a struct.
    assert_eq!(structs("st.shared.u8 [%r11], %r0; ld.shared.u32 %r9, [%r11];").finding_kinds(), ["uninitialized"]);
    // A copy within shared memory passes the unwritten bytes on.
    let copy = "ld.shared.u32 %r4, [%r11]; st.shared.u32 [%r11+4], %r4;";
    assert_eq!(structs(copy).finding_kinds(), [""; 0]);
    assert_eq!(structs(&format!("{copy} ld.shared.u32 %r9, [%r11+4];")).finding_kinds(), ["uninitialized"]);
}

/// Lane 0 writes the first word of an array in local memory; all lanes load the word, pass it to `%r9` by `exchange`
/// and store `%r9`.
fn array_set_by_one_lane(exchange: &str) -> Vec<&'static str> {
    structs(&format!(
        ".local .align 4 .b8 c[4]; setp.ne.u32 %p, %r10, 0; @%p bra SET; st.local.u32 [c], 3;
        SET: ld.local.u32 %r8, [c]; {exchange}"
    ))
    .finding_kinds()
}

#[test]
fn lanes_may_pass_unwritten_array_elements_that_no_lane_uses() {
    // Every lane receives the word of lane 0, the only lane that has written it.
    assert_eq!(array_set_by_one_lane("shfl.sync.idx.b32 %r9, %r8, 0, 31, -1;"), [""; 0]);
    assert_eq!(array_set_by_one_lane("mov.b32 %r7, %r8; shfl.sync.idx.b32 %r9, %r7, 0, 31, -1;"), [""; 0]);
    // Lanes that receive the word of another lane use an unwritten value.
    assert_eq!(array_set_by_one_lane("shfl.sync.bfly.b32 %r9, %r8, 1, 31, -1;"), ["uninitialized"]);
    // The unwritten value also decides a branch.
    let branch = "setp.eq.u32 %p, %r8, 3; shfl.sync.idx.b32 %r9, %r8, 0, 31, -1; @%p bra END; END:";
    assert_eq!(array_set_by_one_lane(branch), ["uninitialized"]);
}

#[test]
fn variables_may_be_loaded_ahead_of_the_branch_that_decides_on_their_use() {
    assert_eq!(array_set_by_one_lane("selp.b32 %r9, 9, %r8, %p;"), [""; 0]);
    assert_eq!(array_set_by_one_lane("add.u32 %r8, %r8, 1; selp.b32 %r9, 9, %r8, %p;"), [""; 0]);
    assert_eq!(array_set_by_one_lane("selp.b32 %r9, %r8, 9, %p;"), ["uninitialized"]);
    // `if (lane == 0 && c == 3)` and `if (lane != 0 || c == 3)`: only lane 0, where %p is false, uses the variable.
    let test = |combine: &str| {
        array_set_by_one_lane(&format!(".reg .pred %q<3>; setp.eq.s32 %q0, %r8, 3; {combine} @%q1 bra END; END:"))
    };
    assert_eq!(test("not.pred %q2, %p; and.pred %q1, %q2, %q0;"), [""; 0]);
    assert_eq!(test("and.pred %q1, %q0, %q0;"), ["uninitialized"]);
    assert_eq!(test("or.pred %q1, %q0, %p;"), [""; 0]);
    assert_eq!(test("and.pred %q1, %p, %q0;"), ["uninitialized"]);
    assert_eq!(array_set_by_one_lane("add.u32 %r9, %r8, 1;"), ["uninitialized"]);
}

#[test]
fn the_compiler_may_declare_bytes_as_padding() {
    // nvcc declares a word that is all padding, as in `{ short; double }`, by a pragma.
    let copy = |mask: &str| {
        format!(
            ".local .align 4 .b8 c[4];
            .pragma \"used_bytes_mask {mask}\";
            ld.local.u32 %r4, [c]; st.global.u32 [%d0], %r4;"
        )
    };
    assert_eq!(structs(&copy("0")).finding_kinds(), [""; 0]);
    assert_eq!(structs(&copy("15")).finding_kinds(), ["uninitialized"]);
    assert_eq!(
        structs(&format!("{} ld.global.u32 %r9, [%d0]; add.u32 %r9, %r9, 1;", copy("0"))).finding_kinds(),
        ["uninitialized"]
    );
    // The pragma applies only to the next instruction. That may be a load whose value is used in a computation.
    let compute = |mask: &str, space: &str, base: &str| {
        format!(
            "st.{space}.u8 [{base}], %r0; .pragma \"used_bytes_mask {mask}\";
            ld.{space}.u32 %r4, [{base}]; add.u32 %r9, %r4, 1;"
        )
    };
    for (space, base) in [("shared", "%r11"), ("local", "c")] {
        let declare = if space == "local" { ".local .align 4 .b8 c[4];" } else { "" };
        assert_eq!(structs(&format!("{declare} {}", compute("0x1", space, base))).finding_kinds(), [""; 0], "{space}");
        assert_eq!(
            structs(&format!("{declare} {}", compute("3", space, base))).finding_kinds(),
            ["uninitialized"],
            "{space}"
        );
    }
}

#[test]
fn bytes_of_a_loaded_word_that_no_result_depends_on_may_be_unwritten() {
    // cub reduces `tuple<bool, long>` like this: it loads the whole word with the `bool` and exchanges the word in
    // halves.
    let exchange = "mov.b64 {%r4, %r5}, %d2; shfl.sync.down.b32 %r6, %r4, 1, 31, -1;
        shfl.sync.down.b32 %r7, %r5, 1, 31, -1; mov.b64 %d3, {%r6, %r7}; cvt.u16.u64 %h1, %d3;";
    for (space, base) in [("local", "c"), ("shared", "%r11"), ("global", "%d0")] {
        let load = format!(
            ".local .align 8 .b8 c[8]; .local .align 8 .b8 d[8]; ld.local.u64 %d1, [d]; st.{space}.u64 [{base}], %d1;
            st.{space}.u8 [{base}], %r0; ld.{space}.u64 %d2, [{base}];"
        );
        // Storing the unwritten word to global memory is already a finding.
        let copy = if space == "global" { vec!["uninitialized"] } else { vec![] };
        let kinds = |then: &str| structs(&format!("{load} {then} cvt.u32.u16 %r9, %h2;")).finding_kinds();
        assert_eq!(kinds(&format!("{exchange} and.b16 %h2, %h1, 255;")), copy, "{space}");
        assert_eq!(kinds("cvt.u16.u64 %h1, %d2; and.b16 %h2, %h1, 1;"), copy, "{space}");
        assert_eq!(kinds(&format!("{exchange} and.b16 %h2, %h1, 256;")), ["uninitialized"], "{space}");
        assert_eq!(kinds("shr.u64 %d3, %d2, 8; cvt.u16.u64 %h1, %d3; and.b16 %h2, %h1, 1;"), ["uninitialized"]);
        // The destination register of `prmt` and `and` is also a source.
        assert_eq!(
            kinds("cvt.u32.u64 %r4, %d2; prmt.b32 %r4, %r4, 0, 0x4440; mov.b32 {%h2, %h1}, %r4;"),
            copy,
            "{space}"
        );
        assert_eq!(kinds("and.b64 %d2, %d2, 255; cvt.u16.u64 %h2, %d2;"), copy, "{space}");
        let second_byte = "cvt.u32.u64 %r4, %d2; prmt.b32 %r4, %r4, 0, 0x4441; mov.b32 {%h2, %h1}, %r4;";
        assert_eq!(kinds(second_byte), ["uninitialized"], "{space}");
    }
}

#[test]
fn bit_fields_of_an_unwritten_word_may_be_set() {
    for (space, base) in [("local", "c"), ("shared", "%r11")] {
        let set = format!(
            ".local .align 4 .b8 c[4]; ld.{space}.u32 %r4, [{base}]; and.b32 %r5, %r4, -256; or.b32 %r6, %r5, 6;
            st.{space}.u32 [{base}], %r6;"
        );
        let use_of =
            |at: u32| structs(&format!("{set} ld.{space}.u8 %r9, [{base}+{at}]; add.u32 %r9, %r9, 1;")).finding_kinds();
        assert_eq!(use_of(0), [""; 0], "{space}");
        assert_eq!(use_of(1), ["uninitialized"], "{space}");
    }
}

#[test]
fn copied_padding_passes_through_arguments() {
    let call = |byte: u32| {
        let case = structs(
            "{ .param .align 4 .b8 q[8]; .param .b32 result;
            ld.local.u32 %r4, [b]; st.param.b32 [q], %r4; ld.local.u32 %r5, [b+4]; st.param.b32 [q+4], %r5;
            call.uni (result), get, (q); ld.param.b32 %r9, [result]; }",
        );
        let function = format!(
            ".func (.param .b32 out) get(.param .align 4 .b8 q[8]) {{ .reg .b32 %r<4>; .local .align 4 .b8 c[8];
            ld.param.b32 %r0, [q]; st.local.b32 [c], %r0; ld.param.b32 %r1, [q+4]; st.local.b32 [c+4], %r1;
            ld.local.u8 %r2, [c+{byte}]; add.u32 %r2, %r2, 1; st.param.b32 [out], %r2; ret; }}\n.visible .entry"
        );
        case.replace(".visible .entry", &function).finding_kinds()
    };
    for byte in [0, 4, 7] {
        assert_eq!(call(byte), [""; 0], "{byte}");
    }
    for byte in [1, 3] {
        assert_eq!(call(byte), ["uninitialized"], "{byte}");
    }
}

/// A block of 64 threads exchanges values through shared memory, as sorting libraries do, but only 40 threads have
/// loaded a value. `use_of` runs after the load of the other thread's value, where `%p0` is true in the threads whose
/// partner had none.
fn exchange_of_a_part_of_a_tile(use_of: &str) -> Vec<&'static str> {
    let body = format!(
        ".reg .b32 %r<8>; .reg .b64 %d<4>; .reg .pred %p<2>; .shared .align 8 .b8 tile[256];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1;
        setp.ge.u32 %p0, %r0, 40; @%p0 bra STORE; ld.global.u32 %r1, [%d1];
        STORE: shl.b32 %r2, %r0, 2; mov.u32 %r3, tile; add.u32 %r4, %r3, %r2; st.shared.u32 [%r4], %r1; bar.sync 0;
        xor.b32 %r5, %r2, 252; add.u32 %r5, %r3, %r5; ld.shared.u32 %r6, [%r5]; setp.lt.u32 %p0, %r0, 24;
        {use_of}
        END: ret;"
    );
    Case::new("sm_80", 64, &body).finding_kinds()
}

#[test]
fn undefined_registers_pass_through_shared_memory_until_they_are_used() {
    let store = "st.global.u32 [%d1+512], %r6;";
    assert_eq!(exchange_of_a_part_of_a_tile(&format!("@%p0 bra END; {store}")), [""; 0]);
    assert_eq!(exchange_of_a_part_of_a_tile(store), ["uninitialized"]);
    let branch = format!("setp.eq.u32 %p1, %r6, 7; @%p1 bra END; @!%p0 {store}");
    assert_eq!(exchange_of_a_part_of_a_tile(&branch), ["uninitialized"]);
    assert_eq!(exchange_of_a_part_of_a_tile("st.global.u32 [%d1+512], %r1;"), ["uninitialized"]);
}
