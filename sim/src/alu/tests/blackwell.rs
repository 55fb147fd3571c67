//! Tests of the instructions that sm_100 introduced: packed f32, mixed precision, and narrow formats.

use super::{check_instruction, register_operands, run_instruction};

/// Returns the bits of an f32 result; any NaN becomes the canonical NaN.
fn f32_bits(x: f32) -> u64 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() as u64 }
}

/// Returns the low and the high half of a 64-bit register as f32.
fn halves(x: u64) -> [f32; 2] {
    [x as u32, (x >> 32) as u32].map(f32::from_bits)
}

/// Runs an instruction with the same sources in every lane and returns the result of one lane.
fn one_lane(opcode: &str, sources: &[u64]) -> u64 {
    run_instruction(opcode, &register_operands(1 + sources.len()), &[], &mut |i| sources[i]).results[0][0]
}

#[test]
fn pairs_of_f32_are_computed_half_by_half() {
    type Binary = fn(f32, f32) -> f32;
    let operations: [(&str, Binary); 3] = [("add", |a, b| a + b), ("sub", |a, b| a - b), ("mul", |a, b| a * b)];
    for (name, f) in operations {
        check_instruction(&format!("{name}.f32x2"), 2, |s| {
            let ([a, b], [c, d]) = (halves(s[0]), halves(s[1]));
            f32_bits(f(a, c)) | f32_bits(f(b, d)) << 32
        });
    }
    check_instruction("fma.rn.f32x2", 3, |s| {
        let [a, b, c] = [0, 1, 2].map(|i| halves(s[i]));
        f32_bits(a[0].mul_add(b[0], c[0])) | f32_bits(a[1].mul_add(b[1], c[1])) << 32
    });
    // With other modes and with `.ftz`, each half is what the instruction of one f32 computes.
    for (name, sources) in [("add", 2), ("sub", 2), ("mul", 2), ("fma", 3)] {
        for mode in ["rn", "rz", "rm", "rp", "rn.ftz", "rz.ftz", "rp.ftz"] {
            check_instruction(&format!("{name}.{mode}.f32x2"), sources, |s| {
                let half = |shift: u32| {
                    let sources: Vec<u64> = s.iter().map(|x| x >> shift).collect();
                    one_lane(&format!("{name}.{mode}.f32"), &sources)
                };
                half(0) | half(32) << 32
            });
        }
    }
}

#[test]
fn mixed_precision_widens_before_it_computes() {
    type Widen = fn(u64) -> f32;
    let types: [(&str, Widen); 2] =
        [("f16", |x| half::f16::from_bits(x as u16).to_f32()), ("bf16", |x| half::bf16::from_bits(x as u16).to_f32())];
    let single = |x: u64| f32::from_bits(x as u32);
    for (name, widen) in types {
        check_instruction(&format!("add.f32.{name}"), 2, |s| f32_bits(widen(s[0]) + single(s[1])));
        check_instruction(&format!("sub.rn.f32.{name}"), 2, |s| f32_bits(widen(s[0]) - single(s[1])));
        check_instruction(&format!("fma.rn.f32.{name}"), 3, |s| {
            f32_bits(widen(s[0]).mul_add(widen(s[1]), single(s[2])))
        });
        // With other modes, the result is that of the f32 instruction.
        for (opcode, mode) in [("add", "rz"), ("sub", "rp"), ("add", "rm.sat"), ("sub", "rn.sat")] {
            check_instruction(&format!("{opcode}.{mode}.f32.{name}"), 2, |s| {
                one_lane(&format!("{opcode}.{mode}.f32"), &[widen(s[0]).to_bits() as u64, s[1]])
            });
        }
    }
}

/// A narrow format: its name in PTX, the bits of exponent and fraction, and the bias of the exponent.
const FORMATS: [(&str, u32, u32, i32); 5] =
    [("e2m1x2", 2, 1, 1), ("e2m3x2", 2, 3, 1), ("e3m2x2", 3, 2, 3), ("e4m3x2", 4, 3, 7), ("e5m2x2", 5, 2, 15)];

/// Returns the value of each bit pattern without a sign. fp8 has NaN, and e5m2 infinity, at the end.
fn magnitudes((name, exponent_bits, fraction_bits, bias): (&str, u32, u32, i32)) -> Vec<f64> {
    let value = |bits: u32| {
        let (exponent, fraction) = ((bits >> fraction_bits) as i32, bits & ((1 << fraction_bits) - 1));
        let unit = fraction as f64 / (1 << fraction_bits) as f64;
        match (name, exponent) {
            ("e4m3x2", 15) if fraction == 7 => f64::NAN,
            ("e5m2x2", 31) if fraction == 0 => f64::INFINITY,
            ("e5m2x2", 31) => f64::NAN,
            (_, 0) => unit * 2f64.powi(1 - bias),
            _ => (1.0 + unit) * 2f64.powi(exponent - bias),
        }
    };
    (0..1 << (exponent_bits + fraction_bits)).map(value).collect()
}

/// Returns the bits of the number nearest to `x` (in a tie the even one), or of the largest finite one.
fn nearest(x: f64, all: &[f64]) -> u64 {
    let sign = u64::from(x.is_sign_negative()) * all.len() as u64;
    let finite = all.iter().take_while(|v| v.is_finite()).count();
    match x {
        x if x.is_nan() && finite == all.len() => all.len() as u64 - 1,
        x if x.is_nan() => 0x7f,
        x if x.abs() > all[finite - 1] => sign + finite as u64 - 1,
        x => {
            let distance = |i: &usize| ((all[*i] - x.abs()).abs(), i % 2);
            let best = (0..finite).min_by(|i, j| distance(i).partial_cmp(&distance(j)).unwrap()).unwrap();
            sign + best as u64
        }
    }
}

/// Returns the value of a half-precision number.
fn half_value(name: &str, bits: u64) -> f64 {
    match name {
        "f16x2" => half::f16::from_bits(bits as u16).to_f64(),
        _ => half::bf16::from_bits(bits as u16).to_f64(),
    }
}

#[test]
fn narrow_formats_round_to_the_nearest_number() {
    for format in FORMATS {
        let (name, all) = (format.0, magnitudes(format));
        let shift = if name == "e2m1x2" { 4 } else { 8 };
        for relu in ["", ".relu"] {
            let one = |x: f64| if !relu.is_empty() && x <= 0.0 { 0 } else { nearest(x, &all) };
            check_instruction(&format!("cvt.rn.satfinite{relu}.{name}.f32"), 2, |s| {
                let [a, b] = [s[0], s[1]].map(|x| f32::from_bits(x as u32) as f64);
                one(b) | one(a) << shift
            });
            for from in ["f16x2", "bf16x2"] {
                check_instruction(&format!("cvt.rn.satfinite{relu}.{name}.{from}"), 1, |s| {
                    one(half_value(from, s[0])) | one(half_value(from, s[0] >> 16)) << shift
                });
            }
        }
        for to in ["f16x2", "bf16x2"] {
            check_instruction(&format!("cvt.rn.{to}.{name}"), 1, |s| {
                let one = |bits: u64| {
                    let index = bits as usize % all.len();
                    let value = if (bits as usize / all.len()) & 1 != 0 { -all[index] } else { all[index] };
                    match to {
                        _ if value.is_nan() => 0x7fff,
                        "f16x2" => half::f16::from_f64(value).to_bits() as u64,
                        _ => half::bf16::from_f64(value).to_bits() as u64,
                    }
                };
                one(s[0]) | one(s[0] >> shift) << 16
            });
        }
    }
}

#[test]
fn powers_of_two_round_the_magnitude() {
    let power = |e: i32| 2f64.powi(e - 127);
    // The largest power that is not above `x` or, rounded up, the smallest that is not below it.
    let expected = |x: f32, up: bool, finite: bool| {
        let x = (x as f64).abs();
        let below = (0..=254).rev().find(|e| power(*e) <= x).unwrap_or(0);
        let bits = match x {
            x if x.is_nan() => return 255,
            x if x.is_infinite() => 255,
            x if up && power(below) < x => below + 1,
            _ => below,
        };
        (if finite { bits.min(254) } else { bits }) as u64
    };
    for (mode, up) in [("rz", false), ("rp", true)] {
        for (finite, suffix) in [(false, ""), (true, ".satfinite")] {
            let one = |bits: u64| expected(f32::from_bits(bits as u32), up, finite);
            check_instruction(&format!("cvt.{mode}{suffix}.ue8m0x2.f32"), 2, |s| one(s[1]) | one(s[0]) << 8);
            check_instruction(&format!("cvt.{mode}{suffix}.ue8m0x2.bf16x2"), 1, |s| {
                one(s[0] << 16 & 0xffff_0000) | one(s[0] & 0xffff_0000) << 8
            });
        }
    }
    check_instruction("cvt.rn.bf16x2.ue8m0x2", 1, |s| {
        let one = |bits: u64| match bits & 0xff {
            255 => 0x7fff,
            e => half::bf16::from_f64(power(e as i32)).to_bits() as u64,
        };
        one(s[0]) | one(s[0] >> 8) << 16
    });
}
