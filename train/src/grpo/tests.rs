//! Whole runs: against the reference, shared prompts against plain ones, live ones against themselves, and bad input.

mod errors;
mod live;
mod shared;
mod tower;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::{Args, FromArgMatches};
use reel_model::input::MediaOptions;
use reel_runtime::{DType, Device};
use serde_json::{Value, json};

use super::*;
use crate::options::{RunOptions, Scheduler};
use crate::testing::*;

/// A run, with what a test changes.
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

    fn run(&self) -> Result<Summary> {
        let model = PathBuf::from(&self.options.model);
        let media = MediaOptions { profile: reel_media::profile::Profile::VideorftTrain, ..Default::default() };
        run(&Setup {
            options: &self.options,
            model: &model,
            device: &self.device,
            dtype: self.dtype,
            seed: self.seed,
            media: &media,
            resolved: &serde_json::to_value(&self.options).unwrap(),
            quiet: true,
            stop: &self.stop,
        })
    }
}

/// A case of the goldens, to be written to `out`.
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

#[test]
fn steps_on_given_completions_are_the_references() {
    for name in GIVEN {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let (case, expected) = given(name, &out);
        case.run().unwrap();
        let (got, want) = (metrics(&out), expected["steps"].as_array().unwrap());
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            let near = |what: &str, got: f64, relative: f64, absolute: f64| {
                let want = want[what].as_f64().unwrap();
                let most = (relative * want.abs()).max(absolute);
                assert!((got - want).abs() <= most, "{name} step {}: {what} {got}, not {want}", want);
            };
            near("loss", got.loss, 1e-4, 2e-6);
            near("grad_norm", got.grad_norm, 1e-3, 0.0);
            near("learning_rate", got.learning_rate, 1e-6, 0.0);
            for (what, relative, absolute) in [("reward", 1e-4, 1e-6), ("clip_ratio", 1e-4, 1e-6), ("kl", 1e-2, 1e-7)] {
                if let Some(value) = got.more.get(what) {
                    near(what, value.as_f64().unwrap(), relative, absolute);
                }
            }
            assert_eq!(got.more.contains_key("kl"), case.options.beta > 0.0, "{name}");
        }
        let folder = golden("../grpo").join(name);
        let limits = expected["delta_limits"].as_object().unwrap();
        assert_changes(name, &folder, "", limits, Path::new(&case.options.model), &out);
    }
}
