//! Integer arithmetic of any width, as [`ScalarFunction`](super::scalar::ScalarFunction)s: each lane is computed in 128
//! bits.
//!
//! Source: PTX ISA 9.0, chapter 9.7.1.

use super::scalar::{ScalarFlags, scalar_functions};

/// Returns the integer that the bits `x` represent in the integer type that the flags `f` describe.
pub fn integer_value(f: ScalarFlags, x: u64) -> i128 {
    sign_or_zero_extend(x, f.bits as u32, f.signed)
}

/// Returns the low `bits` of `x` as a signed or unsigned number.
pub fn sign_or_zero_extend(x: u64, bits: u32, signed: bool) -> i128 {
    let unused = 64 - bits;
    if signed { ((x << unused) as i64 >> unused) as i128 } else { (x << unused >> unused) as i128 }
}

/// Returns the low bits of `x`, as many as the type that `f` describes has. With `.sat`, first clamps `x` to the range
/// of that type.
pub fn wrap_or_saturate(f: ScalarFlags, x: i128) -> u64 {
    let x = if f.sat { clamp_to_type(x, f.bits as u32, f.signed) } else { x };
    x as u64 & low_bits_mask(f.bits as u32)
}

/// Clamps a number to the range of a type.
pub fn clamp_to_type(x: i128, bits: u32, signed: bool) -> i128 {
    if signed { x.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { x.clamp(0, (1 << bits) - 1) }
}

/// Returns a mask of the low `n` bits, `n` from 1 to 64.
pub fn low_bits_mask(n: u32) -> u64 {
    u64::MAX >> (64 - n)
}

pub fn add(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    wrap_or_saturate(f, integer_value(f, a) + integer_value(f, b))
}

pub fn sub(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    wrap_or_saturate(f, integer_value(f, a) - integer_value(f, b))
}

/// Returns the exact product of `a` and `b`. The product of two unsigned 64-bit numbers takes all 128 bits of the
/// result.
fn product(f: ScalarFlags, a: u64, b: u64) -> i128 {
    integer_value(f, a).wrapping_mul(integer_value(f, b))
}

/// Returns the upper half of the product of `a` and `b`.
fn high(f: ScalarFlags, a: u64, b: u64) -> i128 {
    let p = product(f, a, b);
    if f.signed { p >> f.bits } else { (p as u128 >> f.bits) as i128 }
}

scalar_functions! {
    mad_low |f, a, b, c, _| wrap_or_saturate(f, product(f, a, b).wrapping_add(integer_value(f, c)));
    mul_high |f, a, b, _, _| wrap_or_saturate(f, high(f, a, b));
    mad_high |f, a, b, c, _| wrap_or_saturate(f, high(f, a, b) + integer_value(f, c));
    /// `mul.wide` with 16-bit sources and a 32-bit result.
    mul_wide |f, a, b, _, _| product(f, a, b) as u32 as u64;
    /// `mad.wide` with 16-bit sources and a 32-bit result.
    mad_wide |f, a, b, c, _| product(f, a, b).wrapping_add(c as i128) as u32 as u64;
}

/// Multiplies the low 24 bits of both sources. Returns bits 16 to 47 of the product if `variant` (`.hi`), else all of
/// it.
fn product24(f: ScalarFlags, a: u64, b: u64) -> i128 {
    let p = sign_or_zero_extend(a, 24, f.signed) * sign_or_zero_extend(b, 24, f.signed);
    if f.variant { p >> 16 } else { p }
}

scalar_functions! {
    mul24 |f, a, b, _, _| wrap_or_saturate(f, product24(f, a, b));
    mad24 |f, a, b, c, _| wrap_or_saturate(f, product24(f, a, b) + integer_value(f, c));
    /// `div`. The PTX ISA does not define division by zero; here it gives all ones.
    div |f, a, b, _, _| wrap_or_saturate(f, integer_value(f, a).checked_div(integer_value(f, b)).unwrap_or(-1));
    /// `rem`. The PTX ISA does not define the remainder of a division by zero; here it is all ones.
    rem |f, a, b, _, _| wrap_or_saturate(f, integer_value(f, a).checked_rem(integer_value(f, b)).unwrap_or(-1));
    neg |f, a, _, _, _| wrap_or_saturate(f, -integer_value(f, a));
    abs |f, a, _, _, _| wrap_or_saturate(f, integer_value(f, a).abs());
    sad |f, a, b, c, _| wrap_or_saturate(f, integer_value(f, c) + (integer_value(f, a) - integer_value(f, b)).abs());
}

/// `min`, or `max` if `variant`. With `.relu`, a negative result becomes 0.
pub fn min_or_max(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let (a, b) = (integer_value(f, a), integer_value(f, b));
    let x = if f.variant { a.max(b) } else { a.min(b) };
    wrap_or_saturate(f, if f.relu { x.max(0) } else { x })
}

/// Applies `g` to the lower and to the upper 16 bits of two 32-bit registers.
fn halves(f: ScalarFlags, a: u64, b: u64, g: fn(ScalarFlags, u64, u64, u64, u64) -> u64) -> u64 {
    g(f, a & 0xffff, b & 0xffff, 0, 0) | g(f, a >> 16, b >> 16, 0, 0) << 16
}

pub fn min_or_max_16bit_pair(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    halves(f, a, b, min_or_max)
}

pub fn add_16bit_pairs(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    halves(f, a, b, add)
}

/// `dp4a`: adds four products of bytes to `c`. The bytes of `a` are signed if `signed`; the bytes of `b` are signed if
/// `variant`.
pub fn dp4a(f: ScalarFlags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    let byte = |x: u64, i: u32, signed| sign_or_zero_extend(x >> (8 * i), 8, signed);
    let sum: i128 = (0..4).map(|i| byte(a, i, f.signed) * byte(b, i, f.variant)).sum();
    (sum + c as i128) as u32 as u64
}

/// `dp2a`: adds to `c` two products of a half of `a` and a byte of `b`. `sat` (`.hi`) selects the upper two bytes of
/// `b`.
pub fn dp2a(f: ScalarFlags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    let b = if f.sat { b >> 16 } else { b };
    let term =
        |i: u32| sign_or_zero_extend(a >> (16 * i), 16, f.signed) * sign_or_zero_extend(b >> (8 * i), 8, f.variant);
    (term(0) + term(1) + c as i128) as u32 as u64
}

/// `vabsdiff2` and `vabsdiff4` with `.add`: adds to `c` the absolute differences of the elements, which have `bits`
/// bits. The elements of `b` are signed if `variant`.
pub fn sum_of_absolute_differences(f: ScalarFlags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    let bits = f.bits as u32;
    let element = |x: u64, i: u32, signed| sign_or_zero_extend(x >> (bits * i), bits, signed);
    let sum: i128 = (0..32 / bits).map(|i| (element(a, i, f.signed) - element(b, i, f.variant)).abs()).sum();
    (sum + c as i128) as u32 as u64
}

/// `cvt.pack`: clamps two signed words to `bits` bits and packs them: `b` in the lowest bits, then `a`, then the low
/// bits of `c`.
pub fn cvt_pack(f: ScalarFlags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    let one = |x: u64| {
        clamp_to_type(sign_or_zero_extend(x, 32, true), f.bits as u32, f.signed) as u64 & low_bits_mask(f.bits as u32)
    };
    (one(b) | one(a) << f.bits | c << (2 * f.bits)) & 0xffff_ffff
}
