//! `--trace OUT`: where the time went, as Chrome trace events, which chrome://tracing and Perfetto read.
//!
//! Source: "Trace Event Format", Google: complete events (`X`), counters (`C`) and metadata (`M`).

use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use anyhow::Result;
use reel_kernels::DType;
use reel_runtime::Device;
use reel_runtime::device::{CATEGORIES, Event, MemorySample, range};
use serde_json::{Map, Value, json};

use crate::ceilings::Ceilings;
use crate::common::Common;
use crate::output;

/// Rows of the trace.
const HOST: u32 = 0;
const LAUNCHES: u32 = 1;

struct Log {
    begun: Instant,
    spans: Vec<Value>,
    /// A device whose launches are recorded, and the dtype of activations.
    device: Option<(Device, DType)>,
    ceilings: Option<Ceilings>,
}

static LOG: Mutex<Option<Log>> = Mutex::new(None);

fn log() -> MutexGuard<'static, Option<Log>> {
    LOG.lock().unwrap_or_else(|e| e.into_inner())
}

/// Begins recording, if the options ask for it.
pub fn start(common: &Common) {
    if common.trace.is_some() {
        *log() = Some(Log { begun: Instant::now(), spans: Vec::new(), device: None, ceilings: None });
    }
}

/// Runs `work` under a name in the trace.
pub fn span<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let _range = range(name);
    let begun = Instant::now();
    let result = work();
    record(name, begun, begun.elapsed().as_secs_f64(), Value::Null);
    result
}

/// Records a stretch of time that was measured elsewhere, with figures about it.
pub fn record(name: &str, begun: Instant, seconds: f64, figures: Value) {
    if let Some(log) = log().as_mut() {
        let args = if figures.is_null() { json!({}) } else { figures };
        log.spans.push(complete(name, HOST, log.at(begun), seconds, args));
    }
}

/// Records every launch on this device from now on, if there is a trace. `dtype` is that of activations.
pub fn record_launches(device: &Device, dtype: DType) {
    if let Some(log) = log().as_mut() {
        device.profiler().record(true);
        log.device = Some((device.clone(), dtype));
    }
}

/// What launches are held to, where it was measured; else it is when the work is done.
pub fn held_to(ceilings: Ceilings) {
    if let Some(log) = log().as_mut() {
        log.ceilings = Some(ceilings);
    }
}

/// Writes the trace.
pub fn finish(common: &Common) -> Result<()> {
    let log = log().take();
    match (&common.trace, log) {
        (Some(to), Some(log)) => output::file(to, log.document()?.to_string().as_bytes()),
        _ => Ok(()),
    }
}

impl Log {
    /// Microseconds from the begin.
    fn at(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.begun).as_secs_f64() * 1e6
    }

    fn document(self) -> Result<Value> {
        let mut events = vec![named("process_name", HOST, "reel"), named("thread_name", HOST, "host")];
        let mut about = json!({"version": env!("CARGO_PKG_VERSION")});
        events.extend_from_slice(&self.spans);
        if let Some((device, dtype)) = &self.device {
            let profile = device.profiler();
            profile.record(false);
            let (launches, memory) = (profile.events()?, profile.memory());
            // A simulated GPU has no speed to be held to.
            let ceilings = match self.ceilings {
                Some(known) => Some(known),
                None if device.name() == "sim" || launches.is_empty() => None,
                None => Some(Ceilings::of(device)?),
            };
            events.push(named("thread_name", LAUNCHES, &format!("launches on {}", device.name())));
            events.extend(launches.iter().map(|e| self.launch(e, ceilings.as_ref(), *dtype)));
            events.extend(self.counters(&memory));
            about["device"] = json!(device.name());
            about["machine"] = json!(device.hardware().name);
            about["dtype"] = json!(dtype.name());
            about["ceilings"] = serde_json::to_value(ceilings)?;
        }
        Ok(json!({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}))
    }

    fn launch(&self, e: &Event, ceilings: Option<&Ceilings>, dtype: DType) -> Value {
        let share = ceilings.map(|c| c.least(e.name, e.cost, dtype) / e.seconds).filter(|s| s.is_finite());
        let mut args = json!({"flops": e.cost.flops, "bytes": e.cost.bytes, "share_of_ceiling": share});
        if !e.part.is_empty() {
            args["part"] = json!(e.part);
        }
        complete(e.name, LAUNCHES, self.at(e.start), e.seconds, args)
    }

    /// Bytes in use, in the categories that there are.
    fn counters(&self, memory: &[MemorySample]) -> Vec<Value> {
        let used = |i: usize| memory.iter().any(|m| m.bytes[i] > 0);
        let series: Vec<usize> = (0..CATEGORIES.len()).filter(|&i| used(i)).collect();
        let counter = |m: &MemorySample| {
            let bytes: Map<String, Value> =
                series.iter().map(|&i| (CATEGORIES[i].name().to_string(), json!(m.bytes[i]))).collect();
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

/// A name for the process or for one of its rows.
fn named(what: &str, tid: u32, name: &str) -> Value {
    json!({"name": what, "ph": "M", "pid": std::process::id(), "tid": tid, "args": {"name": name}})
}
