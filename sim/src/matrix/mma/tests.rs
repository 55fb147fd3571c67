//! Compares every form of `mma` with a naive f64 product that uses the fragment tables of the PTX ISA.

// The code indexes by row and column, as the tables of the PTX ISA do.
#![allow(clippy::needless_range_loop)]

use super::*;
use crate::matrix::Lanes;
use crate::matrix::format::unpack_to_f32;
use crate::test_random::Random;

/// Returns the opcode of every dense form.
fn forms() -> Vec<String> {
    let mut forms = Vec::new();
    for k in [8, 16] {
        forms.push(format!("mma.sync.aligned.m16n8k{k}.row.col.f32.bf16.bf16.f32"));
        for c in ["f16", "f32"] {
            forms.push(format!("mma.sync.aligned.m16n8k{k}.row.col.{c}.f16.f16.{c}"));
        }
    }
    for k in [4, 8] {
        forms.push(format!("mma.sync.aligned.m16n8k{k}.row.col.f32.tf32.tf32.f32"));
    }
    for shape in ["m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"] {
        forms.push(format!("mma.sync.aligned.{shape}.row.col.f64.f64.f64.f64"));
    }
    for a in ["e4m3", "e5m2"] {
        for b in ["e4m3", "e5m2"] {
            for c in ["f16", "f32"] {
                for k in [16, 32] {
                    forms.push(format!("mma.sync.aligned.m16n8k{k}.row.col.{c}.{a}.{b}.{c}"));
                }
            }
        }
    }
    for saturate in ["", ".satfinite"] {
        for signs in [("s", "s"), ("s", "u"), ("u", "s"), ("u", "u")] {
            for (bits, shapes) in [(8, ["m8n8k16", "m16n8k16", "m16n8k32"]), (4, ["m8n8k32", "m16n8k32", "m16n8k64"])] {
                for shape in shapes {
                    let (a, b) = signs;
                    forms.push(format!("mma.sync.aligned.{shape}.row.col{saturate}.s32.{a}{bits}.{b}{bits}.s32"));
                }
            }
        }
    }
    for shape in ["m8n8k128", "m16n8k128", "m16n8k256"] {
        for op in ["xor", "and"] {
            forms.push(format!("mma.sync.aligned.{shape}.row.col.s32.b1.b1.s32.{op}.popc"));
        }
    }
    forms
}

fn run(op: &MmaOp, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
    let [a, b, c] = [a, b, c].map(|rows| rows.iter().collect::<Vec<_>>());
    op.multiply_add(&a, &b, &c, d);
}

/// Returns (row, column) of element `i` of A in a lane, from the ISA's section for each shape and type.
fn a_place(op: &MmaOp, lane: usize, i: usize) -> (usize, usize) {
    let (g, t) = (lane / 4, lane % 4);
    let low = |yes: bool| if yes { g } else { g + 8 };
    match (op.a.bits(), op.m, op.k) {
        (64, 8, 4) => (g, t),
        (64 | 32, _, 4) => (low(i == 0), t),
        (64 | 32, _, 8) => (low(i == 0 || i == 2), if i < 2 { t } else { t + 4 }),
        (64, _, _) => (low(i & 1 == 0), if i & 1 == 0 { 2 * i + t } else { 2 * i - 2 + t }),
        (16, _, 8) => (low(i < 2), 2 * t + (i & 1)),
        (16, _, _) => (low(i < 2 || (4..6).contains(&i)), 2 * t + (i & 1) + if i < 4 { 0 } else { 8 }),
        (8, 8, _) => (g, 4 * t + i),
        (8, _, 16) => (low(i < 4), 4 * t + (i & 3)),
        (8, _, _) => (low(i < 4 || (8..12).contains(&i)), 4 * t + (i & 3) + if i < 8 { 0 } else { 16 }),
        (4, 8, _) => (g, 8 * t + i),
        (4, _, 32) => (low(i < 8), 8 * t + (i & 7)),
        (4, _, _) => (low(i < 8 || (16..24).contains(&i)), 8 * t + (i & 7) + if i < 16 { 0 } else { 32 }),
        (1, 8, _) => (g, 32 * t + i),
        (1, _, 128) => (low(i < 32), 32 * t + (i & 31)),
        _ => (low(i < 32 || (64..96).contains(&i)), 32 * t + (i & 31) + if i < 64 { 0 } else { 128 }),
    }
}

/// Returns (row, column) of element `i` of B in a lane.
fn b_place(op: &MmaOp, lane: usize, i: usize) -> (usize, usize) {
    let (g, t) = (lane / 4, lane % 4);
    let row = match op.a.bits() {
        64 | 32 => t + 4 * i,
        16 => 2 * t + (i & 1) + if i < 2 { 0 } else { 8 },
        8 => 4 * t + (i & 3) + if i < 4 { 0 } else { 16 },
        4 => 8 * t + (i & 7) + if i < 8 { 0 } else { 32 },
        _ => 32 * t + (i & 31) + if i < 32 { 0 } else { 128 },
    };
    (row, g)
}

/// Returns (row, column) of value `i` of C and D in a lane.
fn c_place(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + 8 * (i >> 1), 2 * (lane % 4) + (i & 1))
}

#[test]
fn undefined_registers_spread_along_rows_of_a_and_columns_of_b() {
    let mut random = Random(7);
    for opcode in forms() {
        let op = MmaOp::decode(&opcode).unwrap();
        let counts = op.registers_per_lane();
        let per_register = |bits: u32| if op.a == ElementFormat::F64 { 1 } else { 32 / bits as usize };
        let values = if op.accumulator == AccumulatorFormat::F16 { 2 } else { 1 };
        // Returns the undefined lanes of each register of an operand: one lane of one register, or none.
        let mut one_lane = |count: usize| {
            let mut masks = vec![0u32; count];
            masks[random.next() as usize % count] = 1u32.wrapping_shl(random.next()) & random.next();
            masks
        };
        for _ in 0..8 {
            let (a, b, c) = (one_lane(counts.a), one_lane(counts.b), one_lane(counts.c));
            let places = |masks: &[u32], per: usize, place: &dyn Fn(usize, usize) -> (usize, usize)| {
                let mut found = Vec::new();
                for (register, &lanes) in masks.iter().enumerate() {
                    for lane in (0..32).filter(|lane| lanes >> lane & 1 != 0) {
                        found.extend((register * per..(register + 1) * per).map(|i| place(lane, i)));
                    }
                }
                found
            };
            let of_a = places(&a, per_register(op.a.bits()), &|lane, i| a_place(&op, lane, i));
            let of_b = places(&b, per_register(op.b.bits()), &|lane, i| b_place(&op, lane, i));
            let of_c = places(&c, values, &c_place);
            let depends = |place: (usize, usize)| {
                of_a.iter().any(|a| a.0 == place.0) || of_b.iter().any(|b| b.1 == place.1) || of_c.contains(&place)
            };
            let expected: Vec<u32> = (0..counts.c)
                .map(|r| {
                    let bad = |lane: &usize| (r * values..(r + 1) * values).any(|i| depends(c_place(*lane, i)));
                    (0..32).filter(bad).fold(0, |lanes, lane| lanes | 1 << lane)
                })
                .collect();
            assert_eq!(op.undefined_results(&a, &b, &c), expected, "{opcode}");
        }
    }
}

/// Returns the bits of element `i` of a fragment in one lane.
fn element_bits(rows: &[Lanes], bits: usize, lane: usize, i: usize) -> u64 {
    if bits == 64 {
        let words = rows[2 * i..2 * i + 2].as_flattened();
        return words[2 * lane] as u64 | (words[2 * lane + 1] as u64) << 32;
    }
    let per = 32 / bits;
    (rows[i / per][lane] as u64) >> (bits * (i % per)) & ((1u64 << bits) - 1)
}

fn e4m3(bits: u32) -> f64 {
    let mut out = [[0.0; 1]; 4];
    unpack_to_f32(ElementFormat::E4m3, &[bits], &mut out);
    out[0][0] as f64
}

fn value(element: ElementFormat, bits: u64) -> f64 {
    match element {
        ElementFormat::F64 => f64::from_bits(bits),
        ElementFormat::Tf32 => f32::from_bits(bits as u32 & 0xffff_e000) as f64,
        ElementFormat::Bf16 => half::bf16::from_bits(bits as u16).to_f64(),
        ElementFormat::F16 => half::f16::from_bits(bits as u16).to_f64(),
        ElementFormat::E5m2 => half::f16::from_bits((bits as u16) << 8).to_f64(),
        ElementFormat::E4m3 => e4m3(bits as u32),
        ElementFormat::S8 => bits as u8 as i8 as f64,
        ElementFormat::U8 | ElementFormat::U4 | ElementFormat::B1 => bits as f64,
        ElementFormat::S4 => ((bits << 60) as i64 >> 60) as f64,
    }
}

/// Returns the bits of a finite number of moderate size: the naive sum is then accurate, and its rounding
/// unambiguous.
fn random_element(element: ElementFormat, random: &mut Random) -> u64 {
    let small = (random.next() % 33) as f32 / 4.0 - 4.0;
    match element {
        ElementFormat::F64 => (small as f64 + random.next() as f64 * 1e-12).to_bits(),
        // The low bits of tf32 are random, because the product must ignore them.
        ElementFormat::Tf32 => (small.to_bits() | random.next() & 0x1fff) as u64,
        ElementFormat::Bf16 => half::bf16::from_f32(small).to_bits() as u64,
        ElementFormat::F16 => half::f16::from_f32(small).to_bits() as u64,
        ElementFormat::E5m2 => (half::f16::from_f32(small).to_bits() >> 8) as u64,
        ElementFormat::E4m3 => ((random.next() % 0x50) | (random.next() & 0x80)) as u64,
        _ => random.next() as u64 & ((1 << element.bits()) - 1),
    }
}

fn fill(element: ElementFormat, rows: usize, random: &mut Random) -> Vec<Lanes> {
    let mut out = vec![[0; 32]; rows];
    let bits = element.bits() as usize;
    if bits == 64 {
        for pair in out.chunks_exact_mut(2) {
            for word in pair.as_flattened_mut().chunks_exact_mut(2) {
                let value = random_element(element, random);
                word.copy_from_slice(&[value as u32, (value >> 32) as u32]);
            }
        }
        return out;
    }
    for word in out.as_flattened_mut() {
        for slot in 0..32 / bits {
            *word |= (random_element(element, random) as u32) << (bits * slot);
        }
    }
    out
}

fn naive_matrix(op: &MmaOp, rows: &[Lanes], is_a: bool) -> Vec<Vec<f64>> {
    let (element, height, width) = if is_a { (op.a, op.m as usize, op.k as usize) } else { (op.b, op.k as usize, 8) };
    let mut out = vec![vec![f64::NAN; width]; height];
    for lane in 0..32 {
        for i in 0..height * width / 32 {
            let (row, column) = if is_a { a_place(op, lane, i) } else { b_place(op, lane, i) };
            assert!(out[row][column].is_nan(), "each place once");
            out[row][column] = value(element, element_bits(rows, element.bits() as usize, lane, i));
        }
    }
    out
}

/// Returns the value of C or D at (row, column).
fn accumulator_at(op: &MmaOp, rows: &[Lanes], row: usize, column: usize) -> f64 {
    let lane = 4 * (row % 8) + column / 2;
    let i = 2 * (row / 8) + column % 2;
    match op.accumulator {
        AccumulatorFormat::F16 => value(ElementFormat::F16, element_bits(rows, 16, lane, i)),
        AccumulatorFormat::F32 => f32::from_bits(rows[i][lane]) as f64,
        AccumulatorFormat::S32 => rows[i][lane] as i32 as f64,
        AccumulatorFormat::F64 => value(ElementFormat::F64, element_bits(rows, 64, lane, i)),
    }
}

#[test]
fn every_form_equals_the_naive_product() {
    let mut random = Random(0x1234_5678_9abc_def1);
    for opcode in forms() {
        let op = MmaOp::decode(&opcode).unwrap_or_else(|| panic!("{opcode} is a form"));
        let counts = op.registers_per_lane();
        let per = op.lane_arrays_per_register();
        let a = fill(op.a, counts.a * per, &mut random);
        let b = fill(op.b, counts.b * per, &mut random);
        let c = match op.accumulator {
            AccumulatorFormat::F16 => fill(ElementFormat::F16, counts.c, &mut random),
            AccumulatorFormat::F32 => fill(ElementFormat::Tf32, counts.c, &mut random),
            AccumulatorFormat::F64 => fill(ElementFormat::F64, counts.c * per, &mut random),
            AccumulatorFormat::S32 => {
                vec![std::array::from_fn(|lane| (lane as u32).wrapping_mul(0x0fff_fff7)); counts.c]
            }
        };
        let mut d = vec![[0x7fc1_2345; 32]; counts.c * per];
        run(&op, &a, &b, &c, &mut d);
        let (a, b) = (naive_matrix(&op, &a, true), naive_matrix(&op, &b, false));
        for row in 0..op.m as usize {
            for column in 0..8 {
                let c = accumulator_at(&op, &c, row, column);
                let product: f64 = match op.bit_op {
                    Some(BitOp::Xor) => (0..op.k as usize).filter(|&k| a[row][k] != b[k][column]).count() as f64,
                    _ => (0..op.k as usize).map(|k| a[row][k] * b[k][column]).sum(),
                };
                let exact = c + product;
                let got = accumulator_at(&op, &d, row, column);
                let (want, bound) = match op.accumulator {
                    AccumulatorFormat::S32 if op.saturate => (exact.clamp(i32::MIN as f64, i32::MAX as f64), 0.0),
                    AccumulatorFormat::S32 => (exact as i64 as i32 as f64, 0.0),
                    AccumulatorFormat::F16 => (half::f16::from_f64(exact).to_f64(), exact.abs() * 1e-3 + 1e-6),
                    AccumulatorFormat::F32 => (exact, 1e-4),
                    AccumulatorFormat::F64 => (exact, 1e-12),
                };
                assert!((got - want).abs() <= bound, "{opcode} at ({row}, {column}): {got} for {want}");
            }
        }
    }
}

#[test]
fn products_of_small_integers_are_exact() {
    // Elements are multiples of 1/4 up to 4, so a sum of 16 products fits f32's 24 bits.
    let mut random = Random(77);
    let op = MmaOp::decode("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32").unwrap();
    let (a, b) = (fill(op.a, 4, &mut random), fill(op.b, 2, &mut random));
    let c = [[1.5f32.to_bits(); 32]; 4];
    let mut d = [[0; 32]; 4];
    run(&op, &a, &b, &c, &mut d);
    let (a, b) = (naive_matrix(&op, &a, true), naive_matrix(&op, &b, false));
    for row in 0..16 {
        for column in 0..8 {
            let want: f64 = 1.5 + (0..16).map(|k| a[row][k] * b[k][column]).sum::<f64>();
            assert_eq!(accumulator_at(&op, &d, row, column), want);
        }
    }
}

#[test]
fn register_counts_and_flops_match_the_isa() {
    let counts = |text| {
        let op = MmaOp::decode(text).unwrap();
        (op.registers_per_lane(), op.flops())
    };
    let (registers, flops) = counts("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32");
    assert_eq!((registers, flops), (RegisterCounts { a: 4, b: 2, c: 4 }, 4096));
    let (registers, _) = counts("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16");
    assert_eq!(registers, RegisterCounts { a: 4, b: 2, c: 2 });
    let (registers, _) = counts("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64");
    assert_eq!(registers, RegisterCounts { a: 1, b: 1, c: 2 });
    let (registers, _) = counts("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc");
    assert_eq!(registers, RegisterCounts { a: 4, b: 2, c: 4 });
}

#[test]
fn rejects_forms_that_do_not_exist() {
    for text in [
        "mma.sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16",
        "mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.satfinite.f32.bf16.bf16.f32",
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k4.row.col.rz.f64.f64.f64.f64",
        "mma.sync.aligned.m16n8k16.row.col.s32.s8.s4.s32",
        "mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32",
        "mma.sp.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e4m3.e4m3.f32",
        "mma.sync.aligned.m16n8k16.row.col",
        "mma.sync.aligned.m16n8k99999999999.row.col.f32.bf16.bf16.f32",
        "",
    ] {
        assert_eq!(MmaOp::decode(text), None, "{text}");
    }
}

#[test]
fn saturation_clamps_and_wrapping_wraps() {
    let run = |text: &str| {
        let op = MmaOp::decode(text).unwrap();
        let (a, b) = ([[0x7f7f_7f7f; 32]; 2], [[0x7f7f_7f7f; 32]; 1]);
        let c = [[i32::MAX as u32 - 1; 32]; 4];
        let mut d = [[0; 32]; 4];
        run(&op, &a, &b, &c, &mut d);
        d[0][0] as i32
    };
    assert_eq!(run("mma.sync.aligned.m16n8k16.row.col.satfinite.s32.s8.s8.s32"), i32::MAX);
    assert_eq!(run("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32"), (i32::MAX - 1).wrapping_add(16 * 127 * 127));
}
