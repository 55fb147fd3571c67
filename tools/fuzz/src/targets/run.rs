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
use serde_json::Value;

use super::{Runner, accepted, repository_path, run, write, write_parts};

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
pub fn run_folder(out: PathBuf) -> Result<Runner> {
    fs::create_dir_all(out.join("checkpoint-1/training"))?;
    fs::create_dir_all(out.join("rollouts"))?;
    let checkpoint = out.join("checkpoint-1");
    run(move |input| {
        write_parts(&out, &RUN_FILES, input);
        let page = accepted(run_page_html(&out));
        let is_unsafe = |page: &String| page.contains("\u{1b}") || page.contains("<script>alert");
        assert!(!page.as_ref().is_some_and(is_unsafe), "the page has text of a file that is not escaped");
        accepted(recorded_command_and_options(&out));
        accepted(recorded_working_directory(&out));
        accepted(later_skipped::read(&out, &[1]));
        accepted(hashes::read_step_hashes(&out, 2, 8));
        let resume_from_checkpoint = Some("last".into());
        accepted(find_run_start(&RunOptions { out: out.clone(), resume_from_checkpoint, ..RunOptions::default() }));
        let (replay, run) = (accepted(find_replay_start(&out, 2)), accepted(read_run_json(&out)));
        let state = accepted(resume::read_run_state(&checkpoint))?;
        accepted(resume::planned_step_counts(&checkpoint, &out, &state));
        let logs = accepted(recorded_logs(&checkpoint, &state, &CheckpointDigests::default()));
        (page.is_some() && replay.is_some() && run.is_some() && logs.is_some()).then_some(())
    })
}

/// Two results of `reel bench --json`, which are compared with each other.
pub fn bench_result(folder: PathBuf) -> Result<Runner> {
    run(move |input| {
        write_parts(&folder, &["a.json", "b.json"], input);
        let comparison = accepted(compare_results(&folder.join("a.json"), &folder.join("b.json")))?;
        std::hint::black_box((comparison.text(), comparison.json()));
        Some(())
    })
}

/// The Weights & Biases log (`.wandb`) of an earlier run. A run that continues the earlier run copies the steps of this
/// log.
pub fn wandb(home: PathBuf) -> Result<Runner> {
    let part = home.join("wandb/offline-run-20260101_000000-abcdefgh");
    fs::create_dir_all(&part)?;
    let run_json: Value = serde_json::from_slice(&fs::read(repository_path("tools/fuzz/seeds/run.json"))?)?;
    run(move |input| {
        write(&part.join("run-abcdefgh.wandb"), &correct_record_checksums(input));
        let (out, home, environment) = (&home.join("out"), &home, &WandbEnvironment::default());
        let start = WandbStart { out, home, step: 2, done: &[], project: "p", name: None, environment, run: &run_json };
        let bytes = accepted(copy_steps(&start));
        let _ = fs::remove_dir_all(out);
        // A log without steps has about 3.5 KB, so a log of more than 5 KB has copied steps.
        (bytes? > 5_000).then_some(())
    })
}

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
        let end = at + 7 + usize::from(u16::from_le_bytes([length[0], length[1]]));
        let Some(checksum) = bytes.get(at + 6..end).map(crc32fast::hash) else { break };
        bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
        at = end;
    }
    bytes
}
