//! Tests of whole runs: golden cases, resume after interruptions, damaged and used output folders, invalid input.

mod damaged;
mod errors;
mod folder;
mod golden;
mod length;
mod master;
mod mixture;
mod padded;
mod resumed;
mod sums;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::SkipCause;
use crate::file_names::{METRICS_FILE, RUN_FILE, RUN_STATE_FILE, SKIPPED_FILE};
use crate::options::GradientCheckpointing::{self, Auto, Full, Selective};
use crate::options::{LrScheduler, Optim, RunOptions};
use crate::step::hyperparameters::Hyperparameters;
use reel_device::{DType, Device};
use reel_model::checkpoint::Checkpoint;
use reel_samples::labels::LabelRule;
use reel_samples::skipped_row::SkippedRow;
use serde_json::Value;

use super::*;
use crate::runs::folder::entries;
use crate::runs::folder::output;
use crate::runs::folder::resume;
use crate::runs::testing::*;
use crate::setup::{ReportSetup, TrainerSetup};

/// A test's run on a golden case: its options, device and dtype.
struct Case {
    options: SftOptions,
    dtype: DType,
    /// The device; `None` selects the CPU with `threads` threads.
    device: Option<Device>,
    threads: usize,
    /// The maximum number of pixels of an image; `None` uses the limit of the media profile.
    max_pixels: Option<u64>,
    seed: u64,
    stop: AtomicBool,
}

impl Case {
    /// Makes a run of 4 steps on a golden case, with one micro-batch per step.
    fn new(name: &str, model: &str, out: &Path) -> Self {
        let case = golden(name);
        let run = RunOptions {
            model: golden(model).display().to_string(),
            data: case.join("data.jsonl"),
            out: out.to_path_buf(),
            learning_rate: 1e-3,
            lr_scheduler_type: LrScheduler::Constant,
            gradient_accumulation_steps: 1,
            max_steps: Some(4),
            ..Default::default()
        };
        let options = SftOptions { run, labels: Some(LabelRule::Text), ..Default::default() };
        Self::of(options)
    }

    /// Makes a run with `options` on two CPU threads.
    fn of(options: SftOptions) -> Self {
        let stop = AtomicBool::new(false);
        Self { options, dtype: DType::F32, device: None, threads: 2, max_pixels: None, seed: 0, stop }
    }

    fn with(mut self, change: impl FnOnce(&mut SftOptions)) -> Self {
        change(&mut self.options);
        self
    }

    fn run(&self) -> Result<RunSummary> {
        let model = PathBuf::from(&self.options.model);
        let profile = reel_input::media::profile::MediaProfile::VideorftTrain;
        let mut media = MediaOptions { profile, ..Default::default() };
        media.overrides.max_pixels = self.max_pixels;
        let device = self.device.clone().unwrap_or_else(|| Device::cpu(self.threads));
        run(&SftSetup {
            options: &self.options,
            data: DataSetup { model: &model, media: &media, seed: self.seed },
            trainer: TrainerSetup::new(&device, self.dtype),
            reports: ReportSetup::quiet(&serde_json::to_value(&self.options).unwrap()),
            control: RunControl::one_process(&self.stop),
        })
    }
}
