//! `--trace OUT`: a trace of host spans, kernel launches and memory as Chrome trace events, for chrome://tracing and
//! Perfetto.
//!
//! ```text
//! track of a host thread    |--- decode ------------------------|      spans, and the ops that launch something
//!                              |- rms_norm -|   |- linear -|
//!                                  \\               \\                  flow events: which op made which launch
//! track of the launches             |- rms_norm_fwd -| |- matmul_fwd -|
//! memory                    ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
//! ```
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
    LaunchEvent, LaunchOrigin, MEMORY_CATEGORIES, MemorySample, host_thread_names, host_thread_number, nvtx_range,
};
use reel_diagnostic::Diagnostic;
use reel_files::AtomicFile;
use serde_json::{Map, Value, json};

use crate::ceilings::Ceilings;
use crate::folded::folded_stacks;
use crate::timing::TimedKernel;
use crate::{MeasureError, Result};

/// Thread id of the launches in the trace file. A viewer shows each thread id as a track.
const LAUNCHES: u64 = 1;
/// Thread id of the first host thread, and of the memory counters.
const FIRST_HOST: u64 = 0;

/// Returns the thread id of a host thread in the trace: 0, 2, 3, …; 1 is the thread id of the launches.
fn host_track(thread: usize) -> u64 {
    if thread == 0 { FIRST_HOST } else { LAUNCHES + thread as u64 }
}

/// A stretch of time on a track: a complete event.
#[derive(Clone, Debug, PartialEq)]
struct Slice {
    name: String,
    track: u64,
    /// Microseconds since the start of the trace.
    start: f64,
    /// Microseconds since the start of the trace.
    end: f64,
    args: Value,
}

/// The files that a trace is written to.
#[derive(Clone, Debug, Default)]
pub struct TraceOutputs {
    /// `--trace`: the trace as Chrome trace events.
    pub trace: Option<PathBuf>,
    /// `--folded`: its launches as folded stacks.
    pub folded: Option<PathBuf>,
}

struct Log {
    outputs: TraceOutputs,
    begun: Instant,
    spans: Vec<Slice>,
    /// The device whose launches are recorded, and the dtype of activations.
    device: Option<(Device, DType)>,
    ceilings: Option<Ceilings>,
    /// The launches that [`record_timed_kernels`] has recorded.
    timed: Option<TimedLaunches>,
}

/// The runs of kernels that were timed alone (`reel bench op`).
struct TimedLaunches {
    /// Name of the device that ran the kernels.
    device: &'static str,
    /// Name of the GPU or CPU.
    machine: String,
    /// For each run, the call on the host's track and the launch.
    calls: Vec<(Slice, Slice)>,
}

static LOG: Mutex<Option<Log>> = Mutex::new(None);

fn log() -> MutexGuard<'static, Option<Log>> {
    LOG.lock().unwrap_or_else(|e| e.into_inner())
}

/// Starts recording if there is an output; [`finish_trace`] writes the files.
pub fn start_trace(outputs: TraceOutputs) {
    if outputs.trace.is_none() && outputs.folded.is_none() {
        return;
    }
    // Gives the thread that starts the trace the first thread number, so that viewers show it above the threads that it
    // starts.
    host_thread_number();
    *log() = Some(Log { outputs, begun: Instant::now(), spans: Vec::new(), device: None, ceilings: None, timed: None });
}

/// Runs `work` and records its time as a named span of the trace.
pub fn span<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let _range = nvtx_range(name);
    let begun = Instant::now();
    let result = work();
    record_span(name, begun, begun.elapsed().as_secs_f64(), Value::Null);
    result
}

/// Records a span of this thread. The caller has measured its time; a viewer shows `details` with the span.
pub fn record_span(name: &str, begun: Instant, seconds: f64, details: Value) {
    if let Some(log) = log().as_mut() {
        let args = if details.is_null() { json!({}) } else { details };
        let span = log.slice(name, host_track(host_thread_number()), begun, seconds, args);
        log.spans.push(span);
    }
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
                let call = log.slice(&name, track, run.start, run.seconds, json!({}));
                calls.push((call, log.slice(&name, LAUNCHES, run.start, run.seconds, args)));
            }
        }
        calls.sort_by(|(_, a), (_, b)| a.start.total_cmp(&b.start));
        log.timed = Some(TimedLaunches { device, machine: machine.to_string(), calls });
    }
}

/// Ends the trace without a file: another process writes it.
pub fn leave_trace_to_another_process() {
    *log() = None;
}

/// Writes the trace, if it was started. A file appears under its name only when it is complete.
///
/// # Errors
/// A file cannot be written, or the device cannot be measured.
pub fn finish_trace() -> Result<()> {
    let Some(log) = log().take() else { return Ok(()) };
    let TraceOutputs { trace, folded } = log.outputs.clone();
    let document = log.document()?;
    if let Some(to) = trace {
        write(&to, &document.to_string())?;
    }
    if let Some(to) = folded {
        write(&to, &folded_stacks(document["traceEvents"].as_array().map_or(&[][..], Vec::as_slice)))?;
    }
    Ok(())
}

fn write(to: &Path, text: &str) -> Result<()> {
    let mut draft = AtomicFile::create(to)?;
    draft.write_all(text.as_bytes()).map_err(|e| MeasureError::Failed(Diagnostic::cannot_write(to, &e)))?;
    Ok(draft.commit()?)
}

impl Log {
    /// Microseconds since the start of the trace.
    fn at(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.begun).as_secs_f64() * 1e6
    }

    fn slice(&self, name: &str, track: u64, begun: Instant, seconds: f64, args: Value) -> Slice {
        let start = self.at(begun);
        Slice { name: name.to_string(), track, start, end: start + seconds * 1e6, args }
    }

    fn document(self) -> Result<Value> {
        let mut events = vec![named("process_name", FIRST_HOST, "reel")];
        let mut about = json!({"version": env!("CARGO_PKG_VERSION")});
        let (mut calls, mut memory) = (Vec::new(), Vec::new());
        if let Some(timed) = &self.timed {
            events.push(named("thread_name", LAUNCHES, &format!("launches on {}", timed.device)));
            calls.clone_from(&timed.calls);
            about["device"] = json!(timed.device);
            about["machine"] = json!(timed.machine);
            about["ceilings"] = json!(self.ceilings);
        }
        if let Some((device, dtype)) = &self.device {
            let profile = device.profiler();
            profile.record_timeline(false);
            let launches = profile.launch_events()?;
            // Launches on the simulator take no real GPU time, so they are not compared with ceilings.
            let ceilings = match self.ceilings {
                Some(known) => Some(known),
                None if !device.capabilities().real_times || launches.is_empty() => None,
                None => Some(Ceilings::measure(device)?),
            };
            events.push(named("thread_name", LAUNCHES, &format!("launches on {}", device.name())));
            calls.extend(launches.iter().map(|e| {
                let call = self.slice(&op_name(e), host_track(e.host.thread), e.host.start, e.host.seconds, json!({}));
                (call, self.slice(e.name, LAUNCHES, e.start, e.seconds, args(e, ceilings.as_ref(), *dtype)))
            }));
            memory = self.counters(&profile.memory_samples());
            about["device"] = json!(device.name());
            about["machine"] = json!(device.hardware().name);
            about["dtype"] = json!(dtype.name());
            about["ceilings"] = json!(ceilings);
        }
        let (mut host, mut flows, mut launched) = (self.spans.clone(), Vec::new(), Vec::new());
        for (id, (call, launch)) in calls.into_iter().enumerate() {
            flows.extend(flow(id, &call, &launch));
            host.push(call);
            launched.push(launch);
        }
        let host = nested(host);
        let mut tracks: Vec<u64> = host.iter().map(|slice| slice.track).chain([FIRST_HOST]).collect();
        tracks.sort_unstable();
        tracks.dedup();
        let names = host_thread_names();
        for (thread, name) in names.iter().enumerate().filter(|(thread, _)| tracks.contains(&host_track(*thread))) {
            events.push(named("thread_name", host_track(thread), &format!("host: {name}")));
        }
        events.extend(host.iter().chain(&launched).map(complete));
        events.extend(flows);
        events.extend(memory);
        Ok(json!({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}))
    }

    /// One counter event per memory sample: bytes in use for each category that was ever used.
    fn counters(&self, memory: &[MemorySample]) -> Vec<Value> {
        let used = |i: usize| memory.iter().any(|m| m.bytes[i] > 0);
        let series: Vec<usize> = (0..MEMORY_CATEGORIES.len()).filter(|&i| used(i)).collect();
        let counter = |m: &MemorySample| {
            let bytes: Map<String, Value> =
                series.iter().map(|&i| (MEMORY_CATEGORIES[i].name().to_string(), json!(m.bytes[i]))).collect();
            json!({"name": "memory", "ph": "C", "pid": pid(), "tid": FIRST_HOST, "ts": self.at(m.at), "args": bytes})
        };
        memory.iter().map(counter).collect()
    }
}

/// The name of the op that made a launch; the kernel's name for launches outside of ops.
fn op_name(e: &LaunchEvent) -> String {
    match e.origin {
        LaunchOrigin { op: "", .. } => e.name.to_string(),
        LaunchOrigin { op, is_backward: true, .. } => format!("{op} backward"),
        LaunchOrigin { op, .. } => op.to_string(),
    }
}

/// Returns what the trace shows with a launch: its work, its share of the ceiling, sizes, op, layer and part.
fn args(e: &LaunchEvent, ceilings: Option<&Ceilings>, dtype: DType) -> Value {
    let share = ceilings.map(|c| c.roofline_seconds_of_launch(e, dtype) / e.seconds).filter(|s| s.is_finite());
    // If the ceilings were measured too low, a launch can be faster than they allow. Its share counts as 1.
    let share = share.map(|share| share.min(1.0));
    let sizes: Map<String, Value> = e.sizes.iter().map(|(name, size)| (name.to_string(), json!(size))).collect();
    let mut args = json!({"flops": e.cost.flops, "bytes": e.cost.bytes, "share_of_ceiling": share, "shape": sizes});
    if !e.origin.op.is_empty() {
        args["op"] = json!(op_name(e));
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
fn flow(id: usize, call: &Slice, launch: &Slice) -> [Value; 2] {
    let event = |ph: &str, track: u64, ts: f64| {
        let (name, pid) = ("launch", pid());
        json!({"name": name, "cat": name, "ph": ph, "id": id, "pid": pid, "tid": track, "ts": ts})
    };
    let mut end = event("f", launch.track, launch.start);
    // With `bp: e` the flow ends in the slice around this moment, not in the next slice.
    end["bp"] = json!("e");
    [event("s", call.track, call.start), end]
}

/// Sorts slices by track and start, and shortens each slice that ends after the slice around it: viewers show only
/// slices that are nested. Some spans are measured by a different clock than the launches inside them, so a launch can
/// end microseconds after its span.
fn nested(mut slices: Vec<Slice>) -> Vec<Slice> {
    slices.sort_by(|a, b| {
        let by_start = a.track.cmp(&b.track).then(a.start.total_cmp(&b.start));
        by_start.then(b.end.total_cmp(&a.end))
    });
    // Track and end of each slice that encloses the present slice, the innermost last.
    let mut open: Vec<(u64, f64)> = Vec::new();
    for slice in &mut slices {
        while open.last().is_some_and(|(track, end)| *track != slice.track || *end <= slice.start) {
            open.pop();
        }
        if let Some((_, end)) = open.last() {
            slice.end = slice.end.min(*end);
        }
        open.push((slice.track, slice.end));
    }
    slices
}

fn complete(slice: &Slice) -> Value {
    json!({
        "name": slice.name, "ph": "X", "pid": pid(), "tid": slice.track, "ts": slice.start,
        "dur": slice.end - slice.start, "args": slice.args,
    })
}

/// A metadata event that gives the process (`process_name`) or a thread id (`thread_name`) its name in the viewer.
fn named(what: &str, track: u64, name: &str) -> Value {
    json!({"name": what, "ph": "M", "pid": pid(), "tid": track, "args": {"name": name}})
}

fn pid() -> u32 {
    std::process::id()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Two slices of a track are disjoint, or one lies inside the other. No slice is lost, moved or made longer.
        #[test]
        fn slices_of_a_track_are_nested(times in prop::collection::vec((0u64..3, 0u32..100, 0u32..40), 0..60)) {
            let slice = |(i, &(track, start, length)): (usize, &(u64, u32, u32))| Slice {
                name: i.to_string(),
                track,
                start: start.into(),
                end: (start + length).into(),
                args: Value::Null,
            };
            let before: Vec<Slice> = times.iter().enumerate().map(slice).collect();
            let after = nested(before.clone());
            prop_assert_eq!(after.len(), before.len());
            for a in &after {
                let old = &before[a.name.parse::<usize>().unwrap()];
                prop_assert!(a.start == old.start && a.track == old.track && a.end <= old.end && a.end >= a.start);
                for b in after.iter().filter(|b| b.track == a.track) {
                    let disjoint = a.end <= b.start || b.end <= a.start;
                    let inside = a.start <= b.start && b.end <= a.end || b.start <= a.start && a.end <= b.end;
                    prop_assert!(disjoint || inside, "{a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn host_threads_and_launches_have_different_tracks() {
        let tracks: Vec<u64> = (0..5).map(host_track).collect();
        assert_eq!(tracks, [0, 2, 3, 4, 5]);
        assert!(!tracks.contains(&LAUNCHES));
    }
}
