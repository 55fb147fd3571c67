//! Predicts the time of launches on a GPU from one of three sources: the ceilings of the GPU; the share of these
//! ceilings that the same kernel reached when it was measured on that GPU (a record); a model of the kernel
//! ([`crate::measure::kernel_model`]).
//!
//! ```text
//! floor   = max(operations / arithmetic rate, bytes / bandwidth)          (ceilings.rs)
//! latency = measured seconds of the kernel's smallest recorded launch - its floor / best share
//! share   = floor of the recorded launch / (its measured seconds - latency)
//! record  = latency + floor of the planned launch / share
//! seconds = record   if the kernel's code is that of the record
//!           model    if the kernel's schedule of tiles is modelled, or if the code has changed or has no record and
//!                    its instructions were counted; but the record of the changed code if this is longer and
//!                    arithmetic is the bound of the floor, because a model without the schedule does not know
//!                    barriers and dependences
//!           record   if the code has changed and its instructions were not counted, because a model without these
//!                    counts says less than the time of similar code
//!           model    if there is neither a record nor a count
//!           floor    if the launches do not have a plan either
//! ```
//!
//! Only the first of these times is *measured* ([`crate::measure::predicted_time`]). No kernel of the project for
//! Hopper has been timed: their schedules are modelled with the times of prototypes. Products of bf16 matrices for
//! which the plan chooses cuBLASLt have the times of cuBLASLt in the record.
//!
//! If a kernel was recorded at several sizes, the nearest size is used, by the ratios of operations and bytes of one
//! launch. The latency is the part of a launch's time that does not shrink with its size. Example: attention of a
//! decode step takes 27 us with 2 MB of keys, 55 us with 84 MB and 206 us with 539 MB, so its latency is 27 us, and
//! its share of the ceilings is that of the last launch. The latency is 0 for a kernel with one recorded size, and at
//! most [`MAX_LATENCY`]. The best share is the largest `floor / seconds` of the kernel's records.
//!
//! The records are in `tools/benches/results`; `tools/benches/gpu/shares.py` makes the tables from them. If a launch
//! was measured both within a model and alone, the tables use the time within the model, because clocks and caches are
//! then those of real work.
//!
//! Until 2026-11-27 no decode step had been measured, and the model predicted half of its time, for two reasons. The
//! model does not know the latency of blocks that wait for each other (clusters) or that have too few bytes in flight
//! (12 % occupancy): the measured kernels reached 34 to 51 % of the memory bandwidth. The model also assumed the
//! bandwidth of copies for matrix products of few rows, but the measured products reached only 26 to 59 % of it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use reel_device::{Cost, DType, OpTotals};
use serde::Deserialize;

use crate::measure::catalogue::example_calls_with_folders;
use crate::measure::ceilings::{self, Ceilings};
use crate::measure::kernel_model::{ModelledGpu, ModelledTime};
use crate::measure::predicted_time::{PredictedTime, PredictionBasis, RecordedTime};

/// The GPUs with a record, by their short names, with the tables made from the records. The files are links into
/// `tools/benches/results`: a published crate consists of its own folder.
const RECORDS: [(&str, &str); 1] = [("h200", include_str!("../../data/h200/shares.json"))];

/// Two launches count as different in size if their operations or their bytes differ by more than this factor.
const SAME_SIZE: f64 = 4.0;

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
    /// [`code_hash`](reel_device::Source::code_hash) of the measured code, in hexadecimal; `None` for products of
    /// cuBLASLt.
    source: Option<String>,
    /// Day of the measurement, such as `2026-11-20`.
    date: String,
}

/// The record of the GPU with this short name, if `tools/benches/results` has one.
pub fn record_of_gpu(name: &str) -> Option<&'static GpuRecord> {
    static PARSED: OnceLock<BTreeMap<&str, GpuRecord>> = OnceLock::new();
    let parsed = PARSED.get_or_init(|| {
        let parse = |(name, shares)| (name, serde_json::from_str(shares).expect("the tables are part of the source"));
        RECORDS.into_iter().map(parse).collect()
    });
    parsed.get(name)
}

/// Names under which a record may hold an op, best first. The ops of matrix products have no dtype in their names.
/// The last name is that of a similar kernel, for an op that is newer than the record.
fn recorded_names(op: &str, dtype: DType) -> Vec<String> {
    let mut names = vec![op.to_string()];
    let similar = [
        ("gemm_swiglu", "matmul_fwd"),
        ("skinny_qkv", "skinny_linear"),
        ("rope_kv_write", "rope_apply"),
        ("rope_kv_write_norm", "rope_kv_write"),
    ];
    for (prefix, similar) in similar {
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
        let gpu = ModelledGpu::hopper(*ceilings, self.streaming_share(ceilings));
        let modelled = gpu.time_of_launches(&totals.planned, ceilings::uses_bf16_rate(name, dtype));
        let has_schedule = modelled.as_ref().is_some_and(ModelledTime::has_schedule);
        let mut recorded = self.recorded(name, totals, ceilings, dtype);
        if name.starts_with("matmul") && has_schedule {
            recorded.iter_mut().for_each(|r| r.similar = Some("cuBLASLt".to_string()));
        }
        let is_arithmetic = totals.cost.flops / ceilings.flops_per_second(name, dtype) >= floor_seconds;
        let is_counted = modelled.as_ref().is_some_and(ModelledTime::has_instruction_counts);
        let (basis, seconds) = match (&recorded, &modelled) {
            (Some(r), _) if r.is_of_this_kernel() => (PredictionBasis::Record, r.seconds),
            (_, Some(m)) if has_schedule => (PredictionBasis::Model, m.seconds),
            (Some(r), Some(m)) if is_counted && is_arithmetic && r.seconds > m.seconds => {
                (PredictionBasis::Record, r.seconds)
            }
            (_, Some(m)) if is_counted => (PredictionBasis::Model, m.seconds),
            (Some(r), _) => (PredictionBasis::Record, r.seconds),
            (None, Some(m)) => (PredictionBasis::Model, m.seconds),
            (None, None) => (PredictionBasis::Ceiling, floor_seconds),
        };
        // The plan chooses cuBLASLt for these products, and only for these.
        let of_library = match basis {
            PredictionBasis::Model if has_schedule => self.library_seconds(name, totals, ceilings, dtype),
            _ => 0.0,
        };
        let mut price = PredictedTime { seconds, basis, shares: [0.0; 4], floor_seconds, recorded, modelled };
        price.shares = price.shares_with_library(of_library);
        price.seconds += of_library;
        price
    }

    /// The recorded seconds of the launches in `totals` that have no plan: matrix products of a library.
    fn library_seconds(&self, name: &str, totals: &OpTotals, ceilings: &Ceilings, dtype: DType) -> f64 {
        let launches = totals.launches.saturating_sub(totals.planned.count());
        if launches == 0 {
            return 0.0;
        }
        let planned = totals.planned.groups().map(|(.., cost)| cost);
        let rest = planned
            .fold(totals.cost, |rest, own| Cost { flops: rest.flops - own.flops, bytes: rest.bytes - own.bytes });
        let recorded = self.recorded_of_equal_launches(name, (launches, rest), ceilings, dtype);
        recorded.map_or(ceilings.roofline_seconds(name, rest, dtype), |r| r.seconds)
    }

    /// Predicts the time of the launches in `totals` from the kernel's latency and the share of the ceilings that its
    /// most similar recorded launches reached. If the plans of the launches are known, each group of equal launches is
    /// predicted on its own; otherwise the mean launch is predicted. The result's time is the sum over the groups; its
    /// other fields are those of the group that takes longest.
    fn recorded(&self, name: &str, totals: &OpTotals, ceilings: &Ceilings, dtype: DType) -> Option<RecordedTime> {
        let mut groups: Vec<(u64, Cost)> = totals.planned.groups().map(|(_, count, cost)| (count, cost)).collect();
        if totals.planned.count() != totals.launches {
            groups = vec![(totals.launches.max(1), totals.cost)];
        }
        let of_groups = groups.into_iter().map(|g| self.recorded_of_equal_launches(name, g, ceilings, dtype));
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
    ) -> Option<RecordedTime> {
        let launches = count as f64;
        let of_one = Cost { flops: cost.flops / launches, bytes: cost.bytes / launches };
        let recorded = self.nearest(name, of_one, dtype)?;
        let RecordedKernel { kernel, size, flops, bytes, .. } = recorded;
        let (floor, latency) = (recorded.floor_seconds(ceilings), self.latency_seconds(recorded, ceilings));
        let planned_floor = ceilings.roofline_seconds(name, cost, dtype);
        let is_own_name = kernel == name || name.starts_with("matmul") || name == "sum_squares";
        Some(RecordedTime {
            seconds: launches * latency + (recorded.seconds - latency) * planned_floor / floor,
            share: floor / recorded.seconds,
            date: recorded.date.clone(),
            similar: (!is_own_name).then(|| kernel.clone()),
            size: size.clone(),
            other_size: distance(of_one, Cost { flops: *flops, bytes: *bytes }).1 > SAME_SIZE.ln(),
            changed: recorded.source.is_some() && code_hash_of_kernel(name) != recorded.source,
        })
    }

    /// The latency, in seconds, of a recorded kernel: the part of a launch's time that does not shrink with its size.
    /// It is the time of the kernel's smallest recorded launch, less the time that this launch would take at the best
    /// share.
    fn latency_seconds(&self, of: &RecordedKernel, ceilings: &Ceilings) -> f64 {
        let launches = || self.kernels.iter().filter(|k| k.kernel == of.kernel);
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
    /// has.
    fn nearest(&self, name: &str, cost: Cost, dtype: DType) -> Option<&RecordedKernel> {
        let from = |k: &RecordedKernel| distance(cost, Cost { flops: k.flops, bytes: k.bytes });
        let nearest_of = |name: String| {
            self.kernels.iter().filter(|k| k.kernel == name).min_by(|a, b| from(a).0.total_cmp(&from(b).0))
        };
        recorded_names(name, dtype).into_iter().find_map(nearest_of)
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

#[cfg(test)]
mod tests {
    use reel_device::{PlannedLaunches, PlannedStage};

    use super::*;
    use crate::measure::kernel_model::rank_correlation;
    use crate::measure::machine::MachineSpec;
    use crate::measure::predicted_time::TimeSource;

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
        let (blocks, sizes) = (132 * 64, Vec::new());
        let stage = PlannedStage { symbol, blocks, cluster: 1, threads: 256, shared: 0, programmatic: true, sizes };
        all.add(&[stage], cost, 1);
        all
    }

    #[test]
    fn a_recorded_launch_has_the_time_that_was_measured() {
        for k in &record_of_gpu("h200").unwrap().kernels {
            let name = k.kernel.strip_suffix("_bf16").filter(|k| k.starts_with("matmul")).unwrap_or(&k.kernel);
            let recorded = h200(name, Cost { flops: k.flops, bytes: k.bytes }).recorded.unwrap();
            // The times of f32 kernels are not compared, because these predictions are for a bf16 model, with the
            // rate of bf16 products.
            if k.dtype == "bf16" {
                assert!((recorded.seconds / k.seconds - 1.0).abs() < 0.1, "{name}: {recorded:?}");
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

    /// A launch of one product of 8192 rows by the kernel whose tile the plan chooses.
    fn own_product(symbol: &'static str, [m, n, k]: [u64; 3]) -> (Cost, PlannedLaunches) {
        let [rows, columns, depth] = [m, n, k].map(|size| size as f64);
        let bytes = 2.0 * (rows * depth + columns * depth + rows * columns);
        let cost = Cost { flops: 2.0 * rows * columns * depth, bytes };
        let sizes = vec![("m", m), ("n", n), ("k", k)];
        let stage =
            PlannedStage { symbol, blocks: 132, cluster: 1, threads: 384, shared: 0, programmatic: false, sizes };
        let mut all = PlannedLaunches::default();
        all.add(&[stage], cost, 1);
        (cost, all)
    }

    /// A product by a kernel of the project is never called measured, because the record has the times of cuBLASLt;
    /// the share of a product that cuBLASLt computes is.
    #[test]
    fn only_products_of_the_library_are_measured() {
        let record = record_of_gpu("h200").unwrap();
        let (cost, planned) = own_product("gemm_fwd_bf16_128x256", [8192, 3584, 3584]);
        let price = priced(record, "matmul_fwd", cost, planned.clone());
        assert_eq!((price.source(), price.shares), (TimeSource::Prototype, [0.0, 1.0, 0.0, 0.0]), "{price:?}");
        assert!(price.basis_text().contains("of cuBLASLt"), "{}", price.basis_text());
        let (other, of_another_size) = own_product("gemm_fwd_bf16_128x256", [4096, 3584, 3584]);
        assert_eq!(priced(record, "matmul_fwd", other, of_another_size).source(), TimeSource::Model);
        let machine = MachineSpec::gpu_by_name("h200").unwrap();
        let both = Cost { flops: 2.0 * cost.flops, bytes: 2.0 * cost.bytes };
        let totals = OpTotals { launches: 2, cost: both, planned, ..OpTotals::default() };
        let two = record.predict_time("matmul_fwd", &totals, &machine.ceilings, DType::BF16);
        assert!(two.shares[0] > 0.4 && two.shares[1] > 0.4 && two.seconds > 1.5 * price.seconds, "{two:?}");
        assert_eq!(h200("matmul_fwd", cost).source(), TimeSource::Measured);
    }

    /// The times of whole models of 2026-11-27 by the record, from the launches, operations and bytes of their ops.
    /// Decode steps were measured with two kernels for products of few rows, and the record has the faster one for each
    /// batch. The rollout of 3B, which is not in the record, ran with the slower one only, so the record is low for it.
    #[test]
    fn the_record_predicts_the_measured_models() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/h200/2026-11-27-models.json");
        let measured: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let (record, machine) = (record_of_gpu("h200").unwrap(), MachineSpec::gpu_by_name("h200").unwrap());
        let mut pairs = Vec::new();
        for model in measured["models"].as_array().unwrap() {
            let seconds_of = |op: &serde_json::Value| {
                let cost = Cost { flops: op["flops"].as_f64().unwrap(), bytes: op["bytes"].as_f64().unwrap() };
                let totals = OpTotals { launches: op["launches"].as_u64().unwrap(), cost, ..OpTotals::default() };
                let price = record.predict_time(op["op"].as_str().unwrap(), &totals, &machine.ceilings, DType::BF16);
                price.recorded.map_or(price.floor_seconds, |r| r.seconds)
            };
            let predicted: f64 = model["ops"].as_array().unwrap().iter().map(seconds_of).sum();
            let alike = ["models", "models_by_blocks_of_columns"].map(|list| measured[list].as_array().unwrap());
            let alike = alike.into_iter().flatten();
            let alike = alike.filter(|m| ["op", "model", "batch"].iter().all(|key| m[key] == model[key]));
            let seconds = alike.map(|m| m["seconds"].as_f64().unwrap()).fold(f64::INFINITY, f64::min);
            println!(
                "{:7.1} ms by the record {:7.1} measured {:+6.1} %  {} {} batch {}",
                1e3 * predicted,
                1e3 * seconds,
                100.0 * (predicted / seconds - 1.0),
                model["model"],
                model["op"],
                model["batch"]
            );
            pairs.push([predicted, seconds]);
        }
        let near = pairs.iter().filter(|[a, b]| (a / b - 1.0).abs() <= 0.15).count();
        let correlation = rank_correlation(&pairs, 0.0);
        println!("models: rank correlation {correlation:.3}, {near} of {} within 15 %", pairs.len());
        assert!(correlation >= 0.9 && 5 * near >= 4 * pairs.len(), "{correlation}, {near}");
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
            kernels: vec![RecordedKernel {
                kernel: "swiglu_fwd_bf16".to_string(),
                size: "s".to_string(),
                dtype: "bf16".to_string(),
                flops: 0.0,
                bytes: 1e9,
                seconds: 1e-3,
                source,
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
            date: "2026-11-20".to_string(),
        };
        let record = GpuRecord { records: Vec::new(), kernels: vec![k] };
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
        // The kernel of 2026-11-27 was recorded with 1024 keys (27 us), 8 x 5120 (55 us) and 64 x 4096 (206 us).
        for (keys, least, most) in [(8.0, 24.0, 28.0), (40_960.0, 50.0, 60.0), (196_608.0, 140.0, 190.0)] {
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
