//! What a machine allows: the rates that measured times and plans are divided by.

use std::collections::BTreeMap;

use reel_kernels::{DType, Team, limits};
use reel_runtime::OpTotals;
use serde::Serialize;

/// A machine's rates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// Operations a second of f32 products.
    pub f32: f64,
    /// Operations a second of bf16 products.
    pub bf16: f64,
    /// Bytes a second from memory.
    pub bytes: f64,
}

/// The least that some work takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Floor {
    /// Seconds.
    pub seconds: f64,
    /// Operations.
    pub flops: f64,
    /// Bytes.
    pub bytes: f64,
}

impl Ceilings {
    /// Measures this processor; a quarter of a second or so.
    pub fn measure(threads: usize) -> Self {
        let team = Team::new(threads);
        Self {
            f32: limits::operations_per_second(DType::F32, &team),
            bf16: limits::operations_per_second(DType::BF16, &team),
            bytes: limits::bytes_per_second(&team),
        }
    }

    /// The floor of launches: for each kernel the larger of its arithmetic and its traffic. `dtype` is that of activations.
    pub fn floor(&self, totals: &BTreeMap<&'static str, OpTotals>, dtype: DType) -> Floor {
        totals.iter().fold(Floor::default(), |sum, (name, t)| Floor {
            seconds: sum.seconds + self.seconds(name, t, dtype),
            flops: sum.flops + t.cost.flops,
            bytes: sum.bytes + t.cost.bytes,
        })
    }

    /// The floor of one kernel's launches.
    pub fn seconds(&self, name: &str, totals: &OpTotals, dtype: DType) -> f64 {
        let products =
            name.starts_with("matmul") || name.starts_with("attention") || name.starts_with("paged_attention");
        let rate = if products && dtype == DType::BF16 { self.bf16 } else { self.f32 };
        (totals.cost.flops / rate).max(totals.cost.bytes / self.bytes)
    }
}
