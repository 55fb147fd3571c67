//! Seldom executed instructions: integers, carries, conversions, vectors, predicates.

use super::{Random, check, check_with, plain, run};
use crate::alu::{OperandSlots, decode};
use crate::ptx::ast::{Operand, RegisterDecl, Type};
use crate::regs::{Registers, Row};

/// The low `bits` as a number.
fn number(x: u64, bits: u32, signed: bool) -> i128 {
    let x = x as i128 & ((1 << bits) - 1);
    if signed && x >> (bits - 1) != 0 { x - (1 << bits) } else { x }
}

fn low(x: i128, bits: u32) -> u64 {
    (x & ((1 << bits) - 1)) as u64
}

#[test]
fn integers_of_every_width() {
    for (name, bits, signed) in [
        ("u16", 16, false),
        ("s16", 16, true),
        ("u32", 32, false),
        ("s32", 32, true),
        ("u64", 64, false),
        ("s64", 64, true),
    ] {
        let n = move |x: u64| number(x, bits, signed);
        let two = |op: &str, f: &dyn Fn(i128, i128) -> i128| {
            check(&format!("{op}.{name}"), 2, |s| low(f(n(s[0]), n(s[1])), bits));
        };
        two("add", &|a, b| a + b);
        two("sub", &|a, b| a - b);
        two("mul.lo", &|a, b| a.wrapping_mul(b));
        two("min", &|a, b| if a < b { a } else { b });
        two("max", &|a, b| if a > b { a } else { b });
        // Towards zero; by zero all ones.
        two("div", &|a, b| if b == 0 { -1 } else { a / b });
        two("rem", &|a, b| if b == 0 { -1 } else { a - a / b * b });
        if bits < 64 {
            two("mul.hi", &|a, b| (a * b) >> bits);
            let wide = 2 * bits;
            check(&format!("mul.wide.{name}"), 2, |s| low(n(s[0]) * n(s[1]), wide));
            check(&format!("mad.wide.{name}"), 3, |s| low(n(s[0]) * n(s[1]) + s[2] as i128, wide));
        }
        check(&format!("mad.lo.{name}"), 3, |s| low(n(s[0]).wrapping_mul(n(s[1])).wrapping_add(n(s[2])), bits));
        check(&format!("mad.hi.{name}"), 3, |s| {
            // Schoolbook on 32-bit digits, for 64 bits too.
            let (a, b) = (n(s[0]), n(s[1]));
            let (a1, a0, b1, b0) = (a >> 32, a & 0xffff_ffff, b >> 32, b & 0xffff_ffff);
            let high64 = a1 * b1 + ((a1 * b0 + ((a0 * b0) >> 32) + a0 * b1) >> 32);
            let high = if bits == 64 { high64 } else { (a * b) >> bits };
            low(high + n(s[2]), bits)
        });
        check(&format!("sad.{name}"), 3, |s| low(n(s[2]) + (n(s[0]) - n(s[1])).abs(), bits));
        if signed {
            check(&format!("abs.{name}"), 1, |s| low(n(s[0]).abs(), bits));
            check(&format!("neg.{name}"), 1, |s| low(-n(s[0]), bits));
        }
        let shift = &mut |r: &mut Random, i: usize| if i == 0 { r.edgy() } else { r.next() % 80 };
        check_with(&format!("shr.{name}"), &plain(3), &[], shift, |s| vec![low(n(s[0]) >> s[1], bits)]);
    }
    check("add.sat.s32", 2, |s| {
        low((number(s[0], 32, true) + number(s[1], 32, true)).clamp(-(1 << 31), (1 << 31) - 1), 32)
    });
    check("max.relu.s32", 2, |s| number(s[0], 32, true).max(number(s[1], 32, true)).max(0) as u64);
    check("min.s16x2", 2, |s| {
        let half = |i: u32| low(number(s[0] >> i, 16, true).min(number(s[1] >> i, 16, true)), 16);
        half(0) | half(16) << 16
    });
    check("add.u16x2", 2, |s| {
        low(s[0] as i128 + s[1] as i128, 16) | low((s[0] >> 16) as i128 + (s[1] >> 16) as i128, 16) << 16
    });
    check("mul24.lo.s32", 2, |s| low(number(s[0], 24, true) * number(s[1], 24, true), 32));
    check("mad24.hi.u32", 3, |s| low(((number(s[0], 24, false) * number(s[1], 24, false)) >> 16) + s[2] as i128, 32));
    for b in [16, 32, 64] {
        check(&format!("not.b{b}"), 1, |s| low(!(s[0] as i128), b));
        check(&format!("cnot.b{b}"), 1, |s| (s[0] == 0) as u64);
        check(&format!("xor.b{b}"), 2, |s| s[0] ^ s[1]);
    }
}

#[test]
fn bits_are_counted_found_and_moved() {
    let bit = |x: u64, i: u64| x >> i & 1;
    for b in [32u64, 64] {
        check(&format!("popc.b{b}"), 1, |s| (0..b).map(|i| bit(s[0], i)).sum());
        check(&format!("clz.b{b}"), 1, |s| (0..b).rev().take_while(|i| bit(s[0], *i) == 0).count() as u64);
        check(&format!("brev.b{b}"), 1, |s| (0..b).map(|i| bit(s[0], i) << (b - 1 - i)).sum());
        for signed in [false, true] {
            let name = format!("{}{b}", if signed { 's' } else { 'u' });
            let find = move |s: &[u64]| {
                let sign = if signed { bit(s[0], b - 1) } else { 0 };
                (0..b).rev().find(|i| bit(s[0], *i) != sign)
            };
            check(&format!("bfind.{name}"), 1, |s| find(s).unwrap_or(0xffff_ffff));
            check(&format!("bfind.shiftamt.{name}"), 1, |s| find(s).map_or(0xffff_ffff, |at| b - 1 - at));
            let place =
                &mut |r: &mut Random, i: usize| if i == 0 { r.edgy() } else { r.next() % 72 + (r.next() & 0xff00) };
            check_with(&format!("bfe.{name}"), &plain(4), &[], place, |s| {
                let (pos, len) = if b == 64 { (s[1], s[2]) } else { (s[1] & 255, s[2] & 255) };
                let sign = if !signed || len == 0 { 0 } else { bit(s[0], (pos + len - 1).min(b - 1)) };
                vec![(0..b).map(|i| if i < len && pos + i < b { bit(s[0], pos + i) } else { sign } << i).sum()]
            });
        }
        let place = &mut |r: &mut Random, i: usize| if i < 2 { r.edgy() } else { r.next() % 72 + (r.next() & 0xff00) };
        check_with(&format!("bfi.b{b}"), &plain(5), &[], place, |s| {
            let (pos, len) = if b == 64 { (s[2], s[3]) } else { (s[2] & 255, s[3] & 255) };
            let inside = |i: u64| i >= pos && i < pos + len;
            vec![(0..b).map(|i| if inside(i) { bit(s[0], i - pos) } else { bit(s[1], i) } << i).sum()]
        });
    }
    for (mode, limit) in [("clamp", true), ("wrap", false)] {
        let by = move |c: u64| if limit { c.min(32) } else { c % 32 };
        let small = &mut |r: &mut Random, i: usize| if i < 2 { r.next() } else { r.next() % 70 };
        let both = |s: &[u64]| (s[1] as u128) << 32 | s[0] as u128;
        check_with(&format!("shf.l.{mode}.b32"), &plain(4), &[], small, |s| {
            vec![(both(s) << by(s[2]) >> 32) as u32 as u64]
        });
        check_with(&format!("shf.r.{mode}.b32"), &plain(4), &[], small, |s| vec![(both(s) >> by(s[2])) as u32 as u64]);
        let small = &mut |r: &mut Random, _: usize| r.next() % 40;
        check_with(&format!("bmsk.{mode}.b32"), &plain(3), &[], small, |s| {
            let (from, count) = (by(s[0]), by(s[1]));
            vec![(0..32).map(|i| ((i >= from && i < from + count) as u64) << i).sum()]
        });
        let small = &mut |r: &mut Random, i: usize| if i == 0 { r.next() } else { r.next() % 40 };
        check_with(&format!("szext.{mode}.s32"), &plain(3), &[], small, |s| {
            let n = by(s[1]) as u32;
            vec![if n == 0 { 0 } else { low(number(s[0], n, true), 32) }]
        });
    }
    let small = &mut |r: &mut Random, i: usize| match i {
        0 => r.next() & r.next(),
        1 => r.next() % 32,
        _ => (r.next() % 21).wrapping_sub(10),
    };
    check_with("fns.b32", &plain(4), &[], small, |s| {
        let (mut at, offset) = (s[1] as i64, s[2] as u32 as i32);
        let mut left = offset.abs().max(1);
        while (0..32).contains(&at) {
            left -= bit(s[0], at as u64) as i32;
            if left == 0 {
                return vec![at as u64];
            }
            at += if offset == 0 { 99 } else { offset.signum() as i64 };
        }
        vec![0xffff_ffff]
    });
}

#[test]
fn permutations_by_mode_follow_the_table() {
    // For selectors 0 to 3: the bytes from the most significant down.
    let table = [
        ("f4e", [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]),
        ("b4e", [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]]),
        ("rc8", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecl", [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecr", [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]]),
        ("rc16", [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]]),
    ];
    for (mode, rows) in table {
        check(&format!("prmt.b32.{mode}"), 3, |s| {
            let all = s[0] | s[1] << 32;
            rows[s[2] as usize & 3].iter().fold(0, |d, byte| d << 8 | all >> (8 * byte) & 0xff)
        });
    }
}

#[test]
fn dot_products_of_bytes() {
    for (a, b) in [("s32", "s32"), ("u32", "u32"), ("s32", "u32"), ("u32", "s32")] {
        let byte = |x: u64, i: u32, ty: &str| number(x >> (8 * i), 8, ty == "s32");
        check(&format!("dp4a.{a}.{b}"), 3, |s| {
            low((0..4).map(|i| byte(s[0], i, a) * byte(s[1], i, b)).sum::<i128>() + s[2] as i128, 32)
        });
        for (part, from) in [("lo", 0), ("hi", 2)] {
            check(&format!("dp2a.{part}.{a}.{b}"), 3, |s| {
                let word = |i: u32| number(s[0] >> (16 * i), 16, a == "s32");
                low((0..2).map(|i| word(i) * byte(s[1], i + from, b)).sum::<i128>() + s[2] as i128, 32)
            });
        }
    }
}

/// Runs a sequence of instructions on 32-bit registers 0.. of one warp; the carry is predicate 0.
fn sequence(program: &[(&str, u32, &[u32])], rows: &[[u32; 32]]) -> Registers {
    let mut r = Registers {
        rows: rows.iter().map(|x| Row(*x)).collect(),
        undefined: vec![0; rows.len()],
        predicates: vec![0x1234_5678; 2],
        undefined_predicates: vec![0; 2],
    };
    for (opcode, dst, src) in program {
        let (op, wants) = decode(opcode, &plain(1 + src.len()), &[]).expect(opcode);
        assert!(wants.carry, "{opcode}");
        let mut s = OperandSlots { carry: 0, ..OperandSlots::default() };
        s.dst[0] = *dst;
        s.src[..src.len()].copy_from_slice(src);
        op.run(&mut r, &s, u32::MAX);
    }
    r
}

#[test]
fn absolute_differences_are_summed() {
    for (a, b) in [("u32", "u32"), ("s32", "u32"), ("s32", "s32")] {
        for (name, bits) in [("vabsdiff4", 8), ("vabsdiff2", 16)] {
            check(&format!("{name}.u32.{a}.{b}.add"), 3, |s| {
                let x = |i: usize, at: u32, ty: &str| number(s[i] >> (bits * at), bits, ty == "s32");
                low((0..32 / bits).map(|at| (x(0, at, a) - x(1, at, b)).abs()).sum::<i128>() + s[2] as i128, 32)
            });
        }
    }
    check("max.s16x2.relu", 2, |s| {
        let half = |i: u32| number(s[0] >> i, 16, true).max(number(s[1] >> i, 16, true)).max(0) as u64;
        half(0) | half(16) << 16
    });
    let root = &mut |r: &mut Random, _: usize| r.next() >> 2;
    check_with("rsqrt.approx.f64", &plain(2), &[], root, |s| vec![f64::from_bits(s[0]).sqrt().recip().to_bits()]);
}

#[test]
fn carries_make_wide_arithmetic() {
    let mut random = Random(3);
    for _ in 0..200 {
        let mut rows = [[0u32; 32]; 12];
        for row in &mut rows[..6] {
            *row = std::array::from_fn(|_| random.edgy() as u32);
        }
        let wide = |r: &Registers, at: usize, lane: usize| {
            (0..3).fold(0u128, |x, i| x | (r.rows[at + i].0[lane] as u128) << (32 * i))
        };
        let ones = (1u128 << 96) - 1;
        let sum = sequence(&[("add.cc.u32", 6, &[0, 3]), ("addc.cc.u32", 7, &[1, 4]), ("addc.u32", 8, &[2, 5])], &rows);
        let difference =
            sequence(&[("sub.cc.s32", 6, &[0, 3]), ("subc.cc.s32", 7, &[1, 4]), ("subc.s32", 8, &[2, 5])], &rows);
        // 64-bit product of registers 0 and 3 added to 5:4:3, then the carry on.
        let fused = sequence(
            &[("mad.lo.cc.u32", 6, &[0, 1, 3]), ("madc.hi.cc.u32", 7, &[0, 1, 4]), ("addc.u32", 8, &[9, 5])],
            &rows,
        );
        for lane in 0..32 {
            let (a, b) = (wide(&sum, 0, lane), wide(&sum, 3, lane));
            assert_eq!(wide(&sum, 6, lane), (a + b) & ones);
            assert_eq!(wide(&difference, 6, lane), a.wrapping_sub(b) & ones);
            let product = sum.rows[0].0[lane] as u128 * sum.rows[1].0[lane] as u128;
            assert_eq!(wide(&fused, 6, lane), (product + b) & ones);
        }
    }
}

#[test]
fn vectors_are_packed_and_unpacked_with_the_first_lowest() {
    let vector = |n: usize| Operand::Vector(plain(n));
    for (opcode, n, bits) in
        [("mov.b32", 2, 16), ("mov.b64", 2, 32), ("mov.b16", 2, 8), ("mov.b32", 4, 8), ("mov.b64", 4, 16)]
    {
        let mut any = |r: &mut Random, _: usize| r.next();
        check_with(opcode, &[Operand::Register(0), vector(n)], &[], &mut any, |s| {
            vec![s.iter().rev().fold(0, |d, x| d << bits | x)]
        });
        check_with(opcode, &[vector(n), Operand::Register(0)], &[], &mut any, |s| {
            (0..n).map(|i| s[0] >> (bits * i) & ((1 << bits) - 1)).collect()
        });
    }
    // Two 64-bit registers through one of 128.
    let mut r = Registers { rows: vec![Row([0; 32]); 12], undefined: vec![0; 12], ..Registers::default() };
    for (slot, salt) in [(0, 3u64), (2, 5)] {
        r.set64(slot, &std::array::from_fn(|i| (i as u64 + salt) << 40 | salt), u32::MAX);
    }
    let (pack, _) = decode("mov.b128", &[Operand::Register(0), vector(2)], &[]).expect("packs");
    let (unpack, _) = decode("mov.b128", &[vector(2), Operand::Register(0)], &[]).expect("unpacks");
    pack.run(&mut r, &OperandSlots { dst: [4, 0, 0, 0], src: [0, 2, 0, 0, 0], carry: 0 }, u32::MAX);
    let before = (r.get64(0), r.get64(2));
    unpack.run(&mut r, &OperandSlots { dst: [2, 0, 0, 0], src: [4, 0, 0, 0, 0], carry: 0 }, 0);
    unpack.run(&mut r, &OperandSlots { dst: [8, 10, 0, 0], src: [4, 0, 0, 0, 0], carry: 0 }, u32::MAX);
    assert_eq!((r.get64(8), r.get64(10)), before);
}

#[test]
fn conversions_between_integers_extend_truncate_or_clamp() {
    let widths = [8u32, 16, 32, 64];
    let name = |bits: u32, signed: bool| format!("{}{bits}", if signed { 's' } else { 'u' });
    for (from, from_signed) in widths.iter().flat_map(|b| [(*b, false), (*b, true)]) {
        for (to, to_signed) in widths.iter().flat_map(|b| [(*b, false), (*b, true)]) {
            let value = |s: &[u64]| number(s[0], from, from_signed);
            let opcode = format!("cvt.{}.{}", name(to, to_signed), name(from, from_signed));
            check(&opcode, 1, |s| low(value(s), to));
            let opcode = format!("cvt.sat.{}.{}", name(to, to_signed), name(from, from_signed));
            let (least, most) =
                if to_signed { (-(1i128 << (to - 1)), (1i128 << (to - 1)) - 1) } else { (0, (1i128 << to) - 1) };
            check(&opcode, 1, |s| low(value(s).clamp(least, most), to));
        }
    }
    // In registers wider than the type: the source is cut, the destination extended.
    let registers = [Type::B32, Type::B64].map(|ty| RegisterDecl { name: String::new(), ty });
    let wide = [Operand::Register(1), Operand::Register(0)];
    check_with("cvt.s8.s16", &wide, &registers, &mut |r, _| r.next(), |s| vec![number(s[0], 8, true) as u64]);
    check_with("cvt.u32.s8", &wide, &registers, &mut |r, _| r.next() & 0xff, |s| {
        vec![number(s[0], 8, true) as u32 as u64]
    });
}

#[test]
fn conversions_of_floats_to_integers_round_clamp_and_know_nan() {
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
                        _ => r.edgy(),
                    }
                };
                check_with(&format!("cvt.{mode}.{to}.{from}"), &plain(2), &[], &mut source, |s| {
                    let x = if double { f64::from_bits(s[0]) } else { f32::from_bits(s[0] as u32) as f64 };
                    let (least, most) = if signed {
                        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
                    } else {
                        (0, (1i128 << bits) - 1)
                    };
                    if x.is_nan() {
                        return vec![if !double && bits < 64 { 0 } else { 1 << (bits - 1) }];
                    }
                    vec![low((f(x).clamp(-1e30, 1e30) as i128).clamp(least, most), bits)]
                });
            }
        }
        check(&format!("cvt.{mode}.f32.f32"), 1, |s| {
            let x = f32::from_bits(s[0] as u32);
            if x.is_nan() { 0x7fff_ffff } else { (f(x as f64) as f32).to_bits() as u64 }
        });
    }
}

#[test]
fn conversions_to_f32_and_f64() {
    check("cvt.rn.f32.s64", 1, |s| (s[0] as i64 as f32).to_bits() as u64);
    check("cvt.rn.f32.u64", 1, |s| (s[0] as f32).to_bits() as u64);
    check("cvt.rn.f64.s64", 1, |s| (s[0] as i64 as f64).to_bits());
    check("cvt.rn.f64.u32", 1, |s| (s[0] as f64).to_bits());
    check("cvt.rn.f32.s32", 1, |s| (s[0] as i32 as f32).to_bits() as u64);
    check("cvt.rn.f32.u8", 1, |s| (s[0] as f32).to_bits() as u64);
    check("cvt.rz.f32.u32", 1, |s| {
        let near = s[0] as f32;
        (if near as u64 > s[0] { near.next_down() } else { near }).to_bits() as u64
    });
    check("cvt.f64.f32", 1, |s| {
        let x = f32::from_bits(s[0] as u32);
        if x.is_nan() { 0x7fff_ffff_ffff_ffff } else { (x as f64).to_bits() }
    });
    let nan = |x: f32| if x.is_nan() { 0x7fff_ffff } else { x.to_bits() as u64 };
    check("cvt.rn.f32.f64", 1, |s| nan(f64::from_bits(s[0]) as f32));
    check("cvt.sat.f32.f32", 1, |s| {
        let x = f32::from_bits(s[0] as u32);
        if x > 0.0 { x.min(1.0).to_bits() as u64 } else { 0 }
    });
    check("cvt.rn.relu.bf16x2.f32", 2, |s| {
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
    check("cvt.rn.satfinite.f16.f32", 1, |s| {
        let x = f32::from_bits(s[0] as u32);
        if x.is_nan() { 0x7fff } else { half::f16::from_f32_const(x.clamp(-65504.0, 65504.0)).to_bits() as u64 }
    });
    check("cvt.pack.sat.u8.s32.b32", 3, |s| {
        let one = |x: u64| number(x, 32, true).clamp(0, 255) as u64;
        (s[2] << 16 | one(s[0]) << 8 | one(s[1])) & 0xffff_ffff
    });
    check("cvt.pack.sat.s16.s32", 2, |s| {
        let one = |x: u64| low(number(x, 32, true).clamp(-32768, 32767), 16);
        one(s[0]) << 16 | one(s[1])
    });
}

#[test]
fn extremes_of_floats() {
    let pick = |a: f32, b: f32, max: bool| match (a.is_nan(), b.is_nan()) {
        (true, true) => 0x7fff_ffff,
        (true, false) => b.to_bits(),
        (false, true) => a.to_bits(),
        // total_cmp orders −0 below +0.
        _ => if (a.total_cmp(&b) == std::cmp::Ordering::Greater) == max { a } else { b }.to_bits(),
    };
    let float = |x: u64| f32::from_bits(x as u32);
    check("max.f32", 2, |s| pick(float(s[0]), float(s[1]), true) as u64);
    check("min.f32", 2, |s| pick(float(s[0]), float(s[1]), false) as u64);
    check("max.NaN.f32", 2, |s| {
        let (a, b) = (float(s[0]), float(s[1]));
        if a.is_nan() || b.is_nan() { 0x7fff_ffff } else { pick(a, b, true) as u64 }
    });
    check("min.xorsign.abs.f32", 2, |s| {
        let (a, b) = (float(s[0]), float(s[1]));
        let x = pick(a.abs(), b.abs(), false) as u64;
        if x == 0x7fff_ffff { x } else { x | (s[0] ^ s[1]) & 0x8000_0000 }
    });
    check("max.f32", 3, |s| {
        let first = pick(float(s[0]), float(s[1]), true);
        pick(f32::from_bits(first), float(s[2]), true) as u64
    });
    check("max.bf16x2", 2, |s| {
        let one = |i: u32| {
            let x = pick(float(s[0] >> i << 16), float(s[1] >> i << 16), true);
            if x == 0x7fff_ffff { 0x7fff } else { (x >> 16) as u64 }
        };
        one(0) | one(16) << 16
    });
    check("copysign.f32", 2, |s| s[0] & 0x8000_0000 | s[1] & 0x7fff_ffff);
}

#[test]
fn predicates_of_halves_and_doubles() {
    let pair = [vec![Operand::Pair(Box::new(Operand::Register(0)), Box::new(Operand::Register(1)))], plain(3)].concat();
    check_with("setp.lt.or.f16x2", &pair, &[], &mut |r, _| r.edgy(), |s| {
        let one = |i: u32| {
            let [a, b] = [s[0], s[1]].map(|x| half::f16::from_bits((x >> i) as u16).to_f32());
            (a < b) as u64 | s[2]
        };
        vec![one(0), one(16)]
    });
    check("setp.geu.f64", 2, |s| {
        let order = f64::from_bits(s[0]).partial_cmp(&f64::from_bits(s[1]));
        (order != Some(std::cmp::Ordering::Less)) as u64
    });
    check("setp.gt.s16", 2, |s| (number(s[0], 16, true) > number(s[1], 16, true)) as u64);
    check("setp.ls.u16", 2, |s| (s[0] <= s[1]) as u64);
    check("set.lt.u32.s32", 2, |s| if number(s[0], 32, true) < number(s[1], 32, true) { 0xffff_ffff } else { 0 });
    check("set.ne.f32.b32", 2, |s| if s[0] != s[1] { 0x3f80_0000 } else { 0 });
    check("slct.b64.s32", 3, |s| if number(s[2], 32, true) >= 0 { s[0] } else { s[1] });
    check("slct.f32.f32", 3, |s| if f32::from_bits(s[2] as u32) >= 0.0 { s[0] } else { s[1] });
    check("testp.subnormal.f32", 1, |s| f32::from_bits(s[0] as u32).is_subnormal() as u64);
    check("testp.finite.f64", 1, |s| f64::from_bits(s[0]).is_finite() as u64);
    let lop3 = [
        vec![Operand::Pair(Box::new(Operand::Register(0)), Box::new(Operand::Register(1)))],
        plain(4),
        vec![Operand::Not(0)],
    ];
    check_with("lop3.and.b32", &lop3.concat(), &[], &mut |r, i| if i == 3 { 0xc0 } else { r.next() >> 62 }, |s| {
        let d = s[0] & s[1];
        vec![d, (d != 0) as u64 & (s[4] ^ 1)]
    });
}

#[test]
fn selection_is_undefined_only_by_what_it_chose() {
    for (opcode, chooser) in [("selp.b32", None), ("slct.b32.s32", Some(()))] {
        let (op, _) = decode(opcode, &plain(4), &[]).expect(opcode);
        let mut r = Registers {
            rows: vec![Row([0; 32]); 4],
            undefined: vec![0, 0b0110, 0b1100, 0],
            predicates: vec![0, 0, 0, 0b1010],
            undefined_predicates: vec![0; 4],
        };
        if chooser.is_some() {
            r.rows[3].0 = std::array::from_fn(|lane| if 0b1010 >> lane & 1 != 0 { 7 } else { u32::MAX });
        }
        op.run(&mut r, &OperandSlots { dst: [0; 4], src: [1, 2, 3, 0, 0], carry: 0 }, 0xf);
        assert_eq!(r.undefined[0], 0b0110 & 0b1010 | 0b1100 & !0b1010 & 0xf, "{opcode}");
    }
}

#[test]
fn approximations_are_within_their_documented_errors() {
    let float = |x: u64| f32::from_bits(x as u32);
    let mut random = Random(17);
    // Relative or absolute bounds from the source's text, for arguments in its range.
    type Case = (&'static str, fn(f64) -> f64, fn(f64) -> bool, f64, bool);
    let cases: [Case; 7] = [
        ("ex2.approx.f32", f64::exp2, |x| x.abs() < 125.0, 2.0f64.powi(-22), true),
        ("lg2.approx.f32", f64::log2, |x| x > 0.0 && !(0.5..2.0).contains(&x), 2.0f64.powi(-22), true),
        ("rsqrt.approx.f32", |x| 1.0 / x.sqrt(), |x| x > 0.0, 2.0f64.powi(-22), true),
        ("rcp.approx.f32", |x| 1.0 / x, |x| x.abs() > 1e-37 && x.abs() < 1e37, 2.0f64.powi(-23), true),
        ("sqrt.approx.f32", f64::sqrt, |x| x > 0.0, 2.0f64.powi(-23), true),
        ("sin.approx.f32", f64::sin, |x| x.abs() < 3.0, 2.0f64.powi(-20), false),
        ("tanh.approx.f32", f64::tanh, |_| true, 2.0f64.powi(-11), true),
    ];
    for (opcode, f, within, bound, relative) in cases {
        for _ in 0..300 {
            let ran = run(opcode, &plain(2), &[], &mut |_| {
                let x = (random.next() % 4_000_000) as f32 / 8000.0 - 250.0;
                x.to_bits() as u64
            });
            for lane in 0..32 {
                let (x, y) = (float(ran.sources[0][lane]) as f64, float(ran.results[0][lane]) as f64);
                let exact = f(x);
                let scale = if relative { exact.abs() } else { 1.0 };
                assert!(!within(x) || (y - exact).abs() <= bound * scale, "{opcode} of {x}: {y}, exactly {exact}");
            }
        }
    }
    let of = |opcode: &str, x: f32| run(opcode, &plain(2), &[], &mut |_| x.to_bits() as u64).results[0][0];
    let inf = f32::INFINITY;
    for (opcode, x, y) in [
        ("ex2.approx.f32", inf, inf),
        ("ex2.approx.f32", -inf, 0.0),
        ("ex2.approx.f32", 128.0, inf),
        ("ex2.approx.f32", -149.0, f32::from_bits(1)),
        ("ex2.approx.ftz.f32", -149.0, 0.0),
        ("ex2.approx.ftz.f32", f32::from_bits(1), 1.0),
        ("ex2.approx.f32", 3.0, 8.0),
        ("lg2.approx.f32", 0.0, -inf),
        ("lg2.approx.ftz.f32", f32::from_bits(5), -inf),
        ("lg2.approx.f32", inf, inf),
        ("rcp.approx.f32", -0.0, -inf),
        ("rcp.approx.ftz.f32", f32::from_bits(1), inf),
        ("rcp.approx.f32", -inf, -0.0),
        ("rsqrt.approx.f32", -0.0, -inf),
        ("rsqrt.approx.f32", inf, 0.0),
        ("tanh.approx.f32", -inf, -1.0),
    ] {
        assert_eq!(of(opcode, x), y.to_bits() as u64, "{opcode} of {x}");
    }
    for (opcode, x) in
        [("sin.approx.f32", inf), ("lg2.approx.f32", -1.0), ("sqrt.approx.f32", -1.0), ("ex2.approx.f32", f32::NAN)]
    {
        assert_eq!(of(opcode, x), 0x7fff_ffff, "{opcode} of {x}");
    }
    // Above 2^126 the quotient is zero.
    let big = |i: usize| if i == 0 { 2f32.powi(100) } else { 2f32.powi(127) }.to_bits() as u64;
    assert_eq!(run("div.approx.f32", &plain(3), &[], &mut |i| big(i)).results[0][0], 0);
}

#[test]
fn no_text_makes_it_panic() {
    let words = "mov add sub mul mad fma div rem min max abs neg not and or xor shl shr shf lop3 prmt setp set selp slct testp cvt \
                 pack popc clz bfe bfi bfind brev fns bmsk szext dp4a dp2a addc subc madc mul24 mad24 sad copysign rcp sqrt rsqrt ex2 lg2 \
                 sin cos tanh lo hi wide rn rz rm rp rna rni rzi ftz sat relu satfinite approx full NaN xorsign abs cc l r wrap \
                 clamp eq ne lt le equ nan shiftamt f4e rc8 pred b8 b16 b32 b64 b128 u8 u16 u32 u64 s8 s16 s32 s64 f16 f16x2 bf16 \
                 bf16x2 f32 f64 e4m3x2 e5m2x2 tf32 s16x2 u16x2 x";
    let words: Vec<&str> = words.split_whitespace().collect();
    let mut random = Random(5);
    let names = words.iter().position(|w| *w == "lo").expect("the first modifier");
    let mut lengths = Random(6);
    let random_length = |r: &mut Random| r.next() % 4;
    let mut known = 0;
    for _ in 0..400_000 {
        // A name, modifiers, types; now and then anything anywhere.
        let mut word = |from: usize, to: usize| {
            let (from, to) = if random.next().is_multiple_of(16) { (0, words.len()) } else { (from, to) };
            words[from + random.next() as usize % (to - from)]
        };
        let mut opcode = vec![word(0, names)];
        opcode.extend((0..random_length(&mut lengths)).map(|_| word(names, words.len() - 25)));
        opcode.push(word(words.len() - 25, words.len()));
        let mut operands = plain(random.next() as usize % 6);
        for o in &mut operands {
            match random.next() % 12 {
                0 => *o = Operand::Vector(plain(random.next() as usize % 5)),
                1 => *o = Operand::Not(0),
                2 => *o = Operand::Pair(Box::new(Operand::Sink), Box::new(Operand::Register(9))),
                _ => {}
            }
        }
        let Some((op, wants)) = decode(&opcode.join("."), &operands, &[]) else { continue };
        known += 1;
        assert!(wants.dst.len() <= 4 && wants.src.len() <= 5);
        let mut r = Registers {
            rows: (0..16).map(|_| Row(std::array::from_fn(|_| random.edgy() as u32))).collect(),
            undefined: vec![0; 16],
            predicates: vec![random.next() as u32; 16],
            undefined_predicates: vec![0; 16],
        };
        op.run(&mut r, &OperandSlots { dst: [0, 4, 8, 12], src: [12, 8, 4, 0, 4], carry: 3 }, random.next() as u32);
    }
    assert!(known > 1000, "only {known} were instructions");
}
