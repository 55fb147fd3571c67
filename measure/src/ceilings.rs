//! Measures the ceilings of a machine: its highest rates of arithmetic and memory traffic. By the roofline model, the
//! least time of a kernel (its floor) is the larger of operations over arithmetic rate and bytes over bandwidth.

use std::collections::BTreeMap;

use reel_kernels::elementwise::{self, CopyParams};
use reel_kernels::matmul::{Matmul, Operand};
use reel_kernels::{Addr, Cost, DType, Launch, Team, limits};
use reel_runtime::{Device, MemoryCategory, OpTotals, Tensor};
use serde::Serialize;

use crate::Result;

/// The highest measured or published rates of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// Operations per second of f32 matrix products.
    pub f32: f64,
    /// Operations per second of bf16 matrix products.
    pub bf16: f64,
    /// Memory bandwidth in bytes per second, reads and writes.
    pub bytes: f64,
}

/// Name prefixes of the kernels that multiply matrices. Their least time in bf16 uses the rate of bf16 products; that
/// of every other kernel uses the rate of f32 products.
const MATRIX_KERNELS: [&str; 7] =
    ["matmul", "attention", "paged_attention", "pool_attention", "linear_log_prob", "skinny", "patch_embedding"];

/// The least time that some launches need on a machine, and the operations and bytes from which it is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RooflineFloor {
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
        // A device is asynchronous only if it is a GPU, whose own clock times copies and products.
        if device.is_async() { Self::measure_gpu(device) } else { Ok(Self::measure_cpu(device.threads())) }
    }

    /// Measures a GPU: the best of several large copies and matrix products. The operands are random, because zeros
    /// would draw less power and run at a higher clock.
    fn measure_gpu(device: &Device) -> Result<Self> {
        const COPY: usize = 1 << 30;
        const ROUNDS: usize = 10;
        let best = |launch: &Launch| -> Result<f64> {
            let times = (0..ROUNDS).map(|_| Ok(device.time_launch(launch)?)).collect::<Result<Vec<f64>>>()?;
            Ok(times.into_iter().fold(f64::INFINITY, f64::min))
        };
        let bytes = {
            let (from, to) =
                (device.alloc(COPY, MemoryCategory::Workspace)?, device.alloc(COPY, MemoryCategory::Workspace)?);
            let params = CopyParams { src: Addr(from.addr()), dst: Addr(to.addr()), bytes: COPY as u64 };
            2.0 * COPY as f64 / best(&elementwise::copy(&params))?
        };
        let product = |dtype: DType, side: usize| -> Result<f64> {
            let numbers: Vec<f32> = (0..side * side).map(|i| pseudorandom_number(i as u64)).collect();
            let side_by_side = [side, side];
            let a = Tensor::from_f32(device, &side_by_side, dtype, &numbers, MemoryCategory::Workspace)?;
            let c = Tensor::empty(device, &side_by_side, dtype, MemoryCategory::Workspace)?;
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

    /// Measures the CPU of this machine with this number of threads.
    pub fn measure_cpu(threads: usize) -> Self {
        let team = Team::new(threads);
        Self {
            f32: limits::operations_per_second(DType::F32, &team),
            bf16: limits::operations_per_second(DType::BF16, &team),
            bytes: limits::bytes_per_second(&team),
        }
    }

    /// The least time, the operations and the bytes of all launches in a profile, added up. `dtype` is the dtype of
    /// activations.
    pub fn roofline_floor_of_profile(&self, totals: &BTreeMap<&'static str, OpTotals>, dtype: DType) -> RooflineFloor {
        totals.iter().fold(RooflineFloor::default(), |sum, (name, t)| RooflineFloor {
            seconds: sum.seconds + self.roofline_seconds_of_launches(name, t, dtype),
            flops: sum.flops + t.cost.flops,
            bytes: sum.bytes + t.cost.bytes,
        })
    }

    /// The least time, in seconds, of all launches of the kernel `name` together. `dtype` is the dtype of
    /// activations.
    pub fn roofline_seconds_of_launches(&self, name: &str, totals: &OpTotals, dtype: DType) -> f64 {
        self.roofline_seconds(name, totals.cost, dtype)
    }

    /// The least time, in seconds, in which the kernel `name` can do these operations and move these bytes. `dtype`
    /// is the dtype of activations.
    pub fn roofline_seconds(&self, name: &str, cost: Cost, dtype: DType) -> f64 {
        let products = MATRIX_KERNELS.iter().any(|p| name.starts_with(p));
        let rate = if products && dtype == DType::BF16 { self.bf16 } else { self.f32 };
        (cost.flops / rate).max(cost.bytes / self.bytes)
    }
}

/// The `i`-th pseudorandom_number number, from -1 to 1. Source: splitmix64, Steele, Lea and Flood, "Fast splittable
/// pseudorandom_number number generators".
pub fn pseudorandom_number(i: u64) -> f32 {
    let z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 40) as f32 / (1 << 23) as f32 - 1.0
}
