//! The vector clocks of a warp's lanes, the warp's epoch, its fences, and the clocks that its strong reads have
//! observed but no fence has acquired yet.

use super::{AccessStrength, Agent, FenceCoverage, LANES, OwnerKey, VectorClock};

/// Lanes of a warp that share a vector clock.
#[derive(Clone, Debug)]
struct Part {
    mask: u32,
    clock: VectorClock,
}

/// A memory fence: `fence.acq_rel`, `fence.acquire`, `fence.release`, `fence.sc`, `membar`, or a fence of the tensormap
/// proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFence {
    /// The threads that the fence can synchronise with.
    pub scope: AccessStrength,
    /// Whether the fence acquires the vector clocks that earlier strong reads of its thread observed.
    pub acquires: bool,
    /// Whether later strong writes of its thread release the accesses before the fence.
    pub releases: bool,
    /// The accesses that the fence orders.
    pub covers: FenceCoverage,
}

impl MemoryFence {
    /// Returns a fence that acquires and releases all accesses (`fence.acq_rel`).
    pub fn acq_rel(scope: AccessStrength) -> MemoryFence {
        MemoryFence { scope, acquires: true, releases: true, covers: FenceCoverage::All }
    }
}

/// A releasing fence that lanes executed: their later strong writes release the vector clock that they had at the
/// fence.
#[derive(Clone, Debug)]
struct Fence {
    mask: u32,
    scope: AccessStrength,
    covers: FenceCoverage,
    clock: VectorClock,
    epoch: u32,
}

/// A vector clock that a strong read observed and that a later fence of at least `scope` acquires.
#[derive(Clone, Debug)]
struct Pending {
    mask: u32,
    scope: AccessStrength,
    clock: VectorClock,
}

/// The fences and observed vector clocks that lanes pass on to other threads at a barrier, by scope; see
/// [`WarpVectorClocks::fences_passed_on_at_barrier`].
#[derive(Clone, Debug, Default)]
pub struct BarrierFenceState {
    fences: Vec<(AccessStrength, VectorClock)>,
    observed: Vec<(AccessStrength, VectorClock)>,
}

impl BarrierFenceState {
    /// Merges the fences and observed vector clocks of `other` into this handoff, as several warps arrive at one
    /// barrier.
    pub fn join(&mut self, other: &BarrierFenceState) {
        other.fences.iter().for_each(|(scope, clock)| join_scoped(&mut self.fences, *scope, clock));
        other.observed.iter().for_each(|(scope, clock)| join_scoped(&mut self.observed, *scope, clock));
    }
}

fn join_scoped(list: &mut Vec<(AccessStrength, VectorClock)>, scope: AccessStrength, clock: &VectorClock) {
    match list.iter_mut().find(|(s, _)| *s == scope) {
        Some((_, all)) => all.join(clock),
        None => list.push((scope, clock.clone())),
    }
}

/// The vector clocks of one warp's lanes. Accesses of different lanes are not ordered with each other unless
/// [`sync`](WarpVectorClocks::sync) or another synchronisation orders them; each lane is ordered after its own earlier
/// accesses.
#[derive(Clone, Debug)]
pub struct WarpVectorClocks {
    block: u32,
    key: OwnerKey,
    epoch: u32,
    /// Mask of the lanes that exist in this warp.
    lanes: u32,
    parts: Vec<Part>,
    /// For each state space and lane, the epoch up to which the lane's own writes are visible to the async proxy.
    own_async_visible: [[u32; LANES]; 2],
    has_fenced: [bool; 2],
    /// For each lane, the epoch up to which the lane has fenced its mbarrier initialisations (`fence.mbarrier_init`).
    own_fenced_inits: [u32; LANES],
    has_fenced_inits: bool,
    fences: Vec<Fence>,
    pending: Vec<Pending>,
    /// The clocks at the last `tcgen05.fence::after_thread_sync` of the lanes that have executed one.
    tensor_fences: Vec<Part>,
}

impl WarpVectorClocks {
    /// Creates the vector clocks of warp `warp` (below 32) of `block`, whose existing lanes are `lanes`. `clock` is
    /// [`VectorClock::empty`] unless the launch depends on an earlier one.
    pub fn new(block: u32, warp: u32, lanes: u32, clock: VectorClock) -> WarpVectorClocks {
        let parts = vec![Part { mask: u32::MAX, clock }];
        let (key, epoch) = (block << 6 | warp, 1);
        let (fences, pending) = (Vec::new(), Vec::new());
        WarpVectorClocks {
            block,
            key,
            epoch,
            lanes,
            parts,
            own_async_visible: [[0; LANES]; 2],
            has_fenced: [false; 2],
            own_fenced_inits: [0; LANES],
            has_fenced_inits: false,
            fences,
            pending,
            tensor_fences: Vec::new(),
        }
    }

    /// Returns the current epoch, with which accesses are stamped.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Returns the linear index of the warp's block.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// Returns the agent that stands for a lane in vector clocks.
    pub fn agent(&self, lane: u32) -> Agent {
        Agent(self.key << 5 | lane & 31)
    }

    /// Returns the vector clock of `lane`, which does not contain the lane's own accesses.
    pub fn clock(&self, lane: u32) -> &VectorClock {
        let of_lane = self.parts.iter().find(|part| part.mask >> (lane & 31) & 1 != 0);
        &of_lane.unwrap_or(&self.parts[0]).clock
    }

    /// Returns true if `lane` knows that the generic writes of `agent` up to `epoch` are visible to the async proxy.
    pub fn is_visible_to_async_proxy(&self, lane: u32, space: super::MemorySpace, agent: Agent, epoch: u32) -> bool {
        let own = agent == self.agent(lane) && self.own_async_visible[space as usize][lane as usize & 31] >= epoch;
        own || self.clock(lane).is_visible_to_async_proxy(space, agent, epoch)
    }

    /// Returns true if `lane` sees the mbarrier initialisations of `agent` up to `epoch` because `agent` executed
    /// `fence.mbarrier_init` after them.
    pub fn sees_fenced_init(&self, lane: u32, agent: Agent, epoch: u32) -> bool {
        let own = agent == self.agent(lane) && self.own_fenced_inits[lane as usize & 31] >= epoch;
        own || self.clock(lane).includes_fenced_init(agent, epoch)
    }

    pub(super) fn key(&self) -> OwnerKey {
        self.key
    }

    /// Iterates over the groups of lanes that share a vector clock: disjoint masks that together cover all 32 lanes.
    #[inline(always)]
    pub fn lane_groups_with_clocks(&self) -> impl Iterator<Item = (u32, &VectorClock)> {
        self.parts.iter().map(|part| (part.mask, &part.clock))
    }

    /// Returns the epoch up to which `lane`'s own writes are visible to the async proxy.
    pub(super) fn own_async_visible_epoch(&self, space: super::MemorySpace, lane: u32) -> u32 {
        self.own_async_visible[space as usize][lane as usize]
    }

    fn part_of(&self, lanes: u32) -> Option<VectorClock> {
        self.parts.iter().find(|part| part.mask & lanes != 0).map(|part| part.clock.clone())
    }

    /// Release: ends the epoch and returns the joined vector clock of `lanes`, including their own accesses so far,
    /// for other threads to acquire at a barrier, an mbarrier or a released location.
    pub fn release(&mut self, lanes: u32) -> VectorClock {
        let mut clock = self.part_of(lanes).unwrap_or_else(|| VectorClock::empty(self.block));
        let parts = self.parts.iter().filter(|part| part.mask & lanes != 0).skip(1);
        parts.for_each(|part| clock.join(&part.clock));
        self.add_own(&mut clock, lanes, self.epoch);
        self.epoch += 1;
        clock
    }

    /// Relaxed arrival of `lanes` at a cluster barrier or an mbarrier: returns the vector clock that threads acquire
    /// from it, or `None` if they acquire nothing. A relaxed arrival passes on only what a fence of the arriving
    /// thread before it covers: the accesses before a memory fence of at least `scope`, mbarrier initialisations
    /// before `fence.mbarrier_init`.
    pub fn release_fenced(&self, lanes: u32, scope: AccessStrength) -> Option<VectorClock> {
        let mut released: Option<VectorClock> = None;
        let reaches = |fence: &&Fence| fence.mask & lanes != 0 && fence.scope >= scope;
        for fence in self.fences.iter().filter(reaches) {
            let clock = self.clock_of_fence(fence, lanes);
            match &mut released {
                Some(all) => all.join(&clock),
                none => *none = Some(clock),
            }
        }
        if self.has_fenced_inits && self.fenced_init_lanes(lanes) != 0 {
            let clock = released.get_or_insert_with(|| VectorClock::empty(self.block));
            self.add_own_fenced_inits(clock, lanes);
        }
        released
    }

    /// Returns the lanes of `lanes` that have executed `fence.mbarrier_init`.
    fn fenced_init_lanes(&self, lanes: u32) -> u32 {
        (0..LANES).filter(|&lane| self.own_fenced_inits[lane] > 0).fold(0u32, |mask, lane| mask | 1 << lane) & lanes
    }

    /// Adds to `clock` the mbarrier initialisations that `lanes` have fenced.
    fn add_own_fenced_inits(&self, clock: &mut VectorClock, lanes: u32) {
        let mut left = self.fenced_init_lanes(lanes);
        while left != 0 {
            let epoch = self.own_fenced_inits[left.trailing_zeros() as usize];
            let equal = |lane: &usize| left >> lane & 1 != 0 && self.own_fenced_inits[*lane] == epoch;
            let same = (0..LANES).filter(equal).fold(0u32, |mask, lane| mask | 1 << lane);
            left &= !same;
            clock.raise_fenced_inits(self.key, self.widen_to_all_lanes(same), epoch);
        }
    }

    /// Returns the vector clock that strong writes of `lanes` release because of `fence`.
    fn clock_of_fence(&self, fence: &Fence, lanes: u32) -> VectorClock {
        let mut clock = fence.clock.clone();
        if fence.epoch > 0 {
            self.add_own(&mut clock, fence.mask & lanes, fence.epoch);
        }
        clock.restricted_to_fence(fence.covers)
    }

    /// Adds to `clock` the accesses of `lanes` up to `epoch`, and which of their writes are visible to the async
    /// proxy.
    fn add_own(&self, clock: &mut VectorClock, lanes: u32, epoch: u32) {
        clock.raise_epoch_of_lanes(self.key, self.widen_to_all_lanes(lanes), epoch);
        for space in 0..2 {
            if self.has_fenced[space] {
                self.add_own_fenced(clock, space, lanes, epoch);
            }
        }
        if self.has_fenced_inits {
            self.add_own_fenced_inits(clock, lanes);
        }
    }

    fn add_own_fenced(&self, clock: &mut VectorClock, space: usize, lanes: u32, epoch: u32) {
        let epochs = &self.own_async_visible[space];
        let mut left = lanes;
        while left != 0 {
            let level = epochs[left.trailing_zeros() as usize];
            let same =
                (0..LANES).filter(|&lane| epochs[lane] == level).fold(0u32, |mask, lane| mask | 1 << lane) & left;
            left &= !same;
            if level > 0 {
                clock.raise_lanes_visible_to_async_proxy(
                    space,
                    self.key,
                    self.widen_to_all_lanes(same),
                    level.min(epoch),
                );
            }
        }
    }

    /// Returns a mask of all 32 lanes if `lanes` contains every lane that exists, otherwise `lanes`.
    fn widen_to_all_lanes(&self, lanes: u32) -> u32 {
        if lanes & self.lanes == self.lanes { u32::MAX } else { lanes }
    }

    /// Acquire: joins `clock` into the vector clocks of `lanes`.
    pub fn acquire(&mut self, lanes: u32, clock: &VectorClock) {
        let lanes = self.widen_to_all_lanes(lanes);
        self.change(lanes, |mine| mine.join(clock));
    }

    /// `bar.warp.sync`: every lane in `lanes` acquires what all of them released.
    pub fn sync(&mut self, lanes: u32) {
        let handoff = self.fences_passed_on_at_barrier(lanes);
        let clock = self.release(lanes);
        self.acquire(lanes, &clock);
        self.accept_fences_from_barrier(lanes, &handoff);
    }

    /// Returns the fences and observed vector clocks that `lanes` pass on at a barrier.
    ///
    /// In the PTX memory model a fence orders only its own thread's accesses. Programs, however, rely on fences before
    /// a barrier: each thread fences, the block synchronises, one thread sets the flag (and the reverse for reading a
    /// flag). The simulator accepts this pattern.
    pub fn fences_passed_on_at_barrier(&self, lanes: u32) -> BarrierFenceState {
        let mut handoff = BarrierFenceState::default();
        for fence in self.fences.iter().filter(|fence| fence.mask & lanes != 0) {
            join_scoped(&mut handoff.fences, fence.scope, &self.clock_of_fence(fence, lanes));
        }
        for pending in self.pending.iter().filter(|pending| pending.mask & lanes != 0) {
            join_scoped(&mut handoff.observed, pending.scope, &pending.clock);
        }
        handoff
    }

    /// Gives `lanes` the fences and observed vector clocks that other threads [passed on](WarpVectorClocks::fences_passed_on_at_barrier).
    /// Call it after `lanes` acquired the clocks of those threads.
    pub fn accept_fences_from_barrier(&mut self, lanes: u32, handoff: &BarrierFenceState) {
        let lanes = self.widen_to_all_lanes(lanes);
        for (scope, clock) in &handoff.fences {
            // Epoch 0 marks a fence that other threads passed on: it does not cover the lanes' own accesses.
            match self.fences.iter_mut().find(|f| f.epoch == 0 && f.mask == lanes && f.scope == *scope) {
                Some(fence) => fence.clock.join(clock),
                None => {
                    let (scope, covers, clock) = (*scope, FenceCoverage::All, clock.clone());
                    self.fences.push(Fence { mask: lanes, scope, covers, clock, epoch: 0 });
                }
            }
        }
        for (scope, clock) in &handoff.observed {
            match self.pending.iter_mut().find(|p| p.mask == lanes && p.scope == *scope) {
                Some(pending) => pending.clock.join(clock),
                None => self.pending.push(Pending { mask: lanes, scope: *scope, clock: clock.clone() }),
            }
        }
    }

    /// Executes `fence.proxy.async` of `lanes` in the given state spaces: makes their own writes, and all writes in
    /// their vector clocks, visible to the async proxy.
    pub fn fence_proxy(&mut self, lanes: u32, shared: bool, global: bool) {
        let lanes = self.widen_to_all_lanes(lanes);
        for (space, wanted) in [shared, global].into_iter().enumerate() {
            if wanted {
                self.has_fenced[space] = true;
                (0..LANES)
                    .filter(|lane| lanes >> lane & 1 != 0)
                    .for_each(|lane| self.own_async_visible[space][lane] = self.epoch);
            }
        }
        self.change(lanes, |mine| mine.fence_proxy(shared, global));
        self.epoch += 1;
    }

    /// Executes `tcgen05.fence::before_thread_sync` of `lanes`: a later relaxed arrival at an mbarrier passes on their
    /// accesses to tensor memory (and to shared memory, which the simulator does not tell apart here).
    pub fn fence_tensor_memory_before_sync(&mut self, lanes: u32) {
        let (scope, covers) = (AccessStrength::Cluster, FenceCoverage::Shared);
        self.fence(lanes, MemoryFence { scope, acquires: false, releases: true, covers });
    }

    /// Executes `tcgen05.fence::after_thread_sync` of `lanes`: what they know now, also by relaxed waits, is ordered
    /// before their later accesses to tensor memory.
    pub fn fence_tensor_memory_after_sync(&mut self, lanes: u32) {
        let lanes = self.widen_to_all_lanes(lanes);
        self.tensor_fences.iter_mut().for_each(|part| part.mask &= !lanes);
        self.tensor_fences.retain(|part| part.mask != 0);
        for part in self.parts.iter().filter(|part| part.mask & lanes != 0) {
            let (mask, mut clock) = (part.mask & lanes, part.clock.clone());
            let observed = self.pending.iter().filter(|pending| pending.mask & mask != 0);
            observed.for_each(|pending| clock.join(&pending.clock));
            self.tensor_fences.push(Part { mask, clock });
        }
    }

    /// Iterates over the groups of lanes that have executed `tcgen05.fence::after_thread_sync`, with their clocks then.
    pub(super) fn tensor_fences(&self) -> impl Iterator<Item = (u32, &VectorClock)> {
        self.tensor_fences.iter().map(|part| (part.mask, &part.clock))
    }

    /// Executes `fence.mbarrier_init` of `lanes`: their mbarrier initialisations become visible to the threads that a
    /// later cluster barrier orders after them, even if the arrival is relaxed.
    pub fn fence_mbarrier_inits(&mut self, lanes: u32) {
        self.has_fenced_inits = true;
        let fenced = (0..LANES).filter(|lane| lanes >> lane & 1 != 0);
        fenced.for_each(|lane| self.own_fenced_inits[lane] = self.epoch);
        self.epoch += 1;
    }

    /// Executes `wgmma.fence` of the whole warp: all earlier loads of its lanes are complete, so writes of threads that
    /// synchronise with any of its lanes from now on come after them. Stores are not ordered.
    ///
    /// PTX ISA, `wgmma.fence`: the instruction waits for all threads of the warp and orders their earlier register
    /// accesses. A load accesses its register when it is performed, and then no later write can change its value.
    pub fn order_completed_loads(&mut self) {
        let (key, epoch) = (self.key, self.epoch);
        self.change(u32::MAX, |mine| mine.raise_completed_loads(key, u32::MAX, epoch));
        self.epoch += 1;
    }

    /// Returns these vector clocks for a store that the warp's lanes execute together (`stmatrix`, `wmma.store`): all
    /// earlier loads of its lanes come before the store. Other stores and other threads are not ordered.
    ///
    /// The store waits for all lanes, because a row that it writes consists of registers of several lanes. The loads
    /// of a tile have filled these registers before. So a warp may load a tile, change it and store it in place.
    pub fn with_completed_loads(&self) -> WarpVectorClocks {
        let mut clocks = self.clone();
        clocks.change(u32::MAX, |mine| mine.raise_completed_loads(self.key, u32::MAX, self.epoch));
        clocks
    }

    /// Executes a memory fence of `lanes`: an acquiring fence acquires the vector clocks that their strong reads
    /// observed; after a releasing fence their next strong writes release the present clock.
    pub fn fence(&mut self, lanes: u32, fence: MemoryFence) {
        let lanes = self.widen_to_all_lanes(lanes);
        if fence.acquires {
            self.acquire_observed(lanes, fence);
        }
        if fence.releases {
            let replaced = |old: &Fence| {
                old.scope <= fence.scope && (fence.covers == FenceCoverage::All || fence.covers == old.covers)
            };
            self.fences.iter_mut().filter(|old| replaced(old)).for_each(|old| old.mask &= !lanes);
            self.fences.retain(|old| old.mask != 0);
            for part in self.parts.iter().filter(|part| part.mask & lanes != 0) {
                let (mask, clock) = (part.mask & lanes, part.clock.clone());
                self.fences.push(Fence { mask, scope: fence.scope, covers: fence.covers, clock, epoch: self.epoch });
            }
        }
        self.epoch += 1;
    }

    /// Makes `lanes` acquire, by an acquiring fence, the vector clocks that their strong reads observed. A fence that
    /// orders only some accesses leaves the clocks to later fences.
    fn acquire_observed(&mut self, lanes: u32, fence: MemoryFence) {
        for pending in std::mem::take(&mut self.pending) {
            let reached = if pending.scope <= fence.scope { pending.mask & lanes } else { 0 };
            if reached != 0 {
                self.acquire(reached, &pending.clock.clone().restricted_to_fence(fence.covers));
            }
            let left = if fence.covers == FenceCoverage::All { pending.mask & !reached } else { pending.mask };
            if left != 0 {
                self.pending.push(Pending { mask: left, ..pending });
            }
        }
    }

    /// Executes `fence.proxy.tensormap::generic.acquire` of `lanes` for the tensor map at `address`. Makes writes of
    /// the map visible to tensor copies: the writes that happen before this point, and the writes that a release fence
    /// of the tensormap proxy passed on.
    pub fn acquire_tensor_map(&mut self, lanes: u32, address: u64, scope: AccessStrength) {
        let covers = FenceCoverage::TensorMaps;
        self.acquire_observed(lanes, MemoryFence { scope, acquires: true, releases: false, covers });
        for lane in (0..LANES as u32).filter(|lane| lanes >> lane & 1 != 0) {
            let mut clock = self.clock(lane).clone();
            self.add_own(&mut clock, 1 << lane, self.epoch);
            clock.make_map_visible(address);
            let visible = clock.restricted_to_fence(covers);
            self.change(1 << lane, |mine| mine.join(&visible));
        }
        self.epoch += 1;
    }

    /// Returns true if any lane has executed a fence whose vector clock its strong writes release.
    pub(super) fn has_fences(&self) -> bool {
        !self.fences.is_empty()
    }

    /// Returns the vector clocks that a strong write of `lane` releases because of its earlier fences, with the scope
    /// of each fence.
    pub(super) fn fence_clocks(&self, lane: u32) -> Vec<(AccessStrength, VectorClock)> {
        let of_lane = self.fences.iter().filter(|fence| fence.mask >> lane & 1 != 0);
        of_lane.map(|fence| (fence.scope, self.clock_of_fence(fence, 1 << lane))).collect()
    }

    /// Records that `lane` observed `clock` by a strong read; a later fence of at least `scope` acquires it.
    pub fn record_observed_clock(&mut self, lane: u32, scope: AccessStrength, clock: &VectorClock) {
        match self.pending.iter_mut().find(|pending| pending.scope == scope && pending.clock.is_same_object(clock)) {
            Some(pending) => pending.mask |= 1 << lane,
            None => self.pending.push(Pending { mask: 1 << lane, scope, clock: clock.clone() }),
        }
    }

    /// Applies `change` to the vector clocks of `lanes`. If only some lanes of a group that shares a clock change, the
    /// group is split. Groups that end up with the same clock are merged.
    fn change(&mut self, lanes: u32, change: impl Fn(&mut VectorClock)) {
        for at in 0..self.parts.len() {
            let part = &mut self.parts[at];
            let (inside, outside) = (part.mask & lanes, part.mask & !lanes);
            if inside == 0 {
                continue;
            }
            if outside == 0 {
                change(&mut part.clock);
                continue;
            }
            let mut clock = part.clock.clone();
            change(&mut clock);
            if !clock.is_same_object(&part.clock) {
                part.mask = outside;
                self.parts.push(Part { mask: inside, clock });
            }
        }
        if self.parts.len() > 1 {
            self.merge();
        }
    }

    fn merge(&mut self) {
        let mut at = 0;
        while at < self.parts.len() {
            let mut next = at + 1;
            while next < self.parts.len() {
                if self.parts[at].clock.is_same_object(&self.parts[next].clock) {
                    self.parts[at].mask |= self.parts.swap_remove(next).mask;
                } else {
                    next += 1;
                }
            }
            at += 1;
        }
    }
}
