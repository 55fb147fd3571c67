//! The order of accesses to tensor memory by `tcgen05` instructions.
//!
//! These accesses are asynchronous and have ordering rules of their own. An earlier access is ordered before a later
//! one in these cases:
//!
//! ```text
//! earlier        later               ordered if
//! mma            mma, same thread    always: the tensor core executes a thread's products in order
//! mma            mma, other thread   commit or fence::before_thread_sync; synchronisation; fence::after_thread_sync
//! mma            anything else       commit; wait for the mbarrier (synchronisation); fence::after_thread_sync
//! ld, st         same warp           wait::ld, wait::st, or an instruction that reads a register of the ld
//! ld, st         other warp          the same; synchronisation; fence::after_thread_sync
//! ```
//!
//! All accesses cover whole groups of 16 lanes, so a cell stands for 16 lanes of one column. Source: PTX ISA, "Memory
//! Consistency Model for 5th generation of TensorCore operations". In two points the rules here are weaker, because the
//! hardware orders more and the kernels of CUTLASS rely on it: without `fence::before_thread_sync` after `wait::ld` and
//! `wait::st`, accesses are [`TensorOrder::NotPublished`], which is a note, and a load is complete once an instruction
//! reads one of its registers.

use super::{Agent, AsyncOpId, AsyncOperationTable, MemorySpace, OwnerKey, VectorClock, WarpVectorClocks};
use crate::matrix::tcgen05::shape::{COLUMNS, GROUP_LANES, LANES, MmaShape, Region};

/// What an access to tensor memory does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorAccessKind {
    /// `tcgen05.ld`
    Load,
    /// `tcgen05.st`
    Store,
    /// `tcgen05.mma` of this shape.
    Product(MmaShape),
    /// `tcgen05.dealloc`, which is not asynchronous.
    Free,
}

/// Index of an access in [`TensorAccesses`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorAccessId(u32);

/// An access to tensor memory.
#[derive(Clone, Copy, Debug)]
pub struct TensorAccess {
    /// What the access does.
    pub kind: TensorAccessKind,
    /// The thread that issued it; for loads and stores the first lane of the warp.
    pub agent: Agent,
    /// Index of the instruction in the kernel.
    pub pc: u32,
    /// The asynchronous operation whose completion includes the access; `None` for loads and stores.
    pub op: Option<AsyncOpId>,
    /// For loads and stores, the epoch of the warp when they were known to be complete; for products, the epoch of the
    /// thread at its next `commit` or `fence::before_thread_sync`. `None` before that.
    pub released: Option<u32>,
    /// For loads and stores, the epoch of the warp at the `fence::before_thread_sync` after their completion.
    pub fenced: Option<u32>,
}

/// How an access is ordered after an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorOrder {
    /// It is ordered.
    Ordered,
    /// It is ordered on the hardware, but the PTX ISA promises the order of two products of a thread only if they have
    /// the same accumulator and shape.
    OtherProduct,
    /// It is ordered on the hardware, but the PTX ISA asks for `fence::before_thread_sync` between the completion of the
    /// earlier access and the synchronisation.
    NotPublished,
    /// Only `fence::after_thread_sync` is missing.
    NotFenced,
    /// The earlier access is not known to be complete.
    NotComplete,
}

/// The accesses of a launch to tensor memory.
#[derive(Clone, Debug, Default)]
pub struct TensorAccesses(Vec<TensorAccess>);

impl TensorAccesses {
    /// Adds an access.
    pub fn add(&mut self, access: TensorAccess) -> TensorAccessId {
        self.0.push(access);
        TensorAccessId(self.0.len() as u32 - 1)
    }

    /// Returns an access.
    pub fn get(&self, id: TensorAccessId) -> &TensorAccess {
        &self.0[id.0 as usize]
    }

    /// Records that `fence::before_thread_sync` follows a complete load or store in epoch `epoch` of its warp.
    pub fn fence(&mut self, id: TensorAccessId, epoch: u32) {
        self.0[id.0 as usize].fenced.get_or_insert(epoch);
    }

    /// Records that a load or store is complete, or that a product is published, from epoch `epoch` of its warp on.
    pub fn release(&mut self, id: TensorAccessId, epoch: u32) {
        self.0[id.0 as usize].released.get_or_insert(epoch);
    }
}

/// The history of a block's tensor memory, by cells of 16 lanes of one column.
#[derive(Clone, Debug)]
pub struct TensorCells(Vec<Cell>);

#[derive(Clone, Debug, Default)]
struct Cell {
    writer: Option<TensorAccessId>,
    readers: Vec<TensorAccessId>,
    /// Whether the cell was written since its allocation.
    written: bool,
}

/// A new access while it is compared with earlier ones.
pub struct NewTensorAccess<'a> {
    /// The access.
    pub id: TensorAccessId,
    /// All accesses.
    pub accesses: &'a TensorAccesses,
    /// The asynchronous operations of the launch.
    pub ops: &'a AsyncOperationTable,
    /// The clocks of the warp that issues the access.
    pub warp: &'a WarpVectorClocks,
    /// The lanes that issue the access.
    pub lanes: u32,
}

impl Default for TensorCells {
    fn default() -> Self {
        Self(vec![Cell::default(); COLUMNS * LANES / GROUP_LANES])
    }
}

impl TensorCells {
    /// Checks and records an access to a region. Adds each earlier access after which the access is not ordered to
    /// `found`. Returns the first column of a cell that is read and was not written, if there is one.
    pub fn access(
        &mut self,
        region: &Region,
        (reads, writes): (bool, bool),
        new: &NewTensorAccess,
        found: &mut Vec<(TensorAccessId, TensorOrder)>,
    ) -> Option<u32> {
        let mut unwritten = None;
        // The earlier accesses that were compared already.
        let mut known: Vec<TensorAccessId> = Vec::new();
        let mut compare = |old: TensorAccessId| {
            if old != new.id && !known.contains(&old) {
                known.push(old);
                let order = new.order_after(old);
                if order != TensorOrder::Ordered {
                    found.push((old, order));
                }
            }
        };
        for group in (0..LANES / GROUP_LANES).filter(|group| region.0 >> group & 1 != 0) {
            let first = group * COLUMNS;
            let columns = region.1.start as usize..(region.1.end as usize).min(COLUMNS);
            for (column, cell) in columns.clone().zip(&mut self.0[first + columns.start..first + columns.end]) {
                if reads && !cell.written && unwritten.is_none() {
                    unwritten = Some(column as u32);
                }
                cell.writer.into_iter().for_each(&mut compare);
                if writes {
                    cell.readers.drain(..).for_each(&mut compare);
                    (cell.writer, cell.written) = (Some(new.id), true);
                } else {
                    cell.readers.retain(|old| !new.replaces(*old));
                    cell.readers.push(new.id);
                }
            }
        }
        unwritten
    }

    /// Marks the columns of all lanes as unwritten and forgets their accesses.
    pub fn clear(&mut self, columns: std::ops::Range<u32>) {
        for group in 0..LANES / GROUP_LANES {
            let first = group * COLUMNS;
            self.0[first + columns.start as usize..first + columns.end as usize].fill(Cell::default());
        }
    }

    /// Returns whether `column` was written in `lane` since its allocation.
    pub fn is_written(&self, lane: u32, column: u32) -> bool {
        self.0.get(lane as usize / GROUP_LANES * COLUMNS + column as usize).is_some_and(|cell| cell.written)
    }
}

impl NewTensorAccess<'_> {
    /// Whether the access, a read, can stand for the earlier read `old`: both complete together.
    fn replaces(&self, old: TensorAccessId) -> bool {
        let (new, old) = (self.accesses.get(self.id), self.accesses.get(old));
        let products = matches!((new.kind, old.kind), (TensorAccessKind::Product(_), TensorAccessKind::Product(_)));
        old.released.is_none()
            && if products { old.agent == new.agent } else { old.kind == new.kind && same_warp(new, old) }
    }

    /// Returns how the access is ordered after `old`: as the best of its lanes, because the instructions of a warp are
    /// executed by all lanes together.
    fn order_after(&self, old: TensorAccessId) -> TensorOrder {
        let old = self.accesses.get(old);
        let new = self.accesses.get(self.id);
        let is_product = |access: &TensorAccess| matches!(access.kind, TensorAccessKind::Product(_));
        match (old.kind, new.kind) {
            (TensorAccessKind::Product(a), TensorAccessKind::Product(b)) if old.agent == new.agent => {
                return if a == b { TensorOrder::Ordered } else { TensorOrder::OtherProduct };
            }
            (TensorAccessKind::Load | TensorAccessKind::Store | TensorAccessKind::Free, _) if same_warp(new, old) => {
                return if old.released.is_some() { TensorOrder::Ordered } else { TensorOrder::NotComplete };
            }
            _ => {}
        }
        let includes = |clock: &VectorClock, epoch: Option<u32>| {
            epoch.is_some_and(|epoch| {
                let lanes = clock.lanes_ordered_in_space(MemorySpace::Shared, old.agent.0 >> 5, epoch);
                if is_product(old) { lanes >> (old.agent.0 & 31) & 1 != 0 } else { lanes != 0 }
            })
        };
        let is_known = |clock: &VectorClock| {
            let published = includes(clock, old.released);
            match old.op {
                None => published,
                Some(op) => published && is_product(new) || self.is_complete(op.key(), clock),
            }
        };
        let known = |lanes: u32, clock| lanes & self.lanes != 0 && is_known(clock);
        let fences = || self.warp.tensor_fences().filter(|(lanes, clock)| known(*lanes, clock));
        if fences().next().is_some() {
            // `dealloc` is executed in order and needs no fences.
            let needs_fence = matches!(old.kind, TensorAccessKind::Load | TensorAccessKind::Store)
                && new.kind != TensorAccessKind::Free;
            let is_fenced = !needs_fence || fences().any(|(_, clock)| includes(clock, old.fenced));
            if is_fenced { TensorOrder::Ordered } else { TensorOrder::NotPublished }
        } else if self.warp.lane_groups_with_clocks().any(|(lanes, clock)| known(lanes, clock)) {
            if new.kind == TensorAccessKind::Free { TensorOrder::Ordered } else { TensorOrder::NotFenced }
        } else {
            TensorOrder::NotComplete
        }
    }

    fn is_complete(&self, key: OwnerKey, clock: &VectorClock) -> bool {
        self.ops.lanes_ordered_before_clock(key, clock, MemorySpace::Shared) != 0
    }
}

/// Whether two accesses were issued by the same warp.
fn same_warp(a: &TensorAccess, b: &TensorAccess) -> bool {
    a.agent.0 >> 5 == b.agent.0 >> 5
}
