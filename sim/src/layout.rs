//! The address space: where each PTX state space lies in the 64-bit generic addresses, and how a shared address names a
//! block of the cluster.

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
    /// The kernel's own parameters.
    KernelParam,
    /// `.param` variables of a call, or a function's formal parameters: bytes of the frame.
    FrameParam,
}

/// Generic address of shared address 0.
pub const SHARED: u64 = 0x0100_0000_0000;
/// Generic address of local address 0.
pub const LOCAL: u64 = 0x0200_0000_0000;
/// Generic address of the first byte of the kernel's parameters.
pub const PARAM: u64 = 0x0300_0000_0000;
/// Address of the module's `.global` and `.const` variables.
pub const MODULE: u64 = 0x0400_0000_0000;
/// Address of function 0; the others follow, 16 bytes apart.
pub const FUNCTION: u64 = 0x0500_0000_0000;
/// Address of the first buffer that [`crate::memory::SimMemory::alloc`] returns.
pub const HEAP: u64 = 0x0600_0000_0000;
/// Bytes of the window of a state space.
pub const WINDOW: u64 = 1 << 32;

/// Shared address of a block's first byte. As on Hopper the first KiB is reserved, so that no object has address 0.
pub const SHARED_START: u32 = 1024;
/// Low bits of a shared address that are the offset in a block. The bits above are the block's rank in its cluster plus
/// 1, or 0 for the block of the thread itself.
pub const RANK_SHIFT: u32 = 24;

/// The shared address by which any block of the cluster names `address` in the block of rank `rank`.
pub fn cluster_address(address: u32, rank: u32) -> u32 {
    address & ((1 << RANK_SHIFT) - 1) | (rank + 1) << RANK_SHIFT
}

/// Splits a shared address into the rank that it names, if any, and the offset in that block.
pub fn split_cluster_address(address: u32) -> (Option<u32>, u32) {
    let rank = address >> RANK_SHIFT;
    (rank.checked_sub(1), address & ((1 << RANK_SHIFT) - 1))
}

/// The state space that a generic address points into; `None` is global memory.
pub fn window(address: u64) -> Option<AddressWindow> {
    match address & !(WINDOW - 1) {
        SHARED => Some(AddressWindow::Shared),
        LOCAL => Some(AddressWindow::Local),
        PARAM => Some(AddressWindow::KernelParam),
        _ => None,
    }
}
