//! Statistics of the rows of a data file.

use serde::Serialize;

use super::{Counts, InspectedRow, MediaProperties, ProblemKind, RowProblem, TrainingCommand};
use crate::dataset::Dataset;

/// Statistics of the rows of a data file, which `reel data stats` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataStats {
    /// Number of rows.
    pub rows: usize,
    /// Number of rows that cannot be used.
    pub unusable_rows: usize,
    /// How many of the rows each command can use.
    pub commands: Vec<UsableRowCount>,
    /// Number of rows of each layout; a layout is named by its main field, such as `messages`.
    pub layouts: Counts,
    /// For each of the columns `data_type`, `problem_type` and `source`: how many rows have each value.
    pub columns: Vec<(String, Counts)>,
    /// Number of different images and videos.
    pub media_files: usize,
    /// Length of the videos in seconds.
    pub video_seconds: Option<Distribution>,
    /// Frames per second of the videos.
    pub video_fps: Option<Distribution>,
    /// The longer side of images and videos in pixels.
    pub longer_side: Option<Distribution>,
    /// Tokens per row, vision tokens included.
    pub tokens: Option<Distribution>,
    /// Number of rows with each kind of problem; kinds without rows are left out.
    pub problem_counts: Vec<(ProblemKind, usize)>,
    /// All problems, sorted by kind and then by row.
    #[serde(skip)]
    pub problems: Vec<RowProblem>,
}

/// How many rows a command can use.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UsableRowCount {
    /// The command.
    pub command: TrainingCommand,
    /// Number of rows that the command can use.
    pub usable_rows: usize,
    /// The error of the first row that this command refuses and another command accepts.
    pub first_refusal: Option<String>,
}

/// Distribution of a quantity over rows or files, such as tokens per row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// Number of values.
    pub count: usize,
    /// Smallest value.
    pub min: f64,
    /// Arithmetic mean.
    pub mean: f64,
    /// The value that half of the values do not exceed.
    pub p50: f64,
    /// The value that 90 % of the values do not exceed.
    pub p90: f64,
    /// The value that 99 % of the values do not exceed.
    pub p99: f64,
    /// Largest value.
    pub max: f64,
    /// All values, sorted.
    #[serde(skip)]
    pub values: Vec<f64>,
}

impl Distribution {
    /// Returns the distribution of the finite `values`; `None` if no value is finite.
    pub fn new(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        // The smallest value that at least this share of the values do not exceed.
        let percentile =
            |share: f64| values[((share * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1];
        let (p50, p90, p99) = (percentile(0.5), percentile(0.9), percentile(0.99));
        Some(Self { count: values.len(), min, mean, p50, p90, p99, max, values })
    }

    /// Counts the values in `bins` intervals of equal width from the smallest to the largest value. Returns the lower
    /// end, the upper end and the count of each interval. If all values are equal, there is one interval.
    pub fn histogram(&self, bins: usize) -> Vec<(f64, f64, usize)> {
        if self.min == self.max {
            return vec![(self.min, self.max, self.count)];
        }
        let width = (self.max - self.min) / bins as f64;
        let end = |i: usize| if i == bins { self.max } else { self.min + width * i as f64 };
        let mut counts = vec![0; bins];
        for value in &self.values {
            counts[(((value - self.min) / width) as usize).min(bins - 1)] += 1;
        }
        counts.into_iter().enumerate().map(|(i, count)| (end(i), end(i + 1), count)).collect()
    }
}

impl DataStats {
    pub(super) fn new(
        data: &Dataset,
        rows: &[InspectedRow],
        media: Vec<MediaProperties>,
        commands: &[TrainingCommand],
    ) -> Self {
        let mut layouts = Counts::new();
        let mut columns: Vec<(String, Counts)> = Vec::new();
        let mut problems: Vec<RowProblem> = Vec::new();
        for (row, facts) in rows.iter().enumerate() {
            if let Some(layout) = facts.layout {
                *layouts.entry(layout.to_string()).or_default() += 1;
            }
            for (name, value) in &facts.labels {
                let index = columns.iter().position(|(own, _)| own == name).unwrap_or_else(|| {
                    columns.push((name.to_string(), Counts::new()));
                    columns.len() - 1
                });
                *columns[index].1.entry(value.clone()).or_default() += 1;
            }
            for (kind, e) in &facts.problems {
                problems.push(RowProblem { row, kind: *kind, message: e.to_string() });
            }
        }
        problems.sort_by_key(|problem| (problem.kind, problem.row));
        let unusable = |facts: &&InspectedRow| facts.problems.iter().any(|(kind, _)| kind.is_unusable());
        let command_use = |&command: &TrainingCommand| {
            let usable_rows: Vec<&InspectedRow> = rows.iter().filter(|facts| !unusable(facts)).collect();
            let refusal =
                |facts: &InspectedRow| facts.refusals.iter().find(|(by, _)| *by == command).map(|(_, why)| why.clone());
            let refused: Vec<String> = usable_rows.iter().filter_map(|facts| refusal(facts)).collect();
            let usable_rows = usable_rows.len() - refused.len();
            UsableRowCount { command, usable_rows, first_refusal: refused.into_iter().next() }
        };
        let count = |kind: ProblemKind| {
            let has = |facts: &&InspectedRow| facts.problems.iter().any(|(own, _)| *own == kind);
            (kind, rows.iter().filter(has).count())
        };
        Self {
            rows: data.len(),
            unusable_rows: rows.iter().filter(unusable).count(),
            commands: commands.iter().map(command_use).collect(),
            layouts,
            columns,
            media_files: media.len(),
            video_seconds: Distribution::new(media.iter().filter_map(|fact| fact.seconds)),
            video_fps: Distribution::new(media.iter().filter_map(|fact| fact.fps)),
            longer_side: Distribution::new(media.iter().filter_map(|fact| fact.size.map(|(h, w)| h.max(w) as f64))),
            tokens: Distribution::new(rows.iter().filter_map(|facts| facts.tokens.map(|tokens| tokens as f64))),
            problem_counts: ProblemKind::ALL.into_iter().map(count).filter(|(_, count)| *count > 0).collect(),
            problems,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occur() {
        let all = Distribution::new((1..=100).rev().map(f64::from)).unwrap();
        assert_eq!((all.min, all.mean, all.p50, all.p90, all.p99, all.max), (1.0, 50.5, 50.0, 90.0, 99.0, 100.0));
        let one = Distribution::new([3.0, f64::NAN]).unwrap();
        assert_eq!((one.count, one.p50, one.p99), (1, 3.0, 3.0));
        assert_eq!(Distribution::new([]), None);
    }

    #[test]
    fn histograms_count_every_value_once() {
        let all = Distribution::new([0.0, 1.0, 2.0, 9.0, 10.0]).unwrap();
        assert_eq!(all.histogram(2), [(0.0, 5.0, 3), (5.0, 10.0, 2)]);
        assert_eq!(Distribution::new([2.0, 2.0]).unwrap().histogram(10), [(2.0, 2.0, 2)]);
    }
}
