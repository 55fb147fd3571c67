//! `ldmatrix` and `stmatrix`: 8 × 8 matrices between shared memory and the registers of a warp.

use super::locate::AccessRequest;
use super::system::MemorySystem;
use crate::counters;
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::operands::{lane_addresses, lanes_where, lanes_with_undefined_address};
use crate::exec::state::location::{LaneGroup, MemoryLocation};
use crate::layout;
use crate::matrix::{Lanes, ldmatrix};
use crate::order::{AccessKind, AccessStrength};
use crate::program::op::{AddressWindow, LdStMatrix};

impl MemorySystem {
    /// Executes `ldmatrix` or `stmatrix`.
    pub fn matrix_transfer(&mut self, cx: &mut InstructionContext, t: &LdStMatrix) -> NextAction {
        if !cx.gather_lanes(u32::MAX) {
            return NextAction::Stop;
        }
        if !t.store && cx.mask == u32::MAX {
            let done = crate::simd::run_with_widest_simd(
                #[inline(always)]
                || self.load_own_rows(cx, t),
            );
            if done {
                return NextAction::Next;
            }
        }
        let count = t.regs.len();
        let rows = 8 * count;
        // Each of the lanes 0 to `rows` - 1 supplies the address of one row.
        let suppliers = u32::MAX >> (32 - rows);
        let at = lane_addresses(cx.regs(), &t.addr);
        let undefined = lanes_with_undefined_address(cx.regs(), &t.addr) & suppliers;
        if undefined != 0 {
            cx.report_undefined(undefined.trailing_zeros(), || "an address depends on an undefined register".into());
        }
        let mut groups = std::mem::take(&mut self.groups);
        groups.clear();
        let request = AccessRequest { window: t.window, addresses: &at, lanes: suppliers & !undefined, bytes: 16 };
        match own_rows(cx, &request) {
            Some(group) => groups.push(group),
            None => {
                self.locate_lanes(cx, request, &mut groups);
            }
        }
        if t.store {
            store_after_loads_of_warp(cx, |cx| self.store_rows(cx, t, &groups));
            cx.record_memory_change();
        } else {
            self.load_rows(cx, t, &groups);
        }
        self.groups = groups;
        NextAction::Next
    }

    fn store_rows(&mut self, cx: &mut InstructionContext, t: &LdStMatrix, groups: &[LaneGroup]) {
        let mut bytes = [[0u8; 16]; 32];
        let rows = 8 * t.regs.len();
        let (regs, mask) = (cx.regs(), cx.mask);
        let values: Vec<Lanes> = t.regs.iter().map(|&r| regs.get(r)).collect();
        if t.regs.iter().any(|&r| regs.undefined[r as usize] & mask != 0) {
            cx.report_undefined(cx.first_lane(), || "stmatrix stores an undefined register".into());
        }
        ldmatrix::store(&values, t.trans, &mut bytes[..rows]);
        for group in groups {
            self.count_traffic(cx.grid.reporter.counts(cx.pc), group, 16, true);
            let (pc, access) = (cx.pc, AccessKind::Write);
            let same_value = |memory: &Self, cx: &InstructionContext| {
                let data = memory.location_bytes(&cx.grid.blocks, group.location);
                // The bytes that the row overwrites: those of an earlier row of this instruction, or those in memory.
                let earlier = |lane: usize| {
                    let same_place = |l: &usize| group.lanes >> l & 1 != 0 && group.offsets[*l] == group.offsets[lane];
                    let in_memory = &data[group.offsets[lane] as usize..][..16];
                    (0..lane).rfind(same_place).map_or(in_memory, |row| &bytes[row][..])
                };
                lanes_where(group.lanes, |lane| earlier(lane) == bytes[lane])
            };
            self.check_shadow(cx, group.location, access, Some(&same_value), |shadow, warp, order, found| {
                let strength = AccessStrength::Weak;
                shadow.check_access(access, warp, group.lanes, &group.offsets, 16, strength, pc, order, found);
            });
            self.check_mbarrier_overwrite(cx, group, 16);
            let data = self.location_bytes_mut(&mut cx.grid.blocks, group.location);
            for lane in lanes_in_mask(group.lanes).map(|lane| lane as usize) {
                data[group.offsets[lane] as usize..][..16].copy_from_slice(&bytes[lane]);
            }
        }
    }

    fn load_rows(&mut self, cx: &mut InstructionContext, t: &LdStMatrix, groups: &[LaneGroup]) {
        let mut bytes = [[0u8; 16]; 32];
        let (count, pc) = (t.regs.len(), cx.pc);
        let mut unwritten = Vec::new();
        for group in groups {
            self.count_traffic(cx.grid.reporter.counts(pc), group, 16, false);
            self.check_shadow(cx, group.location, AccessKind::Read, None, |shadow, warp, order, found| {
                shadow.check_matrix_row_reads(warp, group.lanes, &group.offsets, pc, order, found);
            });
            let data = self.location_bytes(&cx.grid.blocks, group.location);
            for lane in lanes_in_mask(group.lanes).map(|lane| lane as usize) {
                bytes[lane].copy_from_slice(&data[group.offsets[lane] as usize..][..16]);
            }
            unwritten.push(std::mem::take(&mut self.unwritten_lanes));
        }
        let mut values = [[0u32; 32]; 4];
        ldmatrix::load(&bytes[..8 * count], t.trans, &mut values[..count]);
        for (slot, value) in t.regs.iter().zip(&values) {
            cx.set_register(*slot, value);
        }
        for (group, rows) in groups.iter().zip(unwritten).filter(|(_, rows)| *rows != 0) {
            self.set_loaded_fragments_undefined(cx, group.location, &group.offsets, rows, t);
        }
    }

    /// Fast path: executes an `ldmatrix` of all lanes from the block's own shared memory. Returns false, and does
    /// nothing, if an address is undefined, out of bounds, misaligned or in another state space.
    #[inline(always)]
    fn load_own_rows(&mut self, cx: &mut InstructionContext, t: &LdStMatrix) -> bool {
        let (rows, frame, pc, own) = (8 * t.regs.len(), cx.fragment.frame, cx.pc, cx.warp.slot);
        let regs = cx.regs();
        let (AddressWindow::Shared, false, Some(base), 0) =
            (t.window, t.addr.wide, t.addr.base, lanes_with_undefined_address(regs, &t.addr))
        else {
            return false;
        };
        let own_bits = cx.block().rank << layout::CLUSTER_RANK_SHIFT;
        let plus = (t.addr.offset as u32).wrapping_sub(layout::FIRST_SHARED_ADDRESS + own_bits);
        let offsets = regs.rows[base as usize].0.map(|a| a.wrapping_add(plus));
        let end = (cx.block().shared.len() as u32).saturating_sub(15);
        if !offsets[..rows].iter().fold(true, |good, &o| good & (o < end) & (o % 16 == 0)) {
            return false;
        }
        let lanes = u32::MAX >> (32 - rows);
        let wavefronts = counters::count_wavefronts(&offsets, lanes, 16);
        let counts = cx.grid.reporter.counts(pc);
        counts.shared_bytes += 16 * rows as u64;
        counts.wavefronts += wavefronts.needed;
        counts.wavefronts_least += wavefronts.without_conflicts;
        self.check_shadow(
            cx,
            MemoryLocation::Shared(own),
            AccessKind::Read,
            None,
            #[inline(always)]
            |shadow, warp, order, found| {
                shadow.check_matrix_row_reads(warp, lanes, &offsets.map(u64::from), pc, order, found);
            },
        );
        let shared = &cx.grid.blocks[own].shared;
        let regs = cx.warp.regs_mut(frame);
        for (&slot, offsets) in t.regs.iter().zip(offsets.chunks_exact(8)) {
            // Copies each row straight into the register. Through a separate buffer the row would be loaded twice,
            // which is slower.
            let matrix = &mut regs.rows[slot as usize].0;
            let rows: &mut [[u8; 16]; 8] = bytemuck::cast_mut(matrix);
            for (row, &from) in rows.iter_mut().zip(offsets) {
                row.copy_from_slice(&shared[from as usize..from as usize + 16]);
            }
            ldmatrix::rows_to_fragment(matrix, t.trans);
            regs.undefined[slot as usize] = 0;
        }
        let unwritten = std::mem::take(&mut self.unwritten_lanes);
        if unwritten != 0 {
            let at = MemoryLocation::Shared(own);
            self.set_loaded_fragments_undefined(cx, at, &offsets.map(u64::from), unwritten, t);
        }
        true
    }
}

/// Runs `store`, which stores for all lanes of the warp together. The earlier loads of these lanes count as ordered
/// before the store.
pub(super) fn store_after_loads_of_warp<T>(
    cx: &mut InstructionContext,
    store: impl FnOnce(&mut InstructionContext) -> T,
) -> T {
    let completed = cx.warp.order.with_completed_loads();
    let own = std::mem::replace(&mut cx.warp.order, completed);
    let done = store(cx);
    cx.warp.order = own;
    done
}

/// Returns all matrix rows of an access as one group if they are aligned and lie in the block's own shared memory;
/// else returns `None`.
#[inline]
fn own_rows(cx: &InstructionContext, request: &AccessRequest) -> Option<LaneGroup> {
    if request.window != AddressWindow::Shared {
        return None;
    }
    let end = (cx.block().shared.len() as u64).saturating_sub(15);
    let (lanes, location) = (request.lanes, MemoryLocation::Shared(cx.warp.slot));
    let first = layout::FIRST_SHARED_ADDRESS + (cx.block().rank << layout::CLUSTER_RANK_SHIFT);
    let offsets = request.addresses.map(|a| a.wrapping_sub(first as u64));
    let good = (0..32).all(|l| lanes >> l & 1 == 0 || offsets[l] < end && offsets[l].is_multiple_of(16));
    good.then_some(LaneGroup { location, lanes, offsets, consecutive: false })
}
