//! Computes the scores of a benchmark from its predictions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::bootstrap::{ScoreTotal, ScoredRow, bootstrap_intervals, sum_of_totals};
use crate::error::{Error, Result};
use crate::interval::wilson_interval;
use crate::metrics::{MetricScore, metric_scores};
use crate::task::{GroupRule, Headline, Task};
use crate::{Extraction, Prediction};

/// The scores of a benchmark, from 0 to 1, with 95 % confidence intervals.
///
/// Intervals come from the bootstrap over videos ([`bootstrap_intervals`]) and are widened to contain the score. If all
/// scores are equal, the bootstrap interval has no width, and the Wilson interval is given instead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchmarkReport {
    /// Name of the benchmark.
    pub benchmark: String,
    /// Version of the task file.
    pub task_version: u32,
    /// How the answer is extracted from an output.
    pub extraction: Extraction,
    /// Number of scored rows.
    pub n: usize,
    /// Number of questions of the published benchmark, if `n` is another number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_rows: Option<usize>,
    /// Number of rows whose solution cannot be compared with outputs ([`Prediction::check_solution`]). These rows count
    /// in all means, as in the papers' evaluation scripts.
    pub unusable_solutions: usize,
    /// Number of rows without an output, because of an error ([`Prediction::error`]). They score 0.
    pub errors: usize,
    /// Number of rows whose output was cut at the maximum number of tokens. The cut output is scored like any other.
    pub truncated: usize,
    /// Mean score of all rows.
    pub overall: f64,
    /// 95 % confidence interval of `overall`.
    pub overall_ci95: [f64; 2],
    /// Mean score of the rows whose problem is not a regression; 0 if there are no such rows.
    pub mean_acc: f64,
    /// Mean relative accuracy of the rows whose problem is a regression; 0 if there are no such rows.
    pub mean_mra: f64,
    /// Number of rows whose problem is a regression.
    #[serde(default)]
    pub regressions: usize,
    /// The benchmark's headline figure: the score that the papers' tables list.
    pub headline: HeadlineScore,
    /// The mean of the scores of the benchmark's tasks: the official score of VSI-Bench.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_mean: Option<f64>,
    /// 95 % confidence interval of `task_mean`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_mean_ci95: Option<[f64; 2]>,
    /// Scores by category; rows without a category are left out.
    pub by_category: BTreeMap<String, CategoryScore>,
    /// Further scores of the benchmark ([`crate::task::MetricKind`]).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, MetricScore>,
}

/// The headline figure of a benchmark: the score that tables of results list.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadlineScore {
    /// Which of the benchmark's scores is the headline figure.
    pub metric: Headline,
    /// The value of the headline figure, from 0 to 1.
    pub score: f64,
    /// 95 % confidence interval of `score`.
    pub ci95: [f64; 2],
}

/// The mean score of the rows of one category.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CategoryScore {
    /// Number of rows of the category.
    pub n: usize,
    /// Mean score of the category's rows.
    pub score: f64,
    /// 95 % confidence interval of `score`.
    pub ci95: [f64; 2],
    /// Number of rows whose problem is a regression.
    #[serde(default)]
    pub regressions: usize,
}

/// Whether these predictions can be those of the benchmark: `reel eval` has written them for it, or there are as many as
/// the benchmark has questions. Always true for a task that is not built in.
pub fn can_be_predictions_of(task: &Task, predictions: &[Prediction]) -> bool {
    task.user_file_text.is_some()
        || task.rows.is_none_or(|rows| rows == predictions.len())
        || predictions.iter().all(|row| row.benchmark.as_ref() == Some(&task.name))
}

/// Scores the predictions of a benchmark.
///
/// # Errors
/// There are no predictions.
pub fn score_benchmark(task: &Task, predictions: &[Prediction], extraction: Extraction) -> Result<BenchmarkReport> {
    if predictions.is_empty() {
        return Err(Error::failed("predictions", "the file has no rows", "give one JSON object per line"));
    }
    let row_scores: Vec<f64> = predictions.iter().map(|p| p.score(task, extraction)).collect();
    let scores_of = |regression: bool| -> Vec<f64> {
        let rows = predictions.iter().zip(&row_scores);
        rows.filter(|(p, _)| p.is_regression() == regression).map(|(_, score)| *score).collect()
    };
    let units = scored_units(task, predictions.iter().zip(row_scores.iter().map(|&score| [score])));
    let scores: Vec<f64> = units.iter().map(|(_, [score])| *score).collect();
    let groups = ScoreGroups::new(task, predictions);
    let headline = groups.headline_index(task.score.headline);
    let rows: Vec<ScoredRow<'_>> = units
        .iter()
        .map(|(p, [score])| ScoredRow { cluster: p.path.as_deref(), group: groups.group_index(p), score: *score })
        .collect();
    let totals = groups.group_totals(&rows);
    let means = groups.statistics(&totals);
    let intervals = bootstrap_intervals(&rows, totals.len(), |totals| groups.statistics(totals));
    let mean_of = |i: usize| means[i].unwrap_or_default();
    let interval = |i: usize, without_width: [f64; 2]| match intervals[i] {
        Some([low, high]) if low < high => [low.min(mean_of(i)), high.max(mean_of(i))],
        _ => without_width,
    };
    let categories = groups.names.iter().enumerate().map(|(i, name)| {
        let (n, score) = (groups.category_total(&totals, i).count as usize, mean_of(FIRST_CATEGORY_INDEX + i));
        let (ci95, regressions) =
            (interval(FIRST_CATEGORY_INDEX + i, wilson_interval(score, n)), groups.regressions(&totals, i));
        (name.to_string(), CategoryScore { n, score, ci95, regressions })
    });
    let (overall, task_mean) = (mean(&scores), means[TASK_MEAN]);
    let without_width = |statistic: usize| {
        let rows = if statistic == TASK_MEAN { groups.effective_rows(&totals) } else { scores.len() };
        wilson_interval(mean_of(statistic), rows)
    };
    Ok(BenchmarkReport {
        benchmark: task.name.clone(),
        task_version: task.version,
        extraction,
        n: predictions.len(),
        published_rows: task.rows.filter(|&rows| rows != predictions.len()),
        unusable_solutions: predictions.iter().filter(|p| p.check_solution().is_err()).count(),
        errors: predictions.iter().filter(|p| p.error.is_some()).count(),
        truncated: predictions.iter().filter(|p| p.is_truncated).count(),
        overall,
        overall_ci95: interval(OVERALL_INDEX, wilson_interval(overall, scores.len())),
        mean_acc: mean(&scores_of(false)),
        mean_mra: mean(&scores_of(true)),
        regressions: scores_of(true).len(),
        headline: HeadlineScore {
            metric: task.score.headline,
            score: mean_of(headline),
            ci95: interval(headline, without_width(headline)),
        },
        task_mean,
        task_mean_ci95: task_mean.map(|_| interval(TASK_MEAN, without_width(TASK_MEAN))),
        by_category: categories.collect(),
        metrics: metric_scores(task, predictions, extraction)?,
    })
}

/// Returns the mean score of all rows, or of all groups if the task scores groups: `overall` of the report.
pub fn overall_score<'p>(
    task: &Task,
    predictions: impl Iterator<Item = &'p Prediction>,
    extraction: Extraction,
) -> f64 {
    let units = scored_units(task, predictions.map(|row| (row, [row.score(task, extraction)])));
    mean(&units.iter().map(|(_, [score])| *score).collect::<Vec<_>>())
}

/// Returns the rows that count in the means, with their scores. If the task scores groups ([`GroupRule::AllRight`]), this
/// is the first row of each group, with 1 if all rows of the group have the score 1, else 0.
pub(crate) fn scored_units<'p, const RUNS: usize>(
    task: &Task,
    rows: impl Iterator<Item = (&'p Prediction, [f64; RUNS])>,
) -> Vec<(&'p Prediction, [f64; RUNS])> {
    let mut units: Vec<(&Prediction, [f64; RUNS])> = Vec::new();
    let mut index_of: HashMap<&str, usize> = HashMap::new();
    for (row, scores) in rows {
        match row.group.as_ref().filter(|_| task.score.groups == Some(GroupRule::AllRight)) {
            None => units.push((row, scores)),
            Some(group) => {
                let right = scores.map(|score| f64::from(u8::from(score == 1.0)));
                let index = *index_of.entry(&group.name).or_insert(units.len());
                match units.get_mut(index) {
                    None => units.push((row, right)),
                    Some((_, all)) => all.iter_mut().zip(right).for_each(|(all, right)| *all = all.min(right)),
                }
            }
        }
    }
    units
}

/// The index of the overall score in the statistics that `ScoreGroups::statistics` returns.
pub(crate) const OVERALL_INDEX: usize = 0;
/// The index of the mean over tasks.
const TASK_MEAN: usize = 1;
/// The index of the mean of accuracy and mean relative accuracy.
const ACCURACY_AND_MRA: usize = 2;
/// The index of the first category's score. Those of the other categories follow.
pub(crate) const FIRST_CATEGORY_INDEX: usize = 3;

/// The categories of a benchmark, and the tasks to which the categories belong. Scores are summed separately for each
/// set of categories that a row has and, within a set, for regression rows and other rows.
pub(crate) struct ScoreGroups<'a> {
    /// The names of the categories, sorted.
    pub(crate) names: Vec<&'a str>,
    /// The sets of categories that rows have, as sorted indices of names; the set of a row without a category is the last.
    sets: Vec<Vec<usize>>,
    /// For each task, the indices of its categories; empty for a benchmark whose score is the mean over rows.
    tasks: Vec<Vec<usize>>,
}

impl<'a> ScoreGroups<'a> {
    pub(crate) fn new(task: &'a Task, predictions: &'a [Prediction]) -> Self {
        let mut names: Vec<&str> = predictions.iter().flat_map(|p| &p.categories).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let mut tasks: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, name) in names.iter().enumerate() {
            if let Some(part) = task.subtask_of_category(name) {
                tasks.entry(part).or_default().push(i);
            }
        }
        let mut groups = Self { names, sets: Vec::new(), tasks: tasks.into_values().collect() };
        let sets: BTreeSet<Vec<usize>> = predictions.iter().map(|p| groups.category_set(p)).collect();
        groups.sets = sets.into_iter().filter(|set| !set.is_empty()).chain([Vec::new()]).collect();
        groups
    }

    fn category_set(&self, prediction: &Prediction) -> Vec<usize> {
        let position = |category: &String| self.names.binary_search(&&category[..]).ok();
        let set: BTreeSet<usize> = prediction.categories.iter().filter_map(position).collect();
        set.into_iter().collect()
    }

    /// The number of groups: two per set of categories (regression rows and other rows).
    pub(crate) fn group_count(&self) -> usize {
        2 * self.sets.len()
    }

    /// Returns the index of the group of a row.
    pub(crate) fn group_index(&self, prediction: &Prediction) -> usize {
        let own = self.category_set(prediction);
        let set = self.sets.iter().position(|set| *set == own).unwrap_or(self.sets.len() - 1);
        2 * set + usize::from(prediction.is_regression())
    }

    /// Returns the total of the scores of each group.
    pub(crate) fn group_totals(&self, rows: &[ScoredRow<'_>]) -> Vec<ScoreTotal> {
        let mut totals = vec![ScoreTotal::default(); self.group_count()];
        for row in rows {
            totals[row.group] = sum_of_totals(&[totals[row.group], ScoreTotal { sum: row.score, count: 1.0 }]);
        }
        totals
    }

    pub(crate) fn category_total(&self, totals: &[ScoreTotal], category: usize) -> ScoreTotal {
        let own = self.sets.iter().zip(totals.chunks(2)).filter(|(set, _)| set.contains(&category));
        own.fold(ScoreTotal::default(), |sum, (_, group)| sum_of_totals(&[sum, sum_of_totals(group)]))
    }

    /// The number of rows of a category whose problem type is `regression` (the answer is a number).
    fn regressions(&self, totals: &[ScoreTotal], category: usize) -> usize {
        let own = self.sets.iter().zip(totals.chunks(2)).filter(|(set, _)| set.contains(&category));
        own.map(|(_, group)| group[1].count as usize).sum()
    }

    /// Returns all statistics, computed from the totals of all groups: first the three at fixed indices, then the
    /// mean of each category. A mean without rows is `None`.
    pub(crate) fn statistics(&self, totals: &[ScoreTotal]) -> Vec<Option<f64>> {
        let categories = (0..self.names.len()).map(|i| self.category_total(totals, i).mean());
        let of_kind = |regression: usize| {
            let own = totals.iter().skip(regression).step_by(2).copied();
            own.fold(ScoreTotal::default(), |a, b| sum_of_totals(&[a, b])).mean()
        };
        let both = match (of_kind(0), of_kind(1)) {
            (Some(accuracy), Some(mra)) => Some((accuracy + mra) / 2.0),
            (one, other) => one.or(other),
        };
        [sum_of_totals(totals).mean(), self.task_mean(totals), both].into_iter().chain(categories).collect()
    }

    /// The index of the statistic that is the headline figure. Without categories the mean over tasks is undefined, so
    /// the mean over rows is used.
    pub(crate) fn headline_index(&self, headline: Headline) -> usize {
        match headline {
            Headline::TaskMean if !self.tasks.is_empty() => TASK_MEAN,
            Headline::TaskMean | Headline::Overall => OVERALL_INDEX,
            Headline::MeanOfAccuracyAndMra => ACCURACY_AND_MRA,
        }
    }

    /// The mean over tasks of each task's score; a task's score is the mean of its categories' scores. `None` if there
    /// are no tasks, or if a category has no rows.
    fn task_mean(&self, totals: &[ScoreTotal]) -> Option<f64> {
        let mut sum = 0.0;
        for parts in &self.tasks {
            let means: Option<Vec<f64>> = parts.iter().map(|&i| self.category_total(totals, i).mean()).collect();
            sum += mean(&means?);
        }
        (!self.tasks.is_empty()).then(|| sum / self.tasks.len() as f64)
    }

    /// The number of rows whose plain mean varies as much as the mean over tasks, if all rows have the same variance. It
    /// is smaller than the number of all rows if some tasks have few rows.
    fn effective_rows(&self, totals: &[ScoreTotal]) -> usize {
        let variances = self.tasks.iter().flat_map(|parts| {
            let weight = 1.0 / (self.tasks.len() * parts.len()) as f64;
            parts.iter().map(move |&i| weight * weight / self.category_total(totals, i).count)
        });
        (1.0 / variances.sum::<f64>()).round() as usize
    }
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

    fn task(name: &str) -> Task {
        Task::from_names(name).unwrap().remove(0)
    }

    fn score(task: &Task, rows: &[Prediction]) -> BenchmarkReport {
        score_benchmark(task, rows, Extraction::Tags).unwrap()
    }

    fn predictions(task: &Task) -> Vec<Prediction> {
        golden(&format!("{}.jsonl", task.name))
            .lines()
            .map(|line| Prediction::from_json_line(line).unwrap().prepare_for_scoring(task))
            .collect()
    }

    #[test]
    fn row_scores_equal_the_evaluation_script() {
        let expected: Value = serde_json::from_str(&golden("expected.json")).unwrap();
        for task in Task::from_names("all").unwrap() {
            let want = expected[&task.name]["row_rewards"].as_array().unwrap();
            let got = predictions(&task);
            assert_eq!(got.len(), want.len());
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                assert_eq!(
                    got.score(&task, Extraction::Tags) as f32,
                    want.as_f64().unwrap() as f32,
                    "{} row {i}: {got:?}",
                    task.name
                );
            }
        }
    }

    #[test]
    fn benchmark_scores_equal_the_evaluation_script() {
        let expected: Value = serde_json::from_str(&golden("expected.json")).unwrap();
        for task in Task::from_names("all").unwrap() {
            let want = &expected[&task.name];
            let report = score(&task, &predictions(&task));
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
        let task = task("vsibench");
        let report = score(&task, &predictions(&task));
        let contains = |[low, high]: [f64; 2], x: f64| 0.0 <= low && low < x + 1e-12 && x < high + 1e-12 && high <= 1.0;
        assert!(contains(report.overall_ci95, report.overall));
        assert!(contains(report.task_mean_ci95.unwrap(), report.task_mean.unwrap()));
        assert!(report.by_category.values().all(|part| contains(part.ci95, part.score)));
    }

    /// One row of a task and 50 rows of another, all wrong: their mean varies as that of four rows does.
    #[test]
    fn mean_over_tasks_has_the_interval_of_fewer_rows() {
        let task = task("vsibench");
        let row = Prediction { output: String::new(), ..predictions(&task).remove(0) };
        let of_task = |name: &str| Prediction { categories: vec![name.into()], ..row.clone() };
        let rows = [vec![of_task("a")], vec![of_task("b"); 50]].concat();
        let report = score(&task, &rows);
        assert_eq!(report.overall_ci95, wilson_interval(0.0, 51));
        assert_eq!(report.task_mean_ci95, Some(wilson_interval(0.0, 4)));
    }

    #[test]
    fn rows_without_category_count_in_the_overall_score() {
        let task = task("vsibench");
        let mut rows = predictions(&task);
        rows.iter_mut().for_each(|row| row.categories = Vec::new());
        let report = score(&task, &rows);
        assert_eq!((report.n, report.by_category.len(), report.task_mean), (rows.len(), 0, None));
        assert!(score_benchmark(&task, &[], Extraction::Tags).unwrap_err().to_string().starts_with("predictions: "));
    }
}
