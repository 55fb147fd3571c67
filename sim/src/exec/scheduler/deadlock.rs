//! Deadlocks: reports where the threads of a stuck run wait, as one finding. The kind of the finding names the cause if
//! the cause is known.

use crate::exec::async_engine::report_missing_warps;
use crate::exec::grid::GridState;
use crate::exec::state::block::Block;
use crate::exec::state::mbarrier::MbarrierObject;
use crate::exec::state::warp::{FragmentState, Warp, WarpFragment};
use crate::finding::{FindingKind, FindingSite};

/// Maximum number of groups of waiting warps that a finding lists.
const MAX_LISTED: usize = 4;

/// Fragments (lanes of a warp at one instruction) that wait for the same thing at the same line.
struct WaitGroup {
    /// What the warp fragments wait for, as text that begins with a verb in the third person singular.
    wait: String,
    line: u32,
    /// Coordinates of the block and index of the warp of each fragment.
    warps: Vec<([u32; 3], u32)>,
    /// Number of lanes of the first warp fragment.
    lanes: u32,
}

impl WaitGroup {
    fn describe(&self) -> String {
        let WaitGroup { wait, line, warps, lanes } = self;
        let ([x, y, z], first) = warps[0];
        if warps.len() == 1 {
            return format!("block ({x},{y},{z}) warp {first} ({lanes} lanes) {wait} at line {line}");
        }
        let (verb, rest) = wait.split_once(' ').unwrap_or((wait, ""));
        let wait = format!("{} {rest}", verb.strip_suffix('s').unwrap_or(verb));
        let last = warps.iter().map(|w| w.1).max().unwrap_or(first);
        let one_block = warps.iter().all(|w| w.0 == [x, y, z]);
        if one_block && (last - first) as usize + 1 == warps.len() {
            return format!("block ({x},{y},{z}) warps {first} to {last} {wait} at line {line}");
        }
        let n = warps.len();
        format!("{n} warps, first block ({x},{y},{z}) warp {first}, {wait} at line {line}")
    }
}

/// Why no thread can continue.
enum StuckCause {
    /// No specific cause can be named.
    Unknown,
    /// In the block in this slot, some warps of a warpgroup do not execute a wgmma that the others execute.
    MissingWarps(u32),
    /// A warp fragment waits for an mbarrier phase or for registers that no thread will provide: kind, site and text
    /// of the finding.
    Resource(FindingKind, FindingSite, String),
}

/// Reports that no thread can continue. Reports nothing if an earlier finding may be the cause.
pub(super) fn report_deadlock(grid: &mut GridState) {
    let causes = [
        FindingKind::Barrier,
        FindingKind::Mbarrier,
        FindingKind::Setmaxnreg,
        FindingKind::Trap,
        FindingKind::Unsupported,
    ];
    if causes.iter().any(|&kind| grid.reporter.findings().contains_kind(kind)) || report_incomplete_barriers(grid) {
        return;
    }
    let mut groups: Vec<WaitGroup> = Vec::new();
    let mut first = None;
    for (block, warp, fragment) in fragments(grid) {
        let Some((site, line)) = wait_site(grid, block, warp, fragment) else { continue };
        // The finding points at the first warp fragment with the lowest rank: fragments that wait for something
        // specific come before fragments that run or wait to reconverge.
        let rank = u32::from(matches!(fragment.state, FragmentState::Ready | FragmentState::AtJoin));
        if first.as_ref().is_none_or(|(r, _)| rank < *r) {
            first = Some((rank, site));
        }
        let (wait, warp_of_block) = (describe_wait(block, warp, fragment.state), (block.coordinates, warp.index));
        match groups.iter_mut().find(|group| group.wait == wait && group.line == line) {
            Some(group) if group.warps.last() == Some(&warp_of_block) => {}
            Some(group) => group.warps.push(warp_of_block),
            None => {
                let lanes = fragment.mask.count_ones();
                groups.push(WaitGroup { wait, line, warps: vec![warp_of_block], lanes });
            }
        }
    }
    let Some((_, site)) = first else { return };
    let (kind, site, cause) = match stuck_cause(grid) {
        StuckCause::MissingWarps(slot) => return report_missing_warps(grid, slot),
        StuckCause::Resource(kind, site, cause) => (kind, site, cause),
        StuckCause::Unknown => (FindingKind::Deadlock, site, String::new()),
    };
    let rest = describe_blocks_not_started(grid);
    grid.reporter.report(kind, site, || {
        let waits: Vec<String> = groups.iter().take(MAX_LISTED).map(WaitGroup::describe).collect();
        let more = match groups.len().saturating_sub(MAX_LISTED) {
            0 => String::new(),
            n => format!("; {n} more groups of warps wait elsewhere"),
        };
        format!("{cause}no thread can continue: {}{more}{rest}", waits.join("; "))
    });
}

/// Returns a clause for the end of a message: how many blocks of the grid have not started; empty if all have.
pub(super) fn describe_blocks_not_started(grid: &GridState) -> String {
    let total: u64 = grid.context.launch.grid.iter().map(|&n| n as u64).product();
    match total - grid.reporter.counters.blocks {
        0 => String::new(),
        n => format!("; {n} more blocks of the grid cannot become resident until a block ends"),
    }
}

/// Iterates over all warp fragments of the resident blocks.
fn fragments<'g>(grid: &'g GridState) -> impl Iterator<Item = (&'g Block, &'g Warp, &'g WarpFragment)> {
    grid.blocks.iter().flat_map(|block| {
        let warps = block.warps.iter().flatten();
        warps.flat_map(move |warp| warp.fragments.iter().map(move |fragment| (block, &**warp, fragment)))
    })
}

/// Returns where a warp fragment waits: its lowest thread with the instruction, and the instruction's source line.
fn wait_site(grid: &GridState, block: &Block, warp: &Warp, fragment: &WarpFragment) -> Option<(FindingSite, u32)> {
    let frame = warp.frames.get(fragment.frame as usize)?.as_ref()?;
    let code = &grid.context.kernel.functions[frame.function as usize];
    // A warp fragment that waits at a block barrier or cluster barrier has its `pc` after the barrier instruction.
    let at = match fragment.state {
        FragmentState::BlockBarrier { .. } | FragmentState::ClusterBarrier { .. } => fragment.pc.saturating_sub(1),
        _ => fragment.pc,
    };
    let pc = code.first + at.min(code.instrs.len() as u32 - 1);
    let thread = warp.index * 32 + fragment.mask.trailing_zeros();
    Some((grid.context.finding_site(block.coordinates, thread, pc), grid.context.source_line(pc)))
}

/// Reports blocks in which all live threads wait at one barrier for more threads than can arrive: the count is wrong,
/// or some threads skip the barrier. Returns whether there are any such blocks.
fn report_incomplete_barriers(grid: &mut GridState) -> bool {
    let mut found = Vec::new();
    for block in grid.blocks.iter().filter(|b| b.live > 0) {
        let fragments = || block.warps.iter().flatten().flat_map(|w| w.fragments.iter().map(move |f| (w, f)));
        let Some((warp, first)) = fragments().next() else { continue };
        let FragmentState::BlockBarrier { id } = first.state else { continue };
        let barrier = &block.barriers[id as usize];
        if barrier.expected.is_some() && fragments().all(|(_, f)| f.state == first.state) {
            let arrivals = barrier.describe_arrivals(block.live);
            let thread = warp.index * 32 + first.mask.trailing_zeros();
            let site = grid.context.finding_site(block.coordinates, thread, barrier.pc);
            found.push((site, format!("barrier {id}: {arrivals}, and no other thread is left to arrive")));
        }
    }
    let any = !found.is_empty();
    for (site, message) in found {
        grid.reporter.report(FindingKind::Barrier, site, || message);
    }
    any
}

/// Returns the cause of a deadlock, or `Unknown`.
fn stuck_cause(grid: &GridState) -> StuckCause {
    let mut short_of_bytes = None;
    for (block, warp, fragment) in fragments(grid) {
        let frame = warp.frames.get(fragment.frame as usize).and_then(|f| f.as_ref());
        let Some(frame) = frame else { continue };
        let pc = grid.context.kernel.functions[frame.function as usize].first + fragment.pc;
        let thread = warp.index * 32 + fragment.mask.trailing_zeros();
        let site = grid.context.finding_site(block.coordinates, thread, pc);
        let short = match fragment.state {
            FragmentState::Wgmma if !group_polls(block, warp) => return StuckCause::MissingWarps(warp.slot),
            FragmentState::Registers => {
                let left = block.register_pool;
                let now =
                    warp.max_registers.map_or(String::new(), |n| format!("the warp has {n} registers per thread, "));
                let cause = format!(
                    "setmaxnreg.inc waits for registers that no setmaxnreg.dec will free ({now}{left} are in the block's pool); "
                );
                return StuckCause::Resource(FindingKind::Setmaxnreg, site, cause);
            }
            FragmentState::Mbarrier { slot, address, .. } => {
                let object = grid.blocks.get(slot).and_then(|b| b.mbarriers.get(&address));
                object.map(|object| (address, object))
            }
            // The warp fragment may be in a loop around mbarrier.test_wait.
            FragmentState::Spin { .. } | FragmentState::Ready => {
                let mut objects = block.mbarriers.iter().map(|(&address, object)| (address, object));
                objects.find(|(_, object)| object.is_incomplete())
            }
            _ => None,
        };
        let is_incomplete = |(_, object): &(u32, &MbarrierObject)| object.is_incomplete();
        if let Some((address, object)) = short.filter(is_incomplete)
            && short_of_bytes.is_none()
        {
            let state = object.describe_phase();
            let cause = format!("the mbarrier at shared address {address:#x} never completes its phase: {state}; ");
            short_of_bytes = Some(StuckCause::Resource(FindingKind::Mbarrier, site, cause));
        }
    }
    short_of_bytes.unwrap_or(StuckCause::Unknown)
}

/// Returns whether a warp of the warpgroup of `warp` waits for an mbarrier or polls memory: such a warp may still reach
/// the wgmma that `warp` executes, so the cause of the deadlock is whatever that warp waits for.
fn group_polls(block: &Block, warp: &Warp) -> bool {
    let mut group = block.warps.iter().flatten().filter(|other| other.index / 4 == warp.index / 4);
    let polls =
        |state| matches!(state, FragmentState::Mbarrier { .. } | FragmentState::Spin { .. } | FragmentState::Ready);
    group.any(|other| other.fragments.iter().any(|fragment| polls(fragment.state)))
}

/// Describes what a warp fragment waits for.
fn describe_wait(block: &Block, warp: &Warp, state: FragmentState) -> String {
    match state {
        FragmentState::Ready => "runs without changing memory".into(),
        FragmentState::AtJoin => "waits for other lanes of its warp to reconverge".into(),
        FragmentState::Gather { members, .. } => format!("waits for lanes {:#010x}", members & warp.live),
        FragmentState::BlockBarrier { id } => {
            let arrivals = block.barriers[id as usize].describe_arrivals(block.live);
            format!("waits at barrier {id}, where {arrivals}")
        }
        FragmentState::ClusterBarrier { .. } => "waits at the cluster's barrier".into(),
        FragmentState::Mbarrier { address, phase, by_parity, .. } => {
            // A parity names the current phase or the one before it. A warp that waits for an older phase of the same
            // parity waits for the current phase instead.
            let over = match phase.checked_sub(2).filter(|_| by_parity) {
                Some(older) => format!(" (phase {older}, which has the same parity, is over)"),
                None => String::new(),
            };
            let state =
                block.mbarriers.get(&address).map_or("it was invalidated".into(), MbarrierObject::describe_phase);
            format!("waits for the mbarrier at shared address {address:#x}: {state}{over}")
        }
        FragmentState::Spin { .. } => "spins in a loop that only other threads' writes can end".into(),
        FragmentState::Registers => "waits for registers (setmaxnreg.inc)".into(),
        FragmentState::TensorMemory => {
            "waits in tcgen05.alloc for free columns of tensor memory, or for the other block of its pair".into()
        }
        FragmentState::Wgmma => "waits for a wgmma that not all four warps of its warpgroup execute".into(),
        FragmentState::GridDependency => "waits for the primary grid (griddepcontrol.wait)".into(),
    }
}
