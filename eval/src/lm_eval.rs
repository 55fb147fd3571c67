//! Writes results in the JSON schema of EleutherAI's lm-evaluation-harness, which many tools for tables and dashboards
//! read. Source: `lm_eval/evaluator.py` and `lm_eval/utils.py` (`make_table`) of that project, version 0.4.

use serde_json::{Map, Value, json};

use crate::score::BenchmarkReport;

/// The settings of an evaluation run that are recorded with its scores.
#[derive(Clone, Debug)]
pub struct LmEvalSettings<'a> {
    /// The model folder, or the address of a server.
    pub model: &'a str,
    /// The sampling options of generation (`temperature`, …).
    pub generation: &'a Map<String, Value>,
    /// The name of the device that computed the answers.
    pub device: &'a str,
    /// The maximum number of rows of a benchmark; `None` if all rows are used.
    pub limit: Option<usize>,
    /// Time of the evaluation, in seconds since 1970.
    pub date: f64,
}

/// Returns the results of benchmarks in lm-evaluation-harness's schema. A benchmark is a group; each of its categories
/// is a task, named `BENCHMARK_CATEGORY`. A benchmark with regression rows and other rows has the scores of both kinds,
/// `mra` and `acc`, in addition to its headline figure.
pub fn lm_eval_results(reports: &[BenchmarkReport], run: &LmEvalSettings<'_>) -> Value {
    let mut results = Map::new();
    let mut subtasks = Map::new();
    let (mut configs, mut versions, mut shots) = (Map::new(), Map::new(), Map::new());
    let (mut higher, mut samples) = (Map::new(), Map::new());
    for report in reports {
        let name = &report.benchmark;
        let (official, interval) = (report.headline.score, report.headline.ci95);
        let metric = metric(report);
        let mut scores = Map::from_iter([("alias".into(), json!(name))]);
        if metric == "acc_mra" {
            add_score(&mut scores, "acc", report.mean_acc, None);
            add_score(&mut scores, "mra", report.mean_mra, None);
        }
        add_score(&mut scores, metric, official, Some(interval));
        let mut add = |key: &str, metric: &str, scores: Map<String, Value>, rows: usize| {
            results.insert(key.into(), Value::Object(scores));
            versions.insert(key.into(), json!(report.task_version));
            shots.insert(key.into(), json!(0));
            higher.insert(key.into(), json!({"acc": true, "mra": true, "acc_mra": true}));
            samples.insert(key.into(), json!({"original": rows, "effective": rows}));
            configs.insert(
                key.into(),
                json!({
                    "task": key, "dataset_path": name, "output_type": "generate_until", "num_fewshot": 0, "repeats": 1,
                    "generation_kwargs": run.generation, "metadata": {"version": report.task_version},
                    "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": true}],
                }),
            );
        };
        add(name, metric, scores, report.n);
        let mut own = Vec::new();
        for (category, part) in &report.by_category {
            let key = format!("{name}_{category}");
            let metric = if part.regressions == part.n { "mra" } else { "acc" };
            let mut scores = Map::from_iter([("alias".into(), json!(category))]);
            add_score(&mut scores, metric, part.score, Some(part.ci95));
            add(&key, metric, scores, part.n);
            own.push(key);
        }
        subtasks.insert(name.clone(), json!(own));
    }
    json!({
        "results": results,
        "group_subtasks": subtasks,
        "configs": configs,
        "versions": versions,
        "n-shot": shots,
        "higher_is_better": higher,
        "n-samples": samples,
        "config": {
            "model": "reel", "model_args": format!("pretrained={}", run.model), "device": run.device,
            "limit": run.limit, "bootstrap_iters": crate::bootstrap::RESAMPLE_COUNT, "gen_kwargs": run.generation,
        },
        "date": run.date,
        "model_source": "reel",
        "model_name": run.model,
        "model_name_sanitized": run.model.replace(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c), "_"),
    })
}

/// Returns the metric name of the benchmark's headline figure: `acc`, `mra` if all rows are regression problems, or
/// `acc_mra` if some are.
fn metric(report: &BenchmarkReport) -> &'static str {
    match report.regressions {
        0 => "acc",
        n if n == report.n => "mra",
        _ => "acc_mra",
    }
}

/// Adds a metric and its standard error to `scores`. The standard error is `N/A` without an interval.
fn add_score(scores: &mut Map<String, Value>, metric: &str, score: f64, interval: Option<[f64; 2]>) {
    scores.insert(format!("{metric},none"), json!(score));
    scores.insert(format!("{metric}_stderr,none"), interval.map_or(json!("N/A"), |i| json!(standard_error(i))));
}

/// Converts a 95 % interval to a standard error: the interval extends 1.96 standard errors to either side.
fn standard_error([low, high]: [f64; 2]) -> f64 {
    (high - low) / (2.0 * 1.959_963_984_540_054)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Extraction;
    use crate::prediction::Prediction;
    use crate::score::score_benchmark;
    use crate::task::Task;

    /// Returns the results of the benchmark `name` for the golden predictions that `keep` selects.
    fn results(name: &str, keep: impl Fn(&Prediction) -> bool) -> Value {
        let task = Task::from_names(name).unwrap().remove(0);
        let path = format!("{}/../tests/golden/rewards/eval/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
        let rows = std::fs::read_to_string(path).unwrap();
        let rows: Vec<_> = rows.lines().map(|row| Prediction::from_json_line(row).unwrap()).filter(keep).collect();
        let report = score_benchmark(&task, &rows, Extraction::Tags).unwrap();
        let run = LmEvalSettings { model: "m", generation: &Map::new(), device: "cpu", limit: None, date: 0.0 };
        let mut all = lm_eval_results(&[report], &run);
        json!([all["results"][name].take(), all["configs"][name]["metric_list"][0]["metric"].take()])
    }

    #[test]
    fn a_figure_has_the_name_of_its_metric() {
        let both = results("vsibench", |_| true);
        let [acc, mra] = ["acc,none", "mra,none"].map(|key| both[0][key].as_f64().unwrap());
        assert_eq!((both[0]["acc_mra,none"].as_f64(), &both[1]), (Some((acc + mra) / 2.0), &json!("acc_mra")));
        assert_eq!(both[0]["mra_stderr,none"], "N/A");
        let only = |kept: bool| results("vsibench", move |row| row.is_regression() == kept);
        assert_eq!((only(true)[0]["mra,none"].as_f64(), &only(true)[1]), (Some(mra), &json!("mra")));
        assert_eq!((only(false)[0]["acc,none"].as_f64(), &only(false)[1]), (Some(acc), &json!("acc")));
        assert_eq!(results("mvbench", |_| true)[1], "acc");
    }

    #[test]
    fn a_relative_accuracy_of_0_is_not_left_out() {
        let wrong = results("vsibench", |row| !row.is_regression() || row.score(Extraction::Tags) == 0.0);
        assert_eq!(wrong[0]["mra,none"], 0.0);
        assert!(wrong[0]["acc,none"].as_f64().is_some());
    }
}
