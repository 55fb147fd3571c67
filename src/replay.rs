//! `reel replay`: a step of a finished run once more.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_train::options::{GrpoOptions, ReportTo, RunOptions, SftOptions, TrainingOptions};
use reel_train::replay::{self, ReplayReport, ReplayStart};
use reel_train::run::RunSetup;
use reel_train::{grpo, sft};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::ops::DerefMut;

use crate::common::Common;
use crate::fail::failed;
use crate::output;
use crate::training::Resolved;

/// Do one training step again and compare the weights that it leaves with those that were recorded.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel sft --model tiny --data rows.json --out run --max-steps 5
  reel replay run --step 3")]
pub struct Replay {
    /// The OUT of the run; run this where the run was started, for its paths
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The step to do again, counted from 1
    #[arg(long, value_name = "N")]
    step: u64,
}

impl Replay {
    /// Ends with exit code 0 where the weights are the same bits, 1 where not.
    pub fn run(&self, common: &Common) -> Result<()> {
        let (command, options) = replay::recorded_options(&self.out)?;
        let from = replay::find_start(&self.out, self.step)?;
        let replayed = match command.as_str() {
            "sft" => self.redo::<SftOptions>(options, common, &from, |setup| {
                sft::replay_step(setup, &self.out, self.step, &from.hash)
            }),
            _ => self.redo::<GrpoOptions>(options, common, &from, |setup| {
                grpo::replay_step(setup, &self.out, self.step, &from.hash)
            }),
        }?;
        let ReplayReport { same, first } = &replayed;
        let (out, step) = (self.out.display(), self.step);
        if common.json {
            output::json(&json!({"step": step, "from": from.step, "same": same, "tensor": first}))?;
        } else if *same {
            output::line(format!("{out}: step {step}, done again from step {}, leaves the same bits", from.step))?;
        }
        if *same {
            return Ok(());
        }
        let tensor = first.as_deref().unwrap_or("the run recorded no tensors");
        let cure = "compare device, version and data with run.json";
        Err(failed(out, format!("step {step} leaves other weights than it did; the first: {tensor}"), cure))
    }

    fn redo<O: TrainingOptions + DerefMut<Target = RunOptions> + Clone + DeserializeOwned + Recorded>(
        &self,
        options: Value,
        common: &Common,
        from: &ReplayStart,
        redo: impl FnOnce(&RunSetup<O>) -> reel_train::Result<ReplayReport>,
    ) -> Result<ReplayReport> {
        let place = self.out.join("run.json");
        let mut resolved: Resolved<O> = serde_json::from_value(options).map_err(|e| {
            failed(place.display(), format!("cannot be understood: {e}"), "use the version that wrote it")
        })?;
        let folder = tempfile::tempdir()
            .map_err(|e| failed("temporary folder", e, "set TMPDIR to a folder that can be written"))?;
        resolved.options.take_from(&self.out);
        let run: &mut RunOptions = &mut resolved.options;
        run.out = folder.path().join("out");
        run.save_steps = 0;
        run.report_to = vec![ReportTo::None];
        run.resume_from_checkpoint = from.checkpoint.as_ref().map(|path| path.display().to_string());
        resolved.common = Common {
            device: common.device.clone().or(resolved.common.device),
            threads: common.threads.or(resolved.common.threads),
            json: common.json,
            quiet: true,
            verbose: common.verbose,
            trace: common.trace.clone(),
            ..resolved.common
        };
        resolved.with_setup(|setup| Ok(redo(setup)?))
    }
}

/// Options whose run wrote down what it drew.
trait Recorded {
    /// Takes that instead of drawing again.
    fn take_from(&mut self, out: &Path);
}

impl Recorded for SftOptions {
    fn take_from(&mut self, _: &Path) {}
}

impl Recorded for GrpoOptions {
    fn take_from(&mut self, out: &Path) {
        self.recorded = self.rollouts.is_none().then(|| out.join(reel_train::rollout::ROLLOUTS));
    }
}
