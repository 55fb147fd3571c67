//! Reports each step: sends its metrics and rollout preview to TensorBoard and Weights & Biases (`--report-to`), and
//! its metrics to the command of `--report-command`.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Kind, Result};
use crate::file_names::METRICS_FILE;
use crate::metrics::{RolloutPreview, StepMetrics};
use crate::options::{ReportTo, RunOptions};
use reel_support::diagnostic::note;
use reel_support::files::log;
use serde_json::Value;

use crate::runs::reporting::command::ReportCommand;
use crate::runs::reporting::events::TensorboardEventFile;
use crate::runs::reporting::wandb::environment::{WandbEnvironment, WandbMode};
use crate::runs::reporting::wandb::{WandbRunWriter, WandbStart};

/// The reporters of a run: TensorBoard, Weights & Biases and a command.
#[derive(Debug)]
pub struct Reporters {
    events: Option<TensorboardEventFile>,
    wandb: Option<WandbRunWriter>,
    /// Whether `wandb sync` uploads the W&B folder at the end of the run.
    uploads: bool,
    command: Option<ReportCommand>,
}

impl Reporters {
    /// Starts the reporters for a run that continues after step `step` of the run in the output folder `home`. `run` is
    /// the content of run.json.
    pub fn start(options: &RunOptions, home: &Path, step: u64, run: &Value) -> Result<Self> {
        let events = options
            .reports_to(ReportTo::Tensorboard)
            .then(|| TensorboardEventFile::create(&options.out, step))
            .transpose()?;
        let command = options.report_command.as_deref().map(ReportCommand::start).transpose()?;
        if !options.reports_to(ReportTo::Wandb) {
            return Ok(Self { events, wandb: None, uploads: false, command });
        }
        let environment = WandbEnvironment::read()?;
        if environment.mode == WandbMode::Disabled {
            note!("--report-to wandb: has no effect, because WANDB_MODE is disabled");
            return Ok(Self { events, wandb: None, uploads: false, command });
        }
        let logged = |m: &StepMetrics| m.step <= step && m.step.is_multiple_of(options.logging_steps);
        let lines = log::read_matching_lines(&options.out.join(METRICS_FILE), logged)?;
        let done: Vec<StepMetrics> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let begin = WandbStart {
            out: &options.out,
            home,
            step,
            done: &done,
            project: &options.wandb_project(),
            name: options.run_name.as_deref(),
            environment: &environment,
            run,
        };
        let uploads = environment.mode == WandbMode::Online;
        Ok(Self { events, wandb: Some(WandbRunWriter::create(&begin)?), uploads, command })
    }

    /// The folder that `wandb sync` uploads; `None` without `--report-to wandb`.
    pub fn wandb_folder(&self) -> Option<&Path> {
        self.wandb.as_ref().map(WandbRunWriter::folder)
    }

    /// Reports a step: its named numbers `values`, and its rollout preview if there is one.
    pub fn report_step(&mut self, step: u64, values: &[(String, f64)], preview: Option<&RolloutPreview>) -> Result<()> {
        if let Some(events) = &mut self.events {
            events.write_scalars(step, values)?;
            preview.map_or(Ok(()), |preview| events.write_preview(step, preview))?;
        }
        if let Some(command) = &self.command {
            command.report_step(step, values);
        }
        self.wandb.as_mut().map_or(Ok(()), |wandb| wandb.log_step(step, values, preview))
    }

    /// Reports the outcome of the run, and closes the reporters.
    pub fn finish(&mut self, outcome: &Result<()>) -> Result<()> {
        // The exit codes of the W&B client (`sdk/lib/exit_hooks.py`): 255 if the run was interrupted, 1 after another
        // error.
        let code = match outcome {
            Ok(()) => 0,
            Err(e) if e.kind == Kind::Stopped => 255,
            Err(_) => 1,
        };
        if let Some(command) = self.command.take() {
            command.finish();
        }
        let Some(wandb) = self.wandb.take() else { return Ok(()) };
        let folder = wandb.folder().to_path_buf();
        wandb.finish(code)?;
        if self.uploads {
            upload(&folder);
        }
        Ok(())
    }
}

/// Uploads a run folder with the W&B client, which reads `WANDB_API_KEY`, `WANDB_BASE_URL` and its stored login. The
/// run is complete without the upload, so a failed upload only prints a note.
fn upload(folder: &Path) {
    let shown = folder.display();
    let status = Command::new("wandb").arg("sync").arg(folder).stdin(Stdio::null()).stdout(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => note!("Weights & Biases: uploaded {shown}"),
        Ok(status) => note!("Weights & Biases: `wandb sync {shown}` ended with {status}; run it again"),
        Err(e) => note!("Weights & Biases: cannot start `wandb` ({e}); install it, then run `wandb sync {shown}`"),
    }
}
