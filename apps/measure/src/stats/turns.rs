//! Compares the speed of two programs by alternating processes: each turn runs one process of each program, one right
//! after the other.
//!
//! The rounds of one process share its state (where its memory lies, on which cores it runs), so two processes of one
//! program differ by more than the rounds within a process do. Therefore each process counts once, with the median of
//! its rounds. The two processes of a turn share the state of the machine, so the ratio of their times is compared with
//! 1, by the signed-rank test (Wilcoxon, "Individual comparisons by ranking methods", 1945) of the logarithms of the
//! ratios.

use super::{MIN_RELATIVE_DIFFERENCE, SpeedVerdict, TimeDifference, doubled_ranks, median};

/// Significance level of [`compare_turns`]. Of 200 comparisons of equal programs, fewer than one is expected to end
/// with a verdict other than "no difference".
pub const TURN_SIGNIFICANCE_LEVEL: f64 = 0.002;

/// The smallest number of turns that allows a p-value below [`TURN_SIGNIFICANCE_LEVEL`]: with 10 turns, p can be
/// 2 / 2^10.
pub const MIN_TURNS: usize = 10;

/// Compares the time of a process of program B with that of program A, by turn. Both slices have one time above 0 per
/// turn.
///
/// The ratio is the Hodges-Lehmann estimate: the median of the means of all pairs of logarithms. The interval has the
/// confidence 1 - [`TURN_SIGNIFICANCE_LEVEL`]. If all ratios differ, the interval contains 1 if and only if p is not
/// below the level.
pub fn compare_turns(a: &[f64], b: &[f64]) -> TimeDifference {
    let logs: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a / b).ln()).collect();
    let n = logs.len();
    let p = signed_rank(&logs);
    let mut means: Vec<f64> =
        (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|(i, j)| (logs[i] + logs[j]) / 2.0).collect();
    means.sort_by(f64::total_cmp);
    let ratio = median(&means).exp();
    let cut = outside(n);
    let interval = match cut {
        Some(cut) => [means[cut].exp(), means[means.len() - 1 - cut].exp()],
        None => [0.0, f64::INFINITY],
    };
    let differs = p < TURN_SIGNIFICANCE_LEVEL && ratio.max(1.0 / ratio) - 1.0 > MIN_RELATIVE_DIFFERENCE;
    let verdict = match differs {
        true if ratio > 1.0 => SpeedVerdict::Faster,
        true => SpeedVerdict::Slower,
        false => SpeedVerdict::NoDifference,
    };
    TimeDifference { ratio, interval, p, verdict, too_few: n < MIN_TURNS }
}

/// Exact two-sided p-value of the signed-rank test: under the null hypothesis, both signs of a logarithm are equally
/// likely. Equal absolute values share the mean of their ranks.
fn signed_rank(logs: &[f64]) -> f64 {
    let distances: Vec<f64> = logs.iter().map(|x| x.abs()).collect();
    let (ranks, _) = doubled_ranks(&distances, &[]);
    let all: usize = ranks.iter().sum();
    let sum =
        |keep: fn(&f64) -> bool| logs.iter().zip(&ranks).filter(|(x, _)| keep(x)).map(|(_, rank)| rank).sum::<usize>();
    let distance = sum(|x| *x > 0.0).abs_diff(sum(|x| *x < 0.0));
    let ways = ways(&ranks);
    let extreme = (0..=all).filter(|&s| (2 * s).abs_diff(all) >= distance).map(|s| ways[s]).sum::<f64>();
    extreme / ways.iter().sum::<f64>()
}

/// Element `s` of the result is the number of subsets of the ranks with the sum `s`.
fn ways(ranks: &[usize]) -> Vec<f64> {
    let mut ways = vec![0.0; ranks.iter().sum::<usize>() + 1];
    ways[0] = 1.0;
    for &rank in ranks {
        for s in (rank..ways.len()).rev() {
            ways[s] += ways[s - rank];
        }
    }
    ways
}

/// Number of pair means that lie outside the confidence interval on each side, for `n` turns; `None` if `n` is too
/// small for the confidence 1 - [`TURN_SIGNIFICANCE_LEVEL`].
fn outside(n: usize) -> Option<usize> {
    let ways = ways(&(1..=n).collect::<Vec<_>>());
    let total: f64 = ways.iter().sum();
    let mut below = 0.0;
    let rejects = |way: &&f64| {
        below += **way;
        2.0 * below / total < TURN_SIGNIFICANCE_LEVEL
    };
    ways.iter().take_while(rejects).count().checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::super::{compare_times, splitmix};
    use super::*;

    /// A model of a shared machine that gives times of processes. Each process gets a random factor of its own.
    struct Machine {
        state: u64,
        /// The logarithm of the machine's slowly changing speed. It changes from turn to turn.
        drift: f64,
    }

    impl Machine {
        fn uniform(&mut self) -> f64 {
            (splitmix(&mut self.state) >> 11) as f64 / (1u64 << 53) as f64
        }

        /// An approximately normal random number with mean 0 and standard deviation 1.
        fn normal(&mut self) -> f64 {
            (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
        }

        /// Times of the rounds of one process in seconds. Processes vary by 2 %, and one process in ten is 5 to 30 %
        /// slower; the rounds of a process vary by 0.5 %.
        fn rounds(&mut self, scale: f64) -> Vec<f64> {
            let late = if self.uniform() < 0.1 { 1.05 + 0.25 * self.uniform() } else { 1.0 };
            let process = scale * late * (self.drift + 0.02 * self.normal()).exp();
            (0..7).map(|_| process * (1.0 + 0.005 * self.normal())).collect()
        }

        /// The median times of the processes of two programs in `n` turns, in the order A B, B A, A B, …
        fn turns(&mut self, n: usize, scales: [f64; 2]) -> [Vec<f64>; 2] {
            let mut times = [Vec::new(), Vec::new()];
            for turn in 0..n {
                self.drift += 0.02 * self.normal();
                for program in [turn % 2, 1 - turn % 2] {
                    let rounds = self.rounds(scales[program]);
                    times[program].push(median(&rounds));
                }
            }
            times
        }
    }

    /// Of 200 comparisons of equal programs, at most two give a verdict. A program that takes 0.9 of the time is
    /// reported as faster in most comparisons, although a tenth of the processes are slower by up to 30 %.
    /// [`compare_times`] treats the rounds of one process as independent, and so gives wrong verdicts for equal
    /// programs.
    #[test]
    fn equal_programs_are_equal_in_198_of_200_comparisons() {
        let mut machine = Machine { state: 7, drift: 0.0 };
        let mut verdicts = |scales: [f64; 2]| -> Vec<SpeedVerdict> {
            let verdict = |_| {
                let [a, b] = machine.turns(16, scales);
                compare_turns(&a, &b).verdict
            };
            (0..200).map(verdict).collect()
        };
        let count = |all: &[SpeedVerdict], want: SpeedVerdict| all.iter().filter(|v| **v == want).count();
        let equal = verdicts([1.0, 1.0]);
        assert!(count(&equal, SpeedVerdict::NoDifference) >= 198, "{equal:?}");
        let faster = verdicts([1.0, 0.9]);
        assert!(count(&faster, SpeedVerdict::Faster) > 120 && count(&faster, SpeedVerdict::Slower) == 0, "{faster:?}");
        let mut machine = Machine { state: 7, drift: 0.0 };
        let pairs = (0..10).map(|_| compare_times(&machine.rounds(1.0), &machine.rounds(1.0)).verdict);
        assert!(pairs.filter(|v| *v != SpeedVerdict::NoDifference).count() > 2);
    }

    /// The p-value equals the share of all choices of signs that are at least as extreme, counted one by one.
    #[test]
    fn p_value_equals_exhaustive_count() {
        let logs = [0.3, -0.1, 0.2, 0.2, -0.4, 0.0, 0.5];
        let rank = |x: f64| {
            let (below, same) = logs.iter().fold((0.0, 0.0), |(below, same), y: &f64| {
                (below + f64::from(u8::from(y.abs() < x.abs())), same + f64::from(u8::from(y.abs() == x.abs())))
            });
            below + (same + 1.0) / 2.0
        };
        let signed = |sign: &dyn Fn(usize) -> f64| (0..7).map(|i| sign(i) * rank(logs[i])).sum::<f64>().abs();
        let seen = signed(&|i| if logs[i] == 0.0 { 0.0 } else { logs[i].signum() });
        let extreme =
            (0..128u32).filter(|w| signed(&|i| if w >> i & 1 == 1 { 1.0 } else { -1.0 }) >= seen - 1e-9).count();
        assert!((signed_rank(&logs) - extreme as f64 / 128.0).abs() < 1e-12);
    }

    #[test]
    fn interval_contains_1_unless_the_test_rejects() {
        let mut machine = Machine { state: 3, drift: 0.0 };
        for (n, scale) in [(10, 1.0), (10, 0.9), (12, 0.97), (20, 0.98), (40, 0.99)] {
            for _ in 0..20 {
                let [a, b] = machine.turns(n, [1.0, scale]);
                let TimeDifference { ratio, interval: [low, high], p, .. } = compare_turns(&a, &b);
                assert_eq!(p < TURN_SIGNIFICANCE_LEVEL, low > 1.0 || high < 1.0, "{n} {p} {low} {high}");
                assert!(low <= ratio && ratio <= high);
                let back = compare_turns(&b, &a);
                assert!((back.p - p).abs() < 1e-12 && (back.ratio * ratio - 1.0).abs() < 1e-9);
            }
        }
        let few = compare_turns(&[1.0; MIN_TURNS - 1], &[2.0; MIN_TURNS - 1]);
        assert!(few.too_few && few.verdict == SpeedVerdict::NoDifference);
        assert_eq!(compare_turns(&[2.0; MIN_TURNS], &[1.0; MIN_TURNS]).verdict, SpeedVerdict::Faster);
    }
}
