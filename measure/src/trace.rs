//! `--trace OUT`: a trace of host spans, kernel launches and memory as Chrome trace events, for chrome://tracing and
//! Perfetto.
//!
//! Source: "Trace Event Format", Google: complete events (`X`), counters (`C`) and metadata (`M`).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use reel_diagnostic::Diagnostic;
use reel_kernels::DType;
use reel_model::save::AtomicFile;
use reel_runtime::Device;
use reel_runtime::device::{LaunchEvent, MEMORY_CATEGORIES, MemorySample, nvtx_range};
use serde_json::{Map, Value, json};

use crate::ceilings::Ceilings;
use crate::{MeasureError, Result};

/// Thread ids in the trace file: `HOST` for host spans, `LAUNCHES` for kernel launches. A viewer shows each as a row.
const HOST: u32 = 0;
const LAUNCHES: u32 = 1;

struct Log {
    /// The file that the trace is written to.
    to: PathBuf,
    begun: Instant,
    spans: Vec<Value>,
    /// The device whose launches are recorded, and the dtype of activations.
    device: Option<(Device, DType)>,
    ceilings: Option<Ceilings>,
}

static LOG: Mutex<Option<Log>> = Mutex::new(None);

fn log() -> MutexGuard<'static, Option<Log>> {
    LOG.lock().unwrap_or_else(|e| e.into_inner())
}

/// Starts recording; [`finish_trace`] writes the trace to the file `to`.
pub fn start_trace(to: &Path) {
    *log() = Some(Log { to: to.to_path_buf(), begun: Instant::now(), spans: Vec::new(), device: None, ceilings: None });
}

/// Runs `work` and records its time as a named span of the trace.
pub fn span<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let _range = nvtx_range(name);
    let begun = Instant::now();
    let result = work();
    record_span(name, begun, begun.elapsed().as_secs_f64(), Value::Null);
    result
}

/// Records a span whose time the caller measured; the trace shows `details` with it.
pub fn record_span(name: &str, begun: Instant, seconds: f64, details: Value) {
    if let Some(log) = log().as_mut() {
        let args = if details.is_null() { json!({}) } else { details };
        log.spans.push(complete(name, HOST, log.at(begun), seconds, args));
    }
}

/// Records every launch on a device from now on, if a trace was started. `dtype` is the dtype of activations.
pub fn start_recording_launches(device: &Device, dtype: DType) {
    if let Some(log) = log().as_mut() {
        device.profiler().record_timeline(true);
        log.device = Some((device.clone(), dtype));
    }
}

/// Sets the ceilings that launches are compared with; without them [`finish_trace`] measures the device.
pub fn set_ceilings(ceilings: Ceilings) {
    if let Some(log) = log().as_mut() {
        log.ceilings = Some(ceilings);
    }
}

/// Writes the trace, if [`start_trace`] was called: the file is complete or absent.
///
/// # Errors
/// The file cannot be written, or the device cannot be measured.
pub fn finish_trace() -> Result<()> {
    let Some(log) = log().take() else { return Ok(()) };
    let to = log.to.clone();
    let text = log.document()?.to_string();
    let mut draft = AtomicFile::create(&to)?;
    draft.write_all(text.as_bytes()).map_err(|e| MeasureError::Failed(Diagnostic::cannot_write(&to, &e)))?;
    Ok(draft.commit()?)
}

impl Log {
    /// Microseconds since the start of the trace.
    fn at(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.begun).as_secs_f64() * 1e6
    }

    fn document(self) -> Result<Value> {
        let mut events = vec![named("process_name", HOST, "reel"), named("thread_name", HOST, "host")];
        let mut about = json!({"version": env!("CARGO_PKG_VERSION")});
        events.extend_from_slice(&self.spans);
        if let Some((device, dtype)) = &self.device {
            let profile = device.profiler();
            profile.record_timeline(false);
            let (launches, memory) = (profile.launch_events()?, profile.memory_samples());
            // Launches on the simulated GPU take no real GPU time, so they are not compared with ceilings.
            let ceilings = match self.ceilings {
                Some(known) => Some(known),
                None if device.is_simulated() || launches.is_empty() => None,
                None => Some(Ceilings::measure(device)?),
            };
            events.push(named("thread_name", LAUNCHES, &format!("launches on {}", device.name())));
            events.extend(launches.iter().map(|e| self.launch(e, ceilings.as_ref(), *dtype)));
            events.extend(self.counters(&memory));
            about["device"] = json!(device.name());
            about["machine"] = json!(device.hardware().name);
            about["dtype"] = json!(dtype.name());
            about["ceilings"] = json!(ceilings);
        }
        Ok(json!({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}))
    }

    fn launch(&self, e: &LaunchEvent, ceilings: Option<&Ceilings>, dtype: DType) -> Value {
        let share = ceilings.map(|c| c.roofline_seconds(e.name, e.cost, dtype) / e.seconds).filter(|s| s.is_finite());
        // A launch that is faster than the ceilings allow shows that they were measured too low.
        let share = share.map(|share| share.min(1.0));
        let mut args = json!({"flops": e.cost.flops, "bytes": e.cost.bytes, "share_of_ceiling": share});
        if !e.part.is_empty() {
            args["part"] = json!(e.part);
        }
        complete(e.name, LAUNCHES, self.at(e.start), e.seconds, args)
    }

    /// One counter event per memory sample: bytes in use for each category that was ever used.
    fn counters(&self, memory: &[MemorySample]) -> Vec<Value> {
        let used = |i: usize| memory.iter().any(|m| m.bytes[i] > 0);
        let series: Vec<usize> = (0..MEMORY_CATEGORIES.len()).filter(|&i| used(i)).collect();
        let counter = |m: &MemorySample| {
            let bytes: Map<String, Value> =
                series.iter().map(|&i| (MEMORY_CATEGORIES[i].name().to_string(), json!(m.bytes[i]))).collect();
            json!({"name": "memory", "ph": "C", "pid": std::process::id(), "tid": HOST, "ts": self.at(m.at), "args": bytes})
        };
        memory.iter().map(counter).collect()
    }
}

fn complete(name: &str, tid: u32, ts: f64, seconds: f64, args: Value) -> Value {
    json!({
        "name": name, "ph": "X", "pid": std::process::id(), "tid": tid, "ts": ts, "dur": seconds * 1e6, "args": args,
    })
}

/// A metadata event that gives the process (`process_name`) or a thread id (`thread_name`) its name in the viewer.
fn named(what: &str, tid: u32, name: &str) -> Value {
    json!({"name": what, "ph": "M", "pid": std::process::id(), "tid": tid, "args": {"name": name}})
}
