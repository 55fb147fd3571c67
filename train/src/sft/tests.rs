//! Whole runs on the golden cases: against the reference, against themselves, and stopped in every way.

mod errors;
mod golden;
mod master;
mod resumed;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use reel_model::checkpoint::Checkpoint;
use reel_runtime::{DType, Device};
use serde_json::Value;

use super::*;
use crate::metrics::{Skipped, StepMetrics};
use crate::options::{LabelRule, Optim, RunOptions, Scheduler};
use crate::recipe::Recipe;
use crate::{checkpoint, output, resume};

/// A folder of the project's golden training data.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/train").join(name)
}

/// A run on a golden case, with what a test changes.
struct Case {
    options: SftOptions,
    dtype: DType,
    threads: usize,
    seed: u64,
    stop: AtomicBool,
}

impl Case {
    /// Two epochs of the case in small steps.
    fn new(name: &str, model: &str, out: &Path) -> Self {
        let case = golden(name);
        let run = RunOptions {
            model: golden(model).display().to_string(),
            data: case.join("data.jsonl"),
            out: out.to_path_buf(),
            learning_rate: 1e-3,
            lr_scheduler_type: Scheduler::Constant,
            gradient_accumulation_steps: 1,
            max_steps: Some(4),
            ..Default::default()
        };
        let options = SftOptions { run, labels: Some(LabelRule::Text), ..Default::default() };
        Self { options, dtype: DType::F32, threads: 2, seed: 0, stop: AtomicBool::new(false) }
    }

    fn with(mut self, change: impl FnOnce(&mut SftOptions)) -> Self {
        change(&mut self.options);
        self
    }

    fn run(&self) -> Result<Summary> {
        let model = PathBuf::from(&self.options.model);
        let media = MediaOptions { profile: reel_media::profile::Profile::VideorftTrain, ..Default::default() };
        run(&Setup {
            options: &self.options,
            model: &model,
            device: &Device::cpu(self.threads),
            dtype: self.dtype,
            seed: self.seed,
            media: &media,
            resolved: &serde_json::to_value(&self.options).unwrap(),
            quiet: true,
            stop: &self.stop,
        })
    }
}

/// The lines of metrics.jsonl.
fn metrics(out: &Path) -> Vec<StepMetrics> {
    let text = fs::read_to_string(out.join(output::METRICS)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The same without what depends on time.
fn timeless(out: &Path) -> Vec<StepMetrics> {
    metrics(out).into_iter().map(|m| StepMetrics { tokens_per_second: 0.0, step_seconds: 0.0, ..m }).collect()
}

/// Every file below a folder with its bytes, but for metrics (compared without times), events and options.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if ![output::METRICS, output::RUN].contains(&name.as_str()) && !name.starts_with("events.") {
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Fails with the name of the first file that differs.
fn assert_same_files(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    let names = |f: &[(String, Vec<u8>)]| f.iter().map(|x| x.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for (x, y) in a.iter().zip(&b) {
        assert!(x.1 == y.1, "{} differs", x.0);
    }
}
