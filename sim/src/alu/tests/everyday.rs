//! The everyday instructions.

use super::{check, check_with, plain};
use crate::ptx::ast::Operand;

fn signed(x: u64) -> i64 {
    x as u32 as i32 as i64
}

#[test]
fn integer_arithmetic_is_modulo_two_to_the_width() {
    let low = |x: i128| x as u32 as u64;
    check("add.s32", 2, |s| low(s[0] as i128 + s[1] as i128));
    check("sub.u32", 2, |s| low(s[0] as i128 - s[1] as i128));
    check("mul.lo.s32", 2, |s| low(s[0] as i128 * s[1] as i128));
    check("mad.lo.u32", 3, |s| low(s[0] as i128 * s[1] as i128 + s[2] as i128));
    check("add.u64", 2, |s| (s[0] as i128 + s[1] as i128) as u64);
    check("sub.s64", 2, |s| (s[0] as i128 - s[1] as i128) as u64);
    check("mul.lo.u64", 2, |s| (s[0] as u128 * s[1] as u128) as u64);
    check("mad.lo.s64", 3, |s| (s[0] as u128 * s[1] as u128).wrapping_add(s[2] as u128) as u64);
    check("mul.wide.s32", 2, |s| (signed(s[0]) as i128 * signed(s[1]) as i128) as u64);
    check("mul.wide.u32", 2, |s| (s[0] as u128 * s[1] as u128) as u64);
    check("mad.wide.s32", 3, |s| (signed(s[0]) as i128 * signed(s[1]) as i128 + s[2] as i128) as u64);
    check("mad.wide.u32", 3, |s| (s[0] as u128 * s[1] as u128 + s[2] as u128) as u64);
    check("mul.hi.u32", 2, |s| (s[0] * s[1]) >> 32);
    check("neg.s32", 1, |s| low(-(s[0] as i128)));
    check("min.s32", 2, |s| low(signed(s[0]).min(signed(s[1])) as i128));
    check("max.u32", 2, |s| s[0].max(s[1]));
}

#[test]
fn shifts_clamp_at_the_width() {
    let shl = |bits: u32| {
        move |s: &[u64]| (s[0] as u128).checked_shl(s[1] as u32).filter(|_| s[1] < bits as u64).unwrap_or(0) as u64
    };
    check("shl.b32", 2, move |s| shl(32)(s) as u32 as u64);
    check("shl.b64", 2, shl(64));
    check("shr.u32", 2, |s| (s[0] as u128 >> s[1].min(100)) as u64);
    check("shr.u64", 2, |s| (s[0] as u128 >> s[1].min(100)) as u64);
    check("shr.s32", 2, |s| (signed(s[0]) as i128 >> s[1].min(100)) as u32 as u64);
    check("shr.s64", 2, |s| (s[0] as i64 as i128 >> s[1].min(100)) as u64);
}

#[test]
fn bit_fields_are_extended_by_their_top_bit() {
    for signed in [false, true] {
        check_with(
            if signed { "bfe.s32" } else { "bfe.u32" },
            &plain(4),
            &[],
            &mut |r, i| if i == 0 { r.edgy() } else { r.next() % 40 + (r.next() & 0xff00) },
            |s| {
                let (pos, len) = (s[1] & 0xff, s[2] & 0xff);
                let bit = |i: u64| s[0] >> i & 1;
                let sign = if !signed || len == 0 { 0 } else { bit((pos + len - 1).min(31)) };
                vec![(0..32).map(|i| if i < len && pos + i <= 31 { bit(pos + i) } else { sign } << i).sum()]
            },
        );
    }
}

#[test]
fn lop3_and_prmt_follow_their_definitions() {
    for table in 0..256u64 {
        check_with("lop3.b32", &plain(5), &[], &mut |r, i| if i == 3 { table } else { r.edgy() }, |s| {
            let index = |i: u64| (s[0] >> i & 1) << 2 | (s[1] >> i & 1) << 1 | s[2] >> i & 1;
            vec![(0..32).map(|i| (table >> index(i) & 1) << i).sum()]
        });
    }
    let bytes = |s: &[u64]| {
        let all = s[0] | s[1] << 32;
        let byte = |n: u64| {
            let b = all >> (8 * (n & 7)) & 0xff;
            if n & 8 == 0 { b } else { (b >> 7) * 0xff }
        };
        vec![(0..4).map(|i| byte(s[2] >> (4 * i) & 15) << (8 * i)).sum()]
    };
    check("prmt.b32", 3, |s| bytes(s)[0]);
    for selector in [0x5410, 0x7632, 0x3120, 0x0123, 0x9876, 0xfedc, 0x8888, 0x4440] {
        check_with("prmt.b32", &plain(4), &[], &mut |r, i| if i == 2 { selector } else { r.edgy() }, bytes);
    }
}

#[test]
fn comparisons_combine_and_pair() {
    let pair = |n: usize| {
        let mut o = vec![Operand::Pair(Box::new(Operand::Register(0)), Box::new(Operand::Register(1)))];
        o.extend(plain(n));
        o
    };
    let holds = |op: &str, a: i128, b: i128| match op {
        "eq" => a == b,
        "ne" => a != b,
        "lt" | "lo" => a < b,
        "le" | "ls" => a <= b,
        "gt" | "hi" => a > b,
        _ => a >= b,
    };
    for op in ["eq", "ne", "lt", "le", "gt", "ge"] {
        check(&format!("setp.{op}.s32"), 2, |s| holds(op, signed(s[0]) as i128, signed(s[1]) as i128) as u64);
        check(&format!("setp.{op}.s64"), 2, |s| holds(op, s[0] as i64 as i128, s[1] as i64 as i128) as u64);
        for (combine, f) in
            [("and", (|a, b| a & b) as fn(u64, u64) -> u64), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)]
        {
            let mut operands = pair(2);
            operands.push(Operand::Not(3));
            let near = &mut |r: &mut super::Random, _: usize| r.next() >> 62;
            check_with(&format!("setp.{op}.{combine}.u32"), &operands, &[], near, |s| {
                let t = holds(op, s[0] as i128, s[1] as i128) as u64;
                vec![f(t, s[2] ^ 1), f(t ^ 1, s[2] ^ 1)]
            });
        }
    }
    for op in ["lo", "ls", "hi", "hs", "eq"] {
        check(&format!("setp.{op}.u32"), 2, |s| holds(op, s[0] as i128, s[1] as i128) as u64);
        check(&format!("setp.{op}.u64"), 2, |s| holds(op, s[0] as i128, s[1] as i128) as u64);
    }
}

#[test]
fn float_comparisons_with_nan_are_false_unless_unordered() {
    use std::cmp::Ordering::{Equal, Greater, Less};
    for ftz in ["", ".ftz"] {
        let x = |bits: u64| {
            let x = f32::from_bits(bits as u32);
            if x.is_subnormal() && !ftz.is_empty() { 0.0 } else { x }
        };
        for op in ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"] {
            check(&format!("setp.{op}{ftz}.f32"), 2, |s| {
                let order = x(s[0]).partial_cmp(&x(s[1]));
                let holds = match op.trim_end_matches('u') {
                    "eq" => order == Some(Equal),
                    "ne" => matches!(order, Some(Less | Greater)),
                    "lt" => order == Some(Less),
                    "le" => matches!(order, Some(Less | Equal)),
                    "gt" => order == Some(Greater),
                    "ge" => matches!(order, Some(Greater | Equal)),
                    "n" | "num" => order.is_some(),
                    _ => order.is_none(),
                };
                (holds || op.ends_with('u') && order.is_none()) as u64
            });
        }
    }
}

#[test]
fn the_nearest_bf16() {
    // Of the two neighbours the nearer one, of two equally near the even one.
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
    check("cvt.rn.bf16.f32", 1, |s| nearest(s[0]));
    check("cvt.rn.bf16x2.f32", 2, |s| nearest(s[0]) << 16 | nearest(s[1]));
}
