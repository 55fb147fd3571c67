//! Floating-point instructions that are seldom executed: directed roundings, f64, half precision, approximations.
//!
//! Source: PTX ISA 9.0, chapters 9.7.3 to 9.7.5. Approximations are computed in f64 and rounded once, well within the
//! errors documented there.

use super::cold::Flags;
use super::f32s::{self, flush};
use super::soft::{BF16, F16, F32, F64, Format, Mode, Wide, add_odd, narrow};

/// Arithmetic that rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `a + b`
    Add,
    /// `a − b`
    Sub,
    /// `a · b`
    Mul,
    /// `a · b + c`
    Fma,
    /// `a / b`
    Div,
    /// `1 / a`
    Rcp,
    /// `√a`
    Sqrt,
}

/// The result to nearest in the format of `native`, or the exact one rounded as the mode says where it is finite.
fn arithmetic(op: Arithmetic, mode: Mode, format: Format, a: f64, b: f64, c: f64, native: u64) -> u64 {
    let finite = a.is_finite() && b.is_finite() && c.is_finite();
    if mode == Mode::Nearest || !finite {
        return native;
    }
    let (x, y, z) = (Wide::new(a), Wide::new(b), Wide::new(c));
    let minus_y = Wide { negative: !y.negative, ..y };
    let product = x.times(y);
    let (exact, terms) = match op {
        Arithmetic::Add => (x.plus(y), Some((x.negative, y.negative))),
        Arithmetic::Sub => (x.plus(minus_y), Some((x.negative, !y.negative))),
        Arithmetic::Mul => (product, None),
        Arithmetic::Fma => (product.plus(z), Some((product.negative, z.negative))),
        Arithmetic::Div if !y.is_zero() && !x.is_zero() => (x.over(y), None),
        Arithmetic::Rcp if !x.is_zero() => (Wide::new(1.0).over(x), None),
        Arithmetic::Sqrt if !x.negative && !x.is_zero() => (x.sqrt(), None),
        _ => return native,
    };
    if !exact.is_zero() {
        return exact.round(format, mode);
    }
    // A sum that cancels is +0, rounding down −0; like signs keep theirs.
    let negative = match terms {
        Some((s, t)) if s != t => mode == Mode::Down,
        Some((s, _)) => s,
        None => exact.negative,
    };
    (negative as u64) << format.sign
}

macro_rules! arithmetic_functions {
    ($($f32_name:ident $f64_name:ident $op:ident |$a:ident, $b:ident, $c:ident| $value:expr;)*) => {$(
        pub fn $f32_name(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
            let [$a, $b, $c] = [a, b, c].map(|x| f32s::input(x as u32, f.ftz));
            let native = f32s::output($value, false);
            let bits = arithmetic(Arithmetic::$op, f.mode, F32, $a as f64, $b as f64, $c as f64, native as u64) as u32;
            let least = f.ftz && bits & 0x7fff_ffff == 0x80_0000;
            if least && tiny(F32, f.mode, odd(Arithmetic::$op, $a as f64, $b as f64, $c as f64)) {
                return finish32(f, bits & 0x8000_0000);
            }
            finish32(f, bits)
        }

        pub fn $f64_name(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
            let [$a, $b, $c] = [a, b, c].map(f64::from_bits);
            arithmetic(Arithmetic::$op, f.mode, F64, $a, $b, $c, ($value).to_bits())
        }
    )*};
}

arithmetic_functions! {
    add_f32 add_f64 Add |a, b, _c| a + b;
    sub_f32 sub_f64 Sub |a, b, _c| a - b;
    mul_f32 mul_f64 Mul |a, b, _c| a * b;
    fma_f32 fma_f64 Fma |a, b, c| a.mul_add(b, c);
    div_f32 div_f64 Div |a, b, _c| a / b;
    rcp_f32 rcp_f64 Rcp |a, _b, _c| 1.0 / a;
    sqrt_f32 sqrt_f64 Sqrt |a, _b, _c| a.sqrt();
}

/// Whether `.ftz` flushes the result `x` (exact, or rounded to odd): it is below the smallest normal number when it is rounded to the
/// format's precision whatever its exponent. So an H200 has it.
fn tiny(format: Format, mode: Mode, x: f64) -> bool {
    let away = match mode {
        Mode::Up => x > 0.0,
        Mode::Down => x < 0.0,
        _ => false,
    };
    let (least, unit) = (2f64.powi(format.least), 2f64.powi(format.least - format.precision as i32));
    match mode {
        Mode::Nearest | Mode::Away => x.abs() < least - unit / 2.0,
        _ if away => x.abs() <= least - unit,
        _ => x.abs() < least,
    }
}

/// What [`tiny`] asks for, of a result that rounds to the smallest normal f32: a product is exact, a quotient far from all other numbers.
fn odd(op: Arithmetic, a: f64, b: f64, c: f64) -> f64 {
    match op {
        Arithmetic::Mul => a * b,
        Arithmetic::Fma => add_odd(a * b, c),
        Arithmetic::Div => a / b,
        // Small sums are exact; reciprocals and roots are not as small.
        _ => f64::from(f32::MIN_POSITIVE),
    }
}

/// Saturation and flushing of an f32 result.
fn finish32(f: Flags, bits: u32) -> u64 {
    let bits = if f.sat { f32s::saturate(f32::from_bits(bits)).to_bits() } else { bits };
    flush(bits, f.ftz) as u64
}

/// `div.approx`: zero where the divisor is above 2^126.
pub fn div_approx(f: Flags, a: u64, b: u64, c: u64, d: u64) -> u64 {
    let huge = f32::from_bits(b as u32).abs();
    if huge > 2f32.powi(126) && huge.is_finite() && f32::from_bits(a as u32).is_finite() {
        return (a ^ b) & 0x8000_0000;
    }
    div_f32(f, a, b, c, d)
}

/// An approximated function of an f32.
fn approximate(f: Flags, a: u64, g: fn(f64) -> f64) -> u64 {
    f32s::output(g(f32s::input(a as u32, f.ftz) as f64) as f32, f.ftz) as u64
}

pub fn lg2(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    approximate(f, a, f64::log2)
}

pub fn sin(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    approximate(f, a, f64::sin)
}

pub fn cos(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    approximate(f, a, f64::cos)
}

pub fn tanh(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    approximate(f, a, f64::tanh)
}

/// `rcp.approx.ftz.f64` and, if `other`, `rsqrt.approx.ftz.f64`: the low word is ignored and zero in the result.
pub fn approximate64(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    let flush = |x: f64| if x.is_subnormal() { 0f64.copysign(x) } else { x };
    let x = flush(f64::from_bits(a & !0xffff_ffff));
    let y = flush(if f.other { 1.0 / x.sqrt() } else { 1.0 / x });
    if y.is_nan() { 0x7fff_ffff_0000_0000 } else { y.to_bits() & !0xffff_ffff }
}

/// `rsqrt.approx.f64`.
pub fn rsqrt_f64(_: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    (1.0 / f64::from_bits(a).sqrt()).to_bits()
}

/// The sign of the first on the magnitude of the second.
pub fn copysign(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let sign = 1 << (f.bits - 1);
    a & sign | b & (sign - 1)
}

fn format_of(f: Flags) -> Format {
    match (f.bits, f.other) {
        (64, _) => F64,
        (32, _) => F32,
        (_, true) => BF16,
        (_, false) => F16,
    }
}

/// The kinds of numbers of `testp`.
fn category(f: Flags, a: u64) -> std::num::FpCategory {
    if f.bits == 64 { f64::from_bits(a).classify() } else { f32::from_bits(a as u32).classify() }
}

pub fn is_finite(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    !matches!(category(f, a), std::num::FpCategory::Nan | std::num::FpCategory::Infinite) as u64
}

pub fn is_infinite(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    (category(f, a) == std::num::FpCategory::Infinite) as u64
}

pub fn is_number(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    (category(f, a) != std::num::FpCategory::Nan) as u64
}

pub fn is_nan(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    (category(f, a) == std::num::FpCategory::Nan) as u64
}

/// Zeros count as normal.
pub fn is_normal(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    matches!(category(f, a), std::num::FpCategory::Normal | std::num::FpCategory::Zero) as u64
}

pub fn is_subnormal(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    (category(f, a) == std::num::FpCategory::Subnormal) as u64
}

/// The smaller of two numbers in a format's bits, or the larger; see the module's source for NaN and signed zeros.
fn extreme(f: Flags, format: Format, larger: bool, a: u64, b: u64) -> u64 {
    let (sign, infinity) = (1u64 << format.sign, format.largest + 1);
    let clean = |x: u64| {
        let subnormal = x & (sign - 1) < 1 << (format.precision - 1);
        if f.ftz && subnormal { x & sign } else { x }
    };
    let (a, b) = (clean(a), clean(b));
    let nan = |x: u64| x & (sign - 1) > infinity;
    let signs = (a ^ b) & sign;
    let (a, b) = if f.sat { (a & !sign, b & !sign) } else { (a, b) };
    let key = |x: u64| if x & sign != 0 { -((x & (sign - 1)) as i64) - 1 } else { x as i64 };
    let x = match (nan(a), nan(b)) {
        (true, true) => format.nan,
        (true, false) | (false, true) if f.strict => format.nan,
        (true, false) => b,
        (false, true) => a,
        _ if (key(a) > key(b)) == larger => a,
        _ => b,
    };
    if f.sat && !nan(x) { x | signs } else { x }
}

/// Of the flags `strict` is `.NaN`, `sat` is `.xorsign.abs`, `other` is bf16.
pub fn min(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    extreme(f, format_of(f), false, a, b)
}

pub fn max(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    extreme(f, format_of(f), true, a, b)
}

pub fn min3(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    three(f, false, a, b, c)
}

pub fn max3(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    three(f, true, a, b, c)
}

/// Of three f32; `other` is `.abs`, of every operand.
fn three(f: Flags, larger: bool, a: u64, b: u64, c: u64) -> u64 {
    let [a, b, c] = [a, b, c].map(|x| if f.other { x & 0x7fff_ffff } else { x });
    extreme(f, F32, larger, extreme(f, F32, larger, a, b), c)
}

pub fn min_pair(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    pair(a, b, 0, |a, b, _| extreme(f, format_of(f), false, a, b))
}

pub fn max_pair(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    pair(a, b, 0, |a, b, _| extreme(f, format_of(f), true, a, b))
}

fn pair(a: u64, b: u64, c: u64, g: impl Fn(u64, u64, u64) -> u64) -> u64 {
    g(a & 0xffff, b & 0xffff, c & 0xffff) | g(a >> 16, b >> 16, c >> 16) << 16
}

/// A half-precision operand; `other` is bf16.
fn half(f: Flags, x: u64) -> f64 {
    let value =
        if f.other { f32::from_bits((x as u32) << 16) } else { f32::from_bits(f32s::from_f16(x as u32)) } as f64;
    if f.ftz && value.abs() < 2f64.powi(format_of(f).least) { 0f64.copysign(value) } else { value }
}

/// A half-precision result, rounded to nearest from one rounded to odd.
fn half_result(f: Flags, x: f64) -> u64 {
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
    let bits = narrow(x, format_of(f), f.mode);
    if f.ftz && tiny(format_of(f), f.mode, x) { bits & 0x8000 } else { bits }
}

macro_rules! half_functions {
    ($($name:ident $pair:ident |$a:ident, $b:ident, $c:ident| $value:expr;)*) => {$(
        pub fn $name(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
            let [$a, $b, $c] = [a, b, c].map(|x| half(f, x));
            half_result(f, $value)
        }

        pub fn $pair(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
            pair(a, b, c, |a, b, c| $name(f, a, b, c, 0))
        }
    )*};
}

half_functions! {
    add_half add_halves |a, b, _c| add_odd(a, b);
    sub_half sub_halves |a, b, _c| add_odd(a, -b);
    mul_half mul_halves |a, b, _c| a * b;
    fma_half fma_halves |a, b, c| add_odd(a * b, c);
    ex2_half ex2_halves |a, _b, _c| a.exp2();
    tanh_half tanh_halves |a, _b, _c| a.tanh();
}

/// Flips the sign; `.ftz` flushes. NaN becomes the canonical one, as on an H200.
pub fn neg_half(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    if is_nan_half(f, a) { format_of(f).nan } else { flush_half(f, a) ^ 0x8000 }
}

pub fn abs_half(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    if is_nan_half(f, a) { format_of(f).nan } else { flush_half(f, a) & 0x7fff }
}

fn is_nan_half(f: Flags, a: u64) -> bool {
    a & 0x7fff > format_of(f).largest + 1
}

pub fn neg_halves(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    pair(a, 0, 0, |a, _, _| neg_half(f, a, 0, 0, 0))
}

pub fn abs_halves(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    pair(a, 0, 0, |a, _, _| abs_half(f, a, 0, 0, 0))
}

fn flush_half(f: Flags, a: u64) -> u64 {
    let subnormal = a & 0x7fff < 1 << (format_of(f).precision - 1);
    if f.ftz && subnormal { a & 0x8000 } else { a }
}

pub fn neg64(_: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    a ^ 1 << 63
}

pub fn abs64(_: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    a & !(1 << 63)
}

/// How two numbers of the flags' format are ordered: bit 0 less, 1 equal, 2 greater, 3 unordered; `wide` is the mask of
/// those that make the comparison hold.
pub fn compare(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let x = |a: u64| match f.bits {
        64 => f64::from_bits(a),
        32 => f32s::input(a as u32, f.ftz) as f64,
        _ => half(f, a),
    };
    (f.wide & order(x(a).partial_cmp(&x(b))) != 0) as u64
}

/// The lower and, if `sat`, the upper halves compared.
pub fn compare_half(f: Flags, a: u64, b: u64, c: u64, d: u64) -> u64 {
    let shift = if f.sat { 16 } else { 0 };
    compare(f, a >> shift & 0xffff, b >> shift & 0xffff, c, d)
}

/// The bit of an ordering, as [`compare`] has them.
pub fn order(of: Option<std::cmp::Ordering>) -> u8 {
    match of {
        Some(std::cmp::Ordering::Less) => 1,
        Some(std::cmp::Ordering::Equal) => 2,
        Some(std::cmp::Ordering::Greater) => 4,
        None => 8,
    }
}

/// `slct`: `a` if `c` ≥ 0, else `b`; a NaN chooses `b`. `other`: `c` is an f32.
pub fn slct(f: Flags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    let first = if f.other { f32s::input(c as u32, f.ftz) >= 0.0 } else { c as u32 as i32 >= 0 };
    if first { a } else { b }
}
