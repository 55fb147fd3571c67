//! Results in the JSON schema of EleutherAI's lm-evaluation-harness, which many tools for tables and dashboards read.
//! Source: `lm_eval/evaluator.py` and `lm_eval/utils.py` (`make_table`) of that project, version 0.4.

use serde_json::{Map, Value, json};

use crate::score::BenchmarkReport;

/// What a run did, besides its scores.
#[derive(Clone, Debug)]
pub struct LmEvalRun<'a> {
    /// The model folder or address.
    pub model: &'a str,
    /// The options of generation (`temperature`, …).
    pub generation: &'a Map<String, Value>,
    /// The device.
    pub device: &'a str,
    /// The maximum number of rows, if not all are used.
    pub limit: Option<usize>,
    /// Seconds since 1970.
    pub date: f64,
}

/// The results of benchmarks in lm-evaluation-harness's schema. A benchmark is a group; each category is a task of its
/// own, named `BENCHMARK_CATEGORY`.
pub fn lm_eval_results(reports: &[BenchmarkReport], run: &LmEvalRun<'_>) -> Value {
    let mut results = Map::new();
    let mut subtasks = Map::new();
    let (mut configs, mut versions, mut shots) = (Map::new(), Map::new(), Map::new());
    let (mut higher, mut samples) = (Map::new(), Map::new());
    for report in reports {
        let name = &report.benchmark;
        let (official, interval) = (report.headline.score, report.headline.ci95);
        let mut scores = json!({"alias": name, "acc,none": official, "acc_stderr,none": standard_error(interval)});
        if report.mean_mra > 0.0 {
            scores["mra,none"] = json!(report.mean_mra);
            scores["mra_stderr,none"] = json!("N/A");
        }
        let mut add = |key: &str, scores: Value, rows: usize| {
            results.insert(key.into(), scores);
            versions.insert(key.into(), json!(report.task_version));
            shots.insert(key.into(), json!(0));
            higher.insert(key.into(), json!({"acc": true, "mra": true}));
            samples.insert(key.into(), json!({"original": rows, "effective": rows}));
            configs.insert(
                key.into(),
                json!({
                    "task": key, "dataset_path": name, "output_type": "generate_until", "num_fewshot": 0, "repeats": 1,
                    "generation_kwargs": run.generation, "metadata": {"version": report.task_version},
                    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": true}],
                }),
            );
        };
        add(name, scores, report.n);
        let mut own = Vec::new();
        for (category, part) in &report.by_category {
            let key = format!("{name}_{category}");
            let error = standard_error(part.ci95);
            let scores = json!({"alias": category, "acc,none": part.score, "acc_stderr,none": error});
            add(&key, scores, part.n);
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
            "limit": run.limit, "bootstrap_iters": crate::bootstrap::RESAMPLES, "gen_kwargs": run.generation,
        },
        "date": run.date,
        "model_source": "reel",
        "model_name": run.model,
        "model_name_sanitized": run.model.replace(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c), "_"),
    })
}

/// The standard error of which the interval is 1.96 on either side.
fn standard_error([low, high]: [f64; 2]) -> f64 {
    (high - low) / (2.0 * 1.959_963_984_540_054)
}
