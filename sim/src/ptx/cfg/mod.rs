//! Control flow: the successors of each instruction, and where the lanes of a diverged warp reconverge.
//!
//! ```text
//! reconvergence_points(function):
//!     blocks = basic blocks with edges
//!     edges  = blocks.edges without paths that only end early (aborts, bare returns, code that ends)
//!     put back the best excluded edges until every loop has an exit
//!     for each diverging branch: reconverge at the immediate post-dominator of its block in edges
//!
//! if (c) { if (d) return; x(); } y();     branch on c reconverges at y; branch on d reconverges at x,
//!                                         because the early return is excluded
//! ```

use super::ast::{Function, Instruction, Operand, is_branch};
use super::dominators::{FlowGraph, NodeIndex};

/// Returns the indices of the instructions that may follow instruction `index`; an index equal to the body's length
/// stands for the end of the function. `ret`, `exit`, `trap` and calls that do not return have no successor, except
/// the next instruction if they are guarded.
pub fn successors(function: &Function, index: u32) -> Vec<u32> {
    let Some(instruction) = function.body.get(index as usize) else { return Vec::new() };
    let mut next = match control_kind(function, index, instruction) {
        ControlKind::Plain => return vec![index + 1],
        ControlKind::Branch => targets(instruction),
        ControlKind::Return | ControlKind::Abort => Vec::new(),
    };
    if instruction.guard.is_some() && !next.contains(&(index + 1)) {
        next.push(index + 1);
    }
    next
}

/// For each instruction at which the lanes of a warp may diverge (a guarded `bra`, a `brx.idx`), returns the
/// instruction where they reconverge: the immediate post-dominator of the branch. `None` for all other instructions,
/// and if there is no such point.
///
/// Paths that only lead to an end are excluded. Otherwise every early `return` and failed assertion would move the
/// reconvergence point to the end of the function:
/// - a path to a `trap`, or to a call that does not return, is excluded if the branch has another path;
/// - a path to a bare `ret` or `exit` (which may store return values first) is excluded if the branch has another
///   path:
///   returning lanes return at once, even at a `ret` that all lanes share;
/// - a path into code that always ends and has no other entry is excluded if another path continues with shared code.
///
/// If one path remains after a branch, the reconvergence point is the start of that path: the other lanes run to
/// their end first. A loop that would lose its last exit gets one excluded path back, preferably one to code with
/// barriers, else the one to the most code. If no common point remains, as after `if (c) { a; return; } else { b;
/// return; }`, the point is a shared `ret`, if there is one.
///
/// Lanes normally meet at this point, but some may never arrive: waiting lanes must not stop other lanes from
/// running.
pub fn reconvergence_points(function: &Function) -> Vec<Option<u32>> {
    let mut reconverge = vec![None; function.body.len()];
    if function.body.is_empty() {
        return reconverge;
    }
    let blocks = Blocks::new(function);
    let early = CountedEdges::without_early_ends(&blocks).post_dominators(&blocks);
    let shared = CountedEdges::without_aborts(&blocks).post_dominators(&blocks);
    for block in 0..blocks.count() {
        let last = blocks.end_of(block) - 1;
        let instruction = &function.body[last];
        if is_branch(&instruction.opcode) && (instruction.guard.is_some() || instruction.opcode.starts_with("brx")) {
            reconverge[last] = early[block].or(shared[block]).map(|node| blocks.starts[node] as u32);
        }
    }
    reconverge
}

/// The effect of an instruction on control flow.
#[derive(Clone, Copy, PartialEq)]
enum ControlKind {
    Plain,
    Branch,
    /// `ret` and `exit`.
    Return,
    /// `trap`, or a call that does not return.
    Abort,
}

fn control_kind(function: &Function, index: u32, instruction: &Instruction) -> ControlKind {
    match instruction.opcode.split('.').next().unwrap_or_default() {
        "bra" | "brx" => ControlKind::Branch,
        "ret" | "exit" => ControlKind::Return,
        "trap" => ControlKind::Abort,
        "call" if function.noreturn_calls.binary_search(&index).is_ok() => ControlKind::Abort,
        _ => ControlKind::Plain,
    }
}

fn targets(instruction: &Instruction) -> Vec<u32> {
    let mut targets = Vec::new();
    for operand in &instruction.operands {
        match operand {
            Operand::Label(target) => targets.push(*target),
            Operand::Labels(several) => targets.extend(several),
            _ => {}
        }
    }
    targets.sort_unstable();
    targets.dedup();
    targets
}

/// How a basic block ends.
#[derive(Clone, Copy, PartialEq)]
enum BlockEnd {
    GoesOn,
    Returns,
    Aborts,
}

/// The basic blocks of a function. The last block is empty: it stands for the return at the end of the body.
struct Blocks {
    /// The first instruction of each basic block.
    starts: Vec<usize>,
    graph: FlowGraph,
    ends: Vec<BlockEnd>,
    /// For each basic block, true if it is a bare return: only a `ret` or `exit`, after the stores of return values,
    /// if any.
    bare: Vec<bool>,
    /// For each basic block, its weight: its number of instructions, where an instruction that the whole warp must
    /// execute together counts as 2^24.
    weights: Vec<usize>,
}

impl Blocks {
    fn new(function: &Function) -> Self {
        let length = function.body.len();
        let follow: Vec<_> = (0..length as u32).map(|index| successors(function, index)).collect();
        let mut leads = vec![false; length + 1];
        leads[0] = true;
        for (index, next) in follow.iter().enumerate() {
            if next[..] != [index as u32 + 1] {
                leads[index + 1] = true;
            }
            if is_branch(&function.body[index].opcode) {
                leads[index + 1] = true;
                next.iter().for_each(|&target| leads[(target as usize).min(length)] = true);
            }
        }
        leads[length] = true;
        let starts: Vec<usize> = (0..=length).filter(|&index| leads[index]).collect();
        let mut block_at = vec![0; length + 1];
        for (block, &start) in starts.iter().enumerate() {
            block_at[start] = block;
        }
        let mut blocks = Blocks {
            graph: FlowGraph::new(starts.len()),
            ends: vec![BlockEnd::GoesOn; starts.len()],
            bare: vec![false; starts.len()],
            weights: vec![0; starts.len()],
            starts,
        };
        for block in 0..blocks.count() {
            blocks.connect(function, block, &follow, &block_at);
        }
        let behind = blocks.count();
        blocks.ends[behind] = BlockEnd::Returns;
        blocks.bare[behind] = true;
        blocks
    }

    /// Returns the number of basic blocks that have instructions: all but the last.
    fn count(&self) -> usize {
        self.starts.len() - 1
    }

    fn end_of(&self, block: NodeIndex) -> usize {
        self.starts.get(block + 1).copied().unwrap_or(self.starts[block])
    }

    fn connect(&mut self, function: &Function, block: NodeIndex, follow: &[Vec<u32>], block_at: &[usize]) {
        let (start, end) = (self.starts[block], self.end_of(block));
        let last = end - 1;
        self.weights[block] = function.body[start..end].iter().map(weight).sum();
        for &target in &follow[last] {
            self.graph.add_edge(block, block_at[(target as usize).min(block_at.len() - 1)]);
        }
        if follow[last].is_empty() {
            let aborts = control_kind(function, last as u32, &function.body[last]) == ControlKind::Abort;
            self.ends[block] = if aborts { BlockEnd::Aborts } else { BlockEnd::Returns };
            let before = &function.body[start..last];
            self.bare[block] = !aborts && before.iter().all(|instruction| instruction.opcode.starts_with("st.param"));
        }
    }

    /// Returns, for each basic block, whether control can flow from it to a block for which `wanted` is true.
    fn reaching(&self, wanted: impl Fn(NodeIndex) -> bool) -> Vec<bool> {
        let mut reach = vec![false; self.starts.len()];
        for block in 0..self.starts.len() {
            if wanted(block) {
                spread(&self.graph, &mut reach, block);
            }
        }
        reach
    }

    /// Returns, for each basic block, whether it can reach an abort but no return.
    fn abort_only(&self) -> Vec<bool> {
        let aborts = self.reaching(|block| self.ends[block] == BlockEnd::Aborts);
        let returns = self.reaching(|block| self.ends[block] == BlockEnd::Returns);
        aborts.iter().zip(&returns).map(|(&aborts, &returns)| aborts && !returns).collect()
    }
}

/// Returns the contribution of one instruction to its basic block's weight ([`Blocks::weights`]).
fn weight(instruction: &Instruction) -> usize {
    let opcode = &instruction.opcode;
    let together = opcode.starts_with("bar") || opcode.contains(".sync") || opcode.contains(".aligned");
    if together { 1 << 24 } else { 1 }
}

/// Sets `reach` to true for `node` and for all nodes from which it can be reached.
fn spread(graph: &FlowGraph, reach: &mut [bool], node: NodeIndex) {
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        if !std::mem::replace(&mut reach[node], true) {
            open.extend(graph.predecessors[node].iter().filter(|&&from| !reach[from]));
        }
    }
}

/// An excluded edge that may be put back to give a loop an exit. Preferred edges sort first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ExcludedEdge {
    /// The kind of code to which the edge leads, most preferred first: 0, code that ends the function; 1, a bare
    /// return; 2, code that aborts.
    tier: u8,
    /// The weight of the code to which the edge leads; heavier code sorts first.
    weight: std::cmp::Reverse<usize>,
    from: NodeIndex,
    /// The target; `None` if the function ends after basic block `from`.
    to: Option<NodeIndex>,
}

/// The control-flow edges from which reconvergence points are computed: all except the excluded ones.
struct CountedEdges {
    graph: FlowGraph,
    /// For each basic block, true if the function may end directly after it.
    ends: Vec<bool>,
}

impl CountedEdges {
    /// Returns all edges except those to code that can only abort.
    fn without_aborts(blocks: &Blocks) -> Self {
        let abort_only = blocks.abort_only();
        CountedEdges::without(blocks, |from, to| {
            let out = abort_only[to] && !abort_only[from];
            (Some(to), out.then_some((2, 0)))
        })
    }

    /// Returns the edges that the rules of [`reconvergence_points`] do not exclude. Where an edge to a bare return
    /// remains, its source basic block is marked as an end of the function instead.
    fn without_early_ends(blocks: &Blocks) -> Self {
        let abort_only = blocks.abort_only();
        let enclosed = EnclosedCode::new(blocks);
        let goes_on = |from: NodeIndex, to: NodeIndex| {
            !abort_only[to] && !blocks.bare[to] && enclosed.weight_behind(from, to).is_none()
        };
        let more_than_bare = |to: NodeIndex| !abort_only[to] && !blocks.bare[to];
        CountedEdges::without(blocks, |from, to| {
            let others = &blocks.graph.successors[from];
            let end = (!blocks.bare[to]).then_some(to);
            if abort_only[to] {
                return (end, (!abort_only[from]).then_some((2, 0)));
            }
            if blocks.bare[to] {
                return (end, others.iter().any(|&other| more_than_bare(other)).then_some((1, 0)));
            }
            let weight = enclosed.weight_behind(from, to);
            let out = weight.filter(|_| others.iter().any(|&other| goes_on(from, other)));
            (end, out.map(|weight| (0, weight)))
        })
    }

    /// Builds the edges. For each edge, `exclude` returns its target (`None` if the function ends there) and, only
    /// for an edge to exclude, its tier and weight as in [`ExcludedEdge`].
    fn without(
        blocks: &Blocks,
        exclude: impl Fn(NodeIndex, NodeIndex) -> (Option<NodeIndex>, Option<(u8, usize)>),
    ) -> Self {
        let nodes = blocks.starts.len();
        let mut ways = CountedEdges {
            graph: FlowGraph::new(nodes),
            ends: blocks.ends.iter().map(|&e| e != BlockEnd::GoesOn).collect(),
        };
        let mut excluded = Vec::new();
        for from in 0..nodes {
            for &to in &blocks.graph.successors[from] {
                match exclude(from, to) {
                    (to, None) => ways.add(from, to),
                    (to, Some((tier, weight))) => {
                        excluded.push(ExcludedEdge { tier, weight: std::cmp::Reverse(weight), from, to });
                    }
                }
            }
        }
        excluded.sort_unstable();
        ways.put_back(&excluded);
        ways
    }

    fn add(&mut self, from: NodeIndex, to: Option<NodeIndex>) {
        match to {
            Some(to) => self.graph.add_edge(from, to),
            None => self.ends[from] = true,
        }
    }

    /// Puts excluded edges back, the preferred ones first, until every loop that had an exit before the exclusion has
    /// one again.
    fn put_back(&mut self, excluded: &[ExcludedEdge]) {
        let mut reach = vec![false; self.ends.len()];
        for block in 0..self.ends.len() {
            if self.ends[block] {
                spread(&self.graph, &mut reach, block);
            }
        }
        for way in excluded {
            if !reach[way.from] && self.is_caught(way.from) {
                self.add(way.from, way.to);
                spread(&self.graph, &mut reach, way.from);
            }
        }
    }

    /// Returns true if all paths from a basic block lead back to it. The block is then itself in a loop without an
    /// exit, and not only on a path to such a loop.
    fn is_caught(&self, block: NodeIndex) -> bool {
        let mut back = vec![false; self.ends.len()];
        spread(&self.graph, &mut back, block);
        let mut seen = vec![false; self.ends.len()];
        let mut open = vec![block];
        while let Some(node) = open.pop() {
            if !back[node] {
                return false;
            }
            if !std::mem::replace(&mut seen[node], true) {
                open.extend(&self.graph.successors[node]);
            }
        }
        true
    }

    /// Returns the immediate post-dominators of the basic blocks.
    fn post_dominators(self, blocks: &Blocks) -> Vec<Option<NodeIndex>> {
        let heads = self.endless_loops(&blocks.graph.reverse_postorder(0));
        let count = self.ends.len();
        let end = count + heads.len();
        let mut graph = FlowGraph::new(end + 1);
        // Put an extra node before the head of each endless loop, with edges to the head and to the end:
        // post-dominators exist only for nodes from which the end can be reached.
        let mut entrance: Vec<NodeIndex> = (0..count).collect();
        heads.iter().enumerate().for_each(|(index, &head)| entrance[head] = count + index);
        for from in 0..count {
            self.graph.successors[from].iter().for_each(|&to| graph.add_edge(from, entrance[to]));
            if self.ends[from] {
                graph.add_edge(from, end);
            }
        }
        for (index, &head) in heads.iter().enumerate() {
            graph.add_edge(count + index, head);
            graph.add_edge(count + index, end);
        }
        let dominators = graph.reversed().immediate_dominators(end);
        let block_of = |node: NodeIndex| if node < count { Some(node) } else { heads.get(node - count).copied() };
        (0..count).map(|block| dominators[block].and_then(block_of)).collect()
    }

    /// Returns heads of endless loops, so many that every basic block can reach an end of the function or one of these
    /// heads.
    fn endless_loops(&self, order: &[NodeIndex]) -> Vec<NodeIndex> {
        let mut reach = vec![false; self.ends.len()];
        (0..self.ends.len()).filter(|&block| self.ends[block]).for_each(|block| spread(&self.graph, &mut reach, block));
        let mut rank = vec![0; self.ends.len()];
        order.iter().enumerate().for_each(|(index, &block)| rank[block] = index);
        let mut heads = Vec::new();
        for &block in order {
            let head = self.graph.predecessors[block].iter().any(|&from| rank[from] >= rank[block]);
            if head && !reach[block] {
                heads.push(block);
                spread(&self.graph, &mut reach, block);
            }
        }
        heads
    }
}

/// Finds enclosed code: basic blocks that control can enter only at their first block and leave only by ending the
/// function. A bare return counts as part of the code that leads to it.
struct EnclosedCode {
    dominators: Vec<Option<NodeIndex>>,
    /// For each basic block, the total weight of the block and of all blocks that it dominates; `None` if an edge
    /// leads from these blocks to any other block.
    weights: Vec<Option<usize>>,
    /// For each basic block, true if, apart from back edges, its only predecessor is its immediate dominator.
    one_way_in: Vec<bool>,
}

impl EnclosedCode {
    fn new(blocks: &Blocks) -> Self {
        let nodes = blocks.starts.len();
        let dominators = blocks.graph.immediate_dominators(0);
        let order = blocks.graph.reverse_postorder(0);
        let mut rank = vec![0; nodes];
        order.iter().enumerate().for_each(|(index, &block)| rank[block] = index);
        let dominates = |above: NodeIndex, mut below: NodeIndex| {
            while rank[below] > rank[above] {
                below = dominators[below].unwrap_or(above);
            }
            below == above
        };
        // Count for each basic block the edges that leave the code it dominates. An edge counts for the blocks on the
        // path in the dominator tree from its source up to, but excluding, the dominator of its target (for a back
        // edge, the target itself). So add 1 at the source, subtract 1 at the excluded block, and sum over subtrees.
        let mut leaving = vec![0i64; nodes];
        let mut one_way_in = vec![true; nodes];
        for &from in &order {
            for &to in blocks.graph.successors[from].iter().filter(|&&to| !blocks.bare[to]) {
                let loops_back = dominates(to, from);
                let stop = if loops_back { Some(to) } else { dominators[to] };
                leaving[from] += 1;
                stop.into_iter().for_each(|stop| leaving[stop] -= 1);
                one_way_in[to] &= loops_back || dominators[to] == Some(from);
            }
        }
        let mut total = blocks.weights.clone();
        for &block in order[1..].iter().rev() {
            let Some(above) = dominators[block] else { continue };
            leaving[above] += leaving[block];
            total[above] += total[block];
        }
        let weights = (0..nodes).map(|block| (leaving[block] == 0).then_some(total[block])).collect();
        EnclosedCode { dominators, weights, one_way_in }
    }

    /// Returns the weight of the enclosed code that the edge from `from` to `to` enters; `None` if it enters none.
    fn weight_behind(&self, from: NodeIndex, to: NodeIndex) -> Option<usize> {
        // The root is its own dominator, so an edge from the root to itself must be ruled out.
        let entrance = from != to && self.one_way_in[to] && self.dominators[to] == Some(from);
        self.weights[to].filter(|_| entrance)
    }
}

#[cfg(test)]
mod tests;
