//! `--trace OUT`: where the time went, as Chrome trace events (chrome://tracing and Perfetto read them).

use std::sync::Mutex;
use std::time::Instant;

use anyhow::Result;
use reel_runtime::Device;
use serde_json::{Value, json};

use crate::common::Common;
use crate::output;

struct Log {
    begun: Instant,
    events: Vec<Value>,
    /// A device whose launches are recorded, and when that began.
    device: Option<(Device, Instant)>,
}

static LOG: Mutex<Option<Log>> = Mutex::new(None);

/// Begins recording, if the options ask for it.
pub fn start(common: &Common) {
    if common.trace.is_some() {
        *LOG.lock().unwrap_or_else(|e| e.into_inner()) =
            Some(Log { begun: Instant::now(), events: Vec::new(), device: None });
    }
}

/// Runs `work` under a name in the trace.
pub fn span<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    record(name, begun, begun.elapsed().as_secs_f64(), Value::Null);
    result
}

/// Records a stretch of time that was measured elsewhere, with figures about it.
pub fn record(name: &str, begun: Instant, seconds: f64, figures: Value) {
    if let Some(log) = LOG.lock().unwrap_or_else(|e| e.into_inner()).as_mut() {
        let start = begun.saturating_duration_since(log.begun).as_secs_f64();
        log.events.push(json!({
            "name": name, "ph": "X", "pid": std::process::id(), "tid": 0,
            "ts": start * 1e6, "dur": seconds * 1e6, "args": figures,
        }));
    }
}

/// Records every launch on this device from now on, if there is a trace.
pub fn record_launches(device: &Device) {
    if let Some(log) = LOG.lock().unwrap_or_else(|e| e.into_inner()).as_mut() {
        device.profile().record(true);
        log.device = Some((device.clone(), Instant::now()));
    }
}

/// Writes the trace.
pub fn finish(common: &Common) -> Result<()> {
    let log = LOG.lock().unwrap_or_else(|e| e.into_inner()).take();
    match (&common.trace, log) {
        (Some(to), Some(mut log)) => {
            if let Some((device, since)) = log.device.take() {
                let offset = since.saturating_duration_since(log.begun).as_secs_f64() * 1e6;
                let launches = device.profile().events().into_iter().map(|e| {
                    json!({"name": e.name, "ph": "X", "pid": std::process::id(), "tid": 1, "ts": offset + e.start_us, "dur": e.duration_us})
                });
                log.events.extend(launches);
            }
            output::file(to, json!({"traceEvents": log.events}).to_string().as_bytes())
        }
        _ => Ok(()),
    }
}
