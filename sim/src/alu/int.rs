//! Integer instructions that are seldom executed, of any width: lane by lane in 128 bits.
//!
//! Source: PTX ISA 9.0, chapters 9.7.1, 9.7.2 (extended precision) and 9.7.8 (logic and shift).

use super::cold::Flags;

/// The integer that these bits are in the flags' type.
pub fn value(f: Flags, x: u64) -> i128 {
    extend(x, f.bits as u32, f.signed)
}

/// The low `bits` as a signed or unsigned number.
pub fn extend(x: u64, bits: u32, signed: bool) -> i128 {
    let unused = 64 - bits;
    if signed { ((x << unused) as i64 >> unused) as i128 } else { (x << unused >> unused) as i128 }
}

/// The bits of a number, modulo the flags' width; clamped to the type first if `.sat`.
pub fn bits(f: Flags, x: i128) -> u64 {
    let x = if f.sat { clamp(x, f.bits as u32, f.signed) } else { x };
    x as u64 & ones(f.bits as u32)
}

/// The nearest number of a type.
pub fn clamp(x: i128, bits: u32, signed: bool) -> i128 {
    if signed { x.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { x.clamp(0, (1 << bits) - 1) }
}

/// The low `n` bits set, `n` from 1 to 64.
pub fn ones(n: u32) -> u64 {
    u64::MAX >> (64 - n)
}

pub fn add(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    bits(f, value(f, a) + value(f, b))
}

pub fn sub(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    bits(f, value(f, a) - value(f, b))
}

/// The product; unsigned ones of 64 bits fill all 128.
fn product(f: Flags, a: u64, b: u64) -> i128 {
    value(f, a).wrapping_mul(value(f, b))
}

/// The upper half of the product, as a number.
fn high(f: Flags, a: u64, b: u64) -> i128 {
    let p = product(f, a, b);
    if f.signed { p >> f.bits } else { (p as u128 >> f.bits) as i128 }
}

pub fn mad_low(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    bits(f, product(f, a, b).wrapping_add(value(f, c)))
}

pub fn mul_high(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    bits(f, high(f, a, b))
}

pub fn mad_high(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    bits(f, high(f, a, b) + value(f, c))
}

/// Of 16-bit sources.
pub fn mul_wide(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    product(f, a, b) as u32 as u64
}

/// Of 16-bit sources.
pub fn mad_wide(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    product(f, a, b).wrapping_add(c as i128) as u32 as u64
}

/// The product of the low 24 bits; bits 16 to 47 of it if `other` (`.hi`), else the low 32.
fn product24(f: Flags, a: u64, b: u64) -> i128 {
    let p = extend(a, 24, f.signed) * extend(b, 24, f.signed);
    if f.other { p >> 16 } else { p }
}

pub fn mul24(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    bits(f, product24(f, a, b))
}

pub fn mad24(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    bits(f, product24(f, a, b) + value(f, c))
}

/// Division by zero is left open by the source: all ones here.
pub fn div(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    bits(f, value(f, a).checked_div(value(f, b)).unwrap_or(-1))
}

/// The remainder of a division by zero is all ones, too.
pub fn rem(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    bits(f, value(f, a).checked_rem(value(f, b)).unwrap_or(-1))
}

pub fn neg(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    bits(f, -value(f, a))
}

pub fn abs(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    bits(f, value(f, a).abs())
}

pub fn sad(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    bits(f, value(f, c) + (value(f, a) - value(f, b)).abs())
}

/// The smaller, or the larger if `other`; not below zero if `.relu`.
pub fn extreme(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let (a, b) = (value(f, a), value(f, b));
    let x = if f.other { a.max(b) } else { a.min(b) };
    bits(f, if f.relu { x.max(0) } else { x })
}

/// Both halves of a 32-bit register, each by `g` as 16 bits.
fn halves(f: Flags, a: u64, b: u64, g: fn(Flags, u64, u64, u64, u64) -> u64) -> u64 {
    g(f, a & 0xffff, b & 0xffff, 0, 0) | g(f, a >> 16, b >> 16, 0, 0) << 16
}

pub fn extreme_pair(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    halves(f, a, b, extreme)
}

pub fn add_pair(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    halves(f, a, b, add)
}

pub fn not(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    !a & ones(f.bits as u32)
}

/// 1 for zero, else 0.
pub fn cnot(_: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    (a == 0) as u64
}

pub fn shl(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    if b < f.bits as u64 { a << b & ones(f.bits as u32) } else { 0 }
}

pub fn shr(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    bits(f, value(f, a) >> b.min(64))
}

pub fn popc(_: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    a.count_ones() as u64
}

pub fn clz(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    a.leading_zeros() as u64 + f.bits as u64 - 64
}

pub fn brev(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    a.reverse_bits() >> (64 - f.bits)
}

/// The highest bit that differs from the sign; how far from the top if `other` (`.shiftamt`); all ones if there is none.
pub fn bfind(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    let x = if f.signed && value(f, a) < 0 { !a & ones(f.bits as u32) } else { a };
    match x.checked_ilog2() {
        None => u32::MAX as u64,
        Some(at) if f.other => f.bits as u64 - 1 - at as u64,
        Some(at) => at as u64,
    }
}

/// Of 64 bits. All bits of `pos` and `len` count, on an H200 too; those of 32 bits take the low eight.
pub fn bfe64(f: Flags, a: u64, pos: u64, len: u64, _: u64) -> u64 {
    let x = value(f, a) >> pos.min(64);
    if len == 0 { 0 } else { extend(x as u64, len.min(64) as u32, f.signed) as u64 }
}

/// The low `len` bits of `a` put into `b` at `pos`, of which all bits count where there are 64, else the low eight.
pub fn bfi(f: Flags, a: u64, b: u64, pos: u64, len: u64) -> u64 {
    let (pos, len) = if f.bits == 64 { (pos, len) } else { (pos & 0xff, len & 0xff) };
    if len == 0 || pos >= f.bits as u64 {
        return b;
    }
    let field = ones(len.min(64) as u32) << pos & ones(f.bits as u32);
    b & !field | a << pos & field
}

/// Funnel shift of `b:a`: left if `other`, by at most 32 if `sat` (`.clamp`), else modulo 32 (`.wrap`).
pub fn shf(f: Flags, a: u64, b: u64, by: u64, _: u64) -> u64 {
    let by = if f.sat { by.min(32) } else { by & 31 };
    let both = a | b << 32;
    let shifted = if f.other { ((both as u128) << by >> 32) as u64 } else { both >> by };
    shifted & 0xffff_ffff
}

/// The position of the `offset`-th set bit from `base`, upwards or downwards.
pub fn fns(_: Flags, mask: u64, base: u64, offset: u64, _: u64) -> u64 {
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

/// `b` ones from bit `a` on; both modulo 32 unless `sat` (`.clamp`).
pub fn bmsk(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let (a, b) = if f.sat { (a.min(32), b.min(32)) } else { (a & 31, b & 31) };
    ((1u64 << b) - 1) << a & 0xffff_ffff
}

/// The low `b` bits extended; `b` modulo 32 unless `sat` (`.clamp`).
pub fn szext(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let b = if f.sat { b.min(32) } else { b & 31 };
    if b == 0 { 0 } else { extend(a, b as u32, f.signed) as u32 as u64 }
}

/// `prmt` with a mode: `byte(i, n)` says which byte of `b:a` goes to byte `i` for selector `n`.
fn permute(a: u64, b: u64, selector: u64, byte: fn(u64, u64) -> u64) -> u64 {
    let (all, n) = (a | b << 32, selector & 3);
    (0..4).map(|i| (all >> (8 * byte(i, n)) & 0xff) << (8 * i)).sum()
}

pub fn prmt_f4e(_: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    permute(a, b, c, |i, n| n + i)
}

pub fn prmt_b4e(_: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    permute(a, b, c, |i, n| (n + 8 - i) % 8)
}

pub fn prmt_rc8(_: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    permute(a, b, c, |_, n| n)
}

pub fn prmt_ecl(_: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    permute(a, b, c, |i, n| i.max(n))
}

pub fn prmt_ecr(_: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    permute(a, b, c, |i, n| i.min(n))
}

pub fn prmt_rc16(_: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    permute(a, b, c, |i, n| (n & 1) * 2 + (i & 1))
}

/// Four products of bytes added to `c`; `a` is signed if `signed`, `b` if `other`.
pub fn dp4a(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    let byte = |x: u64, i: u32, signed| extend(x >> (8 * i), 8, signed);
    let sum: i128 = (0..4).map(|i| byte(a, i, f.signed) * byte(b, i, f.other)).sum();
    (sum + c as i128) as u32 as u64
}

/// Two products of `a`'s halves with two bytes of `b` (the upper two if `sat`, `.hi`), added to `c`.
pub fn dp2a(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    let b = if f.sat { b >> 16 } else { b };
    let term = |i: u32| extend(a >> (16 * i), 16, f.signed) * extend(b >> (8 * i), 8, f.other);
    (term(0) + term(1) + c as i128) as u32 as u64
}

/// The absolute differences of elements of `bits` each, summed and added to `c`; `b` is signed if `other`.
pub fn differences(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    let bits = f.bits as u32;
    let element = |x: u64, i: u32, signed| extend(x >> (bits * i), bits, signed);
    let sum: i128 = (0..32 / bits).map(|i| (element(a, i, f.signed) - element(b, i, f.other)).abs()).sum();
    (sum + c as i128) as u32 as u64
}

/// `cvt.pack` of signed words to `bits`: `b` lowest, then `a`, then the low bits of `c`.
pub fn pack(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    let one = |x: u64| clamp(extend(x, 32, true), f.bits as u32, f.signed) as u64 & ones(f.bits as u32);
    (one(b) | one(a) << f.bits | c << (2 * f.bits)) & 0xffff_ffff
}

/// Whether two numbers are in one of the orders of `wide`, as in [`super::float::compare`].
pub fn compare(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    (f.wide & super::float::order(value(f, a).partial_cmp(&value(f, b))) != 0) as u64
}
