//! Tests of kernels with `tcgen05`: products of every kind, tensor memory, and their hazards.

use super::common::*;
use reel_sim::exec::{ExecOptions, LaunchConfig};
use reel_sim::memory::SimMemory;
use reel_sim::tensor_map::{DataType, Swizzle, TensorMap};

const FILE: &str = "tcgen05";

fn setup(input: Vec<u8>, words_out: usize) -> impl Fn(&mut SimMemory) -> LaunchConfig {
    move |memory| {
        let input = memory.alloc(input.clone());
        let output = memory.alloc_uninitialized(4 * words_out);
        launch_config(1, 128, Params::default().append_u64(input).append_u64(output).append_i32(1))
    }
}

/// Returns A·Bᵀ of K-major matrices.
fn product(a: &[f32], b: &[f32], k: usize) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    a.chunks_exact(k).flat_map(|a| b.chunks_exact(k).map(move |b| dot(a, b))).collect()
}

#[test]
fn products_of_matrices_in_shared_memory_and_their_hazards() {
    let values: Vec<f32> = (0..(128 + 64) * 64).map(multiple_of_quarter).collect();
    let want = product(&values[..128 * 64], &values[128 * 64..], 64);
    let setup = setup(bf16_bytes(values.into_iter()), 128 * 64);
    assert_no_finding(FILE, "basic_0", &setup, &|memory| assert_eq!(buffer_floats(memory, 1), want));
    (1..=16).for_each(|variant| assert_planted_bug_is_reported(FILE, "basic", variant, &setup));
}

#[test]
fn products_of_a_matrix_in_tensor_memory_and_their_hazards() {
    let values: Vec<f32> = (0..(128 + 16) * 16).map(multiple_of_quarter).collect();
    let once = product(&values[..128 * 16], &values[128 * 16..], 16);
    let want = [once.clone(), once].concat();
    let setup = setup(bf16_bytes(values.into_iter()), 2 * 128 * 16);
    assert_no_finding(FILE, "stored_0", &setup, &|memory| assert_eq!(buffer_floats(memory, 1), want));
    // Variant 6 is also correct: its arrivals and waits are relaxed, and the fences of tcgen05 order the accesses.
    assert_no_finding(FILE, "stored_6", &setup, &|memory| assert_eq!(buffer_floats(memory, 1), want));
    [1, 2, 3, 4, 5, 7].into_iter().for_each(|variant| assert_planted_bug_is_reported(FILE, "stored", variant, &setup));
}

/// Without `fence::before_thread_sync` after `wait::ld`, the order is a note, and with `strict_proxy` a finding.
#[test]
fn orders_that_only_the_hardware_promises_are_notes_or_findings() {
    let setup = setup(bf16_bytes((0..(128 + 16) * 16).map(multiple_of_quarter)), 2 * 128 * 16);
    let program = load_program(FILE);
    let run = |strict_proxy| {
        run_once(&program, "stored_8", &ExecOptions { strict_proxy, ..early_deadlock_options() }, &setup).0
    };
    let outcome = run(false);
    assert!(outcome.findings.into_list().is_empty());
    assert!(outcome.notes.iter().any(|note| note.contains("fence::before_thread_sync")), "{:?}", outcome.notes);
    let found: Vec<_> = run(true).findings.into_list().iter().map(|f| (f.line, f.kind.name())).collect();
    assert_eq!(found, Vec::from_iter(expected_lines_and_kinds(FILE, "stored", 8)));
}

/// The words of the matrices of the kernel `kinds`: 128 rows of A and 32 rows of B with 8 words each. An element with
/// the number n of a matrix has the value `value(n)`, which `encode` turns into its bits.
fn words(bits: u32, value: impl Fn(usize) -> f32, encode: impl Fn(f32) -> u32) -> Vec<u32> {
    let of_word = 32 / bits as usize;
    let word = |at: usize| (0..of_word).fold(0, |word, i| word | encode(value(at * of_word + i)) << (bits * i as u32));
    (0..(128 + 32) * 8).map(word).collect()
}

/// Runs variant `kind` of the kernel `kinds` and compares the words of tensor memory: `want` returns the word of a lane
/// and column.
fn check_kind(kind: u32, words: Vec<u32>, want: impl Fn(usize, usize) -> u32) {
    let check = |memory: &SimMemory| {
        for (at, got) in buffer_words(memory, 1).into_iter().enumerate() {
            let (lane, column) = (at / 32, at % 32);
            assert_eq!(got, want(lane, column), "kind {kind}: lane {lane}, column {column}");
        }
    };
    assert_no_finding(FILE, &format!("kinds_{kind}"), &setup(le_bytes(&words), 128 * 32), &check);
}

/// The dot product of row `i` of A with row `j` of B, whose rows have `k` elements.
fn dot(value: impl Fn(usize) -> f32, i: usize, j: usize, k: usize) -> f32 {
    (0..k).map(|at| value(i * k + at) * value((128 + j) * k + at)).sum()
}

#[test]
fn products_of_every_kind() {
    let bf16 = |v: f32| v.to_bits() >> 16;
    let f16 = |v: f32| u32::from(half::f16::from_f32(v).to_bits());
    let value = multiple_of_quarter;
    let of_bf16 = words(16, value, bf16);
    check_kind(0, of_bf16.clone(), |lane, column| dot(value, lane, column, 16).to_bits());
    check_kind(1, words(16, value, f16), |lane, column| f16(dot(value, lane, column, 16)));
    check_kind(2, words(32, value, f32::to_bits), |lane, column| dot(value, lane, column, 8).to_bits());
    // Powers of two: e4m3 has bias 7 and three bits of mantissa, e5m2 has bias 15 and two.
    let power = |n: usize| if n.is_multiple_of(3) { 0.0 } else { ((n * 7 % 11) as f32 - 5.0).exp2() };
    let (first_of_b, exponent) = (128 * 32, |v: f32| v.log2() as i32);
    let mut bytes = words(8, power, |v| if v == 0.0 { 0 } else { ((exponent(v) + 7) as u32) << 3 });
    let e5m2 = words(8, power, |v| if v == 0.0 { 0 } else { ((exponent(v) + 15) as u32) << 2 });
    bytes[first_of_b / 4..].copy_from_slice(&e5m2[first_of_b / 4..]);
    check_kind(3, bytes, |lane, column| dot(power, lane, column, 32).to_bits());
    let integer = |n: usize| if n < first_of_b { (n * 37 % 256) as f32 - 128.0 } else { (n * 91 % 256) as f32 };
    let of_integers = words(8, integer, |v| v as i32 as u32 & 0xff);
    check_kind(4, of_integers, |lane, column| dot(integer, lane, column, 32) as i32 as u32);
    // M = 64: row r is in lane 32·(r / 16) + r % 16; the other lanes keep their words.
    check_kind(5, of_bf16.clone(), |lane, column| match lane % 32 {
        row @ 0..16 => dot(value, lane / 32 * 16 + row, column, 16).to_bits(),
        _ => 0x7fff_0000,
    });
    // N-major: element (k, n) of B is number 32·k + n.
    check_kind(6, of_bf16.clone(), |lane, column| {
        let sum: f32 = (0..16).map(|k| value(lane * 16 + k) * value(128 * 16 + 32 * k + column)).sum();
        sum.to_bits()
    });
    check_kind(7, of_bf16, |lane, column| match lane {
        1 | 5 => 2.0f32.to_bits(),
        _ => (1.0 + dot(value, lane, column, 16)).to_bits(),
    });
}

#[test]
fn loads_and_stores_of_every_shape() {
    let words = distinct_words(128 * 16);
    let check = |memory: &SimMemory| {
        let got = buffer_words(memory, 1);
        let word = |lane: usize, column: usize| words[16 * lane + column];
        let low_halves = |lane, column| word(lane, column) & 0xffff | word(lane, column + 1) << 16;
        for thread in 0..128 {
            let (first, t) = (thread / 32 * 32, thread % 32);
            for r in 0..8 {
                let want = [
                    word(thread, r),
                    word(first + 8 * (t % 2) + t / 4, 2 * r + t / 2 % 2),
                    word(first + t / 4 + 8 * (r % 2), 4 * (r / 2) + t % 4),
                    word(first + t / 4 + 8 * (r / 2 % 2), 8 * (r / 4) + 2 * (t % 4) + r % 2),
                    word(first + t % 16, r + 8 * (t / 16)),
                    low_halves(thread, 2 * r),
                    word(first + 16 + t / 4 + 8 * (r / 2 % 2), 8 * (r / 4) + 2 * (t % 4) + r % 2),
                ];
                let loaded: Vec<u32> = (0..7).map(|shape| got[(shape * 128 + thread) * 8 + r]).collect();
                assert_eq!(loaded, want, "thread {thread}, register {r}");
                let halves = [word(thread, r) & 0xffff, word(thread, r) >> 16];
                assert_eq!(got[7 * 1024 + thread * 16 + 2 * r..][..2], halves);
            }
        }
    };
    assert_no_finding(FILE, "shapes_0", &setup(le_bytes(&words), 7 * 1024 + 128 * 16), &check);
}

const K: usize = 64 * 5;

/// Sets up D = A·Bᵀ (m×n) for `blocks` blocks.
fn gemm_setup(m: usize, n: usize, pair: bool, blocks: u32) -> impl Fn(&mut SimMemory) -> LaunchConfig {
    move |memory| {
        let a = memory.alloc(bf16_bytes((0..m * K).map(multiple_of_quarter)));
        let b = memory.alloc(bf16_bytes((0..n * K).map(|i| multiple_of_quarter(i + 5))));
        let d = memory.alloc_uninitialized(4 * m * n);
        let operand = |address, rows: usize, of_box| {
            let (dims, strides) = ([K as u64, rows as u64], [2 * K as u64]);
            let map = TensorMap::tiled(DataType::Bf16, address, &dims, &strides, &[64, of_box], Swizzle::B128);
            map.and_then(|m| m.encode()).expect("a good map")
        };
        let params = Params::default()
            .append_aligned(128, &operand(a, m, 128))
            .append_aligned(128, &operand(b, n, if pair { 64 } else { 128 }))
            .append_u64(d)
            .append_i32(m as i32)
            .append_i32(n as i32)
            .append_i32(K as i32);
        LaunchConfig {
            grid: [blocks, 1, 1],
            block: [256, 1, 1],
            cluster: [if pair { 2 } else { 1 }, 1, 1],
            dynamic_shared: 3 * 2 * 128 * 128 + 256,
            params: params.0,
        }
    }
}

fn check_gemm(m: usize, n: usize) -> impl Fn(&SimMemory) {
    let [a, b] =
        [(m, 0), (n, 5)].map(|(rows, from)| (0..rows * K).map(|i| multiple_of_quarter(i + from)).collect::<Vec<_>>());
    let want = product(&a, &b, K);
    move |memory| {
        let got = buffer_floats(memory, 2);
        let wrong = got.iter().zip(&want).position(|(got, want)| got != want);
        assert_eq!(wrong.map(|at| (at / n, at % n, got[at], want[at])), None, "row, column, result, expected");
    }
}

#[test]
fn persistent_gemm_in_one_block() {
    assert_no_finding("tcgen05_gemm", "gemm_0", &gemm_setup(128, 384, false, 1), &check_gemm(128, 384));
}

#[test]
fn persistent_gemm_in_a_pair_of_blocks() {
    assert_no_finding("tcgen05_gemm", "pair_0", &gemm_setup(256, 384, true, 2), &check_gemm(256, 384));
}

#[test]
fn gemm_with_cluster_launch_control() {
    assert_no_finding("tcgen05_gemm", "control_0", &gemm_setup(256, 384, false, 6), &check_gemm(256, 384));
    assert_no_finding("tcgen05_gemm", "control_pair_0", &gemm_setup(256, 384, true, 6), &check_gemm(256, 384));
}

#[test]
fn reports_planted_bugs_in_a_gemm() {
    let setup = gemm_setup(128, 384, false, 1);
    (1..=11).for_each(|variant| assert_planted_bug_is_reported("tcgen05_gemm", "gemm", variant, &setup));
    assert_planted_bug_is_reported("tcgen05_gemm", "gemm", 12, &gemm_setup(256, 384, true, 2));
    assert_planted_bug_is_reported("tcgen05_gemm", "gemm", 14, &gemm_setup(128, 384, false, 3));
}

/// Number of keys of the attention: five steps of 64.
const KEYS: usize = 320;
const HEAD: usize = 64;
/// The factor of the scores: 1/8, the inverse square root of the head size, for powers of 2.
const FACTOR: f32 = 0.125 * std::f32::consts::LOG2_E;

/// The queries (`of` = 0), keys (1) or values (2).
fn attention_input(of: usize, rows: usize) -> Vec<f32> {
    (0..rows * HEAD).map(|i| multiple_of_quarter(i * 3 + of * 11)).collect()
}

fn attention_setup(memory: &mut SimMemory) -> LaunchConfig {
    let mut params = Params::default();
    for (of, rows, of_box) in [(0, 256, 128), (1, KEYS, 64), (2, KEYS, 64)] {
        let address = memory.alloc(bf16_bytes(attention_input(of, rows).into_iter()));
        let (dims, strides) = ([HEAD as u64, rows as u64], [2 * HEAD as u64]);
        let map = TensorMap::tiled(DataType::Bf16, address, &dims, &strides, &[64, of_box], Swizzle::B128);
        params = params.append_aligned(128, &map.and_then(|m| m.encode()).expect("a good map"));
    }
    let out = memory.alloc_uninitialized(4 * 256 * HEAD);
    let params = params.append_u64(out).append_i32(KEYS as i32).append_aligned(4, &FACTOR.to_le_bytes());
    LaunchConfig {
        grid: [1, 1, 1],
        block: [448, 1, 1],
        cluster: [1, 1, 1],
        dynamic_shared: 2 * 128 * 128 + 4 * 64 * 128 + 1024 + 256,
        params: params.0,
    }
}

#[test]
fn attention_in_tensor_memory() {
    let [q, k, v] = [(0, 256), (1, KEYS), (2, KEYS)].map(|(of, rows)| attention_input(of, rows));
    let mut want = Vec::new();
    for scores in product(&q, &k, HEAD).chunks_exact(KEYS) {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = scores.iter().map(|s| f64::from((s - largest) * FACTOR).exp2()).collect();
        let total: f64 = weights.iter().sum();
        let mean =
            |d: usize| weights.iter().zip(v.chunks_exact(HEAD)).map(|(w, v)| w * f64::from(v[d])).sum::<f64>() / total;
        want.extend((0..HEAD).map(mean));
    }
    // The weights are rounded to bf16, which has a relative error of 2^-9, and the values are at most 2.
    let check = |memory: &SimMemory| {
        for (at, (got, want)) in buffer_floats(memory, 3).into_iter().zip(&want).enumerate() {
            let error = (f64::from(got) - want).abs();
            assert!(error <= 1.0 / 128.0, "query {}, element {}: {got}, expected {want}", at / HEAD, at % HEAD);
        }
    };
    assert_no_finding("tcgen05_attention", "attention_0", &attention_setup, &check);
}

#[test]
fn reports_planted_bugs_in_an_attention() {
    (1..=12).for_each(|variant| {
        assert_planted_bug_is_reported("tcgen05_attention", "attention", variant, &attention_setup)
    });
}
