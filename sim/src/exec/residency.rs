//! How many blocks the GPU holds at once, and how many registers a thread has at the start of a kernel.

use super::launch::{ExecOptions, LaunchConfig};
use crate::program::Kernel;

/// Registers of a multiprocessor; a block cannot have more.
pub const REGISTERS_PER_MULTIPROCESSOR: u32 = 65536;

/// Returns the registers per thread at the start of a kernel: the number that ptxas reported or that the kernel
/// declares with `.maxnreg`. `None` if neither is known: launch bounds only limit the number that ptxas chooses.
pub fn registers_per_thread_at_start(kernel: &Kernel, options: &ExecOptions) -> Option<u32> {
    options.registers.or(kernel.max_registers)
}

/// Returns how many blocks the GPU holds at once. Registers limit the number only if `options` or the kernel give the
/// registers per thread, because PTX does not contain them.
pub fn resident_blocks(kernel: &Kernel, launch: &LaunchConfig, options: &ExecOptions) -> u32 {
    let gpu = &options.gpu;
    let threads = launch.block.iter().product::<u32>().next_multiple_of(32).max(32);
    let shared = kernel.static_shared.next_multiple_of(16) + launch.dynamic_shared;
    let mut each = gpu.blocks.min(gpu.threads / threads).min(gpu.shared / (shared + 1024));
    if let Some(registers) = registers_per_thread_at_start(kernel, options) {
        each = each.min(REGISTERS_PER_MULTIPROCESSOR / (registers.next_multiple_of(8).max(8) * threads));
    }
    each.max(1) * gpu.multiprocessors
}
