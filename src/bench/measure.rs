//! Rounds of some work: their times undisturbed, and after them one round that says where the time goes.

use std::time::{Duration, Instant};

use anyhow::Result;
use reel_kernels::DType;
use reel_runtime::Device;
use reel_runtime::device::{Event, MemorySample};
use serde_json::{Map, Value, json};

use super::clocks::{Clocks, Sampler};
use super::ops::{self, OpRow};
use super::parts::{self, Part};
use super::stats;
use crate::ceilings::{Ceilings, Floor};
use crate::trace;

/// Between two readings of clocks and power.
const EVERY: Duration = Duration::from_millis(20);

/// What rounds gave.
pub struct Measured {
    /// Seconds of each round, in their order.
    pub samples: Vec<f64>,
    /// Where the time of the last round went, longest first.
    pub ops: Vec<OpRow>,
    /// The parts of that round, where it has any.
    pub parts: Vec<Part>,
    /// Seconds of that round.
    pub profiled: f64,
    /// From its first launch to the end of its last.
    pub launches: (Instant, Duration),
    /// Bytes in use during it.
    pub memory: Vec<MemorySample>,
    /// What the machine allows, and the least that a round takes by it.
    pub ceilings: Ceilings,
    /// The least that a round takes.
    pub floor: Floor,
    /// Of a GPU during the rounds, where they could be read.
    pub clocks: Option<Clocks>,
    /// Most bytes at any moment.
    pub peak: usize,
}

/// Does a round that does not count, `rounds` that do, and one under the profile. A round gives its seconds.
pub fn rounds(
    device: &Device,
    dtype: DType,
    rounds: usize,
    mut round: impl FnMut() -> Result<f64>,
) -> Result<Measured> {
    let profile = device.profiler();
    // A trace is of the last round: the others are not to be disturbed.
    profile.record(false);
    let ceilings = Ceilings::of(device)?;
    trace::held_to(ceilings);
    device.reset_peak();
    round()?;
    let sampler = Sampler::of_gpu(device, EVERY);
    let samples = (0..rounds).map(|_| round()).collect::<Result<Vec<f64>>>();
    let clocks = sampler.map(Sampler::stop);
    let samples = samples?;
    profile.clear();
    profile.count(true);
    profile.record(true);
    let profiled = trace::span("profiled round", &mut round)?;
    profile.count(false);
    profile.record(false);
    let (totals, events) = (profile.totals()?, profile.events()?);
    let begun = events.first().map_or_else(Instant::now, |e| e.start);
    let end = |e: &Event| Some(e.start + Duration::try_from_secs_f64(e.seconds).ok()?);
    let ended = events.last().and_then(end).unwrap_or(begun);
    Ok(Measured {
        samples,
        ops: ops::rows(&totals, &ceilings, dtype, profiled),
        parts: parts::parts(&events, &ceilings, dtype),
        profiled,
        launches: (begun, ended - begun),
        memory: profile.memory(),
        floor: ceilings.floor(&totals, dtype),
        ceilings,
        clocks,
        peak: device.memory().peak,
    })
}

/// What tells one measurement from another.
pub struct Subject<'a> {
    /// `prefill`, `decode`, `rollout` or `train`.
    pub op: &'static str,
    /// The model's folder.
    pub model: String,
    /// Where.
    pub device: &'a Device,
    /// Of activations.
    pub dtype: DType,
    /// Of each sequence.
    pub tokens: usize,
    /// Sequences.
    pub batch: usize,
    /// Tokens that were there before.
    pub context: usize,
}

impl Measured {
    /// The share of the profiled round in which a launch ran: the sum of their times over its seconds.
    pub fn busy(&self) -> f64 {
        self.ops.iter().map(|o| o.share).sum()
    }

    /// As `reel bench --json` prints it, with figures of its own.
    pub fn json(&self, subject: &Subject, more: Map<String, Value>) -> Value {
        let made = (subject.tokens * subject.batch) as f64;
        let [least, median, most] = stats::spread(&self.samples);
        let mut all = json!({
            "op": subject.op,
            "tokens_per_second": made / median,
            "min": made / most,
            "max": made / least,
            "n": self.samples.len(),
            "tokens": subject.tokens,
            "batch": subject.batch,
            "context": subject.context,
            "dtype": subject.dtype.name(),
            "device": subject.device.name(),
            "threads": subject.device.threads(),
            "machine": machine(subject.device),
            "products": products(subject.device),
            "model": subject.model,
            "seconds": median,
            "samples": self.samples,
            "peak_bytes": self.peak,
            "flops": self.floor.flops,
            "bytes": self.floor.bytes,
            "roofline": {
                "share": self.floor.seconds / median,
                "seconds": self.floor.seconds,
                "gflops_f32": self.ceilings.f32 / 1e9,
                "gflops_bf16": self.ceilings.bf16 / 1e9,
                "gigabytes_per_second": self.ceilings.bytes / 1e9,
            },
            "profiled": {"seconds": self.profiled, "busy": self.busy()},
            "parts": self.parts.iter().map(|p| p.json(self.profiled)).collect::<Vec<_>>(),
            "ops": self.ops.iter().map(OpRow::json).collect::<Vec<_>>(),
            "clocks": self.clocks.as_ref().map(Clocks::json),
            "version": env!("CARGO_PKG_VERSION"),
        });
        if let Some(all) = all.as_object_mut() {
            all.extend(more);
        }
        all
    }
}

/// Whom products were left to, with the algorithms that were chosen; null where they are ours.
pub fn products(device: &Device) -> Value {
    device.products().map_or(Value::Null, |p| json!({"library": p.name, "algorithms": p.algorithms, "hash": p.hash}))
}

/// What computed.
pub fn machine(device: &Device) -> Value {
    let hardware = device.hardware();
    json!({"name": hardware.name, "driver": hardware.driver})
}
