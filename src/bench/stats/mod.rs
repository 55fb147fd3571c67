//! Whether two sets of times differ by more than chance.

use std::f64::consts::SQRT_2;

/// The chance of a verdict where there is no difference.
pub const LEVEL: f64 = 0.01;
/// Medians that are closer than this are alike, whatever the chance.
pub const LEAST_DIFFERENCE: f64 = 0.01;
/// Resamples of the interval.
const RESAMPLES: usize = 10_000;

/// The one in the middle, or the mean of the two; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    spread(values)[1]
}

/// Least, median and most; NaN of nothing.
pub fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    let n = sorted.len();
    let middle = if n.is_multiple_of(2) { (at((n / 2).wrapping_sub(1)) + at(n / 2)) / 2.0 } else { at(n / 2) };
    [at(0), middle, at(n.wrapping_sub(1))]
}

/// Which is quicker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The second.
    Faster,
    /// The first.
    Slower,
    /// Neither that could be told.
    NoDifference,
}

impl Verdict {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Faster => "faster",
            Verdict::Slower => "slower",
            Verdict::NoDifference => "no difference",
        }
    }
}

/// How two sets of times differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The first's median over the second's: how many times as fast the second is.
    pub ratio: f64,
    /// Where that ratio lies, by a bootstrap of both.
    pub interval: [f64; 2],
    /// The chance of rank sums as far apart were there no difference.
    pub p: f64,
    /// What follows.
    pub verdict: Verdict,
    /// Even times that do not overlap at all could not be told from chance.
    pub too_few: bool,
}

/// Compares times `a` with times `b`, both of at least one number above 0.
pub fn compare(a: &[f64], b: &[f64]) -> Difference {
    let ratio = median(a) / median(b);
    let (p, interval) = (rank_sum(a, b), interval(a, b));
    let apart = interval[0] > 1.0 || interval[1] < 1.0;
    let differs = p < LEVEL && apart && ratio.max(1.0 / ratio) - 1.0 > LEAST_DIFFERENCE;
    let verdict = match differs {
        true if ratio > 1.0 => Verdict::Faster,
        true => Verdict::Slower,
        false => Verdict::NoDifference,
    };
    let too_few = 2.0 / choose(a.len() + b.len(), a.len()) >= LEVEL;
    Difference { ratio, interval, p, verdict, too_few }
}

/// Ways to choose `k` of `n`.
fn choose(n: usize, k: usize) -> f64 {
    (0..k.min(n - k)).map(|i| (n - i) as f64 / (i + 1) as f64).product()
}

/// The two-sided permutation test of rank sums (Wilcoxon, "Individual comparisons by ranking methods", 1945): exact where its table is
/// small, else by the normal distribution, which both groups are then large enough for. Equal times share their ranks.
fn rank_sum(a: &[f64], b: &[f64]) -> f64 {
    let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let (ranks, ties) = doubled_ranks(few, many);
    let (k, n) = (few.len(), ranks.len());
    let (sum, all): (usize, usize) = (ranks[..k].iter().sum(), ranks.iter().sum());
    // n times the distance of the sum from its mean.
    let far = |sum: usize| (sum * n).abs_diff(k * all);
    if k * n * all <= 200_000_000 {
        // ways[j][s]: choices of j ranks with sum s.
        let mut ways = vec![vec![0.0f64; all + 1]; k + 1];
        ways[0][0] = 1.0;
        for &rank in &ranks {
            for j in (1..=k).rev() {
                for s in (rank..=all).rev() {
                    ways[j][s] += ways[j - 1][s - rank];
                }
            }
        }
        let extreme: f64 = (0..=all).filter(|&s| far(s) >= far(sum)).map(|s| ways[k][s]).sum();
        return (extreme / choose(n, k)).min(1.0);
    }
    let (k, m, n) = (k as f64, (n - k) as f64, n as f64);
    let variance = k * m / 12.0 * ((n + 1.0) - ties / (n * (n - 1.0)));
    let distance = far(sum) as f64 / n / 2.0;
    if variance > 0.0 { erfc(distance / variance.sqrt() / SQRT_2) } else { 1.0 }
}

/// Twice the rank of each, so that shared ranks are whole, and the sum of t³ − t over groups of t equal ones.
fn doubled_ranks(a: &[f64], b: &[f64]) -> (Vec<usize>, f64) {
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    let mut sorted = all.clone();
    sorted.sort_by(f64::total_cmp);
    let below = |x: f64| sorted.partition_point(|&y| y < x);
    let ranks = all.iter().map(|&x| below(x) + sorted.partition_point(|&y| y <= x) + 1).collect();
    let ties = sorted.chunk_by(|x, y| x == y).map(|same| (same.len() as f64).powi(3) - same.len() as f64).sum();
    (ranks, ties)
}

/// Complementary error function for x ≥ 0, to 1.5e-7. Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26.
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let terms = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    terms.iter().rev().fold(0.0, |sum, term| (sum + term) * t) * (-x * x).exp()
}

/// The middle share 1 − [`LEVEL`] of the ratios of medians of resamples with replacement, from a fixed seed. Which of two comes first
/// changes nothing but the direction.
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
    let cut = (RESAMPLES as f64 * LEVEL / 2.0) as usize;
    let [low, high] = [ratios[cut], ratios[RESAMPLES - 1 - cut]];
    if swapped { [1.0 / high, 1.0 / low] } else { [low, high] }
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators".
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
