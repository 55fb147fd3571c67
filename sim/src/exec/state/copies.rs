//! Asynchronous copies that have been issued and have not taken effect: the bytes that they will move, the groups
//! that threads wait for, and how the copies signal their completion.

use super::location::MemoryLocation;
use super::mbarrier::MbarrierLocation;
use crate::finding::FindingSite;
use crate::order::AsyncOpId;
use crate::tensor_map::{Reduction, TensorMap};
use std::collections::VecDeque;

/// Consecutive bytes that a bulk copy moves.
#[derive(Clone, Debug)]
pub struct ByteRangeCopy {
    /// Destination buffer or shared memory.
    pub to: MemoryLocation,
    /// Byte offset in the destination.
    pub to_offset: u64,
    /// Source and byte offset in the source; `None` for `st.async`, whose bytes come from registers.
    pub from: Option<(MemoryLocation, u64)>,
    /// Number of bytes to move.
    pub bytes: u32,
}

/// The bytes that the lanes of one `cp.async` copy from one source to one destination.
#[derive(Clone, Debug)]
pub struct CpAsyncCopy {
    /// Lanes whose bytes have not moved yet.
    pub lanes: u32,
    /// Destination buffer or shared memory of all lanes.
    pub to: MemoryLocation,
    /// Byte offset of each lane in the destination.
    pub to_offsets: [u64; 32],
    /// Source buffer or shared memory of all lanes.
    pub from: MemoryLocation,
    /// Byte offset of each lane in the source.
    pub from_offsets: [u64; 32],
    /// Bytes that each lane reads from the source; the other bytes that it writes are zero.
    pub read_bytes: [u8; 32],
    /// Bytes that each lane writes: 4, 8 or 16.
    pub size: u8,
}

/// A tensor load: a box of a tensor that is copied to shared memory.
#[derive(Clone, Debug)]
pub struct TensorBoxLoad {
    /// The tensor map that describes the tensor.
    pub map: TensorMap,
    /// Coordinates of the box in the tensor, innermost dimension first.
    pub coordinates: Vec<i32>,
    /// Shared address in the destination block.
    pub shared: u32,
    /// Slot of the destination block.
    pub slot: u32,
}

/// The memory changes of an asynchronous operation.
#[derive(Clone, Debug, Default)]
pub struct CopyEffect {
    /// Byte ranges that bulk copies and stores move.
    pub pieces: Vec<ByteRangeCopy>,
    /// Rows that `cp.async` instructions move.
    pub rows: Vec<CpAsyncCopy>,
    /// Boxes that tensor loads move.
    pub boxes: Vec<TensorBoxLoad>,
    /// How the moved bytes are combined with the bytes at the destination; `None`: the moved bytes overwrite the
    /// destination.
    pub reduce: Option<Reduction>,
    /// `st.async`: the bytes to store.
    pub bytes: Option<Vec<u8>>,
}

/// How an operation signals its completion.
#[derive(Clone, Debug)]
pub enum CompletionSignal {
    /// Reports bytes to mbarriers (complete_tx): each mbarrier with its number of bytes. A multicast copy reports to
    /// one mbarrier per destination block.
    CompleteTx(Vec<(MbarrierLocation, u32)>),
    /// `cp.async.mbarrier.arrive`: each of the lanes `lanes` arrives at the mbarrier once its earlier `cp.async`
    /// copies are complete. `ops` lists the operations of these copies, each with its lanes.
    Arrive { warp: u32, slot: u32, lanes: u32, ops: Vec<(AsyncOpId, u32)>, at: MbarrierLocation, site: FindingSite },
}

/// An asynchronous operation that has been issued and has not taken effect.
#[derive(Clone, Debug)]
pub struct InFlightOperation {
    /// Id of the operation; `None` for `cp.async.mbarrier.arrive`, which completes several operations with ids of
    /// their own.
    pub op: Option<AsyncOpId>,
    /// The memory changes of the operation.
    pub effect: CopyEffect,
    /// How the operation signals its completion.
    pub signal: CompletionSignal,
}

impl InFlightOperation {
    /// Returns whether the operation reads or writes shared memory of the block in `block_slot`.
    pub fn uses_shared_memory_of(&self, block_slot: u32) -> bool {
        let shared = MemoryLocation::Shared(block_slot);
        let rows = self.effect.rows.iter().any(|row| row.to == shared);
        let boxes = self.effect.boxes.iter().any(|load| load.slot == block_slot);
        let piece = |p: &ByteRangeCopy| p.to == shared || p.from.is_some_and(|from| from.0 == shared);
        rows || boxes || self.effect.pieces.iter().any(piece)
    }

    /// Returns whether the operation is a bulk copy, tensor copy or `st.async` that writes shared memory of the block
    /// in `block_slot`.
    pub fn writes_shared_memory_of(&self, block_slot: u32) -> bool {
        let pieces = self.effect.pieces.iter().any(|p| p.to == MemoryLocation::Shared(block_slot));
        pieces || self.effect.boxes.iter().any(|load| load.slot == block_slot)
    }
}

/// `cp.async` instructions of a warp that belong to the same commit group and complete together.
#[derive(Clone, Debug)]
pub struct CpAsyncBatch {
    /// The asynchronous operation that stands for all of these copies.
    pub op: AsyncOpId,
    /// Lanes that have not waited for these copies.
    pub lanes: u32,
    /// The bytes that have not moved yet.
    pub rows: Vec<CpAsyncCopy>,
}

impl CpAsyncBatch {
    /// Drops the copies of all lanes except `lanes`.
    pub fn retain_lanes(&mut self, lanes: u32) {
        self.lanes &= lanes;
        self.rows.iter_mut().for_each(|row| row.lanes &= lanes);
        self.rows.retain(|row| row.lanes != 0);
    }
}

/// A committed `cp.async` group.
#[derive(Clone, Debug)]
pub struct CpAsyncGroup {
    /// Lanes that committed the group and have not waited for it.
    pub lanes: u32,
    /// The copies in the group.
    pub parts: Vec<CpAsyncBatch>,
}

/// A bulk group of one lane.
#[derive(Clone, Debug)]
pub struct BulkGroup {
    /// The lane that issued the stores.
    pub lane: u32,
    /// The stores in the group.
    pub stores: Vec<BulkStore>,
    /// Whether `cp.async.bulk.commit_group` has closed the group.
    pub committed: bool,
    /// Whether a `wait_group.read` has covered the group, so its sources have been read.
    pub read: bool,
}

/// One store of a bulk group. The read of its source and the write of its destination complete separately.
#[derive(Clone, Debug)]
pub struct BulkStore {
    /// The asynchronous operation to which shadow memory attributes the read of the source.
    pub reading: AsyncOpId,
    /// The asynchronous operation to which shadow memory attributes the write of the destination.
    pub writing: AsyncOpId,
    /// The memory changes of the store; `None` once it has taken effect.
    pub effect: Option<CopyEffect>,
}

/// The asynchronous copies of a warp that no thread has waited for.
#[derive(Clone, Debug, Default)]
pub struct WarpCopies {
    /// `cp.async` instructions since the last commit.
    pub open: Vec<CpAsyncBatch>,
    /// Committed `cp.async` groups, oldest first.
    pub groups: VecDeque<CpAsyncGroup>,
    /// Bulk groups, oldest first; the last group of each lane may be uncommitted.
    pub bulk: Vec<BulkGroup>,
}
