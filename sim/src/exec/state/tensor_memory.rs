//! The tensor memory of a block (`tcgen05`), and the tensor-core instructions that its threads have issued.

use crate::finding::FindingSite;
use crate::matrix::tcgen05::{COLUMNS, LANES};
use crate::order::{AsyncOpId, TensorAccessId, TensorAccesses, TensorCells};
use crate::regs::Slot;
use std::ops::Range;

/// Number of columns that one allocation consists of at least; every allocation is a multiple of it.
pub const ALLOCATION_UNIT: u32 = 32;

/// Number of complete accesses of a warp for which a `tcgen05.fence::before_thread_sync` may still come. A kernel that
/// never executes this fence would collect all of its accesses.
const MAX_UNFENCED: usize = 1024;

/// The tensor memory of a block: 128 lanes of 512 columns of 32 bits.
#[derive(Debug)]
pub struct TensorMemory {
    /// The words, lane by lane.
    words: Vec<u32>,
    /// The history of accesses.
    pub cells: TensorCells,
    /// The allocations that were not freed.
    pub allocations: Vec<TensorAllocation>,
    /// Number of columns of the last allocation.
    pub last_columns: Option<u32>,
    /// Number of allocations so far.
    pub allocation_count: u32,
    /// The first column of the last allocation, while its `tcgen05.alloc` waits for the other block of the pair.
    pub unconfirmed: Option<u32>,
    /// Index in the kernel of the first `tcgen05.relinquish_alloc_permit`, if the block has executed one.
    pub relinquished: Option<u32>,
    /// The number of blocks in `.cta_group` and the index in the kernel of the block's first instruction with it.
    pub group: Option<(u32, u32)>,
}

/// Allocated columns of tensor memory.
#[derive(Clone, Debug)]
pub struct TensorAllocation {
    /// The columns.
    pub columns: Range<u32>,
    /// The thread and the instruction of the allocation.
    pub site: FindingSite,
}

impl Default for TensorMemory {
    fn default() -> Self {
        TensorMemory {
            words: vec![0x7fff_ffff; LANES * COLUMNS],
            cells: TensorCells::default(),
            allocations: Vec::new(),
            last_columns: None,
            allocation_count: 0,
            unconfirmed: None,
            relinquished: None,
            group: None,
        }
    }
}

impl TensorMemory {
    /// Returns the word of a lane and column, both within tensor memory.
    #[inline]
    pub fn word(&mut self, lane: usize, column: usize) -> &mut u32 {
        &mut self.words[lane * COLUMNS + column]
    }

    /// Allocates `columns` columns for the instruction at `site` and returns the first; `None` if there is no room.
    pub fn allocate(&mut self, columns: u32, site: FindingSite) -> Option<u32> {
        let is_free = |first: &u32| {
            let end = first + columns;
            end <= COLUMNS as u32 && self.allocations.iter().all(|a| end <= a.columns.start || a.columns.end <= *first)
        };
        let first = (0..COLUMNS as u32).step_by(ALLOCATION_UNIT as usize).find(is_free)?;
        self.allocations.push(TensorAllocation { columns: first..first + columns, site });
        self.last_columns = Some(columns);
        self.allocation_count += 1;
        self.unconfirmed = Some(first);
        Some(first)
    }

    /// Returns whether all of these columns are allocated.
    pub fn are_allocated(&self, columns: &Range<u32>) -> bool {
        let is_allocated = |column: u32| self.allocations.iter().any(|a| a.columns.contains(&column));
        columns.end <= COLUMNS as u32
            && columns.clone().step_by(ALLOCATION_UNIT as usize).all(is_allocated)
            && columns.clone().last().is_none_or(is_allocated)
    }
}

/// The tensor-core instructions of a warp that are not known to be complete.
#[derive(Clone, Debug, Default)]
pub struct WarpTensor {
    /// Loads from tensor memory that are not known to be complete.
    pub loads: Vec<PendingLoad>,
    /// Complete loads and stores that no `tcgen05.fence::before_thread_sync` follows, at most [`MAX_UNFENCED`].
    unfenced: Vec<TensorAccessId>,
    /// Whether the warp has executed a load.
    pub has_loaded: bool,
    /// Stores to tensor memory that no `tcgen05.wait::st` has waited for.
    pub stores: Vec<TensorAccessId>,
    /// The products of each lane that has issued any.
    pub products: Vec<LaneProducts>,
}

/// A load from tensor memory for which the warp has not waited, neither by `tcgen05.wait::ld` nor by reading one of its
/// registers.
#[derive(Clone, Debug)]
pub struct PendingLoad {
    /// The access.
    pub id: TensorAccessId,
    /// Index of the call frame of its registers.
    pub frame: u32,
    /// First row of each of its registers.
    pub registers: Box<[Slot]>,
}

/// The products that one thread has issued.
#[derive(Clone, Debug)]
pub struct LaneProducts {
    /// The lane.
    pub lane: u32,
    /// The operation that stands for the products since the last commit; `None` if there are none.
    pub open: Option<AsyncOpId>,
    /// The operation of the products before the last commit.
    pub committed: Option<AsyncOpId>,
    /// The accesses that no `commit` or `fence::before_thread_sync` follows.
    pub unpublished: Vec<TensorAccessId>,
}

impl WarpTensor {
    /// Records that loads or stores are complete.
    pub fn complete(&mut self, accesses: &mut TensorAccesses, done: &[TensorAccessId], epoch: u32) {
        done.iter().for_each(|id| accesses.release(*id, epoch));
        if self.unfenced.len() + done.len() > MAX_UNFENCED {
            self.unfenced.clear();
        }
        self.unfenced.extend_from_slice(done);
    }

    /// Executes `tcgen05.fence::before_thread_sync`.
    pub fn fence(&mut self, accesses: &mut TensorAccesses, epoch: u32) {
        self.unfenced.drain(..).for_each(|id| accesses.fence(id, epoch));
    }

    /// Removes and returns the loads whose registers an instruction reads: it waits until they are complete.
    pub fn loads_into(&mut self, frame: u32, reads: &[Slot]) -> Vec<TensorAccessId> {
        let is_read =
            |load: &mut PendingLoad| load.frame == frame && reads.iter().any(|slot| load.registers.contains(slot));
        self.loads.extract_if(.., is_read).map(|load| load.id).collect()
    }

    /// Returns the products of a lane.
    pub fn products_of(&mut self, lane: u32) -> &mut LaneProducts {
        let at = self.products.iter().position(|products| products.lane == lane).unwrap_or_else(|| {
            self.products.push(LaneProducts { lane, open: None, committed: None, unpublished: Vec::new() });
            self.products.len() - 1
        });
        &mut self.products[at]
    }
}
