//! Starting clusters: assigns slots to blocks and creates their warps.

use super::Scheduler;
use crate::exec::grid::GridState;
use crate::exec::grid_context::{GridContext, coordinates_of_index};
use crate::exec::interpreter::enter_function;
use crate::exec::residency;
use crate::exec::state::barrier::{BlockBarrier, ClusterBarrier};
use crate::exec::state::block::{Block, BlockTable, SpareMemory};
use crate::exec::state::warp::{FragmentState, NO_RECONVERGENCE_POINT, Warp, WarpFragment};
use crate::layout::FIRST_SHARED_ADDRESS;
use crate::order::{MemorySpace, ShadowMemory, VectorClock, WarpVectorClocks};
use crate::regs::Registers;
use std::collections::{BTreeMap, HashMap};

impl Scheduler {
    /// Starts the blocks of the next cluster; returns false if none is left.
    pub(super) fn start_cluster(&mut self, grid: &mut GridState) -> bool {
        let context = grid.context;
        let counts: [u32; 3] = [0, 1, 2].map(|i| context.launch.grid[i] / context.cluster[i]);
        if grid.next_cluster as u64 >= counts.iter().map(|&n| n as u64).product() {
            return false;
        }
        let cluster = coordinates_of_index(grid.next_cluster, counts);
        grid.next_cluster += 1;
        let size = context.cluster_blocks();
        let slots: Vec<u32> = (0..size).map(|_| self.reserve_slot(&mut grid.blocks)).collect();
        for (rank, &slot) in (0..).zip(&slots) {
            let within = coordinates_of_index(rank, context.cluster);
            let at = [0, 1, 2].map(|i| cluster[i] * context.cluster[i] + within[i]);
            let block = new_block(&context, &mut grid.blocks, at, rank, slots.clone());
            self.queued[slot as usize] = vec![false; block.warps.len()];
            grid.blocks.insert(slot, block);
        }
        for &slot in &slots {
            let warps = self.queued[slot as usize].len() as u32;
            (0..warps).for_each(|w| self.enqueue_warp(slot, w));
        }
        grid.reporter.counters.blocks += size as u64;
        self.live_blocks += size;
        true
    }

    /// Reserves a slot for a block and returns the slot's number.
    fn reserve_slot(&mut self, blocks: &mut BlockTable) -> u32 {
        let free = (0..blocks.slot_count()).find(|&s| blocks.get(s).is_none() && self.queued[s as usize].is_empty());
        let slot = free.unwrap_or_else(|| {
            self.queued.push(Vec::new());
            blocks.add_slot()
        });
        // A non-empty list marks the slot as taken before its block exists.
        self.queued[slot as usize] = vec![false];
        slot
    }
}

/// Creates a block with its warps at the start of the kernel.
fn new_block(context: &GridContext, blocks: &mut BlockTable, at: [u32; 3], rank: u32, cluster: Vec<u32>) -> Block {
    let (kernel, launch) = (context.kernel, context.launch);
    let [gx, gy, _] = launch.grid;
    let index = context.first_block + at[0] + gx * (at[1] + gy * at[2]);
    let shared_bytes = (kernel.dynamic_shared - FIRST_SHARED_ADDRESS + launch.dynamic_shared) as usize;
    let SpareMemory { mut shared, mut shadow, mut registers } =
        blocks.take_spare_memory().unwrap_or_else(|| SpareMemory {
            shared: vec![0xa5; shared_bytes],
            shadow: ShadowMemory::new(MemorySpace::Shared, shared_bytes as u64, false),
            registers: Vec::new(),
        });
    if let Some((start, end)) = kernel.group_scratch {
        let [start, end] = [start, end].map(|address| address - FIRST_SHARED_ADDRESS);
        shared[start as usize..end as usize].fill(0);
        shadow.mark_initialized(start as u64..end as u64);
    }
    let threads = launch.block.iter().product::<u32>();
    let (slot, warps) = (cluster[rank as usize], threads.div_ceil(32));
    let mut block = Block {
        index,
        coordinates: at,
        rank,
        cluster,
        shared,
        shadow,
        warps: Vec::new(),
        barriers: vec![BlockBarrier::default(); 16],
        mbarriers: BTreeMap::new(),
        virtual_agents: 0,
        live: threads,
        block_barriers: 0,
        barriers_at_exit: vec![u32::MAX; threads as usize],
        warpgroups: Vec::new(),
        register_pool: 0,
        cluster_barrier: ClusterBarrier::default(),
        ended: false,
        pool_grew: false,
        wgmma_issued: false,
        undefined_words: BTreeMap::new(),
        tensor: None,
        cancel_failed: false,
    };
    let max_registers = residency::registers_per_thread_at_start(kernel, context.options);
    if max_registers.is_none() {
        block.register_pool = residency::REGISTERS_PER_MULTIPROCESSOR;
    }
    for w in 0..warps {
        let partial = w == warps - 1 && !threads.is_multiple_of(32);
        let lanes = if partial { (1 << (threads % 32)) - 1 } else { u32::MAX };
        let warp = new_warp(context, &block, (slot, w), lanes, max_registers, registers.pop());
        block.warps.push(Some(Box::new(warp)));
    }
    block
}

/// Creates a warp whose lanes stand at the first instruction of the kernel. `spare` are registers of a warp that has
/// ended, whose memory is reused.
fn new_warp(
    context: &GridContext,
    block: &Block,
    (slot, index): (u32, u32),
    lanes: u32,
    max_registers: Option<u32>,
    spare: Option<Registers>,
) -> Warp {
    let mut warp = Warp {
        index,
        slot,
        order: WarpVectorClocks::new(block.index, index, lanes, VectorClock::empty(block.index)),
        frames: Vec::new(),
        fragments: Vec::new(),
        joins: Vec::new(),
        live: lanes,
        local_size: 0,
        local: Vec::new(),
        local_init: Vec::new(),
        local_top: 0,
        copies: Default::default(),
        wgmma: Default::default(),
        tensor: Default::default(),
        unwritten_loads: Vec::new(),
        max_registers,
        setmaxnreg: Vec::new(),
        next_phases: HashMap::new(),
        passes_late_wait: false,
        clock: 0,
        yielded: false,
        idle_turns: 0,
        passes: 0,
    };
    enter_function(context, block, &mut warp, 0, None, lanes, spare);
    warp.fragments.push(WarpFragment {
        pc: 0,
        mask: lanes,
        frame: 0,
        join: NO_RECONVERGENCE_POINT,
        join_pc: NO_RECONVERGENCE_POINT,
        state: FragmentState::Ready,
        gathered: false,
        backward_branches: 0,
        spin_hash: 0,
    });
    warp
}
