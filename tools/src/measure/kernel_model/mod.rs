//! Models the time of a kernel on a GPU from its launch plan, its cost (operations and bytes), and counts of its
//! instructions. `reel plan` uses this model for kernels that were never measured, and for kernels that have changed
//! since their measurement.
//!
//! The kernels for Hopper that divide tiles among persistent blocks are modelled by their schedules (`schedule.rs`).
//! For all others, the blocks of a launch run in waves of `resident blocks × multiprocessors`; blocks of clusters use
//! only the multiprocessors that can run clusters of eight (`Arch::clusters_of_8`). A wave takes the longest of:
//!
//! ```text
//! memory        bytes of the cost / (bandwidth × share that plain copies reached in the record)
//! L2            bytes that threads read and write / bandwidth of L2
//! latency       bytes of a block × latency of memory / bytes that a block has in flight          (Little's law)
//! instructions  warp instructions of a multiprocessor / its issue rate
//! matrices      operations of a multiprocessor / its rate of mma instructions                    (tensor cores)
//! ```
//!
//! and a launch takes the time of its waves, one latency until its first bytes arrive (none if it requests them
//! before the previous launch has ended), and a gap for each CUDA launch. The model ignores dependences between
//! instructions, bank conflicts and barriers. A kernel that is limited by them takes longer than the modelled time.
//!
//! Figures that cannot be computed from a launch are in `inputs.json`, one row for each symbol.
//! `kernels/src/checks/model_inputs.rs` counts instructions on the simulator, and `tools/benches/gpu/model_inputs.py`
//! adds the registers that ptxas assigns. The bytes in flight are known for kernels that copy into a ring in shared
//! memory; for other kernels the model assumes that enough bytes are in flight. A kernel without a row is modelled by
//! memory, L2 and tensor cores alone.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use reel_device::{Arch, Cost, PlannedLaunches, PlannedStage};
use serde::{Deserialize, Serialize};

use crate::measure::ceilings::Ceilings;

mod schedule;

/// Seconds from a load to its data when memory is busy. Source: the ring of copies in `kernels/src/skinny/sm80.cu`,
/// which is sized for this latency; published measurements of an idle H100 are 480 to 600 ns.
pub const MEMORY_LATENCY_SECONDS: f64 = 700e-9;

/// Seconds between the end of a kernel and the start of the next one in a captured graph. Source: NVIDIA, "Getting
/// Started with CUDA Graphs" (2019): 3.4 us for each kernel of 2.9 us. This project has not measured the gap.
pub const LAUNCH_GAP_SECONDS: f64 = 0.5e-6;

/// Bandwidth of L2 in bytes per second. Source: Chips and Cheese, "Nvidia's H100: Funny L2, and Tons of Bandwidth"
/// (2023), on an H100 PCIe with 114 multiprocessors.
pub const L2_BYTES_PER_SECOND: f64 = 5.5e12;

/// Share of the ceiling of bf16 products that `mma` instructions reach; on Hopper only `wgmma` reaches the whole
/// ceiling. Source: Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture" (2024): `mma` reaches
/// 62 % of the data sheet's rate; the ceiling is 80 % of that rate.
pub const MMA_SHARE_OF_CEILING: f64 = 0.62 / 0.8;

/// Registers per thread that are assumed for a kernel without a row in the table.
const DEFAULT_REGISTERS: u32 = 32;

/// Limits of a multiprocessor of compute capability 9.0: threads, blocks, registers, and bytes of shared memory.
/// Source: CUDA C++ programming guide, table of compute capabilities.
const MAX_THREADS: u32 = 2048;
const MAX_BLOCKS: u32 = 32;
const MAX_REGISTERS: u32 = 65_536;
const MAX_SHARED: u32 = 228 << 10;
/// Bytes of shared memory that CUDA reserves in each block. Source: CUDA C++ programming guide, table of compute
/// capabilities.
const RESERVED_SHARED: u32 = 1 << 10;

/// Floating-point operations of a warp's multiply-add instruction.
const FLOPS_PER_WARP_INSTRUCTION: f64 = 64.0;

/// The row of a kernel in `inputs.json`: figures about its compiled code.
#[derive(Clone, Debug, Deserialize)]
struct KernelInputs {
    symbol: String,
    /// Registers per thread, as ptxas assigns them for sm_90a.
    registers: u32,
    /// Share of dynamic shared memory that holds copies in flight; `None` if the kernel loads into registers.
    ring_in_flight: Option<f64>,
    /// PTX instructions that warps execute for each byte that the kernel's `Cost` counts, and (next field) for each
    /// floating-point operation.
    #[serde(default)]
    instructions_per_byte: f64,
    #[serde(default)]
    instructions_per_flop: f64,
    /// Bytes that threads read and write through L2 for each byte of the kernel's `Cost`, and (next field) for each
    /// floating-point operation.
    #[serde(default)]
    l2_bytes_per_byte: f64,
    #[serde(default)]
    l2_bytes_per_flop: f64,
}

/// The properties of a GPU that the model uses.
#[derive(Clone, Copy, Debug)]
pub struct ModelledGpu {
    /// The GPU's ceilings.
    pub ceilings: Ceilings,
    /// Share of the memory bandwidth, 0 to 1, that a kernel reaches if it only streams memory.
    pub streaming_share: f64,
    /// Number of multiprocessors.
    pub multiprocessors: u32,
    /// Number of multiprocessors that can run the blocks of clusters of eight.
    pub cluster_multiprocessors: u32,
}

/// What limits the time of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// Bandwidth of memory.
    Memory,
    /// Bandwidth of L2.
    L2,
    /// Too few bytes in flight.
    Latency,
    /// Issue of instructions.
    Instructions,
    /// Tensor cores.
    Matrices,
    /// Gaps between launches, and the latency until the first bytes arrive.
    Launch,
    /// The tiles of the busiest multiprocessor, by the schedule of the kernel.
    Schedule,
}

impl Bottleneck {
    /// The limit's name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Bottleneck::Memory => "memory",
            Bottleneck::L2 => "L2",
            Bottleneck::Latency => "latency",
            Bottleneck::Instructions => "instructions",
            Bottleneck::Matrices => "matrices",
            Bottleneck::Launch => "launch",
            Bottleneck::Schedule => "schedule",
        }
    }
}

/// The modelled time of some launches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelledTime {
    /// Seconds of all launches.
    pub seconds: f64,
    /// Seconds that the launches would take if this were the only limit, for each limit.
    pub seconds_by_limit: BTreeMap<Bottleneck, f64>,
    /// Seconds of the launches of kernels with a row of counts in `inputs.json`.
    pub counted_seconds: f64,
    /// Seconds of the launches whose time is that of a prototype with the same schedule and sizes.
    pub prototype_seconds: f64,
}

impl ModelledTime {
    /// Divides all times.
    pub(crate) fn divide_times(&mut self, by: f64) {
        self.seconds /= by;
        self.counted_seconds /= by;
        self.prototype_seconds /= by;
        self.seconds_by_limit.values_mut().for_each(|seconds| *seconds /= by);
    }

    /// Whether kernels with counted instructions take most of the modelled time. Without counts, the model considers
    /// only memory, L2, tensor cores and launch gaps.
    pub fn has_instruction_counts(&self) -> bool {
        2.0 * self.counted_seconds >= self.seconds
    }

    /// Whether a schedule of the kernel's tiles is modelled.
    pub fn has_schedule(&self) -> bool {
        self.seconds_by_limit.contains_key(&Bottleneck::Schedule)
    }

    /// The limit that accounts for the longest time.
    pub fn main_bottleneck(&self) -> Bottleneck {
        let longest = self.seconds_by_limit.iter().max_by(|a, b| a.1.total_cmp(b.1));
        longest.map_or(Bottleneck::Launch, |(limit, _)| *limit)
    }
}

fn inputs_of(symbol: &str) -> Option<&'static KernelInputs> {
    static TABLE: OnceLock<BTreeMap<String, KernelInputs>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let rows: Vec<KernelInputs> = serde_json::from_str(include_str!("inputs.json"))
            .expect("inputs.json, which is part of the program, has valid values");
        rows.into_iter().map(|row| (row.symbol.clone(), row)).collect()
    });
    table.get(symbol)
}

/// Blocks of a kernel that a multiprocessor holds at once, at least 1:
/// `min(2048 / threads, 65536 / (registers × threads), 228 KiB / (shared + 1 KiB), 32)`. Registers are allocated in
/// units of 8 per thread.
fn resident_blocks(threads: u32, registers: u32, shared: u32) -> u32 {
    let threads = threads.max(1);
    let by_registers = MAX_REGISTERS / (registers.max(1).next_multiple_of(8) * threads);
    let by_shared = MAX_SHARED / (shared + RESERVED_SHARED);
    (MAX_THREADS / threads).min(by_registers).min(by_shared).clamp(1, MAX_BLOCKS)
}

/// The stage (one CUDA kernel launch of a kernel's call) that does the work: the stage with the most dynamic shared
/// memory. Of stages with equal shared memory, the one with the most threads in its grid.
fn main_stage(stages: &[PlannedStage]) -> Option<&PlannedStage> {
    stages.iter().max_by_key(|s| (s.shared, u64::from(s.blocks) * u64::from(s.threads)))
}

/// The work of one block of a kernel.
#[derive(Clone, Copy, Debug)]
struct BlockWork {
    /// Bytes of the cost.
    bytes: f64,
    /// Bytes that the block's threads read and write through L2.
    l2_bytes: f64,
    /// Bytes that the block has in flight at a time, if known.
    bytes_in_flight: Option<f64>,
    warp_instructions: f64,
    /// Operations on tensor cores.
    matrix_flops: f64,
}

impl ModelledGpu {
    /// The model of a GPU of compute capability 9.0.
    pub fn hopper(ceilings: Ceilings, streaming_share: f64) -> ModelledGpu {
        let Arch { multiprocessors, clusters_of_8, .. } = Arch::H100;
        ModelledGpu { ceilings, streaming_share, multiprocessors, cluster_multiprocessors: 8 * clusters_of_8 }
    }

    /// Warp instructions that a multiprocessor issues per second. Its four schedulers issue one instruction per clock
    /// each, and the f32 ceiling is the rate of multiply-adds, 64 operations per warp instruction: `ceiling / 64 /
    /// multiprocessors`.
    fn issue_rate(&self) -> f64 {
        self.ceilings.f32 / FLOPS_PER_WARP_INSTRUCTION / f64::from(self.multiprocessors)
    }

    /// Seconds that each limit needs for a wave of `active` blocks on `multiprocessors` multiprocessors, in the order
    /// of [`Bottleneck`]. Memory and L2: the bytes of all blocks over the bandwidth. Latency: `bytes × latency / bytes
    /// in flight` of one block. Instructions and matrices: the work of the blocks on one multiprocessor over its rate.
    fn wave(&self, block: &BlockWork, active: u64, multiprocessors: u64) -> [(Bottleneck, f64); 5] {
        let (all, of_one) = (active as f64, active.div_ceil(multiprocessors) as f64);
        let in_flight = block.bytes_in_flight.filter(|_| active > 0);
        let latency = in_flight.map_or(0.0, |in_flight| block.l2_bytes * MEMORY_LATENCY_SECONDS / in_flight);
        let matrix_rate = self.ceilings.bf16 * MMA_SHARE_OF_CEILING / f64::from(self.multiprocessors);
        [
            (Bottleneck::Memory, all * block.bytes / (self.ceilings.bytes * self.streaming_share)),
            (Bottleneck::L2, all * block.l2_bytes / L2_BYTES_PER_SECOND),
            (Bottleneck::Latency, latency),
            (Bottleneck::Instructions, of_one * block.warp_instructions / self.issue_rate()),
            (Bottleneck::Matrices, of_one * block.matrix_flops / matrix_rate),
        ]
    }

    /// The modelled time of one launch with these stages. One stage does all the work of `cost`; each other stage adds
    /// a launch gap and a latency. `on_tensor_cores` is true if the operations are matrix products in bf16.
    fn launch(&self, stages: &[PlannedStage], cost: Cost, on_tensor_cores: bool) -> ModelledTime {
        let Some(main) = main_stage(stages) else {
            return ModelledTime::default();
        };
        if let Some(schedule::ScheduledTime { seconds, is_of_prototype }) = schedule::time_of_launch(main, cost) {
            return ModelledTime {
                seconds,
                seconds_by_limit: BTreeMap::from([(Bottleneck::Schedule, seconds)]),
                counted_seconds: seconds,
                prototype_seconds: if is_of_prototype { seconds } else { 0.0 },
            };
        }
        let inputs = inputs_of(main.symbol);
        let blocks = u64::from(main.blocks.max(1));
        let of_block = |whole: f64| whole / blocks as f64;
        let counted = |per_byte: f64, per_flop: f64| per_byte * cost.bytes + per_flop * cost.flops;
        let block = BlockWork {
            bytes: of_block(cost.bytes),
            l2_bytes: of_block(inputs.map_or(cost.bytes, |i| counted(i.l2_bytes_per_byte, i.l2_bytes_per_flop))),
            bytes_in_flight: inputs.and_then(|i| i.ring_in_flight).map(|share| share * f64::from(main.shared)),
            warp_instructions: of_block(
                inputs.map_or(0.0, |i| counted(i.instructions_per_byte, i.instructions_per_flop)),
            ),
            matrix_flops: if on_tensor_cores { of_block(cost.flops) } else { 0.0 },
        };
        let registers = inputs.map_or(DEFAULT_REGISTERS, |i| i.registers);
        let resident = resident_blocks(main.threads, registers, main.shared);
        // The blocks of a cluster run on one group of multiprocessors (a GPC), and clusters of eight do not fill all
        // groups.
        let used = if main.cluster > 1 { self.cluster_multiprocessors } else { self.multiprocessors };
        let wave_blocks = u64::from(resident) * u64::from(used);
        let mut modelled = ModelledTime::default();
        for (waves, active) in [(blocks / wave_blocks, wave_blocks), (1, blocks % wave_blocks)] {
            let limits = self.wave(&block, active, u64::from(used));
            modelled.seconds += waves as f64 * limits.iter().map(|(_, s)| *s).fold(0.0, f64::max);
            for (limit, seconds) in limits {
                *modelled.seconds_by_limit.entry(limit).or_default() += waves as f64 * seconds;
            }
        }
        let waits = stages.iter().filter(|s| !s.programmatic).count() as f64;
        let fixed = LAUNCH_GAP_SECONDS * stages.len() as f64 + MEMORY_LATENCY_SECONDS * waits;
        modelled.seconds += fixed;
        modelled.seconds_by_limit.insert(Bottleneck::Launch, fixed);
        modelled.counted_seconds = if inputs.is_some() { modelled.seconds } else { 0.0 };
        modelled
    }

    /// The modelled time of all launches of a kernel; `None` if no launch has a plan, as for matrix products of a
    /// library.
    pub fn time_of_launches(&self, planned: &PlannedLaunches, on_tensor_cores: bool) -> Option<ModelledTime> {
        let mut all = ModelledTime::default();
        for (stages, count, cost) in planned.groups() {
            let times = count as f64;
            let each = Cost { flops: cost.flops / times, bytes: cost.bytes / times };
            let one = self.launch(stages, each, on_tensor_cores);
            all.seconds += times * one.seconds;
            all.counted_seconds += times * one.counted_seconds;
            all.prototype_seconds += times * one.prototype_seconds;
            for (limit, seconds) in one.seconds_by_limit {
                *all.seconds_by_limit.entry(limit).or_default() += times * seconds;
            }
        }
        (all.seconds > 0.0).then_some(all)
    }
}

#[cfg(test)]
pub(crate) use schedule::tests::rank_correlation;
#[cfg(test)]
mod tests;
