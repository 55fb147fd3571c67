//! Asynchronous operations: for each one, the thread that started it, the proxy through which it accesses memory, and
//! the threads that have observed its completion.
//!
//! Rule: a thread must observe the completion of an operation before it accesses the bytes that the operation reads or
//! writes. It does so by waiting, or through synchronisation with a thread that has waited. For example:
//!
//! ```text
//! thread 0: cp.async [s]; cp.async.commit_group; cp.async.wait_group 0   thread 0 observes its own part
//!           ld [s]                                                       ordered
//! thread 1: ld [s]                                                       not waited for: needs a bar.sync first
//! ```
//!
//! Threads observe `cp.async` and `wgmma` by `wait_group`, bulk and tensor loads by a wait on their mbarrier, and
//! bulk and tensor stores by `bulk.wait_group`.

use super::{Agent, FIRST_OP_KEY, MemorySpace, OwnerKey, VectorClock, WarpVectorClocks};

/// The id of an asynchronous operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AsyncOpId(u32);

impl AsyncOpId {
    pub(super) fn key(self) -> OwnerKey {
        FIRST_OP_KEY | self.0
    }

    pub(super) fn from_key(key: OwnerKey) -> AsyncOpId {
        AsyncOpId(key & (FIRST_OP_KEY - 1))
    }
}

/// The kind of an asynchronous operation, which determines its proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AsyncOpKind {
    /// `cp.async`: through the generic proxy.
    CpAsync,
    /// `cp.async.bulk` without a tensor map: through the async proxy.
    BulkCopy,
    /// `cp.async.bulk.tensor`: through the async proxy.
    TensorCopy,
    /// `cp.reduce.async.bulk`, with or without a tensor map: through the async proxy.
    Reduce,
    /// `st.async` and `red.async`: through the generic proxy.
    StAsync,
    /// Reads of `wgmma.mma_async` operands from shared memory: through the async proxy.
    Wgmma,
    /// `tcgen05.mma`: reads of its operands from shared memory through the async proxy. One operation stands for a
    /// thread's products between two commits.
    Tcgen05,
}

impl AsyncOpKind {
    /// Returns true if the asynchronous operation accesses memory through the async proxy.
    pub fn uses_async_proxy(self) -> bool {
        !matches!(self, AsyncOpKind::CpAsync | AsyncOpKind::StAsync)
    }
}

/// Which lanes of a warp know that an asynchronous operation is complete. From epoch `epoch` of warp `key` on, the
/// lanes that `by` selects know this for the shares that the lanes in the mask `lanes` issued.
#[derive(Clone, Debug)]
struct Observation {
    lanes: u32,
    key: OwnerKey,
    epoch: u32,
    /// Which lanes of the warp know that shares of the asynchronous operation are complete. A lane index: this lane
    /// knows it, for the shares of all of `lanes`. [`ANY_LANE`]: every lane knows it, for the shares of all of
    /// `lanes`. `None`: each lane in `lanes` knows it, for its own share only.
    by: Option<u8>,
}

/// Value of [`Observation::by`]: every lane of the warp observes that the whole asynchronous operation is complete.
const ANY_LANE: u8 = 32;

#[derive(Clone, Debug)]
struct Op {
    kind: AsyncOpKind,
    issuer: OwnerKey,
    pc: u32,
    /// Mask of the lanes that take part in the asynchronous operation.
    lanes: u32,
    first: Option<Observation>,
    more: Vec<Observation>,
    /// A later operation whose completion implies that this one is complete.
    next: Option<AsyncOpId>,
}

/// The asynchronous operations of a launch.
#[derive(Clone, Debug, Default)]
pub struct AsyncOperationTable {
    all: Vec<Op>,
}

impl AsyncOperationTable {
    /// Creates an empty table of asynchronous operations.
    pub fn new() -> AsyncOperationTable {
        AsyncOperationTable::default()
    }

    /// Starts an asynchronous operation of the lanes `lanes` of `warp` at instruction `pc`. One operation may stand
    /// for all lanes and for several instructions that complete together (the `cp.async`s between two commits); its
    /// lanes are tracked separately.
    pub fn start(&mut self, kind: AsyncOpKind, warp: &WarpVectorClocks, lanes: u32, pc: u32) -> AsyncOpId {
        let id = AsyncOpId(self.all.len() as u32);
        let (first, more) = (None, Vec::new());
        self.all.push(Op { kind, issuer: warp.key(), pc, lanes, first, more, next: None });
        id
    }

    /// Adds lanes that take part in the asynchronous operation.
    pub fn add_lanes(&mut self, op: AsyncOpId, lanes: u32) {
        self.all[op.0 as usize].lanes |= lanes;
    }

    /// Records that the completion of `next` implies that `op` is complete, because they are executed in order.
    pub fn set_next_in_order(&mut self, op: AsyncOpId, next: AsyncOpId) {
        self.all[op.0 as usize].next = Some(next);
    }

    /// Returns the asynchronous operation's kind.
    pub fn kind(&self, op: AsyncOpId) -> AsyncOpKind {
        self.all[op.0 as usize].kind
    }

    /// Returns the index of the instruction that started the asynchronous operation.
    pub fn pc(&self, op: AsyncOpId) -> u32 {
        self.all[op.0 as usize].pc
    }

    /// Returns the agent that started the asynchronous operation: the first lane that takes part.
    pub fn issuer(&self, op: AsyncOpId) -> Agent {
        let op = &self.all[op.0 as usize];
        Agent(op.issuer << 5 | op.lanes.trailing_zeros() & 31)
    }

    /// Records that `agent` knows from its epoch `epoch` on that `op` is complete. The agent is a thread that waited,
    /// or an mbarrier, whose epoch is its phase. Several agents may observe one asynchronous operation.
    pub fn mark_observed(&mut self, op: AsyncOpId, agent: Agent, epoch: u32) {
        let by = Some((agent.0 & 31) as u8);
        let op = &mut self.all[op.0 as usize];
        op.add(Observation { lanes: u32::MAX, key: agent.0 >> 5, epoch, by });
    }

    /// Records that `agent` knows, from its epoch `epoch` on, that a part of `op` is complete: the shares that `lanes`
    /// issued.
    pub fn mark_shares_observed(&mut self, op: AsyncOpId, lanes: u32, agent: Agent, epoch: u32) {
        let by = Some((agent.0 & 31) as u8);
        self.all[op.0 as usize].add(Observation { lanes, key: agent.0 >> 5, epoch, by });
    }

    /// Records that each of `lanes` of `warp` waited for its own share of `op` (`cp.async.wait_group`).
    pub fn mark_observed_by_lanes(&mut self, op: AsyncOpId, warp: &WarpVectorClocks, lanes: u32) {
        let op = &mut self.all[op.0 as usize];
        op.add(Observation { lanes, key: warp.key(), epoch: warp.epoch(), by: None });
    }

    /// Records that every lane of `warp` observes that all of `op` is complete (`wgmma.wait_group`, by any warp of
    /// the warpgroup).
    pub fn mark_observed_by_warp(&mut self, op: AsyncOpId, warp: &WarpVectorClocks) {
        let (key, epoch, by) = (warp.key(), warp.epoch(), Some(ANY_LANE));
        self.all[op.0 as usize].add(Observation { lanes: u32::MAX, key, epoch, by });
    }

    /// Returns the lanes whose shares of asynchronous operation `key` are known to be complete to a thread with the
    /// vector clock `clock`. The operation accesses the state space `space`.
    pub(super) fn lanes_ordered_before_clock(&self, key: OwnerKey, clock: &VectorClock, space: MemorySpace) -> u32 {
        self.known(key, |key, epoch| clock.lanes_ordered_in_space(space, key, epoch))
    }

    /// Returns the lanes whose shares of asynchronous operation `key` are known to be complete to `lane` of `warp`.
    /// The lane knows it through its vector clock `clock`, or because it observed the completion itself. The operation
    /// accesses the state space `space`.
    pub(super) fn lanes_known_complete_to(
        &self,
        key: OwnerKey,
        warp: &WarpVectorClocks,
        lane: u32,
        clock: &VectorClock,
        space: MemorySpace,
    ) -> u32 {
        self.known(key, |key, epoch| {
            let own = if key == warp.key() && warp.epoch() >= epoch { 1 << lane } else { 0 };
            clock.lanes_ordered_in_space(space, key, epoch) | own
        })
    }

    /// Returns the lanes whose shares of asynchronous operation `key` wrote the tensor map at `address` and are
    /// visible to the tensormap proxy for a thread with the vector clock `clock`.
    pub(super) fn lanes_visible_to_tensormap_proxy(&self, key: OwnerKey, clock: &VectorClock, address: u64) -> u32 {
        self.known(key, |key, epoch| clock.lanes_visible_to_tensormap_proxy(address, key, epoch))
    }

    /// Returns true if a lane of warp `waiter` itself observed that a share of asynchronous operation `key` is
    /// complete.
    pub(super) fn was_completion_observed_by(&self, key: OwnerKey, waiter: OwnerKey) -> bool {
        let op = &self.all[AsyncOpId::from_key(key).0 as usize];
        op.first.iter().chain(&op.more).any(|end| end.key == waiter)
    }

    /// Returns the lanes whose shares of asynchronous operation `key` wrote through the generic proxy and are known to
    /// `lane` of `warp` to be visible to the async proxy.
    pub(super) fn lanes_visible_to_async_proxy(
        &self,
        key: OwnerKey,
        warp: &WarpVectorClocks,
        lane: u32,
        clock: &VectorClock,
        space: MemorySpace,
    ) -> u32 {
        self.known(key, |key, epoch| {
            let own =
                if key == warp.key() && warp.own_async_visible_epoch(space, lane) >= epoch { 1 << lane } else { 0 };
            clock.lanes_visible_to_async_proxy(space, key, epoch) | own
        })
    }

    fn known(&self, key: OwnerKey, seen: impl Fn(OwnerKey, u32) -> u32) -> u32 {
        let mut op = &self.all[AsyncOpId::from_key(key).0 as usize];
        let mut known = op.known(&seen);
        while let Some(next) = op.next.filter(|_| known == 0) {
            op = &self.all[next.0 as usize];
            known = op.known(&seen);
        }
        known
    }
}

impl Op {
    #[inline(always)]
    fn known(&self, seen: &impl Fn(OwnerKey, u32) -> u32) -> u32 {
        self.first.iter().chain(&self.more).fold(0, |known, end| {
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

    fn add(&mut self, end: Observation) {
        match &mut self.first {
            None => self.first = Some(end),
            Some(_) => self.more.push(end),
        }
    }
}
