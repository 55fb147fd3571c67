//! Tests of whole runs: shared prefixes, sampling, resume, the vision feature cache, and invalid input.

mod advantages;
mod errors;
mod live;
mod shared;
mod tower;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::options::{LrScheduler, RunOptions};
use clap::{Args, FromArgMatches};
use reel_device::{DType, Device};
use reel_input::MediaOptions;
use serde_json::{Value, json};

use super::*;
use crate::runs::testing::*;
use crate::setup::{ReportSetup, RunControl, TrainerSetup};

/// A test's GRPO run: its options, device and dtype.
struct Case {
    options: GrpoOptions,
    device: Device,
    dtype: DType,
    seed: u64,
    stop: AtomicBool,
}

impl Case {
    fn new(options: GrpoOptions) -> Self {
        Self { options, device: Device::cpu(2), dtype: DType::F32, seed: 0, stop: AtomicBool::new(false) }
    }

    fn with(mut self, change: impl FnOnce(&mut GrpoOptions)) -> Self {
        change(&mut self.options);
        self
    }

    fn run(&self) -> Result<RunSummary> {
        let model = PathBuf::from(&self.options.model);
        let media =
            MediaOptions { profile: reel_input::media::profile::MediaProfile::VideorftTrain, ..Default::default() };
        run(&GrpoSetup {
            options: &self.options,
            data: DataSetup { model: &model, media: &media, seed: self.seed },
            trainer: TrainerSetup::new(&self.device, self.dtype),
            reports: ReportSetup::quiet(&serde_json::to_value(&self.options).unwrap()),
            control: RunControl::one_process(&self.stop),
        })
    }
}

/// Returns the run of a golden case, with output folder `out`, and the expected values of the case.
fn given(name: &str, out: &Path) -> (Case, Value) {
    let case = golden("../grpo").join(name);
    let expected: Value = serde_json::from_slice(&fs::read(case.join("expected.json")).unwrap()).unwrap();
    let mut own = vec!["grpo"];
    let mut rest = expected["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap());
    while let Some(arg) = rest.next() {
        match arg {
            "--seed" | "--dtype" | "--profile" => drop(rest.next()),
            other => own.push(other),
        }
    }
    let command = GrpoOptions::augment_args(clap::Command::new("grpo"));
    let mut options = GrpoOptions::from_arg_matches(&command.try_get_matches_from(own).unwrap()).unwrap();
    let model = golden(expected["model"].as_str().unwrap().trim_start_matches("../"));
    (options.model, options.data) = (model.display().to_string(), case.join("data.jsonl"));
    (options.out, options.rollouts) = (out.to_path_buf(), Some(case.join("rollouts.jsonl")));
    (Case::new(options), expected)
}

const GIVEN: [&str; 6] =
    ["bnpo_iter2", "dapo_accumulate", "dr_grpo_unscaled", "grpo_clip_iter2", "grpo_videorft", "gspo_sequence"];
