//! The curves of training runs: a chart per metric over the steps, with one line per run. A table shows the metrics
//! that are constant in every run.

use std::collections::BTreeMap;

use crate::report::chart::{Chart, LineSeries, XAxis, YRange, is_constant};
use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::run::TrainingRun;
use crate::report::table::HtmlTable;

/// The charts of these metrics come first, in this order. The charts of all other metrics follow, sorted by name.
const FIRST: [&str; 8] =
    ["reward", "loss", "kl", "completion_length", "entropy", "grad_norm", "learning_rate", "tokens_per_second"];

/// Adds a chart for each numeric metric of the runs' steps.
pub fn add_curves(page: &mut HtmlPage, runs: &[TrainingRun]) {
    // For each metric, the points of each run.
    let mut metrics: BTreeMap<String, Vec<Vec<(u64, f64)>>> = BTreeMap::new();
    for (i, run) in runs.iter().enumerate() {
        for step in &run.steps {
            for (name, value) in step.named_metric_values().into_iter().filter(|(_, value)| value.is_finite()) {
                let name = name.trim_start_matches("train/").to_string();
                metrics.entry(name).or_insert_with(|| vec![Vec::new(); runs.len()])[i].push((step.step, value));
            }
        }
    }
    let rank = |name: &str| FIRST.iter().position(|f| *f == name).unwrap_or(FIRST.len());
    let mut names: Vec<&String> = metrics.keys().collect();
    names.sort_by_key(|name| (rank(name), !name.starts_with("rewards/"), (*name).clone()));
    let (constant, changing): (Vec<&String>, Vec<&String>) =
        names.into_iter().partition(|name| metrics[*name].iter().all(|points| is_constant(points)));
    page.add("<h2>Curves</h2>\n");
    if !changing.is_empty() {
        page.add("<div class=\"curves\">\n");
        for name in changing {
            let points = runs.iter().zip(&metrics[name]);
            let series = points.map(|(run, p)| LineSeries::new(&run.name, p.clone())).collect();
            page.add_chart(&Chart::Lines {
                name: name.clone(),
                x: XAxis::Steps,
                unit: unit(name),
                series,
                range: YRange::Robust,
            });
        }
        page.add("</div>\n");
    }
    if !constant.is_empty() {
        let values = |name: &String| metrics[name].iter().map(|points| points.first().map(|p| p.1)).collect();
        add_constants(page, runs, constant.into_iter().map(|name| (name, values(name))).collect());
    }
}

/// Adds a table of the metrics that have the same value in all steps of a run. The table is collapsed when the page
/// opens.
fn add_constants(page: &mut HtmlPage, runs: &[TrainingRun], metrics: Vec<(&String, Vec<Option<f64>>)>) {
    let columns: Vec<&str> = match runs {
        [_] => vec!["metric", "value"],
        _ => ["metric"].into_iter().chain(runs.iter().map(|run| run.name.as_str())).collect(),
    };
    let mut table = HtmlTable::new(&columns);
    let count = metrics.len();
    for (name, values) in metrics {
        let unit = unit(name);
        let text =
            |value: Option<f64>| value.map_or("–".to_string(), |v| format!("{v} {unit}").trim_end().to_string());
        table.add_row([escape_html(name)].into_iter().chain(values.into_iter().map(text)).collect());
    }
    let metrics = if count == 1 { "1 metric has" } else { &format!("{count} metrics have") };
    page.add(&format!("<details><summary>{metrics} the same value in every step</summary>\n"));
    page.add_table(&table);
    page.add("</details>\n");
}

/// The unit of a metric; empty for plain numbers.
fn unit(metric: &str) -> &'static str {
    match metric {
        "tokens_per_second" => "tokens/s",
        "gpu_power_watts" => "W",
        "gpu_sm_mhz" | "gpu_memory_mhz" => "MHz",
        "gpu_temperature_celsius" => "°C",
        "completion_length" => "tokens",
        "entropy" | "kl" | "rollout_drift" => "nats",
        "frames_encoded" => "frames",
        "dropped_groups" => "groups",
        name if name.ends_with("_seconds") => "s",
        name if name.ends_with("_bytes") => "B",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(name: &str, values: &[(f64, f64)]) -> TrainingRun {
        let step = |(step, (loss, norm)): (u64, &(f64, f64))| {
            let line = json!({"step": step, "loss": loss, "grad_norm": norm, "learning_rate": 1e-6, "tokens": 5,
                "tokens_per_second": 9.0 + step as f64, "step_seconds": 0.5, "peak_bytes": 4096, "hash": "0"});
            serde_json::from_value(line).expect("metrics")
        };
        TrainingRun { name: name.into(), steps: (1..).zip(values).map(step).collect(), ..TrainingRun::default() }
    }

    #[test]
    fn metrics_with_constant_values_stand_in_a_table() {
        let mut page = HtmlPage::new("x");
        add_curves(&mut page, &[run("<a>", &[(3.0, 1.0), (2.0, 1.0)]), run("b", &[(4.0, 1.0), (4.0, 1.0)])]);
        let html = page.into_html();
        // The loss of run b is constant, but the loss of run a is not, so one chart shows both.
        let charts: Vec<&str> = html.split("<figcaption><b>").skip(1).filter_map(|t| t.split('<').next()).collect();
        assert_eq!(charts, ["loss", "tokens_per_second"]);
        assert!(html.contains("\"name\":\"\\u003ca\\u003e\",\"color\":0,\"x\":[1,2],\"y\":[3.0,2.0]"));
        assert!(html.contains("\"name\":\"b\",\"color\":1,\"x\":[1,2],\"y\":[4.0,4.0]"));
        assert!(html.contains("<details><summary>3 metrics have the same value in every step"));
        assert!(html.contains("peak_bytes</td><td>4096 B</td><td>4096 B</td>"));
    }

    #[test]
    fn page_of_a_single_step_has_a_table_and_no_charts() {
        let mut page = HtmlPage::new("x");
        add_curves(&mut page, &[run("a", &[(3.0, 1.5)])]);
        let html = page.into_html();
        assert!(html.contains("<td class=\"text\">loss</td><td>3</td>") && !html.contains("<figure"));
    }
}
