//! From predictions to the figures of a benchmark.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::interval::{weighted_sum_interval, wilson_interval};
use crate::{Benchmark, EvalError, Prediction, Result};

/// The figures of a benchmark, from 0 to 1, with 95 % intervals.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchmarkReport {
    /// The benchmark's name.
    pub benchmark: &'static str,
    /// Rows.
    pub n: usize,
    /// The mean of all rows.
    pub overall: f64,
    /// The interval of `overall`.
    pub overall_ci95: [f64; 2],
    /// The mean of the rows that are not regression; 0 if there are none.
    pub mean_acc: f64,
    /// The mean relative accuracy of the regression rows; 0 if there are none.
    pub mean_mra: f64,
    /// VSI-Bench's official figure: the mean over its tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_mean: Option<f64>,
    /// The interval of `task_mean`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_mean_ci95: Option<[f64; 2]>,
    /// The rows of each category; those without one are in none.
    pub by_category: BTreeMap<String, CategoryScore>,
}

/// The figures of some rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CategoryScore {
    /// Rows.
    pub n: usize,
    /// Their mean.
    pub score: f64,
    /// Its interval.
    pub ci95: [f64; 2],
}

impl CategoryScore {
    fn new(scores: &[f64]) -> Self {
        let score = mean(scores);
        Self { n: scores.len(), score, ci95: wilson_interval(score, scores.len()) }
    }
}

/// Scores the predictions of a benchmark.
pub fn score_benchmark(benchmark: Benchmark, predictions: &[Prediction]) -> Result<BenchmarkReport> {
    if predictions.is_empty() {
        return Err(EvalError::row("predictions", "there are none", "give a line of JSON a row"));
    }
    let scores: Vec<f64> = predictions.iter().map(|p| f64::from(p.score())).collect();
    let rows = || predictions.iter().zip(&scores);
    let of = |regression: bool| -> Vec<f64> {
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
        overall: all.score,
        overall_ci95: all.ci95,
        mean_acc: mean(&of(false)),
        mean_mra: mean(&of(true)),
        task_mean,
        task_mean_ci95,
        by_category,
    })
}

/// The mean over tasks and its interval, where the benchmark has tasks and the rows have categories: categories of one task are
/// averaged first.
fn task_mean(benchmark: Benchmark, by_category: &BTreeMap<String, CategoryScore>) -> Option<(f64, [f64; 2])> {
    let mut tasks: BTreeMap<&str, Vec<&CategoryScore>> = BTreeMap::new();
    for (category, part) in by_category {
        tasks.entry(benchmark.task(category)?).or_default().push(part);
    }
    let share = |parts: &[&CategoryScore]| 1.0 / (tasks.len() * parts.len()) as f64;
    let weighted: Vec<(f64, f64, usize)> =
        tasks.values().flat_map(|parts| parts.iter().map(move |p| (share(parts), p.score, p.n))).collect();
    let mean = weighted.iter().map(|(weight, score, _)| weight * score).sum();
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
        golden(&format!("{}.jsonl", benchmark.name())).lines().map(|line| Prediction::parse(line).unwrap()).collect()
    }

    #[test]
    fn each_row_scores_as_in_the_evaluation_script() {
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
    fn figures_are_those_of_the_evaluation_script() {
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
    fn intervals_hold_their_figures() {
        let report = score_benchmark(Benchmark::VsiBench, &predictions(Benchmark::VsiBench)).unwrap();
        let holds = |[low, high]: [f64; 2], x: f64| 0.0 <= low && low < x + 1e-12 && x < high + 1e-12 && high <= 1.0;
        assert!(holds(report.overall_ci95, report.overall));
        assert!(holds(report.task_mean_ci95.unwrap(), report.task_mean.unwrap()));
        assert!(report.by_category.values().all(|part| holds(part.ci95, part.score)));
    }

    #[test]
    fn rows_without_category_count_in_the_whole() {
        let mut rows = predictions(Benchmark::VsiBench);
        rows.iter_mut().for_each(|row| row.category = None);
        let report = score_benchmark(Benchmark::VsiBench, &rows).unwrap();
        assert_eq!((report.n, report.by_category.len(), report.task_mean), (rows.len(), 0, None));
        assert!(score_benchmark(Benchmark::Mmvu, &[]).unwrap_err().to_string().starts_with("predictions: "));
    }
}
