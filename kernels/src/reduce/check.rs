use reel_device::Addr;
use reel_device::DType::F32;
use reel_device::launch::{AddressTable, ArrayEntry, chunks};

use super::{
    ClipParams, ELEMENTS_PER_CHUNK, SumSquaresParams, WeightedSumParams, clip, formula, sum_squares,
    test_element_counts, weighted_sum,
};
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};

checks!(weighted_sums, norms_of_many_tensors, elements_that_are_not_finite_show_in_the_norm);

/// Returns the partial sums of squares of all arrays. An array with a null address is left out: its sums are 0.
fn partials(arrays: &[(Addr, usize)], threads: usize) -> Vec<f64> {
    let entries: Vec<ArrayEntry> = arrays.iter().map(|&(x, len)| ArrayEntry { x, len: len as u64 }).collect();
    let chunks = chunks(arrays.iter().map(|array| array.1), ELEMENTS_PER_CHUNK);
    let mut partials = vec![f64::NAN; chunks.len()];
    let params = SumSquaresParams {
        arrays: addr(&entries),
        chunks: addr(&chunks),
        partials: addr_mut(&mut partials),
        chunk_count: chunks.len() as u64,
    };
    let elements = arrays.iter().map(|array| array.1 as u64).sum();
    run(&sum_squares(&params, AddressTable::new(&entries), elements), threads);
    partials
}

fn norm_and_factor(partials: &[f64], max_norm: f32) -> [f32; 2] {
    let mut out = [-1.0f32; 2];
    let params = ClipParams {
        partials: addr(partials),
        out: addr_mut(&mut out),
        count: partials.len() as u64,
        max_norm,
        reserved: 0,
    };
    run(&clip(&params), 2);
    out
}

fn weighted_sums() {
    for n in test_element_counts() {
        let (x, w) = (normal_numbers(n, 1, 1.0), normal_numbers(n, 2, 1.0));
        let mut out = [f32::NAN];
        run(&weighted_sum(&WeightedSumParams { x: addr(&x), w: addr(&w), out: addr_mut(&mut out), n: n as u64 }), 2);
        let want = formula::weighted_sum(&TestArray::new(F32, &x).to_f64(), &TestArray::new(F32, &w).to_f64());
        assert_rounded(&format!("weighted sum of {n}"), F32, &out, &[want], &[want], DEFAULT_ROUNDING_FACTOR);
    }
}

fn norms_of_many_tensors() {
    let counts = test_element_counts();
    let tensors: Vec<TestArray> =
        counts.iter().map(|&n| TestArray::new(F32, &normal_numbers(n, n as u64, 0.01))).collect();
    // All arrays, then all but two.
    for left_out in [vec![], vec![1, 5]] {
        let is_in = |i: &usize| !left_out.contains(i);
        let arrays: Vec<(Addr, usize)> =
            (0..counts.len()).map(|i| (if is_in(&i) { tensors[i].addr() } else { Addr::NULL }, counts[i])).collect();
        let of = |threads| partials(&arrays, threads);
        assert_eq!(of(1), of(4));
        let all: Vec<f64> = (0..counts.len()).filter(is_in).flat_map(|i| tensors[i].to_f64()).collect();
        for max_norm in [0.01, 5.0, 1e6, f32::INFINITY] {
            let (norm, factor) = formula::norm_and_clip_factor(&all, max_norm as f64);
            let got = norm_and_factor(&of(2), max_norm);
            assert_rounded("norm", F32, &got[..1], &[norm], &[norm], DEFAULT_ROUNDING_FACTOR);
            assert_rounded("factor", F32, &got[1..], &[factor], &[factor], DEFAULT_ROUNDING_FACTOR);
        }
    }
}

fn elements_that_are_not_finite_show_in_the_norm() {
    let of = |x: &[f32]| partials(&[(addr(x), x.len())], 2);
    for (poison, seen) in [(f32::NAN, f32::NAN), (f32::INFINITY, f32::INFINITY), (f32::NEG_INFINITY, f32::INFINITY)] {
        for at in [0, 8190] {
            let mut x = normal_numbers(8191, 1, 1.0);
            x[at] = poison;
            let [norm, factor] = norm_and_factor(&of(&x), 1.0);
            assert!(norm == seen || norm.is_nan() && seen.is_nan(), "{poison}: norm {norm}");
            assert!(factor.is_nan() || factor == 0.0, "{poison}: factor {factor}");
        }
    }
    // Squares larger than f32 can hold do not become infinite.
    assert_eq!(norm_and_factor(&of(&[3e30, 4e30]), 1.0)[0], 5e30);
    assert_eq!(norm_and_factor(&[], 1.0), [0.0, 1.0]);
}
