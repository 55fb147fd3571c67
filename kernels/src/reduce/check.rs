use super::{
    ClipParams, SumSquaresParams, WeightedSumParams, clip, formula, partial_sum_count, sum_squares,
    test_element_counts, weighted_sum,
};
use crate::DType;
use crate::DType::{BF16, F32};
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};

checks!(weighted_sums, norms_of_many_tensors, elements_that_are_not_finite_show_in_the_norm);

fn partials(dtype: DType, x: &TestArray, n: usize, threads: usize) -> Vec<f64> {
    let mut partial = vec![f64::NAN; partial_sum_count(n)];
    let params = SumSquaresParams { x: x.addr(), partial: addr_mut(&mut partial), n: n as u64 };
    run(&sum_squares(dtype, &params), threads);
    partial
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
    for dtype in [F32, BF16] {
        let tensors: Vec<TestArray> =
            test_element_counts().iter().map(|&n| TestArray::new(dtype, &normal_numbers(n, n as u64, 0.01))).collect();
        let of = |threads| -> Vec<f64> {
            tensors.iter().zip(test_element_counts()).flat_map(|(x, n)| partials(dtype, x, n, threads)).collect()
        };
        assert_eq!(of(1), of(4));
        let all: Vec<f64> = tensors.iter().flat_map(|x| x.to_f64()).collect();
        for max_norm in [0.01, 5.0, 1e6, f32::INFINITY] {
            let (norm, factor) = formula::norm_and_clip_factor(&all, max_norm as f64);
            let got = norm_and_factor(&of(2), max_norm);
            assert_rounded("norm", F32, &got[..1], &[norm], &[norm], DEFAULT_ROUNDING_FACTOR);
            assert_rounded("factor", F32, &got[1..], &[factor], &[factor], DEFAULT_ROUNDING_FACTOR);
        }
    }
}

fn elements_that_are_not_finite_show_in_the_norm() {
    for (poison, seen) in [(f32::NAN, f32::NAN), (f32::INFINITY, f32::INFINITY), (f32::NEG_INFINITY, f32::INFINITY)] {
        for dtype in [F32, BF16] {
            for at in [0, 8190] {
                let mut x = normal_numbers(8191, 1, 1.0);
                x[at] = poison;
                let [norm, factor] = norm_and_factor(&partials(dtype, &TestArray::new(dtype, &x), 8191, 2), 1.0);
                assert!(norm == seen || norm.is_nan() && seen.is_nan(), "{poison} {dtype}: norm {norm}");
                assert!(factor.is_nan() || factor == 0.0, "{poison} {dtype}: factor {factor}");
            }
        }
    }
    // Squares larger than f32 can hold do not become infinite.
    let large = TestArray::new(F32, &[3e30, 4e30]);
    assert_eq!(norm_and_factor(&partials(F32, &large, 2, 1), 1.0)[0], 5e30);
    assert_eq!(norm_and_factor(&[], 1.0), [0.0, 1.0]);
}
