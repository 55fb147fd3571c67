//! Runs the inputs of a fuzz target in worker processes. An input that crashes or hangs its worker process is a
//! failure; a new process then continues with the next input.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::targets::FuzzTarget;
use crate::worker::{self, CampaignLimit, CampaignPlan, FAILURES_FILE, WorkerStatus};

/// Time after which a worker process is killed if its current input does not end. This time is far above the limit of
/// an input's processor time, so that a busy machine does not cause false failures.
const HANG_TIME: Duration = Duration::from_secs(60);

/// Maximum number of worker processes in the campaign of one fuzz target. After an input that crashes or hangs its
/// process, a new process is needed.
const MAX_RESTARTS: usize = 20;

/// The titles of the columns of [`CampaignReport::table_row`].
pub const TABLE_HEADER: &str = "target             inputs  inputs/s  accepted  peak MiB  slowest ms  failures";

/// A fuzzing campaign: one target and the inputs to run.
pub struct Campaign {
    /// The target.
    pub target: &'static FuzzTarget,
    /// Which inputs to run.
    pub plan: CampaignPlan,
}

/// The result of a campaign.
#[derive(Debug, Default)]
pub struct CampaignReport {
    inputs: u64,
    accepted: u64,
    peak_bytes: u64,
    slowest_micros: u64,
    time: Duration,
    /// A text for each failure.
    pub failures: Vec<String>,
}

impl CampaignReport {
    /// Returns the target's line of the summary; [`TABLE_HEADER`] has the titles of its columns.
    pub fn table_row(&self, name: &str) -> String {
        format!(
            "{name:<16} {:>8} {:>9.0} {:>8.0}% {:>9.1} {:>11.1} {:>9}",
            self.inputs,
            self.inputs as f64 / self.time.as_secs_f64().max(1e-9),
            100.0 * self.accepted as f64 / self.inputs.max(1) as f64,
            self.peak_bytes as f64 / 1048576.0,
            self.slowest_micros as f64 / 1e3,
            self.failures.len()
        )
    }

    fn add(&mut self, status: WorkerStatus, first: u64) {
        self.inputs += status.index - first;
        self.accepted += status.accepted;
        self.peak_bytes = self.peak_bytes.max(status.peak_bytes);
        self.slowest_micros = self.slowest_micros.max(status.slowest_micros);
    }
}

impl Campaign {
    /// Runs all inputs.
    ///
    /// # Errors
    /// A worker process cannot be started, or fails for another reason than an input.
    pub fn run(&self) -> Result<CampaignReport> {
        let begun = Instant::now();
        let mut report = CampaignReport::default();
        let mut plan = self.plan;
        for _ in 0..MAX_RESTARTS {
            let folder = tempfile::tempdir()?;
            let child = self.start_worker(plan, folder.path())?;
            let end = watch(child, folder.path())?;
            let status = WorkerStatus::read(folder.path());
            report.add(status, plan.first);
            let recorded = fs::read_to_string(folder.path().join(FAILURES_FILE)).unwrap_or_default();
            if !recorded.is_empty() {
                report.failures.push(recorded.trim_end().to_string());
            }
            if status.done == 1 {
                break;
            }
            let problem = match end {
                None => format!("does not end within {} s", HANG_TIME.as_secs()),
                Some(end) if end.code() == Some(1) => bail!("{}: the worker failed; see its message", self.target.name),
                Some(end) => format!("ends the process: {end}"),
            };
            let seeds = (self.target.seeds)()?;
            let input = worker::make_numbered_input(self.target, &seeds, plan.seed, status.index);
            report.failures.push(worker::describe_failure(self.target, plan.seed, status.index, &input, &problem)?);
            report.inputs += 1;
            plan.first = status.index + 1;
            if let CampaignLimit::Time(time) = self.plan.limit {
                plan.limit = CampaignLimit::Time(time.saturating_sub(begun.elapsed()));
            }
        }
        report.time = begun.elapsed();
        Ok(report)
    }

    fn start_worker(&self, plan: CampaignPlan, folder: &Path) -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(self.target.name).arg("--worker").arg(folder).arg(plan.first.to_string());
        command.arg("--seed").arg(plan.seed.to_string());
        match plan.limit {
            CampaignLimit::Inputs(inputs) => command.arg("--inputs").arg(inputs.to_string()),
            CampaignLimit::Time(time) => command.arg("--seconds").arg(time.as_secs().to_string()),
        };
        if plan.max_time.is_none() {
            command.arg("--any-time");
        }
        command.stdin(Stdio::null()).env("TMPDIR", folder).spawn().context("the worker process")
    }
}

/// Waits for the end of a worker process. Kills the process and returns `None` if an input does not end.
fn watch(mut child: Child, folder: &Path) -> Result<Option<ExitStatus>> {
    let (mut index, mut since) = (u64::MAX, Instant::now());
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(end) = child.try_wait()? {
            return Ok(Some(end));
        }
        let now = WorkerStatus::read(folder).index;
        if now != index {
            (index, since) = (now, Instant::now());
        }
        if since.elapsed() > HANG_TIME {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
