//! `reel eval` and evaluations during training as several processes (ranks). They write the same files as one
//! process, even if a process is killed and a different number of processes continues the evaluation.

#[path = "support/own_task.rs"]
mod own_task;
mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use own_task::CUSTOM_TASK_TOML;
use serde_json::{Value, json};
use support::{
    FinishedRun, child_processes, file_names_in, finished_run, golden, metrics_without_times, reel, run_in,
    send_signal, tiny_model, with_options,
};

/// Creates a folder with a tiny model and `rows` questions of Video-Holmes about three videos, one of which is
/// missing.
fn folder_with_questions(rows: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    tiny_model(at);
    fs::create_dir_all(at.join("data/videos")).expect("a folder");
    for video in ["v0.mp4", "v1.mp4"] {
        fs::copy(golden("clips/h264_709.mp4"), at.join("data/videos").join(video)).expect("copied");
    }
    let row = |i: usize| {
        json!({"video ID": format!("v{}", i % 3), "Question ID": i, "Question Type": if i.is_multiple_of(2) { "SR" } else { "TA" },
            "Question": format!("Who is {i}?"), "Options": {"A": "he", "B": "she"}, "Answer": "B"})
    };
    let rows: Vec<Value> = (0..rows).map(row).collect();
    fs::write(at.join("data/test_Video-Holmes.json"), json!(rows).to_string()).expect("written");
    folder
}

const EVAL: [&str; 15] = [
    "eval",
    "--model",
    "tiny",
    "--benchmark",
    "videoholmes",
    "--data",
    "data",
    "--device",
    "cpu",
    "--temperature",
    "1",
    "--top-p",
    "1",
    "--max-new-tokens",
    "6",
];

fn eval(at: &Path, more: &[&str]) -> FinishedRun {
    run_in(at, with_options(&EVAL, more))
}

fn contents(file: &Path) -> Vec<u8> {
    fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Asserts that two folders have the same files with the same contents.
#[track_caller]
fn same_files(a: &Path, b: &Path) {
    let names = file_names_in(a);
    assert_eq!(names, file_names_in(b));
    for name in names.iter().filter(|name| a.join(name).is_file()) {
        assert!(contents(&a.join(name)) == contents(&b.join(name)), "{} and {}: {name}", a.display(), b.display());
    }
}

#[test]
fn any_number_of_processes_writes_the_files_of_one() {
    let folder = folder_with_questions(10);
    let at = folder.path();
    let small = ["--nframes", "4", "--max-pixels", "12288", "--min-pixels", "3072"];
    let one = eval(at, &[&small[..], &["--out", "1"]].concat());
    // The video of three rows is missing, so these rows have errors.
    assert_eq!(one.code, Some(1), "{}", one.stderr);
    for count in ["2", "3"] {
        let done = eval(at, &[&small[..], &["--out", count, "--gpus", count]].concat());
        assert_eq!((done.code, &done.stdout), (Some(1), &one.stdout), "{}", done.stderr);
        assert!(done.stderr.contains(&format!("[rank 0] error: {count}: 3 of 10 rows of videoholmes have an error")));
        assert!(!done.stderr.contains("[rank 1]"), "{}", done.stderr);
        same_files(&at.join("1"), &at.join(count));
    }
    // The processes are started with the environment variables of torchrun, and share the rows of one part
    // (`--shard`).
    let text = ["--text-only", "--quiet", "--batch-size", "2"];
    eval(at, &[&text[..], &["--shard", "1/3", "--out", "part"]].concat()).ok();
    let start = |rank: usize| {
        let mut command = reel();
        let numbers = [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)];
        command.envs(numbers.map(|(name, value)| (name, value.to_string())));
        command.envs([("TORCHELASTIC_RUN_ID", "none"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")]);
        command.current_dir(at).args(with_options(&EVAL, &text)).args(["--shard", "1/3", "--out", "torchrun"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
    };
    for child in [0, 1].map(start) {
        let done = finished_run(child.wait_with_output().expect("it ends"));
        assert_eq!((done.ok(), done.stderr.as_str()), ("", ""));
    }
    same_files(&at.join("part"), &at.join("torchrun"));
}

/// Starts `reel` with these arguments, waits until `is_time` returns true, and calls `stop` with the started process.
fn stop_when(at: &Path, args: &[&str], is_time: impl Fn() -> bool, stop: impl FnOnce(&Child)) -> FinishedRun {
    let mut command = reel();
    let mut child =
        command.current_dir(at).args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let begun = Instant::now();
    while !is_time() {
        assert!(child.try_wait().expect("a state").is_none(), "the run ended before it was stopped");
        assert!(begun.elapsed() < Duration::from_secs(60), "the run did not get this far in a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
    stop(&child);
    let stopped = Instant::now();
    let done = finished_run(child.wait_with_output().expect("it ends"));
    assert!(stopped.elapsed() < Duration::from_secs(60));
    done
}

/// Kills one of the ranks that `parent` has started.
fn kill_rank(parent: &Child, rank: usize) {
    send_signal(child_processes(parent)[rank], "-KILL");
}

fn line_count(file: &Path) -> usize {
    fs::read(file).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count()
}

#[test]
fn a_stopped_evaluation_is_continued_by_another_number_of_processes() {
    support::let_children_receive_sigint();
    // Enough work that no run ends before its signal reaches it: 40 rows of 8 tokens took 0.2 s.
    let folder = folder_with_questions(120);
    let at = folder.path();
    let args = ["--text-only", "--quiet", "--max-new-tokens", "24", "--batch-size", "2"];
    eval(at, &[&args[..], &["--out", "whole"]].concat()).ok();
    let partial = at.join("broken/videoholmes.jsonl.partial");
    let run = |gpus| [&args[..], &["--out", "broken", "--resume", "--gpus", gpus]].concat();
    for (gpus, rank) in [("3", Some(2)), ("2", Some(0)), ("3", None)] {
        let (options, lines) = (run(gpus), line_count(&partial) + 4);
        let done = stop_when(
            at,
            &with_options(&EVAL, &options),
            || line_count(&partial) >= lines,
            |launcher| match rank {
                Some(rank) => kill_rank(launcher, rank),
                None => send_signal(launcher.id(), "-INT"),
            },
        );
        let all = (0..gpus.parse().expect("a number")).filter(|other| Some(*other) != rank);
        for other in all {
            let mut of_rank = done.stderr.lines().filter(|line| line.starts_with(&format!("[rank {other}] error: ")));
            let line = of_rank.next().unwrap_or_else(|| panic!("rank {other}: {}", done.stderr));
            let words = rank.map_or("stopped".to_string(), |rank| format!("rank {rank}"));
            assert!(line.contains(&words) && of_rank.next().is_none(), "{}", done.stderr);
        }
        assert_eq!(done.code, Some(if rank.is_some() { 1 } else { 130 }), "{}", done.stderr);
        assert!(line_count(&partial) >= lines && !at.join("broken/videoholmes.jsonl").exists());
    }
    eval(at, &run("1")).ok();
    same_files(&at.join("whole"), &at.join("broken"));
}

const SFT: [&str; 21] = [
    "sft",
    "--model",
    "tiny",
    "--data",
    "rows.jsonl",
    "--device",
    "cpu",
    "--learning-rate",
    "1e-3",
    "--gradient-accumulation-steps",
    "2",
    "--max-steps",
    "4",
    "--save-steps",
    "2",
    "--eval-steps",
    "2",
    "--eval-benchmark",
    "mine.toml",
    "--eval-data",
    "bench",
];

/// Creates a folder with a tiny model, rows for training, and a benchmark of eight rows, the second of which has a
/// video.
fn folder_for_training() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    tiny_model(at);
    let write = |name: &str, row: &dyn Fn(usize) -> Value| {
        let lines: String = (0..8).map(|i| format!("{}\n", row(i))).collect();
        fs::write(at.join(name), lines).expect("written");
    };
    let message = |role: &str, content: String| json!({"role": role, "content": content});
    let (asked, answered) =
        (|i| message("user", format!("{i} + {i}?")), |i: usize| message("assistant", i.to_string()));
    write("rows.jsonl", &|i| json!({"messages": [asked(i), answered(2 * i)]}));
    fs::create_dir(at.join("bench")).expect("a folder");
    let video = |i: usize| if i == 1 { "clip" } else { "none" };
    write("bench/rows.jsonl", &|i| json!({"q": format!("Which {i}?"), "o": ["x", "y"], "a": i % 2, "v": video(i)}));
    fs::copy(golden("clips/h264_709.mp4"), at.join("bench/clip.mp4")).expect("copied");
    fs::write(at.join("mine.toml"), CUSTOM_TASK_TOML).expect("written");
    folder
}

/// Asserts that two training runs have the same metrics, evaluations, answers and weights.
#[track_caller]
fn same_training(a: &Path, b: &Path) {
    let lines = |out: &Path, file: &str| {
        let text = fs::read_to_string(out.join(file)).expect("a file");
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        lines.iter_mut().for_each(|line| drop(line.as_object_mut().expect("an object").remove("eval_seconds")));
        lines
    };
    assert_eq!(lines(a, "eval.jsonl"), lines(b, "eval.jsonl"));
    let metrics = |out: &Path| {
        let mut lines = metrics_without_times(out);
        lines.iter_mut().for_each(|line| drop(line.as_object_mut().expect("an object").remove("peak_bytes")));
        lines
    };
    assert_eq!(metrics(a), metrics(b));
    for step in ["eval/step-2", "eval/step-4"] {
        let names = file_names_in(&a.join(step));
        assert_eq!((names.len(), &names), (4, &file_names_in(&b.join(step))));
        let answers = |out: &Path| contents(&out.join(step).join("mine.jsonl"));
        assert!(answers(a) == answers(b), "{step}");
    }
    for file in ["model.safetensors", "checkpoint-4/training/optimizer.safetensors"] {
        assert!(contents(&a.join(file)) == contents(&b.join(file)), "{file}");
    }
    let best = |out: &Path| {
        let state: Value = serde_json::from_slice(&contents(&out.join("trainer_state.json"))).expect("JSON");
        (state["best_global_step"].clone(), state["best_metric"].clone())
    };
    assert_eq!(best(a), best(b));
}

#[test]
fn evaluations_of_training_have_the_answers_of_one_process() {
    let folder = folder_for_training();
    let at = folder.path();
    let args = [&SFT[..], &["--eval-max-new-tokens", "24", "--eval-batch-size", "1", "--eval-on-start"]].concat();
    run_in(at, [&args[..], &["--out", "1"]].concat()).ok();
    let two = run_in(at, [&args[..], &["--out", "2", "--gpus", "2"]].concat());
    two.ok();
    assert!(two.stderr.contains("[rank 0] step 2: evaluating on mine\n[rank 0] step 2: mine "), "{}", two.stderr);
    assert!(!two.stderr.contains("[rank 1]"), "{}", two.stderr);
    same_training(&at.join("1"), &at.join("2"));

    // A rank is killed during the evaluation of step 4. The answers so far are kept when a single process continues
    // the run.
    let command = [&args[..], &["--out", "killed", "--gpus", "2"]].concat();
    let partial = at.join("killed/eval/step-4/mine.jsonl.partial");
    let done = stop_when(at, &command, || line_count(&partial) >= 1, |launcher| kill_rank(launcher, 1));
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert!(done.stderr.contains("[rank 0] error: rank 1"), "{}", done.stderr);
    let early = fs::read(&partial).expect("answers");
    let resumed = run_in(at, [&args[..], &["--out", "killed", "--resume-from-checkpoint", "last"]].concat());
    resumed.ok();
    let answers = fs::read(at.join("killed/eval/step-4/mine.jsonl")).expect("answers");
    assert!(answers.starts_with(&early));
    same_training(&at.join("1"), &at.join("killed"));
}

#[test]
fn what_several_processes_cannot_do_is_refused_in_one_line() {
    let folder = folder_with_questions(2);
    let at = folder.path();
    let of_two = [("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")];
    let refused = |args: &[&str], code: i32, words: &[&str]| {
        let done = reel().current_dir(at).args(args).envs(of_two).output().expect("the binary starts");
        finished_run(done).assert_refused(code, words);
    };
    let endpoint = ["eval", "--endpoint", "http://127.0.0.1:1/v1", "--benchmark", "videoholmes", "--data", "data"];
    refused(&[&endpoint[..], &["--out", "x"]].concat(), 1, &["reel eval --endpoint: runs as one process", "rank 0"]);
    refused(&["eval", "merge", "x"], 1, &["reel eval merge: runs as one process"]);
    refused(&["eval", "compare", "x", "y"], 1, &["reel eval compare: runs as one process"]);
    refused(&with_options(&EVAL, &["--out", "x", "--gpus", "3"]), 2, &["--gpus: is 3", "has started 2"]);
    refused(&with_options(&EVAL, &["--out", "x", "--device", "sim"]), 2, &["--device", "CPUs"]);
    run_in(at, [&endpoint[..], &["--out", "x", "--gpus", "2"]].concat()).assert_refused(2, &["--endpoint", "--gpus"]);
    eval(at, &["--out", "x", "--gpus", "2", "--limit", "0"]).assert_refused(2, &["--limit: is 0"]);
    let score = ["eval", "--score-only", "--benchmark", "videoholmes", "--predictions", "p", "--out", "s"];
    run_in(at, [&score[..], &["--gpus", "2"]].concat()).assert_refused(2, &["--gpus: has no effect with --score-only"]);
    assert!(!at.join("x").exists());
}

#[test]
fn ranks_with_different_models_are_refused() {
    let folder = folder_with_questions(2);
    let at = folder.path();
    run_in(at, ["init", "--preset", "tiny", "--seed", "5", "--out", "other"]).ok();
    let start = |(rank, model): (&str, &str)| {
        let mut command = reel();
        command.envs([("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")]);
        command.current_dir(at).args(with_options(&EVAL, &["--model", model, "--text-only", "--quiet", "--out", "x"]));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
    };
    let [first, second] = [("0", "tiny"), ("1", "other")].map(start);
    for child in [first, second] {
        let done = finished_run(child.wait_with_output().expect("it ends"));
        done.assert_refused(
            1,
            &["fingerprint of --model: is ", " on rank 1 (", ", but ", " on rank 0; start all ranks"],
        );
    }
}
