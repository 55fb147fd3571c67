//! Vector clocks. A clock maps each agent (a thread, or a virtual agent such as an mbarrier) to an epoch: the agent's
//! accesses up to this epoch happen before the point for which the clock stands. An epoch is the part of a warp's
//! execution between two releases or fences.
//!
//! A clock stores one epoch per warp and a mask of lanes, because the lanes of a warp usually share an epoch. Clocks
//! of other blocks are in a persistent tree, so that cloning a clock is O(1) and joining costs only the differences.

use super::{Agent, LANES, MemorySpace, OwnerKey};
use std::rc::Rc;

/// Lanes of a warp whose epoch differs from the one that most lanes of the warp share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LaneException {
    warp: u8,
    mask: u32,
    epoch: u32,
}

/// The epochs of the agents of one block: for each warp an epoch and the mask of lanes that have it, exceptions for
/// other lanes, and the epochs of virtual agents, such as mbarriers. Epoch 0 means that no access of the agent happens
/// before the clock's point.
#[derive(Clone, Debug, Default)]
pub(super) struct BlockClock {
    epoch: [u32; LANES],
    mask: [u32; LANES],
    /// Mask of the warps that have lanes with an epoch of their own, which `extra` stores.
    uneven: u32,
    extra: Vec<LaneException>,
    /// Pairs (index - 1024, epoch) of the block's virtual agents, sorted by index. Indices 0 to 1023 belong to the
    /// block's threads.
    virtuals: Vec<(u16, u32)>,
}

impl BlockClock {
    /// Returns the lanes of `warp` whose epoch is at least `epoch`.
    #[inline(always)]
    fn lanes_ordered_before_clock(&self, warp: usize, epoch: u32) -> u32 {
        let even = if self.epoch[warp] >= epoch { self.mask[warp] } else { 0 };
        if self.uneven >> warp & 1 == 0 { even } else { even | self.exception_lanes(warp, epoch) }
    }

    #[cold]
    fn exception_lanes(&self, warp: usize, epoch: u32) -> u32 {
        let higher = self.extra.iter().filter(|x| x.warp as usize == warp && x.epoch >= epoch);
        higher.fold(0, |mask, x| mask | x.mask)
    }

    fn virtual_epoch(&self, index: u16) -> u32 {
        self.virtuals.binary_search_by_key(&index, |v| v.0).map_or(0, |at| self.virtuals[at].1)
    }

    /// Returns the mask of those of the 32 virtual agents from `first` on whose epoch is at least `epoch`.
    fn ordered_virtual_agents(&self, first: u16, epoch: u32) -> u32 {
        if epoch == 0 {
            return u32::MAX;
        }
        let start = self.virtuals.partition_point(|v| v.0 < first);
        let near = self.virtuals[start..].iter().take_while(|v| v.0 < first + LANES as u16);
        near.filter(|v| v.1 >= epoch).fold(0, |mask, v| mask | 1 << (v.0 - first))
    }

    /// Returns the epoch of each lane of `warp`.
    fn lanes(&self, warp: usize) -> [u32; LANES] {
        let mut lanes = [0; LANES];
        let mut raise = |mask: u32, epoch: u32| {
            for (lane, known) in lanes.iter_mut().enumerate() {
                if mask >> lane & 1 != 0 {
                    *known = epoch.max(*known);
                }
            }
        };
        raise(self.mask[warp], self.epoch[warp]);
        if self.uneven >> warp & 1 != 0 {
            self.extra.iter().filter(|x| x.warp as usize == warp).for_each(|x| raise(x.mask, x.epoch));
        }
        lanes
    }

    fn set_lanes(&mut self, warp: usize, lanes: &[u32; LANES]) {
        if self.uneven >> warp & 1 != 0 {
            self.extra.retain(|x| x.warp as usize != warp);
            self.uneven &= !(1 << warp);
        }
        let mut left = (0..LANES).filter(|&lane| lanes[lane] > 0).fold(0u32, |mask, lane| mask | 1 << lane);
        let (mut epoch, mut mask) = (0, 0u32);
        while left != 0 {
            let mut level = lanes[left.trailing_zeros() as usize];
            let mut same = (0..LANES).filter(|&lane| lanes[lane] == level).fold(0u32, |mask, lane| mask | 1 << lane);
            left &= !same;
            if same.count_ones() > mask.count_ones() {
                std::mem::swap(&mut level, &mut epoch);
                std::mem::swap(&mut same, &mut mask);
            }
            if same != 0 {
                self.extra.push(LaneException { warp: warp as u8, mask: same, epoch: level });
                self.uneven |= 1 << warp;
            }
        }
        (self.epoch[warp], self.mask[warp]) = (epoch, mask);
    }

    /// Raises the epochs of the lanes `mask` of `warp` to at least `epoch`.
    fn raise(&mut self, warp: usize, mask: u32, epoch: u32) {
        if self.uneven >> warp & 1 == 0 {
            let (known, lanes) = (self.epoch[warp], self.mask[warp]);
            if known >= epoch && lanes & mask == mask {
                return;
            }
            if known <= epoch && lanes & !mask == 0 {
                (self.epoch[warp], self.mask[warp]) = (epoch, mask);
                return;
            }
        }
        let mut lanes = self.lanes(warp);
        for (lane, known) in lanes.iter_mut().enumerate() {
            if mask >> lane & 1 != 0 {
                *known = epoch.max(*known);
            }
        }
        self.set_lanes(warp, &lanes);
    }

    fn raise_virtual(&mut self, index: u16, epoch: u32) {
        match self.virtuals.binary_search_by_key(&index, |v| v.0) {
            Ok(at) => self.virtuals[at].1 = self.virtuals[at].1.max(epoch),
            Err(at) => self.virtuals.insert(at, (index, epoch)),
        }
    }

    /// Returns true if no epoch of `other` is above the epoch of the same agent in this vector clock.
    fn covers(&self, other: &BlockClock) -> bool {
        (0..LANES).all(|warp| self.covers_warp(other, warp))
            && other.virtuals.iter().all(|&(index, epoch)| self.virtual_epoch(index) >= epoch)
    }

    #[inline(always)]
    fn covers_warp(&self, other: &BlockClock, warp: usize) -> bool {
        let even = self.epoch[warp] >= other.epoch[warp] && other.mask[warp] & !self.mask[warp] == 0;
        if (self.uneven | other.uneven) >> warp & 1 == 0 {
            even
        } else {
            self.lanes(warp).iter().zip(other.lanes(warp)).all(|(mine, theirs)| *mine >= theirs)
        }
    }

    fn join(&mut self, other: &BlockClock) {
        for warp in 0..LANES {
            if (self.uneven | other.uneven) >> warp & 1 == 0 {
                if other.mask[warp] != 0 {
                    self.raise(warp, other.mask[warp], other.epoch[warp]);
                }
            } else {
                let mut lanes = self.lanes(warp);
                lanes.iter_mut().zip(other.lanes(warp)).for_each(|(mine, theirs)| *mine = theirs.max(*mine));
                self.set_lanes(warp, &lanes);
            }
        }
        for &(index, epoch) in &other.virtuals {
            self.raise_virtual(index, epoch);
        }
    }
}

/// Joins `theirs` into `mine`. If one vector clock already includes the other, the result is that clock's object, so
/// that equal clocks stay shared.
fn join_blocks(mine: &mut Rc<BlockClock>, theirs: &Rc<BlockClock>) {
    if Rc::ptr_eq(mine, theirs) || mine.covers(theirs) {
        return;
    }
    if theirs.covers(mine) {
        *mine = theirs.clone();
    } else {
        Rc::make_mut(mine).join(theirs);
    }
}

/// Number of bits of a block index that select a child at each level of the tree.
const FAN: u32 = 4;
/// Number of levels below the root of the tree.
const DEPTH: u32 = 4;

/// A persistent map from block indices to block clocks: cloning is O(1), a change O(depth), a join O(differences).
#[derive(Clone, Debug)]
enum BlockTree {
    Leaf(Rc<BlockClock>),
    Inner(Box<[Option<Rc<BlockTree>>; 1 << FAN]>),
}

impl BlockTree {
    fn empty() -> BlockTree {
        BlockTree::Inner(Default::default())
    }

    fn slot(block: u32, level: u32) -> usize {
        (block >> (FAN * level) & ((1 << FAN) - 1)) as usize
    }

    fn get(&self, block: u32, level: u32) -> Option<&Rc<BlockClock>> {
        match self {
            BlockTree::Leaf(clock) => Some(clock),
            BlockTree::Inner(children) => {
                children[BlockTree::slot(block, level)].as_ref()?.get(block, level.wrapping_sub(1))
            }
        }
    }

    /// Joins `clock`, which belongs to `block`, into a tree node at level `level`.
    fn raise(&mut self, block: u32, level: u32, clock: &Rc<BlockClock>) {
        match self {
            BlockTree::Leaf(mine) => join_blocks(mine, clock),
            BlockTree::Inner(children) => {
                let child = &mut children[BlockTree::slot(block, level)];
                match child {
                    Some(child) => Rc::make_mut(child).raise(block, level.wrapping_sub(1), clock),
                    None if level == 0 => *child = Some(Rc::new(BlockTree::Leaf(clock.clone()))),
                    None => {
                        let mut new = BlockTree::empty();
                        new.raise(block, level - 1, clock);
                        *child = Some(Rc::new(new));
                    }
                }
            }
        }
    }
}

fn join_maps(mine: &mut Rc<BlockTree>, theirs: &Rc<BlockTree>) {
    if Rc::ptr_eq(mine, theirs) {
        return;
    }
    match (&**mine, &**theirs) {
        (BlockTree::Leaf(a), BlockTree::Leaf(b)) => {
            let mut joined = a.clone();
            join_blocks(&mut joined, b);
            if Rc::ptr_eq(&joined, b) {
                *mine = theirs.clone();
            } else if !Rc::ptr_eq(&joined, a) {
                *mine = Rc::new(BlockTree::Leaf(joined));
            }
        }
        (BlockTree::Inner(a), BlockTree::Inner(b)) => {
            let mut joined = a.clone();
            let (mut as_a, mut as_b) = (true, true);
            for ((slot, old), theirs) in joined.iter_mut().zip(a.iter()).zip(b.iter()) {
                match (slot.as_mut(), theirs) {
                    (Some(slot), Some(theirs)) => join_maps(slot, theirs),
                    (None, Some(theirs)) => *slot = Some(theirs.clone()),
                    _ => {}
                }
                as_a &= same(slot, old);
                as_b &= same(slot, theirs);
            }
            if as_b {
                *mine = theirs.clone();
            } else if !as_a {
                *mine = Rc::new(BlockTree::Inner(joined));
            }
        }
        _ => unreachable!("leaves of the map are all at the same depth"),
    }
}

fn same(a: &Option<Rc<BlockTree>>, b: &Option<Rc<BlockTree>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Rc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// The epochs that a vector clock holds for the agents of its own block and of other blocks.
#[derive(Clone, Debug, Default)]
pub(super) struct EpochsByBlock {
    own: Rc<BlockClock>,
    others: Option<Rc<BlockTree>>,
}

impl EpochsByBlock {
    #[inline(always)]
    fn lanes_ordered_before_clock(&self, block: u32, key: OwnerKey, epoch: u32) -> u32 {
        if key >> 6 == block {
            EpochsByBlock::of_block(&self.own, key, epoch)
        } else {
            self.ordered_lanes_elsewhere(key, epoch)
        }
    }

    #[cold]
    fn ordered_lanes_elsewhere(&self, key: OwnerKey, epoch: u32) -> u32 {
        let block = self.others.as_ref().and_then(|others| others.get(key >> 6, DEPTH));
        block.map_or(0, |block| EpochsByBlock::of_block(block, key, epoch))
    }

    #[inline(always)]
    fn of_block(block: &BlockClock, key: OwnerKey, epoch: u32) -> u32 {
        let warp = (key & 63) as usize;
        if warp < LANES {
            return block.lanes_ordered_before_clock(warp, epoch);
        }
        block.ordered_virtual_agents(((warp - LANES) * LANES) as u16, epoch)
    }

    fn join(&mut self, block: u32, other: &EpochsByBlock, other_block: u32) {
        if block == other_block {
            join_blocks(&mut self.own, &other.own);
        } else if let Some(mine) = other.others.as_ref().and_then(|others| others.get(block, DEPTH)) {
            join_blocks(&mut self.own, mine);
        }
        match (&mut self.others, &other.others) {
            (Some(mine), Some(theirs)) => join_maps(mine, theirs),
            (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
            _ => {}
        }
        if block != other_block {
            let others = self.others.get_or_insert_with(|| Rc::new(BlockTree::empty()));
            if !others.get(other_block, DEPTH).is_some_and(|known| known.covers(&other.own)) {
                Rc::make_mut(others).raise(other_block, DEPTH, &other.own);
            }
        }
    }

    fn raise(&mut self, block: u32, key: OwnerKey, mask: u32, epoch: u32) {
        let warp = (key & 63) as usize;
        let learn = |clock: &mut BlockClock| {
            if warp < LANES {
                clock.raise(warp, mask, epoch);
            } else {
                for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
                    clock.raise_virtual(((warp - LANES) * LANES + lane) as u16, epoch);
                }
            }
        };
        if self.lanes_ordered_before_clock(block, key, epoch) & mask == mask {
            return;
        }
        if key >> 6 == block {
            learn(Rc::make_mut(&mut self.own));
        } else {
            let mut new = BlockClock::default();
            learn(&mut new);
            let others = self.others.get_or_insert_with(|| Rc::new(BlockTree::empty()));
            Rc::make_mut(others).raise(key >> 6, DEPTH, &Rc::new(new));
        }
    }

    fn is_same_object(&self, other: &EpochsByBlock) -> bool {
        Rc::ptr_eq(&self.own, &other.own) && same(&self.others, &other.others)
    }
}

/// A vector clock of a thread. It holds, for each agent, the last epoch whose accesses happen before the thread's next
/// access. For each state space, it also holds the last epoch whose generic writes are visible to the async proxy. It
/// is cheap to clone.
///
/// A thread's own accesses are not in its clock; [`WarpVectorClocks::release`](super::WarpVectorClocks::release) adds them.
#[derive(Clone, Debug)]
pub struct VectorClock {
    pub(super) block: u32,
    seen: EpochsByBlock,
    /// For each state space, the epochs whose writes are visible to the async proxy; never above `seen`. `None` if no
    /// thread has executed a proxy fence whose effect reached this vector clock.
    fenced: [Option<EpochsByBlock>; 2],
    /// The epochs whose mbarrier initialisations are visible to the vector clock's thread. They may be above the
    /// epochs in `seen`: a thread fenced the initialisations with `fence.mbarrier_init`, and a relaxed cluster barrier
    /// or a release passed them on. `None` if there are none.
    fenced_inits: Option<EpochsByBlock>,
    /// The epochs whose loads are complete. They may be above the epochs in `seen`, because the loading warp executed
    /// `wgmma.fence` after the loads, or because it executes a store of all lanes together (`stmatrix`). `None` if
    /// there are no such epochs.
    completed_loads: Option<EpochsByBlock>,
    /// The epochs whose accesses to shared memory happen before the thread's next access. They may be above the epochs
    /// in `seen`, because a fence with `.sync_restrict` passed them on. `None` if there are none.
    shared_accesses: Option<EpochsByBlock>,
    /// The epochs whose writes of tensor maps a release fence of the tensormap proxy passed on. They may be above the
    /// epochs in `seen`. An acquire fence of this proxy makes these writes visible. `None` if there are no such
    /// epochs.
    released_maps: Option<EpochsByBlock>,
    /// For each tensor map (by the address of its acquire fence), in ascending order, the epochs whose writes of the
    /// map are visible to the tensormap proxy.
    visible_maps: Vec<(u64, EpochsByBlock)>,
}

/// The accesses that a memory fence orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceCoverage {
    /// All accesses.
    All,
    /// Accesses to shared memory (`.sync_restrict`).
    Shared,
    /// Writes of tensor maps, for later accesses through the tensormap proxy
    /// (`fence.proxy.tensormap::generic`, `tensormap.cp_fenceproxy`).
    TensorMaps,
}

impl VectorClock {
    /// Returns the vector clock of a thread of `block` at the start of a launch: only the host's accesses happen
    /// before the start.
    pub fn empty(block: u32) -> VectorClock {
        VectorClock {
            block,
            seen: EpochsByBlock::default(),
            fenced: [None, None],
            fenced_inits: None,
            completed_loads: None,
            shared_accesses: None,
            released_maps: None,
            visible_maps: Vec::new(),
        }
    }

    /// Returns the part of this vector clock that a fence with the coverage `covers` passes on to other threads.
    pub(super) fn restricted_to_fence(self, covers: FenceCoverage) -> VectorClock {
        let joined = |part: Option<EpochsByBlock>| {
            let mut all = self.seen.clone();
            part.iter().for_each(|part| all.join(self.block, part, self.block));
            Some(all)
        };
        let empty = VectorClock::empty(self.block);
        match covers {
            FenceCoverage::All => self,
            FenceCoverage::Shared => {
                let shared_accesses = joined(self.shared_accesses);
                let [fenced, _] = self.fenced;
                let (fenced_inits, completed_loads) = (self.fenced_inits, self.completed_loads);
                VectorClock { shared_accesses, fenced: [fenced, None], fenced_inits, completed_loads, ..empty }
            }
            FenceCoverage::TensorMaps => {
                let released_maps = joined(self.released_maps);
                VectorClock { released_maps, visible_maps: self.visible_maps, ..empty }
            }
        }
    }

    /// Executes `fence.proxy.tensormap::generic.acquire` for the tensor map at `address`. Makes writes of this map
    /// visible to the tensormap proxy: the writes in this vector clock, and the writes that a release fence of this
    /// proxy passed on.
    pub(super) fn make_map_visible(&mut self, address: u64) {
        let mut visible = self.seen.clone();
        self.released_maps.iter().for_each(|maps| visible.join(self.block, maps, self.block));
        self.join_visible_map(address, &visible, self.block);
    }

    fn join_visible_map(&mut self, address: u64, visible: &EpochsByBlock, block: u32) {
        match self.visible_maps.binary_search_by_key(&address, |map| map.0) {
            Ok(at) => self.visible_maps[at].1.join(self.block, visible, block),
            Err(at) => {
                let mut mine = EpochsByBlock::default();
                mine.join(self.block, visible, block);
                self.visible_maps.insert(at, (address, mine));
            }
        }
    }

    /// Returns the lanes of warp `key` whose writes up to `epoch` of the tensor map at `address` are visible to the
    /// tensormap proxy.
    pub(super) fn lanes_visible_to_tensormap_proxy(&self, address: u64, key: OwnerKey, epoch: u32) -> u32 {
        let map = self.visible_maps.iter().find(|map| map.0 == address);
        map.map_or(0, |map| map.1.lanes_ordered_before_clock(self.block, key, epoch))
    }

    /// Returns true if `agent`'s accesses up to `epoch` happen before the point in time for which this vector clock
    /// stands.
    pub fn includes(&self, agent: Agent, epoch: u32) -> bool {
        agent == Agent::HOST || self.lanes_ordered_before_clock(agent.0 >> 5, epoch) >> (agent.0 & 31) & 1 != 0
    }

    /// Returns true if `agent`'s generic writes to `space` up to `epoch` are visible to the async proxy.
    pub fn is_visible_to_async_proxy(&self, space: MemorySpace, agent: Agent, epoch: u32) -> bool {
        agent == Agent::HOST || self.lanes_visible_to_async_proxy(space, agent.0 >> 5, epoch) >> (agent.0 & 31) & 1 != 0
    }

    /// Returns true if `agent`'s mbarrier initialisations up to `epoch` are visible to this vector clock's thread
    /// because of `fence.mbarrier_init`.
    pub fn includes_fenced_init(&self, agent: Agent, epoch: u32) -> bool {
        let lanes = |inits: &EpochsByBlock| inits.lanes_ordered_before_clock(self.block, agent.0 >> 5, epoch);
        self.fenced_inits.as_ref().is_some_and(|inits| lanes(inits) >> (agent.0 & 31) & 1 != 0)
    }

    /// Returns true if `agent`'s loads up to `epoch` happen before this vector clock's point because of `wgmma.fence`
    /// or `stmatrix`.
    pub fn includes_completed_loads(&self, agent: Agent, epoch: u32) -> bool {
        let lanes = |loads: &EpochsByBlock| loads.lanes_ordered_before_clock(self.block, agent.0 >> 5, epoch);
        self.completed_loads.as_ref().is_some_and(|loads| lanes(loads) >> (agent.0 & 31) & 1 != 0)
    }

    /// Records that `agent`'s accesses up to `epoch` happen before the point of this vector clock.
    pub fn record_happens_before(&mut self, agent: Agent, epoch: u32) {
        if agent != Agent::HOST {
            self.raise_epoch_of_lanes(agent.0 >> 5, 1 << (agent.0 & 31), epoch);
        }
    }

    /// Sets each epoch to the maximum of both vector clocks. `other` may be the clock of another block.
    pub fn join(&mut self, other: &VectorClock) {
        self.seen.join(self.block, &other.seen, other.block);
        let [shared, global] = &mut self.fenced;
        let mine = [
            shared,
            global,
            &mut self.fenced_inits,
            &mut self.completed_loads,
            &mut self.shared_accesses,
            &mut self.released_maps,
        ];
        for (mine, theirs) in mine.into_iter().zip(other.optional_epochs()) {
            if let Some(theirs) = theirs {
                mine.get_or_insert_with(EpochsByBlock::default).join(self.block, theirs, other.block);
            }
        }
        for (address, visible) in &other.visible_maps {
            self.join_visible_map(*address, visible, other.block);
        }
    }

    /// Returns the optional epochs of this vector clock: all epochs except `seen` and the epochs of the visible tensor
    /// maps.
    fn optional_epochs(&self) -> [&Option<EpochsByBlock>; 6] {
        let [shared, global] = &self.fenced;
        [shared, global, &self.fenced_inits, &self.completed_loads, &self.shared_accesses, &self.released_maps]
    }

    /// Executes `fence.proxy.async`: makes all writes in this vector clock visible to the async proxy in the given
    /// state spaces.
    pub fn fence_proxy(&mut self, shared: bool, global: bool) {
        for (fenced, wanted) in self.fenced.iter_mut().zip([shared, global]) {
            if wanted {
                *fenced = Some(self.seen.clone());
            }
        }
        if let (true, [Some(fenced), _], Some(accesses)) = (shared, &mut self.fenced, &self.shared_accesses) {
            fenced.join(self.block, accesses, self.block);
        }
    }

    /// Returns the mask of the lanes of warp `key` whose epoch is at least `epoch`.
    #[inline(always)]
    pub(super) fn lanes_ordered_before_clock(&self, key: OwnerKey, epoch: u32) -> u32 {
        self.seen.lanes_ordered_before_clock(self.block, key, epoch)
    }

    /// Returns the mask of the lanes of warp `key` whose accesses to `space` up to `epoch` happen before the point of
    /// this vector clock.
    #[inline(always)]
    pub(super) fn lanes_ordered_in_space(&self, space: MemorySpace, key: OwnerKey, epoch: u32) -> u32 {
        let lanes = self.lanes_ordered_before_clock(key, epoch);
        match &self.shared_accesses {
            Some(accesses) if space == MemorySpace::Shared => {
                lanes | accesses.lanes_ordered_before_clock(self.block, key, epoch)
            }
            _ => lanes,
        }
    }

    pub(super) fn lanes_visible_to_async_proxy(&self, space: MemorySpace, key: OwnerKey, epoch: u32) -> u32 {
        self.fenced[space as usize]
            .as_ref()
            .map_or(0, |fenced| fenced.lanes_ordered_before_clock(self.block, key, epoch))
    }

    pub(super) fn raise_epoch_of_lanes(&mut self, key: OwnerKey, mask: u32, epoch: u32) {
        self.seen.raise(self.block, key, mask, epoch);
    }

    pub(super) fn raise_lanes_visible_to_async_proxy(&mut self, space: usize, key: OwnerKey, mask: u32, epoch: u32) {
        self.fenced[space].get_or_insert_with(EpochsByBlock::default).raise(self.block, key, mask, epoch);
    }

    pub(super) fn raise_fenced_inits(&mut self, key: OwnerKey, mask: u32, epoch: u32) {
        self.fenced_inits.get_or_insert_with(EpochsByBlock::default).raise(self.block, key, mask, epoch);
    }

    pub(super) fn raise_completed_loads(&mut self, key: OwnerKey, mask: u32, epoch: u32) {
        self.completed_loads.get_or_insert_with(EpochsByBlock::default).raise(self.block, key, mask, epoch);
    }

    /// Returns true if both vector clocks are the same object. Equal clocks in different objects count as different.
    pub(super) fn is_same_object(&self, other: &VectorClock) -> bool {
        let same_epochs = |a: &Option<EpochsByBlock>, b: &Option<EpochsByBlock>| match (a, b) {
            (Some(a), Some(b)) => a.is_same_object(b),
            (None, None) => true,
            _ => false,
        };
        self.block == other.block
            && self.seen.is_same_object(&other.seen)
            && self.optional_epochs().into_iter().zip(other.optional_epochs()).all(|(a, b)| same_epochs(a, b))
            && self.visible_maps.len() == other.visible_maps.len()
            && self.visible_maps.iter().zip(&other.visible_maps).all(|(a, b)| a.0 == b.0 && a.1.is_same_object(&b.1))
    }
}
