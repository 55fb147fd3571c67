//! A warp's place in the order: its epoch and what each of its lanes knows.

use super::{Agent, Key, Know, LANES, Strength};

/// Lanes that know the same.
#[derive(Clone, Debug)]
struct Part {
    mask: u32,
    know: Know,
}

/// A memory fence that lanes have executed: what a later strong write of theirs releases.
#[derive(Clone, Debug)]
struct Fence {
    mask: u32,
    scope: Strength,
    know: Know,
    epoch: u32,
}

/// What a strong read observed and a later fence of at least `scope` acquires.
#[derive(Clone, Debug)]
struct Pending {
    mask: u32,
    scope: Strength,
    know: Know,
}

/// What lanes hand on at a barrier, by scope: see [`WarpOrder::hand_on`].
#[derive(Clone, Debug, Default)]
pub struct Handed {
    fences: Vec<(Strength, Know)>,
    observed: Vec<(Strength, Know)>,
}

impl Handed {
    /// Adds another's.
    pub fn join(&mut self, other: &Handed) {
        other.fences.iter().for_each(|(scope, know)| add_scoped(&mut self.fences, *scope, know));
        other.observed.iter().for_each(|(scope, know)| add_scoped(&mut self.observed, *scope, know));
    }
}

fn add_scoped(list: &mut Vec<(Strength, Know)>, scope: Strength, know: &Know) {
    match list.iter_mut().find(|(s, _)| *s == scope) {
        Some((_, all)) => all.join(know),
        None => list.push((scope, know.clone())),
    }
}

/// The order of one warp's lanes. Lanes of a warp are not ordered among each other unless [`sync`](WarpOrder::sync) or
/// something stronger orders them; a lane knows its own earlier accesses.
#[derive(Clone, Debug)]
pub struct WarpOrder {
    block: u32,
    key: Key,
    epoch: u32,
    /// Lanes that exist.
    lanes: u32,
    parts: Vec<Part>,
    /// Up to which epoch each lane's own writes were fenced for the async proxy, by space.
    own_fenced: [[u32; LANES]; 2],
    has_fenced: [bool; 2],
    fences: Vec<Fence>,
    pending: Vec<Pending>,
}

impl WarpOrder {
    /// Warp `warp` (below 32) of `block` with the lanes of `lanes`, at its start, when it knows `know`
    /// ([`Know::nothing`] but for a dependent launch).
    pub fn new(block: u32, warp: u32, lanes: u32, know: Know) -> WarpOrder {
        let parts = vec![Part { mask: u32::MAX, know }];
        let (key, epoch) = (block << 6 | warp, 1);
        let (fences, pending) = (Vec::new(), Vec::new());
        WarpOrder {
            block,
            key,
            epoch,
            lanes,
            parts,
            own_fenced: [[0; LANES]; 2],
            has_fenced: [false; 2],
            fences,
            pending,
        }
    }

    /// The epoch that accesses made now are stamped with.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The block's linear index.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// The agent of a lane.
    pub fn agent(&self, lane: u32) -> Agent {
        Agent(self.key << 5 | lane & 31)
    }

    /// What `lane` knows, without its own accesses.
    pub fn know(&self, lane: u32) -> &Know {
        let of_lane = self.parts.iter().find(|part| part.mask >> (lane & 31) & 1 != 0);
        &of_lane.unwrap_or(&self.parts[0]).know
    }

    /// Whether `lane` knows the generic writes of `agent` up to `epoch` to be visible to the async proxy.
    pub fn is_fenced(&self, lane: u32, space: super::Space, agent: Agent, epoch: u32) -> bool {
        let own = agent == self.agent(lane) && self.own_fenced[space as usize][lane as usize & 31] >= epoch;
        own || self.know(lane).knows_fenced(space, agent, epoch)
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// Lanes and what they know; the masks are disjoint and cover all 32 lanes.
    #[inline(always)]
    pub(super) fn parts(&self) -> impl Iterator<Item = (u32, &Know)> {
        self.parts.iter().map(|part| (part.mask, &part.know))
    }

    /// Up to which epoch `lane`'s own writes are visible to the async proxy.
    pub(super) fn own_fenced(&self, space: super::Space, lane: u32) -> u32 {
        self.own_fenced[space as usize][lane as usize]
    }

    /// Ends the epoch of `lanes` and says what they know together, their own accesses up to now included: what a barrier, an
    /// mbarrier's arrival or a releasing write passes on.
    pub fn release(&mut self, lanes: u32) -> Know {
        let mut know = self.part_of(lanes).unwrap_or_else(|| Know::nothing(self.block));
        let parts = self.parts.iter().filter(|part| part.mask & lanes != 0).skip(1);
        parts.for_each(|part| know.join(&part.know));
        self.add_own(&mut know, lanes, self.epoch);
        self.epoch += 1;
        know
    }

    /// Adds the accesses of `lanes` up to `epoch`, and those of their own writes that they fenced.
    fn add_own(&self, know: &mut Know, lanes: u32, epoch: u32) {
        know.learn_mask(self.key, self.all_or(lanes), epoch);
        for space in 0..2 {
            if self.has_fenced[space] {
                self.add_own_fenced(know, space, lanes, epoch);
            }
        }
    }

    fn add_own_fenced(&self, know: &mut Know, space: usize, lanes: u32, epoch: u32) {
        let epochs = &self.own_fenced[space];
        let mut left = lanes;
        while left != 0 {
            let level = epochs[left.trailing_zeros() as usize];
            let same =
                (0..LANES).filter(|&lane| epochs[lane] == level).fold(0u32, |mask, lane| mask | 1 << lane) & left;
            left &= !same;
            if level > 0 {
                know.learn_fenced(space, self.key, self.all_or(same), level.min(epoch));
            }
        }
    }

    /// All 32 where all that exist are meant.
    fn all_or(&self, lanes: u32) -> u32 {
        if lanes & self.lanes == self.lanes { u32::MAX } else { lanes }
    }

    /// `lanes` get to know `know`.
    pub fn acquire(&mut self, lanes: u32, know: &Know) {
        let lanes = self.all_or(lanes);
        self.change(lanes, |mine| mine.join(know));
    }

    /// `bar.warp.sync`: every lane of `lanes` gets to know what all of them did and know.
    pub fn sync(&mut self, lanes: u32) {
        let handed = self.hand_on(lanes);
        let know = self.release(lanes);
        self.acquire(lanes, &know);
        self.take_over(lanes, &handed);
    }

    /// What `lanes` hand on at a barrier beside what they know: their fences, and what they observed. By the letter of the
    /// memory model a fence counts for its own thread's accesses; but what a thread fenced before a barrier is visible to
    /// whom a thread behind the barrier tells of it, and programs rely on it (each thread fences, the block meets, one
    /// thread sets the flag; and the same backwards).
    pub fn hand_on(&self, lanes: u32) -> Handed {
        let mut handed = Handed::default();
        for fence in self.fences.iter().filter(|fence| fence.mask & lanes != 0) {
            let mut know = fence.know.clone();
            if fence.epoch > 0 {
                self.add_own(&mut know, fence.mask & lanes, fence.epoch);
            }
            add_scoped(&mut handed.fences, fence.scope, &know);
        }
        for pending in self.pending.iter().filter(|pending| pending.mask & lanes != 0) {
            add_scoped(&mut handed.observed, pending.scope, &pending.know);
        }
        handed
    }

    /// `lanes` get what others [handed on](WarpOrder::hand_on); to be told after they acquired what those know.
    pub fn take_over(&mut self, lanes: u32, handed: &Handed) {
        let lanes = self.all_or(lanes);
        for (scope, know) in &handed.fences {
            // Epoch 0: none of their own accesses.
            match self.fences.iter_mut().find(|f| f.epoch == 0 && f.mask == lanes && f.scope == *scope) {
                Some(fence) => fence.know.join(know),
                None => self.fences.push(Fence { mask: lanes, scope: *scope, know: know.clone(), epoch: 0 }),
            }
        }
        for (scope, know) in &handed.observed {
            match self.pending.iter_mut().find(|p| p.mask == lanes && p.scope == *scope) {
                Some(pending) => pending.know.join(know),
                None => self.pending.push(Pending { mask: lanes, scope: *scope, know: know.clone() }),
            }
        }
    }

    /// `fence.proxy.async` by `lanes`, for the spaces given: their own writes and all writes known to them become visible to
    /// the async proxy.
    pub fn fence_proxy(&mut self, lanes: u32, shared: bool, global: bool) {
        let lanes = self.all_or(lanes);
        for (space, wanted) in [shared, global].into_iter().enumerate() {
            if wanted {
                self.has_fenced[space] = true;
                (0..LANES)
                    .filter(|lane| lanes >> lane & 1 != 0)
                    .for_each(|lane| self.own_fenced[space][lane] = self.epoch);
            }
        }
        self.change(lanes, |mine| mine.fence_proxy(shared, global));
        self.epoch += 1;
    }

    /// `fence.acq_rel`, `fence.sc` or `membar` of `scope` by `lanes`: what they observed by strong reads is acquired, and
    /// their next strong writes release what they did and know now.
    pub fn fence(&mut self, lanes: u32, scope: Strength) {
        let lanes = self.all_or(lanes);
        for pending in std::mem::take(&mut self.pending) {
            let reached = if pending.scope <= scope { pending.mask & lanes } else { 0 };
            if reached != 0 {
                self.acquire(reached, &pending.know);
            }
            if pending.mask & !reached != 0 {
                self.pending.push(Pending { mask: pending.mask & !reached, ..pending });
            }
        }
        for fence in self.fences.iter_mut().filter(|fence| fence.scope <= scope) {
            fence.mask &= !lanes;
        }
        self.fences.retain(|fence| fence.mask != 0);
        for part in self.parts.iter().filter(|part| part.mask & lanes != 0) {
            let (mask, know) = (part.mask & lanes, part.know.clone());
            self.fences.push(Fence { mask, scope, know, epoch: self.epoch });
        }
        self.epoch += 1;
    }

    /// Whether any lane has a fence that its strong writes release.
    pub(super) fn has_fences(&self) -> bool {
        !self.fences.is_empty()
    }

    /// What `lane`'s fences let a strong write release, with each fence's scope.
    pub(super) fn fenced(&self, lane: u32) -> Vec<(Strength, Know)> {
        let of_lane = self.fences.iter().filter(|fence| fence.mask >> lane & 1 != 0);
        let whole = |fence: &Fence| {
            let mut know = fence.know.clone();
            if fence.epoch > 0 {
                self.add_own(&mut know, 1 << lane, fence.epoch);
            }
            (fence.scope, know)
        };
        of_lane.map(whole).collect()
    }

    /// `lane` observed `know` by a strong read; a later fence of at least `scope` acquires it.
    pub(super) fn observe(&mut self, lane: u32, scope: Strength, know: &Know) {
        match self.pending.iter_mut().find(|pending| pending.scope == scope && pending.know.same(know)) {
            Some(pending) => pending.mask |= 1 << lane,
            None => self.pending.push(Pending { mask: 1 << lane, scope, know: know.clone() }),
        }
    }

    /// Changes what `lanes` know; splits parts that only some of them share and merges those that end up the same.
    fn change(&mut self, lanes: u32, change: impl Fn(&mut Know)) {
        for at in 0..self.parts.len() {
            let part = &mut self.parts[at];
            let (inside, outside) = (part.mask & lanes, part.mask & !lanes);
            if inside == 0 {
                continue;
            }
            if outside == 0 {
                change(&mut part.know);
                continue;
            }
            let mut know = part.know.clone();
            change(&mut know);
            if !know.same(&part.know) {
                part.mask = outside;
                self.parts.push(Part { mask: inside, know });
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
                if self.parts[at].know.same(&self.parts[next].know) {
                    self.parts[at].mask |= self.parts.swap_remove(next).mask;
                } else {
                    next += 1;
                }
            }
            at += 1;
        }
    }
}

/// A barrier of a block: each participant's `lanes` release, and its waiting lanes (the third; a part of the second) acquire
/// what all released. `bar.arrive` is a participant of which no lane waits.
pub fn barrier(participants: &mut [(&mut WarpOrder, u32, u32)]) {
    let Some(first) = participants.iter().find_map(|(warp, lanes, _)| warp.part_of(*lanes)) else { return };
    let mut all = first.clone();
    for (warp, lanes, _) in participants.iter_mut() {
        warp.release_into(*lanes, &first, &mut all);
    }
    for (warp, _, waiting) in participants.iter_mut() {
        if *waiting != 0 {
            warp.acquire_all(*waiting, &all);
        }
    }
}

impl WarpOrder {
    fn part_of(&self, lanes: u32) -> Option<Know> {
        self.parts.iter().find(|part| part.mask & lanes != 0).map(|part| part.know.clone())
    }

    /// [`release`](WarpOrder::release) joined into `all`, which knows what `first` does.
    fn release_into(&mut self, lanes: u32, first: &Know, all: &mut Know) {
        let differ = self.parts.iter().filter(|part| part.mask & lanes != 0 && !part.know.same(first));
        differ.for_each(|part| all.join(&part.know));
        self.add_own(all, lanes, self.epoch);
        self.epoch += 1;
    }

    /// [`acquire`](WarpOrder::acquire) of what covers all that `lanes` know.
    fn acquire_all(&mut self, lanes: u32, all: &Know) {
        let lanes = self.all_or(lanes);
        if all.block != self.block {
            self.acquire(lanes, all);
        } else if lanes == u32::MAX {
            self.parts.truncate(1);
            self.parts[0] = Part { mask: u32::MAX, know: all.clone() };
        } else {
            self.change(lanes, |mine| *mine = all.clone());
        }
    }
}
