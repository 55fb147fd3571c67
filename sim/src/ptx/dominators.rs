//! Immediate dominators, by Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm" (2001).

/// A node's index. Nodes that the root does not reach have no order and no dominator.
pub(super) type Node = usize;

/// A directed graph by its edges, both ways.
#[derive(Clone, Default)]
pub(super) struct Graph {
    pub successors: Vec<Vec<Node>>,
    pub predecessors: Vec<Vec<Node>>,
}

impl Graph {
    pub fn new(nodes: usize) -> Self {
        Graph { successors: vec![Vec::new(); nodes], predecessors: vec![Vec::new(); nodes] }
    }

    /// Adds an edge, once.
    pub fn connect(&mut self, from: Node, to: Node) {
        if !self.successors[from].contains(&to) {
            self.successors[from].push(to);
            self.predecessors[to].push(from);
        }
    }

    pub fn reversed(self) -> Self {
        Graph { successors: self.predecessors, predecessors: self.successors }
    }

    /// Reverse postorder of the nodes that `root` reaches.
    pub fn reverse_postorder(&self, root: Node) -> Vec<Node> {
        let mut order = Vec::new();
        let mut seen = vec![false; self.successors.len()];
        // Each entry: a node and how many of its successors are done.
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

    /// Immediate dominators from `root`: itself for the root, `None` for nodes it does not reach.
    pub fn dominators(&self, root: Node) -> Vec<Option<Node>> {
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

/// The nearest dominator of both.
fn common(dominators: &[Option<Node>], rank: &[usize], mut a: Node, mut b: Node) -> Node {
    while a != b {
        // The one further from the root moves up; a node with a rank has a dominator by the time it is asked for.
        let later = if rank[a] > rank[b] { &mut a } else { &mut b };
        *later = dominators[*later].unwrap_or(*later);
    }
    a
}
