//! Tests rounding by its definition: the format has no number nearer to the exact value, on the side that the rounding
//! mode requires.

use super::{Random, check_instruction, check_instruction_with, register_operands};
use crate::alu::soft_float::{
    BF16, E4M3, E5M2, ExactFloat, F16, F32, F64, FloatFormat, RoundingMode, TF32, decode_float, encode_float,
};

const MODES: [(&str, RoundingMode); 4] =
    [("rn", RoundingMode::Nearest), ("rz", RoundingMode::Zero), ("rm", RoundingMode::Down), ("rp", RoundingMode::Up)];

/// Returns all finite values of a 16- or 8-bit format, ascending, with their bits.
fn values(format: FloatFormat) -> Vec<(f64, u64)> {
    let mut all: Vec<(f64, u64)> = (0..=format.max_finite).map(|bits| (decode_float(bits, format), bits)).collect();
    let negative = all.iter().skip(1).map(|(v, bits)| (-v, bits | 1 << format.sign_bit)).rev();
    let mut out: Vec<_> = negative.collect();
    out.append(&mut all);
    out
}

/// Returns the bits of `x`, rounded by a search among all values of the format; `None` on overflow.
fn searched(all: &[(f64, u64)], x: f64, mode: RoundingMode) -> Option<u64> {
    let at = all.partition_point(|(v, _)| *v <= x);
    if at == 0 || at == all.len() && all[at - 1].0 != x {
        return None;
    }
    let (down, up) = (all[at - 1], all[at.min(all.len() - 1)]);
    let sign_of_zero = |bits: u64| if bits == 0 && x < 0.0 { sign_mask(all) } else { bits };
    if down.0 == x {
        return Some(down.1);
    }
    let (below, above) = (x - down.0, up.0 - x);
    let away = if x > 0.0 { up } else { down };
    let toward = if x > 0.0 { down } else { up };
    let chosen = match mode {
        RoundingMode::Nearest if below == above => {
            if down.1 & 1 == 0 {
                down
            } else {
                up
            }
        }
        RoundingMode::Away if below == above => away,
        RoundingMode::Nearest | RoundingMode::Away => {
            if below < above {
                down
            } else {
                up
            }
        }
        RoundingMode::Zero => toward,
        RoundingMode::Down => down,
        RoundingMode::Up => up,
    };
    Some(sign_of_zero(chosen.1))
}

/// Returns the sign bit of the format: the top bit of the most negative value.
fn sign_mask(all: &[(f64, u64)]) -> u64 {
    1 << (63 - all[0].1.leading_zeros())
}

#[test]
fn narrow_formats_round_to_the_right_neighbour() {
    let mut random = Random(7);
    for format in [F16, BF16, E4M3, E5M2] {
        let all = values(format);
        for mode in
            [RoundingMode::Nearest, RoundingMode::Away, RoundingMode::Zero, RoundingMode::Down, RoundingMode::Up]
        {
            for _ in 0..20_000 {
                // Tests representable values, midpoints between neighbouring values, and points close to both.
                let i = random.next() as usize % (all.len() - 1);
                let part = [0.0, 0.5, 0.5 - 1e-9, 0.5 + 1e-9, 1e-9, 0.3][random.next() as usize % 6];
                let x = all[i].0 + (all[i + 1].0 - all[i].0) * part;
                if let Some(expected) = searched(&all, x, mode).filter(|_| x != 0.0) {
                    assert_eq!(encode_float(x, format, mode), expected, "{x} to {format:?} {mode:?}");
                }
            }
        }
    }
}

#[test]
fn overflow_depends_on_the_rounding_mode() {
    let beyond = [(F16, 65520.0), (BF16, 3.4e38), (F32, 3.5e38)];
    for (format, x) in beyond {
        let (infinity, largest, sign) = (format.max_finite + 1, format.max_finite, 1 << format.sign_bit);
        assert_eq!(encode_float(x, format, RoundingMode::Nearest), infinity);
        assert_eq!(encode_float(x, format, RoundingMode::Zero), largest);
        assert_eq!(encode_float(x, format, RoundingMode::Down), largest);
        assert_eq!(encode_float(x, format, RoundingMode::Up), infinity);
        assert_eq!(encode_float(-x, format, RoundingMode::Down), infinity | sign);
        assert_eq!(encode_float(-x, format, RoundingMode::Up), largest | sign);
    }
    assert_eq!(encode_float(65519.99, F16, RoundingMode::Nearest), 0x7bff);
}

#[test]
fn soft_float_to_nearest_equals_the_processor() {
    let mut random = Random(11);
    for _ in 0..200_000 {
        let [a, b, c] = [0; 3].map(|_| f32::from_bits(random.random_or_edge_case() as u32));
        let finite = a.is_finite() && b.is_finite() && c.is_finite();
        if !finite {
            continue;
        }
        let [x, y, z] = [a, b, c].map(|v| ExactFloat::from_f64(v as f64));
        let same = |exact: ExactFloat, native: f32, what: &str| {
            if !exact.is_zero() {
                assert_eq!(
                    exact.round_to_format(F32, RoundingMode::Nearest),
                    native.to_bits() as u64,
                    "{what} of {a} {b} {c}"
                );
            }
        };
        same(x.plus(y), a + b, "sum");
        same(x.times(y), a * b, "product");
        same(x.times(y).plus(z), a.mul_add(b, c), "fused");
        if b != 0.0 && a != 0.0 {
            same(x.divided_by(y), a / b, "quotient");
        }
        if a > 0.0 {
            same(x.sqrt(), a.sqrt(), "root");
        }
        let [p, q, s] = [0; 3].map(|_| f64::from_bits(random.next()));
        if p.is_finite() && q.is_finite() && s.is_finite() {
            let fused = ExactFloat::from_f64(p).times(ExactFloat::from_f64(q)).plus(ExactFloat::from_f64(s));
            assert_eq!(fused.round_to_format(F64, RoundingMode::Nearest), p.mul_add(q, s).to_bits());
            assert_eq!(
                ExactFloat::from_f64(p).divided_by(ExactFloat::from_f64(q)).round_to_format(F64, RoundingMode::Nearest),
                (p / q).to_bits()
            );
            assert_eq!(
                ExactFloat::from_f64(p.abs()).sqrt().round_to_format(F64, RoundingMode::Nearest),
                p.abs().sqrt().to_bits()
            );
        }
    }
}

#[test]
fn directed_f32_arithmetic_brackets_the_exact_result() {
    // f64 holds the product of two f32 exactly, so the comparison with the f64 product is exact.
    for (mode, _) in &MODES[1..] {
        check_instruction_with(
            &format!("mul.{mode}.f32"),
            &register_operands(3),
            &[],
            &mut |r, _| r.next() & 0xbfff_ffff | 0x2000_0000,
            |s| {
                let [a, b] = [s[0], s[1]].map(|x| f32::from_bits(x as u32) as f64);
                let near = (a * b) as f32;
                let ok = |y: f32| match *mode {
                    "rz" => (y as f64).abs() <= (a * b).abs(),
                    "rm" => y as f64 <= a * b,
                    _ => y as f64 >= a * b,
                };
                let candidates = [near.next_down(), near, near.next_up()];
                let best = candidates
                    .into_iter()
                    .filter(|y| ok(*y))
                    .min_by(|y, z| (*y as f64 - a * b).abs().total_cmp(&(*z as f64 - a * b).abs()));
                vec![best.expect("one of three neighbours").to_bits() as u64]
            },
        );
    }
    // A sum that cancels exactly is −0 only when rounding down.
    for (mode, zero) in [("rn", 0), ("rz", 0), ("rm", 0x8000_0000), ("rp", 0)] {
        let operands = register_operands(3);
        check_instruction_with(&format!("sub.{mode}.f32"), &operands, &[], &mut |_, _| 0x3f80_0000, |_| vec![zero]);
    }
}

#[test]
fn half_arithmetic_rounds_once() {
    for (name, format) in [("f16", F16), ("bf16", BF16)] {
        let exact = |s: &[u64]| {
            let [a, b, c] = [0, 1, 2].map(|i| decode_float(s.get(i).copied().unwrap_or(0) & 0xffff, format));
            (a, b, c)
        };
        let round = |w: ExactFloat, native: f64| {
            if native.is_finite() && !w.is_zero() {
                w.round_to_format(format, RoundingMode::Nearest)
            } else {
                encode_float(native, format, RoundingMode::Nearest)
            }
        };
        check_instruction(&format!("fma.rn.{name}"), 3, |s| {
            let (a, b, c) = exact(s);
            let native = a.mul_add(b, c);
            let finite = a.is_finite() && b.is_finite() && c.is_finite();
            let w = if finite {
                ExactFloat::from_f64(a).times(ExactFloat::from_f64(b)).plus(ExactFloat::from_f64(c))
            } else {
                ExactFloat::from_integer(0)
            };
            round(w, native)
        });
        check_instruction(&format!("add.{name}"), 2, |s| {
            let (a, b, _) = exact(s);
            let w = if a.is_finite() && b.is_finite() {
                ExactFloat::from_f64(a).plus(ExactFloat::from_f64(b))
            } else {
                ExactFloat::from_integer(0)
            };
            round(w, a + b)
        });
        check_instruction(&format!("mul.{name}x2"), 2, |s| {
            let one = |i: u32| {
                let (a, b) = (decode_float(s[0] >> i & 0xffff, format), decode_float(s[1] >> i & 0xffff, format));
                encode_float(a * b, format, RoundingMode::Nearest)
            };
            one(0) | one(16) << 16
        });
        check_instruction(&format!("fma.rn.relu.{name}"), 3, |s| {
            let (a, b, c) = exact(s);
            let y = a.mul_add(b, c);
            let w = if y.is_finite() {
                ExactFloat::from_f64(a).times(ExactFloat::from_f64(b)).plus(ExactFloat::from_f64(c))
            } else {
                ExactFloat::from_integer(0)
            };
            if y <= 0.0 { 0 } else { round(w, y) }
        });
    }
}

#[test]
fn fp8_round_trips() {
    for (name, format) in [("e4m3x2", E4M3), ("e5m2x2", E5M2)] {
        let halves = format!("cvt.rn.f16x2.{name}");
        check_instruction(&halves, 1, |s| {
            let one = |b: u64| {
                let v = reference8(b, format);
                if v.is_nan() { 0x7fff } else { half::f16::from_f64(v).to_bits() as u64 }
            };
            one(s[0] & 0xff) | one(s[0] >> 8 & 0xff) << 16
        });
        let all = values(format);
        for from in ["f32", "f16x2"] {
            let opcode = format!("cvt.rn.satfinite.{name}.{from}");
            check_instruction(&opcode, if from == "f32" { 2 } else { 1 }, |s| {
                let x: [f64; 2] = match from {
                    "f32" => [f32::from_bits(s[1] as u32) as f64, f32::from_bits(s[0] as u32) as f64],
                    _ => [s[0] & 0xffff, s[0] >> 16].map(|h| half::f16::from_bits(h as u16).to_f64()),
                };
                let one = |x: f64| match searched(&all, x, RoundingMode::Nearest) {
                    _ if x.is_nan() => 0x7f,
                    _ if x == 0.0 => (x.is_sign_negative() as u64) << 7,
                    None => format.max_finite | ((x < 0.0) as u64) << 7,
                    Some(bits) => bits,
                };
                one(x[0]) | one(x[1]) << 8
            });
        }
    }
    // All 256 bit patterns of fp8 survive the conversion to f16 and back (a NaN becomes the canonical NaN).
    for byte in 0..256u64 {
        for format in [E4M3, E5M2] {
            let value = decode_float(byte, format);
            let reference = reference8(byte, format);
            assert!(value == reference || value.is_nan() && reference.is_nan(), "{byte:x} of {format:?}");
            if value.is_finite() {
                assert_eq!(encode_float(value, format, RoundingMode::Nearest), byte);
            }
        }
    }
}

/// Computes the value of an fp8 number from its fields: sign, exponent, fraction.
fn reference8(b: u64, format: FloatFormat) -> f64 {
    let (exponent_bits, fraction_bits, bias) = if format == E4M3 { (4, 3, 7) } else { (5, 2, 15) };
    let (e, f) = ((b >> fraction_bits & ((1 << exponent_bits) - 1)) as i32, b & ((1 << fraction_bits) - 1));
    let unit = f as f64 / (1 << fraction_bits) as f64;
    let top = e == (1 << exponent_bits) - 1;
    let magnitude = match (format == E4M3, top) {
        (true, true) if f == 7 => f64::NAN,
        (false, true) => {
            if f == 0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        _ if e == 0 => unit * 2f64.powi(1 - bias),
        _ => (1.0 + unit) * 2f64.powi(e - bias),
    };
    if b & 0x80 != 0 { -magnitude } else { magnitude }
}

#[test]
fn tf32_keeps_ten_bits() {
    check_instruction("cvt.rna.tf32.f32", 1, |s| {
        let x = s[0] as u32;
        // `.rna` adds half a unit in the last place of tf32 to the magnitude. Infinity stays infinity; a NaN is
        // truncated.
        if f32::from_bits(x).is_finite() {
            (x.wrapping_add(0x1000) & 0xffff_e000) as u64
        } else {
            (x & 0xffff_e000) as u64
        }
    });
    assert_eq!(encode_float(1.0, TF32, RoundingMode::Nearest) << 13, 0x3f80_0000);
}

#[test]
fn halves_widen_and_narrow_as_the_half_crate_does() {
    for bits in 0..=u16::MAX {
        let x = half::f16::from_bits(bits);
        let expected = if x.is_nan() { 0x7fff_ffff } else { x.to_f32().to_bits() };
        assert_eq!(crate::alu::f32_math::f16_to_f32(bits as u32), expected);
        assert!(x.is_nan() || decode_float(bits as u64, F16) == x.to_f64());
        let b = half::bf16::from_bits(bits);
        assert!(b.is_nan() || decode_float(bits as u64, BF16) == b.to_f64());
    }
    let narrowed = |x: u64| {
        let x = f32::from_bits(x as u32);
        if x.is_nan() { 0x7fff } else { half::f16::from_f32_const(x).to_bits() as u64 }
    };
    check_instruction("cvt.rn.f16.f32", 1, |s| narrowed(s[0]));
    check_instruction("cvt.rn.f16x2.f32", 2, |s| narrowed(s[0]) << 16 | narrowed(s[1]));
    check_instruction_with(
        "cvt.rn.f16x2.f32",
        &register_operands(3),
        &[],
        &mut |r, _| r.next() & 0x8fff_ffff | 0x3000_0000,
        |s| vec![narrowed(s[0]) << 16 | narrowed(s[1])],
    );
}
