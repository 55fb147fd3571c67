//! Computes the scores of a benchmark from its predictions.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::interval::{WeightedMean, weighted_sum_interval, wilson_interval};
use crate::{Benchmark, EvalError, Prediction, Result};

/// The scores of a benchmark, from 0 to 1, with 95 % confidence intervals.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchmarkReport {
    /// Name of the benchmark.
    pub benchmark: &'static str,
    /// Number of rows.
    pub n: usize,
    /// Number of rows whose solution cannot be compared with outputs ([`Prediction::check_solution`]). They count in
    /// all means, as in the evaluation scripts.
    pub unusable_solutions: usize,
    /// Number of rows without an output, because of an error ([`Prediction::error`]). They score 0.
    pub errors: usize,
    /// Mean score of all rows.
    pub overall: f64,
    /// Interval of `overall`.
    pub overall_ci95: [f64; 2],
    /// Mean score of the rows whose problem is not a regression; 0 if there are no such rows.
    pub mean_acc: f64,
    /// Mean relative accuracy of the rows whose problem is a regression; 0 if there are no such rows.
    pub mean_mra: f64,
    /// Mean over tasks of the score of each task: the official score of VSI-Bench.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_mean: Option<f64>,
    /// Interval of `task_mean`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_mean_ci95: Option<[f64; 2]>,
    /// Scores by category; rows without a category are left out.
    pub by_category: BTreeMap<String, CategoryScore>,
}

/// The mean score of the rows of one category.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CategoryScore {
    /// Number of rows.
    pub n: usize,
    /// Mean score.
    pub score: f64,
    /// Interval of `score`.
    pub ci95: [f64; 2],
}

impl CategoryScore {
    fn new(scores: &[f64]) -> Self {
        let score = mean(scores);
        Self { n: scores.len(), score, ci95: wilson_interval(score, scores.len()) }
    }
}

/// Scores the predictions of a benchmark.
///
/// # Errors
/// There are no predictions.
pub fn score_benchmark(benchmark: Benchmark, predictions: &[Prediction]) -> Result<BenchmarkReport> {
    if predictions.is_empty() {
        return Err(EvalError::malformed_row("predictions", "the file has no rows", "give one JSON object per line"));
    }
    let scores: Vec<f64> = predictions.iter().map(|p| f64::from(p.score())).collect();
    let rows = || predictions.iter().zip(&scores);
    let scores_of = |regression: bool| -> Vec<f64> {
        rows().filter(|(p, _)| p.is_regression() == regression).map(|(_, score)| *score).collect()
    };
    let mut categories: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (prediction, score) in rows() {
        if let Some(category) = &prediction.category {
            categories.entry(category).or_default().push(*score);
        }
    }
    let by_category: BTreeMap<String, CategoryScore> =
        categories.into_iter().map(|(name, scores)| (name.to_string(), CategoryScore::new(&scores))).collect();
    let all = CategoryScore::new(&scores);
    let (task_mean, task_mean_ci95) = task_mean(benchmark, &by_category).unzip();
    Ok(BenchmarkReport {
        benchmark: benchmark.name(),
        n: all.n,
        unusable_solutions: predictions.iter().filter(|p| p.check_solution().is_err()).count(),
        errors: predictions.iter().filter(|p| p.error.is_some()).count(),
        overall: all.score,
        overall_ci95: all.ci95,
        mean_acc: mean(&scores_of(false)),
        mean_mra: mean(&scores_of(true)),
        task_mean,
        task_mean_ci95,
        by_category,
    })
}

/// The mean of the tasks' scores and its 95 % interval; `None` if the benchmark has no tasks or its rows have no
/// categories. The score of a task is the mean of its categories' scores.
fn task_mean(benchmark: Benchmark, by_category: &BTreeMap<String, CategoryScore>) -> Option<(f64, [f64; 2])> {
    let mut tasks: BTreeMap<&str, Vec<&CategoryScore>> = BTreeMap::new();
    for (category, part) in by_category {
        tasks.entry(benchmark.task_of_category(category)?).or_default().push(part);
    }
    let weight = |parts: &[&CategoryScore]| 1.0 / (tasks.len() * parts.len()) as f64;
    let weighted: Vec<WeightedMean> = tasks
        .values()
        .flat_map(|parts| {
            parts.iter().map(move |p| WeightedMean { weight: weight(parts), mean: p.score, score_count: p.n })
        })
        .collect();
    let mean = weighted.iter().map(|m| m.weight * m.mean).sum();
    (!weighted.is_empty()).then(|| (mean, weighted_sum_interval(&weighted)))
}

fn mean(scores: &[f64]) -> f64 {
    if scores.is_empty() { 0.0 } else { scores.iter().sum::<f64>() / scores.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn golden(name: &str) -> String {
        let path = format!("{}/../tests/golden/rewards/eval/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    }

    fn predictions(benchmark: Benchmark) -> Vec<Prediction> {
        golden(&format!("{}.jsonl", benchmark.name()))
            .lines()
            .map(|line| Prediction::from_json_line(line).unwrap())
            .collect()
    }

    #[test]
    fn row_scores_equal_the_evaluation_script() {
        let expected: Value = serde_json::from_str(&golden("expected.json")).unwrap();
        for benchmark in Benchmark::ALL {
            let want = expected[benchmark.name()]["row_rewards"].as_array().unwrap();
            let got = predictions(benchmark);
            assert_eq!(got.len(), want.len());
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                assert_eq!(got.score(), want.as_f64().unwrap() as f32, "{} row {i}: {got:?}", benchmark.name());
            }
        }
    }

    #[test]
    fn benchmark_scores_equal_the_evaluation_script() {
        let expected: Value = serde_json::from_str(&golden("expected.json")).unwrap();
        for benchmark in Benchmark::ALL {
            let want = &expected[benchmark.name()];
            let report = score_benchmark(benchmark, &predictions(benchmark)).unwrap();
            let got = serde_json::to_value(&report).unwrap();
            let near = |got: &Value, want: &Value| (got.as_f64().unwrap() - want.as_f64().unwrap()).abs() < 1e-7;
            for key in ["n", "overall", "mean_acc", "mean_mra"] {
                assert!(near(&got[key], &want[key]), "{} {key}", report.benchmark);
            }
            assert_eq!(got.get("task_mean").is_some(), want.get("task_mean").is_some());
            assert!(want.get("task_mean").is_none_or(|want| near(&got["task_mean"], want)));
            let categories = want["by_category"].as_object().unwrap();
            assert_eq!(report.by_category.len(), categories.len());
            for (name, want) in categories {
                let got = &got["by_category"][name];
                assert!(near(&got["score"], &want["score"]) && got["n"] == want["n"], "{name}");
            }
        }
    }

    #[test]
    fn intervals_contain_their_scores() {
        let report = score_benchmark(Benchmark::VsiBench, &predictions(Benchmark::VsiBench)).unwrap();
        let contains = |[low, high]: [f64; 2], x: f64| 0.0 <= low && low < x + 1e-12 && x < high + 1e-12 && high <= 1.0;
        assert!(contains(report.overall_ci95, report.overall));
        assert!(contains(report.task_mean_ci95.unwrap(), report.task_mean.unwrap()));
        assert!(report.by_category.values().all(|part| contains(part.ci95, part.score)));
    }

    #[test]
    fn rows_without_category_count_in_the_overall_score() {
        let mut rows = predictions(Benchmark::VsiBench);
        rows.iter_mut().for_each(|row| row.category = None);
        let report = score_benchmark(Benchmark::VsiBench, &rows).unwrap();
        assert_eq!((report.n, report.by_category.len(), report.task_mean), (rows.len(), 0, None));
        assert!(score_benchmark(Benchmark::Mmvu, &[]).unwrap_err().to_string().starts_with("predictions: "));
    }
}
