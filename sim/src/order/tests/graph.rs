//! A reference happens-before relation: a graph in which every event holds the set of its ancestors.

use std::collections::{BTreeMap, BTreeSet};

pub type EventId = usize;
/// A thread: block, warp, lane.
pub type BlockWarpLane = (u32, u32, u32);

#[derive(Default)]
pub struct HappensBeforeGraph {
    ancestors: Vec<BTreeSet<EventId>>,
    now: BTreeMap<BlockWarpLane, EventId>,
    proxy_fences: Vec<(EventId, [bool; 2])>,
}

impl HappensBeforeGraph {
    pub fn add_event(&mut self, before: &[EventId]) -> EventId {
        let mut all: BTreeSet<EventId> = before.iter().copied().collect();
        before.iter().for_each(|&b| all.extend(self.ancestors[b].iter().copied()));
        self.ancestors.push(all);
        self.ancestors.len() - 1
    }

    /// Adds the thread's next event, after its previous one and after the events `before`.
    pub fn add_thread_event(&mut self, thread: BlockWarpLane, before: &[EventId]) -> EventId {
        let mut all = before.to_vec();
        all.extend(self.now.get(&thread));
        let node = self.add_event(&all);
        self.now.insert(thread, node);
        node
    }

    pub fn happens_before(&self, a: EventId, b: EventId) -> bool {
        a == b || self.ancestors[b].contains(&a)
    }

    pub fn add_proxy_fence(&mut self, thread: BlockWarpLane, spaces: [bool; 2]) {
        let node = self.add_thread_event(thread, &[]);
        self.proxy_fences.push((node, spaces));
    }

    /// Returns true if a proxy fence for `space` lies between the two events.
    pub fn is_proxy_fence_between(&self, a: EventId, b: EventId, space: usize) -> bool {
        let between = |&(node, spaces): &(EventId, [bool; 2])| {
            spaces[space] && self.happens_before(a, node) && self.happens_before(node, b)
        };
        self.proxy_fences.iter().any(between)
    }
}
