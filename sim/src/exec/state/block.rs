//! Resident blocks: shared memory, warps, barriers and mbarriers of each, in numbered slots.

use super::barrier::{BlockBarrier, ClusterBarrier};
use super::mbarrier::{MbarrierLocation, MbarrierObject};
use super::warp::Warp;
use super::wgmma::Warpgroup;
use crate::order::ShadowMemory;
use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};

/// A resident block.
#[derive(Debug)]
pub struct Block {
    /// Linear index in the grid, behind all blocks of a primary grid.
    pub index: u32,
    /// Coordinates in the grid: `%ctaid`.
    pub coordinates: [u32; 3],
    /// Rank in its cluster.
    pub rank: u32,
    /// Slots of the cluster's blocks, by rank.
    pub cluster: Vec<u32>,
    /// Shared memory from [`crate::layout::SHARED_START`] on.
    pub shared: Vec<u8>,
    /// Writers and readers of the shared memory.
    pub shadow: ShadowMemory,
    /// The warps; `None` while one runs.
    pub warps: Vec<Option<Box<Warp>>>,
    /// The 16 barriers.
    pub barriers: Vec<BlockBarrier>,
    /// mbarrier objects by shared address.
    pub mbarriers: BTreeMap<u32, MbarrierObject>,
    /// Virtual agents (mbarriers) made so far.
    pub virtual_agents: u32,
    /// Threads that have not exited.
    pub live: u32,
    /// wgmma products of each warpgroup.
    pub warpgroups: Vec<Warpgroup>,
    /// Registers in the pool that `setmaxnreg.dec` fills and `setmaxnreg.inc` takes from.
    pub register_pool: u32,
    /// Barrier of the cluster; the one of the block of rank 0 is used.
    pub cluster_barrier: ClusterBarrier,
    /// All threads have exited; the block stays until all blocks of its cluster have.
    pub ended: bool,
    /// The register pool has grown in this turn: warps that wait for registers are woken after it.
    pub pool_grew: bool,
    /// A wgmma product was issued by its last warp in this turn: warps that wait for it are woken after it.
    pub wgmma_issued: bool,
}

impl Block {
    /// Slot of the block of rank 0, which keeps the barrier of the cluster.
    pub fn cluster_slot(&self) -> u32 {
        self.cluster[0]
    }
}

/// Resident blocks by slot. A slot is empty until its block starts and after its cluster has ended.
#[derive(Debug, Default)]
pub struct BlockTable {
    slots: Vec<Option<Box<Block>>>,
    /// Shared memory and shadow of blocks that have ended, for later blocks.
    spare: Vec<(Vec<u8>, ShadowMemory)>,
}

impl BlockTable {
    /// Number of slots, filled or empty.
    pub fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The block in a slot.
    #[inline]
    pub fn get(&self, slot: u32) -> Option<&Block> {
        self.slots.get(slot as usize)?.as_deref()
    }

    /// The block in a slot, to be changed.
    #[inline]
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Block> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// All resident blocks in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = &Block> {
        self.slots.iter().flatten().map(|block| &**block)
    }

    /// Adds an empty slot and returns its number.
    pub fn add_slot(&mut self) -> u32 {
        self.slots.push(None);
        self.slots.len() as u32 - 1
    }

    /// Fills an empty slot.
    pub fn fill(&mut self, slot: u32, block: Block) {
        self.slots[slot as usize] = Some(Box::new(block));
    }

    /// Empties a slot and keeps the block's shared memory for later blocks.
    pub fn remove(&mut self, slot: u32) {
        if let Some(block) = self.slots[slot as usize].take()
            && self.spare.len() < 8
        {
            self.spare.push((block.shared, block.shadow));
        }
    }

    /// Shared memory and shadow of a block that has ended; its bytes count as unwritten.
    pub fn take_spare_memory(&mut self) -> Option<(Vec<u8>, ShadowMemory)> {
        let (bytes, mut shadow) = self.spare.pop()?;
        shadow.reset(false);
        Some((bytes, shadow))
    }

    /// The mbarrier object at a location.
    pub fn mbarrier(&mut self, at: MbarrierLocation) -> Option<&mut MbarrierObject> {
        self.get_mut(at.slot)?.mbarriers.get_mut(&at.address)
    }
}

impl Index<u32> for BlockTable {
    type Output = Block;

    #[inline]
    fn index(&self, slot: u32) -> &Block {
        self.slots[slot as usize].as_ref().expect("the block is resident")
    }
}

impl IndexMut<u32> for BlockTable {
    #[inline]
    fn index_mut(&mut self, slot: u32) -> &mut Block {
        self.slots[slot as usize].as_mut().expect("the block is resident")
    }
}
