//! Predicts the time of launches on a GPU from one of three sources: the ceilings of the GPU; the share of these
//! ceilings that the same kernel reached when it was measured on that GPU (a record); a model of the kernel's code
//! ([`crate::kernel_model`]).
//!
//! ```text
//! floor   = max(operations / arithmetic rate, bytes / bandwidth)          (ceilings.rs)
//! latency = measured seconds of the kernel's smallest recorded launch - its floor / best share
//! share   = floor of the recorded launch / (its measured seconds - latency)
//! record  = latency + floor of the planned launch / share
//! seconds = record,  if the kernel's code is that of the record
//!           model,   if the code has changed since or has no record, and was counted for the model; but the record
//!                    of the changed code if that is longer and the floor is the time of the arithmetic: there
//!                    barriers and dependences count, which the model does not know
//!           record,  if the code has changed, but was not counted: the time of similar code says more than a model
//!                    that does not know the code
//!           model,   if there is neither a record nor a count; without a plan: floor
//! ```
//!
//! The record of a kernel whose code has changed since may be that of the prototype of its new code, if that has about as
//! many operations per byte; it counts as a record of the code.
//!
//! Products of bf16 matrices are those of this project where a GPU has them, while the records have cuBLASLt's: the
//! recorded time is divided by the speed of the products' prototypes relative to cuBLAS.
//!
//! Of several recorded sizes of a kernel the nearest one counts, by the ratios of operations and bytes of one launch.
//! The latency is what no size makes shorter: attention of a decode step takes 27 us with 2 MB of keys, 55 with 84 and
//! 206 with 539, so 27 us and the rate of the last. It is 0 for a kernel with one recorded size, and at most
//! [`MAX_LATENCY`]; the best share is the largest of `floor / seconds`.
//!
//! The records are in `benches/results`; `benches/gpu/shares.py` makes the tables from them. Launches within a model
//! count before the same launch alone, because they have the clocks and the caches of a model.
//!
//! Until 2026-11-27 no decode step had been measured, and the model priced it. It found half of the time: it knows no
//! latency of a launch whose blocks wait for each other (clusters, and the warps of 12 % occupancy, which have too few
//! bytes in flight: the measured kernels moved 34 to 51 % of the bytes that memory can), and it gave products of few
//! rows the bandwidth of copies, of which they reached 26 to 59 %.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

use reel_device::{Cost, DType, OpTotals};
use serde::Deserialize;

use crate::catalogue::example_calls_with_folders;
use crate::ceilings::{self, Ceilings};
use crate::kernel_model::{Modelled, ModelledGpu};

/// The GPUs with a record, by their short names, with the tables made from the records and the times of prototypes.
const RECORDS: [(&str, &str, &str); 1] = [(
    "h200",
    include_str!("../../../benches/results/h200/shares.json"),
    include_str!("../../../benches/results/h200/prototypes.json"),
)];

/// The sizes of two launches differ if the operations or bytes of one are more than this many times the other's.
const SAME_SIZE: f64 = 4.0;

/// A prototype is another kernel's if its operations per byte differ by more than this factor: a decode step and a prefill,
/// or products of 16 rows and of 64, which wait for caches more.
const SAME_KIND: f64 = 3.0;

/// No latency of a launch is longer, in seconds; what a small launch loses beyond it is a share. The longest of the
/// records is that of attention in a decode step, whose blocks read 512 keys each.
const MAX_LATENCY: f64 = 30e-6;

/// The measured times of kernels on one GPU.
#[derive(Debug, Deserialize)]
pub struct GpuRecord {
    /// File names of the records.
    pub records: Vec<String>,
    kernels: Vec<RecordedKernel>,
    /// Of prototypes, which have a table of their own.
    #[serde(skip)]
    products: Vec<OwnProducts>,
}

/// The measured times of the prototypes of kernels.
#[derive(Debug, Deserialize)]
struct Prototypes {
    products: Vec<OwnProducts>,
    kernels: Vec<RecordedKernel>,
}

/// The measured speed of the prototypes of a product's kernels.
#[derive(Debug, Deserialize)]
struct OwnProducts {
    /// Name of the product: `matmul_fwd`.
    op: String,
    /// Time of cuBLAS divided by theirs.
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
    /// Day of the measurement: `2026-11-20`.
    date: String,
}

/// The predicted time of all launches of an op.
#[derive(Clone, Debug)]
pub struct Price {
    /// Predicted time in seconds.
    pub seconds: f64,
    /// What the prediction follows from.
    pub basis: Basis,
    /// Least time in seconds by the ceilings.
    pub floor_seconds: f64,
    /// The time by a record of this GPU, if one has the kernel or a similar one.
    pub recorded: Option<Recorded>,
    /// The time by the model, if the GPU has a record and the launches have a plan.
    pub modelled: Option<Modelled>,
}

/// What a predicted time follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The ceilings alone: the least possible time.
    Ceiling,
    /// A share of the ceilings that was measured.
    Record,
    /// The model of the kernel's code.
    Model,
}

/// A time by the share of the ceilings that a recorded launch reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// Time in seconds.
    pub seconds: f64,
    /// Share of the ceilings that the recorded launch reached.
    pub share: f64,
    /// Day of the record.
    pub date: String,
    /// The recorded kernel, if it is not the op itself but a similar one.
    pub similar: Option<String>,
    /// Size of the recorded launch.
    pub size: String,
    /// Name of the prototype of the kernel that was recorded instead of it.
    pub prototype: Option<String>,
    /// Speed of the planned product's prototypes relative to the recorded library, by which `seconds` are divided.
    pub own_speed: Option<f64>,
    /// Whether that size differs from the planned one by more than a factor of [`SAME_SIZE`].
    pub other_size: bool,
    /// Whether the CUDA code of the op's folder is not that of the record.
    pub changed: bool,
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:.2} of {}", self.share, self.date)?;
        if let Some(kernel) = &self.similar {
            write!(f, " of {kernel}")?;
        }
        if let Some(prototype) = &self.prototype {
            write!(f, ", prototype {prototype}")?;
        }
        if let Some(speed) = self.own_speed {
            write!(f, " of cuBLASLt, prototypes {speed} times as fast")?;
        }
        if self.other_size {
            f.write_str(", other size")?;
        }
        if self.changed {
            f.write_str(", code changed since")?;
        }
        Ok(())
    }
}

impl Basis {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Basis::Ceiling => "ceiling",
            Basis::Record => "record",
            Basis::Model => "model",
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

/// Names under which a record may have an op, the best first. The ops of matrix products have no dtype in their names.
/// The last name is that of a similar kernel, for ops that were written after a record.
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

/// Kernels that only stream memory, whose share of the bandwidth the model gives to every kernel.
const STREAMING: [&str; 6] = ["copy", "add_", "cast_", "mul_scalar", "columns_copy", "rows_gather"];

impl GpuRecord {
    /// Predicts the time of all launches of the op `name` together. `ceilings` are those of this GPU; `dtype` is the
    /// dtype of activations.
    pub fn price(&self, name: &str, totals: &OpTotals, ceilings: &Ceilings, dtype: DType) -> Price {
        let floor_seconds = ceilings.roofline_seconds_of_launches(name, totals, dtype);
        let recorded = self.recorded(name, totals, ceilings, dtype);
        let gpu = ModelledGpu::hopper(*ceilings, self.streaming_share(ceilings));
        let modelled = gpu.launches(&totals.planned, ceilings::uses_bf16_rate(name, dtype));
        let is_arithmetic = totals.cost.flops / ceilings.flops_per_second(name, dtype) >= floor_seconds;
        let is_counted = modelled.as_ref().is_some_and(Modelled::is_counted);
        let (basis, seconds) = match (&recorded, &modelled) {
            (Some(r), _) if !r.changed && r.similar.is_none() => (Basis::Record, r.seconds),
            (Some(r), Some(m)) if is_counted && is_arithmetic && r.seconds > m.seconds => (Basis::Record, r.seconds),
            (_, Some(m)) if is_counted => (Basis::Model, m.seconds),
            (Some(r), _) => (Basis::Record, r.seconds),
            (None, Some(m)) => (Basis::Model, m.seconds),
            (None, None) => (Basis::Ceiling, floor_seconds),
        };
        Price { seconds, basis, floor_seconds, recorded, modelled }
    }

    /// Predicts the time of the launches in `totals` from the kernel's latency and the share of the ceilings that its
    /// most similar recorded launches reached. If the plans of the launches are known, each group of equal launches is
    /// predicted on its own; else the mean launch is. The other fields of the result are those of the group that takes
    /// longest.
    fn recorded(&self, name: &str, totals: &OpTotals, ceilings: &Ceilings, dtype: DType) -> Option<Recorded> {
        let mut groups: Vec<(u64, Cost)> = totals.planned.groups().map(|(_, count, cost)| (count, cost)).collect();
        if totals.planned.count() != totals.launches {
            groups = vec![(totals.launches.max(1), totals.cost)];
        }
        let of_groups = groups.into_iter().map(|group| self.recorded_of_equal_launches(name, group, ceilings, dtype));
        let of_groups = of_groups.collect::<Option<Vec<Recorded>>>()?;
        let seconds = of_groups.iter().map(|r| r.seconds).sum();
        let longest = of_groups.into_iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds))?;
        Some(Recorded { seconds, ..longest })
    }

    /// The time of `count` launches of the op `name`, which cost `cost` together.
    fn recorded_of_equal_launches(
        &self,
        name: &str,
        (count, cost): (u64, Cost),
        ceilings: &Ceilings,
        dtype: DType,
    ) -> Option<Recorded> {
        let launches = count as f64;
        let of_one = Cost { flops: cost.flops / launches, bytes: cost.bytes / launches };
        let recorded = self.nearest(name, of_one, dtype)?;
        let RecordedKernel { kernel, size, flops, bytes, .. } = recorded;
        let (floor, latency) = (recorded.floor_seconds(ceilings), self.latency_seconds(recorded, ceilings));
        let planned_floor = ceilings.roofline_seconds(name, cost, dtype);
        let own = self.products.iter().find(|own| own.op == name && dtype == DType::BF16);
        let own_speed = own.map(|own| own.speed);
        let is_own_name = kernel == name || name.starts_with("matmul") || name == "sum_squares";
        Some(Recorded {
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

    /// Seconds of every launch of a recorded kernel that no size makes shorter: those of its smallest launch beyond
    /// what this launch would take at the best share. A kernel and its prototypes have latencies of their own.
    fn latency_seconds(&self, of: &RecordedKernel, ceilings: &Ceilings) -> f64 {
        let is_alike = |k: &&RecordedKernel| k.kernel == of.kernel && k.prototype == of.prototype;
        let launches = || self.kernels.iter().filter(is_alike);
        let floor = |k: &RecordedKernel| k.floor_seconds(ceilings);
        let best = launches().map(|k| k.share(ceilings)).fold(0.0, f64::max);
        let least = launches().map(|k| k.seconds).fold(f64::INFINITY, f64::min);
        let smallest = launches().min_by(|a, b| floor(a).total_cmp(&floor(b)));
        smallest.map_or(0.0, |k| (k.seconds - floor(k) / best).clamp(0.0, least.min(MAX_LATENCY)))
    }

    /// The median share of the ceilings that large launches of [`STREAMING`] kernels reached. Such a kernel has no
    /// limit but memory, so its share holds for the GPU and not for a version of its code.
    pub fn streaming_share(&self, ceilings: &Ceilings) -> f64 {
        let large = self.kernels.iter().filter(|k| k.bytes > 5e7);
        let streams = large.filter(|k| STREAMING.iter().any(|name| k.kernel.starts_with(name)));
        let mut shares: Vec<f64> = streams.map(|k| k.share(ceilings)).collect();
        shares.sort_by(f64::total_cmp);
        shares.get(shares.len() / 2).copied().unwrap_or(1.0)
    }

    /// The recorded launch whose size is nearest to `cost`, of the first of [`recorded_names`] that the record has. If
    /// the kernel's code is not that of the record, a launch of its prototype comes first, unless its operations per byte
    /// differ by more than a factor of [`SAME_KIND`].
    fn nearest(&self, name: &str, cost: Cost, dtype: DType) -> Option<&RecordedKernel> {
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
            let prototype = prototype.filter(is_alike).filter(|_| !own.is_some_and(is_current));
            prototype.or(own)
        };
        recorded_names(name, dtype).into_iter().find_map(launches_of)
    }
}

/// The distance of two sizes: the sum, and the larger, of the absolute logarithms of the ratios of operations and of
/// bytes.
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

impl Price {
    /// The price of an op on a GPU without a record.
    pub fn by_ceilings(floor_seconds: f64) -> Price {
        Price { seconds: floor_seconds, basis: Basis::Ceiling, floor_seconds, recorded: None, modelled: None }
    }

    /// Share of the ceilings that the prediction assumes.
    pub fn share(&self) -> f64 {
        self.floor_seconds / self.seconds
    }

    /// The time by one basis: by the record, also if the code has changed, or by the model where there is one; else the
    /// least time by the ceilings.
    pub fn seconds_by(&self, basis: Basis) -> f64 {
        let seconds = match basis {
            Basis::Ceiling => None,
            Basis::Record => self.recorded.as_ref().map(|r| r.seconds),
            Basis::Model => self.modelled.as_ref().map(|m| m.seconds).or_else(|| self.seconds_by_library()),
        };
        seconds.unwrap_or(self.floor_seconds)
    }

    /// The recorded time of a matrix product, which the model does not have.
    fn seconds_by_library(&self) -> Option<f64> {
        self.recorded.as_ref().map(|r| r.seconds)
    }

    /// This price divided by a number of steps.
    #[must_use]
    pub fn per(mut self, steps: f64) -> Price {
        self.seconds /= steps;
        self.floor_seconds /= steps;
        self.recorded.iter_mut().for_each(|r| r.seconds /= steps);
        self.modelled.iter_mut().for_each(|m| m.divide(steps));
        self
    }

    /// What the time follows from, in words.
    pub fn origin(&self) -> String {
        let record = self.recorded.as_ref().map_or("no record".to_string(), |r| format!("record {r}"));
        let limit = |m: &Modelled| {
            format!("model ({}{})", m.limit().name(), if m.is_counted() { "" } else { ", code not counted" })
        };
        match (self.basis, &self.modelled) {
            (Basis::Model, Some(m)) => format!("{}; {record}", limit(m)),
            (Basis::Record, _) => record,
            _ => "ceiling".to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use reel_device::{PlannedLaunches, PlannedStage};

    use super::*;
    use crate::machine::MachineSpec;

    fn priced(record: &GpuRecord, name: &str, cost: Cost, planned: PlannedLaunches) -> Price {
        let machine = MachineSpec::gpu_by_name("h200").unwrap();
        let totals = OpTotals { launches: 1, cost, planned, ..OpTotals::default() };
        record.price(name, &totals, &machine.ceilings, DType::BF16)
    }

    fn h200(name: &str, cost: Cost) -> Price {
        priced(record_of_gpu("h200").unwrap(), name, cost, PlannedLaunches::default())
    }

    /// One launch of a grid that fills an H200, with this symbol.
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
            // The kernel's code has changed since it was recorded, so its price is that of its prototype.
            if k.prototype.is_none() && recorded.prototype.is_some() {
                continue;
            }
            let seconds = recorded.seconds * recorded.own_speed.unwrap_or(1.0);
            // The price of f32 kernels is that of a model in bf16, which uses the rate of bf16 products.
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
        assert_eq!((price.share(), price.origin()), (1.0, "ceiling".to_string()));
        assert!(record_of_gpu("a100").is_none());
    }

    #[test]
    fn a_product_is_priced_at_the_speed_of_its_prototypes() {
        let record = record_of_gpu("h200").unwrap();
        let k = record.kernels.iter().find(|k| k.kernel == "matmul_dx").unwrap();
        let price = h200("matmul_dx", Cost { flops: k.flops, bytes: k.bytes });
        assert!((k.seconds / price.seconds - 1.037).abs() < 1e-3, "{price:?}");
        assert!(price.origin().ends_with("of cuBLASLt, prototypes 1.037 times as fast"), "{}", price.origin());
    }

    #[test]
    fn a_similar_kernel_and_another_size_are_named() {
        let price = h200("skinny_qkv_f32", Cost { flops: 1e3, bytes: 1e6 });
        let text = price.origin();
        assert!(text.contains("of skinny_linear_f32, other size"), "{text}");
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
        assert_eq!(price(&unchanged, "swiglu_fwd_bf16").origin(), "record 0.23 of 2026-01-01");
        let changed = with(Some("0".to_string()));
        let by_model = price(&changed, "swiglu_fwd_bf16");
        assert_eq!(by_model.basis, Basis::Model);
        assert!(by_model.origin().ends_with("; record 0.23 of 2026-01-01, code changed since"), "{by_model:?}");
        assert_eq!(price(&changed, "no row").origin(), "record 0.23 of 2026-01-01, code changed since");
        let none = GpuRecord { kernels: Vec::new(), ..changed };
        assert_eq!(price(&none, "no row").origin(), "model (memory, code not counted); no record");
    }

    #[test]
    fn a_model_of_a_kernel_that_computes_does_not_undercut_the_record() {
        // 8192 tokens, as the record of 2026-11-20 has them, of other code.
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
        assert!(record.changed && model.is_counted(), "{price:?}");
        assert!(model.seconds < record.seconds, "{price:?}");
        assert_eq!((price.basis, price.seconds), (Basis::Record, record.seconds));
    }

    #[test]
    fn a_launch_takes_its_latency_and_the_share_of_the_nearest_size() {
        // Attention of a decode step: 28 query and 4 key heads of 128.
        let attention = |keys: f64| Cost { flops: 4.0 * 128.0 * 28.0 * keys, bytes: 2.0 * 4.0 * 128.0 * 2.0 * keys };
        let microseconds = |keys: f64| 1e6 * h200("paged_attention_fwd_bf16", attention(keys)).seconds;
        // The prototype has 1024 keys (9 us), 8 x 5120 (29), 64 x 2048 (74) and 64 x 4096 (142).
        for (keys, least, most) in
            [(8.0, 7.0, 9.0), (4096.0, 9.0, 12.0), (8192.0, 10.0, 16.0), (196_608.0, 90.0, 130.0)]
        {
            assert!((least..most).contains(&microseconds(keys)), "{keys} keys: {} us", microseconds(keys));
        }
        assert!(microseconds(65536.0) > microseconds(16384.0));
    }

    /// The streaming share that the model uses, and how far the model is from the record where the code is unchanged.
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
            // A launch of a few megabytes was measured together with the gap of events around it.
            if k.bytes > 5e7 {
                assert!((0.8..1.25).contains(&ratio), "{name}: {ratio}");
            }
            compared += 1;
        }
        assert!(compared >= 3, "{compared}");
    }
}
