//! Resident blocks, in numbered slots: each with its shared memory, warps, barriers and mbarriers.

use super::barrier::{BlockBarrier, ClusterBarrier};
use super::mbarrier::{MbarrierLocation, MbarrierObject};
use super::tensor_memory::TensorMemory;
use super::warp::Warp;
use super::wgmma::Warpgroup;
use crate::order::ShadowMemory;
use crate::regs::{Registers, UnwrittenSource};
use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};

/// A resident block.
#[derive(Debug)]
pub struct Block {
    /// Number of the block in vector clocks: its linear index in the grid plus the number of the grid's first block.
    pub index: u32,
    /// Coordinates in the grid: `%ctaid`.
    pub coordinates: [u32; 3],
    /// Rank of the block in its cluster.
    pub rank: u32,
    /// Slots of the blocks of this cluster, by rank.
    pub cluster: Vec<u32>,
    /// The bytes of shared memory; the first one has address [`crate::layout::FIRST_SHARED_ADDRESS`].
    pub shared: Vec<u8>,
    /// Shadow memory: the last writers and readers of the block's shared memory.
    pub shadow: ShadowMemory,
    /// The warps of the block; `None` in place of the warp that is running.
    pub warps: Vec<Option<Box<Warp>>>,
    /// The 16 barriers of the block (`bar`, `barrier`).
    pub barriers: Vec<BlockBarrier>,
    /// mbarrier objects by shared address.
    pub mbarriers: BTreeMap<u32, MbarrierObject>,
    /// Number of mbarriers initialised so far, at most 1023. The next mbarrier gets this number as the index of its
    /// agent (owner of a clock) in vector clocks.
    pub virtual_agents: u32,
    /// Number of threads that have not exited.
    pub live: u32,
    /// Number of completed barriers that all live threads of the block took part in.
    pub block_barriers: u32,
    /// For each thread that has exited, the value of `block_barriers` at its exit; `u32::MAX` for live threads.
    pub barriers_at_exit: Vec<u32>,
    /// wgmma products that are not waited for, by warpgroup.
    pub warpgroups: Vec<Warpgroup>,
    /// Number of registers in the pool that `setmaxnreg.dec` fills and `setmaxnreg.inc` takes from. If the registers
    /// per thread at the start are unknown, the pool begins with all registers of the multiprocessor, and a warp takes
    /// its registers at its first `setmaxnreg`.
    pub register_pool: u32,
    /// Barrier of the cluster; only the one in the block of rank 0 is used.
    pub cluster_barrier: ClusterBarrier,
    /// Whether all threads have exited. The block stays resident until all blocks of its cluster have ended.
    pub ended: bool,
    /// Whether the register pool grew or tensor memory was freed in this turn; after the turn, warps that wait for
    /// either are woken.
    pub pool_grew: bool,
    /// Whether, in this turn, the last of the four warps of a warpgroup issued a wgmma product; after the turn, warps
    /// that wait for the product are woken.
    pub wgmma_issued: bool,
    /// For each word of shared memory (offset divided by 4) into which a store put a value that depends on unwritten
    /// shared memory: the load of this unwritten memory. An entry counts only while shadow memory has unwritten bytes
    /// in the word.
    pub undefined_words: BTreeMap<u64, UnwrittenSource>,
    /// Tensor memory; `None` until the block executes a `tcgen05` instruction.
    pub tensor: Option<Box<TensorMemory>>,
    /// Whether a `clusterlaunchcontrol.try_cancel` of the block found no cluster to cancel.
    pub cancel_failed: bool,
}

impl Block {
    /// Returns the slot of the cluster's block of rank 0, which holds the barrier of the cluster.
    pub fn cluster_barrier_slot(&self) -> u32 {
        self.cluster[0]
    }

    /// Whether a barrier of all live threads has completed since the thread with the linear index `thread` exited.
    pub fn has_passed_barrier_since_exit(&self, thread: u32) -> bool {
        self.barriers_at_exit.get(thread as usize).is_some_and(|&barriers| barriers < self.block_barriers)
    }
}

/// Resident blocks by slot. A slot is empty until its block starts and after its cluster has ended.
#[derive(Debug, Default)]
pub struct BlockTable {
    slots: Vec<Option<Box<Block>>>,
    spare: Vec<SpareMemory>,
}

/// Memory of a block that has ended, for reuse by a later block.
#[derive(Debug)]
pub struct SpareMemory {
    /// The bytes of shared memory.
    pub shared: Vec<u8>,
    /// Shadow memory of the shared memory, all of it marked as unwritten.
    pub shadow: ShadowMemory,
    /// Registers of the kernel's call frames, one entry per warp at most. They have the values of the ended block.
    pub registers: Vec<Registers>,
}

impl BlockTable {
    /// Returns the number of slots, occupied or empty.
    pub fn slot_count(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Returns the block in a slot; `None` if the slot is empty.
    #[inline]
    pub fn get(&self, slot: u32) -> Option<&Block> {
        self.slots.get(slot as usize)?.as_deref()
    }

    /// Returns the block in a slot (mutable); `None` if the slot is empty.
    #[inline]
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Block> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Iterates over all resident blocks in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = &Block> {
        self.slots.iter().flatten().map(|block| &**block)
    }

    /// Adds an empty slot and returns its number.
    pub fn add_slot(&mut self) -> u32 {
        self.slots.push(None);
        self.slots.len() as u32 - 1
    }

    /// Puts a block into an empty slot.
    pub fn insert(&mut self, slot: u32, block: Block) {
        self.slots[slot as usize] = Some(Box::new(block));
    }

    /// Empties a slot and keeps the memory of its block for later blocks.
    pub fn remove(&mut self, slot: u32) {
        if let Some(block) = self.slots[slot as usize].take()
            && self.spare.len() < 8
        {
            let kernel_frame = |mut warp: Box<Warp>| Some(warp.frames.first_mut()?.take()?.regs);
            let registers = block.warps.into_iter().flatten().filter_map(kernel_frame).collect();
            self.spare.push(SpareMemory { shared: block.shared, shadow: block.shadow, registers });
        }
    }

    /// Returns the memory of a block that has ended.
    pub fn take_spare_memory(&mut self) -> Option<SpareMemory> {
        let mut memory = self.spare.pop()?;
        memory.shadow.reset(false);
        Some(memory)
    }

    /// Returns the mbarrier object at a location; `None` if no mbarrier was initialised there.
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
