//! Tensor maps that a kernel builds itself, as Triton's `make_tensor_descriptor` does: 128 zero bytes in shared memory,
//! every field by `tensormap.replace`, a copy to global memory, and a fence of the tensormap proxy before the first
//! use.

use super::harness::{Case, bytes_of_words};

/// One warp builds the map of 8 × 8 words at byte 256 of the buffer, and copies the box of 4 × 8 words at row 2 to byte
/// 512.
fn case() -> Case {
    let replace = |field: &str, rest: &str| {
        let bits = if field.starts_with("global_address") || field.starts_with("global_stride") { 64 } else { 32 };
        format!("tensormap.replace.tile.{field}.shared::cta.b1024.b{bits} [%d1], {rest}; // {field}\n")
    };
    let fields = [
        ("global_address", "%d2"),
        ("rank", "1"),
        ("box_dim", "0, 8"),
        ("box_dim", "1, 4"),
        ("global_dim", "0, 8"),
        ("global_dim", "1, 8"),
        ("global_stride", "0, 32"),
        ("element_stride", "0, 1"),
        ("element_stride", "1, 1"),
        ("elemtype", "2"),
        ("swizzle_mode", "0"),
    ];
    let fields: String = fields.into_iter().map(|(field, rest)| replace(field, rest)).collect();
    let body = format!(
        ".reg .pred %p<4>; .reg .b32 %r<9>; .reg .b64 %d<9>;
        .shared .align 128 .b8 map[128]; .shared .align 128 .b8 tile[128]; .shared .align 8 .b64 bar;
        ld.param.u64 %d0, [p]; add.u64 %d2, %d0, 256;
        mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 2; mov.u32 %r2, map; add.u32 %r2, %r2, %r1; mov.u32 %r3, 0;
        st.shared::cta.b32 [%r2], %r3; // zeros
        bar.warp.sync -1; // zeros are visible
        setp.ne.u32 %p0, %r0, 0; mov.u32 %r4, map; cvt.u64.u32 %d1, %r4;
        @%p0 bra REPLACED;
        {fields}
        REPLACED:
        bar.warp.sync -1; // fields are visible
        tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%d0], [%d1], 128;
        fence.proxy.tensormap::generic.acquire.gpu [%d0], 128; // acquire
        @%p0 bra ISSUED;
        mbarrier.init.shared::cta.b64 [bar], 1; fence.proxy.async.shared::cta;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 128;
        cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [tile], [%d0, {{%r3, 2}}], [bar];
        ISSUED:
        bar.warp.sync -1;
        WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p1, [bar], 0; @!%p1 bra WAIT;
        mov.u32 %r4, tile; add.u32 %r4, %r4, %r1; ld.shared.b32 %r5, [%r4];
        cvt.u64.u32 %d3, %r1; add.u64 %d3, %d0, %d3; st.global.b32 [%d3 + 512], %r5; ret;"
    );
    let buffers = vec![bytes_of_words(0..256)];
    Case {
        buffers,
        ..Case::new(
            "sm_90a",
            32,
            &body.replace("{%r3, 2}", "{%r3, %r6}").replace("mov.u32 %r3, 0;", "mov.u32 %r3, 0; mov.u32 %r6, 2;"),
        )
    }
}

#[test]
fn a_map_made_of_zeros_is_a_map() {
    let report = case().run();
    assert_eq!(report.findings.concat(), []);
    let base = report.memory.iter().next().unwrap().base;
    let rows: Vec<u8> = bytes_of_words(64 + 16..64 + 16 + 32);
    assert_eq!(report.memory.buffer_bytes(base).unwrap()[512..640], rows);
}

#[test]
fn what_is_missing_in_a_map_made_of_zeros_is_found() {
    let kinds = |mark: &str| case().without_lines_marked(mark).finding_kinds();
    assert!(kinds("zeros").contains(&"uninitialized"), "{:?}", kinds("zeros"));
    assert_eq!(kinds("zeros are visible"), ["race"]);
    assert_eq!(kinds("acquire"), ["async-proxy"]);
    for field in ["rank", "box_dim", "global_dim", "element_stride"] {
        assert!(kinds(field).contains(&"out-of-bounds"), "{field}: {:?}", kinds(field));
    }
    let wrong = |from: &str, to: &str| case().replace(from, to).finding_kinds();
    assert!(wrong("], 0, 32;", "], 0, 40;").contains(&"out-of-bounds"), "a stride that is no multiple of 16");
    assert!(wrong("b32 [%d1], 1, 8; // global_dim", "b32 [%d1], 1, 4096; // global_dim").is_empty());
    assert!(wrong("], 2; // elemtype", "], 99; // elemtype").contains(&"out-of-bounds"), "an unknown type");
    // A store changes a byte of the map after the first field was replaced.
    assert!(
        wrong(
            "bar.warp.sync -1; // fields are visible",
            "bar.warp.sync -1; st.shared.b32 [map + 8], %r0; bar.warp.sync -1;"
        )
        .contains(&"out-of-bounds")
    );
}
