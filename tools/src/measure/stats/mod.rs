//! Statistics of round times: medians, and whether two sets of times differ by more than chance.

use std::f64::consts::SQRT_2;

/// Significance level: the probability that two equal distributions get a verdict other than "no difference".
pub const SIGNIFICANCE_LEVEL: f64 = 0.01;
/// Two medians count as equal if they differ by less than this share, even if the p-value is small.
pub const MIN_RELATIVE_DIFFERENCE: f64 = 0.01;
/// Number of bootstrap samples for the confidence interval.
const RESAMPLES: usize = 10_000;

/// Median; NaN of an empty slice.
pub fn median(values: &[f64]) -> f64 {
    min_median_max(values)[1]
}

/// Minimum, median and maximum; NaN of an empty slice.
pub fn min_median_max(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    let n = sorted.len();
    let middle = if n.is_multiple_of(2) { (at((n / 2).wrapping_sub(1)) + at(n / 2)) / 2.0 } else { at(n / 2) };
    [at(0), middle, at(n.wrapping_sub(1))]
}

/// Whether the second of two sets of times is faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpeedVerdict {
    /// The second set is faster.
    Faster,
    /// The second set is slower.
    Slower,
    /// No significant difference.
    NoDifference,
}

impl SpeedVerdict {
    /// The verdict as text.
    pub fn name(self) -> &'static str {
        match self {
            SpeedVerdict::Faster => "faster",
            SpeedVerdict::Slower => "slower",
            SpeedVerdict::NoDifference => "no difference",
        }
    }
}

/// How two sets of times differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeDifference {
    /// Median of set `a` divided by median of set `b`: the speedup of `b`.
    pub ratio: f64,
    /// Confidence interval of the ratio, by bootstrap.
    pub interval: [f64; 2],
    /// p-value: the probability of a difference of rank sums at least this large if both sets had the same
    /// distribution.
    pub p: f64,
    /// The verdict.
    pub verdict: SpeedVerdict,
    /// Whether the sets are so small that the p-value cannot be below [`SIGNIFICANCE_LEVEL`], even if every time of one
    /// set is below every time of the other set.
    pub too_few: bool,
}

/// Compares times `a` with times `b`. Each slice has at least one time, and all times are above 0.
pub fn compare_times(a: &[f64], b: &[f64]) -> TimeDifference {
    let ratio = median(a) / median(b);
    let (p, interval) = (rank_sum(a, b), interval(a, b));
    let apart = interval[0] > 1.0 || interval[1] < 1.0;
    let differs = p < SIGNIFICANCE_LEVEL && apart && ratio.max(1.0 / ratio) - 1.0 > MIN_RELATIVE_DIFFERENCE;
    let verdict = match differs {
        true if ratio > 1.0 => SpeedVerdict::Faster,
        true => SpeedVerdict::Slower,
        false => SpeedVerdict::NoDifference,
    };
    let too_few = 2.0 / choose(a.len() + b.len(), a.len()) >= SIGNIFICANCE_LEVEL;
    TimeDifference { ratio, interval, p, verdict, too_few }
}

/// Binomial coefficient: the number of ways to choose `k` of `n`.
fn choose(n: usize, k: usize) -> f64 {
    (0..k.min(n - k)).map(|i| (n - i) as f64 / (i + 1) as f64).product()
}

/// p-value of the two-sided permutation test of rank sums (Wilcoxon, "Individual comparisons by ranking methods",
/// 1945).
///
/// Exact if the table of rank sums is small enough to compute. Larger sets use the normal approximation, which is
/// accurate for them. Equal times share the mean of their ranks.
fn rank_sum(a: &[f64], b: &[f64]) -> f64 {
    let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let (ranks, ties) = doubled_ranks(few, many);
    let (k, n) = (few.len(), ranks.len());
    let (sum, all): (usize, usize) = (ranks[..k].iter().sum(), ranks.iter().sum());
    // n times the distance of a rank sum from its expected value, k * all / n. The factor n avoids fractions.
    let scaled_distance = |sum: usize| (sum * n).abs_diff(k * all);
    if k * n * all <= 200_000_000 {
        // ways[j][s]: in how many ways j of the ranks can be chosen so that their sum is s.
        let mut ways = vec![vec![0.0f64; all + 1]; k + 1];
        ways[0][0] = 1.0;
        for &rank in &ranks {
            for j in (1..=k).rev() {
                for s in (rank..=all).rev() {
                    ways[j][s] += ways[j - 1][s - rank];
                }
            }
        }
        let extreme: f64 = (0..=all).filter(|&s| scaled_distance(s) >= scaled_distance(sum)).map(|s| ways[k][s]).sum();
        return (extreme / choose(n, k)).min(1.0);
    }
    let (k, m, n) = (k as f64, (n - k) as f64, n as f64);
    let variance = k * m / 12.0 * ((n + 1.0) - ties / (n * (n - 1.0)));
    let distance = scaled_distance(sum) as f64 / n / 2.0;
    if variance > 0.0 { erfc(distance / variance.sqrt() / SQRT_2) } else { 1.0 }
}

/// Returns twice the rank of each time (doubled because the mean of shared ranks can be a half-integer), and the sum
/// of t³ − t over all groups of t equal times.
fn doubled_ranks(a: &[f64], b: &[f64]) -> (Vec<usize>, f64) {
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    let mut sorted = all.clone();
    sorted.sort_by(f64::total_cmp);
    let below = |x: f64| sorted.partition_point(|&y| y < x);
    let ranks = all.iter().map(|&x| below(x) + sorted.partition_point(|&y| y <= x) + 1).collect();
    let ties = sorted.chunk_by(|x, y| x == y).map(|same| (same.len() as f64).powi(3) - same.len() as f64).sum();
    (ranks, ties)
}

/// Complementary error function for x ≥ 0, to 1.5e-7. Source: Abramowitz and Stegun, "Handbook of Mathematical
/// Functions", 7.1.26.
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let terms = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    terms.iter().rev().fold(0.0, |sum, term| (sum + term) * t) * (-x * x).exp()
}

/// Confidence interval of the ratio of medians: the range of the middle share 1 − [`SIGNIFICANCE_LEVEL`] of the ratios
/// of bootstrap samples, which are drawn with a fixed seed.
///
/// Swapping `a` and `b` gives the reciprocal interval exactly.
fn interval(a: &[f64], b: &[f64]) -> [f64; 2] {
    let swapped = median(a).total_cmp(&median(b)).then_with(|| a.len().cmp(&b.len())).is_gt();
    let (first, second) = if swapped { (b, a) } else { (a, b) };
    let mut state = 0u64;
    let mut resampled = |values: &[f64]| {
        let one = |_| values[((splitmix(&mut state) as u128 * values.len() as u128) >> 64) as usize];
        median(&(0..values.len()).map(one).collect::<Vec<f64>>())
    };
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(|_| resampled(first) / resampled(second)).collect();
    ratios.sort_by(f64::total_cmp);
    let cut = (RESAMPLES as f64 * SIGNIFICANCE_LEVEL / 2.0) as usize;
    let [low, high] = [ratios[cut], ratios[RESAMPLES - 1 - cut]];
    if swapped { [1.0 / high, 1.0 / low] } else { [low, high] }
}

/// Returns the next pseudorandom number of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators").
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
