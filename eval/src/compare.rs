//! Compares two runs over the same questions. The scores are compared row by row, which needs far fewer rows to find a
//! difference than comparing two means.
//!
//! - Difference of the scores with its 95 % interval: a paired bootstrap, which resamples the differences of rows by
//!   video.
//! - McNemar's test (1947), exact: if both runs were equally good, each row on which they disagree would favour either
//!   with probability one half. Only rows whose score is 0 or 1 count.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::bootstrap::{ScoredRow, bootstrap_intervals};
use crate::error::{Error, Result};
use crate::score::{FIRST_CATEGORY_INDEX, ScoreGroups, scored_units};
use crate::task::Task;
use crate::{Extraction, Prediction};

/// The result of comparing two runs over the same questions. Differences are run B minus run A.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Name of the benchmark.
    pub benchmark: String,
    /// Number of rows that both runs have.
    pub n: usize,
    /// Number of rows that only run A has; they are not compared.
    pub only_in_a: usize,
    /// Number of rows that only run B has; they are not compared.
    pub only_in_b: usize,
    /// The benchmark's headline figure, its score in tables of results ([`crate::Headline`]).
    pub score: ScoreDifference,
    /// Scores by category.
    pub by_category: BTreeMap<String, ScoreDifference>,
    /// Number of rows that both runs answer correctly. This count and the next ones include only rows whose score is
    /// 0 or 1.
    pub both_right: usize,
    /// Number of rows that only run A answers correctly.
    pub only_a_right: usize,
    /// Number of rows that only run B answers correctly.
    pub only_b_right: usize,
    /// Number of rows that neither run answers correctly.
    pub both_wrong: usize,
    /// p-value of McNemar's exact test: the probability of a split of the disagreements at least as uneven as observed
    /// if both runs were equally good.
    pub mcnemar_p: f64,
    /// The ids of the rows on which the runs disagree.
    pub disagreements: Vec<String>,
}

/// A score of both runs, and the difference of the two values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScoreDifference {
    /// Number of rows that the score covers.
    pub n: usize,
    /// The score of run A, from 0 to 1.
    pub a: f64,
    /// The score of run B, from 0 to 1.
    pub b: f64,
    /// The score of run B minus the score of run A.
    pub difference: f64,
    /// 95 % interval of the difference.
    pub ci95: [f64; 2],
}

/// A row that both runs have, with its score in run A and in run B.
struct RowPair<'a> {
    row: &'a Prediction,
    scores: [f64; 2],
}

/// Compares the predictions of run A with those of run B. Rows are paired by their name (`problem_id`); if several rows
/// have one name, they are paired in their order.
///
/// # Errors
/// The runs have no row in common, or two paired rows have different questions or solutions.
pub fn compare_runs(task: &Task, runs: [&[Prediction]; 2], extraction: Extraction) -> Result<Comparison> {
    let pairs = pairs(task, runs, extraction)?;
    if pairs.is_empty() {
        let what = format!("have no row of {} in common", task.name);
        return Err(Error::failed("the two runs", what, "compare runs over the same data"));
    }
    let rows: Vec<Prediction> = pairs.iter().map(|pair| pair.row.clone()).collect();
    let groups = ScoreGroups::new(task, &rows);
    let units = scored_units(task, pairs.iter().map(|pair| (pair.row, pair.scores)));
    let scored = |score: &dyn Fn([f64; 2]) -> f64| -> Vec<ScoredRow<'_>> {
        units
            .iter()
            .map(|(row, scores)| ScoredRow {
                cluster: row.path.as_deref(),
                group: groups.group_index(row),
                score: score(*scores),
            })
            .collect()
    };
    let [a, b] = [0, 1].map(|run| groups.group_totals(&scored(&|scores| scores[run])));
    let differences = scored(&|scores| scores[1] - scores[0]);
    let intervals = bootstrap_intervals(&differences, groups.group_count(), |totals| groups.statistics(totals));
    let (means_a, means_b) = (groups.statistics(&a), groups.statistics(&b));
    let difference = |i: usize, n: usize| {
        let (a, b) = (means_a[i].unwrap_or_default(), means_b[i].unwrap_or_default());
        let [low, high] = intervals[i].unwrap_or([-1.0, 1.0]);
        ScoreDifference { n, a, b, difference: b - a, ci95: [low.min(b - a), high.max(b - a)] }
    };
    let by_category = groups.names.iter().enumerate().map(|(i, name)| {
        let n = groups.category_total(&a, i).count as usize;
        (name.to_string(), difference(FIRST_CATEGORY_INDEX + i, n))
    });
    let right: Vec<[bool; 2]> = pairs.iter().filter_map(RowPair::right).collect();
    let count = |want: [bool; 2]| right.iter().filter(|right| **right == want).count();
    let (only_a_right, only_b_right) = (count([true, false]), count([false, true]));
    let disagreeing = pairs.iter().filter(|pair| pair.scores[0] != pair.scores[1]);
    Ok(Comparison {
        benchmark: task.name.clone(),
        n: pairs.len(),
        only_in_a: runs[0].len() - pairs.len(),
        only_in_b: runs[1].len() - pairs.len(),
        score: difference(groups.headline_index(task.score.headline), pairs.len()),
        by_category: by_category.collect(),
        both_right: count([true, true]),
        only_a_right,
        only_b_right,
        both_wrong: count([false, false]),
        mcnemar_p: mcnemar_p(only_a_right, only_b_right),
        disagreements: disagreeing.map(|pair| pair.row.id.clone().unwrap_or_default()).collect(),
    })
}

impl RowPair<'_> {
    /// Whether run A and run B answer the row correctly; `None` for a row whose score may be between 0 and 1.
    fn right(&self) -> Option<[bool; 2]> {
        (!self.row.has_partial_score()).then(|| self.scores.map(|score| score == 1.0))
    }
}

fn pairs<'a>(task: &Task, [a, b]: [&'a [Prediction]; 2], extraction: Extraction) -> Result<Vec<RowPair<'a>>> {
    // Numbers the rows of each name. The n-th row of a name in one run is paired with the n-th row of this name in
    // the other run.
    fn named(rows: &[Prediction]) -> impl Iterator<Item = ((&str, usize), &Prediction)> {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        rows.iter().map(move |row| {
            let name = row.id.as_deref().or(row.question.as_deref()).unwrap_or_default();
            let count = seen.entry(name).or_default();
            *count += 1;
            ((name, *count), row)
        })
    }
    let others: HashMap<_, _> = named(b).collect();
    let mut pairs = Vec::new();
    for ((name, count), row) in named(a) {
        let Some(other) = others.get(&(name, count)) else { continue };
        if (&row.question, &row.solution) != (&other.question, &other.solution) {
            let what = format!("have different questions or solutions in row `{name}`");
            return Err(Error::failed("the two runs", what, "compare runs over the same data"));
        }
        pairs.push(RowPair { row, scores: [row, other].map(|row| row.score(task, extraction)) });
    }
    Ok(pairs)
}

/// Returns the two-sided p-value of McNemar's exact test. `only_a` and `only_b` are the numbers of rows on which only
/// run A, or only run B, is right.
fn mcnemar_p(only_a: usize, only_b: usize) -> f64 {
    let n = only_a + only_b;
    let mut log_term = n as f64 * 0.5f64.ln();
    let mut tail = 0.0;
    for i in 0..=only_a.min(only_b) {
        if i > 0 {
            log_term += ((n - i + 1) as f64 / i as f64).ln();
        }
        tail += log_term.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn run(outputs: &[&str]) -> Vec<Prediction> {
        let row = |(i, output): (usize, &&str)| {
            let row = json!({
                "problem_id": i, "problem": format!("Question {i}?"), "problem_type": "multiple choice",
                "solution": "<answer>A</answer>", "output": output, "category": if i % 2 == 0 { "x" } else { "y" },
                "path": format!("{}.mp4", i / 2),
            });
            Prediction::from_json_line(&row.to_string()).unwrap()
        };
        outputs.iter().enumerate().map(row).collect()
    }

    fn compare(a: &[Prediction], b: &[Prediction]) -> Result<Comparison> {
        compare_runs(&Task::from_names("mmvu")?.remove(0), [a, b], Extraction::Tags)
    }

    #[test]
    fn rows_are_compared_one_by_one() {
        let (a, b) = (run(&["A", "A", "B", "B", "B", "A"]), run(&["A", "B", "A", "A", "B", "A", "A"]));
        let got = compare(&a, &b).unwrap();
        assert_eq!((got.n, got.only_in_a, got.only_in_b), (6, 0, 1));
        assert_eq!((got.both_right, got.only_a_right, got.only_b_right, got.both_wrong), (2, 1, 2, 1));
        assert_eq!((got.score.a, got.score.b), (0.5, 4.0 / 6.0));
        assert!((got.score.difference - 1.0 / 6.0).abs() < 1e-12);
        assert!(got.score.ci95[0] < 0.0 && got.score.ci95[1] > got.score.difference);
        assert_eq!((got.mcnemar_p, &got.disagreements[..]), (1.0, &["1", "2", "3"].map(String::from)[..]));
        assert_eq!(got.by_category["y"].n, 3);
        let same = compare(&a, &a).unwrap();
        assert_eq!((same.score.difference, same.score.ci95, same.mcnemar_p), (0.0, [0.0, 0.0], 1.0));
    }

    #[test]
    fn runs_over_other_questions_are_refused() {
        let (a, mut b) = (run(&["A", "B"]), run(&["A", "B"]));
        b[1].question = Some("Another?".into());
        assert!(compare(&a, &b).unwrap_err().to_string().contains("different questions or solutions in row `1`"));
        b.iter_mut().for_each(|row| row.id = Some("z".into()));
        assert!(compare(&a, &b).unwrap_err().to_string().contains("no row of mmvu in common"));
    }

    #[test]
    fn p_values_are_those_of_the_binomial_test() {
        // The expected values are those of scipy.stats.binomtest(k, n, 0.5).pvalue.
        for (a, b, want) in [(0, 0, 1.0), (0, 5, 0.0625), (2, 10, 0.038_574_218_75), (10, 2, 0.038_574_218_75)] {
            assert!((mcnemar_p(a, b) - want).abs() < 1e-12, "{a} {b}: {}", mcnemar_p(a, b));
        }
        assert!((mcnemar_p(450, 550) - 0.001_730_536).abs() < 1e-6, "{}", mcnemar_p(450, 550));
    }

    proptest! {
        #[test]
        fn p_values_are_probabilities_and_symmetric(a in 0usize..3000, b in 0usize..3000) {
            let p = mcnemar_p(a, b);
            prop_assert!((0.0..=1.0).contains(&p) && p == mcnemar_p(b, a));
        }
    }
}
