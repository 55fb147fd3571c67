//! `reel replay`: repeats one step of a training run and compares the resulting weights.

use std::ops::DerefMut;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_train::RunSetup;
use reel_train::file_names::ROLLOUTS_FOLDER;
use reel_train::options::{EvaluationOptions, GrpoOptions, ReportTo, RunOptions, SftOptions, TrainingOptions};
use reel_train::runs::folder::output as output_folder;
use reel_train::runs::replay::{self, ReplayReport, ReplayStart};
use reel_train::runs::run::device_change_warning;
use reel_train::runs::{grpo, sft};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::common::CommonOptions;
use crate::fail::failed;
use crate::output;
use crate::training::ResolvedOptions;

/// Repeat one training step and compare the resulting weights with the recorded ones: exit code 0 if their bits are the
/// same, else 1.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel sft --model tiny --data rows.json --out run --max-steps 5
  reel replay run --step 3")]
pub struct ReplayArgs {
    /// Output folder of the run
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Step to repeat, counted from 1
    #[arg(long, value_name = "N")]
    step: u64,
}

impl ReplayArgs {
    /// Repeats the step and prints the result. Returns an error (exit code 1) if the weights differ.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let out = &std::path::absolute(&self.out).unwrap_or_else(|_| self.out.clone());
        let (command, options) = replay::recorded_command_and_options(&self.out)?;
        enter_recorded_folder(out)?;
        let from = replay::find_replay_start(out, self.step)?;
        let replayed = match command.as_str() {
            "sft" => self.repeat::<SftOptions>(out, options, common, &from, |setup| {
                sft::replay_step(setup, out, self.step, &from.hash)
            }),
            _ => self.repeat::<GrpoOptions>(out, options, common, &from, |setup| {
                grpo::replay_step(setup, out, self.step, &from.hash)
            }),
        }?;
        let ReplayReport { same, first } = &replayed;
        let (out, step) = (self.out.display(), self.step);
        if common.json {
            output::print_json(&json!({"step": step, "from": from.step, "same": same, "tensor": first}))?;
        } else if *same {
            output::print_line(format!("{out}: step {step}, repeated from step {}, gives the same bits", from.step))?;
        }
        if *same {
            return Ok(());
        }
        let tensor = first.as_deref().unwrap_or("unknown, because the run did not record one hash per tensor");
        let help = "compare device, version and data with run.json";
        Err(failed(out, format!("step {step} gives different weights; the first different tensor: {tensor}"), help))
    }

    fn repeat<O: TrainingOptions + DerefMut<Target = RunOptions> + Clone + DeserializeOwned + Recorded>(
        &self,
        out: &Path,
        options: Value,
        common: &CommonOptions,
        from: &ReplayStart,
        redo: impl FnOnce(&RunSetup<O>) -> reel_train::Result<ReplayReport>,
    ) -> Result<ReplayReport> {
        let file = out.join("run.json");
        let mut resolved: ResolvedOptions<O> = serde_json::from_value(options).map_err(|e| {
            failed(file.display(), format!("cannot be parsed: {e}"), "use the version of reel that wrote it")
        })?;
        let folder = reel_support::files::temporary_folder()
            .map_err(|e| failed("temporary folder", e, "set TMPDIR to a writable folder"))?;
        resolved.options.prepare_replay(out);
        let run: &mut RunOptions = &mut resolved.options;
        run.out = folder.path().join("out");
        run.save_steps = 0;
        run.report_to = vec![ReportTo::None];
        run.report_command = None;
        run.evaluation = EvaluationOptions::default();
        run.resume_from_checkpoint = from.checkpoint.as_ref().map(|path| path.display().to_string());
        resolved.common = CommonOptions {
            device: common.device.clone().or(resolved.common.device),
            threads: common.threads.or(resolved.common.threads),
            json: common.json,
            quiet: true,
            verbose: common.verbose,
            trace: common.trace.clone(),
            ..resolved.common
        };
        let run = output_folder::read_run_json(out)?;
        resolved.with_setup(None, |setup| {
            if let Some(warning) =
                device_change_warning(&run, setup.trainer.device).filter(|_| !common.quiet && !common.json)
            {
                reel_support::diagnostic::note!("warning: {}: {warning}", file.display());
            }
            Ok(redo(setup)?)
        })
    }
}

/// Changes the working directory to the folder in which the run was started, because paths in its options are
/// relative to it. If that folder no longer exists, the working directory stays unchanged.
fn enter_recorded_folder(out: &Path) -> Result<()> {
    match replay::recorded_working_directory(out)?.filter(|folder| folder.is_dir()) {
        Some(folder) => std::env::set_current_dir(&folder).map_err(|e| output::cannot_read(&folder, e)),
        None => Ok(()),
    }
}

/// Implemented for the options of each training command, so that a step can be repeated.
trait Recorded {
    /// Makes the repeated step use the rollouts recorded in the run folder `out` instead of sampling, and switches
    /// off options that do not affect the step.
    fn prepare_replay(&mut self, out: &Path);
}

impl Recorded for SftOptions {
    fn prepare_replay(&mut self, _: &Path) {
        // Evaluation is switched off. Rows that `val_size` holds back from training are still held back.
        self.eval_file = None;
    }
}

impl Recorded for GrpoOptions {
    fn prepare_replay(&mut self, out: &Path) {
        self.recorded = self.rollouts.is_none().then(|| out.join(ROLLOUTS_FOLDER));
    }
}
