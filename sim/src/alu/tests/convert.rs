//! Tests of `cvt` between integers and floating-point formats.

use super::{Random, as_integer, check_instruction, check_instruction_with, low_bits, register_operands};
use crate::ptx::ast::{Operand, RegisterDecl, Type};

#[test]
fn cvt_to_bf16_rounds_to_nearest_even() {
    // Returns the bits of the bf16 nearest to the f32 with bits `x`; in a tie, of the bf16 whose last bit is 0.
    let nearest = |x: u64| {
        let x = x as u32;
        if f32::from_bits(x).is_nan() {
            return 0x7fff;
        }
        let (down, up) = (x >> 16, (x >> 16) + 1);
        let value = |b: u32| {
            if b & 0x7fff == 0x7f80 {
                2f64.powi(128).copysign(f32::from_bits(b << 16) as f64)
            } else {
                f32::from_bits(b << 16) as f64
            }
        };
        let (d, u) = ((f32::from_bits(x) as f64 - value(down)).abs(), (f32::from_bits(x) as f64 - value(up)).abs());
        let infinite = f32::from_bits(x).is_infinite();
        (if infinite || d < u || d == u && down & 1 == 0 { down } else { up }) as u64
    };
    check_instruction("cvt.rn.bf16.f32", 1, |s| nearest(s[0]));
    check_instruction("cvt.rn.bf16x2.f32", 2, |s| nearest(s[0]) << 16 | nearest(s[1]));
}

#[test]
fn integer_conversions_extend_truncate_or_clamp() {
    let widths = [8u32, 16, 32, 64];
    let name = |bits: u32, signed: bool| format!("{}{bits}", if signed { 's' } else { 'u' });
    for (from, from_signed) in widths.iter().flat_map(|b| [(*b, false), (*b, true)]) {
        for (to, to_signed) in widths.iter().flat_map(|b| [(*b, false), (*b, true)]) {
            let value = |s: &[u64]| as_integer(s[0], from, from_signed);
            let opcode = format!("cvt.{}.{}", name(to, to_signed), name(from, from_signed));
            check_instruction(&opcode, 1, |s| low_bits(value(s), to));
            let opcode = format!("cvt.sat.{}.{}", name(to, to_signed), name(from, from_signed));
            let (least, most) =
                if to_signed { (-(1i128 << (to - 1)), (1i128 << (to - 1)) - 1) } else { (0, (1i128 << to) - 1) };
            check_instruction(&opcode, 1, |s| low_bits(value(s).clamp(least, most), to));
        }
    }
    // `cvt` truncates the value of a wider source register to the source type. It extends the result to a wider
    // destination register.
    let registers = [Type::B32, Type::B64].map(|ty| RegisterDecl { name: String::new(), ty });
    let wide = [Operand::Register(1), Operand::Register(0)];
    check_instruction_with("cvt.s8.s16", &wide, &registers, &mut |r, _| r.next(), |s| {
        vec![as_integer(s[0], 8, true) as u64]
    });
    check_instruction_with("cvt.u32.s8", &wide, &registers, &mut |r, _| r.next() & 0xff, |s| {
        vec![as_integer(s[0], 8, true) as u32 as u64]
    });
}

#[test]
fn float_to_integer_conversions_round_clamp_and_handle_nan() {
    type Rounding = (&'static str, fn(f64) -> f64);
    let round: [Rounding; 4] =
        [("rni", f64::round_ties_even), ("rzi", f64::trunc), ("rmi", f64::floor), ("rpi", f64::ceil)];
    for (mode, f) in round {
        for (from, double) in [("f32", false), ("f64", true)] {
            for (to, bits, signed) in [
                ("s32", 32, true),
                ("u32", 32, false),
                ("s64", 64, true),
                ("u64", 64, false),
                ("s16", 16, true),
                ("u8", 8, false),
            ] {
                let mut source = |r: &mut Random, _: usize| {
                    let near = (r.next() % 2_000_001) as f64 / 4.0 - 250_000.0;
                    match (r.next() % 3, double) {
                        (0, true) => near.to_bits(),
                        (0, false) => (near as f32).to_bits() as u64,
                        _ => r.random_or_edge_case(),
                    }
                };
                check_instruction_with(
                    &format!("cvt.{mode}.{to}.{from}"),
                    &register_operands(2),
                    &[],
                    &mut source,
                    |s| {
                        let x = if double { f64::from_bits(s[0]) } else { f32::from_bits(s[0] as u32) as f64 };
                        let (least, most) = if signed {
                            (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
                        } else {
                            (0, (1i128 << bits) - 1)
                        };
                        if x.is_nan() {
                            return vec![if !double && bits < 64 { 0 } else { 1 << (bits - 1) }];
                        }
                        vec![low_bits((f(x).clamp(-1e30, 1e30) as i128).clamp(least, most), bits)]
                    },
                );
            }
        }
        check_instruction(&format!("cvt.{mode}.f32.f32"), 1, |s| {
            let x = f32::from_bits(s[0] as u32);
            if x.is_nan() { 0x7fff_ffff } else { (f(x as f64) as f32).to_bits() as u64 }
        });
    }
}

#[test]
fn conversions_to_floats_match_rust() {
    check_instruction("cvt.rn.f32.s64", 1, |s| (s[0] as i64 as f32).to_bits() as u64);
    check_instruction("cvt.rn.f32.u64", 1, |s| (s[0] as f32).to_bits() as u64);
    check_instruction("cvt.rn.f64.s64", 1, |s| (s[0] as i64 as f64).to_bits());
    check_instruction("cvt.rn.f64.u32", 1, |s| (s[0] as f64).to_bits());
    check_instruction("cvt.rn.f32.s32", 1, |s| (s[0] as i32 as f32).to_bits() as u64);
    check_instruction("cvt.rn.f32.u8", 1, |s| (s[0] as f32).to_bits() as u64);
    check_instruction("cvt.rz.f32.u32", 1, |s| {
        let near = s[0] as f32;
        (if near as u64 > s[0] { near.next_down() } else { near }).to_bits() as u64
    });
    check_instruction("cvt.f64.f32", 1, |s| {
        let x = f32::from_bits(s[0] as u32);
        if x.is_nan() { 0x7fff_ffff_ffff_ffff } else { (x as f64).to_bits() }
    });
    let nan = |x: f32| if x.is_nan() { 0x7fff_ffff } else { x.to_bits() as u64 };
    check_instruction("cvt.rn.f32.f64", 1, |s| nan(f64::from_bits(s[0]) as f32));
    check_instruction("cvt.sat.f32.f32", 1, |s| {
        let x = f32::from_bits(s[0] as u32);
        if x > 0.0 { x.min(1.0).to_bits() as u64 } else { 0 }
    });
    check_instruction("cvt.rn.relu.bf16x2.f32", 2, |s| {
        let one = |x: u64| {
            let x = f32::from_bits(x as u32);
            if x.is_nan() {
                0x7fff
            } else if x <= 0.0 {
                0
            } else {
                half::bf16::from_f32(x).to_bits() as u64
            }
        };
        one(s[0]) << 16 | one(s[1])
    });
    check_instruction("cvt.rn.satfinite.f16.f32", 1, |s| {
        let x = f32::from_bits(s[0] as u32);
        if x.is_nan() { 0x7fff } else { half::f16::from_f32_const(x.clamp(-65504.0, 65504.0)).to_bits() as u64 }
    });
    for opcode in ["cvt.bf16.f16", "cvt.rn.bf16.f16"] {
        check_instruction(opcode, 1, |s| {
            let x = half::f16::from_bits(s[0] as u16).to_f32();
            if x.is_nan() { 0x7fff } else { half::bf16::from_f32(x).to_bits() as u64 }
        });
    }
    check_instruction("cvt.pack.sat.u8.s32.b32", 3, |s| {
        let one = |x: u64| as_integer(x, 32, true).clamp(0, 255) as u64;
        (s[2] << 16 | one(s[0]) << 8 | one(s[1])) & 0xffff_ffff
    });
    check_instruction("cvt.pack.sat.s16.s32", 2, |s| {
        let one = |x: u64| low_bits(as_integer(x, 32, true).clamp(-32768, 32767), 16);
        one(s[0]) << 16 | one(s[1])
    });
}
