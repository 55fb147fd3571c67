//! A reference happens-before relation: a graph in which every event holds the set of its ancestors.

use std::collections::{BTreeMap, BTreeSet};

pub type Node = usize;
/// A thread: block, warp, lane.
pub type Thread = (u32, u32, u32);

#[derive(Default)]
pub struct HappensBeforeGraph {
    ancestors: Vec<BTreeSet<Node>>,
    now: BTreeMap<Thread, Node>,
    proxy_fences: Vec<(Node, [bool; 2])>,
}

impl HappensBeforeGraph {
    pub fn node(&mut self, before: &[Node]) -> Node {
        let mut all: BTreeSet<Node> = before.iter().copied().collect();
        before.iter().for_each(|&b| all.extend(self.ancestors[b].iter().copied()));
        self.ancestors.push(all);
        self.ancestors.len() - 1
    }

    /// Adds the thread's next event, after its previous one and after the events `before`.
    pub fn event(&mut self, thread: Thread, before: &[Node]) -> Node {
        let mut all = before.to_vec();
        all.extend(self.now.get(&thread));
        let node = self.node(&all);
        self.now.insert(thread, node);
        node
    }

    pub fn happens_before(&self, a: Node, b: Node) -> bool {
        a == b || self.ancestors[b].contains(&a)
    }

    pub fn proxy_fence(&mut self, thread: Thread, spaces: [bool; 2]) {
        let node = self.event(thread, &[]);
        self.proxy_fences.push((node, spaces));
    }

    /// Returns true if a proxy fence for `space` lies between the two events.
    pub fn fenced_between(&self, a: Node, b: Node, space: usize) -> bool {
        let between = |&(node, spaces): &(Node, [bool; 2])| {
            spaces[space] && self.happens_before(a, node) && self.happens_before(node, b)
        };
        self.proxy_fences.iter().any(between)
    }
}
