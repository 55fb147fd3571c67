//! Compares wgmma with a naive f64 product. The operands are laid out by the descriptor formulas or by tensor copies.

// The code indexes by row and column, as the formulas do.
#![allow(clippy::needless_range_loop)]

use super::*;
use crate::tensor_map::{DataType, Swizzle, TensorMap};
use crate::test_random::Random;

const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

/// Returns the bits and the value of a small random number in a format.
fn number(element: ElementFormat, random: &mut Random) -> (u32, f64) {
    let small = (random.next() % 17) as i32 - 8;
    let quarter = small as f32 / 4.0;
    match element {
        ElementFormat::Bf16 => (half::bf16::from_f32(quarter).to_bits() as u32, quarter as f64),
        ElementFormat::F16 => (half::f16::from_f32(quarter).to_bits() as u32, quarter as f64),
        ElementFormat::Tf32 => (quarter.to_bits() | random.next() & 0x1fff, quarter as f64),
        ElementFormat::E5m2 => {
            // Multiples of 1/2 from −2 to 2: two bits of mantissa represent them exactly.
            let value = (random.next() % 9) as f32 / 2.0 - 2.0;
            (half::f16::from_f32(value).to_bits() as u32 >> 8, value as f64)
        }
        ElementFormat::E4m3 => {
            let exponent = random.next() % 3;
            let (sign, mantissa) = (random.next() & 1, random.next() % 8);
            let value = (1.0 + mantissa as f64 / 8.0) * f64::powi(2.0, exponent as i32 - 1);
            (sign << 7 | (exponent + 6) << 3 | mantissa, if sign == 1 { -value } else { value })
        }
        ElementFormat::S8 => {
            let value = random.next() as u8 as i8;
            (value as u8 as u32, value as f64)
        }
        _ => {
            let value = random.next() as u8;
            (value as u32, value as f64)
        }
    }
}

/// A matrix `[extent][k]`: the bits and the values of its elements.
struct Matrix {
    bits: Vec<Vec<u32>>,
    values: Vec<Vec<f64>>,
}

fn random_matrix(element: ElementFormat, extent: usize, k: usize, random: &mut Random) -> Matrix {
    let mut matrix = Matrix { bits: vec![vec![0; k]; extent], values: vec![vec![0.0; k]; extent] };
    for row in 0..extent {
        for column in 0..k {
            (matrix.bits[row][column], matrix.values[row][column]) = number(element, random);
        }
    }
    matrix
}

/// Returns the shared address of element (mn, k) by the descriptor formulas; the swizzle is an exclusive or of
/// address bits.
fn byte_address(d: &Descriptor, mn_major: bool, bytes: u32, mn: u32, k: u32) -> u32 {
    let per_unit = 16 / bytes;
    let (span, bits) = match d.swizzle {
        Swizzle::None => (16, 0),
        Swizzle::B32 => (32, 1),
        Swizzle::B64 => (64, 2),
        Swizzle::B128 => (128, 3),
    };
    let linear = match (d.swizzle == Swizzle::None, mn_major) {
        (false, false) => (mn % 8) * span + (mn / 8) * d.stride + bytes * k,
        (false, true) => {
            let wide = 8 * (span / 16);
            2 * (mn % wide) + (mn / wide) * d.leading + (k % 8) * span + (k / 8) * d.stride
        }
        (true, false) => (mn % 8) * 16 + (mn / 8) * d.stride + (k / per_unit) * d.leading + bytes * (k % per_unit),
        (true, true) => (k % 8) * 16 + (k / 8) * d.leading + (mn / 8) * d.stride + 2 * (mn % 8),
    };
    let address = d.start + linear;
    address ^ (((address >> 7) & ((1 << bits) - 1)) << 4)
}

fn put(shared: &mut [u8], d: &Descriptor, mn_major: bool, element: ElementFormat, matrix: &Matrix) {
    let bytes = element.bits() / 8;
    for (mn, row) in matrix.bits.iter().enumerate() {
        for (k, bits) in row.iter().enumerate() {
            let at = byte_address(d, mn_major, bytes, mn as u32, k as u32) as usize;
            shared[at..at + bytes as usize].copy_from_slice(&bits.to_le_bytes()[..bytes as usize]);
        }
    }
}

/// Returns the descriptor of a single tile with `extent` rows (or columns), with gaps between its parts.
fn layout(start: u32, swizzle: Swizzle, mn_major: bool, extent: u32) -> Descriptor {
    let (leading, stride) = match (swizzle.span_bytes(), mn_major) {
        (Some(span), false) => (16, 8 * span),
        (Some(span), true) => (2 * 8 * span + 1024, 8 * span),
        (None, false) => (extent * 16 + 128, 128),
        (None, true) => (extent * 16, 128),
    };
    Descriptor { start, leading, stride, swizzle }
}

fn fetch(shared: &[u8]) -> impl Fn(u32) -> [u8; 16] {
    |address| shared[address as usize..address as usize + 16].try_into().unwrap()
}

fn d_value(op: &WgmmaOp, d: &[Vec<Lanes>], row: usize, column: usize) -> f64 {
    let (warp, lane) = (row / 16, 4 * (row % 8) + column % 8 / 2);
    let i = 4 * (column / 8) + 2 * (row / 8 % 2) + column % 2;
    match op.accumulator {
        AccumulatorFormat::F16 => half::f16::from_bits((d[warp][i / 2][lane] >> (16 * (i % 2))) as u16).to_f64(),
        AccumulatorFormat::F32 => f32::from_bits(d[warp][i][lane]) as f64,
        _ => d[warp][i][lane] as i32 as f64,
    }
}

fn initial_d(op: &WgmmaOp, random: &mut Random) -> Vec<Vec<Lanes>> {
    let mut word = || {
        let (a, b) = (random.next() % 9, random.next() % 9);
        match op.accumulator {
            AccumulatorFormat::F16 => {
                let half = |value: u32| half::f16::from_f32(value as f32 / 2.0).to_bits() as u32;
                half(a) | half(b) << 16
            }
            AccumulatorFormat::F32 => (a as f32 - 4.0).to_bits(),
            _ => a.wrapping_sub(b),
        }
    };
    (0..4).map(|_| (0..op.d_registers_per_lane()).map(|_| std::array::from_fn(|_| word())).collect()).collect()
}

fn check(op: &WgmmaOp, a: &Matrix, b: &Matrix, c: &[Vec<Lanes>], d: &[Vec<Lanes>], scale_d: bool, sign: f64) {
    for row in 0..D_ROWS {
        for column in 0..op.n as usize {
            let product: f64 = (0..op.k_elements() as usize).map(|k| a.values[row][k] * b.values[column][k]).sum();
            let exact = sign * product + if scale_d { d_value(op, c, row, column) } else { 0.0 };
            // f32 and s32 hold all sums exactly; f16 rounds them once.
            let want =
                if op.accumulator == AccumulatorFormat::F16 { half::f16::from_f64(exact).to_f64() } else { exact };
            let got = d_value(op, d, row, column);
            assert!(got == want, "{op:?} at ({row}, {column}): {got} for {want}");
        }
    }
}

fn run_all(op: &WgmmaOp, tiles: &WgmmaTiles, c: &[Vec<Lanes>], scale_d: bool, negate: bool) -> Vec<Vec<Lanes>> {
    let mut d = c.to_vec();
    let op = WgmmaOp { negate, ..*op };
    for (warp, d) in d.iter_mut().enumerate() {
        op.multiply_add(tiles, warp, scale_d, d);
    }
    d
}

fn types() -> Vec<String> {
    let mut types: Vec<String> =
        ["k16.f32.bf16.bf16", "k16.f32.f16.f16", "k16.f16.f16.f16", "k8.f32.tf32.tf32"].map(String::from).to_vec();
    for a in ["e4m3", "e5m2"] {
        for b in ["e4m3", "e5m2"] {
            types.push(format!("k32.f32.{a}.{b}"));
            types.push(format!("k32.f16.{a}.{b}"));
        }
    }
    for a in ["s8", "u8"] {
        for b in ["s8", "u8"] {
            types.push(format!("k32.s32.{a}.{b}"));
            types.push(format!("k32.satfinite.s32.{a}.{b}"));
        }
    }
    types
}

fn parse(n: usize, types: &str) -> Option<WgmmaOp> {
    WgmmaOp::parse(&format!("wgmma.mma_async.sync.aligned.m64n{n}{types}"))
}

#[test]
fn every_type_layout_and_width_equals_the_naive_product() {
    let mut random = Random(0x0123_4567_89ab_cdef);
    let mut tiles = WgmmaTiles::default();
    for types in types() {
        for n in [8, 16, 24, 64, 96, 136, 256] {
            let Some(op) = parse(n, &types) else {
                assert!(types.contains("s32") && n == 136, "{types} {n}");
                continue;
            };
            for (round, swizzle) in SWIZZLES.into_iter().enumerate() {
                let transposed = (op.a.bits() == 16) && random.next() & 1 == 0;
                let other = SWIZZLES[random.next() as usize % 4];
                let k = op.k_elements() as usize;
                let (a, b) = (random_matrix(op.a, D_ROWS, k, &mut random), random_matrix(op.b, n, k, &mut random));
                let mut shared = vec![0xeeu8; 96 * 1024];
                let a_layout = layout(2048, other, transposed, 64);
                let b_layout = layout(32 * 1024, swizzle, transposed ^ ((op.a.bits() == 16) && round > 1), n as u32);
                let b_major = transposed ^ ((op.a.bits() == 16) && round > 1);
                put(&mut shared, &a_layout, transposed, op.a, &a);
                put(&mut shared, &b_layout, b_major, op.b, &b);
                let a_operand = SharedOperand::new(a_layout.encode(), transposed, 64).unwrap();
                let b_operand = SharedOperand::new(b_layout.encode(), b_major, n as u32).unwrap();
                tiles.read_a(&op, &a_operand, fetch(&shared));
                tiles.read_b(&op, &b_operand, fetch(&shared));
                let c = initial_d(&op, &mut random);
                let negate = !op.a.is_integer() && round % 2 == 1;
                let scale_d = round != 2;
                let d = run_all(&op, &tiles, &c, scale_d, negate);
                check(&op, &a, &b, &c, &d, scale_d, if negate { -1.0 } else { 1.0 });
            }
        }
    }
}

#[test]
fn a_from_registers_equals_a_from_shared_memory() {
    let mut random = Random(99);
    for types in types() {
        let op = parse(32, &types).unwrap();
        let k = op.k_elements() as usize;
        let per = 32 / op.a.bits() as usize;
        let (a, b) = (random_matrix(op.a, D_ROWS, k, &mut random), random_matrix(op.b, 32, k, &mut random));
        let mut tiles = WgmmaTiles::default();
        for warp in 0..4 {
            let mut registers = [[0u32; 32]; 4];
            for lane in 0..32 {
                for i in 0..4 * per {
                    // The fragment of A as the PTX ISA defines it: rows 0 to 7 in registers 0 and 2, the second half of
                    // k in registers 2 and 3.
                    let register = i / per;
                    let row = 16 * warp + lane / 4 + if register & 1 == 0 { 0 } else { 8 };
                    let column = per * (lane % 4) + i % per + if register < 2 { 0 } else { 4 * per };
                    registers[register][lane] |= a.bits[row][column] << (op.a.bits() as usize * (i % per));
                }
            }
            tiles.set_a_rows(&op, warp, &registers);
        }
        let mut shared = vec![0u8; 16 * 1024];
        let b_layout = layout(1024, Swizzle::None, false, 32);
        put(&mut shared, &b_layout, false, op.b, &b);
        tiles.read_b(&op, &SharedOperand::new(b_layout.encode(), false, 32).unwrap(), fetch(&shared));
        let c = initial_d(&op, &mut random);
        let d = run_all(&op, &tiles, &c, true, false);
        check(&op, &a, &b, &c, &d, true, 1.0);
    }
}

/// The accumulator of one product, packed in pairs, is the A fragment of the next product: no shuffle is needed.
#[test]
fn packed_accumulators_are_the_next_a_fragment() {
    for warp in 0..4 {
        for lane in 0..32 {
            for i in 0..8 {
                let (row, column) = d_element_position(warp, lane, i);
                let fragment_row = 16 * warp + lane / 4 + 8 * (i >> 1 & 1);
                let fragment_k = 2 * (lane % 4) + (i & 1) + 8 * (i >> 2);
                assert_eq!((row, column), (fragment_row, fragment_k));
            }
        }
    }
}

/// Reads a tile, written by a tensor copy, through descriptors. K-major: steps along k stay in the row of the swizzle
/// pattern or go to the next tile. MN-major: each step along k moves on by 16 rows, twice the height of the swizzle
/// pattern.
#[test]
fn reads_tiles_of_tensor_copies() {
    let mut random = Random(4242);
    for swizzle in [Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        let span = swizzle.span_bytes().unwrap();
        let width = span as usize / 2;
        // Global memory holds 128 rows of 128 bf16.
        let whole = random_matrix(ElementFormat::Bf16, 128, 128, &mut random);
        let mut global = vec![0u8; 128 * 256];
        for row in 0..128 {
            for column in 0..128 {
                let at = 256 * row + 2 * column;
                global[at..at + 2].copy_from_slice(&whole.bits[row][column].to_le_bytes()[..2]);
            }
        }
        let map = TensorMap::tiled(DataType::Bf16, 0, &[128, 128], &[256], &[span / 2, 64], swizzle).unwrap();
        let mut shared = vec![0xeeu8; 64 * 1024];
        let tile_bytes = 64 * span;
        let mut load = |column: usize, row: usize, at: u32| {
            map.box_copy_at(&[column as i32, row as i32], at).unwrap().for_each_contiguous_part(|run| {
                let (from, to, bytes) = (run.global.unwrap() as usize, run.shared as usize, run.bytes as usize);
                shared[to..to + bytes].copy_from_slice(&global[from..from + bytes]);
            });
        };
        let tiles_across = 128 / width;
        for tile in 0..tiles_across {
            load(tile * width, 0, 1024 + tile as u32 * tile_bytes);
            load(tile * width, 64, 32 * 1024 + tile as u32 * tile_bytes);
        }
        let op = parse(64, "k16.f32.bf16.bf16").unwrap();
        let mut tiles = WgmmaTiles::default();
        // K-major: rows 0..64 are A, rows 64..128 are B; k runs along the columns.
        for step in 0..8 {
            let start = |base: u32| {
                let byte = 32 * step;
                base + byte / span * tile_bytes + byte % span
            };
            for (base, is_a) in [(1024, true), (32 * 1024, false)] {
                let descriptor = Descriptor { start: start(base), leading: 16, stride: 8 * span, swizzle };
                let operand = SharedOperand::new(descriptor.encode(), false, 64).unwrap();
                if is_a {
                    tiles.read_a(&op, &operand, fetch(&shared));
                } else {
                    tiles.read_b(&op, &operand, fetch(&shared));
                }
            }
            let part = |first: usize| Matrix {
                bits: Vec::new(),
                values: (0..64)
                    .map(|row| whole.values[first + row][16 * step as usize..16 * step as usize + 16].to_vec())
                    .collect(),
            };
            let c = initial_d(&op, &mut random);
            let d = run_all(&op, &tiles, &c, true, false);
            check(&op, &part(0), &part(64), &c, &d, true, 1.0);
        }
        // MN-major: B is [k][n]; k runs along the rows from 64 on, n along columns 0 to 127.
        let op = parse(128, "k16.f32.bf16.bf16").unwrap();
        for step in 0..4u32 {
            let start = 32 * 1024 + step * 2 * 8 * span;
            let descriptor = Descriptor { start, leading: tile_bytes, stride: 8 * span, swizzle };
            let operand = SharedOperand::new(descriptor.encode(), true, 128).unwrap();
            tiles.read_b(&op, &operand, fetch(&shared));
            let a_descriptor = Descriptor { start: 1024, leading: 16, stride: 8 * span, swizzle };
            tiles.read_a(&op, &SharedOperand::new(a_descriptor.encode(), false, 64).unwrap(), fetch(&shared));
            let a = Matrix { bits: Vec::new(), values: (0..64).map(|row| whole.values[row][..16].to_vec()).collect() };
            let b = Matrix {
                bits: Vec::new(),
                values: (0..128)
                    .map(|n| (0..16).map(|k| whole.values[64 + 16 * step as usize + k][n]).collect())
                    .collect(),
            };
            let c = initial_d(&op, &mut random);
            let d = run_all(&op, &tiles, &c, false, false);
            check(&op, &a, &b, &c, &d, false, 1.0);
        }
    }
}

#[test]
fn runs_cover_the_bytes_of_the_formulas() {
    for swizzle in SWIZZLES {
        for mn_major in [false, true] {
            for extent in [8, 16, 24, 64, 72, 256] {
                let descriptor = layout(8192, swizzle, mn_major, extent);
                let operand = SharedOperand::new(descriptor.encode(), mn_major, extent).unwrap();
                let mut read = vec![0u32; 128 * 1024];
                for (address, bytes) in operand.byte_run_addresses_and_lengths() {
                    for at in address..address + bytes {
                        read[at as usize] += 1;
                    }
                }
                let mut want = vec![0u32; read.len()];
                for mn in 0..extent {
                    for k in 0..16 {
                        let at = byte_address(&descriptor, mn_major, 2, mn, k) as usize;
                        want[at] += 1;
                        want[at + 1] += 1;
                    }
                }
                assert!(read == want, "{swizzle:?} mn_major {mn_major} extent {extent}");
            }
        }
    }
}

#[test]
fn dense_tiles_have_few_runs() {
    let runs = |swizzle, mn_major| {
        let mut descriptor = layout(8192, swizzle, mn_major, 64);
        if swizzle == Swizzle::None && !mn_major {
            descriptor.leading = 1024;
        }
        SharedOperand::new(descriptor.encode(), mn_major, 64).unwrap().byte_run_addresses_and_lengths()
    };
    assert_eq!(runs(Swizzle::B128, true), [(8192, 2048)]);
    assert_eq!(runs(Swizzle::B32, false), [(8192, 2048)]);
    assert_eq!(runs(Swizzle::None, false), [(8192, 2048)]);
    // The instruction reads 32 bytes of each row; the byte ranges of adjacent rows are joined.
    let thin = runs(Swizzle::B128, false);
    assert!(thin.len() <= 64 && thin.iter().map(|(_, bytes)| bytes).sum::<u32>() == 2048);
}

#[test]
fn rejects_invalid_descriptors() {
    let good = Descriptor { start: 4096, leading: 16, stride: 1024, swizzle: Swizzle::B128 };
    assert_eq!(Descriptor::decode(good.encode()).unwrap(), good);
    let error = |descriptor: Descriptor, mn_major, extent| {
        SharedOperand::new(descriptor.encode(), mn_major, extent).unwrap_err()
    };
    for bit in (0..64).filter(|bit| Descriptor::FIELD_MASK >> bit & 1 == 0) {
        assert!(matches!(
            SharedOperand::new(good.encode() | 1 << bit, false, 64),
            Err(DescriptorError::Reserved { .. })
        ));
    }
    assert_eq!(
        SharedOperand::new(good.encode() | 3 << 49, false, 64).unwrap_err(),
        DescriptorError::BaseOffset { base_offset: 3 }
    );
    let shifted = Descriptor { start: 4096 + 256, ..good };
    // The swizzle depends only on the shared address, so a tile may begin within the pattern.
    let operand = SharedOperand::new(shifted.encode(), false, 64).unwrap();
    assert_eq!(operand.unit_shared_address(0, 0), 4096 + 256 + 2 * 16);
    assert!(matches!(operand.check_pattern(), Err(DescriptorError::Pattern { row: 2, pattern: 1024, .. })));
    assert!(SharedOperand::new(good.encode(), false, 64).unwrap().check_pattern().is_ok());
    let half = Descriptor { start: 4096 + 512, swizzle: Swizzle::B64, ..good };
    assert!(SharedOperand::new(half.encode(), false, 64).unwrap().check_pattern().is_ok());
    let late = Descriptor { start: 4096 + 112, ..good };
    assert!(matches!(error(late, false, 64), DescriptorError::Row { left: 16, bytes: 32, .. }));
    let inside = Descriptor { start: 4096 + 32, ..good };
    assert!(SharedOperand::new(inside.encode(), false, 64).is_ok());
    assert!(matches!(error(inside, true, 64), DescriptorError::Row { left: 96, bytes: 128, .. }));
    assert!(SharedOperand::new(inside.encode(), true, 48).is_ok());
    let operand = SharedOperand::new(good.encode(), false, 64).unwrap();
    assert!(operand.check_within_shared_memory(4096, 4096 + 8 * 1024).is_ok());
    let end = 4096 + 8 * 1024 - 16;
    assert!(matches!(operand.check_within_shared_memory(0, end), Err(DescriptorError::Range { .. })));
    assert!(matches!(operand.check_within_shared_memory(4112, 1 << 20), Err(DescriptorError::Range { .. })));
    assert!(error(late, false, 64).to_string().contains("0x1070"));
}

#[test]
fn decodes_existing_forms_only() {
    let op = parse(128, "k16.f32.bf16.bf16").unwrap();
    assert_eq!((op.k_elements(), op.d_registers_per_lane(), op.flops()), (16, 64, 2 * 64 * 128 * 16));
    let op = parse(256, "k32.s32.u8.s8").unwrap();
    assert_eq!((op.k_elements(), op.d_registers_per_lane(), op.saturate), (32, 128, false));
    assert_eq!(parse(64, "k32.f16.e4m3.e5m2").unwrap().d_registers_per_lane(), 16);
    assert!(parse(64, "k32.s32.u8.s8.satfinite").unwrap().saturate);
    for n in 0..300 {
        assert_eq!(parse(n, "k16.f32.bf16.bf16").is_some(), n > 0 && n <= 256 && n % 8 == 0, "{n}");
        let integer = n > 0 && n <= 256 && (n % 16 == 0 || n == 8 || n == 24);
        assert_eq!(parse(n, "k32.s32.s8.s8").is_some(), integer, "{n}");
    }
    for types in [
        "k16.f16.bf16.bf16",
        "k8.f32.bf16.bf16",
        "k16.f32.bf16.f16",
        "k32.f32.s8.s8",
        "k32.s32.e4m3.e4m3",
        "k16.satfinite.f32.f16.f16",
        "k256.s32.b1.b1.and.popc",
        "k16",
        "",
    ] {
        assert_eq!(parse(64, types), None, "{types}");
    }
}

#[test]
fn decodes_immediates() {
    let decode = |types: &str, registers, immediates: &[i64]| {
        WgmmaOp::decode(&format!("wgmma.mma_async.sync.aligned.m64n64{types}"), registers, immediates)
    };
    let op = decode("k16.f32.bf16.bf16", false, &[1, -1, 0, 1]).unwrap();
    assert!(op.negate && !op.transpose_a && op.transpose_b && !op.a_in_registers);
    let op = decode("k16.f32.bf16.bf16", true, &[-1, -1, 1]).unwrap();
    assert!(!op.negate && !op.transpose_a && op.transpose_b && op.a_in_registers);
    assert!(decode("k8.f32.tf32.tf32", false, &[1, 1]).is_some());
    assert!(decode("k32.s32.s8.s8", false, &[]).is_some());
    assert_eq!(decode("k16.f32.bf16.bf16", false, &[1, 1, 1]), None);
    assert_eq!(decode("k16.f32.bf16.bf16", true, &[1, 1, 0, 0]), None);
    assert_eq!(decode("k16.f32.bf16.bf16", false, &[1, 0, 0, 0]), None);
    assert_eq!(decode("k16.f32.bf16.bf16", false, &[1, 1, 0, 2]), None);
    assert_eq!(decode("k16.f32.bf16.bf16", false, &[i64::MIN + 1, i64::MAX, 0, 0]), None);
    assert_eq!(decode("k8.f32.tf32.tf32", false, &[1, 1, 0, 1]), None);
    assert_eq!(decode("k32.s32.s8.s8", false, &[1, 1]), None);
}

#[test]
fn integers_wrap_or_clamp() {
    for (types, want) in
        [("k32.s32.u8.u8", (i32::MAX - 1).wrapping_add(32 * 255 * 255)), ("k32.satfinite.s32.u8.u8", i32::MAX)]
    {
        let op = parse(8, types).unwrap();
        let mut tiles = WgmmaTiles::default();
        let shared = vec![0xffu8; 8192];
        let layout = layout(0, Swizzle::None, false, 64);
        tiles.read_a(&op, &SharedOperand::new(layout.encode(), false, 64).unwrap(), fetch(&shared));
        tiles.read_b(&op, &SharedOperand::new(layout.encode(), false, 8).unwrap(), fetch(&shared));
        let mut d = vec![[i32::MAX as u32 - 1; 32]; 4];
        op.multiply_add(&tiles, 3, true, &mut d);
        assert_eq!(d[3][31] as i32, want);
    }
}

/// Returns the row and column of D's value `i` in a lane. A register holds one value, or two of f16.
fn d_element_position(warp: usize, lane: usize, i: usize) -> (usize, usize) {
    (16 * warp + lane / 4 + 8 * (i >> 1 & 1), 8 * (i >> 2) + 2 * (lane % 4) + (i & 1))
}
