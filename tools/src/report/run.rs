//! Reads the output folder of a training run for the run's page.

use std::fs;
use std::path::{Path, PathBuf};

use reel_support::diagnostic::input;
use reel_support::files::log::{count_lines, read_matching_lines};
use reel_train::file_names::{METRICS_FILE, RUN_FILE};
use reel_train::metrics::StepMetrics;
use reel_train::runs::folder::evaluations::{self, EvaluationLine};
use serde_json::Value;

use crate::error::{Error, Result};

/// A training run: its name and the contents of the files in its output folder.
#[derive(Debug, Default)]
pub(crate) struct TrainingRun {
    /// The output folder as the user wrote it.
    pub name: String,
    /// The output folder.
    pub folder: PathBuf,
    /// The finished steps.
    pub steps: Vec<StepMetrics>,
    /// `run.json`; null if it cannot be read.
    pub about: Value,
    /// The evaluations during training.
    pub evaluations: Vec<EvaluationLine>,
}

impl TrainingRun {
    pub fn read(folder: &Path) -> Result<TrainingRun> {
        refuse_other_folders(folder)?;
        let log = folder.join(METRICS_FILE);
        let lines = read_matching_lines(&log, |_: &StepMetrics| true)?;
        let steps: Vec<StepMetrics> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if count_lines(&log)? > steps.len() {
            let (path, line) = (log.display(), steps.len() + 1);
            reel_support::diagnostic::note!("{path}: line {line} is damaged: it and the lines after it are left out");
        }
        if steps.is_empty() {
            let help = "give the output folder of a run that has finished a step";
            return Err(Error::failed(log.display().to_string(), "has no steps", help));
        }
        let about: Value = input::read_file(folder.join(RUN_FILE), input::MAX_MESSAGES_BYTES)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let evaluations = evaluations::read(folder, u64::MAX)?;
        Ok(TrainingRun { name: folder.display().to_string(), folder: folder.to_path_buf(), steps, about, evaluations })
    }

    pub fn command(&self) -> &str {
        self.about["command"].as_str().unwrap_or("training")
    }

    pub fn run_json_text(&self, key: &str) -> &str {
        self.about[key].as_str().unwrap_or("?")
    }

    /// The number of the last finished step and the planned number of steps, such as `40 of 100`.
    pub fn progress_text(&self) -> String {
        let of = self.about["steps"].as_u64().map_or(String::new(), |n| format!(" of {n}"));
        format!("{}{of}", self.steps.last().map_or(0, |last| last.step))
    }

    /// The first and the last value of a metric, such as `3.1 → 0.2`.
    pub fn first_and_last_text(&self, digits: usize, value: impl Fn(&StepMetrics) -> Option<f64>) -> Option<String> {
        let mut values = self.steps.iter().filter_map(&value);
        let first = values.next()?;
        Some(format!("{first:.digits$} → {:.digits$}", values.next_back().unwrap_or(first)))
    }

    pub fn peak_gigabytes(&self) -> f64 {
        self.steps.iter().map(|s| s.peak_bytes).max().unwrap_or(0) as f64 / 1e9
    }

    /// One line about the run: steps, device, change of loss and reward, peak memory, version.
    pub fn headline(&self) -> String {
        let reward =
            self.first_and_last_text(3, |m| m.grpo.reward).map_or(String::new(), |change| format!(", reward {change}"));
        format!(
            "{} steps on {} in {}: loss {}{reward}, peak memory {:.1} GB. reel {}.",
            self.progress_text(),
            self.run_json_text("device"),
            self.run_json_text("dtype"),
            self.first_and_last_text(4, |m| Some(m.loss)).unwrap_or_default(),
            self.peak_gigabytes(),
            self.run_json_text("version"),
        )
    }
}

/// Refuses a folder that has none of the files that every run writes.
fn refuse_other_folders(run: &Path) -> Result<()> {
    let error = |what: &str| {
        let help = "give the --out of reel sft, reel grpo or reel eval";
        Err(Error::failed(run.display().to_string(), what, help))
    };
    match fs::metadata(run) {
        Err(e) => Err(Error::cannot_read(run, &e)),
        Ok(facts) if !facts.is_dir() => error("is not a folder"),
        Ok(_) if !run.join(METRICS_FILE).exists() && !run.join(RUN_FILE).exists() => {
            error("is not the output folder of a run: it has neither run.json nor metrics.jsonl")
        }
        Ok(_) => Ok(()),
    }
}
