//! Fuzz targets for the files of a run's output folder and for the results of measurements. A folder may come from
//! another machine, and a file may be cut or damaged.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use reel_tools::measure::compare::compare_results;
use reel_tools::report::run_page::run_page_html;
use reel_train::options::RunOptions;
use reel_train::runs::folder::digests::CheckpointDigests;
use reel_train::runs::folder::logs::recorded_logs;
use reel_train::runs::folder::output::{find_run_start, read_run_json};
use reel_train::runs::folder::{hashes, later_skipped, resume};
use reel_train::runs::reporting::wandb::environment::WandbEnvironment;
use reel_train::runs::reporting::wandb::{WandbRunWriter, WandbStart};
use reel_train::runs::run::replay::{find_replay_start, recorded_command_and_options, recorded_working_directory};
use serde_json::{Value, json};

use super::{FuzzTarget, repository_file, scratch_folder};
use crate::mutate::{PartFormat, Seed, split_into_parts};
use crate::verdict::{require, value_if_accepted, verdict_of};

/// The files of the fuzz target `run-folder`, in the order of the input's parts.
const RUN_FILES: [&str; 6] = [
    "metrics.jsonl",
    "run.json",
    "rollouts/000001.jsonl",
    "checkpoint-1/training/state.json",
    "skipped.jsonl",
    "hashes.bin",
];

/// The output folder of a run: the files that `reel report`, `reel replay` and a resumed run read.
pub const RUN_FOLDER: FuzzTarget = FuzzTarget {
    name: "run-folder",
    words: &[
        "step",
        "loss",
        "hash",
        "grad_norm",
        "rewards/accuracy",
        "rewards/<b>",
        "lengths",
        "after",
        "options",
        "command",
        "sft",
        "grpo",
        "digest",
        "texts",
        "completions",
        "row",
        "solution",
        "used",
        "scores",
        "log_probs",
        "position",
        "skipped",
        "slot",
        "parameter_steps",
        "working_directory",
        "machine",
        "cause",
        "media",
        "line",
        "reason",
        "<script>",
    ],
    seeds: || {
        let file = |name: &str| repository_file(&format!("tools/fuzz/seeds/{name}"));
        let skipped = json!({"row": 3, "line": 4, "cause": "media", "reason": "a.mp4: is damaged"}).to_string() + "\n";
        Ok(vec![
            Seed::new(PartFormat::JsonLines, file("metrics.jsonl")?)
                .with_part(PartFormat::Json, file("run.json")?)
                .with_part(PartFormat::JsonLines, file("rollout.jsonl")?)
                .with_part(PartFormat::Json, file("state.json")?)
                .with_part(PartFormat::JsonLines, skipped)
                .with_part(PartFormat::Bytes, (0..64).collect::<Vec<u8>>()),
        ])
    },
    open: || {
        let out = scratch_folder()?;
        fs::create_dir_all(out.join("checkpoint-1/training"))?;
        fs::create_dir_all(out.join("rollouts"))?;
        let checkpoint = out.join("checkpoint-1");
        Ok(Box::new(move |input| {
            for (name, part) in RUN_FILES.iter().zip(split_into_parts(input)) {
                fs::write(out.join(name), part).map_err(|e| e.to_string())?;
            }
            let page = value_if_accepted(run_page_html(&out))?;
            if let Some(page) = &page {
                require(!page.contains("\u{1b}"), || "the page has a control character".to_string())?;
                require(!page.contains("<script>alert"), || {
                    "the page contains markup from an input file that was not escaped".to_string()
                })?;
            }
            let replay = verdict_of(find_replay_start(&out, 2))?;
            verdict_of(recorded_command_and_options(&out))?;
            verdict_of(recorded_working_directory(&out))?;
            verdict_of(later_skipped::read(&out, &[1]))?;
            verdict_of(hashes::read_step_hashes(&out, 2, 8))?;
            let options =
                RunOptions { out: out.clone(), resume_from_checkpoint: Some("last".into()), ..RunOptions::default() };
            verdict_of(find_run_start(&options))?;
            let run = verdict_of(read_run_json(&out))?;
            let Some(state) = value_if_accepted(resume::read_run_state(&checkpoint))? else { return Ok(false) };
            verdict_of(resume::planned_step_counts(&checkpoint, &out, &state))?;
            let logs = verdict_of(recorded_logs(&checkpoint, &state, &CheckpointDigests::default()))?;
            Ok(page.is_some() && replay && run && logs)
        }))
    },
};

/// Two results of `reel bench --json`, which are compared with each other.
pub const BENCH_RESULT: FuzzTarget = FuzzTarget {
    name: "bench-result",
    words: &[
        "op",
        "tokens",
        "batch",
        "seconds",
        "samples",
        "kernels",
        "kernel",
        "device",
        "dtype",
        "clocks",
        "threads",
        "ops",
        "median",
        "n",
        "min",
        "max",
        "sizes",
        "context",
        "machine",
        "tokens_per_second",
    ],
    seeds: || {
        let result = |scale: f64| {
            let seconds: Vec<f64> = (0..10).map(|i| scale * (1.0 + 0.01 * f64::from(i))).collect();
            let op = |name: &str| json!({"op": name, "seconds": scale, "launches": 3});
            let all = json!({
                "op": "decode", "tokens": 64, "batch": 2, "context": 64, "device": "cpu", "dtype": "f32", "threads": 2,
                "n": 10, "seconds": scale, "samples": seconds, "ops": [op("matmul_fwd"), op("sample")], "products": null,
                "clocks": {"sm_mhz": 1980.0}, "machine": {"name": "x", "driver": null}, "version": "0.1.0",
            });
            let kernels = json!({"op": "op", "sizes": [8], "kernels": [{"kernel": "k", "samples": seconds}]});
            [all, kernels]
        };
        let (before, after) = (result(1.0), result(1.1));
        let pairs = before.iter().zip(&after);
        Ok(pairs
            .map(|(a, b)| Seed::new(PartFormat::Json, a.to_string()).with_part(PartFormat::Json, b.to_string()))
            .collect())
    },
    open: || {
        let folder = scratch_folder()?;
        let files = ["a.json", "b.json"].map(|name| folder.join(name));
        Ok(Box::new(move |input| {
            for (file, part) in files.iter().zip(split_into_parts(input)) {
                fs::write(file, part).map_err(|e| e.to_string())?;
            }
            let Some(comparison) = value_if_accepted(compare_results(&files[0], &files[1]))? else { return Ok(false) };
            std::hint::black_box((comparison.text(), comparison.json()));
            Ok(true)
        }))
    },
};

/// The Weights & Biases log (`.wandb`) of an earlier run. A run that continues the earlier run copies the steps of this
/// log.
pub const WANDB: FuzzTarget = FuzzTarget {
    name: "wandb",
    words: &["_step", "train/loss", "media", "path", ":W&B"],
    seeds: || Ok(vec![Seed::new(PartFormat::Bytes, repository_file("tools/fuzz/seeds/run.wandb")?)]),
    open: || {
        let home = scratch_folder()?;
        let part = home.join("wandb/offline-run-20260101_000000-abcdefgh");
        fs::create_dir_all(&part)?;
        let run: Value = serde_json::from_slice(&repository_file("tools/fuzz/seeds/run.json")?)?;
        Ok(Box::new(move |input| {
            let complaint = |e: std::io::Error| e.to_string();
            fs::write(part.join("run-abcdefgh.wandb"), correct_record_checksums(input)).map_err(complaint)?;
            let out = home.join("out");
            let environment = WandbEnvironment::default();
            let (out, home, environment) = (&out, &home, &environment);
            let start = WandbStart { out, home, step: 2, done: &[], project: "p", name: None, environment, run: &run };
            let copied = value_if_accepted(copy_steps(&start))?;
            fs::remove_dir_all(out).or_else(|e| if out.exists() { Err(e) } else { Ok(()) }).map_err(complaint)?;
            // A log without steps has about 3.5 KB, so a log of more than 5 KB has copied steps.
            Ok(copied.is_some_and(|bytes| bytes > 5_000))
        }))
    },
};

/// Starts the W&B folder of a run that continues an earlier one. Returns the size of the new log in bytes.
fn copy_steps(start: &WandbStart) -> Result<u64> {
    let wandb = WandbRunWriter::create(start)?;
    let logs: Vec<PathBuf> = fs::read_dir(wandb.folder())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let is_log = |path: &&PathBuf| path.extension().is_some_and(|end| end == "wandb");
    let bytes = logs.iter().find(is_log).map_or(0, |path: &PathBuf| fs::metadata::<&Path>(path).map_or(0, |m| m.len()));
    wandb.finish(0)?;
    Ok(bytes)
}

/// Writes the correct checksum into each record of a `.wandb` file that has a single block. Otherwise the reader would
/// refuse a changed record for its checksum. A record is checksum (u32), length (u16), type (u8) and data.
fn correct_record_checksums(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let mut at = 7;
    while let Some(length) = bytes.get(at + 4..at + 6) {
        let length = usize::from(length[0]) | usize::from(length[1]) << 8;
        let Some(record) = bytes.get(at + 6..at + 7 + length) else { break };
        let checksum = crc32fast::hash(record);
        bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
        at += 7 + length;
    }
    bytes
}
