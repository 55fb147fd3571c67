//! Predicts the time of launches on a GPU from one of three sources: the ceilings of the GPU; the share of these
//! ceilings that the same kernel reached when it was measured on that GPU (a record); a model of the kernel's code
//! ([`crate::kernel_model`]).
//!
//! ```text
//! floor   = max(operations / arithmetic rate, bytes / bandwidth)          (ceilings.rs)
//! latency = measured seconds of the kernel's smallest recorded launch - its floor / best share
//! share   = floor of the recorded launch / (its measured seconds - latency)
//! record  = latency + floor of the planned launch / share
//! seconds = record   if the kernel's code is that of the record
//!           model    if the code has changed or has no record, and its instructions were counted; but the record of
//!                    the changed code if this is longer and arithmetic is the bound of the floor, because the model
//!                    does not know barriers and dependences
//!           record   if the code has changed and its instructions were not counted, because a model without these
//!                    counts says less than the time of similar code
//!           model    if there is neither a record nor a count
//!           floor    if the launches do not have a plan either
//! ```
//!
//! If a kernel's code has changed since the record, the record of a prototype of the new code is used instead,
//! provided that the prototype's launch has about as many operations per byte. This record counts as a record of the
//! present code.
//!
//! Products of bf16 matrices run on this project's own kernels if a GPU supports them, but the records have the times
//! of cuBLASLt. So the recorded time is divided by the speed of the prototypes of these kernels relative to cuBLAS.
//!
//! If a kernel was recorded at several sizes, the nearest size is used, by the ratios of operations and bytes of one
//! launch. The latency is the part of a launch's time that does not shrink with its size. Example: attention of a
//! decode step takes 27 us with 2 MB of keys, 55 us with 84 MB and 206 us with 539 MB, so its latency is 27 us, and
//! its share of the ceilings is that of the last launch. The latency is 0 for a kernel with one recorded size, and at
//! most [`MAX_LATENCY`]. The best share is the largest `floor / seconds` of the kernel's records.
//!
//! The records are in `benches/results`; `benches/gpu/shares.py` makes the tables from them. If a launch was measured
//! both within a model and alone, the tables use the time within the model, because clocks and caches are then those
//! of real work.
//!
//! Until 2026-11-27 no decode step had been measured, and the model predicted half of its time, for two reasons. The
//! model does not know the latency of blocks that wait for each other (clusters) or that have too few bytes in flight
//! (12 % occupancy): the measured kernels reached 34 to 51 % of the memory bandwidth. The model also assumed the
//! bandwidth of copies for matrix products of few rows, but the measured products reached only 26 to 59 % of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

use reel_device::{Cost, DType, OpTotals};
use serde::Deserialize;

use crate::catalogue::example_calls_with_folders;
use crate::ceilings::{self, Ceilings};
use crate::kernel_model::{ModelledGpu, ModelledTime};

/// The GPUs with a record, by their short names, with the tables made from the records and the times of prototypes.
/// The files are links into `benches/results`: a published crate consists of its own folder.
const RECORDS: [(&str, &str, &str); 1] =
    [("h200", include_str!("../data/h200/shares.json"), include_str!("../data/h200/prototypes.json"))];

/// Two launches count as different in size if their operations or their bytes differ by more than this factor.
const SAME_SIZE: f64 = 4.0;

/// Maximum ratio of the operations per byte of two launches for which the time of one (of a prototype) predicts the
/// time of the other. A decode step and a prefill have a larger ratio, and so do products of 16 and of 64 rows.
const SAME_KIND: f64 = 3.0;

/// Maximum latency of a launch in seconds. If a small launch loses more time than this maximum, the rest lowers its
/// share of the ceilings. Attention in a decode step, with 512 keys per block, has the longest latency in the
/// records.
const MAX_LATENCY: f64 = 30e-6;

/// The measured times of kernels on one GPU.
#[derive(Debug, Deserialize)]
pub struct GpuRecord {
    /// File names of the records.
    pub records: Vec<String>,
    kernels: Vec<RecordedKernel>,
    /// The speeds of the prototypes of matrix products, from the table of prototypes.
    #[serde(skip)]
    products: Vec<OwnProducts>,
}

/// The measured times of the prototypes of kernels.
#[derive(Debug, Deserialize)]
struct Prototypes {
    products: Vec<OwnProducts>,
    kernels: Vec<RecordedKernel>,
}

/// The measured speed of this project's prototype kernels for one matrix product.
#[derive(Debug, Deserialize)]
struct OwnProducts {
    /// Name of the product, such as `matmul_fwd`.
    op: String,
    /// Time of cuBLAS divided by the time of the prototype kernels.
    speed: f64,
}

/// A measured launch of a kernel.
#[derive(Debug, Deserialize)]
struct RecordedKernel {
    kernel: String,
    size: String,
    dtype: String,
    flops: f64,
    bytes: f64,
    /// Median time in seconds.
    seconds: f64,
    /// [`code_hash`](reel_device::Source::code_hash) of the measured code, in hexadecimal; `None` for products and
    /// prototypes.
    source: Option<String>,
    /// Name of the prototype that was measured instead of the kernel.
    #[serde(default)]
    prototype: Option<String>,
    /// Day of the measurement, such as `2026-11-20`.
    date: String,
}

/// The predicted time of all launches of an op.
#[derive(Clone, Debug)]
pub struct PredictedTime {
    /// Predicted time in seconds.
    pub seconds: f64,
    /// Which source the predicted time comes from.
    pub basis: PredictionBasis,
    /// Least time in seconds by the ceilings.
    pub floor_seconds: f64,
    /// The time predicted from a record of this GPU, if the record has the kernel or a similar kernel.
    pub recorded: Option<RecordedTime>,
    /// The time predicted from the last measurement of the kernel itself, even if its code has changed since: the same
    /// as `recorded` unless a prototype is recorded there.
    pub last_measured: Option<RecordedTime>,
    /// The time predicted by the model of the kernel's code, if the GPU has a record and the launches have a plan.
    pub modelled: Option<ModelledTime>,
}

/// The source of a predicted time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredictionBasis {
    /// The ceilings alone: the least possible time.
    Ceiling,
    /// A share of the ceilings that was measured.
    Record,
    /// The model of the kernel's code.
    Model,
}

/// A time that is predicted by the share of the ceilings that a recorded launch reached.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedTime {
    /// Time in seconds.
    pub seconds: f64,
    /// Share of the ceilings that the recorded launch reached.
    pub share: f64,
    /// Day of the record.
    pub date: String,
    /// Name of the recorded kernel, if it is a similar kernel and not the op itself.
    pub similar: Option<String>,
    /// Size of the recorded launch.
    pub size: String,
    /// Name of the kernel's prototype, if the prototype was recorded instead of the kernel.
    pub prototype: Option<String>,
    /// Speed of the prototype kernels of this matrix product divided by the speed of the recorded library (cuBLASLt);
    /// `seconds` is already divided by this ratio.
    pub own_speed: Option<f64>,
    /// Whether the size of the recorded launch differs from the planned size by more than a factor of [`SAME_SIZE`].
    pub other_size: bool,
    /// Whether the CUDA code of the op's folder has changed since the record.
    pub changed: bool,
}

impl fmt::Display for RecordedTime {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:.2} of {}", self.share, self.date)?;
        if let Some(kernel) = &self.similar {
            write!(f, " of {kernel}")?;
        }
        if let Some(prototype) = &self.prototype {
            write!(f, ", prototype {prototype}")?;
        }
        if let Some(speed) = self.own_speed {
            write!(f, " of cuBLASLt; the prototypes are {speed} times as fast")?;
        }
        if self.other_size {
            f.write_str(", measured at another size")?;
        }
        if self.changed {
            f.write_str(", code changed since")?;
        }
        Ok(())
    }
}

impl PredictionBasis {
    /// The source's name in tables.
    pub fn name(self) -> &'static str {
        match self {
            PredictionBasis::Ceiling => "ceiling",
            PredictionBasis::Record => "record",
            PredictionBasis::Model => "model",
        }
    }
}

/// The record of the GPU with this short name, if `benches/results` has one.
pub fn record_of_gpu(name: &str) -> Option<&'static GpuRecord> {
    static PARSED: OnceLock<BTreeMap<&str, GpuRecord>> = OnceLock::new();
    let parsed = PARSED.get_or_init(|| {
        let parse = |(name, shares, prototypes)| {
            let mut record: GpuRecord = serde_json::from_str(shares).expect("the tables are part of the source");
            let prototypes: Prototypes = serde_json::from_str(prototypes).expect("the tables are part of the source");
            record.kernels.extend(prototypes.kernels);
            record.products = prototypes.products;
            (name, record)
        };
        RECORDS.into_iter().map(parse).collect()
    });
    parsed.get(name)
}

/// Names under which a record may hold an op, best first. The ops of matrix products have no dtype in their names.
/// The last name is that of a similar kernel, for an op that is newer than the record.
fn recorded_names(op: &str, dtype: DType) -> Vec<String> {
    let mut names = vec![op.to_string()];
    for (prefix, similar) in [("skinny_qkv", "skinny_linear"), ("rope_kv_write", "rope_apply")] {
        names.extend(op.strip_prefix(prefix).map(|rest| format!("{similar}{rest}")));
    }
    if op.starts_with("matmul") {
        names.push(format!("{op}_{}", dtype.name()));
        names.push(format!("matmul_fwd_{}", dtype.name()));
    }
    if op == "sum_squares" {
        names.push("sum_squares_f32".to_string());
    }
    names
}

/// The hash of the CUDA code of a kernel's folder, in hexadecimal; `None` for matrix products, which have no folder.
pub fn code_hash_of_kernel(name: &str) -> Option<String> {
    static HASHES: OnceLock<BTreeMap<&str, String>> = OnceLock::new();
    let all = || {
        let hash = |f: &reel_kernels::catalogue::KernelFolder| format!("{:016x}", f.source.code_hash());
        example_calls_with_folders().map(|(folder, call)| (call.launch.kernel.name, hash(folder))).collect()
    };
    HASHES.get_or_init(all).get(name).cloned()
}

/// Kernels that only stream memory. The model assumes for every kernel the share of the memory bandwidth that these
/// kernels reach.
const STREAMING: [&str; 6] = ["copy", "add_", "cast_", "mul_scalar", "columns_copy", "rows_gather"];

impl GpuRecord {
    /// Predicts the time of all launches of the op `name` together. `ceilings` are the ceilings of this GPU; `dtype`
    /// is the dtype of activations.
    pub fn predict_time(&self, name: &str, totals: &OpTotals, ceilings: &Ceilings, dtype: DType) -> PredictedTime {
        let floor_seconds = ceilings.roofline_seconds_of_launches(name, totals, dtype);
        let recorded = self.recorded(name, totals, ceilings, dtype, true);
        let last_measured = match &recorded {
            Some(r) if r.prototype.is_some() || r.own_speed.is_some() => {
                self.recorded(name, totals, ceilings, dtype, false)
            }
            other => other.clone(),
        };
        let gpu = ModelledGpu::hopper(*ceilings, self.streaming_share(ceilings));
        let modelled = gpu.time_of_launches(&totals.planned, ceilings::uses_bf16_rate(name, dtype));
        let is_arithmetic = totals.cost.flops / ceilings.flops_per_second(name, dtype) >= floor_seconds;
        let is_counted = modelled.as_ref().is_some_and(ModelledTime::has_instruction_counts);
        let (basis, seconds) = match (&recorded, &modelled) {
            (Some(r), _) if !r.changed && r.similar.is_none() => (PredictionBasis::Record, r.seconds),
            (Some(r), Some(m)) if is_counted && is_arithmetic && r.seconds > m.seconds => {
                (PredictionBasis::Record, r.seconds)
            }
            (_, Some(m)) if is_counted => (PredictionBasis::Model, m.seconds),
            (Some(r), _) => (PredictionBasis::Record, r.seconds),
            (None, Some(m)) => (PredictionBasis::Model, m.seconds),
            (None, None) => (PredictionBasis::Ceiling, floor_seconds),
        };
        PredictedTime { seconds, basis, floor_seconds, recorded, last_measured, modelled }
    }

    /// Predicts the time of the launches in `totals` from the kernel's latency and the share of the ceilings that its
    /// most similar recorded launches reached. If the plans of the launches are known, each group of equal launches is
    /// predicted on its own; otherwise the mean launch is predicted. The result's time is the sum over the groups; its
    /// other fields are those of the group that takes longest. Prototypes count only with `by_prototypes`.
    fn recorded(
        &self,
        name: &str,
        totals: &OpTotals,
        ceilings: &Ceilings,
        dtype: DType,
        by_prototypes: bool,
    ) -> Option<RecordedTime> {
        let mut groups: Vec<(u64, Cost)> = totals.planned.groups().map(|(_, count, cost)| (count, cost)).collect();
        if totals.planned.count() != totals.launches {
            groups = vec![(totals.launches.max(1), totals.cost)];
        }
        let of_groups = groups
            .into_iter()
            .map(|group| self.recorded_of_equal_launches(name, group, ceilings, dtype, by_prototypes));
        let of_groups = of_groups.collect::<Option<Vec<RecordedTime>>>()?;
        let seconds = of_groups.iter().map(|r| r.seconds).sum();
        let longest = of_groups.into_iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds))?;
        Some(RecordedTime { seconds, ..longest })
    }

    /// The time of `count` launches of the op `name`. `cost` is the sum of their operations and bytes.
    fn recorded_of_equal_launches(
        &self,
        name: &str,
        (count, cost): (u64, Cost),
        ceilings: &Ceilings,
        dtype: DType,
        by_prototypes: bool,
    ) -> Option<RecordedTime> {
        let launches = count as f64;
        let of_one = Cost { flops: cost.flops / launches, bytes: cost.bytes / launches };
        let recorded = self.nearest(name, of_one, dtype, by_prototypes)?;
        let RecordedKernel { kernel, size, flops, bytes, .. } = recorded;
        let (floor, latency) = (recorded.floor_seconds(ceilings), self.latency_seconds(recorded, ceilings));
        let planned_floor = ceilings.roofline_seconds(name, cost, dtype);
        let own = self.products.iter().find(|own| own.op == name && dtype == DType::BF16);
        let own_speed = own.filter(|_| by_prototypes).map(|own| own.speed);
        let is_own_name = kernel == name || name.starts_with("matmul") || name == "sum_squares";
        Some(RecordedTime {
            seconds: (launches * latency + (recorded.seconds - latency) * planned_floor / floor)
                / own_speed.unwrap_or(1.0),
            share: floor / recorded.seconds,
            date: recorded.date.clone(),
            similar: (!is_own_name).then(|| kernel.clone()),
            size: size.clone(),
            prototype: recorded.prototype.clone(),
            own_speed,
            other_size: distance(of_one, Cost { flops: *flops, bytes: *bytes }).1 > SAME_SIZE.ln(),
            changed: recorded.source.is_some() && code_hash_of_kernel(name) != recorded.source,
        })
    }

    /// The latency, in seconds, of a recorded kernel: the part of a launch's time that does not shrink with its size.
    /// It is the time of the kernel's smallest recorded launch, less the time that this launch would take at the best
    /// share. A kernel and its prototypes have separate latencies.
    fn latency_seconds(&self, of: &RecordedKernel, ceilings: &Ceilings) -> f64 {
        let is_alike = |k: &&RecordedKernel| k.kernel == of.kernel && k.prototype == of.prototype;
        let launches = || self.kernels.iter().filter(is_alike);
        let floor = |k: &RecordedKernel| k.floor_seconds(ceilings);
        let best = launches().map(|k| k.share(ceilings)).fold(0.0, f64::max);
        let least = launches().map(|k| k.seconds).fold(f64::INFINITY, f64::min);
        let smallest = launches().min_by(|a, b| floor(a).total_cmp(&floor(b)));
        smallest.map_or(0.0, |k| (k.seconds - floor(k) / best).clamp(0.0, least.min(MAX_LATENCY)))
    }

    /// The median share of the ceilings that large launches of [`STREAMING`] kernels reached. Only memory limits
    /// these kernels, so the share depends on the GPU and not on the version of the code.
    pub fn streaming_share(&self, ceilings: &Ceilings) -> f64 {
        let large = self.kernels.iter().filter(|k| k.bytes > 5e7);
        let streams = large.filter(|k| STREAMING.iter().any(|name| k.kernel.starts_with(name)));
        let mut shares: Vec<f64> = streams.map(|k| k.share(ceilings)).collect();
        shares.sort_by(f64::total_cmp);
        shares.get(shares.len() / 2).copied().unwrap_or(1.0)
    }

    /// The recorded launch with the size nearest to `cost`, of the first kernel in [`recorded_names`] that the record
    /// has. If the kernel's code has changed since the record, a launch of its prototype is preferred, unless that
    /// launch's operations per byte differ from those of `cost` by more than a factor of [`SAME_KIND`].
    fn nearest(&self, name: &str, cost: Cost, dtype: DType, by_prototypes: bool) -> Option<&RecordedKernel> {
        let from = |k: &RecordedKernel| distance(cost, Cost { flops: k.flops, bytes: k.bytes });
        let launches_of = |name: String| {
            let nearest_of = |of_prototypes: bool| {
                let wanted = |k: &&RecordedKernel| k.kernel == name && k.prototype.is_some() == of_prototypes;
                self.kernels.iter().filter(wanted).min_by(|a, b| from(a).0.total_cmp(&from(b).0))
            };
            let (own, prototype) = (nearest_of(false), nearest_of(true));
            let is_current = |k: &RecordedKernel| k.source.is_none() || k.source == code_hash_of_kernel(&name);
            let per_byte = |flops: f64, bytes: f64| (flops.max(1.0) / bytes.max(1.0)).ln();
            let is_alike = |k: &&RecordedKernel| {
                (per_byte(k.flops, k.bytes) - per_byte(cost.flops, cost.bytes)).abs() <= SAME_KIND.ln()
            };
            let prototype = prototype.filter(|_| by_prototypes).filter(is_alike);
            prototype.filter(|_| !own.is_some_and(is_current)).or(own)
        };
        recorded_names(name, dtype).into_iter().find_map(launches_of)
    }
}

/// The distance of two sizes, from the absolute logarithms of the ratio of their operations and of the ratio of their
/// bytes: the sum of the two logarithms, and the larger one.
fn distance(a: Cost, b: Cost) -> (f64, f64) {
    let log = |x: f64, y: f64| (x.max(1.0) / y.max(1.0)).ln().abs();
    let (flops, bytes) = (log(a.flops, b.flops), log(a.bytes, b.bytes));
    (flops + bytes, flops.max(bytes))
}

impl RecordedKernel {
    /// Least seconds of the launch by the ceilings.
    fn floor_seconds(&self, ceilings: &Ceilings) -> f64 {
        let dtype = if self.dtype == "bf16" { DType::BF16 } else { DType::F32 };
        let cost = Cost { flops: self.flops, bytes: self.bytes };
        ceilings.roofline_seconds(&self.kernel, cost, dtype)
    }

    /// Share of the ceilings that the launch reached.
    fn share(&self, ceilings: &Ceilings) -> f64 {
        self.floor_seconds(ceilings) / self.seconds
    }
}

impl PredictedTime {
    /// The predicted time of an op on a GPU without a record.
    pub fn by_ceilings(floor_seconds: f64) -> PredictedTime {
        PredictedTime {
            seconds: floor_seconds,
            basis: PredictionBasis::Ceiling,
            floor_seconds,
            recorded: None,
            last_measured: None,
            modelled: None,
        }
    }

    /// Share of the ceilings that the prediction assumes.
    pub fn assumed_share_of_ceilings(&self) -> f64 {
        self.floor_seconds / self.seconds
    }

    /// The predicted seconds from one source. [`PredictionBasis::Record`]: the recorded time, even if the code has
    /// changed. [`PredictionBasis::Model`]: the modelled time. If this time is missing, the least time by the
    /// ceilings.
    pub fn seconds_by(&self, basis: PredictionBasis) -> f64 {
        let seconds = match basis {
            PredictionBasis::Ceiling => None,
            PredictionBasis::Record => self.recorded.as_ref().map(|r| r.seconds),
            PredictionBasis::Model => self.modelled.as_ref().map(|m| m.seconds).or_else(|| self.seconds_by_library()),
        };
        seconds.unwrap_or(self.floor_seconds)
    }

    /// The recorded time, for a matrix product of a library, which the model does not cover.
    fn seconds_by_library(&self) -> Option<f64> {
        self.recorded.as_ref().map(|r| r.seconds)
    }

    /// The predicted time of one of `steps` steps: all times are divided by `steps`.
    #[must_use]
    pub fn per_step(mut self, steps: f64) -> PredictedTime {
        self.seconds /= steps;
        self.floor_seconds /= steps;
        self.recorded.iter_mut().chain(&mut self.last_measured).for_each(|r| r.seconds /= steps);
        self.modelled.iter_mut().for_each(|m| m.divide_times(steps));
        self
    }

    /// The source of the predicted time as text, such as `record 0.23 of 2026-01-01`.
    pub fn basis_text(&self) -> String {
        let record = self.recorded.as_ref().map_or("no record".to_string(), |r| format!("record {r}"));
        let limit = |m: &ModelledTime| {
            format!(
                "model ({}{})",
                m.main_bottleneck().name(),
                if m.has_instruction_counts() { "" } else { ", code not counted" }
            )
        };
        match (self.basis, &self.modelled) {
            (PredictionBasis::Model, Some(m)) => format!("{}; {record}", limit(m)),
            (PredictionBasis::Record, _) => record,
            _ => "ceiling".to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use reel_device::{PlannedLaunches, PlannedStage};

    use super::*;
    use crate::machine::MachineSpec;

    fn priced(record: &GpuRecord, name: &str, cost: Cost, planned: PlannedLaunches) -> PredictedTime {
        let machine = MachineSpec::gpu_by_name("h200").unwrap();
        let totals = OpTotals { launches: 1, cost, planned, ..OpTotals::default() };
        record.predict_time(name, &totals, &machine.ceilings, DType::BF16)
    }

    fn h200(name: &str, cost: Cost) -> PredictedTime {
        priced(record_of_gpu("h200").unwrap(), name, cost, PlannedLaunches::default())
    }

    /// The plan of one launch that fills an H200 with the blocks of the kernel `symbol`.
    fn planned(symbol: &'static str, cost: Cost) -> PlannedLaunches {
        let mut all = PlannedLaunches::default();
        let stage = PlannedStage { symbol, blocks: 132 * 64, cluster: 1, threads: 256, shared: 0, programmatic: true };
        all.add(&[stage], cost, 1);
        all
    }

    #[test]
    fn a_recorded_launch_has_the_time_that_was_measured() {
        for k in &record_of_gpu("h200").unwrap().kernels {
            let name = k.kernel.strip_suffix("_bf16").filter(|k| k.starts_with("matmul")).unwrap_or(&k.kernel);
            let recorded = h200(name, Cost { flops: k.flops, bytes: k.bytes }).recorded.unwrap();
            // The kernel's code has changed since it was recorded, so its time is predicted from its prototype.
            if k.prototype.is_none() && recorded.prototype.is_some() {
                continue;
            }
            let seconds = recorded.seconds * recorded.own_speed.unwrap_or(1.0);
            // The times of f32 kernels are not compared, because these predictions are for a bf16 model, with the
            // rate of bf16 products.
            if k.dtype == "bf16" {
                assert!((seconds / k.seconds - 1.0).abs() < 0.1, "{name}: {recorded:?}");
            }
            assert!(!recorded.other_size, "{name}: {recorded:?}");
        }
    }

    #[test]
    fn an_op_without_a_record_and_without_a_plan_has_the_price_of_the_ceilings() {
        let price = h200("no recorded op", Cost { flops: 0.0, bytes: 4.32e12 });
        assert!((price.seconds - 1.0).abs() < 1e-12, "{price:?}");
        assert_eq!((price.assumed_share_of_ceilings(), price.basis_text()), (1.0, "ceiling".to_string()));
        assert!(record_of_gpu("a100").is_none());
    }

    #[test]
    fn a_product_is_priced_at_the_speed_of_its_prototypes() {
        let record = record_of_gpu("h200").unwrap();
        let k = record.kernels.iter().find(|k| k.kernel == "matmul_dx").unwrap();
        let price = h200("matmul_dx", Cost { flops: k.flops, bytes: k.bytes });
        assert!((k.seconds / price.seconds - 1.037).abs() < 1e-3, "{price:?}");
        assert!(
            price.basis_text().ends_with("of cuBLASLt; the prototypes are 1.037 times as fast"),
            "{}",
            price.basis_text()
        );
    }

    #[test]
    fn a_similar_kernel_and_another_size_are_named() {
        let price = h200("skinny_qkv_f32", Cost { flops: 1e3, bytes: 1e6 });
        let text = price.basis_text();
        assert!(text.contains("of skinny_linear_f32, measured at another size"), "{text}");
        assert!(price.seconds > price.floor_seconds, "{price:?}");
    }

    #[test]
    fn a_record_counts_if_the_code_is_unchanged_else_the_model_if_it_knows_the_code() {
        let cost = Cost { flops: 0.0, bytes: 1e9 };
        let with = |source: Option<String>| GpuRecord {
            records: vec!["r".to_string()],
            products: Vec::new(),
            kernels: vec![RecordedKernel {
                kernel: "swiglu_fwd_bf16".to_string(),
                size: "s".to_string(),
                dtype: "bf16".to_string(),
                flops: 0.0,
                bytes: 1e9,
                seconds: 1e-3,
                source,
                prototype: None,
                date: "2026-01-01".to_string(),
            }],
        };
        let price = |record: &GpuRecord, symbol| priced(record, "swiglu_fwd_bf16", cost, planned(symbol, cost));
        let unchanged = with(code_hash_of_kernel("swiglu_fwd_bf16"));
        assert_eq!(price(&unchanged, "swiglu_fwd_bf16").basis_text(), "record 0.23 of 2026-01-01");
        let changed = with(Some("0".to_string()));
        let by_model = price(&changed, "swiglu_fwd_bf16");
        assert_eq!(by_model.basis, PredictionBasis::Model);
        assert!(by_model.basis_text().ends_with("; record 0.23 of 2026-01-01, code changed since"), "{by_model:?}");
        assert_eq!(price(&changed, "no row").basis_text(), "record 0.23 of 2026-01-01, code changed since");
        let none = GpuRecord { kernels: Vec::new(), ..changed };
        assert_eq!(price(&none, "no row").basis_text(), "model (memory, code not counted); no record");
    }

    #[test]
    fn a_model_of_a_kernel_that_computes_does_not_undercut_the_record() {
        // The size and time of a launch with 8192 tokens in the record of 2026-11-20, which was made with other code.
        let (flops, bytes) = (4.811e11, 1.3514e8);
        let k = RecordedKernel {
            kernel: "attention_fwd_bf16".to_string(),
            size: "one sequence of 8192 tokens".to_string(),
            dtype: "bf16".to_string(),
            flops,
            bytes,
            seconds: 2.6e-3,
            source: Some("0".to_string()),
            prototype: None,
            date: "2026-11-20".to_string(),
        };
        let record = GpuRecord { records: Vec::new(), products: Vec::new(), kernels: vec![k] };
        let cost = Cost { flops, bytes };
        let price = priced(&record, "attention_fwd_bf16", cost, planned("attention_fwd_bf16_128", cost));
        let (record, model) = (price.recorded.clone().unwrap(), price.modelled.clone().unwrap());
        assert!(record.changed && model.has_instruction_counts(), "{price:?}");
        assert!(model.seconds < record.seconds, "{price:?}");
        assert_eq!((price.basis, price.seconds), (PredictionBasis::Record, record.seconds));
    }

    #[test]
    fn a_launch_takes_its_latency_and_the_share_of_the_nearest_size() {
        // Attention of a decode step: 28 query and 4 key heads of 128.
        let attention = |keys: f64| Cost { flops: 4.0 * 128.0 * 28.0 * keys, bytes: 2.0 * 4.0 * 128.0 * 2.0 * keys };
        let microseconds = |keys: f64| 1e6 * h200("paged_attention_fwd_bf16", attention(keys)).seconds;
        // The prototype was recorded with 1024 keys (9 us), 8 x 5120 (29 us), 64 x 2048 (74 us) and 64 x 4096 (142 us).
        for (keys, least, most) in
            [(8.0, 7.0, 9.0), (4096.0, 9.0, 12.0), (8192.0, 10.0, 16.0), (196_608.0, 90.0, 130.0)]
        {
            assert!((least..most).contains(&microseconds(keys)), "{keys} keys: {} us", microseconds(keys));
        }
        assert!(microseconds(65536.0) > microseconds(16384.0));
    }

    /// Checks the streaming share that the model uses, and compares the model with the record for kernels with
    /// unchanged code.
    #[test]
    fn the_model_agrees_with_the_record_on_kernels_that_stream() {
        let (record, machine) = (record_of_gpu("h200").unwrap(), MachineSpec::gpu_by_name("h200").unwrap());
        let share = record.streaming_share(&machine.ceilings);
        assert!((0.83..0.89).contains(&share), "{share}");
        let mut compared = 0;
        for (_, call) in example_calls_with_folders() {
            let (name, bytes) = (call.launch.kernel.name, call.launch.cost.bytes);
            let same =
                |k: &&RecordedKernel| k.kernel == name && k.bytes == bytes && k.source == code_hash_of_kernel(name);
            let streams = ["rows_", "fill_", "rms_norm_fwd"].iter().any(|kernel| name.starts_with(kernel));
            let Some(k) = record.kernels.iter().find(same).filter(|_| streams) else { continue };
            let cost = Cost { flops: k.flops, bytes };
            let model = priced(record, name, cost, planned("no row", cost)).modelled.unwrap();
            let ratio = model.seconds / k.seconds;
            println!("{name}: model {:.1} us, record {:.1} us", model.seconds * 1e6, k.seconds * 1e6);
            // The recorded time of a launch of a few megabytes includes the gap between the events around it, so only
            // larger launches are compared.
            if k.bytes > 5e7 {
                assert!((0.8..1.25).contains(&ratio), "{name}: {ratio}");
            }
            compared += 1;
        }
        assert!(compared >= 3, "{compared}");
    }
}
