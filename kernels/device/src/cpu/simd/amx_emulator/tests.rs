//! Tests of the emulator: known values of `tdpbf16ps`, the forms of addresses, what the processor refuses, and a
//! comparison with a processor that has AMX.
#![allow(unsafe_code)]

use half::bf16;
use proptest::prelude::*;

use super::super::amx::{self, Tiles};
use super::*;
use crate::Element;

fn config(sizes: [Size; 8]) -> Row {
    let mut bytes = ZERO.0;
    bytes[0] = 1;
    for (tile, size) in sizes.into_iter().enumerate() {
        bytes[16 + 2 * tile] = size.row_bytes as u8;
        bytes[48 + tile] = size.rows as u8;
    }
    Row(bytes)
}

fn full_tiles() -> TileState {
    let mut state = TileState::RELEASED;
    state.configure(config([Size { rows: 16, row_bytes: 64 }; 8])).unwrap();
    state
}

/// Makes a tile whose 32-bit word `w` of row `r` is `word(r, w)`.
fn tile(word: impl Fn(usize, usize) -> u32) -> [Row; ROWS] {
    std::array::from_fn(|r| {
        let words: [u32; 16] = std::array::from_fn(|w| word(r, w));
        Row(words.map(u32::to_le_bytes).as_flattened().try_into().unwrap())
    })
}

fn word(tile: &[Row; ROWS], row: usize, word: usize) -> u32 {
    u32::from_le_bytes(tile[row].0[4 * word..4 * word + 4].try_into().unwrap())
}

fn pair(even: f32, odd: f32) -> u32 {
    let bits = |x: f32| <bf16 as Element>::from_f32(x).to_bits() as u32;
    bits(even) | bits(odd) << 16
}

/// The sum that `tdpbf16ps` computes from an old sum and pairs of products. Each pair is given by its factors: two of
/// the left operand and two of the right one.
fn sum_of(old: f32, pairs: &[([f32; 2], [f32; 2])]) -> f32 {
    let mut state = full_tiles();
    state.tiles[0] = tile(|_, _| old.to_bits());
    state.tiles[1] = tile(|_, p| pairs.get(p).map_or(0, |(a, _)| pair(a[0], a[1])));
    state.tiles[2] = tile(|p, _| pairs.get(p).map_or(0, |(_, b)| pair(b[0], b[1])));
    state.multiply_bf16(0, 1, 2).unwrap();
    f32::from_bits(word(&state.tiles[0], 15, 15))
}

#[test]
fn order_of_a_sum_is_that_of_the_manual() {
    if !install() {
        return println!("skipped: the processor has no AVX-512");
    }
    let big = 16_777_216.0; // 2^24: the next f32 is 2 more.
    // `tdpbf16ps` keeps two sums, of even and of odd elements; a single sum would lose the first 1.
    assert_eq!(sum_of(0.0, &[([big, 1.0], [1.0, 1.0]), ([-big, 1.0], [1.0, 1.0])]), 2.0);
    // The even and the odd sum are added to each other before they are added to the old sum, which would lose each 1
    // alone.
    assert_eq!(sum_of(big, &[([1.0, 1.0], [1.0, 1.0])]), big + 2.0);
    // Ties round to even.
    assert_eq!(sum_of(0.0, &[([big, 0.0], [1.0, 0.0]), ([1.0, 0.0], [1.0, 0.0])]), big);
    assert_eq!(sum_of(0.0, &[([big, 0.0], [1.0, 0.0]), ([1.0, 0.0], [3.0, 0.0])]), big + 4.0);
}

#[test]
fn denormals_are_zero_and_nan_and_infinity_spread() {
    if !install() {
        return println!("skipped: the processor has no AVX-512");
    }
    let tiny = f32::from_bits(0x0001_0000); // the smallest denormal bf16
    assert_eq!(sum_of(0.0, &[([tiny, 0.0], [1e30, 0.0])]), 0.0, "a denormal operand");
    assert_eq!(sum_of(tiny, &[([0.0, 0.0], [0.0, 0.0])]), 0.0, "a denormal old sum");
    assert_eq!(sum_of(0.0, &[([2f32.powi(-100), 0.0], [2f32.powi(-40), 0.0])]), 0.0, "a denormal product");
    assert_eq!(sum_of(0.0, &[([2f32.powi(-100), 0.0], [2f32.powi(-26), 0.0])]), 2f32.powi(-126), "the least normal");
    assert!(sum_of(0.0, &[([f32::INFINITY, 0.0], [0.0, 0.0])]).is_nan());
    assert!(sum_of(1.0, &[([f32::NAN, 0.0], [1.0, 0.0])]).is_nan());
    assert_eq!(sum_of(1.0, &[([f32::INFINITY, 1.0], [-2.0, 1.0])]), f32::NEG_INFINITY);
    assert_eq!(sum_of(-0.0, &[([-0.0, -0.0], [1.0, 1.0])]).to_bits(), 0, "the two sums start at +0");
}

/// Computes one sum of `tdpbf16ps` in scalar arithmetic. The values must not be denormal.
fn scalar_sum(old: f32, a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 2];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        sums[i % 2] = a.mul_add(*b, sums[i % 2]);
    }
    old + (sums[0] + sums[1])
}

/// Returns seeded random numbers with about a normal distribution of standard deviation `scale`, among them negative
/// zeros.
fn normal_numbers(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut number = || (next() + next() + next() + next() - 2.0) * 1.732 * scale;
    (0..count).map(|i| if i % 97 == 14 { -0.0 } else { number() }).collect()
}

fn random_bf16(count: usize, seed: u64) -> Vec<f32> {
    normal_numbers(count, seed, 1.0).into_iter().map(|x| <bf16 as Element>::from_f32(x).to_f32()).collect()
}

/// Returns tiles 0 (sums), 1 (rows) and 2 (pairs) with random numbers, and the same numbers as arrays: A `[16, 32]`,
/// the transpose of B `[16, 32]`, and the sums `[16, 16]`.
fn random_tiles(seed: u64) -> ([[Row; ROWS]; 3], [Vec<f32>; 3]) {
    let (a, b) = (random_bf16(512, seed), random_bf16(512, seed + 1));
    let c = normal_numbers(256, seed + 2, 3.0);
    let rows = tile(|r, p| pair(a[r * 32 + 2 * p], a[r * 32 + 2 * p + 1]));
    let pairs = tile(|p, n| pair(b[n * 32 + 2 * p], b[n * 32 + 2 * p + 1]));
    ([tile(|r, n| c[r * 16 + n].to_bits()), rows, pairs], [a, b, c])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn products_equal_scalar_arithmetic(
        seed in 0..10_000u64,
        rows in 1..=16usize,
        columns in 1..=16usize,
        pairs in 1..=16usize,
    ) {
        if !install() {
            return Ok(());
        }
        let ([c_tile, a_tile, b_tile], [a, b, c]) = random_tiles(seed);
        let mut state = TileState::RELEASED;
        let mut sizes = [Size { rows, row_bytes: 4 * columns }; 8];
        sizes[1] = Size { rows, row_bytes: 4 * pairs };
        sizes[2] = Size { rows: pairs, row_bytes: 4 * columns };
        state.configure(config(sizes)).unwrap();
        state.tiles[..3].copy_from_slice(&[c_tile, a_tile, b_tile]);
        state.multiply_bf16(0, 1, 2).unwrap();
        for r in 0..16 {
            for n in 0..16 {
                let want = if r < rows && n < columns {
                    scalar_sum(c[r * 16 + n], &a[r * 32..][..2 * pairs], &b[n * 32..][..2 * pairs]).to_bits()
                } else {
                    0
                };
                prop_assert_eq!(word(&state.tiles[0], r, n), want, "row {} column {}", r, n);
            }
        }
    }
}

#[test]
fn real_tdpbf16ps_equals_the_emulator() {
    if amx::support().is_err() {
        return println!("skipped: the processor has no AMX, so tdpbf16ps itself cannot be compared");
    }
    for seed in 0..64 {
        let ([sums, rows, pairs], _) = random_tiles(seed);
        let mut state = full_tiles();
        state.tiles[..3].copy_from_slice(&[sums, rows, pairs]);
        state.multiply_bf16(0, 1, 2).unwrap();
        assert_eq!(executed(sums, rows, pairs), state.tiles[0], "seed {seed}: the processor has another order");
    }
}

/// Executes `tdpbf16ps` on three tiles and returns the sums.
fn executed(mut sums: [Row; ROWS], rows: [Row; ROWS], pairs: [Row; ROWS]) -> [Row; ROWS] {
    // SAFETY: the process may use AMX or has the emulator; the tiles have 16 rows of 64 bytes.
    unsafe {
        let _tiles = Tiles::configure();
        asm!(
            "tileloadd tmm0, [{c} + {line}*1]",
            "tileloadd tmm1, [{a} + {line}*1]",
            "tileloadd tmm2, [{b} + {line}*1]",
            "tdpbf16ps tmm0, tmm1, tmm2",
            "tilestored [{c} + {line}*1], tmm0",
            c = in(reg) sums.as_mut_ptr(),
            a = in(reg) rows.as_ptr(),
            b = in(reg) pairs.as_ptr(),
            line = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
    }
    sums
}

#[test]
fn executed_instructions_equal_the_function() {
    if !install() {
        return println!("skipped: the processor has no AVX-512");
    }
    let ([sums, rows, pairs], _) = random_tiles(5);
    let mut state = full_tiles();
    state.tiles[..3].copy_from_slice(&[sums, rows, pairs]);
    state.multiply_bf16(0, 1, 2).unwrap();
    assert_eq!(executed(sums, rows, pairs), state.tiles[0]);
}

#[test]
fn every_form_of_an_address_is_decoded() {
    if !install() {
        return println!("skipped: the processor has no AVX-512");
    }
    // The second and the third load below read 16 rows of this array that begin 128 bytes apart, from byte 256 on.
    let memory: Vec<u32> = (0..1024).collect();
    let row = |first: usize| -> [u32; 16] { std::array::from_fn(|i| (first + i) as u32) };
    let mut stored = [Row([0xff; 64]); 48];
    let mut configuration = Row([0xff; 64]);
    // SAFETY: the loads read rows inside `memory`; the stores write 16 rows of `stored` each, `sttilecfg` 64 bytes.
    unsafe {
        let _tiles = Tiles::configure();
        asm!(
            // No index register: all rows are the same. The base r13 needs a displacement in its encoding, the base r12
            // a SIB byte.
            "tileloadd tmm1, [r13]",
            "tilestored [{to} + {line}*1], tmm1",
            // An extended index register with a scale, a displacement of 32 bits, and the other cache hint
            // (`tileloaddt1`).
            "tileloaddt1 tmm7, [r12 + r9*2 + 256]",
            "tilestored [{to} + {line}*1 + 1024], tmm7",
            // A negative displacement of 8 bits.
            "tileloadd tmm2, [r14 + r9*2 - 64]",
            "tilezero tmm7",
            "tilestored [{to} + {line}*1 + 2048], tmm2",
            "sttilecfg [{config}]",
            to = in(reg) stored.as_mut_ptr(),
            line = in(reg) 64usize,
            config = in(reg) &raw mut configuration,
            in("r12") memory.as_ptr(),
            in("r13") memory.as_ptr().add(16),
            in("r14") memory.as_ptr().add(80),
            in("r9") 64usize,
            options(nostack, preserves_flags),
        );
    }
    for r in 0..16 {
        let of = |block: usize| -> [u32; 16] {
            std::array::from_fn(|w| u32::from_le_bytes(stored[16 * block + r].0[4 * w..4 * w + 4].try_into().unwrap()))
        };
        assert_eq!(of(0), row(16), "row {r}: without an index all rows have one address");
        assert_eq!(of(1), row(64 + 32 * r), "row {r}");
        assert_eq!(of(2), row(64 + 32 * r), "row {r}");
    }
    assert_eq!(configuration, config([Size { rows: 16, row_bytes: 64 }; 8]));
}

#[test]
fn relative_addresses_and_other_instructions() {
    let registers: Registers = std::array::from_fn(|i| 1000 * i);
    let at = |code: &[u8]| decode(code, 0x5000, &registers);
    // ldtilecfg [rip + 16]: 9 bytes.
    let relative = at(&[0xc4, 0xe2, 0x78, 0x49, 0x05, 16, 0, 0, 0]);
    assert_eq!(relative, Some((Instruction::LoadConfig(0x5000 + 9 + 16), 9)));
    // tdpbf16ps tmm3, tmm5, tmm6
    assert_eq!(at(&[0xc4, 0xe2, 0x4a, 0x5c, 0xdd]), Some((Instruction::MultiplyBf16(3, 5, 6), 5)));
    // tilestored [8 + rbx*4], tmm2: no base.
    let store = at(&[0xc4, 0xe2, 0x7a, 0x4b, 0x14, 0x9d, 8, 0, 0, 0]);
    assert_eq!(store, Some((Instruction::Store(2, 8, 12_000), 10)));
    // Codes that are not decoded: ud2; tdpbssd (another prefix); a load that is cut off; vpdpbusd, a three-byte VEX
    // code of the same map.
    for code in [
        &[0x0f, 0x0b, 0, 0, 0][..],
        &[0xc4, 0xe2, 0x4b, 0x5e, 0xdd],
        &[0xc4, 0xe2, 0x7b, 0x4b, 0x44],
        &[0xc4, 0xe2, 0x49, 0x50, 0xdd],
    ] {
        assert_eq!(at(code), None, "{code:x?}");
    }
}

#[test]
fn what_the_processor_refuses_is_refused() {
    let mut state = TileState::RELEASED;
    assert!(state.multiply_bf16(0, 1, 2).is_err(), "tiles are not configured");
    // SAFETY: `tilezero` has no address.
    assert!(unsafe { state.execute(Instruction::Zero(0)) }.is_err());
    let full = Size { rows: 16, row_bytes: 64 };
    for (size, what) in [
        (Size { rows: 17, row_bytes: 64 }, "too many rows"),
        (Size { rows: 16, row_bytes: 68 }, "too many bytes"),
        (Size { rows: 0, row_bytes: 64 }, "bytes without rows"),
    ] {
        assert!(state.configure(config([full, full, size, full, full, full, full, full])).is_err(), "{what}");
    }
    let mut unknown = config([full; 8]);
    unknown.0[0] = 2;
    assert!(state.configure(unknown).is_err());
    for (sums, rows, pairs) in [
        (Size { rows: 8, ..full }, full, full),
        (full, Size { row_bytes: 32, ..full }, full),
        (full, full, Size { row_bytes: 32, ..full }),
    ] {
        state.configure(config([sums, rows, pairs, full, full, full, full, full])).unwrap();
        assert!(state.multiply_bf16(0, 1, 2).is_err(), "{sums:?} {rows:?} {pairs:?}");
    }
    state.configure(config([full; 8])).unwrap();
    assert!(state.multiply_bf16(0, 1, 1).is_err() && state.multiply_bf16(0, 0, 1).is_err());
    // The emulator computes a product that it accepts with AVX-512.
    if install() {
        assert!(state.multiply_bf16(7, 6, 5).is_ok());
    }
}
