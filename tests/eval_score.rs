//! `reel eval --score-only`: gives the scores of the evaluation scripts, and refuses malformed input.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{FinishedRun, file_names_in, golden, run, run_in};

const BENCHMARKS: [&str; 6] = ["vsibench", "videommmu", "mmvu", "mvbench", "tempcompass", "videomme"];

#[test]
fn scores_equal_the_evaluation_scripts() {
    let text = fs::read_to_string(golden("rewards/eval/expected.json")).expect("golden scores");
    let expected: Value = serde_json::from_str(&text).expect("JSON");
    let folder = tempfile::tempdir().expect("a folder");
    for benchmark in BENCHMARKS {
        let out = folder.path().join(format!("{benchmark}.json"));
        let predictions = golden(&format!("rewards/eval/{benchmark}.jsonl"));
        let args = ["eval", "--score-only", "--json", "--benchmark", benchmark, "--predictions"];
        let said = run(args.map(Into::into).into_iter().chain([predictions, "--out".into(), out.clone()])).json();
        let got: Value = serde_json::from_slice(&fs::read(out).expect("scores")).expect("JSON");
        assert_eq!(said, got);
        let want = &expected[benchmark];
        let near = |got: &Value, want: &Value| {
            (got.as_f64().expect("a number") - want.as_f64().expect("a number")).abs() < 1e-6
        };
        for key in ["n", "overall", "mean_acc", "mean_mra", "task_mean"] {
            assert!(want.get(key).is_none_or(|want| near(&got[key], want)), "{benchmark} {key}: {}", got[key]);
        }
        let categories = want["by_category"].as_object().expect("an object");
        assert_eq!(got["by_category"].as_object().map(|c| c.len()), Some(categories.len()));
        for (name, want) in categories {
            let got = &got["by_category"][name];
            assert!(near(&got["score"], &want["score"]) && got["n"] == want["n"], "{benchmark} {name}: {got}");
            assert!(
                got["ci95"][0].as_f64() <= got["score"].as_f64() && got["score"].as_f64() <= got["ci95"][1].as_f64()
            );
        }
    }
}

/// Scores MMVU predictions in a file with this text.
fn score(text: impl AsRef<[u8]>, more: &[&str]) -> FinishedRun {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("p.jsonl"), text).expect("written");
    let args = ["eval", "--score-only", "--benchmark", "mmvu", "--predictions", "p.jsonl", "--out", "f.json"];
    let got = run_in(folder.path(), args.iter().chain(more));
    let left = file_names_in(folder.path());
    assert_eq!(left.len(), if got.code == Some(0) { 2 } else { 1 }, "{left:?}");
    got
}

#[test]
fn prints_a_table_in_percent_without_json() {
    let row = json!({"problem_type": "multiple choice", "solution": "<answer>A</answer>", "output": "A", "category": "Science"});
    let got = score(format!("{row}\n\n{row}"), &[]);
    assert!(got.ok().starts_with("mmvu ") && got.stdout.contains("2 rows 100.0  [ 34.2, 100.0]"), "{}", got.stdout);
    assert!(got.stdout.lines().nth(1).is_some_and(|line| line.starts_with("Science ")));
    assert_eq!(score(row.to_string(), &["--quiet"]).ok(), "");
}

#[test]
fn unusable_solutions_are_counted_and_said() {
    let row = |kind: &str, solution: &str| json!({"problem_type": kind, "solution": solution, "output": "5"});
    let rows =
        [row("regression", "<answer>5</answer>"), row("regression", "five"), row("numerical", "<answer>nan</answer>")];
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let got = score(&text, &["--json"]);
    assert_eq!(got.json()["unusable_solutions"], 2);
    assert!(got.stderr.starts_with("warning: the scores of 2 of 3 rows "), "{}", got.stderr);
    assert!(got.stderr.contains("p.jsonl:2: solution: has no answer in <answer> tags; "), "{}", got.stderr);
    assert_eq!(score(rows[0].to_string(), &[]).stderr, "");
}

#[test]
fn malformed_predictions_are_refused_with_line_number() {
    let good = json!({"problem_type": "regression", "solution": "<answer>1</answer>", "output": "1"});
    for (key, value) in
        [("output", Value::Null), ("output", json!(1)), ("solution", Value::Null), ("category", json!([]))]
    {
        let mut bad = good.clone();
        bad[key] = value;
        score(format!("{good}\n{bad}\n"), &[]).refused(1, &["p.jsonl:2: ", key]);
    }
    score("{\n", &[]).refused(1, &["p.jsonl:1: ", "JSON"]);
    score("", &[]).refused(1, &["p.jsonl", "no rows"]);
    score(good.to_string(), &["--benchmark", "nosuch"]).refused(2, &["nosuch", "vsibench"]);
    score(good.to_string(), &["--benchmark", "all"]).refused(2, &["`all`"]);
    score(good.to_string(), &["--out", "no/such/f.json"]).refused(1, &["no/such/f.json"]);
    score(good.to_string(), &["--predictions", "gone.jsonl"]).refused(1, &["gone.jsonl"]);
}

#[test]
fn running_a_benchmark_is_refused_with_an_explanation() {
    run(["eval", "--benchmark", "mmvu", "--out", "o"]).refused(2, &["--score-only", "does not run models"]);
    run(["eval", "--score-only", "--benchmark", "mmvu", "--out", "o"]).refused(2, &["--predictions"]);
    run(["eval", "--benchmark", "mmvu", "--model", "m", "--out", "o"]).refused(2, &["--model"]);
}
