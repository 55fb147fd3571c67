//! Training runs as several processes (ranks).
#![allow(dead_code, reason = "no test program uses all of this module")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::support::{FinishedRun, file_names_in, finished_run, metrics_without_times, reel, with_options};

/// The arguments of a `reel sft` run that several ranks can compute.
pub const SFT_ARGS: [&str; 15] = [
    "sft",
    "--model",
    "tiny",
    "--data",
    "rows.jsonl",
    "--device",
    "cpu",
    "--learning-rate",
    "1e-3",
    "--lr-scheduler-type",
    "constant",
    "--gradient-accumulation-steps",
    "8",
    "--save-steps",
    "2",
];

/// Returns a command that trains in `folder`. Options in `more` replace options of the same name.
pub fn sft_command(folder: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = reel();
    command.current_dir(folder).args(with_options(&SFT_ARGS, more)).args(["--out", out]);
    command
}

pub fn run_sft(folder: &Path, out: &str, more: &[&str]) -> FinishedRun {
    finished_run(sft_command(folder, out, more).output().expect("the binary starts"))
}

/// Returns a command by which Open MPI's mpirun, with these options, starts `run` as processes of this machine.
pub fn mpirun(options: &[&str], run: &Command) -> Command {
    let mut mpirun = Command::new("mpirun");
    mpirun.args(["--allow-run-as-root", "--oversubscribe", "--mca", "plm", "isolated"]).args(options);
    mpirun.arg(run.get_program()).args(run.get_args());
    mpirun.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = run.get_current_dir() {
        mpirun.current_dir(folder);
    }
    mpirun
}

/// Returns the metrics of a run, without the values that depend on the time or on the number of processes.
pub fn comparable_metrics(out: &Path) -> Vec<serde_json::Value> {
    let mut lines = metrics_without_times(out);
    for line in lines.iter_mut().filter_map(|line| line.as_object_mut()) {
        line.retain(|name, _| name != "peak_bytes" && name != "frames_encoded");
    }
    lines
}

/// Asserts that two runs have the same metrics, and checkpoints with the same weights and optimizer state.
#[track_caller]
pub fn assert_same_results(a: &Path, b: &Path, checkpoint: &str) {
    assert_eq!(comparable_metrics(a), comparable_metrics(b));
    for folder in [checkpoint.to_string(), format!("{checkpoint}/training")] {
        let files = file_names_in(&a.join(&folder));
        assert_eq!(files, file_names_in(&b.join(&folder)));
        let tensors: Vec<&String> = files.iter().filter(|name| name.ends_with(".safetensors")).collect();
        assert!(!tensors.is_empty(), "{folder}: {files:?}");
        for name in tensors {
            let bytes = |out: &Path| fs::read(out.join(&folder).join(name)).expect("a file");
            assert!(bytes(a) == bytes(b), "{folder}/{name} differs");
        }
    }
}

/// Waits until `metrics.jsonl` has `steps` lines.
pub fn wait_for_steps(out: &Path, steps: usize) {
    let begun = Instant::now();
    while fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count() < steps {
        assert!(begun.elapsed() < Duration::from_secs(60), "the run did not do {steps} steps in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}
