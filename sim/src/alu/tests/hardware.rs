//! Compares instructions with results measured on an H200, in cases that the PTX ISA does not specify
//! (`tools/benches/src/instructions`).

use super::{register_operands, run_instruction};
use crate::alu::{OperandSlots, decode};
use crate::regs::{RegisterRow, Registers};

/// Runs an instruction with the same sources in every lane and returns the result of one lane.
fn result(opcode: &str, sources: &[u64]) -> u64 {
    let ran = run_instruction(opcode, &register_operands(1 + sources.len()), &[], &mut |i| sources[i]);
    ran.results[0][0]
}

#[test]
fn results_match_an_h200() {
    let seen: &[(&str, &[u64], u64)] = &[
        // The 64-bit forms of `bfe` and `bfi` use all bits of position and length, not only the low eight.
        ("bfe.u64", &[0x1a0c_989f_f85c_f9fd, 0xcd43_c910, 0x1b], 0),
        ("bfe.s64", &[0x3220_2104_e3cc_7669, 0x7145_2b29, 0x46], 0),
        ("bfi.b64", &[0x80_7fff_ff01_80ff, 0x92a3_4047_af28_4f00, 0x100, 0x23], 0x92a3_4047_af28_4f00),
        ("testp.normal.f32", &[0x8000_0000], 1),
        ("testp.normal.f64", &[0], 1),
        // `.ftz` flushes a result that is below the smallest normal number after rounding with unlimited exponent
        // range.
        ("mul.ftz.f32", &[0x3f7f_ffff, 0x80_0000], 0),
        ("mul.rm.ftz.f32", &[0xbf7f_ffff, 0x80_0000], 0x8000_0000),
        ("mul.rp.ftz.sat.f32", &[0x80_0000, 0x3f7f_ffff], 0),
        ("fma.rm.ftz.f32", &[0x80_0000, 0x33af_97a3, 0x8080_0000], 0x8000_0000),
        ("mul.ftz.f16", &[0x3bff, 0x8400], 0x8000),
        ("mul.rn.ftz.f16", &[0x3bff, 0x8400], 0x8000),
        ("mul.ftz.f16x2", &[0xbbff, 0x8400], 0),
        // `.ftz` does not flush a subnormal f32 source if the result is an f16.
        ("cvt.rm.ftz.f16.f32", &[0x8000_002a], 0x8001),
        ("cvt.rp.ftz.f16.f32", &[0x7_8ad2], 1),
        ("cvt.rp.ftz.sat.f16.f32", &[0x6ce], 1),
        // `cvt` from f64 flushes like arithmetic, by the result after rounding with unlimited exponent range: 2^-126 ·
        // (1 − 2^-24) has 24 bits, so it stays below the smallest normal number.
        ("cvt.rn.ftz.f32.f64", &[0x380f_ffff_e000_0000], 0),
        ("cvt.rn.ftz.sat.f32.f64", &[0x380f_ffff_e000_0000], 0),
        ("cvt.rm.ftz.f32.f64", &[0xb80f_ffff_e000_0000], 0x8000_0000),
        ("cvt.rp.ftz.f32.f64", &[0x380f_ffff_e000_0000], 0),
        ("cvt.rp.ftz.sat.f32.f64", &[0x380f_ffff_e000_0000], 0),
        // `.rna` truncates a NaN instead of making it canonical.
        ("cvt.rna.tf32.f32", &[0xff80_0001], 0xff80_0000),
        ("cvt.rna.satfinite.tf32.f32", &[0x7f80_0001], 0x7f7f_e000),
        ("neg.f16", &[0x7e01], 0x7fff),
        ("abs.bf16", &[0xffc1], 0x7fff),
    ];
    for (opcode, sources, expected) in seen {
        let got = result(opcode, sources);
        assert_eq!(got, *expected, "{opcode} of {sources:x?} is {got:#x}");
    }
}

#[test]
fn results_that_round_up_to_the_smallest_normal_number_are_kept() {
    // 2^-126 · (1 − 2^-26), rounded to a significand of 24 bits, becomes the smallest normal number when rounding to
    // nearest or up. When rounding towards zero or down, it stays below the smallest normal number.
    let (a, b, c) = (0x80_0000u64, 0xb280_0000u64, 0x80_0000u64);
    assert_eq!(result("fma.rn.ftz.f32", &[a, b, c]), 0x80_0000);
    assert_eq!(result("fma.rp.ftz.f32", &[a, b, c]), 0x80_0000);
    assert_eq!(result("fma.rz.ftz.f32", &[a, b, c]), 0);
    assert_eq!(result("fma.rm.ftz.f32", &[a, b, c]), 0);
    assert_eq!(result("fma.rn.ftz.sat.f32", &[a, b, c]), 0x80_0000);
    // Three sources of a conversion: 2^-126 · (1 − 2^-26); the midpoint between 2^-126 and the next smaller 24-bit
    // number (a tie, which rounds to the even 2^-126); and the f64 just below this midpoint.
    for (bits, nearest) in
        [(0x380f_ffff_f800_0000u64, 0x80_0000), (0x380f_ffff_f000_0000, 0x80_0000), (0x380f_ffff_efff_ffff, 0)]
    {
        assert_eq!(result("cvt.rn.ftz.f32.f64", &[bits]), nearest, "{bits:#x}");
        assert_eq!(result("cvt.rp.ftz.f32.f64", &[bits]), 0x80_0000, "{bits:#x}");
        assert_eq!(result("cvt.rm.ftz.f32.f64", &[bits | 1 << 63]), 0x8080_0000, "{bits:#x}");
        assert_eq!(result("cvt.rz.ftz.f32.f64", &[bits]), 0);
        assert_eq!(result("cvt.rm.ftz.f32.f64", &[bits]), 0);
        assert_eq!(
            result("cvt.rn.f32.f64", &[bits]),
            0x80_0000,
            "without .ftz the result is rounded as a subnormal number"
        );
    }
}

#[test]
fn borrow_clears_the_carry_flag() {
    let sequence = |first: &str, second: &str, rows: [u32; 4]| {
        let mut r = Registers {
            rows: rows.iter().chain(&[0, 0]).map(|x| RegisterRow([*x; 32])).collect(),
            undefined: vec![0; 6],
            predicates: vec![0; 1],
            undefined_predicates: vec![0; 1],
            ..Registers::default()
        };
        for (opcode, dst, src) in [(first, 4, [0, 1]), (second, 5, [2, 3])] {
            let (op, _) = decode(opcode, &register_operands(3), &[]).expect(opcode);
            let mut s = OperandSlots { carry: 0, ..OperandSlots::default() };
            s.dst[0] = dst;
            s.src[..2].copy_from_slice(&src);
            op.run(&mut r, &s, u32::MAX);
        }
        r.rows[5].0[0]
    };
    let rows = [0x19f6_4228, 0x19f6_4227, 0x99f6_4228, 0x19f6_4228];
    assert_eq!(sequence("sub.cc.u32", "addc.u32", rows), 0xb3ec_8451);
    assert_eq!(sequence("add.cc.u32", "subc.u32", [0x4ac0_5300, 0xe, 0x9bce_3800, 0]), 0x9bce_37ff);
    assert_eq!(sequence("sub.cc.u32", "subc.u32", [0, 1, 5, 2]), 2);
    assert_eq!(sequence("sub.cc.u32", "subc.u32", [1, 1, 5, 2]), 3);
}
