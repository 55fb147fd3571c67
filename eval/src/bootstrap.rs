//! Computes bootstrap intervals (B. Efron, 1979): the data is resampled many times, and the statistics are computed for
//! each resample.
//!
//! ```text
//! 10 000 times:  draw as many videos as there are, with replacement; compute the statistics of their rows
//! interval    =  the 2.5 % and 97.5 % quantiles of each statistic
//! ```
//! Whole videos are drawn, because the rows about one video are not independent: Video-MME asks three questions about
//! each video. The random numbers depend only on the number of videos, so a result is reproducible.

use std::collections::HashMap;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Number of resamples of the data.
pub const RESAMPLE_COUNT: usize = 10_000;

/// The score of a row, with the group and the cluster of the row.
#[derive(Clone, Debug)]
pub struct ScoredRow<'a> {
    /// Name of the cluster, such as the video: rows of one cluster are drawn together. `None` for a row that is drawn
    /// alone.
    pub cluster: Option<&'a str>,
    /// Index of the row's group, such as its category; scores are summed per group.
    pub group: usize,
    /// The score of the row.
    pub score: f64,
}

/// Sum and number of the drawn scores of a group.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScoreTotal {
    /// Sum of the scores of the group.
    pub sum: f64,
    /// Number of scores in the group.
    pub count: f64,
}

impl ScoreTotal {
    /// The mean score; `None` without scores.
    pub fn mean(self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }
}

/// Returns the sum of several totals.
pub fn sum_of_totals(totals: &[ScoreTotal]) -> ScoreTotal {
    totals.iter().fold(ScoreTotal::default(), |a, b| ScoreTotal { sum: a.sum + b.sum, count: a.count + b.count })
}

/// The rows of one video: pairs of a group and the total of its scores.
type Cluster = Vec<(usize, ScoreTotal)>;

/// Returns the 95 % interval of each statistic. `statistics` computes all statistics from the totals of the groups `0
/// .. groups`. Resamples in which a statistic is `None` are left out of its interval. The interval is `None` if the
/// statistic is `None` in every resample.
pub fn bootstrap_intervals(
    rows: &[ScoredRow<'_>],
    groups: usize,
    statistics: impl Fn(&[ScoreTotal]) -> Vec<Option<f64>>,
) -> Vec<Option<[f64; 2]>> {
    let clusters = clusters(rows);
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut drawn: Vec<Vec<f64>> = Vec::new();
    let mut totals = vec![ScoreTotal::default(); groups];
    for _ in 0..if clusters.is_empty() { 0 } else { RESAMPLE_COUNT } {
        totals.fill(ScoreTotal::default());
        for _ in 0..clusters.len() {
            for (group, part) in &clusters[random.random_range(0..clusters.len())] {
                totals[*group].sum += part.sum;
                totals[*group].count += part.count;
            }
        }
        let values = statistics(&totals);
        drawn.resize(values.len().max(drawn.len()), Vec::new());
        for (all, value) in drawn.iter_mut().zip(values) {
            all.extend(value);
        }
    }
    drawn
        .into_iter()
        .map(|mut values| {
            values.sort_by(f64::total_cmp);
            Some([quantile(&values, 0.025)?, quantile(&values, 0.975)?])
        })
        .collect()
}

fn clusters(rows: &[ScoredRow<'_>]) -> Vec<Cluster> {
    let mut index_of: HashMap<&str, usize> = HashMap::new();
    let mut clusters: Vec<Cluster> = Vec::new();
    for row in rows {
        let next = clusters.len();
        let index = row.cluster.map_or(next, |name| *index_of.entry(name).or_insert(next));
        if index == next {
            clusters.push(Vec::new());
        }
        let cluster = &mut clusters[index];
        let total = ScoreTotal { sum: row.score, count: 1.0 };
        match cluster.iter_mut().find(|(group, _)| *group == row.group) {
            Some((_, sum)) => *sum = sum_of_totals(&[*sum, total]),
            None => cluster.push((row.group, total)),
        }
    }
    clusters
}

/// Returns the quantile `q` of sorted values, with linear interpolation; `None` without values.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let at = q * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_interval(rows: &[ScoredRow<'_>]) -> [f64; 2] {
        bootstrap_intervals(rows, 1, |totals| vec![totals[0].mean()])[0].unwrap()
    }

    fn rows(scores: impl Iterator<Item = f64>) -> Vec<ScoredRow<'static>> {
        scores.map(|score| ScoredRow { cluster: None, group: 0, score }).collect()
    }

    /// Checks that the bootstrap interval of many independent rows is close to the interval of the normal
    /// distribution.
    #[test]
    fn agrees_with_the_normal_interval() {
        let rows = rows((0..1000).map(|i| f64::from(i % 10 < 3)));
        let [low, high] = mean_interval(&rows);
        let half = 1.96 * (0.3f64 * 0.7 / 1000.0).sqrt();
        assert!((low - (0.3 - half)).abs() < 0.002 && (high - (0.3 + half)).abs() < 0.002, "{low} {high}");
        assert_eq!(mean_interval(&rows), [low, high], "the same numbers again");
    }

    /// Three rows of a video with equal scores carry as much information as one row, so the interval is the same.
    #[test]
    fn rows_of_a_video_are_drawn_together() {
        let names: Vec<String> = (0..200).map(|i| i.to_string()).collect();
        let score = |i: usize| f64::from(i.is_multiple_of(2));
        let one: Vec<_> =
            names.iter().enumerate().map(|(i, n)| ScoredRow { cluster: Some(n), group: 0, score: score(i) }).collect();
        let three: Vec<_> = one.iter().flat_map(|row| vec![row.clone(); 3]).collect();
        let alone = rows(three.iter().map(|row| row.score));
        let width = |rows: &[ScoredRow<'_>]| mean_interval(rows)[1] - mean_interval(rows)[0];
        assert!((width(&three) - width(&one)).abs() < 1e-12);
        assert!(width(&alone) < 0.65 * width(&one));
    }

    #[test]
    fn statistics_without_rows_have_no_interval() {
        let got = bootstrap_intervals(&rows([1.0, 0.0].into_iter()), 2, |t| vec![t[0].mean(), t[1].mean()]);
        assert!(got[0].is_some() && got[1].is_none());
        assert!(bootstrap_intervals(&[], 0, |_| vec![None]).is_empty());
    }
}
