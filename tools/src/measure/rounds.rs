//! Times rounds of some work, then runs one more round under the profiler, which shows where the time goes.
//!
//! ```text
//! round()                warm-up, not counted
//! round() x count        timed with the profiler off; on a GPU a thread samples clocks and power meanwhile, on a CPU
//!                        the handover time from core to core is measured before each round, because it changes on
//!                        some virtual machines
//! round()                profiled: time by op and by part, memory over time
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reel_device::{DType, Device, LaunchEvent, MemorySample, OpTotals, Team};
use reel_kernels::limits;
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::measure::ceilings::{self, Ceilings, RooflineFloor};
use crate::measure::clocks::{ClockSampler, ClockSummary};
use crate::measure::machine::PublishedLimits;
use crate::measure::ops::{self, OpTime};
use crate::measure::parts::{self, PartTime};
use crate::measure::{stats, trace};

/// Interval between two readings of clocks and power.
const SAMPLING_INTERVAL: Duration = Duration::from_millis(20);

/// The result of [`time_rounds`].
pub struct MeasuredRounds {
    /// Seconds of each timed round, in order.
    pub samples: Vec<f64>,
    /// For each timed round, the handover time in seconds: how long it takes until one core reads what another core has
    /// written, measured before the round. Empty on a GPU, and on a CPU with one core.
    pub handovers: Vec<f64>,
    /// Ops of the profiled round, longest time first.
    pub ops: Vec<OpTime>,
    /// Parts of the profiled round (forward, backward, …); may be empty.
    pub parts: Vec<PartTime>,
    /// Duration of the profiled round in seconds.
    pub profiled: f64,
    /// The start of the first launch of the profiled round, and the time from this start to the end of the last launch.
    pub launches: (Instant, Duration),
    /// Device memory in use over the profiled round.
    pub memory: Vec<MemorySample>,
    /// Ceilings of the machine.
    pub ceilings: Ceilings,
    /// The least possible time of a round by `ceilings`.
    pub floor: RooflineFloor,
    /// Clocks and power of the GPU during the timed rounds; `None` without a GPU or NVML.
    pub clocks: Option<ClockSummary>,
    /// Peak device memory in bytes.
    pub peak: usize,
}

/// Runs a warm-up round, `count` timed rounds and a profiled round; `round` runs one round and returns its seconds.
///
/// # Errors
/// A round fails, or the device cannot be measured.
pub fn time_rounds(
    device: &Device,
    dtype: DType,
    count: usize,
    mut round: impl FnMut() -> Result<f64>,
) -> Result<MeasuredRounds> {
    let profile = device.profiler();
    // Only the profiled round is recorded in a trace, because recording would slow down the timed rounds.
    profile.record_timeline(false);
    let limits = PublishedLimits::of_device(device);
    let ceilings = Ceilings::measure(device)?;
    device.reset_peak();
    round()?;
    let sampler = ClockSampler::start_on_gpu_of(device, SAMPLING_INTERVAL);
    let cores = (!device.capabilities().async_launches).then(|| Team::new(ceilings::core_count()));
    let mut handovers = Vec::new();
    let timed = |_| {
        handovers.extend(cores.as_ref().and_then(limits::measure_cache_line_handover_seconds));
        round()
    };
    let samples = (0..count).map(timed).collect::<Result<Vec<f64>>>();
    let clocks = sampler.map(ClockSampler::stop);
    let samples = samples?;
    profile.clear();
    profile.collect_totals(true);
    profile.record_timeline(true);
    let profiled = trace::span("profiled round", &mut round)?;
    profile.collect_totals(false);
    profile.record_timeline(false);
    let (totals, events) = (profile.totals()?, profile.launch_events()?);
    let fastest = stats::min_median_max(&samples)[0];
    let ceilings = ceilings_of_round(ceilings, limits.as_ref(), &totals, dtype, fastest);
    trace::set_ceilings(ceilings);
    let begun = events.first().map_or_else(Instant::now, |e| e.start);
    let end = |e: &LaunchEvent| Some(e.start + Duration::try_from_secs_f64(e.seconds).ok()?);
    let ended = events.last().and_then(end).unwrap_or(begun);
    Ok(MeasuredRounds {
        samples,
        handovers,
        ops: ops::op_times(&totals, &ceilings, limits.as_ref(), dtype, profiled),
        parts: parts::part_times(&events, &ceilings, dtype),
        profiled,
        launches: (begun, ended - begun),
        memory: profile.memory_samples(),
        floor: ceilings.roofline_floor_of_profile(&totals, dtype),
        ceilings,
        clocks,
        peak: device.memory().peak,
    })
}

/// Raises the ceilings if they were measured too low: if the profiled launches or the fastest round (`fastest`
/// seconds) took less than their least time. No ceiling is raised above the data sheet.
fn ceilings_of_round(
    measured: Ceilings,
    limits: Option<&PublishedLimits>,
    totals: &BTreeMap<&'static str, OpTotals>,
    dtype: DType,
    fastest: f64,
) -> Ceilings {
    let raise = |ceilings: Ceilings, (name, t): (&&'static str, &OpTotals)| {
        ceilings.raised_to_measured_launches(name, t, dtype)
    };
    let raised = totals.iter().fold(measured, raise);
    let raised = raised.raised_to_measured_round(raised.roofline_floor_of_profile(totals, dtype).seconds, fastest);
    limits.map_or(raised, |limits| raised.limited_to(&limits.rates))
}

/// Which op, model, device and sizes were measured.
pub struct BenchSubject<'a> {
    /// `prefill`, `decode`, `rollout` or `train`.
    pub op: &'static str,
    /// Model folder.
    pub model: String,
    /// Device.
    pub device: &'a Device,
    /// Dtype of activations.
    pub dtype: DType,
    /// Tokens of each sequence.
    pub tokens: usize,
    /// Number of sequences.
    pub batch: usize,
    /// Tokens in the KV cache before the measured tokens.
    pub context: usize,
}

impl MeasuredRounds {
    /// The share of the profiled round's time in which the device ran a launch, 0 to 1.
    pub fn device_busy_share(&self) -> f64 {
        self.ops.iter().map(|o| o.share).sum()
    }

    /// The least possible time of a round divided by `seconds`, the time that a round took; at most 1. `None` if the
    /// operations or bytes of an op of the round are counted wrong.
    fn roofline_share(&self, seconds: f64) -> Option<f64> {
        let is_miscounted = self.ops.iter().any(|op| op.is_miscounted);
        (!is_miscounted).then(|| (self.floor.seconds / seconds).min(1.0))
    }

    /// The result as `reel bench --json` prints it; `more` has additional keys.
    pub fn json(&self, subject: &BenchSubject, more: Map<String, Value>) -> Value {
        let tokens = (subject.tokens * subject.batch) as f64;
        let [min, median, max] = stats::min_median_max(&self.samples);
        let mut all = json!({
            "op": subject.op,
            "tokens_per_second": tokens / median,
            "min": tokens / max,
            "max": tokens / min,
            "n": self.samples.len(),
            "tokens": subject.tokens,
            "batch": subject.batch,
            "context": subject.context,
            "dtype": subject.dtype.name(),
            "device": subject.device.name(),
            "threads": subject.device.threads(),
            "machine": hardware_json(subject.device),
            "products": matmul_library_json(subject.device),
            "model": subject.model,
            "seconds": median,
            "samples": self.samples,
            "handover_nanoseconds": self.handovers.iter().map(|seconds| (seconds * 1e9).round()).collect::<Vec<_>>(),
            "peak_bytes": self.peak,
            "flops": self.floor.flops,
            "bytes": self.floor.bytes,
            "roofline": {
                "share": self.roofline_share(median),
                "seconds": self.floor.seconds,
                "gflops_f32": self.ceilings.f32 / 1e9,
                "gflops_bf16": self.ceilings.bf16 / 1e9,
                "gigabytes_per_second": self.ceilings.bytes / 1e9,
                "cache": self.ceilings.cache.map(|cache| json!({
                    "bytes": cache.capacity, "gigabytes_per_second": cache.bytes / 1e9,
                })),
            },
            "profiled": {"seconds": self.profiled, "busy": self.device_busy_share()},
            "parts": self.parts.iter().map(|p| p.json(self.profiled)).collect::<Vec<_>>(),
            "ops": self.ops.iter().map(OpTime::json).collect::<Vec<_>>(),
            "clocks": self.clocks.as_ref().map(ClockSummary::json),
            "version": env!("CARGO_PKG_VERSION"),
        });
        if let Some(all) = all.as_object_mut() {
            all.extend(more);
        }
        all
    }
}

/// The result in one line of text.
pub fn result_headline(result: &Value) -> String {
    let number = |key: &str| result.pointer(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let mfu = match result["mfu"].as_f64() {
        Some(mfu) => format!(", {:.1} % MFU", 100.0 * mfu),
        None => String::new(),
    };
    let busy = match result["busy"].as_f64() {
        Some(busy) => format!(", device busy during {:.1} % of a round", 100.0 * busy),
        None => String::new(),
    };
    let cache = match result.pointer("/roofline/cache/gigabytes_per_second").and_then(Value::as_f64) {
        Some(rate) => format!(", {rate:.0} GB/s of cache bandwidth"),
        None => String::new(),
    };
    let times: Vec<f64> =
        result["handover_nanoseconds"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let handover = match times.is_empty() {
        true => String::new(),
        false => {
            let [least, _, most] = stats::min_median_max(&times);
            format!(", core-to-core latency {least:.0} to {most:.0} ns")
        }
    };
    let share = ops::share_text(result["roofline"]["share"].as_f64());
    format!(
        "{}: {:.1} tokens/s ({:.1} to {:.1} over {} rounds){mfu}{busy}, {share} of the roofline of {:.0} GFLOP/s ({}) and {:.1} GB/s{cache}{handover}",
        result["op"].as_str().unwrap_or_default(),
        number("/tokens_per_second"),
        number("/min"),
        number("/max"),
        result["n"],
        number(if result["dtype"] == "bf16" { "/roofline/gflops_bf16" } else { "/roofline/gflops_f32" }),
        result["dtype"].as_str().unwrap_or_default(),
        number("/roofline/gigabytes_per_second"),
    )
}

/// The result as text: headline, memory, clocks, and the tables of parts and ops; with `all_ops` also the ops that take
/// little time.
pub fn result_summary(measured: &MeasuredRounds, result: &Value, all_ops: bool) -> String {
    let mut text = result_headline(result) + "\n";
    if let Some(planned) = result["planned_peak_bytes"].as_f64() {
        let peak = measured.peak as f64;
        text += &format!("  peak memory: {:.3} GB, {:.3} GB planned\n", peak / 1e9, planned / 1e9);
        let recomputed = result["recompute"].as_str().unwrap_or_default();
        let optim = result["optim"].as_str().unwrap_or_default();
        text += &format!("  recomputed in the backward pass: {recomputed}; --optim {optim}\n");
    }
    if let Some(clocks) = &measured.clocks {
        text += &(clocks.summary_line() + "\n");
    }
    text + &parts::part_table(&measured.parts, measured.profiled) + &ops::op_table(&measured.ops, all_ops)
}

/// The library that computes matrix products, with a hash of its algorithms; null if reel's own kernels compute them.
pub fn matmul_library_json(device: &Device) -> Value {
    device
        .matmul_library()
        .map_or(Value::Null, |p| json!({"library": p.name, "algorithms": p.algorithms, "hash": p.hash}))
}

/// Name and driver of the device.
pub fn hardware_json(device: &Device) -> Value {
    let hardware = device.hardware();
    json!({"name": hardware.name, "driver": hardware.driver})
}
