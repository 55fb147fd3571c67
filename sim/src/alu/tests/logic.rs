//! Compares shifts, bit fields, `lop3`, `prmt` and bit counts with their definitions, bit by bit.

use super::{Random, as_integer, check_instruction, check_instruction_with, low_bits, low_s32, register_operands};

#[test]
fn shifts_clamp_at_the_width() {
    let shl = |bits: u32| {
        move |s: &[u64]| (s[0] as u128).checked_shl(s[1] as u32).filter(|_| s[1] < bits as u64).unwrap_or(0) as u64
    };
    check_instruction("shl.b32", 2, move |s| shl(32)(s) as u32 as u64);
    check_instruction("shl.b64", 2, shl(64));
    check_instruction("shr.u32", 2, |s| (s[0] as u128 >> s[1].min(100)) as u64);
    check_instruction("shr.u64", 2, |s| (s[0] as u128 >> s[1].min(100)) as u64);
    check_instruction("shr.s32", 2, |s| (low_s32(s[0]) as i128 >> s[1].min(100)) as u32 as u64);
    check_instruction("shr.s64", 2, |s| (s[0] as i64 as i128 >> s[1].min(100)) as u64);
}

#[test]
fn bit_fields_are_extended_by_their_top_bit() {
    for signed in [false, true] {
        check_instruction_with(
            if signed { "bfe.s32" } else { "bfe.u32" },
            &register_operands(4),
            &[],
            &mut |r, i| if i == 0 { r.random_or_edge_case() } else { r.next() % 40 + (r.next() & 0xff00) },
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
        check_instruction_with(
            "lop3.b32",
            &register_operands(5),
            &[],
            &mut |r, i| if i == 3 { table } else { r.random_or_edge_case() },
            |s| {
                let index = |i: u64| (s[0] >> i & 1) << 2 | (s[1] >> i & 1) << 1 | s[2] >> i & 1;
                vec![(0..32).map(|i| (table >> index(i) & 1) << i).sum()]
            },
        );
    }
    let bytes = |s: &[u64]| {
        let all = s[0] | s[1] << 32;
        let byte = |n: u64| {
            let b = all >> (8 * (n & 7)) & 0xff;
            if n & 8 == 0 { b } else { (b >> 7) * 0xff }
        };
        vec![(0..4).map(|i| byte(s[2] >> (4 * i) & 15) << (8 * i)).sum()]
    };
    check_instruction("prmt.b32", 3, |s| bytes(s)[0]);
    for selector in [0x5410, 0x7632, 0x3120, 0x0123, 0x9876, 0xfedc, 0x8888, 0x4440] {
        check_instruction_with(
            "prmt.b32",
            &register_operands(4),
            &[],
            &mut |r, i| if i == 2 { selector } else { r.random_or_edge_case() },
            bytes,
        );
    }
}

#[test]
fn bit_instructions_match_bit_by_bit_definitions() {
    let bit = |x: u64, i: u64| x >> i & 1;
    for b in [32u64, 64] {
        check_instruction(&format!("popc.b{b}"), 1, |s| (0..b).map(|i| bit(s[0], i)).sum());
        check_instruction(&format!("clz.b{b}"), 1, |s| (0..b).rev().take_while(|i| bit(s[0], *i) == 0).count() as u64);
        check_instruction(&format!("brev.b{b}"), 1, |s| (0..b).map(|i| bit(s[0], i) << (b - 1 - i)).sum());
        for signed in [false, true] {
            let name = format!("{}{b}", if signed { 's' } else { 'u' });
            let find = move |s: &[u64]| {
                let sign = if signed { bit(s[0], b - 1) } else { 0 };
                (0..b).rev().find(|i| bit(s[0], *i) != sign)
            };
            check_instruction(&format!("bfind.{name}"), 1, |s| find(s).unwrap_or(0xffff_ffff));
            check_instruction(&format!("bfind.shiftamt.{name}"), 1, |s| find(s).map_or(0xffff_ffff, |at| b - 1 - at));
            let place = &mut |r: &mut Random, i: usize| {
                if i == 0 { r.random_or_edge_case() } else { r.next() % 72 + (r.next() & 0xff00) }
            };
            check_instruction_with(&format!("bfe.{name}"), &register_operands(4), &[], place, |s| {
                let (pos, len) = if b == 64 { (s[1], s[2]) } else { (s[1] & 255, s[2] & 255) };
                let sign = if !signed || len == 0 { 0 } else { bit(s[0], (pos + len - 1).min(b - 1)) };
                vec![(0..b).map(|i| if i < len && pos + i < b { bit(s[0], pos + i) } else { sign } << i).sum()]
            });
        }
        let place = &mut |r: &mut Random, i: usize| {
            if i < 2 { r.random_or_edge_case() } else { r.next() % 72 + (r.next() & 0xff00) }
        };
        check_instruction_with(&format!("bfi.b{b}"), &register_operands(5), &[], place, |s| {
            let (pos, len) = if b == 64 { (s[2], s[3]) } else { (s[2] & 255, s[3] & 255) };
            let inside = |i: u64| i >= pos && i < pos + len;
            vec![(0..b).map(|i| if inside(i) { bit(s[0], i - pos) } else { bit(s[1], i) } << i).sum()]
        });
    }
    for (mode, limit) in [("clamp", true), ("wrap", false)] {
        let by = move |c: u64| if limit { c.min(32) } else { c % 32 };
        let small = &mut |r: &mut Random, i: usize| if i < 2 { r.next() } else { r.next() % 70 };
        let both = |s: &[u64]| (s[1] as u128) << 32 | s[0] as u128;
        check_instruction_with(&format!("shf.l.{mode}.b32"), &register_operands(4), &[], small, |s| {
            vec![(both(s) << by(s[2]) >> 32) as u32 as u64]
        });
        check_instruction_with(&format!("shf.r.{mode}.b32"), &register_operands(4), &[], small, |s| {
            vec![(both(s) >> by(s[2])) as u32 as u64]
        });
        let small = &mut |r: &mut Random, _: usize| r.next() % 40;
        check_instruction_with(&format!("bmsk.{mode}.b32"), &register_operands(3), &[], small, |s| {
            let (from, count) = (by(s[0]), by(s[1]));
            vec![(0..32).map(|i| ((i >= from && i < from + count) as u64) << i).sum()]
        });
        let small = &mut |r: &mut Random, i: usize| if i == 0 { r.next() } else { r.next() % 40 };
        check_instruction_with(&format!("szext.{mode}.s32"), &register_operands(3), &[], small, |s| {
            let n = by(s[1]) as u32;
            vec![if n == 0 { 0 } else { low_bits(as_integer(s[0], n, true), 32) }]
        });
    }
    let small = &mut |r: &mut Random, i: usize| match i {
        0 => r.next() & r.next(),
        1 => r.next() % 32,
        _ => (r.next() % 21).wrapping_sub(10),
    };
    check_instruction_with("fns.b32", &register_operands(4), &[], small, |s| {
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
    // For each mode of `prmt` and each selector from 0 to 3: the indices of the source bytes that form the result,
    // most significant byte first.
    let table = [
        ("f4e", [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]),
        ("b4e", [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]]),
        ("rc8", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecl", [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecr", [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]]),
        ("rc16", [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]]),
    ];
    for (mode, rows) in table {
        check_instruction(&format!("prmt.b32.{mode}"), 3, |s| {
            let all = s[0] | s[1] << 32;
            rows[s[2] as usize & 3].iter().fold(0, |d, byte| d << 8 | all >> (8 * byte) & 0xff)
        });
    }
}
