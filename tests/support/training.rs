//! Compares training runs on any device with the reference runs in `tests/golden`.
#![allow(dead_code, reason = "no test program uses all of this module")]

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::support::{finished_run, golden, read_metrics, with_options};
use super::tensors::{assert_close, gathered_rows, read_tensors};

/// Runs the case `tests/golden/CASE` (`train/…` or `grpo/…`) with additional options. Compares the metrics of each
/// step and the weight changes with the reference. Returns the hash of the final weights.
pub fn check_training_case(mut reel: Command, case: &str, more_args: &[&str]) -> String {
    let folder = golden(case);
    let text = fs::read_to_string(folder.join("expected.json")).expect("expected.json");
    let expected: Value = serde_json::from_str(&text).expect("JSON");
    let path_of = |key: &str| match expected[key].as_str().expect("a path") {
        // A case in `grpo/` can use a model in `train/`; its path then begins with `../`.
        shared if shared.starts_with("../") => golden("train").join(&shared[3..]),
        own => folder.join(own),
    };
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let grpo = expected["kind"] == "grpo";
    reel.arg(if grpo { "grpo" } else { "sft" }).arg("--model").arg(path_of("model")).arg("--data").arg(path_of("data"));
    reel.arg("--media-root").arg(&folder).arg("--out").arg(&out);
    if grpo {
        reel.arg("--rollouts").arg(path_of("rollouts"));
    }
    let args = expected["args"].as_array().expect("args").iter().map(|a| a.as_str().expect("an option"));
    reel.args(with_options(&args.collect::<Vec<_>>(), more_args));
    finished_run(reel.output().expect("the binary starts")).ok();

    let reading = expected["reading"].as_str();
    let (want, prefix) = match reading {
        Some(reading) => (&expected["readings"][reading], format!("{reading}/")),
        None => (&expected, String::new()),
    };
    let (got, steps) = (read_metrics(&out), want["steps"].as_array().expect("steps"));
    assert_eq!(got.len(), steps.len(), "{case}");
    let limit = |name: String| expected["tolerances"][name].as_f64();
    for (g, w) in got.iter().zip(steps) {
        for key in ["loss", "grad_norm", "learning_rate", "reward", "clip_ratio", "kl"] {
            let Some(want) = w[key].as_f64() else { continue };
            // With beta 0 there is no reference model and no KL divergence.
            if key == "kl" && expected["settings"]["beta"] == 0.0 {
                assert!(g[key].is_null(), "{case}: {g}");
                continue;
            }
            let got = g[key].as_f64().unwrap_or_else(|| panic!("{case} step {}: no {key} in {g}", w["step"]));
            let relative = limit(format!("{key}_rel")).unwrap_or(1e-4);
            // Mean rewards and clip ratios can be 0, where a relative tolerance would allow no difference. They
            // therefore get an absolute tolerance.
            let absolute = if ["reward", "clip_ratio"].contains(&key) { 1e-6 } else { 1e-12 };
            let off = (got - want).abs();
            let tolerance = (relative * want.abs()).max(limit(format!("{key}_abs")).unwrap_or(absolute));
            assert!(off <= tolerance, "{case} step {}: {key} is {got}, not {want}", w["step"]);
        }
        assert!(w["loss"].is_number() && w["grad_norm"].is_number(), "{case}: {w}");
    }
    let deltas = read_tensors(&folder.join("expected.safetensors"));
    let before = read_tensors(&path_of("model").join("model.safetensors"));
    let after = read_tensors(&out.join("model.safetensors"));
    let limits = want["delta_limits"].as_object().expect("limits");
    assert!(limits.len() >= 12, "{case}");
    for (name, limit) in limits {
        let which = &deltas[&format!("{prefix}rows/{name}")].values;
        let (a, b) = (gathered_rows(&after[name], which), gathered_rows(&before[name], which));
        let change: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        let what = format!("{case}: change of {name}");
        assert_close(
            &what,
            &change,
            &deltas[&format!("{prefix}delta/{name}")].values,
            limit.as_f64().expect("a limit"),
        );
    }
    got.last().and_then(|line| line["hash"].as_str()).expect("a hash").to_string()
}
