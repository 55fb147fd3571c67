//! Instructions of sm_100 that Triton's elementwise kernels and reductions use. Their arithmetic is tested in
//! `src/alu/tests/blackwell.rs`.

use super::harness::{Case, bytes_of_words};
use reel_sim::finding::{Finding, FindingKind};

/// Runs one warp of a kernel for sm_100a on a buffer of 1 KiB, whose address is `%d0`; `%r0` is the lane, `%d1` the
/// address of the lane's word.
fn case(buffer: Vec<u32>, body: &str) -> Case {
    let text = format!(
        ".reg .pred %p<3>; .reg .b32 %r<20>; .reg .b64 %d<9>;
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1;
        {body}
        ret;"
    );
    Case { buffers: vec![bytes_of_words(buffer)], ..Case::new("sm_100a", 32, &text) }
}

/// Returns the buffer after a run without findings.
fn result(buffer: Vec<u32>, body: &str) -> Vec<u32> {
    let report = case(buffer, body).run();
    assert_eq!(report.findings.concat(), [], "{body}");
    let base = report.memory.iter().next().unwrap().base;
    let bytes = report.memory.buffer_bytes(base).unwrap();
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

/// `redux.sync` of f32 equals the fold of the lanes by Rust's minimum and maximum, where -0 < +0.
#[test]
fn reductions_of_f32_over_a_warp() {
    let special = [0x7fc0_0001, 0xff80_0001, 0x7f80_0000, 0xff80_0000, 0, 0x8000_0000, 1, 0x8000_0001];
    let mut state = 0x1234_5678u32;
    for round in 0..24 {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        };
        let word = |bits: u32| match round % 4 {
            0 => special[bits as usize % 2],
            1 => special[bits as usize % 8],
            2 => special[2 + bits as usize % 6],
            _ => bits,
        };
        let values: Vec<u32> = (0..32).map(|_| word(next() >> 3)).collect();
        for (op, max) in [("min", false), ("max", true)] {
            for (modifiers, abs, nan) in
                [("", false, false), (".abs", true, false), (".NaN", false, true), (".abs.NaN", true, true)]
            {
                // Only the lanes below 20 take part.
                let body = format!(
                    "ld.global.b32 %r1, [%d1]; mov.u32 %r2, 7; setp.ge.u32 %p0, %r0, 20; @%p0 bra DONE;
                    redux.sync.{op}{modifiers}.f32 %r2, %r1, 0xfffff;
                    DONE: st.global.b32 [%d1], %r2;"
                );
                let numbers =
                    values[..20].iter().map(|bits| f32::from_bits(if abs { bits & 0x7fff_ffff } else { *bits }));
                let mut numbers: Vec<f32> = numbers.collect();
                let has_nan = numbers.iter().any(|x| x.is_nan());
                numbers.retain(|x| !x.is_nan());
                numbers.sort_by(f32::total_cmp);
                let extreme = if max { numbers.last() } else { numbers.first() };
                let expected = match extreme {
                    Some(x) if !(nan && has_nan) => x.to_bits(),
                    _ => 0x7fff_ffff,
                };
                let got = result(values.clone(), &body);
                assert_eq!(got[..20], [expected; 20], "{op}{modifiers} of {values:x?}");
                assert_eq!(got[20..32], [7; 12]);
            }
        }
    }
}

/// Forms of `tcgen05` that the simulator does not support are findings that name them.
#[test]
fn unsupported_forms_are_named() {
    for instruction in [
        "tcgen05.cp.cta_group::1.128x256b [%r1], %d2;",
        "tcgen05.shift.cta_group::1.down [%r1];",
        "tcgen05.mma.ws.cta_group::1.kind::f16 [%r1], %d2, %d2, %r1, %p1;",
        "tcgen05.mma.sp.cta_group::1.kind::f16 [%r1], %d2, %d2, [%r1], %r1, %p1;",
        "tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32 [%r1], %d2, %d2, %r1, [%r1], [%r1], %p1;",
        "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale [%r1], %d2, %d2, %r1, [%r1], [%r1], %p1;",
        "tcgen05.ld.red.sync.aligned.32x32b.x2.min.u32 {%r2, %r3}, %r4, [%r1];",
        "cp.async.bulk.tensor.3d.shared::cta.global.im2col::w.mbarrier::complete_tx::bytes [%r1], [%d0, {%r1, %r1, %r1}], [%r1], {%h0, %h0};",
    ] {
        let body = format!(".reg .b16 %h<1>; mov.u32 %r1, 0; mov.u64 %d2, 0; setp.eq.u32 %p1, %r1, 0; {instruction}");
        let findings = case(vec![0; 256], &body).run().findings.concat();
        let opcode = instruction.split(' ').next().unwrap();
        let named = |f: &Finding| f.kind == FindingKind::Unsupported && f.message.contains(opcode);
        assert!(findings.iter().any(named), "{instruction}: {findings:#?}");
    }
}

#[test]
fn a_group_of_two_blocks_needs_a_cluster_and_memory_must_be_freed() {
    for (group, message) in
        [(2, "the cluster needs an even number of blocks"), (1, "32 columns of tensor memory are not freed")]
    {
        let body = format!(".shared .b32 s; tcgen05.alloc.cta_group::{group}.sync.aligned.shared::cta.b32 [s], 32;");
        let findings = case(vec![0; 256], &body).run().findings.concat();
        let is_expected = |f: &Finding| f.kind == FindingKind::Tcgen05 && f.message.contains(message);
        assert!(!findings.is_empty() && findings.iter().all(is_expected), "{findings:#?}");
    }
}

#[test]
fn loads_and_stores_of_32_bytes_per_lane() {
    let words: Vec<u32> = (0..256).map(|i| i * 3 + 1).collect();
    let address = "mul.wide.u32 %d2, %r0, 32; add.u64 %d2, %d0, %d2;";
    let reversed: Vec<u32> = words.chunks(8).flat_map(|chunk| chunk.iter().rev().copied()).collect();
    let body = format!(
        "{address} ld.global.L1::evict_last.v8.b32 {{%r1,%r2,%r3,%r4,%r5,%r6,%r7,%r8}}, [%d2];
        st.global.v8.b32 [%d2], {{%r8,%r7,%r6,%r5,%r4,%r3,%r2,%r1}};"
    );
    assert_eq!(result(words.clone(), &body), reversed);
    let swapped: Vec<u32> = words.chunks(8).flat_map(|c| [c[6], c[7], c[4], c[5], c[2], c[3], c[0], c[1]]).collect();
    let body =
        format!("{address} ld.global.v4.b64 {{%d3,%d4,%d5,%d6}}, [%d2]; st.global.v4.b64 [%d2], {{%d6,%d5,%d4,%d3}};");
    assert_eq!(result(words.clone(), &body), swapped);
    let shifted = case(words, &body.replace("32; add.u64 %d2, %d0, %d2;", "16; add.u64 %d2, %d0, %d2;"));
    assert_eq!(shifted.finding_kinds(), ["misaligned"]);
}
