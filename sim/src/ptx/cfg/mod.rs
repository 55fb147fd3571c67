//! Control flow: where each instruction may go on, and where lanes that part at a branch meet again.

use super::ast::{Function, Instruction, Operand};
use super::dominators::{Graph, Node};
use super::function::is_branch;

/// The instructions that may follow the instruction `index` of a function: indices into its body, or the body's length
/// for its end. Empty after `ret`, `exit`, `trap` and calls that do not return; a guard adds the next instruction.
pub fn successors(function: &Function, index: u32) -> Vec<u32> {
    let Some(instruction) = function.body.get(index as usize) else { return Vec::new() };
    let mut next = match kind(function, index, instruction) {
        Kind::Plain => return vec![index + 1],
        Kind::Branch => targets(instruction),
        Kind::Return | Kind::Abort => Vec::new(),
    };
    if instruction.guard.is_some() && !next.contains(&(index + 1)) {
        next.push(index + 1);
    }
    next
}

/// For each instruction at which lanes of a warp may part (a guarded `bra`, a `brx.idx`), the instruction where they meet
/// again: the immediate post-dominator of the branch; `None` for all other instructions and where there is no such place.
///
/// Code that only ends does not count as a way that has to come by, or every early `return` and failed assertion would put
/// off the meeting to the function's end:
/// - a way that is bound for a `trap` or a call that does not return is left out where there is another;
/// - a way to a bare `ret` or `exit` (return values may be stored before it) is left out where there is another: lanes that
///   return do so at once, even if the `ret` is one that all share;
/// - so is a way to code that ends with no part of it being reached from elsewhere, where another way goes on to code that
///   is.
///
/// After a branch of which one way is left the place is the start of that way: the others are run to their end first. A loop
/// that could not be left any more keeps a way out, by preference the one to code with barriers and the like, then the one to
/// the most code. Where this leaves nothing common,
/// as after `if (c) { a; return; } else { b; return; }`, a shared `ret` is the place, if there is one.
///
/// This is where lanes meet in good order. It is no promise that they arrive: whoever waits there must not keep other lanes
/// from going on.
pub fn reconvergence(function: &Function) -> Vec<Option<u32>> {
    let mut places = vec![None; function.body.len()];
    if function.body.is_empty() {
        return places;
    }
    let blocks = Blocks::new(function);
    let early = Ways::early_ends_left_out(&blocks).post_dominators(&blocks);
    let shared = Ways::aborts_left_out(&blocks).post_dominators(&blocks);
    for block in 0..blocks.count() {
        let last = blocks.end_of(block) - 1;
        let instruction = &function.body[last];
        if is_branch(&instruction.opcode) && (instruction.guard.is_some() || instruction.opcode.starts_with("brx")) {
            places[last] = early[block].or(shared[block]).map(|place| blocks.starts[place] as u32);
        }
    }
    places
}

/// What an instruction does to control.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Branch,
    /// `ret`, `exit`
    Return,
    /// `trap`, a call that does not return
    Abort,
}

fn kind(function: &Function, index: u32, instruction: &Instruction) -> Kind {
    match instruction.opcode.split('.').next().unwrap_or_default() {
        "bra" | "brx" => Kind::Branch,
        "ret" | "exit" => Kind::Return,
        "trap" => Kind::Abort,
        "call" if function.noreturn_calls.binary_search(&index).is_ok() => Kind::Abort,
        _ => Kind::Plain,
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

/// How a block ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    GoesOn,
    Returns,
    Aborts,
}

/// Basic blocks; the last one is the empty block behind the body, which returns.
struct Blocks {
    /// The first instruction of each.
    starts: Vec<usize>,
    graph: Graph,
    ends: Vec<End>,
    /// A bare `ret` or `exit`, return values apart.
    bare: Vec<bool>,
    /// Instructions of each, where one that wants its whole warp weighs more than any code without.
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
            graph: Graph::new(starts.len()),
            ends: vec![End::GoesOn; starts.len()],
            bare: vec![false; starts.len()],
            weights: vec![0; starts.len()],
            starts,
        };
        for block in 0..blocks.count() {
            blocks.connect(function, block, &follow, &block_at);
        }
        let behind = blocks.count();
        blocks.ends[behind] = End::Returns;
        blocks.bare[behind] = true;
        blocks
    }

    /// The number of blocks with instructions.
    fn count(&self) -> usize {
        self.starts.len() - 1
    }

    fn end_of(&self, block: Node) -> usize {
        self.starts.get(block + 1).copied().unwrap_or(self.starts[block])
    }

    fn connect(&mut self, function: &Function, block: Node, follow: &[Vec<u32>], block_at: &[usize]) {
        let (start, end) = (self.starts[block], self.end_of(block));
        let last = end - 1;
        self.weights[block] = function.body[start..end].iter().map(weight).sum();
        for &target in &follow[last] {
            self.graph.connect(block, block_at[(target as usize).min(block_at.len() - 1)]);
        }
        if follow[last].is_empty() {
            let aborts = kind(function, last as u32, &function.body[last]) == Kind::Abort;
            self.ends[block] = if aborts { End::Aborts } else { End::Returns };
            let before = &function.body[start..last];
            self.bare[block] = !aborts && before.iter().all(|instruction| instruction.opcode.starts_with("st.param"));
        }
    }

    /// Blocks from which `ends` of some kind can be reached.
    fn reaching(&self, wanted: impl Fn(Node) -> bool) -> Vec<bool> {
        let mut reach = vec![false; self.starts.len()];
        for block in 0..self.starts.len() {
            if wanted(block) {
                spread(&self.graph, &mut reach, block);
            }
        }
        reach
    }

    /// Blocks that can only abort.
    fn doomed(&self) -> Vec<bool> {
        let aborts = self.reaching(|block| self.ends[block] == End::Aborts);
        let returns = self.reaching(|block| self.ends[block] == End::Returns);
        aborts.iter().zip(&returns).map(|(&aborts, &returns)| aborts && !returns).collect()
    }
}

/// See [`Blocks::weights`].
fn weight(instruction: &Instruction) -> usize {
    let opcode = &instruction.opcode;
    let together = opcode.starts_with("bar") || opcode.contains(".sync") || opcode.contains(".aligned");
    if together { 1 << 24 } else { 1 }
}

/// Marks a node and all that lead to it.
fn spread(graph: &Graph, reach: &mut [bool], node: Node) {
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        if !std::mem::replace(&mut reach[node], true) {
            open.extend(graph.predecessors[node].iter().filter(|&&from| !reach[from]));
        }
    }
}

/// A way that was left out and may be put back: the better ones come first in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct LeftOut {
    /// 0 code that ends, 1 a bare return, 2 code that aborts.
    tier: u8,
    /// Weightier code first.
    weight: std::cmp::Reverse<usize>,
    from: Node,
    /// `None` for an end of its own.
    to: Option<Node>,
}

/// The edges that count for where lanes meet.
struct Ways {
    graph: Graph,
    /// Blocks from which a way leads to the end directly.
    ends: Vec<bool>,
}

impl Ways {
    /// All but those that are bound to abort.
    fn aborts_left_out(blocks: &Blocks) -> Self {
        let doomed = blocks.doomed();
        Ways::without(blocks, |from, to| {
            let out = doomed[to] && !doomed[from];
            (Some(to), out.then_some((2, 0)))
        })
    }

    /// Those of [`reconvergence`]'s rules. Ways to bare returns become ends of their own.
    fn early_ends_left_out(blocks: &Blocks) -> Self {
        let doomed = blocks.doomed();
        let enclosed = Enclosed::new(blocks);
        let goes_on =
            |from: Node, to: Node| !doomed[to] && !blocks.bare[to] && enclosed.weight_behind(from, to).is_none();
        let more_than_bare = |to: Node| !doomed[to] && !blocks.bare[to];
        Ways::without(blocks, |from, to| {
            let others = &blocks.graph.successors[from];
            let end = (!blocks.bare[to]).then_some(to);
            if doomed[to] {
                return (end, (!doomed[from]).then_some((2, 0)));
            }
            if blocks.bare[to] {
                return (end, others.iter().any(|&other| more_than_bare(other)).then_some((1, 0)));
            }
            let weight = enclosed.weight_behind(from, to);
            let out = weight.filter(|_| others.iter().any(|&other| goes_on(from, other)));
            (end, out.map(|weight| (0, weight)))
        })
    }

    /// `judge` says of each edge where it leads (`None`: to an end of its own), and the tier and weight if it is left out.
    fn without(blocks: &Blocks, judge: impl Fn(Node, Node) -> (Option<Node>, Option<(u8, usize)>)) -> Self {
        let nodes = blocks.starts.len();
        let mut ways = Ways { graph: Graph::new(nodes), ends: blocks.ends.iter().map(|&e| e != End::GoesOn).collect() };
        let mut left_out = Vec::new();
        for from in 0..nodes {
            for &to in &blocks.graph.successors[from] {
                match judge(from, to) {
                    (to, None) => ways.add(from, to),
                    (to, Some((tier, weight))) => {
                        left_out.push(LeftOut { tier, weight: std::cmp::Reverse(weight), from, to });
                    }
                }
            }
        }
        left_out.sort_unstable();
        ways.put_back(&left_out);
        ways
    }

    fn add(&mut self, from: Node, to: Option<Node>) {
        match to {
            Some(to) => self.graph.connect(from, to),
            None => self.ends[from] = true,
        }
    }

    /// Puts ways back, the best first, until no loop that could be left is without a way out.
    fn put_back(&mut self, left_out: &[LeftOut]) {
        let mut reach = vec![false; self.ends.len()];
        for block in 0..self.ends.len() {
            if self.ends[block] {
                spread(&self.graph, &mut reach, block);
            }
        }
        for way in left_out {
            if !reach[way.from] && self.is_caught(way.from) {
                self.add(way.from, way.to);
                spread(&self.graph, &mut reach, way.from);
            }
        }
    }

    /// Whether all ways from a block come back to it: it is in a loop that is never left, not only on the way to one.
    fn is_caught(&self, block: Node) -> bool {
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

    /// Immediate post-dominators of the blocks.
    fn post_dominators(self, blocks: &Blocks) -> Vec<Option<Node>> {
        let heads = self.endless_loops(&blocks.graph.reverse_postorder(0));
        let count = self.ends.len();
        let end = count + heads.len();
        let mut graph = Graph::new(end + 1);
        // The head of an endless loop is entered through a node that also leads to the end.
        let mut entrance: Vec<Node> = (0..count).collect();
        heads.iter().enumerate().for_each(|(index, &head)| entrance[head] = count + index);
        for from in 0..count {
            self.graph.successors[from].iter().for_each(|&to| graph.connect(from, entrance[to]));
            if self.ends[from] {
                graph.connect(from, end);
            }
        }
        for (index, &head) in heads.iter().enumerate() {
            graph.connect(count + index, head);
            graph.connect(count + index, end);
        }
        let dominators = graph.reversed().dominators(end);
        let block_of = |node: Node| if node < count { Some(node) } else { heads.get(node - count).copied() };
        (0..count).map(|block| dominators[block].and_then(block_of)).collect()
    }

    /// Heads of loops without an end: enough of them that each block reaches an end or one of them.
    fn endless_loops(&self, order: &[Node]) -> Vec<Node> {
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

/// Code that ends without any part of it being reached but through its first block. Bare returns are not looked at: each way
/// to one has its own.
struct Enclosed {
    dominators: Vec<Option<Node>>,
    /// The weight of each block and those it dominates; `None` where an edge leaves them.
    weights: Vec<Option<usize>>,
    /// Blocks that are entered from their dominator alone, loops back apart.
    one_way_in: Vec<bool>,
}

impl Enclosed {
    fn new(blocks: &Blocks) -> Self {
        let nodes = blocks.starts.len();
        let dominators = blocks.graph.dominators(0);
        let order = blocks.graph.reverse_postorder(0);
        let mut rank = vec![0; nodes];
        order.iter().enumerate().for_each(|(index, &block)| rank[block] = index);
        let dominates = |above: Node, mut below: Node| {
            while rank[below] > rank[above] {
                below = dominators[below].unwrap_or(above);
            }
            below == above
        };
        // An edge leaves the code of every block from its source up to, but without, the dominator of its target (the target
        // itself where it loops back): counted as +1 below and -1 above, summed up the tree.
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
        Enclosed { dominators, weights, one_way_in }
    }

    /// The weight of the enclosed code that the edge leads into, if it does.
    fn weight_behind(&self, from: Node, to: Node) -> Option<usize> {
        // The root counts as its own dominator.
        let entrance = from != to && self.one_way_in[to] && self.dominators[to] == Some(from);
        self.weights[to].filter(|_| entrance)
    }
}

#[cfg(test)]
mod tests;
