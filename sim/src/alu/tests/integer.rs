//! Tests integer arithmetic against 128-bit arithmetic.

use super::{Random, as_integer, check_instruction, check_instruction_with, low_bits, low_s32, register_operands};

#[test]
fn integer_arithmetic_is_modulo_two_to_the_width() {
    let low32 = |x: i128| x as u32 as u64;
    check_instruction("add.s32", 2, |s| low32(s[0] as i128 + s[1] as i128));
    check_instruction("sub.u32", 2, |s| low32(s[0] as i128 - s[1] as i128));
    check_instruction("mul.lo.s32", 2, |s| low32(s[0] as i128 * s[1] as i128));
    check_instruction("mad.lo.u32", 3, |s| low32(s[0] as i128 * s[1] as i128 + s[2] as i128));
    check_instruction("add.u64", 2, |s| (s[0] as i128 + s[1] as i128) as u64);
    check_instruction("sub.s64", 2, |s| (s[0] as i128 - s[1] as i128) as u64);
    check_instruction("mul.lo.u64", 2, |s| (s[0] as u128 * s[1] as u128) as u64);
    check_instruction("mad.lo.s64", 3, |s| (s[0] as u128 * s[1] as u128).wrapping_add(s[2] as u128) as u64);
    check_instruction("mul.wide.s32", 2, |s| (low_s32(s[0]) as i128 * low_s32(s[1]) as i128) as u64);
    check_instruction("mul.wide.u32", 2, |s| (s[0] as u128 * s[1] as u128) as u64);
    check_instruction("mad.wide.s32", 3, |s| (low_s32(s[0]) as i128 * low_s32(s[1]) as i128 + s[2] as i128) as u64);
    check_instruction("mad.wide.u32", 3, |s| (s[0] as u128 * s[1] as u128 + s[2] as u128) as u64);
    check_instruction("mul.hi.u32", 2, |s| (s[0] * s[1]) >> 32);
    check_instruction("neg.s32", 1, |s| low32(-(s[0] as i128)));
    check_instruction("min.s32", 2, |s| low32(low_s32(s[0]).min(low_s32(s[1])) as i128));
    check_instruction("max.u32", 2, |s| s[0].max(s[1]));
}

#[test]
fn integer_arithmetic_matches_128_bit_arithmetic_at_every_width() {
    for (name, bits, signed) in [
        ("u16", 16, false),
        ("s16", 16, true),
        ("u32", 32, false),
        ("s32", 32, true),
        ("u64", 64, false),
        ("s64", 64, true),
    ] {
        let n = move |x: u64| as_integer(x, bits, signed);
        let two = |op: &str, f: &dyn Fn(i128, i128) -> i128| {
            check_instruction(&format!("{op}.{name}"), 2, |s| low_bits(f(n(s[0]), n(s[1])), bits));
        };
        two("add", &|a, b| a + b);
        two("sub", &|a, b| a - b);
        two("mul.lo", &|a, b| a.wrapping_mul(b));
        two("min", &|a, b| if a < b { a } else { b });
        two("max", &|a, b| if a > b { a } else { b });
        // Division rounds towards zero; division by zero gives all ones.
        two("div", &|a, b| if b == 0 { -1 } else { a / b });
        two("rem", &|a, b| if b == 0 { -1 } else { a - a / b * b });
        if bits < 64 {
            two("mul.hi", &|a, b| (a * b) >> bits);
            let wide = 2 * bits;
            check_instruction(&format!("mul.wide.{name}"), 2, |s| low_bits(n(s[0]) * n(s[1]), wide));
            check_instruction(&format!("mad.wide.{name}"), 3, |s| low_bits(n(s[0]) * n(s[1]) + s[2] as i128, wide));
        }
        check_instruction(&format!("mad.lo.{name}"), 3, |s| {
            low_bits(n(s[0]).wrapping_mul(n(s[1])).wrapping_add(n(s[2])), bits)
        });
        check_instruction(&format!("mad.hi.{name}"), 3, |s| {
            // Schoolbook multiplication with 32-bit digits, which also works for 64-bit sources.
            let (a, b) = (n(s[0]), n(s[1]));
            let (a1, a0, b1, b0) = (a >> 32, a & 0xffff_ffff, b >> 32, b & 0xffff_ffff);
            let high64 = a1 * b1 + ((a1 * b0 + ((a0 * b0) >> 32) + a0 * b1) >> 32);
            let high = if bits == 64 { high64 } else { (a * b) >> bits };
            low_bits(high + n(s[2]), bits)
        });
        check_instruction(&format!("sad.{name}"), 3, |s| low_bits(n(s[2]) + (n(s[0]) - n(s[1])).abs(), bits));
        if signed {
            check_instruction(&format!("abs.{name}"), 1, |s| low_bits(n(s[0]).abs(), bits));
            check_instruction(&format!("neg.{name}"), 1, |s| low_bits(-n(s[0]), bits));
        }
        let shift = &mut |r: &mut Random, i: usize| if i == 0 { r.random_or_edge_case() } else { r.next() % 80 };
        check_instruction_with(&format!("shr.{name}"), &register_operands(3), &[], shift, |s| {
            vec![low_bits(n(s[0]) >> s[1], bits)]
        });
    }
    check_instruction("add.sat.s32", 2, |s| {
        low_bits((as_integer(s[0], 32, true) + as_integer(s[1], 32, true)).clamp(-(1 << 31), (1 << 31) - 1), 32)
    });
    check_instruction("max.relu.s32", 2, |s| as_integer(s[0], 32, true).max(as_integer(s[1], 32, true)).max(0) as u64);
    check_instruction("min.s16x2", 2, |s| {
        let half = |i: u32| low_bits(as_integer(s[0] >> i, 16, true).min(as_integer(s[1] >> i, 16, true)), 16);
        half(0) | half(16) << 16
    });
    check_instruction("add.u16x2", 2, |s| {
        low_bits(s[0] as i128 + s[1] as i128, 16) | low_bits((s[0] >> 16) as i128 + (s[1] >> 16) as i128, 16) << 16
    });
    check_instruction("mul24.lo.s32", 2, |s| low_bits(as_integer(s[0], 24, true) * as_integer(s[1], 24, true), 32));
    check_instruction("mad24.hi.u32", 3, |s| {
        low_bits(((as_integer(s[0], 24, false) * as_integer(s[1], 24, false)) >> 16) + s[2] as i128, 32)
    });
    for b in [16, 32, 64] {
        check_instruction(&format!("not.b{b}"), 1, |s| low_bits(!(s[0] as i128), b));
        check_instruction(&format!("cnot.b{b}"), 1, |s| (s[0] == 0) as u64);
        check_instruction(&format!("xor.b{b}"), 2, |s| s[0] ^ s[1]);
    }
}

#[test]
fn dp4a_and_dp2a_match_their_definition() {
    for (a, b) in [("s32", "s32"), ("u32", "u32"), ("s32", "u32"), ("u32", "s32")] {
        let byte = |x: u64, i: u32, ty: &str| as_integer(x >> (8 * i), 8, ty == "s32");
        check_instruction(&format!("dp4a.{a}.{b}"), 3, |s| {
            low_bits((0..4).map(|i| byte(s[0], i, a) * byte(s[1], i, b)).sum::<i128>() + s[2] as i128, 32)
        });
        for (part, from) in [("lo", 0), ("hi", 2)] {
            check_instruction(&format!("dp2a.{part}.{a}.{b}"), 3, |s| {
                let word = |i: u32| as_integer(s[0] >> (16 * i), 16, a == "s32");
                low_bits((0..2).map(|i| word(i) * byte(s[1], i + from, b)).sum::<i128>() + s[2] as i128, 32)
            });
        }
    }
}

#[test]
fn absolute_differences_are_summed() {
    for (a, b) in [("u32", "u32"), ("s32", "u32"), ("s32", "s32")] {
        for (name, bits) in [("vabsdiff4", 8), ("vabsdiff2", 16)] {
            check_instruction(&format!("{name}.u32.{a}.{b}.add"), 3, |s| {
                let x = |i: usize, at: u32, ty: &str| as_integer(s[i] >> (bits * at), bits, ty == "s32");
                low_bits((0..32 / bits).map(|at| (x(0, at, a) - x(1, at, b)).abs()).sum::<i128>() + s[2] as i128, 32)
            });
        }
    }
    check_instruction("max.s16x2.relu", 2, |s| {
        let half = |i: u32| as_integer(s[0] >> i, 16, true).max(as_integer(s[1] >> i, 16, true)).max(0) as u64;
        half(0) | half(16) << 16
    });
    let root = &mut |r: &mut Random, _: usize| r.next() >> 2;
    check_instruction_with("rsqrt.approx.f64", &register_operands(2), &[], root, |s| {
        vec![f64::from_bits(s[0]).sqrt().recip().to_bits()]
    });
}
