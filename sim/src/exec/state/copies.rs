//! Asynchronous copies that have been issued and have not taken effect: the bytes that they will move, the groups that
//! threads wait for, and how their completion becomes known.

use super::location::Location;
use super::mbarrier::MbarrierLocation;
use crate::finding::Site;
use crate::order::AsyncOpId;
use crate::tensor_map::{Reduction, TensorMap};
use std::collections::VecDeque;

/// Consecutive bytes that a bulk copy moves.
#[derive(Clone, Debug)]
pub struct CopyPiece {
    /// Destination.
    pub to: Location,
    /// Byte offset in the destination.
    pub to_offset: u64,
    /// Source and byte offset in it; `None` for `st.async`, whose bytes come from registers.
    pub from: Option<(Location, u64)>,
    /// Bytes to move.
    pub bytes: u32,
}

/// The bytes that the lanes of one `cp.async` move.
#[derive(Clone, Debug)]
pub struct CopyRow {
    /// Lanes whose bytes have not moved yet.
    pub lanes: u32,
    /// Destination of all lanes.
    pub to: Location,
    /// Byte offset of each lane in the destination.
    pub to_offsets: [u64; 32],
    /// Source of all lanes.
    pub from: Location,
    /// Byte offset of each lane in the source.
    pub from_offsets: [u64; 32],
    /// Bytes that each lane reads from the source; the rest of the `size` bytes that it writes is zero.
    pub read_bytes: [u8; 32],
    /// Bytes that each lane writes: 4, 8 or 16.
    pub size: u8,
}

/// A box of a tensor that is copied to shared memory.
#[derive(Clone, Debug)]
pub struct BoxLoad {
    /// The tensor map.
    pub map: TensorMap,
    /// Coordinates of the box in the tensor, innermost dimension first.
    pub coordinates: Vec<i32>,
    /// Shared address of the destination in its block.
    pub shared: u32,
    /// Slot of the destination block.
    pub slot: u32,
}

/// What an asynchronous operation changes when it takes effect.
#[derive(Clone, Debug, Default)]
pub struct CopyEffect {
    /// Bytes of bulk copies.
    pub pieces: Vec<CopyPiece>,
    /// Bytes of `cp.async`s.
    pub rows: Vec<CopyRow>,
    /// Boxes of tensor loads.
    pub boxes: Vec<BoxLoad>,
    /// Reduction with the bytes at the destination; `None` overwrites them.
    pub reduce: Option<Reduction>,
    /// `st.async`: the bytes to store.
    pub bytes: Option<Vec<u8>>,
}

/// How the completion of an operation becomes known.
#[derive(Clone, Debug)]
pub enum CompletionSignal {
    /// Credits bytes to an mbarrier, or for a multicast to one mbarrier per destination block.
    Credit(Vec<(MbarrierLocation, u32)>),
    /// `cp.async.mbarrier.arrive`: each of `lanes` of the warp arrives once its earlier `cp.async`s (`ops` with their
    /// lanes) are complete.
    Arrive { warp: u32, slot: u32, lanes: u32, ops: Vec<(AsyncOpId, u32)>, at: MbarrierLocation, site: Site },
}

/// An operation that has been issued and has not taken effect.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// The operation; `None` for `cp.async.mbarrier.arrive`, which stands for several.
    pub op: Option<AsyncOpId>,
    /// What it changes.
    pub effect: CopyEffect,
    /// How its completion becomes known.
    pub signal: CompletionSignal,
}

impl InFlight {
    /// Whether the operation reads or writes shared memory of the block in `slot`.
    pub fn touches(&self, slot: u32) -> bool {
        let shared = Location::Shared(slot);
        let rows = self.effect.rows.iter().any(|row| row.to == shared);
        let boxes = self.effect.boxes.iter().any(|load| load.slot == slot);
        let piece = |p: &CopyPiece| p.to == shared || p.from.is_some_and(|from| from.0 == shared);
        rows || boxes || self.effect.pieces.iter().any(piece)
    }

    /// Whether the operation writes shared memory of the block in `slot` by a bulk or tensor copy.
    pub fn writes(&self, slot: u32) -> bool {
        let pieces = self.effect.pieces.iter().any(|p| p.to == Location::Shared(slot));
        pieces || self.effect.boxes.iter().any(|load| load.slot == slot)
    }
}

/// The `cp.async`s of a warp between two commits, which complete together.
#[derive(Clone, Debug)]
pub struct CopyPart {
    /// The operation that stands for all of them.
    pub op: AsyncOpId,
    /// Lanes whose copies are not complete.
    pub lanes: u32,
    /// Bytes that have not moved yet.
    pub rows: Vec<CopyRow>,
}

impl CopyPart {
    /// Keeps only the copies of `lanes`.
    pub fn keep(&mut self, lanes: u32) {
        self.lanes &= lanes;
        self.rows.iter_mut().for_each(|row| row.lanes &= lanes);
        self.rows.retain(|row| row.lanes != 0);
    }
}

/// A committed `cp.async` group.
#[derive(Clone, Debug)]
pub struct CopyGroup {
    /// Lanes that committed it and have not waited for it.
    pub lanes: u32,
    /// Its copies.
    pub parts: Vec<CopyPart>,
}

/// A bulk group of one lane.
#[derive(Clone, Debug)]
pub struct BulkGroup {
    /// The lane.
    pub lane: u32,
    /// Its stores.
    pub stores: Vec<BulkStore>,
    /// Whether `cp.async.bulk.commit_group` has closed the group.
    pub committed: bool,
    /// Whether a `wait_group.read` has covered the group: its sources have been read.
    pub read: bool,
}

/// One store of a bulk group. Reading its source and writing its destination complete separately.
#[derive(Clone, Debug)]
pub struct BulkStore {
    /// The operation that reads the source.
    pub reading: AsyncOpId,
    /// The operation that writes the destination.
    pub writing: AsyncOpId,
    /// What the store changes; `None` once it has taken effect.
    pub effect: Option<CopyEffect>,
}

/// The asynchronous copies of a warp.
#[derive(Clone, Debug, Default)]
pub struct WarpCopies {
    /// `cp.async`s since the last commit.
    pub open: Vec<CopyPart>,
    /// Committed `cp.async` groups, oldest first.
    pub groups: VecDeque<CopyGroup>,
    /// Bulk groups, oldest first; the last one of a lane may be open.
    pub bulk: Vec<BulkGroup>,
}
