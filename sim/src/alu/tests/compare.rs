//! Tests of comparisons, selections, `min` and `max`.

use super::{as_integer, check_instruction, check_instruction_with, low_s32, register_operands};
use crate::alu::{OperandSlots, decode};
use crate::ptx::ast::Operand;
use crate::regs::{RegisterRow, Registers};

#[test]
fn setp_combines_with_a_predicate_and_writes_both_destinations() {
    let pair = |n: usize| {
        let mut o = vec![Operand::Pair(Box::new(Operand::Register(0)), Box::new(Operand::Register(1)))];
        o.extend(register_operands(n));
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
        check_instruction(&format!("setp.{op}.s32"), 2, |s| {
            holds(op, low_s32(s[0]) as i128, low_s32(s[1]) as i128) as u64
        });
        check_instruction(&format!("setp.{op}.s64"), 2, |s| holds(op, s[0] as i64 as i128, s[1] as i64 as i128) as u64);
        for (combine, f) in
            [("and", (|a, b| a & b) as fn(u64, u64) -> u64), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)]
        {
            let mut operands = pair(2);
            operands.push(Operand::Not(3));
            let near = &mut |r: &mut super::Random, _: usize| r.next() >> 62;
            check_instruction_with(&format!("setp.{op}.{combine}.u32"), &operands, &[], near, |s| {
                let t = holds(op, s[0] as i128, s[1] as i128) as u64;
                vec![f(t, s[2] ^ 1), f(t ^ 1, s[2] ^ 1)]
            });
        }
    }
    for op in ["lo", "ls", "hi", "hs", "eq"] {
        check_instruction(&format!("setp.{op}.u32"), 2, |s| holds(op, s[0] as i128, s[1] as i128) as u64);
        check_instruction(&format!("setp.{op}.u64"), 2, |s| holds(op, s[0] as i128, s[1] as i128) as u64);
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
            check_instruction(&format!("setp.{op}{ftz}.f32"), 2, |s| {
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
fn float_min_max_handle_nan_and_signed_zero() {
    let pick = |a: f32, b: f32, max: bool| match (a.is_nan(), b.is_nan()) {
        (true, true) => 0x7fff_ffff,
        (true, false) => b.to_bits(),
        (false, true) => a.to_bits(),
        // total_cmp orders −0 below +0.
        _ => if (a.total_cmp(&b) == std::cmp::Ordering::Greater) == max { a } else { b }.to_bits(),
    };
    let float = |x: u64| f32::from_bits(x as u32);
    check_instruction("max.f32", 2, |s| pick(float(s[0]), float(s[1]), true) as u64);
    check_instruction("min.f32", 2, |s| pick(float(s[0]), float(s[1]), false) as u64);
    check_instruction("max.NaN.f32", 2, |s| {
        let (a, b) = (float(s[0]), float(s[1]));
        if a.is_nan() || b.is_nan() { 0x7fff_ffff } else { pick(a, b, true) as u64 }
    });
    check_instruction("min.xorsign.abs.f32", 2, |s| {
        let (a, b) = (float(s[0]), float(s[1]));
        let x = pick(a.abs(), b.abs(), false) as u64;
        if x == 0x7fff_ffff { x } else { x | (s[0] ^ s[1]) & 0x8000_0000 }
    });
    check_instruction("max.f32", 3, |s| {
        let first = pick(float(s[0]), float(s[1]), true);
        pick(f32::from_bits(first), float(s[2]), true) as u64
    });
    check_instruction("max.bf16x2", 2, |s| {
        let one = |i: u32| {
            let x = pick(float(s[0] >> i << 16), float(s[1] >> i << 16), true);
            if x == 0x7fff_ffff { 0x7fff } else { (x >> 16) as u64 }
        };
        one(0) | one(16) << 16
    });
    check_instruction("copysign.f32", 2, |s| s[0] & 0x8000_0000 | s[1] & 0x7fff_ffff);
}

#[test]
fn comparisons_of_halves_doubles_and_16_bit_integers_match_rust() {
    let pair =
        [vec![Operand::Pair(Box::new(Operand::Register(0)), Box::new(Operand::Register(1)))], register_operands(3)]
            .concat();
    check_instruction_with("setp.lt.or.f16x2", &pair, &[], &mut |r, _| r.random_or_edge_case(), |s| {
        let one = |i: u32| {
            let [a, b] = [s[0], s[1]].map(|x| half::f16::from_bits((x >> i) as u16).to_f32());
            (a < b) as u64 | s[2]
        };
        vec![one(0), one(16)]
    });
    check_instruction("setp.geu.f64", 2, |s| {
        let order = f64::from_bits(s[0]).partial_cmp(&f64::from_bits(s[1]));
        (order != Some(std::cmp::Ordering::Less)) as u64
    });
    check_instruction("setp.gt.s16", 2, |s| (as_integer(s[0], 16, true) > as_integer(s[1], 16, true)) as u64);
    check_instruction("setp.ls.u16", 2, |s| (s[0] <= s[1]) as u64);
    check_instruction("set.lt.u32.s32", 2, |s| {
        if as_integer(s[0], 32, true) < as_integer(s[1], 32, true) { 0xffff_ffff } else { 0 }
    });
    check_instruction("set.ne.f32.b32", 2, |s| if s[0] != s[1] { 0x3f80_0000 } else { 0 });
    check_instruction("slct.b64.s32", 3, |s| if as_integer(s[2], 32, true) >= 0 { s[0] } else { s[1] });
    check_instruction("slct.f32.f32", 3, |s| if f32::from_bits(s[2] as u32) >= 0.0 { s[0] } else { s[1] });
    check_instruction("testp.subnormal.f32", 1, |s| f32::from_bits(s[0] as u32).is_subnormal() as u64);
    check_instruction("testp.finite.f64", 1, |s| f64::from_bits(s[0]).is_finite() as u64);
    let lop3 = [
        vec![Operand::Pair(Box::new(Operand::Register(0)), Box::new(Operand::Register(1)))],
        register_operands(4),
        vec![Operand::Not(0)],
    ];
    check_instruction_with(
        "lop3.and.b32",
        &lop3.concat(),
        &[],
        &mut |r, i| if i == 3 { 0xc0 } else { r.next() >> 62 },
        |s| {
            let d = s[0] & s[1];
            vec![d, (d != 0) as u64 & (s[4] ^ 1)]
        },
    );
}

#[test]
fn selection_is_undefined_only_where_the_selected_source_is() {
    for (opcode, chooser) in [("selp.b32", None), ("slct.b32.s32", Some(()))] {
        let (op, _) = decode(opcode, &register_operands(4), &[]).expect(opcode);
        let mut r = Registers {
            rows: vec![RegisterRow([0; 32]); 4],
            undefined: vec![0, 0b0110, 0b1100, 0],
            predicates: vec![0, 0, 0, 0b1010],
            undefined_predicates: vec![0; 4],
            ..Registers::default()
        };
        if chooser.is_some() {
            r.rows[3].0 = std::array::from_fn(|lane| if 0b1010 >> lane & 1 != 0 { 7 } else { u32::MAX });
        }
        op.run(&mut r, &OperandSlots { dst: [0; 4], src: [1, 2, 3, 0, 0], carry: 0 }, 0xf);
        assert_eq!(r.undefined[0], 0b0110 & 0b1010 | 0b1100 & !0b1010 & 0xf, "{opcode}");
    }
}
