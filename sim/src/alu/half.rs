//! f16 and bf16 arithmetic, single and packed in pairs.
//!
//! [`HalfOp`] runs plain `add`, `sub`, `mul` and `fma` a warp at a time; forms with modifiers are
//! [`ScalarFunction`](super::scalar::ScalarFunction)s. Source: PTX ISA 9.0, chapters 9.7.4 and 9.7.5.

use super::OperandSlots;
use super::f32_math::{self, f16_to_f32, f32_to_bf16, f32_to_f16};
use super::float::{FloatArithmetic, add_f32, fma_f32, is_tiny_after_rounding, sub_f32};
use super::lanes::{map_lanes_ternary, mark_undefined_lanes};
use super::scalar::{ScalarFlags, scalar_functions};
use super::soft_float::{BF16, F16, FloatFormat, add_round_to_odd, encode_float};
use crate::regs::Registers;
use crate::simd::run_with_widest_simd;

/// `add`, `sub`, `mul` or `fma` without modifiers, of one half or of a packed pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOp {
    pub op: FloatArithmetic,
    pub bf16: bool,
    pub pair: bool,
}

impl HalfOp {
    /// Executes the instruction for the lanes of `mask`. `add`, `sub` and `mul` have two sources: the slot of the third
    /// source repeats the second source, and its value is ignored.
    pub fn run(self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        let mut s = *s;
        if self.op != FloatArithmetic::Fma {
            s.src[2] = s.src[1];
        }
        let s = &s;
        if self.pair && r.has_defined_halves() {
            return self.run_with_undefined_halves(r, s, mask);
        }
        self.run_lanes(r, s, mask);
    }

    /// Executes an instruction on packed pairs. Each half of the result is undefined where this half of a source is.
    #[cold]
    fn run_with_undefined_halves(self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        let undefined =
            [0, 1].map(|half| s.src[..3].iter().fold(0, |lanes, &slot| lanes | r.undefined_half(slot, half)));
        self.run_lanes(r, s, mask);
        mark_undefined_lanes(r, s.dst[0], mask, undefined[0] | undefined[1]);
        if (undefined[0] ^ undefined[1]) & mask != 0 {
            r.set_undefined_halves(s.dst[0], mask, undefined);
        }
    }

    fn run_lanes(self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        run_with_widest_simd(
            #[inline(always)]
            || match (self.op, self.bf16) {
                (FloatArithmetic::Add, false) => self.lanes::<false>(r, s, mask, |a, b, _| add_round_to_odd(a, b)),
                (FloatArithmetic::Add, true) => self.lanes::<true>(r, s, mask, |a, b, _| add_round_to_odd(a, b)),
                (FloatArithmetic::Sub, false) => self.lanes::<false>(r, s, mask, |a, b, _| add_round_to_odd(a, -b)),
                (FloatArithmetic::Sub, true) => self.lanes::<true>(r, s, mask, |a, b, _| add_round_to_odd(a, -b)),
                (FloatArithmetic::Mul, false) => self.lanes::<false>(r, s, mask, |a, b, _| a * b),
                (FloatArithmetic::Mul, true) => self.lanes::<true>(r, s, mask, |a, b, _| a * b),
                (_, false) => self.lanes::<false>(r, s, mask, |a, b, c| add_round_to_odd(a * b, c)),
                (_, true) => self.lanes::<true>(r, s, mask, |a, b, c| add_round_to_odd(a * b, c)),
            },
        );
    }

    #[inline(always)]
    fn lanes<const BF16: bool>(self, r: &mut Registers, s: &OperandSlots, mask: u32, f: impl Fn(f64, f64, f64) -> f64) {
        let wide = |x: u32| f32::from_bits(if BF16 { x << 16 } else { f16_to_f32(x & 0xffff) }) as f64;
        let half = |a: u32, b: u32, c: u32| {
            let odd = f64_to_f32_round_to_odd(f(wide(a), wide(b), wide(c)));
            if BF16 { f32_to_bf16(odd) } else { f32_to_f16(odd) }
        };
        if self.pair {
            map_lanes_ternary(r, s, mask, |a: u32, b: u32, c: u32| {
                half(a, b, c) | half(a >> 16, b >> 16, c >> 16) << 16
            });
        } else {
            map_lanes_ternary(r, s, mask, half);
        }
    }
}

/// Rounds an f64 to odd in f32 and returns the f32's bits. Rounding that f32 to half precision gives the same result
/// as rounding the f64 directly.
#[inline(always)]
fn f64_to_f32_round_to_odd(x: f64) -> u32 {
    let near = x as f32;
    let (beyond, inexact) = ((near as f64).abs() > x.abs(), near as f64 != x);
    let odd = (near.to_bits() - beyond as u32) | inexact as u32;
    if f32_math::is_nan(near.to_bits()) { f32_math::CANONICAL_NAN } else { odd }
}

pub fn map_halves(a: u64, b: u64, c: u64, g: impl Fn(u64, u64, u64) -> u64) -> u64 {
    g(a & 0xffff, b & 0xffff, c & 0xffff) | g(a >> 16, b >> 16, c >> 16) << 16
}

/// Returns the format of a half-precision operand: bf16 if `variant`, else f16.
pub fn half_format(f: ScalarFlags) -> FloatFormat {
    if f.variant { BF16 } else { F16 }
}

/// Returns the value of a half-precision operand: bf16 if `variant`, else f16.
pub fn half_to_f64(f: ScalarFlags, x: u64) -> f64 {
    let value =
        if f.variant { f32::from_bits((x as u32) << 16) } else { f32::from_bits(f32_math::f16_to_f32(x as u32)) }
            as f64;
    if f.ftz && value.abs() < 2f64.powi(half_format(f).min_exponent) { 0f64.copysign(value) } else { value }
}

/// Rounds a result to half precision, with `.sat`, `.relu` and `.ftz`. `x` is exact or rounded to odd.
fn half_result(f: ScalarFlags, x: f64) -> u64 {
    let x = match (f.sat, f.relu) {
        (true, _) => {
            if x > 0.0 {
                x.min(1.0)
            } else {
                0.0
            }
        }
        (_, true) if x <= 0.0 => 0.0,
        _ => x,
    };
    let bits = encode_float(x, half_format(f), f.rounding);
    if f.ftz && is_tiny_after_rounding(half_format(f), f.rounding, x) { bits & 0x8000 } else { bits }
}

macro_rules! half_functions {
    ($($name:ident $pair:ident |$a:ident, $b:ident, $c:ident| $value:expr;)*) => {$(
        pub fn $name(f: ScalarFlags, a: u64, b: u64, c: u64, _: u64) -> u64 {
            let [$a, $b, $c] = [a, b, c].map(|x| half_to_f64(f, x));
            half_result(f, $value)
        }

        pub fn $pair(f: ScalarFlags, a: u64, b: u64, c: u64, _: u64) -> u64 {
            map_halves(a, b, c, |a, b, c| $name(f, a, b, c, 0))
        }
    )*};
}

half_functions! {
    add_half add_halves |a, b, _c| add_round_to_odd(a, b);
    sub_half sub_halves |a, b, _c| add_round_to_odd(a, -b);
    mul_half mul_halves |a, b, _c| a * b;
    fma_half fma_halves |a, b, c| add_round_to_odd(a * b, c);
    ex2_half ex2_halves |a, _b, _c| a.exp2();
    tanh_half tanh_halves |a, _b, _c| a.tanh();
}

scalar_functions! {
    /// `add.f32.f16` and `add.f32.bf16`: adds the half `a` to the f32 `b`.
    add_half_to_f32 |f, a, b, _, _| add_f32(f, half_to_f32_bits(f, a), b, 0, 0);
    sub_f32_from_half |f, a, b, _, _| sub_f32(f, half_to_f32_bits(f, a), b, 0, 0);
    fma_halves_to_f32 |f, a, b, c, _| fma_f32(f, half_to_f32_bits(f, a), half_to_f32_bits(f, b), c, 0);
}

fn half_to_f32_bits(f: ScalarFlags, x: u64) -> u64 {
    (half_to_f64(f, x) as f32).to_bits() as u64
}

/// `neg`: flips the sign, flushes with `.ftz`; any NaN becomes the canonical NaN, as on an H200.
pub fn neg_half(f: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    if is_nan_half(f, a) { half_format(f).nan } else { flush_half(f, a) ^ 0x8000 }
}

pub fn abs_half(f: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    if is_nan_half(f, a) { half_format(f).nan } else { flush_half(f, a) & 0x7fff }
}

fn is_nan_half(f: ScalarFlags, a: u64) -> bool {
    a & 0x7fff > half_format(f).max_finite + 1
}

pub fn neg_halves(f: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    map_halves(a, 0, 0, |a, _, _| neg_half(f, a, 0, 0, 0))
}

pub fn abs_halves(f: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    map_halves(a, 0, 0, |a, _, _| abs_half(f, a, 0, 0, 0))
}

fn flush_half(f: ScalarFlags, a: u64) -> u64 {
    let subnormal = a & 0x7fff < 1 << (half_format(f).precision - 1);
    if f.ftz && subnormal { a & 0x8000 } else { a }
}
