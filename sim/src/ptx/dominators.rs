//! Immediate dominators of a graph, by Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm" (2001).

/// Index of a node of a graph.
pub(super) type NodeIndex = usize;

/// A directed graph with its edges in both directions.
#[derive(Clone, Default)]
pub(super) struct FlowGraph {
    pub successors: Vec<Vec<NodeIndex>>,
    pub predecessors: Vec<Vec<NodeIndex>>,
}

impl FlowGraph {
    pub fn new(nodes: usize) -> Self {
        FlowGraph { successors: vec![Vec::new(); nodes], predecessors: vec![Vec::new(); nodes] }
    }

    /// Adds an edge; adding it again has no effect.
    pub fn add_edge(&mut self, from: NodeIndex, to: NodeIndex) {
        if !self.successors[from].contains(&to) {
            self.successors[from].push(to);
            self.predecessors[to].push(from);
        }
    }

    pub fn reversed(self) -> Self {
        FlowGraph { successors: self.predecessors, predecessors: self.successors }
    }

    /// Returns the nodes that `root` reaches, in reverse postorder.
    pub fn reverse_postorder(&self, root: NodeIndex) -> Vec<NodeIndex> {
        let mut order = Vec::new();
        let mut seen = vec![false; self.successors.len()];
        // The depth-first path from the root: each node with the number of its successors that are already visited.
        let mut stack = vec![(root, 0)];
        seen[root] = true;
        while let Some((node, done)) = stack.last_mut() {
            match self.successors[*node].get(*done) {
                Some(&next) => {
                    *done += 1;
                    if !std::mem::replace(&mut seen[next], true) {
                        stack.push((next, 0));
                    }
                }
                None => {
                    order.push(*node);
                    stack.pop();
                }
            }
        }
        order.reverse();
        order
    }

    /// Returns the immediate dominator of each node: the root for the root itself, `None` for nodes that it does not
    /// reach.
    pub fn immediate_dominators(&self, root: NodeIndex) -> Vec<Option<NodeIndex>> {
        let order = self.reverse_postorder(root);
        let mut rank = vec![usize::MAX; self.successors.len()];
        for (index, &node) in order.iter().enumerate() {
            rank[node] = index;
        }
        let mut dominators = vec![None; self.successors.len()];
        dominators[root] = Some(root);
        let mut changed = true;
        while changed {
            changed = false;
            for &node in &order[1..] {
                let known = self.predecessors[node].iter().copied().filter(|&from| dominators[from].is_some());
                let dominator = known.reduce(|a, b| common(&dominators, &rank, a, b));
                changed |= dominator != dominators[node];
                dominators[node] = dominator;
            }
        }
        dominators
    }
}

/// Returns the nearest common dominator of `a` and `b`; `rank` is each node's position in reverse postorder.
fn common(dominators: &[Option<NodeIndex>], rank: &[usize], mut a: NodeIndex, mut b: NodeIndex) -> NodeIndex {
    while a != b {
        // Replace the node that is later in reverse postorder by its dominator. The root reaches both nodes, so each
        // has a dominator.
        let later = if rank[a] > rank[b] { &mut a } else { &mut b };
        *later = dominators[*later].unwrap_or(*later);
    }
    a
}
