//! The struct of the memory system: global buffers, the device heap, access to the bytes of a location, and traffic
//! counts.

use crate::counters;
use crate::exec::grid_context::GridContext;
use crate::exec::state::block::BlockTable;
use crate::exec::state::location::{LaneGroup, MemoryLocation};
use crate::layout::FIRST_SHARED_ADDRESS;
use crate::memory::SimMemory;
use crate::order::{AsyncOperationTable, ClusterLayout, Conflict, ReleasedClocksByLocation};

/// Maximum bytes of the device heap, so that a kernel that allocates in an endless loop gets a null pointer.
const MAX_HEAP_BYTES: u64 = 128 << 20;

/// The memory of a running grid, its asynchronous operations, and the vector clocks that threads release and acquire
/// through memory.
#[derive(Debug)]
pub struct MemorySystem {
    /// Global buffers.
    pub buffers: SimMemory,
    /// Asynchronous operations of the launch.
    pub ops: AsyncOperationTable,
    /// Vector clocks that strong stores released, by address.
    pub sync_vars: ReleasedClocksByLocation,
    pub(super) clusters: ClusterLayout,
    /// Index of the buffer that was accessed last.
    pub(super) last_buffer: usize,
    /// Addresses of the device heap that `malloc` returned and that were not freed.
    heap: Vec<u64>,
    /// Bytes of the device heap that are allocated.
    heap_bytes: u64,
    /// Start and end of each shared variable and of dynamic shared memory, as offsets in a block's shared memory.
    pub(super) shared_variables: Vec<(u64, u64)>,
    /// Scratch space of [`MemorySystem::check_shadow`], kept to avoid an allocation per access.
    pub(super) conflicts: Vec<Conflict>,
    /// Mask of the lanes in which the load instruction being executed has read unwritten shared memory; for `ldmatrix`,
    /// bit i stands for matrix row i. The load makes the registers undefined and resets the mask to zero.
    pub(super) unwritten_lanes: u32,
    /// Scratch space of loads and stores: lanes grouped by location.
    pub(super) groups: Vec<LaneGroup>,
}

impl MemorySystem {
    /// Creates the memory system of a launch with these global buffers.
    pub fn new(buffers: SimMemory, context: &GridContext) -> MemorySystem {
        let kernel = context.kernel;
        let dynamic = (kernel.dynamic_shared, kernel.dynamic_shared + context.launch.dynamic_shared);
        let variables = kernel.shared_variables.iter().copied().chain([dynamic]).filter(|v| v.0 < v.1);
        MemorySystem {
            buffers,
            ops: AsyncOperationTable::new(),
            sync_vars: ReleasedClocksByLocation::new(),
            clusters: ClusterLayout { grid: context.launch.grid, cluster: context.cluster },
            last_buffer: 0,
            heap: Vec::new(),
            heap_bytes: 0,
            shared_variables: variables
                .map(|v| ((v.0 - FIRST_SHARED_ADDRESS) as u64, (v.1 - FIRST_SHARED_ADDRESS) as u64))
                .collect(),
            conflicts: Vec::new(),
            unwritten_lanes: 0,
            groups: Vec::new(),
        }
    }

    /// Returns the bytes of a location; an empty slice if it is the shared memory of a block that has ended.
    pub fn location_bytes<'m>(&'m self, blocks: &'m BlockTable, location: MemoryLocation) -> &'m [u8] {
        match location {
            MemoryLocation::Global(index) => &self.buffers.buffer(index).data,
            MemoryLocation::Shared(slot) => blocks.get(slot).map_or(&[], |block| &block.shared),
        }
    }

    /// Returns the bytes of a location (mutable); an empty slice if it is the shared memory of a block that has
    /// ended.
    pub fn location_bytes_mut<'m>(&'m mut self, blocks: &'m mut BlockTable, location: MemoryLocation) -> &'m mut [u8] {
        match location {
            MemoryLocation::Global(index) => &mut self.buffers.buffer_mut(index).data,
            MemoryLocation::Shared(slot) => blocks.get_mut(slot).map_or(&mut [], |block| &mut block.shared),
        }
    }

    /// Allocates memory on the device heap; returns its address, or 0 if the heap has no room for it.
    pub fn malloc(&mut self, bytes: u64) -> u64 {
        // CUDA gives the device heap 8 MiB unless the host asks for more.
        if bytes == 0 || bytes > 8 << 20 || self.heap_bytes + bytes > MAX_HEAP_BYTES {
            return 0;
        }
        self.heap_bytes += bytes;
        let address = self.buffers.alloc_uninitialized(bytes as usize);
        self.heap.push(address);
        self.last_buffer = usize::MAX;
        address
    }

    /// Frees memory of the device heap. Other addresses are ignored.
    pub fn free(&mut self, address: u64) {
        if self.heap.contains(&address) {
            self.heap.retain(|&h| h != address);
            self.heap_bytes -= self.buffers.buffer_bytes(address).map_or(0, |bytes| bytes.len() as u64);
            self.buffers.free(address);
        }
        self.last_buffer = usize::MAX;
    }

    /// Returns the zero-terminated string at an address in global memory.
    pub fn c_string_at(&self, address: u64) -> String {
        let mut out = Vec::new();
        if let Some(index) = self.buffers.buffer_index(address) {
            let buffer = self.buffers.buffer(index);
            out.extend(buffer.data[(address - buffer.base) as usize..].iter().take_while(|&&byte| byte != 0));
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Adds the traffic of an access of `bytes` bytes per lane to an instruction's counts.
    pub fn count_traffic(&self, counts: &mut counters::InstructionCounts, group: &LaneGroup, bytes: u32, write: bool) {
        let lanes = group.lanes;
        let asked = lanes.count_ones() as u64 * bytes as u64;
        match group.location {
            MemoryLocation::Global(index) => {
                let base = self.buffers.buffer(index).base;
                let sectors = if group.consecutive {
                    let first = base + group.offsets[0];
                    (first + asked - 1) / 32 - first / 32 + 1
                } else {
                    crate::simd::run_with_widest_simd(
                        #[inline(always)]
                        || counters::count_sectors(&group.offsets.map(|o| o.wrapping_add(base)), lanes, bytes),
                    )
                };
                if write {
                    counts.global_written += asked;
                } else {
                    counts.global_read += asked;
                }
                counts.sectors += sectors;
            }
            MemoryLocation::Shared(_) => {
                let wavefronts = if group.consecutive && bytes <= 4 {
                    counters::Wavefronts { needed: 1, without_conflicts: 1 }
                } else {
                    crate::simd::run_with_widest_simd(
                        #[inline(always)]
                        || counters::count_wavefronts(&group.offsets.map(|o| o as u32), lanes, bytes),
                    )
                };
                counts.shared_bytes += asked;
                counts.wavefronts += wavefronts.needed;
                counts.wavefronts_least += wavefronts.without_conflicts;
            }
        }
    }
}
