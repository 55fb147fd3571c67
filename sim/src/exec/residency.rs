//! How many blocks the GPU holds at once, and how many registers a thread starts with.

use super::launch::{ExecOptions, LaunchConfig};
use crate::program::Kernel;

/// Returns the registers per thread at the start of a kernel: the number that ptxas reported or the kernel declares,
/// or else the largest multiple of 8 that the launch bounds allow, at most 255.
pub fn registers_per_thread_at_start(kernel: &Kernel, threads: u32, options: &ExecOptions) -> u32 {
    if let Some(n) = options.registers.or(kernel.max_registers) {
        return n;
    }
    let threads = kernel.max_threads.map_or(threads, |m| m.iter().map(|n| n.max(&1)).product());
    let per_block = 65536 / kernel.min_blocks.unwrap_or(1).max(1);
    (per_block / threads.next_multiple_of(128).max(128) / 8 * 8).min(255)
}

/// Returns how many blocks the GPU holds at once. Registers limit the number only if `options` or the kernel give the
/// registers per thread, because PTX does not contain them.
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
