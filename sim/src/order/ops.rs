//! Asynchronous operations: who started them, through which proxy they reach memory, and who has observed their end.

use super::{Agent, FIRST_OP_KEY, MemorySpace, OwnerKey, VectorClock, WarpClocks};
use std::collections::HashMap;

/// An asynchronous operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AsyncOpId(u32);

impl AsyncOpId {
    pub(super) fn key(self) -> OwnerKey {
        FIRST_OP_KEY | self.0
    }

    pub(super) fn of_key(key: OwnerKey) -> AsyncOpId {
        AsyncOpId(key & (FIRST_OP_KEY - 1))
    }
}

/// What an operation is; says its proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AsyncOpKind {
    /// `cp.async`: the generic proxy.
    CpAsync,
    /// `cp.async.bulk` without a tensor map: the async proxy, as those below.
    BulkCopy,
    /// `cp.async.bulk.tensor`.
    TensorCopy,
    /// `cp.reduce.async.bulk`, tensor or not.
    Reduce,
    /// `st.async` and `red.async`: the generic proxy.
    StAsync,
    /// Operands of `wgmma.mma_async` in shared memory.
    Wgmma,
}

impl AsyncOpKind {
    /// Whether it reaches memory through the async proxy.
    pub fn is_async_proxy(self) -> bool {
        !matches!(self, AsyncOpKind::CpAsync | AsyncOpKind::StAsync)
    }
}

/// From where an operation's end is seen: by `key`'s lanes at `epoch`, for `lanes` of the operation.
#[derive(Clone, Debug)]
struct Observation {
    lanes: u32,
    key: OwnerKey,
    epoch: u32,
    /// The agent's lane for all of `lanes`; none: each lane resolves itself; [`ANY_LANE`]: any lane all of them.
    by: Option<u8>,
}

/// Every lane of the key sees all of the operation's lanes.
const ANY_LANE: u8 = 32;

#[derive(Clone, Debug)]
struct Op {
    kind: AsyncOpKind,
    issuer: OwnerKey,
    pc: u32,
    /// Lanes that started it.
    lanes: u32,
    /// Lanes with a resolution.
    observed: u32,
    first: Option<Observation>,
    more: Vec<Observation>,
}

/// The asynchronous operations of a launch.
#[derive(Clone, Debug, Default)]
pub struct AsyncOps {
    all: Vec<Op>,
    open: HashMap<u32, Vec<AsyncOpId>>,
}

impl AsyncOps {
    /// None yet.
    pub fn new() -> AsyncOps {
        AsyncOps::default()
    }

    /// An operation that `lanes` of `warp` start at `pc`. One operation may stand for all lanes and for several instructions
    /// that complete together (the `cp.async`s between two commits): lanes are told apart.
    pub fn start(&mut self, kind: AsyncOpKind, warp: &WarpClocks, lanes: u32, pc: u32) -> AsyncOpId {
        let id = AsyncOpId(self.all.len() as u32);
        let (first, more) = (None, Vec::new());
        self.all.push(Op { kind, issuer: warp.key(), pc, lanes, observed: 0, first, more });
        self.open.entry(warp.block()).or_default().push(id);
        id
    }

    /// More lanes take part in `op`.
    pub fn add_lanes(&mut self, op: AsyncOpId, lanes: u32) {
        self.all[op.0 as usize].lanes |= lanes;
    }

    /// What it is.
    pub fn kind(&self, op: AsyncOpId) -> AsyncOpKind {
        self.all[op.0 as usize].kind
    }

    /// Where it was started, as given to [`start`](AsyncOps::start).
    pub fn pc(&self, op: AsyncOpId) -> u32 {
        self.all[op.0 as usize].pc
    }

    /// Who started it: its first lane's agent.
    pub fn issuer(&self, op: AsyncOpId) -> Agent {
        let op = &self.all[op.0 as usize];
        Agent(op.issuer << 5 | op.lanes.trailing_zeros() & 31)
    }

    /// All of `op` is complete as seen from `agent` at `epoch`: the thread that waited, or an mbarrier and its phase.
    /// Several may see it.
    pub fn mark_observed(&mut self, op: AsyncOpId, agent: Agent, epoch: u32) {
        let by = Some((agent.0 & 31) as u8);
        let op = &mut self.all[op.0 as usize];
        op.add(Observation { lanes: u32::MAX, key: agent.0 >> 5, epoch, by });
    }

    /// The parts of `lanes` in `op` are complete as seen from `agent` at `epoch`.
    pub fn mark_part_observed(&mut self, op: AsyncOpId, lanes: u32, agent: Agent, epoch: u32) {
        let by = Some((agent.0 & 31) as u8);
        self.all[op.0 as usize].add(Observation { lanes, key: agent.0 >> 5, epoch, by });
    }

    /// `lanes` of `warp` waited each for its own part of `op` (`cp.async.wait_group`, `wgmma.wait_group`): each lane
    /// sees its own part complete from now on.
    pub fn mark_observed_by_lanes(&mut self, op: AsyncOpId, warp: &WarpClocks, lanes: u32) {
        let op = &mut self.all[op.0 as usize];
        op.add(Observation { lanes, key: warp.key(), epoch: warp.epoch(), by: None });
    }

    /// Each of `warp`'s lanes sees all of `op` complete from now on (`wgmma.wait_group`, by any warp of the group).
    pub fn mark_observed_by_warp(&mut self, op: AsyncOpId, warp: &WarpClocks) {
        let (key, epoch, by) = (warp.key(), warp.epoch(), Some(ANY_LANE));
        self.all[op.0 as usize].add(Observation { lanes: u32::MAX, key, epoch, by });
    }

    /// Whether every lane's part of `op` was seen complete by somebody.
    pub fn is_observed(&self, op: AsyncOpId) -> bool {
        let op = &self.all[op.0 as usize];
        op.lanes & !op.observed == 0
    }

    /// The operations started by threads of `block` that nobody has seen complete; those complete are forgotten here.
    pub fn pending(&mut self, block: u32) -> Vec<AsyncOpId> {
        let mut open = self.open.remove(&block).unwrap_or_default();
        open.retain(|&op| !self.is_observed(op));
        if !open.is_empty() {
            self.open.insert(block, open.clone());
        }
        open
    }

    /// The lanes of the operation `key` whose end is in `clock`.
    pub(super) fn known_mask(&self, key: OwnerKey, clock: &VectorClock) -> u32 {
        self.known(key, |key, epoch| clock.known_mask(key, epoch))
    }

    /// The same for `lane` of `warp`, which also knows what it waited for itself.
    pub(super) fn known_to_lane(&self, key: OwnerKey, warp: &WarpClocks, lane: u32, clock: &VectorClock) -> u32 {
        self.known(key, |key, epoch| {
            let own = if key == warp.key() && warp.epoch() >= epoch { 1 << lane } else { 0 };
            clock.known_mask(key, epoch) | own
        })
    }

    /// Whether lanes of the warp `waiter` have seen any of the operation `key` complete by themselves.
    pub(super) fn was_waited_for_by(&self, key: OwnerKey, waiter: OwnerKey) -> bool {
        let op = &self.all[AsyncOpId::of_key(key).0 as usize];
        op.first.iter().chain(&op.more).any(|end| end.key == waiter)
    }

    /// The lanes of the operation `key` whose (generic) writes `lane` of `warp` knows to be visible to the async proxy.
    pub(super) fn fenced_mask(
        &self,
        key: OwnerKey,
        warp: &WarpClocks,
        lane: u32,
        clock: &VectorClock,
        space: MemorySpace,
    ) -> u32 {
        self.known(key, |key, epoch| {
            let own = if key == warp.key() && warp.own_fenced(space, lane) >= epoch { 1 << lane } else { 0 };
            clock.fenced_mask(space, key, epoch) | own
        })
    }

    fn known(&self, key: OwnerKey, seen: impl Fn(OwnerKey, u32) -> u32) -> u32 {
        let op = &self.all[AsyncOpId::of_key(key).0 as usize];
        op.first.iter().chain(&op.more).fold(0, |known, end| {
            let lanes = seen(end.key, end.epoch);
            let ended = match end.by {
                None => lanes & end.lanes,
                Some(ANY_LANE) if lanes != 0 => end.lanes,
                Some(ANY_LANE) => 0,
                Some(lane) if lanes >> lane & 1 != 0 => end.lanes,
                Some(_) => 0,
            };
            known | ended
        })
    }
}

impl Op {
    fn add(&mut self, end: Observation) {
        self.observed |= end.lanes;
        match &mut self.first {
            None => self.first = Some(end),
            Some(_) => self.more.push(end),
        }
    }
}
