//! Logic, shifts, bit fields and byte permutation: `and`, `lop3`, `shl`, `shf`, `bfe`, `bfi`, `popc`, `prmt` and
//! related instructions.
//!
//! Functions that take flags and four `u64` are [`ScalarFunction`](super::scalar::ScalarFunction)s.
//! Source: PTX ISA 9.0, chapters 9.7.1 (bit operations) and 9.7.8 (logic and shift).

use super::OperandSlots;
use super::integer::{integer_value, low_bits_mask, sign_or_zero_extend, wrap_or_saturate};
use super::lanes::{map_lanes_ternary, set_predicate};
use super::scalar::{ScalarFlags, scalar_functions};
use crate::regs::Registers;

/// Logic operations on predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredicateLogic {
    /// `a & b`
    And,
    /// `a | b`
    Or,
    /// `a ^ b`
    Xor,
    /// `!a`
    Not,
    /// `a`
    Copy,
}

#[inline(always)]
pub fn run_predicate_logic(
    r: &mut Registers,
    s: &OperandSlots,
    mask: u32,
    logic: PredicateLogic,
    not0: bool,
    not1: bool,
) {
    let source = |i: usize, not: bool| {
        let slot = s.src[i] as usize;
        (r.predicates[slot] ^ 0u32.wrapping_sub(not as u32), r.undefined_predicates[slot])
    };
    let (a, ua) = source(0, not0);
    let (value, u) = match logic {
        PredicateLogic::Copy => (a, ua),
        PredicateLogic::Not => (!a, ua),
        // A defined operand may decide the result alone. The result is then defined although the other operand is
        // undefined.
        PredicateLogic::And => {
            let (b, ub) = source(1, not1);
            (a & b, ua & (b | ub) | ub & (a | ua))
        }
        PredicateLogic::Or => {
            let (b, ub) = source(1, not1);
            (a | b, ua & (!b | ub) | ub & (!a | ua))
        }
        PredicateLogic::Xor => (a ^ source(1, not1).0, ua | source(1, not1).1),
    };
    set_predicate(r, s.dst[0], value, mask, u);
}

/// `lop3`. Every function of three bits is a polynomial over GF(2) with eight coefficients. The coefficients are
/// computed from the 8-bit table once per warp.
#[inline(always)]
pub fn lop3(r: &mut Registers, s: &OperandSlots, mask: u32) {
    let k = lop3_coefficients(r.rows[s.src[3] as usize].0[0]);
    map_lanes_ternary(r, s, mask, |a: u32, b: u32, c: u32| lop3_polynomial(&k, a, b, c));
}

/// Returns the result of `lop3` in all lanes.
pub fn lop3_value(r: &Registers, s: &OperandSlots) -> [u32; 32] {
    let k = lop3_coefficients(r.rows[s.src[3] as usize].0[0]);
    let [a, b, c] = [0, 1, 2].map(|i| r.get(s.src[i]));
    std::array::from_fn(|i| lop3_polynomial(&k, a[i], b[i], c[i]))
}

#[inline(always)]
fn lop3_polynomial(&[one, c1, b1, bc, a1, ac, ab, abc]: &[u32; 8], a: u32, b: u32, c: u32) -> u32 {
    one ^ a & a1 ^ b & (b1 ^ a & ab) ^ c & (c1 ^ a & ac ^ b & (bc ^ a & abc))
}

/// Returns the coefficients of the polynomial, each all ones or zero: the Möbius transform of the 8-bit table.
/// Coefficient i belongs to the product of `a` (if bit 2 of i is set), `b` (bit 1) and `c` (bit 0).
#[inline(always)]
fn lop3_coefficients(table: u32) -> [u32; 8] {
    let t = table ^ (table & 0x55) << 1;
    let t = t ^ (t & 0x33) << 2;
    let t = t ^ (t & 0x0f) << 4;
    std::array::from_fn(|i| 0u32.wrapping_sub(t >> i & 1))
}

/// `prmt` in its default mode, with a fast path for a selector that all lanes share.
#[inline(always)]
pub fn prmt(r: &mut Registers, s: &OperandSlots, mask: u32) {
    let selectors = r.get(s.src[2]);
    let first = selectors[0];
    let mut differ = 0;
    for x in selectors {
        differ |= x ^ first;
    }
    if differ != 0 {
        return map_lanes_ternary(r, s, mask, permute);
    }
    match first & 0xffff {
        0x5410 => return map_lanes_ternary(r, s, mask, |a: u32, b: u32, _: u32| a & 0xffff | b << 16),
        0x7632 => return map_lanes_ternary(r, s, mask, |a: u32, b: u32, _: u32| a >> 16 | b & 0xffff_0000),
        signs if signs & 0x8888 != 0 => return map_lanes_ternary(r, s, mask, permute),
        _ => {}
    }
    let shift = |byte: u32| (first >> (4 * byte) & 3) * 8;
    let of_b = |byte: u32| 0u32.wrapping_sub(first >> (4 * byte + 2) & 1);
    let (s0, s1, s2, s3) = (shift(0), shift(1), shift(2), shift(3));
    let (b0, b1, b2, b3) = (of_b(0), of_b(1), of_b(2), of_b(3));
    map_lanes_ternary(r, s, mask, |a: u32, b: u32, _: u32| {
        let byte = |of_b: u32, shift: u32| (a & !of_b | b & of_b) >> shift & 0xff;
        byte(b0, s0) | byte(b1, s1) << 8 | byte(b2, s2) << 16 | byte(b3, s3) << 24
    });
}

/// `prmt` of one lane: each nibble of the selector picks one byte of `b:a`. If the nibble's top bit is set, the
/// result is that byte's sign bit, repeated eight times.
#[inline(always)]
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = a as u64 | (b as u64) << 32;
    let mut d = 0;
    for i in 0..4 {
        let pick = selector >> (4 * i);
        let x = (bytes >> ((pick & 7) * 8)) as u32 & 0xff;
        let x = if pick & 8 != 0 { 0u32.wrapping_sub(x >> 7) & 0xff } else { x };
        d |= x << (8 * i);
    }
    d
}

scalar_functions! {
    not |f, a, _, _, _| !a & low_bits_mask(f.bits as u32);
    /// `cnot`: 1 for zero, else 0.
    cnot |_, a, _, _, _| (a == 0) as u64;
    shl |f, a, b, _, _| if b < f.bits as u64 { a << b & low_bits_mask(f.bits as u32) } else { 0 };
    shr |f, a, b, _, _| wrap_or_saturate(f, integer_value(f, a) >> b.min(64));
    popc |_, a, _, _, _| a.count_ones() as u64;
    clz |f, a, _, _, _| a.leading_zeros() as u64 + f.bits as u64 - 64;
    brev |f, a, _, _, _| a.reverse_bits() >> (64 - f.bits);
}

/// `bfind`: the index of the highest bit that differs from the sign bit, or with `variant` (`.shiftamt`) its distance
/// from the top bit. All ones if no bit differs.
pub fn bfind(f: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    let x = if f.signed && integer_value(f, a) < 0 { !a & low_bits_mask(f.bits as u32) } else { a };
    match x.checked_ilog2() {
        None => u32::MAX as u64,
        Some(at) if f.variant => f.bits as u64 - 1 - at as u64,
        Some(at) => at as u64,
    }
}

/// `bfe` of 64 bits. Like an H200, it uses all bits of `pos` and `len`; the 32-bit form uses only the low eight bits.
pub fn bfe64(f: ScalarFlags, a: u64, pos: u64, len: u64, _: u64) -> u64 {
    let x = integer_value(f, a) >> pos.min(64);
    if len == 0 { 0 } else { sign_or_zero_extend(x as u64, len.min(64) as u32, f.signed) as u64 }
}

/// `bfi`: inserts the low `len` bits of `a` into `b` at `pos`. The 64-bit form uses all bits of `pos` and `len`, the
/// 32-bit form only the low eight.
pub fn bfi(f: ScalarFlags, a: u64, b: u64, pos: u64, len: u64) -> u64 {
    let (pos, len) = if f.bits == 64 { (pos, len) } else { (pos & 0xff, len & 0xff) };
    if len == 0 || pos >= f.bits as u64 {
        return b;
    }
    let field = low_bits_mask(len.min(64) as u32) << pos & low_bits_mask(f.bits as u32);
    b & !field | a << pos & field
}

/// `shf`: funnel shift of `b:a`, left if `variant`. The shift is at most 32 if `sat` (`.clamp`), else taken modulo 32
/// (`.wrap`).
pub fn shf(f: ScalarFlags, a: u64, b: u64, by: u64, _: u64) -> u64 {
    let by = if f.sat { by.min(32) } else { by & 31 };
    let both = a | b << 32;
    let shifted = if f.variant { ((both as u128) << by >> 32) as u64 } else { both >> by };
    shifted & 0xffff_ffff
}

/// `fns`: position of the `offset`-th set bit, counted from `base`: upwards if `offset` is positive, downwards if
/// negative.
pub fn fns(_: ScalarFlags, mask: u64, base: u64, offset: u64, _: u64) -> u64 {
    let set = |at: &i64| mask >> at & 1 != 0;
    let (base, offset) = ((base & 0xffff_ffff) as i64, offset as u32 as i32);
    let base = base.min(32);
    let found = match offset {
        0 => (base..32).take(1).find(set),
        1.. => (base..32).filter(set).nth(offset as usize - 1),
        _ => (0..if base < 32 { base + 1 } else { 0 }).rev().filter(set).nth(offset.unsigned_abs() as usize - 1),
    };
    found.map_or(u32::MAX as u64, |at| at as u64)
}

/// `bmsk`: a mask of `b` ones that starts at bit `a`. Both are taken modulo 32 unless `sat` (`.clamp`).
pub fn bmsk(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let (a, b) = if f.sat { (a.min(32), b.min(32)) } else { (a & 31, b & 31) };
    ((1u64 << b) - 1) << a & 0xffff_ffff
}

/// `szext`: sign- or zero-extends the low `b` bits; `b` is taken modulo 32 unless `sat` (`.clamp`).
pub fn szext(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let b = if f.sat { b.min(32) } else { b & 31 };
    if b == 0 { 0 } else { sign_or_zero_extend(a, b as u32, f.signed) as u32 as u64 }
}

/// `prmt` with a mode such as `.f4e`: `byte(i, n)` returns which byte of `b:a` becomes byte `i` of the result for
/// selector `n`.
fn permute_by_mode(a: u64, b: u64, selector: u64, byte: fn(u64, u64) -> u64) -> u64 {
    let (all, n) = (a | b << 32, selector & 3);
    (0..4).map(|i| (all >> (8 * byte(i, n)) & 0xff) << (8 * i)).sum()
}

scalar_functions! {
    prmt_f4e |_, a, b, c, _| permute_by_mode(a, b, c, |i, n| n + i);
    prmt_b4e |_, a, b, c, _| permute_by_mode(a, b, c, |i, n| (n + 8 - i) % 8);
    prmt_rc8 |_, a, b, c, _| permute_by_mode(a, b, c, |_, n| n);
    prmt_ecl |_, a, b, c, _| permute_by_mode(a, b, c, |i, n| i.max(n));
    prmt_ecr |_, a, b, c, _| permute_by_mode(a, b, c, |i, n| i.min(n));
    prmt_rc16 |_, a, b, c, _| permute_by_mode(a, b, c, |i, n| (n & 1) * 2 + (i & 1));
}
