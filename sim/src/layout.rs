//! The address space: where each PTX state space lies in the 64-bit generic addresses, and how a shared address names
//! a block of the cluster.

/// The state space that an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AddressWindow {
    Generic,
    Global,
    Const,
    Shared,
    SharedCluster,
    Local,
    /// The parameters of the kernel.
    KernelParam,
    /// `.param` variables of a call and formal parameters of a function, which are bytes of the function's call frame.
    FrameParam,
}

/// Generic address of shared address 0.
pub const SHARED_BASE: u64 = 0x0100_0000_0000;
/// Generic address of local address 0.
pub const LOCAL_BASE: u64 = 0x0200_0000_0000;
/// Generic address of the first byte of the kernel's parameters.
pub const PARAM_BASE: u64 = 0x0300_0000_0000;
/// Address of the first `.global` or `.const` variable of the module.
pub const MODULE_BASE: u64 = 0x0400_0000_0000;
/// Base of the addresses of functions: function i has the address `FUNCTION_BASE + 16 * (i + 1)`.
pub const FUNCTION_BASE: u64 = 0x0500_0000_0000;
/// Address of the first buffer that [`crate::memory::SimMemory::alloc`] returns.
pub const HEAP_BASE: u64 = 0x0600_0000_0000;
/// Size in bytes of the range of generic addresses that each state space has.
pub const WINDOW_BYTES: u64 = 1 << 32;

/// Shared address of the first byte of a block's shared memory. As on Hopper, the first KiB is reserved, so no
/// variable has address 0.
pub const FIRST_SHARED_ADDRESS: u32 = 1024;
/// Position of the block's rank in a shared address. The bits below this position are the offset in the block's shared
/// memory; the bits from this position on are the rank of the block in its cluster. As on Hopper, the addresses of a
/// block's own variables contain the rank, too: the window of `.shared::cta` is part of the window of
/// `.shared::cluster`.
pub const CLUSTER_RANK_SHIFT: u32 = 24;

/// Returns the shared address by which any block of the cluster names `shared_address` in the block of rank
/// `block_rank`.
pub fn shared_address_in_cluster(shared_address: u32, block_rank: u32) -> u32 {
    shared_address & ((1 << CLUSTER_RANK_SHIFT) - 1) | block_rank << CLUSTER_RANK_SHIFT
}

/// The block and the byte that a shared address names.
pub struct SharedAddressParts {
    /// Rank of the block in its cluster; `None` for the thread's own block.
    pub rank: Option<u32>,
    /// Offset in the block's shared memory.
    pub offset: u32,
}

/// Splits a shared address into the block that it names and the offset in that block. `own_rank` is the rank of the
/// thread's own block.
pub fn split_shared_address(shared_address: u32, own_rank: u32) -> SharedAddressParts {
    let rank = Some(shared_address >> CLUSTER_RANK_SHIFT).filter(|&rank| rank != own_rank);
    SharedAddressParts { rank, offset: shared_address & ((1 << CLUSTER_RANK_SHIFT) - 1) }
}

/// Describes an access with `.shared` or `.shared::cta` in the block of rank `own_rank` to an address that names the
/// block of rank `other`. On an H200 such an access is an illegal instruction.
pub fn describe_foreign_cta_address(shared_address: u32, other: u32, own_rank: u32) -> String {
    format!(
        "the shared address {shared_address:#x} names the block of rank {other} (bits 24 and above), but .shared::cta \
         accesses only the own block, which has rank {own_rank}: use .shared::cluster, or keep the rank in the address"
    )
}

/// Returns the state space into which a generic address points; `None` is global memory.
pub fn state_space_of(address: u64) -> Option<AddressWindow> {
    match address & !(WINDOW_BYTES - 1) {
        SHARED_BASE => Some(AddressWindow::Shared),
        LOCAL_BASE => Some(AddressWindow::Local),
        PARAM_BASE => Some(AddressWindow::KernelParam),
        _ => None,
    }
}
