//! The GPUs whose limits a run can take: how many blocks are resident, how many registers a thread starts with.

use super::{ExecOptions, LaunchConfig};
use crate::program::Kernel;

/// Limits of a GPU. Source: CUDA C++ programming guide, "Compute capabilities"; multiprocessors from the data sheets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuSpec {
    /// Its name.
    pub name: &'static str,
    /// Compute capability × 10.
    pub sm: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory of a block at most, in bytes.
    pub shared_per_block: u32,
    /// Shared memory of a multiprocessor, in bytes; each block takes a reserved KiB of it.
    pub shared: u32,
    /// Threads of a multiprocessor.
    pub threads: u32,
    /// Blocks of a multiprocessor.
    pub blocks: u32,
    /// Dense bf16 tensor throughput, operations a second.
    pub bf16_flops: f64,
    /// f32 throughput outside the tensor cores, operations a second.
    pub f32_flops: f64,
    /// Memory bandwidth, bytes a second.
    pub bandwidth: f64,
    /// Clock in Hz under load.
    pub clock: f64,
}

impl GpuSpec {
    /// A100 SXM 80 GB.
    pub const A100: GpuSpec = GpuSpec {
        name: "A100",
        sm: 80,
        multiprocessors: 108,
        shared_per_block: 163 << 10,
        shared: 164 << 10,
        threads: 2048,
        blocks: 32,
        bf16_flops: 312e12,
        f32_flops: 19.5e12,
        bandwidth: 2.039e12,
        clock: 1.41e9,
    };
    /// H100 SXM.
    pub const H100: GpuSpec = GpuSpec {
        name: "H100",
        sm: 90,
        multiprocessors: 132,
        shared_per_block: 227 << 10,
        shared: 228 << 10,
        threads: 2048,
        blocks: 32,
        bf16_flops: 989e12,
        f32_flops: 66.9e12,
        bandwidth: 3.35e12,
        clock: 1.83e9,
    };
    /// H200.
    pub const H200: GpuSpec = GpuSpec { name: "H200", bandwidth: 4.8e12, ..GpuSpec::H100 };

    /// The GPU that a run for this compute capability takes.
    pub fn for_sm(sm: u32) -> GpuSpec {
        if sm >= 90 { GpuSpec::H100 } else { GpuSpec::A100 }
    }
}

/// Registers a thread starts with: what is known, or what the launch bounds leave (rounded down to 8), at most 255.
pub fn entry_registers(kernel: &Kernel, threads: u32, options: &ExecOptions) -> u32 {
    if let Some(n) = options.registers.or(kernel.max_registers) {
        return n;
    }
    let threads = kernel.max_threads.map_or(threads, |m| m.iter().map(|n| n.max(&1)).product());
    let per_block = 65536 / kernel.min_blocks.unwrap_or(1).max(1);
    (per_block / threads.next_multiple_of(128).max(128) / 8 * 8).min(255)
}

/// Blocks that can be on the GPU at once. Registers count only where they are known: PTX does not say them.
pub fn resident_blocks(kernel: &Kernel, launch: &LaunchConfig, options: &ExecOptions) -> u32 {
    let gpu = &options.gpu;
    let threads = launch.block.iter().product::<u32>().next_multiple_of(32).max(32);
    let shared = kernel.static_shared.next_multiple_of(16) + launch.dynamic_shared;
    let mut each = gpu.blocks.min(gpu.threads / threads).min(gpu.shared / (shared + 1024));
    if let Some(registers) = options.registers.or(kernel.max_registers) {
        each = each.min(65536 / (registers.next_multiple_of(8).max(8) * threads));
    }
    each.max(1) * gpu.multiprocessors
}
