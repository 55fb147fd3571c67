//! Tests of the statistics against exhaustive counting, and of properties that hold for any times.

use super::*;

/// Pseudorandom numbers from 0 to 1.
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) + 1;
    move || (splitmix(&mut state) >> 11) as f64 / (1u64 << 53) as f64
}

/// Pseudorandom times near 1 with a spread of a few percent; one in ten is an outlier.
fn times(n: usize, seed: u64, scale: f64) -> Vec<f64> {
    let mut next = noise(seed);
    (0..n)
        .map(|_| {
            let late = if next() < 0.1 { 1.5 } else { 1.0 };
            scale * late * (1.0 + 0.04 * (next() + next() + next() - 1.5))
        })
        .collect()
}

#[test]
fn spread_is_minimum_median_maximum() {
    assert_eq!(min_median_max(&[3.0, 1.0, 2.0]), [1.0, 2.0, 3.0]);
    assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    assert_eq!(min_median_max(&[7.0]), [7.0; 3]);
    assert!(min_median_max(&[]).iter().all(|x| x.is_nan()));
}

/// The p-value equals the share of choices with an equally or more extreme rank sum, counted over all choices.
#[test]
fn p_value_equals_exhaustive_count() {
    for (n, m, seed) in [(1, 1, 0), (2, 3, 1), (4, 4, 2), (5, 3, 3), (6, 6, 4), (3, 7, 5)] {
        let mut next = noise(seed);
        // Draws from a few distinct values, so that some times are equal.
        let mut some = |n: usize| (0..n).map(|_| 1.0 + (next() * 6.0).floor()).collect::<Vec<f64>>();
        let (a, b) = (some(n), some(m));
        let all: Vec<f64> = a.iter().chain(&b).copied().collect();
        let rank = |x: f64| {
            let below = all.iter().filter(|&&y| y < x).count() as f64;
            below + (all.iter().filter(|&&y| y == x).count() as f64 + 1.0) / 2.0
        };
        let distance = |chosen: &dyn Fn(usize) -> bool| {
            let sum: f64 = (0..all.len()).filter(|&i| chosen(i)).map(|i| rank(all[i])).sum();
            (sum - n as f64 * (all.len() as f64 + 1.0) / 2.0).abs()
        };
        let seen = distance(&|i| i < n);
        let ways: Vec<u32> = (0..1u32 << all.len()).filter(|w| w.count_ones() as usize == n).collect();
        let extreme = ways.iter().filter(|&&w| distance(&|i| w >> i & 1 == 1) >= seen - 1e-9).count();
        let want = extreme as f64 / ways.len() as f64;
        assert!((rank_sum(&a, &b) - want).abs() < 1e-12, "{a:?} {b:?}: {} not {want}", rank_sum(&a, &b));
    }
}

/// The normal approximation for large groups agrees with the exact p-value at moderate sizes.
#[test]
fn normal_approximation_agrees_with_exact_p_value() {
    for (shift, seed) in [(0.0, 1), (0.005, 2), (0.01, 3)] {
        let (a, b) = (times(60, seed, 1.0), times(60, seed + 100, 1.0 + shift));
        let exact = rank_sum(&a, &b);
        let (ranks, ties) = doubled_ranks(&a, &b);
        let (k, n) = (60.0, 120.0);
        let distance = (ranks[..60].iter().sum::<usize>() as f64 / 2.0 - k * (n + 1.0) / 2.0).abs();
        let variance = k * k / 12.0 * (n + 1.0 - ties / (n * (n - 1.0)));
        let normal = erfc(distance / variance.sqrt() / SQRT_2);
        assert!((exact - normal).abs() < 0.01, "{exact} {normal}");
        // These groups are too large for the exact table of rank sums.
        let (a, b) = (times(400, seed, 1.0), times(400, seed + 100, 1.0 + shift));
        assert!((0.0..=1.0).contains(&rank_sum(&a, &b)));
    }
    assert!((erfc(0.0) - 1.0).abs() < 1e-6 && (erfc(1.0) - 0.157_299_2).abs() < 1e-6);
    assert!((rank_sum(&[1.0; 400], &[1.0; 400]) - 1.0).abs() < 1e-6);
    assert!(rank_sum(&times(400, 9, 1.0), &times(400, 10, 2.0)) < 1e-6);
}

#[test]
fn a_verdict_needs_rounds_and_a_difference() {
    for seed in 0..50 {
        let a = times(7, seed, 1.0);
        let same = compare_times(&a, &a);
        assert_eq!((same.verdict, same.ratio, same.p, same.too_few), (SpeedVerdict::NoDifference, 1.0, 1.0, false));
        let (b, c) = (times(7, seed + 1000, 0.4), times(7, seed + 2000, 2.5));
        assert_eq!(compare_times(&a, &b).verdict, SpeedVerdict::Faster, "{a:?} {b:?}");
        assert_eq!(compare_times(&a, &c).verdict, SpeedVerdict::Slower);
        // Four rounds per set are too few for a verdict; five rounds are enough.
        let four = compare_times(&a[..4], &b[..4]);
        assert_eq!((four.verdict, four.too_few), (SpeedVerdict::NoDifference, true));
        assert_eq!(compare_times(&a[..5], &b[..5]).verdict, SpeedVerdict::Faster);
    }
    // A significant difference of less than 1 % still gives the verdict "no difference".
    let exact: Vec<f64> = (0..20).map(|i| 1.0 + f64::from(i) * 1e-6).collect();
    let off: Vec<f64> = exact.iter().map(|x| x * 1.005).collect();
    let close = compare_times(&exact, &off);
    assert!(close.p < 1e-6 && close.verdict == SpeedVerdict::NoDifference);
}

/// Swapping the two sets reverses the verdict, and the unit of time does not matter.
#[test]
fn comparison_is_symmetric_and_scale_free() {
    for seed in 0..200 {
        let mut next = noise(seed);
        let (n, m) = (1 + (next() * 12.0) as usize, 1 + (next() * 12.0) as usize);
        let (a, b) = (times(n, seed + 500, 1.0), times(m, seed + 900, 0.9 + 0.2 * next()));
        let (there, back) = (compare_times(&a, &b), compare_times(&b, &a));
        let turned = match there.verdict {
            SpeedVerdict::Faster => SpeedVerdict::Slower,
            SpeedVerdict::Slower => SpeedVerdict::Faster,
            SpeedVerdict::NoDifference => SpeedVerdict::NoDifference,
        };
        assert_eq!((back.verdict, back.too_few), (turned, there.too_few));
        assert!((there.p - back.p).abs() < 1e-12 && (there.ratio * back.ratio - 1.0).abs() < 1e-12);
        let [low, high] = there.interval;
        assert!(low <= there.ratio * (1.0 + 1e-12) && there.ratio <= high * (1.0 + 1e-12), "{there:?}");
        if there.verdict != SpeedVerdict::NoDifference {
            assert!(there.interval[0] > 1.0 || there.interval[1] < 1.0);
        }
        for (one, other) in there.interval.iter().zip(back.interval.iter().rev()) {
            assert!((one * other - 1.0).abs() < 1e-12);
        }
        let milliseconds = |v: &[f64]| v.iter().map(|x| x * 1024.0).collect::<Vec<_>>();
        assert_eq!(compare_times(&milliseconds(&a), &milliseconds(&b)), there);
    }
}

/// About 1 % of comparisons of equal distributions give a verdict, as the significance level says.
#[test]
fn false_verdicts_are_rare() {
    let wrong = (0..1000).filter(|&seed| {
        let (a, b) = (times(9, 3 * seed, 1.0), times(9, 3 * seed + 50_000, 1.0));
        compare_times(&a, &b).verdict != SpeedVerdict::NoDifference
    });
    let wrong = wrong.count();
    assert!(wrong <= 20, "{wrong} of 1000");
}
