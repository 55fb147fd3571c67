//! Tests the logs and folders of W&B runs that several processes write.

use std::fs;

use crate::hardware_metrics::HardwareMetrics;
use crate::metrics::GrpoMetrics;

use super::*;
use crate::runs::folder::previous::PreviousRun;

fn line(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        loss: 1.0 / step as f64,
        grad_norm: 0.25,
        learning_rate: 1e-6,
        tokens: 10,
        tokens_per_second: 5.0,
        step_seconds: 2.0,
        peak_bytes: 7,
        hash: "00".into(),
        hardware: HardwareMetrics::default(),
        grpo: GrpoMetrics::default(),
        validation: None,
    }
}

fn preview(step: u64) -> RolloutPreview {
    let strip = Some(PngImage { width: 2, height: 1, bytes: vec![step as u8; 40_000] });
    RolloutPreview { rewards: vec![0.0, step as f32, 0.5], text: format!("<b>{step}</b> & so on"), strip }
}

/// Writes to `out` the W&B file of a process that resumes after `step` of the run in `home` and ends after `last`. If
/// `with_images` is true, each step has a preview image.
fn part(out: &Path, home: &Path, step: u64, last: u64, with_images: bool) -> WandbRunWriter {
    let run = json!({"command": "grpo", "steps": 9, "options": {"learning_rate": 0.5}});
    let done: Vec<StepMetrics> = (1..=step).map(line).collect();
    let environment = WandbEnvironment::default();
    let begin =
        WandbStart { out, home, step, done: &done, project: "p", name: None, environment: &environment, run: &run };
    let mut wandb = WandbRunWriter::create(&begin).unwrap();
    for n in step + 1..=last {
        wandb.log_step(n, &line(n).named_metric_values(), with_images.then(|| preview(n)).as_ref()).unwrap();
    }
    wandb
}

/// Returns the records in the log of a run folder.
fn records(folder: &Path) -> Vec<WandbRecord> {
    let id = folder.file_name().unwrap().to_str().unwrap().rsplit('-').next().unwrap();
    let bytes = log::read_records(&folder.join(format!("run-{id}.wandb"))).unwrap();
    bytes.iter().map(|bytes| WandbRecord::parse(bytes).unwrap()).collect()
}

/// Returns the logged steps of a run folder as (step, loss, whether the step has a preview image). Asserts that the
/// media files exist.
fn steps(folder: &Path) -> Vec<(u64, f64, bool)> {
    let media: Vec<String> = records(folder).iter().flat_map(WandbRecord::media_paths).collect();
    for path in &media {
        assert!(fs::metadata(folder.join("files").join(path)).unwrap().len() > 0);
    }
    let step = |values: Map<String, Value>| {
        let picture = values.get(FRAMES_TAG).map(|value| value["path"].as_str().unwrap().to_string());
        assert_eq!(picture.is_some(), values.contains_key(REWARDS_TAG) && values.contains_key(COMPLETIONS_TAG));
        assert!(picture.iter().all(|path| media.contains(path)));
        (values["_step"].as_u64().unwrap(), values["train/loss"].as_f64().unwrap(), picture.is_some())
    };
    records(folder).iter().filter_map(WandbRecord::history_values).map(step).collect()
}

fn folders(out: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(out.join(FOLDER)).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

fn id(folder: &Path) -> String {
    folder.display().to_string().rsplit('-').next().unwrap().to_string()
}

fn marked(folder: &Path) -> bool {
    folder.join(format!("run-{}.wandb.synced", id(folder))).exists()
}

fn losses(picture: impl Fn(u64) -> bool, last: u64) -> Vec<(u64, f64, bool)> {
    (1..=last).map(|n| (n, 1.0 / n as f64, picture(n))).collect()
}

#[test]
fn step_is_written_with_its_media() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    let wandb = part(out, out, 0, 3, true);
    let folder = wandb.folder().to_path_buf();
    // The log was not closed, as if the process had been killed, but it still contains all steps.
    assert_eq!(steps(&folder), losses(|_| true, 3));
    let before = records(&folder).len();
    wandb.finish(0).unwrap();
    assert_eq!(records(&folder)[before..], [WandbRecord::exit(0, 0)]);
    let page = fs::read_dir(folder.join("files/media/html/rollouts")).unwrap().next().unwrap().unwrap().path();
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("&lt;b&gt;") && page.contains("&amp; so on") && !page.contains("<b>"), "{page}");
    let values = records(&folder).iter().find_map(WandbRecord::history_values).unwrap();
    let bins = &values[REWARDS_TAG];
    assert_eq!(bins["bins"].as_array().unwrap().len(), bins["values"].as_array().unwrap().len() + 1);
    // The SHA-256 of 40000 bytes with the value 1, computed by coreutils.
    assert_eq!(values[FRAMES_TAG]["sha256"], "fb67091504b666f393f1530f351a3fa5ae5168228b9aa06dcce5835be0402356");
    assert_eq!(values[FRAMES_TAG]["width"], 2);
    assert_eq!(
        config(&json!({"seed": 1, "options": {"seed": 2, "a": 3}})),
        *json!({"seed": 1, "a": 3}).as_object().unwrap()
    );
}

#[test]
fn resumed_part_contains_the_whole_run_and_replaces_the_previous_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    drop(part(out, out, 0, 5, true));
    // A killed process left an incomplete folder; the next process removes it.
    fs::create_dir_all(out.join("wandb/.offline-run-20200101_000000-abcd1234.part/files")).unwrap();
    part(out, out, 4, 6, false).finish(0).unwrap();
    let all = folders(out);
    assert_eq!(all.len(), 2);
    assert_eq!(steps(&all[1]), losses(|n| n <= 4, 6));
    assert_eq!(id(&all[0]), id(&all[1]));
    assert!(marked(&all[0]) && !marked(&all[1]));
    // If the folder was uploaded before the run resumes, it is not marked, and the new folder gets another run id.
    fs::write(all[1].join(format!("run-{}.wandb.syncstate", id(&all[1]))), "{}").unwrap();
    part(out, out, 5, 7, true).finish(0).unwrap();
    let all = folders(out);
    assert_eq!(steps(&all[2]), losses(|n| n <= 4 || n > 5, 7));
    assert!(id(&all[2]) != id(&all[1]) && !marked(&all[1]));
    // Resumes the run with another output folder.
    let other = dir.path().join("other");
    part(&other, out, 6, 8, true).finish(0).unwrap();
    let there = folders(&other);
    assert_eq!(steps(&there[0]), losses(|n| n != 5, 8));
    assert!(id(&there[0]) != id(&all[2]) && !marked(&folders(out)[2]));
}

#[test]
fn steps_missing_in_the_log_come_from_the_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    let folder = part(out, out, 3, 4, true).folder().to_path_buf();
    assert_eq!(steps(&folder), losses(|n| n == 4, 4));
    // A truncated log and removed media files do not stop the run.
    let log = folder.join(format!("run-{}.wandb", id(&folder)));
    let bytes = fs::read(&log).unwrap();
    fs::write(&log, &bytes[..bytes.len() - 10]).unwrap();
    fs::remove_dir_all(folder.join("files/media/images")).unwrap();
    let last = part(out, out, 4, 5, false).folder().to_path_buf();
    let histories: Vec<_> = records(&last).iter().filter_map(WandbRecord::history_values).collect();
    assert_eq!(histories.len(), 5);
    assert_eq!(records(&last).iter().flat_map(WandbRecord::media_paths).count(), 1);
}

/// Removes the earlier run in `out`, as a fresh run does.
fn remove_run(out: &Path) {
    PreviousRun::set_aside(out).unwrap().remove().unwrap();
}

#[test]
fn fresh_run_removes_only_run_folders() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    remove_run(out);
    part(out, out, 0, 1, true).finish(1).unwrap();
    remove_run(out);
    assert!(!out.join(FOLDER).exists());
    part(out, out, 0, 1, true).finish(1).unwrap();
    fs::write(out.join("wandb/settings"), "").unwrap();
    remove_run(out);
    assert_eq!(folders(out), [out.join("wandb/settings")]);
}

#[test]
fn write_errors_name_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    fs::write(out.join(FOLDER), "a file").unwrap();
    remove_run(out);
    let run = json!({});
    let (home, environment) = (out, &WandbEnvironment::default());
    let begin = WandbStart { out, home, step: 0, done: &[], project: "p", name: None, environment, run: &run };
    let e = WandbRunWriter::create(&begin).unwrap_err().to_string();
    assert!(e.contains("wandb: cannot be written: ") && e.contains("; "), "{e}");
}
