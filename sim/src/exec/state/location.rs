//! Locations and lane groups. A location is memory that threads share: a global buffer, or the shared memory of a
//! block. A lane group is the lanes that access the same location.

/// A buffer in global memory or the shared memory of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLocation {
    /// The global buffer with this index in [`crate::memory::SimMemory`].
    Global(usize),
    /// The shared memory of the block in this slot.
    Shared(u32),
}

impl MemoryLocation {
    /// Returns the name of the state space for findings.
    pub fn state_space_name(self) -> &'static str {
        match self {
            MemoryLocation::Global(_) => "global",
            MemoryLocation::Shared(_) => "shared",
        }
    }
}

/// Lanes of one memory access that access the same location: one buffer, or the shared memory of one block.
#[derive(Clone, Debug)]
pub struct LaneGroup {
    /// The buffer or shared memory that these lanes access.
    pub location: MemoryLocation,
    pub lanes: u32,
    /// Byte offset of each lane's access in the location.
    pub offsets: [u64; 32],
    /// Whether all 32 lanes access consecutive bytes in lane order; such accesses have a fast path.
    pub consecutive: bool,
}

impl LaneGroup {
    /// Creates a group of lanes that access `bytes` bytes each at `offsets`.
    #[inline(always)]
    pub fn new(location: MemoryLocation, lanes: u32, offsets: [u64; 32], bytes: u64) -> LaneGroup {
        let step = |all: bool, lane: usize| all & (offsets[lane] == offsets[0] + lane as u64 * bytes);
        let consecutive = lanes == u32::MAX && (1..32).fold(true, step);
        LaneGroup { location, lanes, offsets, consecutive }
    }

    /// Creates the group of all 32 lanes, where lane i accesses `bytes` bytes at `addresses[i]`. `base` is the first
    /// address of the location. Returns `None` if an address is misaligned, or if an access is not between the two
    /// byte offsets of `range` (start and end, from `base`).
    #[inline]
    pub fn from_all_lanes(
        location: MemoryLocation,
        addresses: &[u64; 32],
        base: u64,
        range: (u64, u64),
        bytes: u64,
    ) -> Option<LaneGroup> {
        crate::simd::run_with_widest_simd(
            #[inline(always)]
            || {
                let offsets = offsets_within(addresses, base, range, bytes)?;
                Some(LaneGroup::new(location, u32::MAX, offsets, bytes))
            },
        )
    }
}

/// Returns the byte offset of each lane's address from `base` if each access of `bytes` bytes is aligned and lies
/// between the offsets `low` and `high`; else `None`.
#[inline(always)]
fn offsets_within(addresses: &[u64; 32], base: u64, (low, high): (u64, u64), bytes: u64) -> Option<[u64; 32]> {
    let offsets = addresses.map(|a| a.wrapping_sub(base));
    let last_start = high.checked_sub(low)?.checked_sub(bytes)?;
    let inside = offsets.iter().fold(true, |all, o| all & (o.wrapping_sub(low) <= last_start));
    let bits = addresses.iter().fold(0, |bits, a| bits | a);
    (inside && bits & (bytes - 1) == 0).then_some(offsets)
}
