//! The evaluations of training runs (`--eval-steps`): a chart of the validation loss over the steps, for each benchmark
//! a chart of the score with its 95 % interval, and a table of all values.

use std::collections::BTreeSet;

use reel_train::runs::folder::evaluations::EvaluationLine;

use crate::report::chart::{Chart, LineSeries, XAxis, YRange};
use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::run::TrainingRun;
use crate::report::table::HtmlTable;

/// Adds the evaluations of the runs, if there are any.
pub fn add_evaluations(page: &mut HtmlPage, runs: &[TrainingRun]) {
    let benchmarks: BTreeSet<&String> =
        runs.iter().flat_map(|run| &run.evaluations).flat_map(|line| line.benchmarks.keys()).collect();
    let evaluations = || runs.iter().flat_map(|run| &run.evaluations);
    if evaluations().next().is_none() {
        return;
    }
    page.add("<h2>Evaluations</h2>\n<div class=\"curves\">\n");
    if evaluations().any(|line| line.validation.is_some()) {
        page.add_chart(&Chart::Lines {
            name: "eval/loss".into(),
            x: XAxis::Steps,
            unit: "",
            series: runs.iter().map(loss_series).collect(),
            range: YRange::Robust,
        });
    }
    for name in &benchmarks {
        let series = |run: &TrainingRun| {
            let scores = run.evaluations.iter().filter_map(|line| Some((line.step, line.benchmarks.get(*name)?)));
            let (points, intervals) = scores.map(|(step, b)| ((step, b.score), b.ci95)).unzip();
            LineSeries { intervals, ..LineSeries::new(&run.name, points) }
        };
        let series = runs.iter().map(series).collect();
        page.add_chart(&Chart::Lines {
            name: format!("eval/{name}"),
            x: XAxis::Steps,
            unit: "",
            series,
            range: YRange::Robust,
        });
    }
    page.add("</div>\n");
    add_table(page, runs, &benchmarks);
}

/// The validation loss of a run over its steps.
fn loss_series(run: &TrainingRun) -> LineSeries {
    let losses = run.evaluations.iter().filter_map(|line| Some((line.step, line.validation.as_ref()?.eval_loss)));
    LineSeries::new(&run.name, losses.collect())
}

/// Adds a table with a row for each evaluation: the validation loss, and scores in percent with their intervals.
fn add_table(page: &mut HtmlPage, runs: &[TrainingRun], benchmarks: &BTreeSet<&String>) {
    let has_many = runs.len() > 1;
    let has_losses = runs.iter().flat_map(|run| &run.evaluations).any(|line| line.validation.is_some());
    let names = benchmarks.iter().map(|name| name.as_str());
    let of_losses: &[&str] = if has_losses { &["eval_loss", "tokens", "loss rows"] } else { &[] };
    let of_scores: &[&str] = if benchmarks.is_empty() { &[] } else { &["mean", "rows", "errors"] };
    let first = has_many.then_some("run").into_iter().chain(["step"]);
    let columns: Vec<&str> =
        first.chain(of_losses.iter().copied()).chain(names).chain(of_scores.iter().copied()).collect();
    let mut table = HtmlTable::new(&columns).with_text_columns(usize::from(has_many));
    let score = |line: &EvaluationLine, name: &String| match line.benchmarks.get(name) {
        Some(b) => format!("{:.1} [{:.1}, {:.1}]", 100.0 * b.score, 100.0 * b.ci95[0], 100.0 * b.ci95[1]),
        None => "–".to_string(),
    };
    for run in runs {
        for line in &run.evaluations {
            let sum = |of: fn(&reel_train::setup::BenchmarkScore) -> usize| {
                line.benchmarks.values().map(of).sum::<usize>().to_string()
            };
            let mean = line.score.map_or("–".to_string(), |score| format!("{:.1}", 100.0 * score));
            let own = [mean, sum(|b| b.n), sum(|b| b.errors)];
            let own = own.into_iter().filter(|_| !benchmarks.is_empty());
            let losses = match &line.validation {
                Some(v) => [format!("{:.4}", v.eval_loss), v.eval_tokens.to_string(), v.eval_rows.to_string()],
                None => [(); 3].map(|()| "–".to_string()),
            };
            let losses = losses.into_iter().filter(|_| has_losses);
            let first = has_many.then(|| escape_html(&run.name)).into_iter().chain([line.step.to_string()]);
            table.add_row(
                first.chain(losses).chain(benchmarks.iter().map(|name| score(line, name))).chain(own).collect(),
            );
        }
    }
    page.add_table(&table);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use reel_train::metrics::ValidationLoss;
    use reel_train::setup::BenchmarkScore;

    use super::*;

    fn line(step: u64, score: f64) -> EvaluationLine {
        let score = BenchmarkScore {
            n: 8,
            score,
            ci95: [score - 0.125, score + 0.25],
            errors: 1,
            truncated: 0,
            completion_tokens: 9,
        };
        EvaluationLine::new(step, None, BTreeMap::from([("a&b".to_string(), score)]), "00".into(), 1.0)
    }

    #[test]
    fn a_validation_loss_has_a_chart_and_columns() {
        let loss = |step, eval_loss| {
            let loss = ValidationLoss {
                eval_loss,
                eval_tokens: 70,
                eval_rows: 9,
                eval_skipped: 0,
                eval_data_hash: "0".into(),
            };
            EvaluationLine::new(step, Some(loss), BTreeMap::new(), "00".into(), 1.0)
        };
        let mut page = HtmlPage::new("t");
        add_evaluations(
            &mut page,
            &[TrainingRun {
                name: "one".into(),
                evaluations: vec![loss(2, 1.5), loss(4, 1.25)],
                ..TrainingRun::default()
            }],
        );
        let html = page.into_html();
        assert!(html.contains("<b>eval/loss</b>") && html.contains("\"y\":[1.5,1.25]"), "{html}");
        let row = "<td data-label=\"eval_loss\">1.2500</td><td data-label=\"tokens\">70</td>";
        assert!(html.contains(row) && !html.contains("<th>mean</th>"), "{html}");
    }

    #[test]
    fn scores_have_charts_with_intervals_and_a_table() {
        let run = |name: &str, evaluations| TrainingRun { name: name.into(), evaluations, ..TrainingRun::default() };
        let html = |runs: &[TrainingRun]| {
            let mut page = HtmlPage::new("t");
            add_evaluations(&mut page, runs);
            page.into_html()
        };
        let one = html(&[run("one", vec![line(0, 0.25), line(4, 0.5)])]);
        assert!(one.contains("<b>eval/a&amp;b</b>") && one.contains("\"y\":[0.25,0.5]"), "{one}");
        assert!(one.contains("\"low\":[0.125,0.375],\"high\":[0.5,0.75]"), "{one}");
        let rows = "<td data-label=\"a&amp;b\">50.0 [37.5, 75.0]</td><td data-label=\"mean\">50.0</td>";
        assert!(one.contains("<th>a&amp;b</th>") && one.contains(rows), "{one}");
        let two = html(&[run("one", vec![line(4, 0.5)]), run("two", Vec::new())]);
        assert!(two.contains(">one</td><td data-label=\"step\">4</td>") && !two.contains(">two</td>"), "{two}");
        assert!(!html(&[run("none", Vec::new())]).contains("Evaluations"));
    }
}
