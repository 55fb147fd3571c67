//! Locates accesses: finds the buffer or shared memory that each lane accesses, and reports lanes that are out of
//! bounds or misaligned.

use super::system::MemorySystem;
use crate::exec::context::{InstructionContext, lanes_in_mask};
use crate::exec::state::location::{LaneGroup, MemoryLocation};
use crate::finding::FindingKind;
use crate::layout::{self, SharedAddressParts};
use crate::program::op::AddressWindow;

/// The addresses of an access, one per lane.
#[derive(Clone, Copy)]
pub struct AccessRequest<'r> {
    /// The state space of the instruction; with [`AddressWindow::Generic`] each address determines its own state
    /// space.
    pub window: AddressWindow,
    /// The address of each lane.
    pub addresses: &'r [u64; 32],
    /// Mask of the lanes that access memory.
    pub lanes: u32,
    /// Bytes that each lane accesses; the addresses must be multiples of it.
    pub bytes: u64,
}

impl MemorySystem {
    /// Groups the lanes of an access by buffer or shared memory and adds the groups to `groups`. Lanes that are out
    /// of bounds or misaligned are reported and left out. Returns the lanes whose address lies in memory that threads
    /// do not share: local memory and parameters.
    pub fn locate_lanes(
        &mut self,
        cx: &mut InstructionContext,
        request: AccessRequest,
        groups: &mut Vec<LaneGroup>,
    ) -> u32 {
        let mut left = request.lanes;
        let mut elsewhere = 0;
        while left != 0 {
            let lane = left.trailing_zeros();
            let window = match request.window {
                AddressWindow::Generic => {
                    layout::state_space_of(request.addresses[lane as usize]).unwrap_or(AddressWindow::Global)
                }
                window => window,
            };
            match window {
                AddressWindow::Global | AddressWindow::Const | AddressWindow::Generic => {
                    self.locate_global(cx, &request, &mut left, groups);
                }
                AddressWindow::Shared | AddressWindow::SharedCluster => {
                    let base = if request.window == AddressWindow::Generic { layout::SHARED_BASE } else { 0 };
                    self.locate_shared(cx, &request, base, &mut left, groups);
                }
                _ => {
                    elsewhere |= 1 << lane;
                    left &= left - 1;
                }
            }
        }
        elsewhere
    }

    /// Groups the lanes of `left` that access the same buffer as the lowest lane of `left`, and removes them from
    /// `left`.
    fn locate_global(
        &mut self,
        cx: &mut InstructionContext,
        request: &AccessRequest,
        left: &mut u32,
        groups: &mut Vec<LaneGroup>,
    ) {
        let (addresses, bytes) = (request.addresses, request.bytes);
        let first = addresses[left.trailing_zeros() as usize];
        let space = if request.window == AddressWindow::Const { "const" } else { "global" };
        let Some(index) = self.find_buffer_index(first) else {
            let lane = left.trailing_zeros();
            *left &= *left - 1;
            let near = self.buffers.describe_nearest_buffer(first);
            cx.report_access(FindingKind::OutOfBounds, lane, (space, first), || {
                format!("access of {bytes} bytes at {space} address {first:#x}: {near}")
            });
            return;
        };
        let buffer = self.buffers.buffer(index);
        let (base, len) = (buffer.base, buffer.data.len() as u64);
        let location = MemoryLocation::Global(index);
        if *left == u32::MAX
            && let Some(group) = LaneGroup::from_all_lanes(location, addresses, base, (0, len), bytes)
        {
            *left = 0;
            groups.push(group);
            return;
        }
        let mut group = LaneGroup::new(location, 0, [0; 32], bytes);
        let mut bad = 0;
        let mut all = *left;
        while all != 0 {
            let lane = all.trailing_zeros();
            all &= all - 1;
            let address = addresses[lane as usize];
            let offset = address.wrapping_sub(base);
            if offset >= len {
                continue;
            }
            *left &= !(1 << lane);
            if offset + bytes > len || address & (bytes - 1) != 0 {
                bad |= 1 << lane;
                continue;
            }
            group.lanes |= 1 << lane;
            group.offsets[lane as usize] = offset;
        }
        if bad != 0 {
            let owner = self.buffers.displayed_buffer_name(index);
            report_bad_lanes(cx, request, bad, (space, &owner), (base, len));
        }
        if group.lanes != 0 {
            groups.push(group);
        }
    }

    /// Groups the lanes of `left` that access the shared memory of the same block as the lowest lane of `left`, and
    /// removes them from `left`. `window_base` is where the shared window begins in the instruction's address space.
    fn locate_shared(
        &mut self,
        cx: &mut InstructionContext,
        request: &AccessRequest,
        window_base: u64,
        left: &mut u32,
        groups: &mut Vec<LaneGroup>,
    ) {
        let (addresses, bytes) = (request.addresses, request.bytes);
        let lane = left.trailing_zeros();
        let first = addresses[lane as usize].wrapping_sub(window_base) as u32;
        let own_rank = cx.block().rank;
        let own_bits = u64::from(own_rank << layout::CLUSTER_RANK_SHIFT);
        let rank = layout::split_shared_address(first, own_rank).rank;
        let slot = match rank {
            None => Some(cx.warp.slot),
            Some(r) => cx.block().cluster.get(r as usize).copied(),
        };
        let Some((slot, target)) = slot.and_then(|slot| Some((slot, cx.grid.blocks.get(slot)?))) else {
            *left &= *left - 1;
            cx.report_access(FindingKind::OutOfBounds, lane, ("shared", first as u64), || {
                format!(
                    "access to the shared memory of the block of rank {}, which the cluster does not have",
                    rank.unwrap_or(0)
                )
            });
            return;
        };
        if let (AddressWindow::Shared, Some(other)) = (request.window, rank) {
            *left &= *left - 1;
            cx.report_access(FindingKind::OutOfBounds, lane, ("shared", first as u64), || {
                layout::describe_foreign_cta_address(first, other, own_rank)
            });
            return;
        }
        if slot != cx.warp.slot && target.ended {
            cx.report_access(FindingKind::OutOfBounds, lane, ("shared", first as u64), || {
                format!("access to the shared memory of the block of rank {}, which has exited", rank.unwrap_or(0))
            });
        }
        let len = cx.block().shared.len() as u64;
        let start = layout::FIRST_SHARED_ADDRESS as u64;
        // All bytes of a lane's access must lie in one shared variable.
        let variables = &self.shared_variables;
        let variable_at = |offset: u64| {
            let next = variables.partition_point(|v| v.0 <= offset);
            next.checked_sub(1).map_or((1, 0), |index| variables[index])
        };
        let location = MemoryLocation::Shared(slot);
        let mut variable = (1, 0);
        if *left == u32::MAX && rank.is_none() {
            variable = variable_at((first as u64).wrapping_sub(start + own_bits));
            let range = (variable.0, variable.1.min(len));
            if let Some(group) =
                LaneGroup::from_all_lanes(location, addresses, window_base + own_bits + start, range, bytes)
            {
                *left = 0;
                groups.push(group);
                return;
            }
        }
        let mut group = LaneGroup::new(location, 0, [0; 32], bytes);
        let mut bad = 0;
        let mut all = *left;
        while all != 0 {
            let lane = all.trailing_zeros();
            all &= all - 1;
            let address = addresses[lane as usize].wrapping_sub(window_base);
            if address >> 32 == 0 {
                let SharedAddressParts { rank: r, offset } = layout::split_shared_address(address as u32, own_rank);
                if r != rank {
                    continue;
                }
                *left &= !(1 << lane);
                let offset = (offset as u64).wrapping_sub(start);
                if (offset < variable.0 || offset >= variable.1) && offset < len {
                    variable = variable_at(offset);
                }
                if offset < len && offset >= variable.0 && offset + bytes <= variable.1 && address & (bytes - 1) == 0 {
                    group.lanes |= 1 << lane;
                    group.offsets[lane as usize] = offset;
                    continue;
                }
            } else if layout::state_space_of(addresses[lane as usize]) != Some(AddressWindow::Shared)
                && window_base != 0
            {
                continue;
            }
            *left &= !(1 << lane);
            bad |= 1 << lane;
        }
        if bad != 0 {
            report_bad_lanes(
                cx,
                request,
                bad,
                ("shared", "the block's shared memory"),
                (window_base + own_bits + start, len),
            );
        }
        if group.lanes != 0 {
            groups.push(group);
        }
    }

    /// Returns the location and the offset of `bytes` bytes at one lane's address. Reports accesses that are out of
    /// bounds.
    pub fn locate_bytes(
        &mut self,
        cx: &mut InstructionContext,
        lane: u32,
        window: AddressWindow,
        address: u64,
        bytes: u64,
    ) -> Option<(MemoryLocation, u64)> {
        let mut groups: Vec<LaneGroup> = Vec::new();
        let mut addresses = [0; 32];
        addresses[lane as usize] = address;
        self.locate_lanes(cx, AccessRequest { window, addresses: &addresses, lanes: 1 << lane, bytes: 1 }, &mut groups);
        let group = groups.first()?;
        let offset = group.offsets[lane as usize];
        let len = match group.location {
            MemoryLocation::Global(index) => self.buffers.buffer(index).data.len() as u64,
            MemoryLocation::Shared(_) => cx.block().shared.len() as u64,
        };
        if offset + bytes > len {
            let space = group.location.state_space_name();
            cx.report_access(FindingKind::OutOfBounds, lane, (space, address), || {
                format!(
                    "a copy of {bytes} bytes at offset {offset} reaches beyond the end of the {len} bytes of {space} memory"
                )
            });
            return None;
        }
        Some((group.location, offset))
    }

    /// Returns the buffer and the offset of `bytes` bytes in global memory. Tries the most recently accessed buffer
    /// first.
    pub fn locate_global_bytes(
        &mut self,
        cx: &mut InstructionContext,
        lane: u32,
        address: u64,
        bytes: u64,
    ) -> Option<(MemoryLocation, u64)> {
        if self.buffers.buffer_holds(self.last_buffer, address) {
            let buffer = self.buffers.buffer(self.last_buffer);
            let offset = address - buffer.base;
            if offset + bytes <= buffer.data.len() as u64 {
                return Some((MemoryLocation::Global(self.last_buffer), offset));
            }
        }
        self.locate_bytes(cx, lane, AddressWindow::Global, address, bytes)
    }

    /// Returns the index of the buffer that holds an address. Tries the most recently accessed buffer first.
    pub fn find_buffer_index(&mut self, address: u64) -> Option<usize> {
        if !self.buffers.buffer_holds(self.last_buffer, address) {
            self.last_buffer = self.buffers.buffer_index(address)?;
        }
        Some(self.last_buffer)
    }

    /// Marks the bytes of misaligned stores, which are not executed, as written: the store was reported, so a later
    /// read of these bytes is not another defect.
    #[cold]
    pub fn mark_refused_stores_initialized(&mut self, cx: &mut InstructionContext, request: &AccessRequest) {
        let bytes = request.bytes;
        for lane in lanes_in_mask(request.lanes) {
            let address = request.addresses[lane as usize];
            let generic = request.window == AddressWindow::Generic;
            let window = if generic { layout::state_space_of(address) } else { Some(request.window) };
            let (base, len, shadow) = if window == Some(AddressWindow::Shared) {
                let block = cx.block_mut();
                let own_bits = u64::from(block.rank << layout::CLUSTER_RANK_SHIFT);
                let base =
                    layout::FIRST_SHARED_ADDRESS as u64 + own_bits + if generic { layout::SHARED_BASE } else { 0 };
                (base, block.shared.len() as u64, &mut block.shadow)
            } else if let Some(index) = self.buffers.buffer_index(address) {
                let buffer = self.buffers.buffer_mut(index);
                (buffer.base, buffer.data.len() as u64, &mut buffer.shadow)
            } else {
                continue;
            };
            let start = address.wrapping_sub(base);
            if start < len {
                shadow.mark_initialized(start..(start + bytes).min(len));
            }
        }
    }
}

/// Reports lanes whose access is misaligned or out of the bounds of its location. The location is called `name`, lies
/// in the state space `space`, begins at address `base` and has `len` bytes.
#[cold]
fn report_bad_lanes(
    cx: &mut InstructionContext,
    request: &AccessRequest,
    bad: u32,
    (space, name): (&'static str, &str),
    (base, len): (u64, u64),
) {
    let bytes = request.bytes;
    for lane in lanes_in_mask(bad) {
        let address = request.addresses[lane as usize];
        if address & (bytes - 1) != 0 {
            cx.report_access(FindingKind::Misaligned, lane, (space, address), || {
                format!("access of {bytes} bytes at {space} address {address:#x}, which is not a multiple of {bytes}")
            });
        } else {
            let offset = address.wrapping_sub(base) as i64;
            let inside = (0..len as i64 - bytes as i64 + 1).contains(&offset);
            let problem = match inside {
                true => "no shared variable lies there".to_string(),
                false => format!("{name} has {len} bytes"),
            };
            cx.report_access(FindingKind::OutOfBounds, lane, (space, address), || {
                format!("{space} memory access of {bytes} bytes at offset {offset}: {problem}")
            });
        }
    }
}
