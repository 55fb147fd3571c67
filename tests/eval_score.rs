//! `reel eval --score-only` gives the scores of the benchmarks' own evaluation scripts, and refuses malformed input.
//! `reel generate --data` writes the predictions that are scored here; an interrupted run of it can be continued and
//! gives the same bytes.

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use support::{
    FinishedRun, file_names_in, finished_run, golden, let_children_receive_sigint, run, run_in, send_signal,
};

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

/// Scores a file of MMVU predictions with this text.
fn score(text: impl AsRef<[u8]>, more: &[&str]) -> FinishedRun {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("p.jsonl"), text).expect("written");
    let args = ["eval", "--score-only", "--benchmark", "mmvu", "--predictions", "p.jsonl", "--out", "f.json"];
    let got = run_in(folder.path(), support::with_options(&args, more));
    let left = file_names_in(folder.path());
    assert_eq!(left.len(), if got.code == Some(0) { 2 } else { 1 }, "{left:?}");
    got
}

#[test]
fn prints_a_table_in_percent_without_json() {
    let row = json!({"problem_type": "multiple choice", "solution": "<answer>A</answer>", "output": "A", "category": "Science"});
    let got = score(format!("{row}\n\n{row}"), &[]);
    // Two rows are not the benchmark, so they do not get its name.
    assert!(got.ok().starts_with("own rows ") && got.stdout.contains("2 rows 100.0  [ 34.2, 100.0]"), "{}", got.stdout);
    assert!(got.stdout.lines().nth(1).is_some_and(|line| line.starts_with("Science ")));
    assert_eq!(score(format!("{row}\n\n{row}"), &["--quiet"]).ok(), got.stdout, "scores are no progress");
}

#[test]
fn unusable_solutions_are_counted_and_said() {
    let row = |kind: &str, solution: &str| json!({"problem_type": kind, "solution": solution, "output": "5"});
    let rows =
        [row("regression", "<answer>5</answer>"), row("regression", "five"), row("numerical", "<answer>nan</answer>")];
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let got = score(&text, &["--json"]);
    assert_eq!(got.json()["unusable_solutions"], 2);
    assert!(
        got.stderr.starts_with("warning: 2 of 3 rows have a solution that no answer can match, "),
        "{}",
        got.stderr
    );
    assert!(got.stderr.contains("p.jsonl:2: solution: has no answer in <answer> tags; "), "{}", got.stderr);
    let note =
        "note: p.jsonl: the number of rows (1) is not that of MMVU (multiple choice) (625), so they are reported";
    assert!(score(rows[0].to_string(), &[]).stderr.starts_with(note), "and no warning");
}

#[test]
fn malformed_predictions_are_refused_with_line_number() {
    let good = json!({"problem_type": "regression", "solution": "<answer>1</answer>", "output": "1"});
    for (key, value) in
        [("output", Value::Null), ("output", json!(1)), ("solution", Value::Null), ("category", json!([]))]
    {
        let mut bad = good.clone();
        bad[key] = value;
        score(format!("{good}\n{bad}\n"), &[]).assert_refused(1, &["p.jsonl:2: ", key]);
    }
    score("{\n", &[]).assert_refused(1, &["p.jsonl:1: ", "JSON"]);
    score("", &[]).assert_refused(1, &["p.jsonl", "no rows"]);
    score(good.to_string(), &["--benchmark", "nosuch"]).assert_refused(2, &["nosuch", "vsibench"]);
    score(good.to_string(), &["--benchmark", "all"]).assert_refused(2, &["--benchmark: is all", "one benchmark"]);
    score(good.to_string(), &["--out", "no/such/f.json"]).assert_refused(1, &["no/such/f.json"]);
    score(good.to_string(), &["--predictions", "gone.jsonl"]).assert_refused(1, &["gone.jsonl"]);
}

/// Returns the first two rows of a benchmark's data file, without outputs. The videos are missing, so all rows except
/// the first one of MMVU become questions without a video.
fn benchmark_rows(benchmark: &str) -> Vec<Value> {
    let text = fs::read_to_string(golden(&format!("rewards/eval/{benchmark}.jsonl"))).expect("rows");
    let rows = text.lines().take(2).map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let row = |(i, mut row): (usize, Value)| {
        row.as_object_mut().expect("an object").shift_remove("output");
        if i == 0 && benchmark == "mmvu" {
            row["path"] = json!("./clip.mp4");
        } else {
            row["data_type"] = json!("text");
        }
        row
    };
    rows.enumerate().map(row).collect()
}

fn write_lines(file: &Path, rows: &[Value]) {
    fs::write(file, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).expect("written");
}

/// Rows of all six benchmarks become predictions in one run, which `reel eval` scores; every column of a row is kept.
#[test]
fn generated_predictions_are_scored_for_every_benchmark() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    support::tiny_model(at);
    fs::create_dir(at.join("media")).expect("a folder");
    fs::copy(golden("train/sft_videorft_mp4/media/clip.mp4"), at.join("media/clip.mp4")).expect("copied");
    let mut rows: Vec<Value> = BENCHMARKS.iter().flat_map(|benchmark| benchmark_rows(benchmark)).collect();
    // A row whose video is missing is kept with an error: it counts as wrong, and the exit code is 1.
    let mut lost = rows[0].clone();
    (lost["path"], lost["data_type"]) = (json!("./lost.mp4"), json!("video"));
    rows.push(lost);
    write_lines(&at.join("rows.jsonl"), &rows);
    let generate = ["generate", "--model", "tiny", "--data", "rows.jsonl", "--media-root", "media", "--nframes", "4"];
    let more = ["--max-new-tokens", "6", "--temperature", "1", "--out", "all.jsonl", "--json"];
    let done = run_in(at, support::with_options(&generate, &more));
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    let last = done.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: all.jsonl: 1 of 13 rows have an error") && last.contains("lost.mp4"), "{last}");
    let summary: Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!((&summary["rows"], &summary["errors"]), (&json!(13), &json!(1)));

    let text = fs::read_to_string(at.join("all.jsonl")).expect("predictions");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), rows.len());
    for (line, row) in lines.iter().zip(&rows) {
        let columns = row.as_object().expect("an object");
        assert!(columns.iter().all(|(name, value)| line[name] == *value), "{line}");
        assert!(line["output"].is_string());
    }
    assert!(lines[0].get("error").is_none() && lines[12]["error"].as_str().is_some_and(|e| e.contains("lost.mp4")));
    for (i, benchmark) in BENCHMARKS.iter().enumerate() {
        let own = [&lines[2 * i..2 * i + 2], &lines[12..]].concat();
        write_lines(&at.join("p.jsonl"), &own);
        let args = ["eval", "--score-only", "--benchmark", benchmark, "--predictions", "p.jsonl", "--out", "s.json"];
        let scored = run_in(at, args.iter().chain(&["--json"]));
        let report = scored.json();
        assert_eq!((&report["n"], &report["errors"], &report["unusable_solutions"]), (&json!(3), &json!(1), &json!(0)));
        assert!(scored.stderr.starts_with("warning: 1 of 3 rows have an error instead"), "{}", scored.stderr);
    }
}

/// Starts `generate --data` and sends it a signal once `p.jsonl.partial` has at least `lines` lines. Returns `None`
/// if the run ended before.
fn generate_and_signal(at: &Path, signal: &str, lines: usize, more: &[&str]) -> Option<FinishedRun> {
    let count = || {
        let text = fs::read(at.join("p.jsonl.partial")).unwrap_or_default();
        text.iter().filter(|&&b| b == b'\n').count()
    };
    let wanted = lines.max(count() + 1);
    let mut command = support::reel();
    command.current_dir(at).args(GENERATE).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    while count() < wanted {
        if child.try_wait().expect("a state").is_some() {
            return None;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    send_signal(child.id(), signal);
    Some(finished_run(child.wait_with_output().expect("it ends")))
}

const GENERATE: [&str; 11] = [
    "generate",
    "--model",
    "tiny",
    "--data",
    "rows.jsonl",
    "--out",
    "p.jsonl",
    "--temperature",
    "1",
    "--max-new-tokens",
    "48",
];

#[test]
fn killed_and_stopped_generation_resumes_to_the_same_bytes() {
    let_children_receive_sigint();
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    support::tiny_model(at);
    let row = |i: usize| json!({"prompt": [{"role": "user", "content": format!("Question {i}?")}], "id": i});
    write_lines(&at.join("rows.jsonl"), &(0..60).map(row).collect::<Vec<_>>());
    run_in(at, GENERATE).ok();
    let whole = fs::read(at.join("p.jsonl")).expect("predictions");
    fs::remove_file(at.join("p.jsonl")).expect("removed");
    // The small batch makes the run slow, so that it has not ended when the signal arrives.
    let slow = ["--batch-size", "2", "--resume", "--threads", "1"];
    for (signal, lines, code) in [("-KILL", 0, None), ("-KILL", 7, None), ("-INT", 9, Some(130)), ("-KILL", 30, None)] {
        let stopped = generate_and_signal(at, signal, lines, &slow).expect("a run that was stopped before its end");
        assert_eq!(stopped.code, code, "{}", stopped.stderr);
        if code.is_some() {
            let last = stopped.stderr.lines().last().unwrap_or_default();
            assert!(
                last.contains("p.jsonl.partial: stopped after ") && last.contains("; continue with --resume"),
                "{last}"
            );
        }
        assert!(!at.join("p.jsonl").exists(), "an incomplete file has the final name");
        let kept = fs::read(at.join("p.jsonl.partial")).expect("the lines so far");
        assert!(kept.iter().filter(|&&b| b == b'\n').count() >= lines && whole.starts_with(&kept));
    }
    let refused = |more: &[&str], words: &[&str]| {
        run_in(at, support::with_options(&GENERATE, more)).assert_refused(2, words).code
    };
    refused(&["--resume", "--seed", "1"], &["--seed: is 1, but it was 0"]);
    refused(&["--resume", "--top-p", "0.5"], &["--top-p: is 0.5"]);
    refused(&["--resume", "--profile", "videorft-eval"], &["--profile: is \"videorft-eval\""]);
    run_in(at, GENERATE).assert_refused(1, &["p.jsonl.partial: is the unfinished output", "--resume"]);
    let resumed = run_in(at, GENERATE.iter().chain(&["--resume"]));
    assert!(resumed.ok().starts_with("p.jsonl: 60 rows") && resumed.stderr.starts_with("resuming after row "));
    let predictions = fs::read(at.join("p.jsonl")).expect("predictions");
    assert!(predictions == whole, "the predictions differ from those of the uninterrupted run");
    assert_eq!(file_names_in(at), ["p.jsonl", "p.jsonl.run.json", "rows.jsonl", "tiny"]);
    // A run cannot be resumed with another model in the same folder.
    let args = ["init", "--preset", "tiny", "--seed", "9", "--out", "other"];
    run_in(at, args).ok();
    refused(
        &["--resume", "--model", "other"],
        &["--model: is not the model of the run", "(model.safetensors differs)"],
    );
}

#[test]
fn wrong_use_of_generate_with_data_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    write_lines(&at.join("rows.jsonl"), &[json!({"prompt": "x"})]);
    fs::hard_link(at.join("rows.jsonl"), at.join("p.jsonl.partial")).expect("a link");
    let refused = |line: &str, code, words: &[&str]| {
        let words_of_line = ["generate", "--model", "none"].into_iter().chain(line.split(' '));
        run_in(at, words_of_line).assert_refused(code, words);
    };
    refused("--data rows.jsonl", 2, &["--out"]);
    for more in
        ["--out p.jsonl", "--resume", "--overwrite", "--strict", "--batch-size 2", "--question-template training"]
    {
        let option = more.split(' ').next().unwrap_or_default();
        refused(&format!("--prompt x {more}"), 2, &[&format!("{option}: needs --data")]);
    }
    refused("--data rows.jsonl --out p.jsonl --prompt x", 2, &["--prompt"]);
    refused("--data rows.jsonl --out p.jsonl --resume --overwrite", 2, &["--overwrite"]);
    refused("--data rows.jsonl --out p.jsonl --batch-size 0", 2, &["--batch-size: is 0"]);
    refused("--data rows.jsonl --out rows.jsonl --overwrite", 2, &["the same file as --data"]);
    refused("--data rows.jsonl --out p.jsonl --overwrite", 2, &["the same file as --data"]);
    refused("--data gone.jsonl --out q.jsonl", 1, &["gone.jsonl"]);
    assert_eq!(file_names_in(at), ["p.jsonl.partial", "rows.jsonl"]);
}
