//! `reel sft` as a command: runs that are interrupted, resumed, refused, or fail.

#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sft_rows::{assert_same_results, copy_test_media, media_question_row, run_sft, training_folder};
use support::{file_names_in, reel, run_in};

/// Starts a run of `steps` steps, with a checkpoint every 20 steps.
fn start_run(folder: &Path, out: &str, steps: usize) -> Child {
    reel()
        .current_dir(folder)
        .args(["sft", "--model", "tiny", "--data", "rows.jsonl", "--out", out, "--learning-rate", "1e-3"])
        .args(["--max-steps", &steps.to_string(), "--save-steps", "20"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts")
}

/// Waits until `metrics.jsonl` has `steps` lines.
fn wait_for_steps(out: &Path, steps: usize) {
    let begun = Instant::now();
    while fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count() < steps {
        assert!(begun.elapsed() < Duration::from_secs(60), "the run did not do {steps} steps in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, name: &str) {
    support::send_signal(child.id(), name);
}

#[test]
fn resumed_run_equals_uninterrupted_run() {
    let w = training_folder(9);
    let straight = w.path().join("straight");
    let mut child = start_run(w.path(), "straight", 120);
    assert!(child.wait().expect("it ends").success());

    // After Ctrl-C or SIGTERM, the run stops at the end of a step and prints how to resume.
    support::let_children_receive_sigint();
    for (out, name, code) in [("stopped", "-INT", 130), ("terminated", "-TERM", 143)] {
        let child = start_run(w.path(), out, 120);
        wait_for_steps(&w.path().join(out), 20);
        signal(&child, name);
        let done = support::finished_run(child.wait_with_output().expect("it ends"));
        assert_eq!(done.code, Some(code), "{}", done.stderr);
        let last = done.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && last.contains("--resume-from-checkpoint last"), "{}", done.stderr);
    }

    // The run is killed with SIGKILL at an arbitrary moment after its second checkpoint.
    let mut child = start_run(w.path(), "killed", 120);
    wait_for_steps(&w.path().join("killed"), 50);
    child.kill().expect("killed");
    child.wait().expect("it ends");

    for out in ["stopped", "killed"] {
        let more = ["--max-steps", "120", "--save-steps", "20", "--resume-from-checkpoint", "last"];
        run_sft(w.path(), out, &more).ok();
        assert_same_results(&straight, &w.path().join(out), "checkpoint-120");
    }
}

/// A run resumes with all options that its `run.json` records: by `--config OUT/run.json`, or if the command names no
/// model and no data. Options given besides are compared with the checkpoint.
#[test]
fn run_resumes_with_its_recorded_options() {
    let w = training_folder(9);
    let all = "--learning-rate 1e-3 --max-steps 6 --save-steps 2 --weight-decay 0.1 --lr-scheduler-type cosine";
    let all: Vec<_> = all.split(' ').collect();
    run_sft(w.path(), "straight", &all).ok();
    for (out, resume) in [
        ("config", "sft --config config/run.json --resume-from-checkpoint"),
        ("absolute", "sft --config ABSOLUTE/run.json --resume-from-checkpoint last"),
        ("alone", "sft --resume-from-checkpoint alone/checkpoint-4"),
        ("last", "sft --out last --resume-from-checkpoint last"),
    ] {
        run_sft(w.path(), out, &all).ok();
        let path = w.path().join(out);
        fs::remove_dir_all(path.join("checkpoint-6")).expect("the last checkpoint is removed");
        let resume = resume.replace("ABSOLUTE", &path.display().to_string());
        let args: Vec<_> = resume.split(' ').collect();
        for (option, value, text) in [
            ("--learning-rate", "0.5", "--learning-rate: is 0.5, but was 0.001"),
            ("--weight-decay", "0.0", "--weight-decay: is 0.0, but was 0.1"),
        ] {
            run_in(w.path(), [&args[..], &[option, value]].concat()).assert_refused(2, &[text]);
        }
        run_in(w.path(), &args).ok();
        assert_same_results(&w.path().join("straight"), &path, "checkpoint-6");
    }
    // Without a resume, the record's folder is in use; the options may start another run.
    run_in(w.path(), ["sft", "--config", "last/run.json"]).assert_refused(1, &["--out last: is not empty"]);
    run_in(w.path(), ["sft", "--config", "last/run.json", "--out", "again"]).ok();
    assert_same_results(&w.path().join("straight"), &w.path().join("again"), "checkpoint-6");
    // The record of another command, and paths of another folder.
    let grpo = run_in(w.path(), ["grpo", "--config", "last/run.json", "--resume-from-checkpoint"]);
    grpo.assert_refused(
        2,
        &["last/run.json: is the record of a run of reel sft", "run reel sft --config last/run.json"],
    );
    let elsewhere = run_in(&w.path().join("last"), ["sft", "--config", "run.json", "--resume-from-checkpoint"]);
    elsewhere.assert_refused(2, &["run.json: model: is tiny, relative to ", "where the run was started"]);
    // Without a record, the command says what is missing.
    fs::remove_file(w.path().join("alone/run.json")).expect("the record is removed");
    let missing = run_in(w.path(), ["sft", "--resume-from-checkpoint", "alone/checkpoint-4"]);
    missing.assert_refused(2, &["--model: is missing"]);
}

#[test]
fn progress_that_nobody_can_read_does_not_end_a_run() {
    let w = training_folder(4);
    let args = "sft --model tiny --data rows.jsonl --learning-rate 1e-3 --max-steps 12 --logging-steps 1 --out";
    let run = |out: &str, stderr: Stdio| {
        let mut command = reel();
        command.current_dir(w.path()).args(args.split(' ')).arg(out).stdout(Stdio::null()).stderr(stderr);
        command.spawn().expect("the binary starts")
    };
    let mut closed = run("closed", Stdio::piped());
    drop(closed.stderr.take());
    assert!(closed.wait().expect("it ends").success());
    let full = fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    assert!(run("full", full.into()).wait().expect("it ends").success());
    assert_same_results(&w.path().join("closed"), &w.path().join("full"), "checkpoint-12");
}

#[test]
fn second_run_in_a_folder_is_refused() {
    let w = training_folder(9);
    let out = w.path().join("out");
    let mut first = start_run(w.path(), "out", 400);
    wait_for_steps(&out, 1);
    let holder = format!("--out out: is in use by process {}; ", first.id());
    for more in [&["--overwrite"][..], &["--resume-from-checkpoint", "last"], &["--check-data"], &[]] {
        run_sft(w.path(), "out", more).assert_refused(1, &[&holder]);
    }
    let holder = format!("out: is being written by process {}; ", first.id());
    run_in(w.path(), ["demo", "--out", "out"]).assert_refused(1, &[&holder]);
    run_in(w.path(), ["init", "--preset", "tiny", "--out", "out"]).assert_refused(1, &[&holder]);
    // The lock file of a killed process remains, but does not prevent the next run.
    first.kill().expect("killed");
    first.wait().expect("it ends");
    assert!(out.join(".reel.lock").exists());
    run_sft(w.path(), "out", &["--max-steps", "1", "--overwrite"]).ok();
    assert!(!out.join(".reel.lock").exists());
}

#[test]
fn instruction_set_is_recorded_and_compared() {
    let w = training_folder(3);
    let run = |isa: &str, args: &[&str]| {
        let out = reel().current_dir(w.path()).env("REEL_CPU", isa).args(args).output().expect("it runs");
        support::finished_run(out)
    };
    let train = ["sft", "--model", "tiny", "--data", "rows.jsonl", "--out", "out", "--max-steps"];
    run("plain", &[&train[..], &["2"]].concat()).ok();
    let recorded = |key: &str| {
        let text = fs::read_to_string(w.path().join("out/run.json")).expect("run.json");
        serde_json::from_str::<Value>(&text).expect("JSON")[key].clone()
    };
    assert_eq!(recorded("instruction_set"), "plain");
    let doctor = run("plain", &["doctor"]);
    assert!(
        doctor.ok().contains("plain: no vector instructions") && doctor.stdout.contains("set by REEL_CPU"),
        "{}",
        doctor.stdout
    );
    assert!(run("plain", &["replay", "out", "--step", "2"]).ok().contains("same bits"));
    // With an empty REEL_CPU, the best instruction set of this machine is used, which may be `plain`.
    let replayed = run("", &["replay", "out", "--step", "1"]);
    let resumed = run("", &[&train[..], &["3", "--resume-from-checkpoint", "last"]].concat());
    resumed.ok();
    if recorded("instruction_set") != "plain" {
        for said in [&replayed.stderr, &resumed.stderr] {
            assert!(said.contains("warning: ") && said.contains("REEL_CPU=plain selects that of the run"), "{said}");
        }
    }
    run("sse9", &["doctor"])
        .assert_refused(2, &["REEL_CPU: is \"sse9\"", "plain, avx2, avx512, avx512-bf16, amx, amx-f32"]);
    assert!(doctor.stdout.contains("bf16 products") && doctor.stdout.contains("f32 multiply-adds of widened bf16"));
    // AMX is used by default on a machine that has it; on another machine it is refused with a reason.
    let by_default = run("", &["doctor"]);
    if by_default.ok().contains("amx-f32: AVX-512, and AMX for matrix products; the best of this machine") {
        assert!(run("amx", &["doctor"]).ok().contains("AMX tiles (tdpbf16ps)"));
    } else {
        run("amx", &["doctor"])
            .assert_refused(2, &["REEL_CPU: is amx, which this machine does not have (", "its best is"]);
    }
}

#[test]
fn non_empty_folder_needs_overwrite() {
    let w = training_folder(2);
    run_sft(w.path(), "out", &["--max-steps", "1"]).ok();
    run_sft(w.path(), "out", &["--max-steps", "1"]).assert_refused(1, &["out", "--overwrite"]);
    run_sft(w.path(), "out", &["--max-steps", "1", "--overwrite"]).ok();
    run_sft(w.path(), "out", &["--resume-from-checkpoint", "out/checkpoint-7"]).assert_refused(1, &["checkpoint-7"]);
}

/// If a file of the base model has changed since the run started, a resume and a replay name the file.
#[test]
fn changed_file_of_the_base_model_is_named() {
    let w = training_folder(3);
    run_sft(w.path(), "out", &["--max-steps", "1"]).ok();
    let file = w.path().join("tiny/vocab.json");
    let changed = fs::read_to_string(&file).expect("a vocabulary").replace("\"!\":", "\"?!\":");
    fs::write(&file, changed).expect("written");
    let resumed = run_sft(w.path(), "out", &["--max-steps", "2", "--resume-from-checkpoint", "last"]);
    resumed
        .assert_refused(2, &["--model: is not the model of the run that wrote out/checkpoint-1 (vocab.json differs)"]);
    run_in(w.path(), ["replay", "out", "--step", "1"])
        .assert_refused(1, &["tiny: is not the model", "(vocab.json differs)"]);
}

#[test]
fn killed_check_continues() {
    let w = training_folder(1);
    let at = w.path();
    copy_test_media(at);
    fs::write(at.join("cut.mp4"), b"").expect("written");
    let row = |i: usize| media_question_row("video", if i % 3 == 1 { "cut.mp4" } else { "good.mp4" });
    fs::write(at.join("rows.jsonl"), (0..40).map(row).collect::<String>()).expect("written");
    let check = |list: &str| {
        let args = ["sft", "--model", "tiny", "--data", "rows.jsonl", "--check-data", "--quarantine", list];
        let mut command = reel();
        command.current_dir(at).args(args).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let mut child = check("broken.jsonl").spawn().expect("it starts");
    let journal = at.join("broken.jsonl.journal");
    let checked = || fs::read_to_string(&journal).unwrap_or_default().lines().count().saturating_sub(1);
    let begun = Instant::now();
    while checked() < 5 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no 5 rows in two minutes");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("killed");
    child.wait().expect("it ends");
    let before = checked();
    assert!(before < 40 && !at.join("broken.jsonl").exists(), "the data check ended before it was killed");
    let said = support::finished_run(check("broken.jsonl").output().expect("it runs"));
    let again = format!("{before} rows were checked before");
    let again_without_the_last = format!("{} rows were checked before", before - 1);
    assert!(said.stderr.contains(&again) || said.stderr.contains(&again_without_the_last), "{}", said.stderr);
    let whole = support::finished_run(check("whole.jsonl").output().expect("it runs"));
    assert!(!whole.stderr.contains("were checked before"), "{}", whole.stderr);
    let list = |name: &str| fs::read_to_string(at.join(name)).expect("the list");
    assert_eq!(list("broken.jsonl"), list("whole.jsonl"));
    assert_eq!(list("whole.jsonl").lines().count(), 13);
}

#[test]
fn non_finite_loss_stops_the_run() {
    let w = training_folder(4);
    let got = run_sft(w.path(), "out", &["--learning-rate", "1e30", "--max-steps", "20", "--quiet"]);
    got.assert_refused(1, &["step", "rows.jsonl"]);
    assert!(!w.path().join("out/model.safetensors").exists(), "non-finite weights were saved");
}

/// A write that fails midway, as on a full disk, leaves no incomplete model or checkpoint.
#[test]
fn failed_write_leaves_no_incomplete_files() {
    let w = training_folder(4);
    let script = format!(
        "ulimit -f 1000; exec {} sft --model tiny --data rows.jsonl --out out --max-steps 4 --quiet",
        env!("CARGO_BIN_EXE_reel")
    );
    let out = Command::new("bash").args(["-c", &script]).current_dir(w.path()).output().expect("bash starts");
    support::finished_run(out).assert_refused(1, &["out"]);
    let left = file_names_in(&w.path().join("out"));
    assert!(!left.iter().any(|n| n == "model.safetensors" || n.starts_with("checkpoint-")), "{left:?}");
}

/// If the output folder was removed, the run ends with an error and does not write a part of its files.
#[test]
fn removed_output_folder_ends_the_run() {
    let w = training_folder(9);
    let out = w.path().join("out");
    let child = start_run(w.path(), "out", 400);
    wait_for_steps(&out, 5);
    fs::rename(&out, w.path().join("elsewhere")).expect("renamed");
    let done = support::finished_run(child.wait_with_output().expect("it ends"));
    let last = done.stderr.lines().last().unwrap_or_default();
    assert!(done.code == Some(1) && last.starts_with("error: --out out: was removed or replaced"), "{}", done.stderr);
    assert!(!out.join("model.safetensors").exists());
}

/// After its start, a run no longer needs the small files of the model folder.
#[test]
fn run_outlives_the_folder_of_its_model() {
    let w = training_folder(9);
    let child = start_run(w.path(), "out", 60);
    wait_for_steps(&w.path().join("out"), 5);
    fs::remove_dir_all(w.path().join("tiny")).expect("removed");
    support::finished_run(child.wait_with_output().expect("it ends")).ok();
    let names = file_names_in(&w.path().join("out"));
    for name in ["config.json", "tokenizer.json", "model.safetensors", "checkpoint-60"] {
        assert!(names.iter().any(|n| n == name), "no {name} in {names:?}");
    }
}

/// An error about the file size limit names the final path of the file, and says how to continue.
#[test]
fn checkpoint_above_the_limit_on_file_sizes_says_how_to_go_on() {
    const OPTIONS: &str = "sft --model tiny --data rows.jsonl --out out --learning-rate 1e-3 --save-steps 1 --quiet";
    let w = training_folder(3);
    let weights = fs::metadata(w.path().join("tiny/model.safetensors")).expect("weights").len();
    let program = reel().get_program().to_os_string();
    let limited = |more: &[&str]| {
        let mut command = Command::new("bash");
        command.args(["-c", "ulimit -f \"$0\"; exec \"$@\""]).arg((weights / 1024 / 2).to_string()).arg(&program);
        command.args(OPTIONS.split(' ')).args(more).env("CUDA_VISIBLE_DEVICES", "");
        support::finished_run(command.current_dir(w.path()).output().expect("bash starts"))
    };
    let words = "out/checkpoint-1/training/optimizer.safetensors: cannot be written: it would be larger than the limit on file \
                 sizes; raise the limit on file sizes (ulimit -f), then start the run again with --overwrite";
    limited(&["--max-steps", "2"]).assert_refused(1, &[words]);
    run_sft(w.path(), "out", &["--max-steps", "1", "--save-steps", "1", "--overwrite"]).ok();
    let resume = ["--max-steps", "2", "--resume-from-checkpoint", "last"];
    let done = limited(&resume);
    assert!(done.stderr.contains("then resume with --resume-from-checkpoint last"), "{}", done.stderr);
}

/// `--loss-mean step` gives another loss than the default where micro-batches have different numbers of learned tokens.
/// It is in run.json, a resume and a replay have it, and a resume with another mean is refused.
#[test]
fn a_loss_mean_belongs_to_the_run() {
    let w = training_folder(9);
    let step = |out: &str, more: &[&str]| {
        let fixed = ["--loss-mean", "step", "--gradient-accumulation-steps", "3", "--save-steps", "2", "--max-steps"];
        run_sft(w.path(), out, &[&fixed[..], more].concat())
    };
    step("straight", &["4"]).ok();
    run_sft(w.path(), "plain", &["--gradient-accumulation-steps", "3", "--save-steps", "2", "--max-steps", "4"]).ok();
    let loss = |out: &str| support::read_metrics(&w.path().join(out))[3]["loss"].as_f64().expect("a loss");
    assert!((loss("straight") - loss("plain")).abs() > 1e-6, "{} {}", loss("straight"), loss("plain"));
    let run: Value =
        serde_json::from_slice(&fs::read(w.path().join("straight/run.json")).expect("run.json")).expect("JSON");
    assert!(run.to_string().contains(r#""loss_mean":"step""#), "{run}");
    step("parts", &["2"]).ok();
    let other = ["--gradient-accumulation-steps", "3", "--max-steps", "4", "--resume-from-checkpoint", "last"];
    run_sft(w.path(), "parts", &other).assert_refused(2, &["--loss-mean: is \"micro-batch\", but was \"step\" in"]);
    step("parts", &["4", "--resume-from-checkpoint", "last"]).ok();
    assert!(run_in(w.path(), ["replay", "straight", "--step", "3"]).ok().contains("gives the same bits"));
}

/// TensorBoard shows each step once, also if a run resumes from an earlier checkpoint: the event file of the resumed
/// process has an event START (`status` 1 in field 7) at its first step.
#[test]
fn event_files_of_a_resumed_run_begin_with_its_first_step() {
    let w = training_folder(9);
    run_sft(w.path(), "out", &["--max-steps", "6", "--save-steps", "2"]).ok();
    let from = ["--max-steps", "7", "--save-steps", "2", "--resume-from-checkpoint", "out/checkpoint-2"];
    run_sft(w.path(), "out", &from).ok();
    let mut files = file_names_in(&w.path().join("out"));
    files.retain(|name| name.starts_with("events."));
    files.sort();
    let has_start = |name: &String| {
        let bytes = fs::read(w.path().join("out").join(name)).expect("an event file");
        bytes.windows(6).any(|part| part == [16, 3, 58, 2, 8, 1])
    };
    assert_eq!(files.iter().map(has_start).collect::<Vec<_>>(), [false, true], "{files:?}");
}
