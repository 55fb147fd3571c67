//! What a machine allows: the rates that measured times and plans are divided by.

use std::collections::BTreeMap;

use anyhow::Result;
use reel_kernels::elementwise::{self, CopyParams};
use reel_kernels::matmul::{Matmul, Operand};
use reel_kernels::{Addr, Cost, DType, Launch, Team, limits};
use reel_runtime::{Category, Device, OpTotals, Tensor};
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

/// How kernels that multiply matrices are called: bf16 ones may reach the rate of bf16 products.
const PRODUCTS: [&str; 7] =
    ["matmul", "attention", "paged_attention", "pool_attention", "linear_log_prob", "skinny", "patch_embedding"];

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
    /// Measures where a model computes; a quarter of a second or so.
    pub fn of(device: &Device) -> Result<Self> {
        if device.name() == "cuda" { Self::of_gpu(device) } else { Ok(Self::of_processor(device.threads())) }
    }

    /// Measures a GPU: the best of several large copies and products. The products' operands are random, since zeros draw less power
    /// and so run at a higher clock.
    fn of_gpu(device: &Device) -> Result<Self> {
        const COPY: usize = 1 << 30;
        const ROUNDS: usize = 10;
        let best = |launch: &Launch| -> Result<f64> {
            let times = (0..ROUNDS).map(|_| Ok(device.time(launch)?)).collect::<Result<Vec<f64>>>()?;
            Ok(times.into_iter().fold(f64::INFINITY, f64::min))
        };
        let bytes = {
            let (from, to) = (device.alloc(COPY, Category::Workspace)?, device.alloc(COPY, Category::Workspace)?);
            let params = CopyParams { src: Addr(from.addr()), dst: Addr(to.addr()), bytes: COPY as u64 };
            2.0 * COPY as f64 / best(&elementwise::copy(&params))?
        };
        let product = |dtype: DType, side: usize| -> Result<f64> {
            let numbers: Vec<f32> = (0..side * side).map(|i| noise(i as u64)).collect();
            let side_by_side = [side, side];
            let a = Tensor::from_f32(device, &side_by_side, dtype, &numbers, Category::Workspace)?;
            let c = Tensor::empty(device, &side_by_side, dtype, Category::Workspace)?;
            let operand = Operand { addr: a.addr(), dtype, transposed: false };
            let (m, n, k) = (side, side, side);
            let launch = Matmul {
                m,
                n,
                k,
                a: operand,
                b: operand,
                c: c.addr(),
                c_dtype: dtype,
                bias: Addr::NULL,
                accumulate: false,
                scale: 1.0,
            };
            Ok(launch.cost().flops / best(&Launch::Matmul(launch))?)
        };
        Ok(Self { f32: product(DType::F32, 4096)?, bf16: product(DType::BF16, 8192)?, bytes })
    }

    /// Measures this processor.
    pub fn of_processor(threads: usize) -> Self {
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
        self.least(name, totals.cost, dtype)
    }

    /// The least seconds that this much work of a kernel takes.
    pub fn least(&self, name: &str, cost: Cost, dtype: DType) -> f64 {
        let products = PRODUCTS.iter().any(|p| name.starts_with(p));
        let rate = if products && dtype == DType::BF16 { self.bf16 } else { self.f32 };
        (cost.flops / rate).max(cost.bytes / self.bytes)
    }
}

/// Numbers from -1 to 1 without a pattern: splitmix64's mixing, by Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators".
pub fn noise(i: u64) -> f32 {
    let z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 40) as f32 / (1 << 23) as f32 - 1.0
}
