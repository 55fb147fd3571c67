//! Kernels that each use one family of instructions, compared with results that the tests compute.

use crate::harness::check_every_run;

fn check(name: &str, buffer: usize, expected: impl Fn(u32) -> u32) {
    check_every_run("families", name, |ran| {
        let words = ran.buffer_words(buffer);
        let expected: Vec<u32> = (0..words.len() as u32).map(&expected).collect();
        assert_eq!(words, expected, "{name}");
    });
}

#[test]
fn narrow() {
    let byte = |t: u32| (0x80 + 5 * t) as u8;
    let half = |t: u32| (0x7ff0 + 3 * t) as u16;
    check("narrow", 1, |i| {
        let t = i % 32;
        let v = if i < 32 {
            byte(31 - t) as i8 as i32 + 1000 * byte(31 - t) as i32
        } else {
            half(31 - t) as i16 as i32 * 3 + half(t) as i32
        };
        v as u32
    });
}

#[test]
fn vectors() {
    check("vectors", 1, |i| {
        let (t, k) = (i / 4, i % 4);
        let v = |k: u32| (4 * t + k) as f32;
        let w = |k: u32| (4 * (31 - t) + k) as f32;
        // The kernel reads each pair of floats as one double, so the upper float holds the double's exponent.
        let exponent = ((2 * t + 1) as f32).to_bits() >> 20;
        [v(3) + w(0), v(2) + w(1), v(1), exponent as f32][k as usize].to_bits()
    });
}

#[test]
fn spaces() {
    let constants = [3, 1, 4, 1, 5, 9, 2, 6];
    check("spaces", 0, |t| {
        let (where_, v) = match t % 4 {
            0 => (1, 1000 + t),
            1 => (2, (0..8).find(|k| (k * 5 + t) & 7 == t % 8).unwrap() + t),
            2 => (4, 0),
            _ => (4, constants[t as usize % 8]),
        };
        v + 10000 * where_ + u32::from(t & 1 == 0)
    });
}

#[test]
fn by_value() {
    // The last eight bytes of the kernel's struct argument: five bytes of array `d`, one byte of padding, and the
    // 16-bit field `e`, which is 0.
    let rest = 434_543_264_257u64.to_le_bytes();
    let e = i16::from_le_bytes([rest[6], rest[7]]) as f32;
    check("by_value", 0, |t| if t < 4 { (-5.0 + 1.5 + 77.0 + rest[t as usize] as f32 + e).to_bits() } else { 0 });
}

#[test]
fn atomics() {
    let f32_bits = |v: f32| v.to_bits();
    check("atomics", 0, |i| match i {
        0 => (0..64).sum(),
        1 => 0u32.wrapping_sub(192),
        2 => (5i32 - 63) as u32,
        3 => 441,
        // atomicInc: the counter is incremented 64 times and wraps around from 9 to 0.
        4 => 64 % 10,
        5 => (0..64).fold(0, |v: u32, _| if v == 0 { 9 } else { v - 1 }),
        6 => 0,
        7 => (1 << 29) - 1,
        8 => (0..64u32).fold(0, |v, t| v ^ t.wrapping_mul(0x0101_0101)),
        9 => f32_bits(32.0),
        10 => 16f64.to_bits() as u32,
        11 => (16f64.to_bits() >> 32) as u32,
        13 => 64,
        14 => (63i64 << 33) as u32,
        15 => (63i64 << 33 >> 32) as u32,
        16 => 5,
        17 => 64,
        // A pair of f16: 1 is added 64 times to the upper half, 0.5 to the lower half; then a single f16, to which 0.5
        // is added. 64 and 32 are 0x5400 and 0x5000 in f16.
        18 => 0x5400_5000,
        19 => 0x5000,
        20 => 77,
        // Atomic float additions flush subnormal numbers to zero in global memory, but not in shared memory.
        21 => 0,
        22 => 96,
        _ => 0,
    });
}

#[test]
fn hopper() {
    let f = |v: f32| v.to_bits();
    check_every_run("families", "hopper", |ran| {
        let m = ran.buffer_words(0);
        assert_eq!(m[..8], [f(32.0), f(64.0), 0, 0, f(32.0), f(64.0), f(32.0), f(32.0)]);
        // The last word is a pair of bf16: 1 was added 32 times to the upper half, 0.5 to the lower half.
        assert_eq!(m[8..13], [5, 0, 5, 0, 0x4200_4180]);
        let expected: Vec<u32> = (0..32).map(|t| if t == 0 { 10 } else { 0 }).collect();
        assert_eq!(ran.buffer_words(1)[..32], expected);
    });
}

#[test]
fn shuffles() {
    check("shuffles", 0, |i| {
        let t = i % 32;
        100 + match i / 32 {
            0 => 5 * t % 32,
            1 => t & !7 | ((t + 3) % 8),
            2 => {
                if t < 3 {
                    t
                } else {
                    t - 3
                }
            }
            3 => {
                if t % 4 == 0 {
                    t
                } else {
                    t - 1
                }
            }
            4 => {
                if t + 5 > 31 {
                    t
                } else {
                    t + 5
                }
            }
            5 => {
                if t % 16 + 2 > 15 {
                    t
                } else {
                    t + 2
                }
            }
            6 => t ^ 9,
            // With a width of 8, `__shfl_xor_sync` can read lanes of earlier 8-lane segments, but not of later ones.
            _ => {
                if t ^ 12 > t | 7 {
                    t
                } else {
                    t ^ 12
                }
            }
        }
    });
}

#[test]
fn votes() {
    check("votes", 0, |i| {
        let t = i % 32;
        let lanes = |f: &dyn Fn(u32) -> bool| (0..32).filter(|&l| f(l)).fold(0u32, |m, l| m | 1 << l);
        match i / 32 {
            0 => lanes(&|l| l % 3 == 0).wrapping_add(1),
            1 => lanes(&|l| l % 5 == t % 5),
            2 => u32::MAX.wrapping_add(1),
            3 => lanes(&|l| l / 8 == t / 8),
            4 => 496,
            5 => -9i32 as u32,
            6 => (0..32).fold(0, |x, t| x ^ (t * t)),
            7 => 1u32.wrapping_add(u32::MAX.wrapping_mul(2)),
            8 => 0,
            _ => 0xffff + 32,
        }
    });
}

#[test]
fn integers() {
    check("integers", 0, |i| {
        let t = i % 32;
        let a = t.wrapping_mul(0x9e37_79b9);
        let b = a ^ a >> 7;
        let both = (b as u64) << 32 | a as u64;
        match i / 32 {
            0 => {
                let selector = 0x5a30 + t;
                let byte = |k: u32| {
                    let s = selector >> (4 * k) & 7;
                    (both >> (8 * s)) as u32 & 0xff
                };
                (0..4).fold(0, |v, k| v | byte(k) << (8 * k))
            }
            1 => {
                let left = (both << (t & 31) >> 32) as u32;
                let right = (both >> (t + 5).min(32)) as u32;
                left ^ right
            }
            2 => {
                (a >> t).leading_zeros()
                    + 100 * if a == 0 { 0 } else { a.trailing_zeros() + 1 }
                    + 10000 * b.count_ones()
            }
            3 => a.reverse_bits(),
            4 => ((a as u64 * b as u64) >> 32) as u32,
            5 => ((((a as i64) << 30) as i128 * ((b as i64) << 29) as i128) >> 64) as u32,
            6 => (0..4).fold(5, |v, k| v + (a >> (8 * k) & 0xff) * (b >> (8 * k) & 0xff)),
            7 => (a as i32 as i64 - b as i32 as i64).unsigned_abs() as u32 + 3,
            8 => ((a as i32 / (t as i32 + 3)) as u32).wrapping_add(a % (t + 7)),
            _ => (a.wrapping_add(b) & 0xffff) | ((a >> 16).wrapping_add(b >> 16) & 0xffff) << 16,
        }
    });
}

#[test]
fn prints() {
    check_every_run("families", "prints", |ran| {
        let expected = "-3|   42|ff  |text|q|%|-5000000000|0003.142|1.234568e+04|0.5\n";
        assert_eq!(ran.outcome.printed, expected);
    });
}

#[test]
fn heap() {
    check("heap", 0, |t| (0..=t).sum());
}

#[test]
fn clocks() {
    check("clocks", 0, |_| 1);
}
