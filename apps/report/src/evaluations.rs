//! The evaluations of training runs (`--eval-steps`): for each benchmark a chart of the score over the steps with its
//! 95 % interval, and a table of all scores.

use std::collections::BTreeSet;

use reel_runs::folder::evaluations::EvaluationLine;

use crate::chart::{Chart, LineSeries, XAxis, YRange};
use crate::escape::escape_html;
use crate::html::Page;
use crate::run::Run;
use crate::table::Table;

/// Adds the evaluations of the runs, if there are any.
pub fn add_evaluations(page: &mut Page, runs: &[Run]) {
    let benchmarks: BTreeSet<&String> =
        runs.iter().flat_map(|run| &run.evaluations).flat_map(|line| line.benchmarks.keys()).collect();
    if benchmarks.is_empty() {
        return;
    }
    page.add("<h2>Evaluations</h2>\n<div class=\"curves\">\n");
    for name in &benchmarks {
        let series = |run: &Run| {
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

/// Adds a table with a row for each evaluation: scores in percent, with their intervals.
fn add_table(page: &mut Page, runs: &[Run], benchmarks: &BTreeSet<&String>) {
    let has_many = runs.len() > 1;
    let names = benchmarks.iter().map(|name| name.as_str());
    let columns: Vec<&str> =
        has_many.then_some("run").into_iter().chain(["step"]).chain(names).chain(["mean", "rows", "errors"]).collect();
    let mut table = Table::new(&columns).with_text_columns(usize::from(has_many));
    let score = |line: &EvaluationLine, name: &String| match line.benchmarks.get(name) {
        Some(b) => format!("{:.1} [{:.1}, {:.1}]", 100.0 * b.score, 100.0 * b.ci95[0], 100.0 * b.ci95[1]),
        None => "–".to_string(),
    };
    for run in runs {
        for line in &run.evaluations {
            let sum = |of: fn(&reel_train::setup::BenchmarkScore) -> usize| {
                line.benchmarks.values().map(of).sum::<usize>().to_string()
            };
            let own = [format!("{:.1}", 100.0 * line.score), sum(|b| b.n), sum(|b| b.errors)];
            let first = has_many.then(|| escape_html(&run.name)).into_iter().chain([line.step.to_string()]);
            table.row(first.chain(benchmarks.iter().map(|name| score(line, name))).chain(own).collect());
        }
    }
    page.add_table(&table);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
        EvaluationLine::new(step, BTreeMap::from([("a&b".to_string(), score)]), "00".into(), 1.0)
    }

    #[test]
    fn scores_have_charts_with_intervals_and_a_table() {
        let run = |name: &str, evaluations| Run { name: name.into(), evaluations, ..Run::default() };
        let html = |runs: &[Run]| {
            let mut page = Page::new("t");
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
