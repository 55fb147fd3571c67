//! f32 arithmetic of one lane: flushing of subnormals, NVIDIA's canonical NaN, minimum and maximum, 2^x, conversions.
//!
//! Every function is branch-free and inlined, so that loops over lanes vectorise. Source: PTX ISA 9.0, chapter 9.7.3.

/// Bit pattern of the NaN that every f32 operation produces; NaN payloads are not preserved.
pub const CANONICAL_NAN: u32 = 0x7fff_ffff;

/// Replaces a subnormal by zero of the same sign if `ftz`.
#[inline(always)]
pub fn flush_subnormal(x: u32, ftz: bool) -> u32 {
    if ftz && x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

/// Returns the f32 with bits `x`. If `ftz`, a subnormal becomes a zero of the same sign.
#[inline(always)]
pub fn f32_from_operand_bits(x: u32, ftz: bool) -> f32 {
    f32::from_bits(flush_subnormal(x, ftz))
}

/// Returns the bits of the result `x`: any NaN becomes the canonical NaN and, if `ftz`, a subnormal becomes a zero.
#[inline(always)]
pub fn f32_to_result_bits(x: f32, ftz: bool) -> u32 {
    let bits = flush_subnormal(x.to_bits(), ftz);
    if bits & 0x7fff_ffff > 0x7f80_0000 { CANONICAL_NAN } else { bits }
}

/// Rounds an f64 that is exact, or rounded to odd, to the nearest f32 and flushes it as `.ftz` does on an H200.
///
/// The result is flushed if it is below the smallest normal number after rounding to 24 bits with unlimited exponent
/// range. The f64 of a quotient of two f32s is precise enough for this test.
#[inline(always)]
pub fn round_and_flush(x: f64) -> f32 {
    const LEAST: f64 = f32::MIN_POSITIVE as f64;
    let y = x as f32;
    if x.abs() < LEAST - LEAST / 33_554_432.0 { 0f32.copysign(y) } else { y }
}

/// `.sat`: clamps to [0, 1]; NaN becomes +0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    let x = if x > 0.0 { x } else { 0.0 };
    if x < 1.0 { x } else { 1.0 }
}

/// Returns true if the bits are a NaN.
#[inline(always)]
pub fn is_nan(x: u32) -> bool {
    x & 0x7fff_ffff > 0x7f80_0000
}

/// Returns the smaller number, or the larger one if `MAX`. One NaN gives the other operand, two give the canonical NaN;
/// −0 < +0.
#[inline(always)]
pub fn min_or_max<const MAX: bool>(a: u32, b: u32) -> u32 {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let first = if MAX { x > y } else { x < y };
    // Operands that compare equal differ at most in the sign of a zero: OR gives −0 for the minimum, AND gives +0 for
    // the maximum.
    let tie = if MAX { a & b } else { a | b };
    let z = if first { a } else { b };
    let z = if x == y { tie } else { z };
    let z = if y.is_nan() { a } else { z };
    if is_nan(z) { CANONICAL_NAN } else { z }
}

/// Returns 2^x within 1 ulp. Subnormal results are not flushed; the caller does that.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    // For `x` above 129 the result is infinite; for `x` below −152 it rounds to zero. A NaN passes through the
    // polynomial.
    let x = if x > 129.0 { 129.0 } else { x };
    let x = if x < -152.0 { -152.0 } else { x };
    // Adding 1.5 · 2^23 rounds to the nearest integer, which then lies in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x + ROUND;
    let n = shifted.to_bits() as i32 - ROUND.to_bits() as i32;
    let f = x - (shifted - ROUND);
    // Taylor series of e^(f ln 2) for |f| ≤ 1/2. The first omitted term is below 2^-27.
    let mut p = 1.525_273_4e-5_f32;
    for c in [1.540_353e-4, 1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, 6.931_472e-1, 1.0] {
        p = p.mul_add(f, c);
    }
    // Multiply by two factors: 2^n itself may be subnormal or infinite although the product is not.
    let (half, rest) = (n >> 1, n - (n >> 1));
    p * power_of_two(half) * power_of_two(rest)
}

/// Returns 2^n for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// Rounds an f32 to the nearest bf16, ties to even; NaN gives 0x7fff.
#[inline(always)]
pub fn f32_to_bf16(x: u32) -> u32 {
    let rounded = x.wrapping_add(0x7fff + (x >> 16 & 1)) >> 16;
    if is_nan(x) { 0x7fff } else { rounded }
}

/// Truncates to a signed integer; out-of-range values are clamped, NaN gives 0.
#[inline(always)]
pub fn f32_to_s32(x: f32) -> u32 {
    truncate(x, -2_147_483_648.0, 2_147_483_647.0)
}

/// Truncates to an unsigned integer; out-of-range values are clamped, NaN gives 0.
#[inline(always)]
pub fn f32_to_u32(x: f32) -> u32 {
    truncate(x, 0.0, 4_294_967_295.0)
}

/// Clamps and truncates like Rust's saturating cast, but in a way that vectorises. Returns the integer's low 32 bits.
#[inline(always)]
fn truncate(x: f32, least: f64, most: f64) -> u32 {
    let x = x as f64;
    let y = if x > least { x } else { least };
    let y = if y < most { y } else { most };
    let y = if x.is_nan() { 0.0 } else { y };
    // Adding 1.5 · 2^52 moves the integer to the low bits of the f64.
    (y.trunc() + 6_755_399_441_055_744.0).to_bits() as u32
}

/// Rounds an f32 to the nearest f16, ties to even; NaN gives 0x7fff.
#[inline(always)]
pub fn f32_to_f16(x: u32) -> u32 {
    let (sign, a) = (x >> 16 & 0x8000, x & 0x7fff_ffff);
    let normal = a.wrapping_sub(112 << 23).wrapping_add(0xfff + (a >> 13 & 1)) >> 13;
    // Adding 1/2 rounds to a multiple of 2^-24, which is both the smallest subnormal f16 and one unit in the last place
    // of an f32 in [1/2, 1).
    let small = (f32::from_bits(a) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let y = if a < 0x3880_0000 { small } else { normal };
    let y = if a >= 0x4780_0000 { 0x7c00 } else { y };
    if is_nan(x) { 0x7fff } else { sign | y }
}

/// Converts an f16 to f32; any NaN becomes the canonical NaN.
#[inline(always)]
pub fn f16_to_f32(x: u32) -> u32 {
    let (sign, a) = ((x & 0x8000) << 16, x & 0x7fff);
    let normal = (a << 13) + (112 << 23);
    let small = (f32::from_bits((a << 13) + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let y = if a < 0x400 { small } else { normal };
    let y = if a == 0x7c00 { 0x7f80_0000 } else { y };
    if a > 0x7c00 { CANONICAL_NAN } else { sign | y }
}
