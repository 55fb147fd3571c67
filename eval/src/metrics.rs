//! The metrics that a report has beside the scores of rows ([`MetricKind`]). Each is a mean over rows or groups.
//!
//! ```text
//! grounding         miou, r@T                 mean IoU; share of rows with IoU >= T
//! grounded-answers  miou, iou@T, miop, iop@T  the best of a question's annotated segments; IoP = intersection / length of
//!                                             the answer's segment
//!                   acc_gqa, miou_union       right answers with IoP >= 0.5; IoU with the union of the segments
//! question-groups   group_score, relevance_score, logic_score, level_N_score
//! evidence-chains   acc; of chain K: m_tiou_K, r@T_K, m_viou_K, ap@T_K (share of a row's boxes with IoU >= T),
//!                   am_K = mean of x, lgm_K = -mean of ln(1 - x), x in acc, m_tiou_K, m_viou_K; mam, mlgm: means over K
//! ```
//! Sources: lmms-eval 0.7.3 (Charades-STA, TimeLens, Video-MME-v2), NExT-GQA 63772e0, VideoChat-R1 73b2ea9 (`miou_union`),
//! V-STaR 1894682.

use std::collections::BTreeMap;

use reel_samples::rewards::extract_answer;
use reel_samples::rewards::grounding::{BoundingBox, Segment, box_iou, json_in, segments_in, temporal_iou};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bootstrap::{ScoreTotal, ScoredRow, bootstrap_intervals};
use crate::error::{Error, Result};
use crate::prediction::GroupMember;
use crate::task::{MetricKind, ScoreRules, Task};
use crate::{Extraction, Prediction};

/// The value of a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricScore {
    /// The value, from 0 to 1 (`lgm`: from 0); `None` if it is infinite, or if rows that it needs are missing.
    pub score: Option<f64>,
    /// Number of rows or groups whose values have this mean; 0 for a value that is computed from other metrics.
    pub n: usize,
    /// 95 % confidence interval of a mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95: Option<[f64; 2]>,
}

/// The value of a row or a group for a metric.
struct MetricValue<'p> {
    metric: String,
    /// The video, whose rows are drawn together by the bootstrap.
    video: Option<&'p str>,
    value: f64,
}

/// Computes the metrics of a task from its predictions.
///
/// # Errors
/// A group of questions has an unknown type or structure.
pub fn metric_scores(
    task: &Task,
    predictions: &[Prediction],
    extraction: Extraction,
) -> Result<BTreeMap<String, MetricScore>> {
    let Some(kind) = task.score.metrics else { return Ok(BTreeMap::new()) };
    let mut values = Vec::new();
    match kind {
        MetricKind::QuestionGroups => question_groups(task, predictions, extraction, &mut values)?,
        _ => {
            for row in predictions {
                let mut add = |metric: String, value: f64| {
                    values.push(MetricValue { metric, video: row.path.as_deref(), value });
                };
                match kind {
                    MetricKind::Grounding => {
                        ious("miou", "r", row.score(task, extraction), "", &task.score.thresholds, &mut add);
                    }
                    MetricKind::GroundedAnswers => grounded_answer(task, row, extraction, &mut add),
                    _ => chain_part(task, row, extraction, &mut add),
                }
            }
        }
    }
    let mut scores = means(&values);
    if kind == MetricKind::EvidenceChains {
        add_chain_means(&mut scores);
    }
    Ok(scores)
}

/// Returns the mean of each metric with its interval.
fn means(values: &[MetricValue<'_>]) -> BTreeMap<String, MetricScore> {
    let mut indices: BTreeMap<&str, usize> = BTreeMap::new();
    indices.extend(values.iter().map(|value| (&value.metric[..], 0)));
    indices.values_mut().enumerate().for_each(|(index, entry)| *entry = index);
    let row = |value: &'_ MetricValue<'_>| indices[&value.metric[..]];
    let rows: Vec<ScoredRow<'_>> =
        values.iter().map(|value| ScoredRow { cluster: value.video, group: row(value), score: value.value }).collect();
    let intervals = bootstrap_intervals(&rows, indices.len(), |totals| totals.iter().map(|t| t.mean()).collect());
    let mean = |(name, &index): (&&str, &usize)| {
        let own: Vec<f64> = rows.iter().filter(|row| row.group == index).map(|row| row.score).collect();
        let mean = ScoreTotal { sum: own.iter().sum(), count: own.len() as f64 }.mean();
        let widened = |[low, high]: [f64; 2]| mean.map(|mean| [low.min(mean), high.max(mean)]);
        (name.to_string(), MetricScore { score: mean, n: own.len(), ci95: intervals[index].and_then(widened) })
    };
    indices.iter().map(mean).collect()
}

/// Adds an IoU under the name `mean`, and under `share@T` whether it reaches the threshold T.
fn ious(mean: &str, share: &str, iou: f64, suffix: &str, thresholds: &[f64], add: &mut impl FnMut(String, f64)) {
    add(format!("{mean}{suffix}"), iou);
    for threshold in thresholds {
        add(format!("{share}@{threshold}{suffix}"), f64::from(u8::from(iou >= *threshold)));
    }
}

/// Adds the metrics of a multiple-choice answer with the segment in `<glue>` tags on which it is based. Of several
/// segments, the first is compared with each annotated segment.
fn grounded_answer(task: &Task, row: &Prediction, extraction: Extraction, add: &mut impl FnMut(String, f64)) {
    let tagged = row.output.split_once("<glue>").and_then(|(_, rest)| rest.split_once("</glue>"));
    let spans = tagged.and_then(|(text, _)| segments_in(text.trim())).unwrap_or_default();
    let truths: Vec<Segment> = row.evidence.iter().map(|&[start, end]| Segment { start, end }).collect();
    let best = |ratio: &dyn Fn(&Segment, &Segment) -> f64| {
        let of_span = |span: &Segment| truths.iter().map(|truth| ratio(span, truth)).fold(0.0, f64::max);
        spans.first().filter(|_| row.error.is_none()).map_or(0.0, of_span)
    };
    let iou = best(&|span, truth| temporal_iou(&[*span], &[*truth]));
    let iop = best(&share_inside);
    ious("miou", "iou", iou, "", &task.score.thresholds, add);
    ious("miop", "iop", iop, "", &task.score.thresholds, add);
    let is_right = row.score(task, extraction) == 1.0;
    add("acc_gqa".into(), f64::from(u8::from(is_right && iop >= 0.5)));
    add("miou_union".into(), if row.error.is_none() { temporal_iou(&spans, &truths) } else { 0.0 });
}

/// Returns the share of a span that is inside a segment. A span without length is inside as a whole or not at all.
fn share_inside(span: &Segment, truth: &Segment) -> f64 {
    if span.start == span.end {
        return f64::from(u8::from((truth.start..=truth.end).contains(&span.start)));
    }
    let common = span.end.min(truth.end) - span.start.max(truth.start);
    if span.end > span.start { (common / (span.end - span.start)).max(0.0) } else { 0.0 }
}

/// Adds the metrics of groups of four questions. The questions of a group are in the order of the numbers at the end of
/// their ids; the group's level is that of the last one.
fn question_groups<'p>(
    task: &Task,
    predictions: &'p [Prediction],
    extraction: Extraction,
    values: &mut Vec<MetricValue<'p>>,
) -> Result<()> {
    let mut groups: BTreeMap<&str, Vec<(&GroupMember, &Prediction)>> = BTreeMap::new();
    for row in predictions {
        if let Some(group) = &row.group {
            groups.entry(&group.name).or_default().push((group, row));
        }
    }
    for (name, mut rows) in groups {
        rows.sort_by_key(|(_, row)| number_at_end(row.id.as_deref().unwrap_or_default()));
        let right: Vec<bool> = rows.iter().map(|(_, row)| row.score(task, extraction) == 1.0).collect();
        let Some((group, row)) = rows.last() else { continue };
        let value = match &group.kind[..] {
            "relevance" => Some((right.iter().filter(|right| **right).count() as f64 / 4.0).powi(2)),
            "logic" => chain_score(&right, &group.structure),
            _ => None,
        };
        let value = value.ok_or_else(|| {
            let what = format!("group {name} has the unknown type `{}` or structure `{}`", group.kind, group.structure);
            Error::failed("group_type", what, "correct the rows, or leave them out")
        })?;
        let names = ["group_score".into(), format!("{}_score", group.kind), format!("level_{}_score", group.level)];
        let video = row.path.as_deref();
        values.extend(names.map(|metric| MetricValue { metric, video, value }));
    }
    Ok(())
}

/// The number at the end of an id such as `001-3`.
fn number_at_end(id: &str) -> u64 {
    let digits = id.len() - id.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    id[id.len() - digits..].parse().unwrap_or(0)
}

/// Returns the score of a group whose questions build on each other: it grows with the number of right answers before
/// the first wrong one. If two questions are on one step of `structure`, the wrong first of them does not end the chain
/// when the second is right. `None` for an unknown structure.
fn chain_score(right: &[bool], structure: &str) -> Option<f64> {
    let steps: String = structure.chars().filter(|c| !c.is_whitespace()).collect();
    let chain = right.iter().take_while(|right| **right).count();
    let is_right = |index: usize| right.get(index) == Some(&true);
    let (scores, chain) = match &steps[..] {
        "[1,2,3,4]" => ([0.0, 1.0 / 16.0, 4.0 / 16.0, 9.0 / 16.0, 1.0], chain),
        "[1,[2,3],4]" => {
            ([0.0, 1.0 / 12.0, 4.0 / 12.0, 7.0 / 12.0, 1.0], chain + usize::from(chain == 1 && is_right(2)))
        }
        "[[1,2],3,4]" => {
            ([0.0, 1.0 / 10.0, 2.0 / 10.0, 5.0 / 10.0, 1.0], chain + usize::from(chain == 0 && is_right(1)))
        }
        _ => return None,
    };
    scores.get(chain).copied()
}

/// Adds the metrics of one of the questions of a chain: `what`, `when K` or `where K`. An answer to `what` counts only if
/// a judge has scored it.
fn chain_part(task: &Task, row: &Prediction, extraction: Extraction, add: &mut impl FnMut(String, f64)) {
    let ScoreRules { thresholds, box_thresholds, .. } = &task.score;
    match row.group.as_ref().and_then(|group| group.part.split_once(' ')) {
        Some(("when", chain)) => {
            ious("m_tiou", "r", row.score(task, extraction), &format!("_{chain}"), thresholds, add);
        }
        Some(("where", chain)) => {
            let ious = match row.error {
                None => frame_ious(&row.answer(task, extraction), extract_answer(&row.solution)),
                Some(_) => vec![0.0],
            };
            let share = |reached: &dyn Fn(f64) -> f64| {
                ious.iter().map(|&iou| reached(iou)).sum::<f64>() / ious.len().max(1) as f64
            };
            add(format!("m_viou_{chain}"), share(&|iou| iou));
            for threshold in box_thresholds {
                add(format!("ap@{threshold}_{chain}"), share(&|iou| f64::from(u8::from(iou >= *threshold))));
            }
        }
        _ if row.judge.is_some() || row.error.is_some() => add("acc".into(), row.score(task, extraction)),
        _ => {}
    }
}

/// Returns the IoU of each box of the truth with the answer's box of the same key: the best, if it has several; 0 if it
/// has none.
fn frame_ious(answer: &str, truth: &str) -> Vec<f64> {
    let boxes = |text: &str| json_in(text).map(|value| value.get("boxes").cloned().unwrap_or(value));
    let (answer, truth) = (boxes(answer).unwrap_or_default(), boxes(truth).unwrap_or_default());
    let iou = |(key, truth): (&String, &Value)| {
        let truth = BoundingBox::from_json(truth)?;
        let own = answer.get(key)?;
        let several = own.as_array().into_iter().flatten().filter_map(BoundingBox::from_json);
        let ious = BoundingBox::from_json(own).into_iter().chain(several).map(|own| box_iou(&own, &truth));
        Some(ious.fold(0.0, f64::max))
    };
    truth.as_object().into_iter().flatten().map(|frame| iou(frame).unwrap_or(0.0)).collect()
}

/// Adds the arithmetic and the logarithmic means of each chain, and the means of both over the chains.
fn add_chain_means(scores: &mut BTreeMap<String, MetricScore>) {
    let score = |name: String| scores.get(&name).and_then(|metric| metric.score);
    let mut means: BTreeMap<String, Option<f64>> = BTreeMap::new();
    for chain in 1..=2 {
        let parts = ["acc".to_string(), format!("m_tiou_{chain}"), format!("m_viou_{chain}")].map(score);
        let mean = |term: fn(f64) -> f64| parts.iter().map(|part| part.map(term)).sum::<Option<f64>>().map(|s| s / 3.0);
        means.insert(format!("am_{chain}"), mean(|x| x));
        means.insert(format!("lgm_{chain}"), mean(|x| -(1.0 - x).ln()));
    }
    for (both, of) in [("mam", "am"), ("mlgm", "lgm")] {
        let chains = [1, 2].map(|chain| means.get(&format!("{of}_{chain}")).copied().flatten());
        means.insert(both.into(), chains.into_iter().sum::<Option<f64>>().map(|sum| sum / 2.0));
    }
    scores.extend(
        means
            .into_iter()
            .map(|(name, mean)| (name, MetricScore { score: mean.filter(|mean| mean.is_finite()), n: 0, ci95: None })),
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn row(output: &str, evidence: &[[u32; 2]]) -> Prediction {
        let row = json!({"problem_type": "multiple choice", "solution": "<answer>A</answer>", "output": output,
            "evidence": evidence});
        Prediction::from_json_line(&row.to_string()).unwrap()
    }

    fn scores(name: &str, rows: &[Prediction]) -> BTreeMap<String, f64> {
        let task = Task::from_names(name).unwrap().remove(0);
        let scores = metric_scores(&task, rows, Extraction::Tags).unwrap();
        scores.into_iter().map(|(name, metric)| (name, metric.score.unwrap())).collect()
    }

    #[test]
    fn spans_without_length_are_inside_or_not() {
        let of = |glue: &str| {
            scores("nextgqa", &[row(&format!("<answer>A</answer><glue>{glue}</glue>"), &[[2, 6], [8, 9]])])
        };
        assert_eq!((of("[(3.0, 3.0)]")["miop"], of("[(3.0, 3.0)]")["miou"]), (1.0, 0.0));
        assert_eq!((of("[(7, 7)]")["miop"], of("[(5, 3)]")["miop"], of("soon")["miou"]), (0.0, 0.0, 0.0));
        assert_eq!((of("[(2, 6)]")["miou"], of("[(2, 6)]")["miou_union"], of("[(2, 6)]")["acc_gqa"]), (1.0, 0.8, 1.0));
    }

    #[test]
    fn two_questions_of_one_step_do_not_end_a_chain() {
        let score = |right: [u8; 4], structure| chain_score(&right.map(|right| right == 1), structure);
        for (right, structure, want) in [
            ([1, 1, 0, 1], "[1, 2, 3, 4]", 4.0 / 16.0),
            ([1, 0, 1, 1], "[1, 2, 3, 4]", 1.0 / 16.0),
            ([1, 0, 1, 1], "[1, [2, 3], 4]", 4.0 / 12.0),
            ([1, 0, 0, 1], "[1, [2, 3], 4]", 1.0 / 12.0),
            ([0, 0, 1, 1], "[1, [2, 3], 4]", 0.0),
            ([0, 1, 1, 1], "[[1, 2], 3, 4]", 1.0 / 10.0),
            ([1, 1, 1, 0], "[[1, 2], 3, 4]", 5.0 / 10.0),
        ] {
            assert_eq!(score(right, structure), Some(want), "{right:?} {structure}");
        }
        assert_eq!((score([1; 4], "[[1, 2], 3, 4]"), score([1; 4], "[4, 3]")), (Some(1.0), None));
        assert_eq!((number_at_end("001-3"), number_at_end("a"), number_at_end("12")), (3, 0, 12));
    }

    proptest! {
        /// Compares with the count of cells of a grid, on which all times are.
        #[test]
        fn ratios_equal_those_of_rasters(
            spans in prop::collection::vec((0u32..40, 1u32..20), 1..4), start in 0u32..40, length in 1u32..20,
        ) {
            let truths: Vec<[u32; 2]> = spans.iter().map(|&(start, length)| [start, start + length]).collect();
            let output = format!("<answer>B</answer><glue>[({start}, {})]</glue>", start + length);
            let got = scores("nextgqa", &[row(&output, &truths)]);
            let cells = |[start, end]: [u32; 2]| (start..end).collect::<std::collections::BTreeSet<u32>>();
            let own = cells([start, start + length]);
            let ratio = |a: usize, b: usize| a as f64 / b as f64;
            let inside = |truth: [u32; 2]| own.intersection(&cells(truth)).count();
            let iou = truths.iter().map(|&truth| {
                // The authors divide by the length from the first start to the last end.
                let hull = (start + length).max(truth[1]) - start.min(truth[0]);
                ratio(inside(truth), if inside(truth) > 0 { hull as usize } else { 1 })
            }).fold(0.0, f64::max);
            let iop = truths.iter().map(|&truth| ratio(inside(truth), own.len())).fold(0.0, f64::max);
            let union: std::collections::BTreeSet<u32> = truths.iter().flat_map(|&truth| cells(truth)).collect();
            let of_union = ratio(own.intersection(&union).count(), own.union(&union).count());
            prop_assert!((got["miou"] - iou).abs() < 1e-12 && (got["miop"] - iop).abs() < 1e-12);
            prop_assert!((got["miou_union"] - of_union).abs() < 1e-12);
            prop_assert_eq!(got["acc_gqa"], 0.0);
        }

        /// A higher threshold is never reached by more rows, and each share is within its interval.
        #[test]
        fn shares_fall_with_the_threshold(ends in prop::collection::vec(1u32..60, 1..12)) {
            let rows: Vec<Prediction> = ends.iter().map(|end| {
                let row = json!({"problem_type": "temporal grounding", "solution": "<answer>{\"time\": [0, 30]}</answer>",
                    "output": format!("<answer>0 to {end}</answer>")});
                Prediction::from_json_line(&row.to_string()).unwrap()
            }).collect();
            let task = Task::from_names("charadessta").unwrap().remove(0);
            let scores = metric_scores(&task, &rows, Extraction::Tags).unwrap();
            let score = |name: &str| scores[name].score.unwrap();
            prop_assert!(score("r@0.3") >= score("r@0.5") && score("r@0.5") >= score("r@0.7"));
            for metric in scores.values() {
                let ([low, high], score) = (metric.ci95.unwrap(), metric.score.unwrap());
                prop_assert!(low <= score && score <= high && metric.n == ends.len());
            }
            prop_assert!((score("miou") - crate::overall_score(&task, rows.iter(), Extraction::Tags)).abs() < 1e-12);
        }

        #[test]
        fn chains_score_in_0_1_and_more_with_more_right_answers(
            right in prop::array::uniform4(any::<bool>()), index in 0usize..4,
            structure in prop::sample::select(vec!["[1,2,3,4]", "[1, [2, 3], 4]", "[[1,2],3,4]"]),
        ) {
            let score = |right: &[bool]| chain_score(right, structure).unwrap();
            prop_assert!((0.0..=1.0).contains(&score(&right)));
            let mut better = right;
            better[index] = true;
            // In a step of two questions, a right first answer does not count beside a right second one.
            prop_assert!(score(&better) >= score(&right), "{:?} {:?}", right, better);
        }
    }
}
