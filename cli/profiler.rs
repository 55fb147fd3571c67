//! Profiles a time window: some steps of a training run (`--profile-steps`), or the time between two requests to a
//! server (`--profile-dir`). Writes a trace of the window. Also calls cuProfilerStart at its beginning, so that an
//! attached GPU profiler collects in the same window.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use reel_device::{DType, Device};
use reel_runtime::RuntimeError;
use reel_serve::{ServerProfiler, WriteProfile};
use reel_support::error::{Error, Kind};
use reel_tools::measure::trace;
use reel_train::options::StepRange;
use reel_train::setup::StepProfiler;

use crate::output;

/// Profiles the steps of a training run.
#[derive(Debug)]
pub struct RunProfiler {
    steps: StepRange,
    device: Device,
    dtype: DType,
    /// The file of the trace; `None` in a process that writes no trace, because another process of the job
    /// does.
    file: Option<PathBuf>,
    state: Cell<Window>,
}

/// The position of a run in relation to the profiled window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    Before,
    Open,
    After,
}

impl RunProfiler {
    /// Creates a profiler that writes its trace to `file`. `dtype` is the dtype of activations.
    pub fn new(steps: StepRange, device: &Device, dtype: DType, file: Option<PathBuf>) -> Self {
        // Two traces at a time are not supported, so a trace of the whole command is discarded.
        trace::discard_trace();
        Self { steps, device: device.clone(), dtype, file, state: Cell::new(Window::Before) }
    }

    /// Ends the window if the run ended within it. Prints a warning if the run succeeded (`has_run`) and did none of the
    /// steps.
    pub fn finish(&self, has_run: bool) -> Result<()> {
        match self.state.get() {
            Window::Open => Ok(self.close()?),
            Window::Before if self.file.is_some() && has_run => {
                let steps = self.steps;
                reel_support::diagnostic::note!(
                    "warning: --profile-steps: the run did no step of {steps}, so there is no trace"
                );
                Ok(())
            }
            Window::Before | Window::After => Ok(()),
        }
    }

    fn close(&self) -> reel_train::Result<()> {
        self.state.set(Window::After);
        self.device.profiler().stop_external_profiler().map_err(RuntimeError::from)?;
        match trace::stop_trace().map_err(into_train_error)? {
            Some(recorded) => recorded.write().map_err(into_train_error),
            None => Ok(()),
        }
    }
}

impl StepProfiler for RunProfiler {
    fn before_step(&self, n: u64) -> reel_train::Result<()> {
        if self.state.get() != Window::Before || !self.steps.contains(n) {
            return Ok(());
        }
        if let Some(file) = &self.file {
            trace::start_trace(file.clone());
            trace::start_recording_launches(&self.device, self.dtype);
        }
        self.state.set(Window::Open);
        Ok(self.device.profiler().start_external_profiler().map_err(RuntimeError::from)?)
    }

    fn after_step(&self, n: u64) -> reel_train::Result<()> {
        let is_last = self.state.get() == Window::Open && n >= self.steps.last;
        if is_last { self.close() } else { Ok(()) }
    }
}

/// The run's help about a full disk is for its own files, so the error of the trace's file is not of that kind.
fn into_train_error(e: Error) -> Error {
    if e.remedy_for_space().is_some() { Kind::Io.error(e.diagnostic) } else { e }
}

/// Profiles a server into files of a folder.
#[derive(Debug)]
pub struct ServerTraceProfiler {
    folder: PathBuf,
    /// The number of profiles so far.
    count: AtomicU64,
}

impl ServerTraceProfiler {
    /// Creates a profiler that writes into `folder`, which is created if it is missing.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn new(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| output::cannot_write(folder, e))?;
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
        Ok(Self { folder, count: AtomicU64::new(0) })
    }

    /// Returns the file of the next profile: its name has the time in seconds since 1970 and the number of the
    /// profile.
    fn next_file(&self) -> PathBuf {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        self.folder.join(format!("trace-{now}-{number}.json"))
    }
}

impl ServerProfiler for ServerTraceProfiler {
    fn start(&self, device: &Device, dtype: DType) -> Result<(), String> {
        trace::start_trace(self.next_file());
        trace::start_recording_launches(device, dtype);
        device.profiler().start_external_profiler().map_err(|e| {
            trace::discard_trace();
            e.to_string()
        })
    }

    fn stop(&self, device: &Device) -> Result<WriteProfile, String> {
        device.profiler().stop_external_profiler().map_err(|e| e.to_string())?;
        let recorded = trace::stop_trace().map_err(|e| e.to_string())?;
        Ok(Box::new(move || match recorded {
            Some(recorded) => {
                let file = recorded.file().to_path_buf();
                recorded.write().map(|()| file).map_err(|e| e.to_string())
            }
            None => Err("the recording has ended already".into()),
        }))
    }
}
