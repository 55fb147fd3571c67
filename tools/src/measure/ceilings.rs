//! Measures the ceilings of a machine: its highest rates of arithmetic and memory traffic. By the roofline model, the
//! least time of a kernel (its floor) is the larger of operations over arithmetic rate and bytes over bandwidth.
//!
//! Bytes that fit into the caches may still be there from the previous launch, so they count at the bandwidth of the
//! caches. The weights of a model that is larger than the caches count at the bandwidth of memory: between two reads of
//! a weight, all other weights are read ([`OperandReads`]).
//!
//! ```text
//! bytes from memory = max(bytes - capacity, bytes of weights that the caches cannot have kept, 0)
//! seconds of bytes = the other bytes / bandwidth of the caches + bytes from memory / bandwidth of memory
//! ```
//!
//! No launch reaches more than 100 % of a ceiling: a launch that is faster than the measured ceilings allow raises the
//! ceilings ([`Ceilings::raised_to_measured_launches`]), because they were measured too low. The ceilings of a GPU
//! never exceed its data sheet: if a launch seems faster than the data sheet allows, its operations or bytes are
//! counted wrong ([`crate::measure::machine::PublishedLimits`]).

use std::collections::BTreeMap;

use reel_device::launch::Operand;
use reel_device::{Addr, Cost, DType, Device, Launch, LaunchEvent, MemoryCategory, OpTotals, OperandReads, Team};
use reel_kernels::elementwise::{self, CopyParams};
use reel_kernels::limits;
use reel_kernels::matmul::plain_product;
use reel_runtime::Tensor;
use serde::Serialize;

use crate::error::Result;
use crate::measure::cache::{CacheCeiling, bytes_beyond_caches, measure_caches};

/// The highest measured or published rates of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// Operations per second of f32 matrix products.
    pub f32: f64,
    /// Operations per second of bf16 matrix products.
    pub bf16: f64,
    /// Memory bandwidth in bytes per second, reads and writes.
    pub bytes: f64,
    /// Capacity and bandwidth of the caches; `None` if every byte counts as read from memory.
    pub cache: Option<CacheCeiling>,
}

/// The number of cores that this process may use.
pub(crate) fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Name prefixes of the kernels that multiply matrices. In bf16, their least time uses the rate of bf16 products. The
/// least time of every other kernel uses the rate of f32 products.
const MATRIX_KERNELS: [&str; 8] = [
    "matmul",
    "gemm",
    "attention",
    "paged_attention",
    "pool_attention",
    "linear_log_prob",
    "skinny",
    "patch_embedding",
];

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
    /// Measures the ceilings of a device; takes about 0.25 s. The ceilings of a CPU are measured on all of its cores,
    /// even if the device uses fewer threads.
    ///
    /// # Errors
    /// The GPU has no memory for the operands, or a launch fails.
    pub fn measure(device: &Device) -> Result<Self> {
        // Only a GPU is an asynchronous device. The GPU's own clock times copies and products.
        if device.capabilities().async_launches {
            return Self::measure_gpu(device);
        }
        let threads = core_count().max(device.threads());
        let cache = Some(measure_caches(&Team::new(threads)));
        Ok(Self { cache, ..Self::measure_cpu(threads) })
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
            let launch = plain_product([side; 3], operand, operand, c.addr(), dtype);
            Ok(launch.cost().flops / best(&Launch::Matmul(launch))?)
        };
        Ok(Self { f32: product(DType::F32, 4096)?, bf16: product(DType::BF16, 8192)?, bytes, cache: None })
    }

    /// Measures arithmetic and memory of this machine's CPU with this number of threads.
    pub fn measure_cpu(threads: usize) -> Self {
        let team = Team::new(threads);
        Self {
            f32: limits::measure_operations_per_second(DType::F32, &team),
            bf16: limits::measure_operations_per_second(DType::BF16, &team),
            bytes: limits::measure_bytes_per_second(&team, bytes_beyond_caches()),
            cache: None,
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
        (totals.cost.flops / self.flops_per_second(name, dtype)).max(self.seconds_to_move_bytes_of(totals))
    }

    /// The least time, in seconds, of one launch of a profile. `dtype` is the dtype of activations.
    pub fn roofline_seconds_of_launch(&self, launch: &LaunchEvent, dtype: DType) -> f64 {
        let LaunchEvent { name, cost, operand, .. } = launch;
        let mut operands = OperandReads::default();
        operand.iter().for_each(|operand| operands.add(operand));
        let totals = OpTotals { launches: 1, cost: *cost, operands, ..OpTotals::default() };
        self.roofline_seconds_of_launches(name, &totals, dtype)
    }

    /// The least time, in seconds, in which the kernel `name` can do these operations and move these bytes. `dtype`
    /// is the dtype of activations.
    pub fn roofline_seconds(&self, name: &str, cost: Cost, dtype: DType) -> f64 {
        let totals = OpTotals { launches: 1, cost, ..OpTotals::default() };
        self.roofline_seconds_of_launches(name, &totals, dtype)
    }

    /// The least time, in seconds, in which the kernel `name` can do these operations and move these bytes if no cache
    /// holds any of these bytes, as in a measurement that overwrites the caches before each run.
    pub fn roofline_seconds_from_memory(&self, name: &str, cost: Cost, dtype: DType) -> f64 {
        Self { cache: None, ..*self }.roofline_seconds(name, cost, dtype)
    }

    /// Whether the operations of these launches of the kernel `name` need more time than their bytes. `dtype` is the
    /// dtype of activations.
    pub fn is_bound_by_arithmetic(&self, name: &str, totals: &OpTotals, dtype: DType) -> bool {
        totals.cost.flops / self.flops_per_second(name, dtype) > self.seconds_to_move_bytes_of(totals)
    }

    /// Returns these ceilings, raised as little as needed to make the least time of the launches of the kernel `name`
    /// at most their measured time, `totals.seconds`.
    #[must_use]
    pub fn raised_to_measured_launches(mut self, name: &str, totals: &OpTotals, dtype: DType) -> Self {
        let seconds = totals.seconds;
        if seconds.is_nan() || seconds <= 0.0 {
            return self;
        }
        let rate = if uses_bf16_rate(name, dtype) { &mut self.bf16 } else { &mut self.f32 };
        *rate = rate.max(totals.cost.flops / seconds);
        self.with_bandwidth_times(self.seconds_to_move_bytes_of(totals) / seconds)
    }

    /// Returns these ceilings, raised as little as needed to make the least time of a whole round of work at most the
    /// round's measured time, `measured_seconds`. `floor_seconds` is the round's least time by the present ceilings.
    #[must_use]
    pub fn raised_to_measured_round(self, floor_seconds: f64, measured_seconds: f64) -> Self {
        let is_exceeded = floor_seconds > measured_seconds && measured_seconds > 0.0;
        let factor = if is_exceeded { floor_seconds / measured_seconds } else { 1.0 };
        Self { f32: self.f32 * factor, bf16: self.bf16 * factor, ..self }.with_bandwidth_times(factor)
    }

    /// Returns these ceilings, with each ceiling above that of `limits` lowered to it.
    #[must_use]
    pub fn limited_to(self, limits: &Ceilings) -> Self {
        let Self { f32, bf16, bytes, .. } = self;
        Self { f32: f32.min(limits.f32), bf16: bf16.min(limits.bf16), bytes: bytes.min(limits.bytes), ..self }
    }

    /// Returns these ceilings with the bandwidths of memory and caches multiplied by `factor`. A factor below 1
    /// counts as 1.
    fn with_bandwidth_times(self, factor: f64) -> Self {
        let factor = factor.max(1.0);
        let cache = self.cache.map(|cache| CacheCeiling { bytes: cache.bytes * factor, ..cache });
        Self { bytes: self.bytes * factor, cache, ..self }
    }

    pub(crate) fn flops_per_second(&self, name: &str, dtype: DType) -> f64 {
        if uses_bf16_rate(name, dtype) { self.bf16 } else { self.f32 }
    }

    /// The least time, in seconds, in which these launches can move their bytes. All launches are assumed to move the
    /// same number of bytes, which makes the time shortest.
    fn seconds_to_move_bytes_of(&self, totals: &OpTotals) -> f64 {
        let OpTotals { launches, cost: Cost { bytes, .. }, operands, .. } = totals;
        let Some(cache) = self.cache else { return bytes / self.bytes };
        let beyond_one_launch = bytes - cache.capacity * *launches as f64;
        let from_memory = operands.min_bytes_from_memory(cache.capacity).max(beyond_one_launch).clamp(0.0, *bytes);
        (bytes - from_memory) / cache.bytes.max(self.bytes) + from_memory / self.bytes
    }
}

/// Returns true if the least time of the kernel `name` uses the rate of bf16 products.
pub(crate) fn uses_bf16_rate(name: &str, dtype: DType) -> bool {
    dtype == DType::BF16 && MATRIX_KERNELS.iter().any(|prefix| name.starts_with(prefix))
}

/// The `i`-th pseudorandom number, from -1 to 1. Source: splitmix64, Steele, Lea and Flood, "Fast splittable
/// pseudorandom number generators".
pub fn pseudorandom_number(i: u64) -> f32 {
    let z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 40) as f32 / (1 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reel_device::OperandRead;

    use super::*;

    const MACHINE: Ceilings =
        Ceilings { f32: 1e9, bf16: 4e9, bytes: 1e8, cache: Some(CacheCeiling { capacity: 1e6, bytes: 1e9 }) };

    #[test]
    fn bytes_in_the_caches_have_their_bandwidth() {
        let floor = |flops, bytes, launches| {
            let totals = OpTotals { launches, cost: Cost { flops, bytes }, ..OpTotals::default() };
            MACHINE.roofline_seconds_of_launches("add_f32", &totals, DType::F32)
        };
        assert_eq!(floor(0.0, 1e6, 1), 1e-3);
        assert_eq!(floor(0.0, 2e6, 1), 1e-3 + 1e-2);
        assert_eq!(floor(0.0, 2e6, 2), 2e-3);
        assert_eq!(floor(1e8, 2e6, 2), 0.1);
        assert_eq!(MACHINE.roofline_seconds_from_memory("add_f32", Cost { flops: 0.0, bytes: 1e6 }, DType::F32), 1e-2);
    }

    #[test]
    fn weights_of_a_large_model_come_from_memory() {
        // A model of 10 MB and caches of 1 MB: at least nine tenths of each weight come from memory, although the
        // caches could hold the weight of one launch.
        let mut operands = OperandReads::default();
        operands.add(&OperandRead { bytes: 1e5, cycle: 1e7 });
        let cost = Cost { flops: 0.0, bytes: 1.5e5 };
        let totals = OpTotals { launches: 1, cost, operands, ..OpTotals::default() };
        let floor = MACHINE.roofline_seconds_of_launches("matmul_fwd", &totals, DType::F32);
        assert!((floor - (9e4 / 1e8 + 6e4 / 1e9)).abs() < 1e-12, "{floor}");
    }

    proptest! {
        /// After the ceilings are raised to a measured launch, this launch is within the ceilings, however fast it
        /// was.
        #[test]
        fn no_share_exceeds_one(
            flops in 0.0..1e12,
            bytes in 0.0..1e12,
            weights in 0.0..1.0,
            cycle in 1.0..1e12,
            seconds in 1e-9..10.0,
            launches in 1u64..1000,
            bf16: bool,
            caches: bool,
        ) {
            let dtype = if bf16 { DType::BF16 } else { DType::F32 };
            let machine = Ceilings { cache: MACHINE.cache.filter(|_| caches), ..MACHINE };
            let cost = Cost { flops, bytes };
            let mut operands = OperandReads::default();
            operands.add(&OperandRead { bytes: bytes * weights, cycle });
            let totals = OpTotals { launches, cost, operands, seconds, ..OpTotals::default() };
            let raised = machine.raised_to_measured_launches("matmul_fwd", &totals, dtype);
            let floor = raised.roofline_seconds_of_launches("matmul_fwd", &totals, dtype);
            prop_assert!(floor <= seconds * (1.0 + 1e-9), "{floor} {seconds}");
            let floor = machine.roofline_seconds_of_launches("matmul_fwd", &totals, dtype);
            let round = machine.raised_to_measured_round(floor, seconds);
            prop_assert!(round.roofline_seconds_of_launches("matmul_fwd", &totals, dtype) <= seconds * (1.0 + 1e-9));
            prop_assert!(raised.f32 >= machine.f32 && raised.bf16 >= machine.bf16 && raised.bytes >= machine.bytes);
        }
    }
}
