//! Tests of kernels with `mma.sync`, `ldmatrix` and `cp.async`.

use super::common::*;
use reel_sim::exec::LaunchConfig;
use reel_sim::memory::SimMemory;

const FILE: &str = "mma";
const K: usize = 32 * 5;

fn setup(memory: &mut SimMemory) -> LaunchConfig {
    let bytes = |from: usize, count: usize| bf16_bytes((from..from + count).map(multiple_of_quarter));
    let (a, b) = (memory.alloc(bytes(0, 256 * K)), memory.alloc(bytes(5, 128 * K)));
    let d = memory.alloc_uninitialized(4 * 256 * 128);
    launch_config(
        2,
        256,
        Params::default().append_u64(a).append_u64(b).append_u64(d).append_i32(128).append_i32(K as i32),
    )
}

#[test]
fn mma_gemm() {
    let dot =
        |i: usize, j: usize| (0..K).map(|k| multiple_of_quarter(i * K + k) * multiple_of_quarter(j * K + k + 5)).sum();
    let want: Vec<f32> = (0..256 * 128).map(|at| dot(at / 128, at % 128)).collect();
    assert_no_finding(FILE, "gemm_0", &setup, &|memory| {
        let got = buffer_floats(memory, 2);
        assert!(got == want, "the product differs");
    });
    (1..=2).for_each(|variant| assert_planted_bug_is_reported(FILE, "gemm", variant, &setup));
}

#[test]
fn fragment_layouts() {
    let element = |row: usize, column: usize| (row * 16 + column) as u32;
    let setup = |memory: &mut SimMemory| {
        let matrix = (0..128).map(|w| (2 * w) | ((2 * w + 1) << 16)).collect::<Vec<u32>>();
        let input = memory.alloc(le_bytes(&matrix));
        let output = memory.alloc_uninitialized(4 * 32 * 17);
        launch_config(1, 32, Params::default().append_u64(input).append_u64(output))
    };
    // The 8×8 quarter q of the 16×16 matrix begins at row 8(q % 2), column 8(q / 2).
    let fragment = |q: usize, lane: usize, transposed: bool| {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        let at = |r: usize, c: usize| {
            let (r, c) = if transposed { (c, r) } else { (r, c) };
            element(r + 8 * (q % 2), c + 8 * (q / 2))
        };
        at(row, column) | at(row, column + 1) << 16
    };
    assert_no_finding(FILE, "fragments", &setup, &|memory| {
        let got = buffer_words(memory, 1);
        for lane in 0..32 {
            for q in 0..4 {
                assert_eq!(got[32 * q + lane], fragment(q, lane, false), "x4");
                assert_eq!(got[32 * (4 + q) + lane], fragment(q, lane, true), "x4.trans");
                assert_eq!(got[32 * (12 + q) + lane], fragment(q, lane, true), "movmatrix");
            }
            for q in 0..2 {
                assert_eq!(got[32 * (8 + q) + lane], fragment(q, lane, false), "x2");
                assert_eq!(got[32 * (10 + q) + lane], fragment(q, lane, true), "x2.trans");
            }
            assert_eq!(got[32 * 16 + lane], fragment(0, lane, false), "x1");
        }
    });
}

#[test]
fn stmatrix_stores_fragments() {
    let setup = |memory: &mut SimMemory| {
        let input = memory.alloc(le_bytes(&distinct_words(128)));
        let output = memory.alloc_uninitialized(4 * 192);
        launch_config(1, 32, Params::default().append_u64(input).append_u64(output))
    };
    let half = |word: usize, odd: usize| distinct_words(128)[word] >> (16 * odd) & 0xffff;
    assert_no_finding("wgmma", "stored", &setup, &|memory| {
        let got = buffer_words(memory, 1);
        // In each 8×8 matrix of 16-bit elements, lane l holds row l / 4, columns 2(l % 4) and 2(l % 4) + 1: these are
        // the matrix's 32-bit word l.
        assert_eq!(got[..128], distinct_words(128));
        for i in 0..64 {
            let (matrix, row, column) = (i / 32, i % 32 / 4, i % 4 * 2);
            let element = |r: usize, c: usize| half(32 * matrix + 4 * r + c / 2, c % 2);
            assert_eq!(got[128 + i], element(column, row) | element(column + 1, row) << 16, "word {i}");
        }
    });
}
