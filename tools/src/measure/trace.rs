//! `--trace OUT`: a trace of host spans, kernel launches and memory as Chrome trace events, for chrome://tracing and
//! Perfetto.
//!
//! ```text
//! track of a host thread    |--- step 3 ------------------------------------|   ranges: step, micro-batch, phase,
//!                            |--- micro-batch 0 -----------------------------|  layer, op; then the calls that launch
//!                             |--- forward ------------|--- backward -------|
//!                              |--- decoder 0 --------| …
//!                               |- rms_norm -| |- linear -|
//!                                 |- rms_norm_fwd -|
//!                                  \\                                            flow events: which call made which
//! ranges on the device              |--- step 3 ------------------------------| launch
//! launches on the device            |- rms_norm_fwd -| |- matmul_fwd -|
//! memory                    ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
//! ```
//!
//! A trace covers a whole command or a time window: [`start_trace`], then [`stop_trace`] and
//! [`RecordedTrace::write`]. A process records one trace at a time.
//!
//! Launches of kernels that are timed alone (`reel bench op`) do not pass through a device's profiler. Each of their
//! timed runs is one launch of the trace, with a call at the same time on the track of the host thread.
//!
//! Source: "Trace Event Format", Google: complete events (`X`), flow events (`s`, `f`), counters (`C`) and metadata
//! (`M`).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use reel_device::{DType, Device};
use reel_device::{
    LaunchEvent, LaunchOrigin, MEMORY_CATEGORIES, MemorySample, RangeEvent, RangeName, host_thread_names,
    host_thread_number, range, start_recording_ranges, take_recorded_ranges,
};
use reel_support::files::AtomicFile;
use reel_support::ranges::{SpanEvent, take_recorded_spans};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::measure::ceilings::Ceilings;
use crate::measure::timing::TimedKernel;
use crate::measure::trace_slices::{
    DEVICE_RANGE_TRACK, FIRST_HOST_TRACK, LAUNCH_TRACK, TraceSlice, complete_event, device_ranges, host_ranges,
    host_track, sort_and_nest, track_position,
};

struct Log {
    /// The file that the trace is written to.
    file: PathBuf,
    begun: Instant,
    /// The device of the recorded launches, and the dtype of activations.
    device: Option<(Device, DType)>,
    ceilings: Option<Ceilings>,
    /// The timed runs that [`record_timed_kernels`] has recorded as launches.
    timed: Option<TimedLaunches>,
}

/// The runs of kernels that were timed alone (`reel bench op`).
struct TimedLaunches {
    /// Name of the device that ran the kernels.
    device: &'static str,
    /// Name of the GPU or CPU.
    machine: String,
    /// For each run, the call on the host's track and the launch.
    calls: Vec<(TraceSlice, TraceSlice)>,
}

static LOG: Mutex<Option<Log>> = Mutex::new(None);

fn log() -> MutexGuard<'static, Option<Log>> {
    LOG.lock().unwrap_or_else(|e| e.into_inner())
}

/// Starts recording; [`finish_trace`] writes the trace to `file`.
pub fn start_trace(file: PathBuf) {
    // The thread that starts the trace gets the first thread number, so that viewers show its track above the other
    // threads.
    host_thread_number();
    let begun = Instant::now();
    start_recording_ranges();
    *log() = Some(Log { file, begun, device: None, ceilings: None, timed: None });
}

/// Runs `work` as a named range.
pub fn span<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    let _range = range(RangeName::Task(name));
    work()
}

/// Records every launch on a device from now on, if a trace was started. `dtype` is the dtype of activations.
pub fn start_recording_launches(device: &Device, dtype: DType) {
    if let Some(log) = log().as_mut() {
        device.profiler().record_timeline(true);
        log.device = Some((device.clone(), dtype));
    }
}

/// Sets the ceilings that launches are compared with. If they are not set, [`finish_trace`] measures the device.
pub fn set_ceilings(ceilings: Ceilings) {
    if let Some(log) = log().as_mut() {
        log.ceilings = Some(ceilings);
    }
}

/// Records each run of kernels that were timed alone as a launch of the trace, if a trace was started. `machine` is the
/// name of the GPU or CPU. `roofline_share` returns the least possible time of a kernel divided by its median time, or
/// `None` if the kernel's operations or bytes are counted wrong.
pub fn record_timed_kernels(
    device: &'static str,
    machine: &str,
    kernels: &[TimedKernel],
    roofline_share: impl Fn(&TimedKernel) -> Option<f64>,
) {
    if let Some(log) = log().as_mut() {
        let track = host_track(host_thread_number());
        let mut calls = Vec::new();
        for kernel in kernels {
            let variant = kernel.variant.map(|variant| format!(" {variant}")).unwrap_or_default();
            let name = format!("{}{variant}", kernel.kernel);
            let roofline_seconds = roofline_share(kernel).map(|share| share * kernel.timed.median_seconds());
            for run in &kernel.timed.runs {
                let args = json!({
                    "flops": kernel.cost.flops, "bytes": kernel.cost.bytes,
                    "share_of_ceiling": roofline_seconds.map(|least| (least / run.seconds).min(1.0)), "size": kernel.size,
                });
                let call = log.slice(&name, "launch", track, run.start, run.seconds, json!({}));
                calls.push((call, log.slice(&name, "launch", LAUNCH_TRACK, run.start, run.seconds, args)));
            }
        }
        calls.sort_by(|(_, a), (_, b)| a.start.total_cmp(&b.start));
        log.timed = Some(TimedLaunches { device, machine: machine.to_string(), calls });
    }
}

/// Whether a trace is being recorded.
pub fn is_tracing() -> bool {
    log().is_some()
}

/// Ends the trace without writing a file, because another process writes the file or because only a part of the
/// command is traced.
pub fn discard_trace() {
    if let Some(log) = log().take() {
        take_recorded_ranges();
        log.device.iter().for_each(|(device, _)| device.profiler().record_timeline(false));
    }
}

/// Writes the trace, if [`start_trace`] was called. A file appears under its name only when it is complete. If no
/// ceilings are set, the device is measured, so that each launch has its share of them.
///
/// # Errors
/// A file cannot be written, or the device cannot be measured.
pub fn finish_trace() -> Result<()> {
    let Some(mut recorded) = stop_trace()? else { return Ok(()) };
    if let (None, Some((device, ..))) = (recorded.log.ceilings, &recorded.log.device) {
        // Launches on the simulator take no real GPU time, so they are not compared with ceilings.
        let has_times = device.capabilities().real_times && !recorded.launches.is_empty();
        recorded.log.ceilings = has_times.then(|| Ceilings::measure(device)).transpose()?;
    }
    recorded.write()
}

/// Ends the recording, if [`start_trace`] was called, and returns what was recorded. Launches of a time window have
/// no share of the ceilings, because measuring the ceilings would disturb the running work.
///
/// # Errors
/// A launch has failed.
pub fn stop_trace() -> Result<Option<RecordedTrace>> {
    let Some(log) = log().take() else { return Ok(None) };
    let (ranges, spans) = (take_recorded_ranges(), take_recorded_spans());
    let mut recorded = RecordedTrace { ranges, spans, launches: Vec::new(), memory: Vec::new(), log };
    if let Some((device, _)) = &recorded.log.device {
        let profile = device.profiler();
        profile.record_timeline(false);
        recorded.launches = profile.launch_events()?;
        recorded.memory = profile.memory_samples();
        // Clears the recorded launches, so that the next trace of this process begins without them.
        profile.clear();
    }
    Ok(Some(recorded))
}

/// A trace that is recorded but not written.
pub struct RecordedTrace {
    log: Log,
    ranges: Vec<RangeEvent>,
    /// Spans that were measured by their callers.
    spans: Vec<SpanEvent>,
    launches: Vec<LaunchEvent>,
    memory: Vec<MemorySample>,
}

impl RecordedTrace {
    /// The file that the trace is written to.
    pub fn file(&self) -> &Path {
        &self.log.file
    }

    /// Writes the trace to its file, which appears under its name only when it is complete.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(self) -> Result<()> {
        let file = self.log.file.clone();
        write(&file, &self.document().to_string())
    }

    fn document(self) -> Value {
        let RecordedTrace { log, ranges, spans, launches, memory } = self;
        let mut events = vec![metadata("process_name", FIRST_HOST_TRACK, &json!({"name": "reel"}))];
        let mut about = json!({"version": env!("CARGO_PKG_VERSION")});
        let (mut calls, mut on_device, mut track_names) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(timed) = &log.timed {
            track_names.push((LAUNCH_TRACK, format!("launches on {}", timed.device)));
            calls.clone_from(&timed.calls);
            about["device"] = json!(timed.device);
            about["machine"] = json!(timed.machine);
            about["ceilings"] = json!(log.ceilings);
        }
        if let Some((device, dtype)) = &log.device {
            track_names.push((LAUNCH_TRACK, format!("launches on {}", device.name())));
            calls.extend(launches.iter().map(|e| {
                let call =
                    log.slice(e.name, "launch", host_track(e.host.thread), e.host.start, e.host.seconds, json!({}));
                let args = args(e, log.ceilings.as_ref(), *dtype);
                (call, log.slice(e.name, "launch", LAUNCH_TRACK, e.start, e.seconds, args))
            }));
            on_device = sort_and_nest(device_ranges(&ranges, &launches, |moment| log.at(moment)));
            if !on_device.is_empty() {
                track_names.push((DEVICE_RANGE_TRACK, format!("ranges on {}", device.name())));
            }
            about["device"] = json!(device.name());
            about["machine"] = json!(device.hardware().name);
            about["dtype"] = json!(dtype.name());
            about["ceilings"] = json!(log.ceilings);
        }
        let (mut host, mut flows, mut launched) = (Vec::new(), Vec::new(), Vec::new());
        host.extend(spans.into_iter().map(|SpanEvent { name, thread, start, seconds, details }| {
            let args = if details.is_null() { json!({}) } else { details };
            log.slice(&name, "task", host_track(thread), start, seconds, args)
        }));
        host.extend(host_ranges(&ranges, |moment| log.at(moment)));
        for (id, (call, launch)) in calls.into_iter().enumerate() {
            flows.extend(flow(id, &call, &launch));
            host.push(call);
            launched.push(launch);
        }
        let host = sort_and_nest(host);
        let mut tracks: Vec<u64> = host.iter().map(|slice| slice.track).chain([FIRST_HOST_TRACK]).collect();
        tracks.sort_unstable();
        tracks.dedup();
        let names = host_thread_names().into_iter().enumerate();
        let names = names.map(|(thread, name)| (host_track(thread), format!("host: {name}")));
        track_names.extend(names.filter(|(track, _)| tracks.contains(track)));
        for (track, name) in track_names {
            events.push(metadata("thread_name", track, &json!({"name": name})));
            events.push(metadata("thread_sort_index", track, &json!({"sort_index": track_position(track)})));
        }
        events.extend(host.iter().chain(&on_device).chain(&launched).map(complete_event));
        events.extend(flows);
        events.extend(log.counters(&memory));
        json!({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about})
    }
}

fn write(to: &Path, text: &str) -> Result<()> {
    let mut draft = AtomicFile::create(to)?;
    draft.write_all(text.as_bytes()).map_err(|e| Error::cannot_write(to, &e))?;
    draft.commit()
}

impl Log {
    /// Microseconds since the start of the trace.
    fn at(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.begun).as_secs_f64() * 1e6
    }

    fn slice(
        &self,
        name: &str,
        kind: &'static str,
        track: u64,
        begun: Instant,
        seconds: f64,
        args: Value,
    ) -> TraceSlice {
        let start = self.at(begun);
        TraceSlice { name: name.to_string(), kind, track, start, end: start + seconds * 1e6, args }
    }

    /// One counter event per memory sample: bytes in use for each category that was ever used.
    fn counters(&self, memory: &[MemorySample]) -> Vec<Value> {
        let used = |i: usize| memory.iter().any(|m| m.bytes[i] > 0);
        let series: Vec<usize> = (0..MEMORY_CATEGORIES.len()).filter(|&i| used(i)).collect();
        let counter = |m: &MemorySample| {
            let bytes: Map<String, Value> =
                series.iter().map(|&i| (MEMORY_CATEGORIES[i].name().to_string(), json!(m.bytes[i]))).collect();
            json!({
                "name": "memory", "ph": "C", "pid": pid(), "tid": FIRST_HOST_TRACK, "ts": self.at(m.at), "args": bytes,
            })
        };
        memory.iter().map(counter).collect()
    }
}

/// Returns what the trace shows with a launch: its work, its share of the ceiling, sizes, op, layer and part.
fn args(e: &LaunchEvent, ceilings: Option<&Ceilings>, dtype: DType) -> Value {
    let share = ceilings.map(|c| c.roofline_seconds_of_launch(e, dtype) / e.seconds).filter(|s| s.is_finite());
    // If the ceilings were measured too low, a launch can be faster than they allow. The share of such a launch is
    // shown as 1.
    let share = share.map(|share| share.min(1.0));
    let sizes: Map<String, Value> = e.sizes.iter().map(|(name, size)| (name.to_string(), json!(size))).collect();
    let mut args = json!({"flops": e.cost.flops, "bytes": e.cost.bytes, "share_of_ceiling": share, "shape": sizes});
    if let LaunchOrigin { op: name, is_backward, .. } = e.origin
        && !name.is_empty()
    {
        args["op"] = json!(RangeName::Op { name, is_backward }.to_string());
    }
    if let Some(layer) = e.origin.layer {
        args["layer"] = json!(format!("{} {}", layer.stack, layer.index));
    }
    if !e.part.is_empty() {
        args["part"] = json!(e.part);
    }
    args
}

/// The two flow events of an arrow from the host's call to its launch.
fn flow(id: usize, call: &TraceSlice, launch: &TraceSlice) -> [Value; 2] {
    let event = |ph: &str, track: u64, ts: f64| {
        let (name, pid) = ("launch", pid());
        json!({"name": name, "cat": name, "ph": ph, "id": id, "pid": pid, "tid": track, "ts": ts})
    };
    let mut end = event("f", launch.track, launch.start);
    // With `bp: e` the flow ends in the slice around this moment, not in the next slice.
    end["bp"] = json!("e");
    [event("s", call.track, call.start), end]
}

/// A metadata event: the name of the process (`process_name`), or the name (`thread_name`) or the position
/// (`thread_sort_index`) of a track.
fn metadata(what: &str, track: u64, args: &Value) -> Value {
    json!({"name": what, "ph": "M", "pid": pid(), "tid": track, "args": args})
}

fn pid() -> u32 {
    std::process::id()
}
