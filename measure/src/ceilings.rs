//! Ceilings of a machine: the highest rates of arithmetic and memory traffic, measured. The least time of a kernel (its
//! floor) follows from them by the roofline model: the larger of operations over arithmetic rate and bytes over
//! bandwidth.

use std::collections::BTreeMap;

use reel_kernels::elementwise::{self, CopyParams};
use reel_kernels::matmul::{Matmul, Operand};
use reel_kernels::{Addr, Cost, DType, Launch, Team, limits};
use reel_runtime::{Category, Device, OpTotals, Tensor};
use serde::Serialize;

use crate::Result;

/// The highest rates of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// Operations per second of f32 matrix products.
    pub f32: f64,
    /// Operations per second of bf16 matrix products.
    pub bf16: f64,
    /// Memory bandwidth in bytes per second, reads and writes.
    pub bytes: f64,
}

/// Name prefixes of the kernels that multiply matrices: in bf16 they may reach the rate of bf16 products, the others
/// that of f32.
const MATRIX_KERNELS: [&str; 7] =
    ["matmul", "attention", "paged_attention", "pool_attention", "linear_log_prob", "skinny", "patch_embedding"];

/// The least time of some work, with its operations and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WorkFloor {
    /// Least time in seconds.
    pub seconds: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

impl Ceilings {
    /// Measures the ceilings of a device; takes about 0.25 s.
    ///
    /// # Errors
    /// The GPU has no memory for the operands, or a launch fails.
    pub fn measure(device: &Device) -> Result<Self> {
        // Only a GPU is asynchronous; copies and products are timed by its own clock.
        if device.is_async() { Self::measure_gpu(device) } else { Ok(Self::measure_cpu(device.threads())) }
    }

    /// Measures a GPU: the best of several large copies and matrix products. The operands are random: zeros would draw
    /// less power and run at a higher clock.
    fn measure_gpu(device: &Device) -> Result<Self> {
        const COPY: usize = 1 << 30;
        const ROUNDS: usize = 10;
        let best = |launch: &Launch| -> Result<f64> {
            let times = (0..ROUNDS).map(|_| Ok(device.time_launch(launch)?)).collect::<Result<Vec<f64>>>()?;
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

    /// Measures this CPU with a number of threads.
    pub fn measure_cpu(threads: usize) -> Self {
        let team = Team::new(threads);
        Self {
            f32: limits::operations_per_second(DType::F32, &team),
            bf16: limits::operations_per_second(DType::BF16, &team),
            bytes: limits::bytes_per_second(&team),
        }
    }

    /// The floor of all launches of a profile, summed over the kernels. `dtype` is the dtype of activations.
    pub fn floor(&self, totals: &BTreeMap<&'static str, OpTotals>, dtype: DType) -> WorkFloor {
        totals.iter().fold(WorkFloor::default(), |sum, (name, t)| WorkFloor {
            seconds: sum.seconds + self.floor_of_launches(name, t, dtype),
            flops: sum.flops + t.cost.flops,
            bytes: sum.bytes + t.cost.bytes,
        })
    }

    /// The least seconds of the launches of one kernel.
    pub fn floor_of_launches(&self, name: &str, totals: &OpTotals, dtype: DType) -> f64 {
        self.floor_seconds(name, totals.cost, dtype)
    }

    /// The least seconds of a kernel that does this much work; `dtype` is the dtype of activations.
    pub fn floor_seconds(&self, name: &str, cost: Cost, dtype: DType) -> f64 {
        let products = MATRIX_KERNELS.iter().any(|p| name.starts_with(p));
        let rate = if products && dtype == DType::BF16 { self.bf16 } else { self.f32 };
        (cost.flops / rate).max(cost.bytes / self.bytes)
    }
}

/// Pseudorandom numbers from -1 to 1: splitmix64's mixing, by Steele, Lea and Flood, "Fast splittable pseudorandom
/// number generators".
pub fn noise(i: u64) -> f32 {
    let z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 40) as f32 / (1 << 23) as f32 - 1.0
}
