//! Access to mbarrier objects: finds the object at an address and checks that it exists and is visible to its user.

use super::engine::AsyncEngine;
use crate::exec::context::InstructionContext;
use crate::exec::memory_system::MemorySystem;
use crate::exec::state::mbarrier::MbarrierLocation;
use crate::finding::FindingKind;
use crate::layout::{self, SharedAddressParts};
use crate::order::{AccessKind, MemorySpace};
use crate::program::op::AddressWindow;

/// Returns the location of the mbarrier at `address`. Reports addresses that cannot hold an mbarrier.
pub fn locate_mbarrier(
    cx: &mut InstructionContext,
    lane: u32,
    window: AddressWindow,
    address: u64,
) -> Option<MbarrierLocation> {
    let shared = match window {
        AddressWindow::Generic if layout::state_space_of(address) == Some(AddressWindow::Shared) => {
            address - layout::SHARED_BASE
        }
        AddressWindow::Generic => {
            cx.report(FindingKind::OutOfBounds, lane, || {
                format!("the mbarrier address {address:#x} is outside of shared memory")
            });
            return None;
        }
        _ => address,
    } as u32;
    let SharedAddressParts { rank, offset } = layout::split_shared_address(shared, cx.block().rank);
    let slot = match rank {
        None => Some(cx.warp.slot),
        Some(r) => cx.block().cluster.get(r as usize).copied(),
    };
    let own_rank = cx.block().rank;
    if let (AddressWindow::Shared, Some(_), Some(other)) = (window, slot, rank) {
        cx.report_access(FindingKind::OutOfBounds, lane, ("shared", shared as u64), || {
            layout::describe_foreign_cta_address(shared, other, own_rank)
        });
        return None;
    }
    let rank = rank.unwrap_or(own_rank);
    let Some(slot) = slot else {
        cx.report_access(FindingKind::OutOfBounds, lane, ("shared", shared as u64), || {
            format!("the mbarrier address names the block of rank {rank}, but the cluster has no such block")
        });
        return None;
    };
    let at = ("shared", offset as u64);
    if slot != cx.warp.slot && cx.grid.blocks.get(slot).is_none_or(|b| b.ended) {
        cx.report_access(FindingKind::OutOfBounds, lane, at, || {
            format!("the mbarrier address names the block of rank {rank}, which has exited")
        });
        return None;
    }
    if offset % 8 != 0 {
        cx.report_access(FindingKind::Misaligned, lane, at, || {
            format!("the mbarrier address {offset:#x} in shared memory is not a multiple of 8")
        });
        return None;
    }
    let end = layout::FIRST_SHARED_ADDRESS as usize + cx.block().shared.len();
    if offset < layout::FIRST_SHARED_ADDRESS || offset as usize + 8 > end {
        cx.report_access(FindingKind::OutOfBounds, lane, at, || {
            format!("the mbarrier address {offset:#x} is outside of the block's shared memory")
        });
        return None;
    }
    Some(MbarrierLocation { slot, address: offset })
}

/// Checks that an mbarrier exists and that its initialisation is ordered before this use; returns whether it exists.
/// `verb` names the use in the message.
pub fn check_mbarrier_use(
    cx: &mut InstructionContext,
    memory: &mut MemorySystem,
    lane: u32,
    at: MbarrierLocation,
    verb: &str,
) -> bool {
    let address = at.address;
    if cx.grid.blocks.mbarrier(at).is_none() {
        // The finding names the use itself as the other instruction. `Findings::into_list` drops findings with this
        // mark if another finding says that a use at this line is not ordered after the initialisation.
        let (site, memory) = (cx.finding_site(lane), Some(("shared", address as u64)));
        cx.grid.reporter.report_with_details(FindingKind::Mbarrier, site, Some(cx.pc.into()), memory, || {
            format!("an mbarrier at {address:#x} is {verb} before mbarrier.init or after mbarrier.inval")
        });
        return false;
    }
    memory.check_mbarrier_access(cx, lane, at, AccessKind::Atomic);
    true
}

/// Returns the address of the same byte in the shared memory of the cluster's block `rank`; `None` keeps the address.
pub(super) fn shared_address_in_block(address: u64, rank: Option<u32>) -> u64 {
    rank.map_or(address, |r| layout::shared_address_in_cluster(address as u32, r) as u64)
}

impl AsyncEngine {
    /// Returns the mbarriers to which a copy reports its bytes: the mbarrier at `address`, or with multicast the
    /// mbarrier at the same offset in each block of `ranks`. `None` if one of these mbarriers does not exist.
    pub(super) fn mbarriers_of_copy(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        lane: u32,
        address: Option<u64>,
        ranks: &[Option<u32>],
    ) -> Option<Vec<MbarrierLocation>> {
        let address = address?;
        let mut mbarriers = Vec::new();
        for rank in ranks {
            let at = locate_mbarrier(cx, lane, AddressWindow::SharedCluster, shared_address_in_block(address, *rank))?;
            if !check_mbarrier_use(cx, memory, lane, at, "given to a copy") {
                return None;
            }
            self.note_unfenced_init(cx, lane, at);
            mbarriers.push(at);
        }
        Some(mbarriers)
    }

    /// Adds a note if the initialisation of the mbarrier was not made visible to the async proxy before a copy uses the
    /// mbarrier; with `strict_proxy` adds a finding instead.
    fn note_unfenced_init(&mut self, cx: &mut InstructionContext, lane: u32, at: MbarrierLocation) {
        let Some((agent, epoch)) = cx.grid.blocks.mbarrier(at).map(|object| object.init) else { return };
        let order = &cx.warp.order;
        if !order.is_visible_to_async_proxy(lane, MemorySpace::Shared, agent, epoch)
            && !order.sees_fenced_init(lane, agent, epoch)
        {
            const TEXT: &str = "a copy completes on an mbarrier whose initialisation was not followed by fence.mbarrier_init or fence.proxy.async";
            if cx.grid.reporter.is_strict_about_proxies() {
                let memory = ("shared", u64::from(at.address));
                cx.report_access(FindingKind::AsyncProxy, lane, memory, || TEXT.to_string());
            } else {
                cx.grid.reporter.add_note(cx.pc, TEXT);
            }
        }
    }
}
