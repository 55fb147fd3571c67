//! Predicts the time of launches on a GPU: by the share of the ceilings that the same kernel reached in a record of
//! that GPU, or by the ceilings alone.
//!
//! ```text
//! floor = max(operations / arithmetic rate, bytes / bandwidth)          (ceilings.rs)
//! share = floor of the recorded launch / its measured seconds           (1 without a record)
//! seconds = floor of the planned launch / share
//! ```
//!
//! Of several recorded sizes of a kernel the nearest one counts, by the ratios of operations and bytes of one launch.
//! The records are in `benches/results`; `benches/gpu/shares.py` makes the tables from them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

use reel_kernels::{Cost, DType};
use reel_runtime::OpTotals;
use serde::Deserialize;

use crate::catalogue::example_calls_with_folders;
use crate::ceilings::Ceilings;

/// The GPUs with a record, by their short names, and the tables made from the records.
const RECORDS: [(&str, &str); 1] = [("h200", include_str!("../../benches/results/h200/shares.json"))];

/// The sizes of two launches differ if the operations or bytes of one are more than this many times the other's.
const SAME_SIZE: f64 = 4.0;

/// The measured times of kernels on one GPU.
#[derive(Debug, Deserialize)]
pub struct GpuRecord {
    /// File name of the record.
    pub record: String,
    /// Day of the measurements: `2026-11-20`.
    pub date: String,
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
    /// [`code_hash`](reel_kernels::Source::code_hash) of the measured code, in hexadecimal; `None` for products.
    source: Option<String>,
}

/// The predicted time of all launches of an op.
#[derive(Clone, Debug)]
pub struct Price {
    /// Predicted time in seconds.
    pub seconds: f64,
    /// Least time in seconds by the ceilings.
    pub floor_seconds: f64,
    /// Share of the ceilings that the prediction assumes: `floor_seconds / seconds`.
    pub share: f64,
    /// Where the share comes from.
    pub origin: Origin,
}

/// Where the share of a [`Price`] comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// No record has the kernel: the time is the least that the ceilings allow.
    Ceiling,
    /// A record of this GPU has the kernel.
    Measured {
        /// Share of the ceilings that the recorded launch reached.
        share: f64,
        /// Day of the record.
        date: String,
        /// The recorded kernel, if it is not the op itself but a similar one.
        similar: Option<String>,
        /// Size of the recorded launch.
        size: String,
        /// Whether that size differs from the planned one by more than a factor of [`SAME_SIZE`].
        other_size: bool,
        /// Whether the CUDA code of the op's folder is not that of the record.
        changed: bool,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Origin::Measured { share, date, similar, other_size, changed, .. } = self else {
            return f.write_str("ceiling");
        };
        write!(f, "measured {share:.2} (record {date}")?;
        if let Some(kernel) = similar {
            write!(f, " of {kernel}")?;
        }
        if *other_size {
            f.write_str(", other size")?;
        }
        if *changed {
            f.write_str(", code changed since")?;
        }
        f.write_str(")")
    }
}

/// The record of the GPU with this short name, if `benches/results` has one.
pub fn record_of_gpu(name: &str) -> Option<&'static GpuRecord> {
    static PARSED: OnceLock<BTreeMap<&str, GpuRecord>> = OnceLock::new();
    let parsed = PARSED.get_or_init(|| {
        let parse = |text| serde_json::from_str(text).expect("the tables are part of the source");
        RECORDS.into_iter().map(|(name, text)| (name, parse(text))).collect()
    });
    parsed.get(name)
}

/// Names under which a record may have an op, the best first. The ops of matrix products have no dtype in their names.
/// The last name is that of a similar kernel, for ops that were written after a record.
fn recorded_names(op: &str, dtype: DType) -> Vec<String> {
    let mut names = vec![op.to_string()];
    for (prefix, similar) in [("skinny_joined", "skinny_linear"), ("rope_kv_write", "rope_apply")] {
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

impl GpuRecord {
    /// Predicts the time of all launches of the op `name` together. `ceilings` are those of this GPU; `dtype` is the
    /// dtype of activations.
    pub fn price(&self, name: &str, totals: &OpTotals, ceilings: &Ceilings, dtype: DType) -> Price {
        let launches = totals.launches.max(1) as f64;
        let floor_seconds = ceilings.roofline_seconds_of_launches(name, totals, dtype);
        let of_one = Cost { flops: totals.cost.flops / launches, bytes: totals.cost.bytes / launches };
        let Some(recorded) = self.nearest(name, of_one, dtype) else { return Price::by_ceilings(floor_seconds) };
        let RecordedKernel { kernel, size, flops, bytes, .. } = recorded;
        let recorded_dtype = if recorded.dtype == "bf16" { DType::BF16 } else { DType::F32 };
        let recorded_cost = Cost { flops: *flops, bytes: *bytes };
        let share = ceilings.roofline_seconds(kernel, recorded_cost, recorded_dtype) / recorded.seconds;
        let is_own_name = kernel == name || name.starts_with("matmul") || name == "sum_squares";
        let origin = Origin::Measured {
            share,
            date: self.date.clone(),
            similar: (!is_own_name).then(|| kernel.clone()),
            size: size.clone(),
            other_size: distance(of_one, recorded_cost).1 > SAME_SIZE.ln(),
            changed: recorded.source.is_some() && code_hash_of_kernel(name) != recorded.source,
        };
        Price { seconds: floor_seconds / share, floor_seconds, share, origin }
    }

    /// The recorded launch whose size is nearest to `cost`, of the first of [`recorded_names`] that the record has.
    fn nearest(&self, name: &str, cost: Cost, dtype: DType) -> Option<&RecordedKernel> {
        let launches_of = |name: String| {
            let of_name = self.kernels.iter().filter(move |k| k.kernel == name);
            of_name.min_by(|a, b| {
                let from = |k: &RecordedKernel| distance(cost, Cost { flops: k.flops, bytes: k.bytes }).0;
                from(a).total_cmp(&from(b))
            })
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

impl Price {
    /// The price of an op that no record has.
    pub fn by_ceilings(floor_seconds: f64) -> Price {
        Price { seconds: floor_seconds, floor_seconds, share: 1.0, origin: Origin::Ceiling }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::MachineSpec;

    fn h200(name: &str, cost: Cost, launches: u64) -> Price {
        let machine = MachineSpec::gpu_by_name("h200").unwrap();
        let cost = Cost { flops: cost.flops * launches as f64, bytes: cost.bytes * launches as f64 };
        let totals = OpTotals { launches, cost, ..OpTotals::default() };
        record_of_gpu("h200").unwrap().price(name, &totals, &machine.ceilings, DType::BF16)
    }

    #[test]
    fn a_recorded_launch_has_the_price_that_was_measured() {
        for k in &record_of_gpu("h200").unwrap().kernels {
            let name = k.kernel.strip_suffix("_bf16").filter(|k| k.starts_with("matmul")).unwrap_or(&k.kernel);
            let price = h200(name, Cost { flops: k.flops, bytes: k.bytes }, 3);
            // The price of f32 kernels is that of a model in bf16, which uses the rate of bf16 products.
            if k.dtype == "bf16" {
                assert!((price.seconds / (3.0 * k.seconds) - 1.0).abs() < 0.1, "{name}: {price:?}");
            }
            assert!(matches!(price.origin, Origin::Measured { other_size: false, .. }), "{name}: {price:?}");
        }
    }

    #[test]
    fn an_op_without_a_record_has_the_price_of_the_ceilings() {
        let price = h200("advance", Cost { flops: 0.0, bytes: 4.32e12 }, 1);
        assert!((price.seconds - 1.0).abs() < 1e-12, "{price:?}");
        assert_eq!((price.share, price.origin.to_string()), (1.0, "ceiling".to_string()));
        assert!(record_of_gpu("a100").is_none());
    }

    #[test]
    fn a_similar_kernel_and_another_size_are_named() {
        let price = h200("skinny_joined_bf16", Cost { flops: 1e3, bytes: 1e6 }, 1);
        let text = price.origin.to_string();
        assert!(text.contains("of skinny_linear_bf16, other size"), "{text}");
        assert!((0.3..0.7).contains(&price.share) && price.seconds > price.floor_seconds, "{price:?}");
    }

    #[test]
    fn code_that_changed_since_the_record_is_named() {
        let text = h200("attention_bwd_bf16", Cost { flops: 1e12, bytes: 2.6e8 }, 1).origin.to_string();
        assert!(text.ends_with("code changed since)"), "{text}");
        let unchanged = GpuRecord {
            record: "r".to_string(),
            date: "2026-01-01".to_string(),
            kernels: vec![RecordedKernel {
                kernel: "swiglu_fwd_bf16".to_string(),
                size: "s".to_string(),
                dtype: "bf16".to_string(),
                flops: 0.0,
                bytes: 1e9,
                seconds: 1e-3,
                source: code_hash_of_kernel("swiglu_fwd_bf16"),
            }],
        };
        let machine = MachineSpec::gpu_by_name("h200").unwrap();
        let totals = OpTotals { launches: 1, cost: Cost { flops: 0.0, bytes: 1e9 }, ..OpTotals::default() };
        let price = unchanged.price("swiglu_fwd_bf16", &totals, &machine.ceilings, DType::BF16);
        assert_eq!(price.origin.to_string(), "measured 0.23 (record 2026-01-01)");
    }
}
