//! f32 arithmetic lane by lane: flushing of subnormals, NVIDIA's canonical NaN, minimum and maximum, 2^x.
//!
//! Source: PTX ISA 9.0, chapter 9.7.3 (floating-point instructions).

/// The NaN that f32 arithmetic makes; payloads are not preserved.
pub const NAN: u32 = 0x7fff_ffff;

/// Sign-preserving zero in place of a subnormal, if `ftz`.
#[inline(always)]
pub fn flush(x: u32, ftz: bool) -> u32 {
    if ftz && x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

/// The f32 with these bits, subnormals flushed if `ftz`.
#[inline(always)]
pub fn input(x: u32, ftz: bool) -> f32 {
    f32::from_bits(flush(x, ftz))
}

/// The bits of a result: any NaN becomes the canonical one, subnormals are flushed if `ftz`.
#[inline(always)]
pub fn output(x: f32, ftz: bool) -> u32 {
    let bits = flush(x.to_bits(), ftz);
    if bits & 0x7fff_ffff > 0x7f80_0000 { NAN } else { bits }
}

/// `.sat`: clamped to [0, 1], NaN becomes +0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    let x = if x > 0.0 { x } else { 0.0 };
    if x < 1.0 { x } else { 1.0 }
}

/// Whether these bits are a NaN.
#[inline(always)]
pub fn is_nan(x: u32) -> bool {
    x & 0x7fff_ffff > 0x7f80_0000
}

/// Orders all numbers, −0 below +0.
#[inline(always)]
fn key(x: u32) -> i32 {
    (x ^ ((x as i32 >> 31) as u32 >> 1)) as i32
}

/// The smaller (or larger, if `MAX`) of two: one NaN gives the other operand, two give the canonical NaN; −0 < +0.
#[inline(always)]
pub fn extreme<const MAX: bool>(a: u32, b: u32) -> u32 {
    let first = if MAX { key(a) > key(b) } else { key(a) < key(b) };
    let x = if first { a } else { b };
    let x = if is_nan(a) { b } else { x };
    let x = if is_nan(b) { a } else { x };
    if is_nan(x) { NAN } else { x }
}

/// 2^x within 1 ulp; subnormal results are made (the caller flushes).
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    // Beyond these the result is infinite or rounds to zero; NaN passes through the polynomial.
    let x = if x > 129.0 { 129.0 } else { x };
    let x = if x < -152.0 { -152.0 } else { x };
    // Adding 1.5 · 2^23 rounds to the nearest integer, which then lies in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x + ROUND;
    let n = shifted.to_bits() as i32 - ROUND.to_bits() as i32;
    let f = x - (shifted - ROUND);
    // Taylor series of e^(f ln 2), |f| ≤ 1/2: the first term left out is below 2^-27.
    let mut p = 1.525_273_4e-5_f32;
    for c in [1.540_353e-4, 1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, 6.931_472e-1, 1.0] {
        p = p.mul_add(f, c);
    }
    // Two factors, since 2^n alone may be subnormal or infinite where the product is not.
    let (half, rest) = (n >> 1, n - (n >> 1));
    p * power_of_two(half) * power_of_two(rest)
}

/// 2^n for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// The bf16 nearest to an f32, ties to even; NaN is 0x7fff.
#[inline(always)]
pub fn to_bf16(x: u32) -> u32 {
    let rounded = x.wrapping_add(0x7fff + (x >> 16 & 1)) >> 16;
    if is_nan(x) { 0x7fff } else { rounded }
}
