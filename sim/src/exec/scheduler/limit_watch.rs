//! Watches the limits of a run: steps without progress, time, and memory.

use super::clock_advance::ClockAdvance;
use super::deadlock::describe_blocks_not_started;
use crate::exec::grid::GridState;
use crate::exec::limits::{EarlyStop, RunLimits, StopCause};
use crate::exec::state::warp::Warp;
use crate::finding::{FindingKind, FindingSite, source_line};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Number of times that the counters are scanned for progress before the limit of steps is reached.
const SCANS: u64 = 8;
/// Number of turns between two checks of the elapsed time and of the memory in use.
const TURNS_PER_CHECK: u32 = 64;
/// Maximum number of source lines that a message lists.
const MAX_LINES: usize = 6;

/// A measure of the progress of a grid. It stays unchanged as long as all warps only repeat instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Achievements {
    /// Number of instructions of the kernel that at least one warp has executed.
    instructions: usize,
    /// Threads that have exited.
    exits: u64,
    /// Blocks that have started.
    blocks: u64,
}

/// Notices when a run reaches one of its limits.
#[derive(Debug)]
pub(super) struct LimitWatch {
    limits: RunLimits,
    turns: u32,
    /// Number of steps that had run when the warps were last scanned for progress.
    scanned_at: u64,
    /// Number of steps at the last scan that found progress.
    progress_at: u64,
    achieved: Achievements,
    /// Executions of each instruction at the last scan.
    executed: Vec<u64>,
    clocks: ClockAdvance,
    /// Whether the last scan found no progress.
    idle: bool,
}

impl LimitWatch {
    pub(super) fn new(limits: &RunLimits) -> LimitWatch {
        LimitWatch {
            limits: limits.clone(),
            turns: 0,
            scanned_at: 0,
            progress_at: 0,
            achieved: Achievements::default(),
            executed: Vec::new(),
            clocks: ClockAdvance::default(),
            idle: false,
        }
    }

    /// Returns whether the run has reached a limit, and records which one.
    pub(super) fn is_beyond_limit(&mut self, grid: &mut GridState) -> bool {
        self.turns += 1;
        if self.turns >= TURNS_PER_CHECK {
            self.turns = 0;
            let cancelled = self.limits.cancelled.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
            if cancelled || self.limits.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return stop(grid, StopCause::Time);
            }
            if stack_bytes(grid) > self.limits.memory_bytes {
                return stop(grid, StopCause::Memory);
            }
        }
        let steps = grid.progress.steps;
        steps - self.scanned_at > self.limits.idle_steps / SCANS && self.scan(grid, steps)
    }

    /// Returns true once after each scan that found no progress.
    pub(super) fn take_scan_without_progress(&mut self) -> bool {
        std::mem::take(&mut self.idle)
    }

    /// Looks for progress since the last scan. After too many steps without progress, reports an endless loop and
    /// returns true.
    fn scan(&mut self, grid: &mut GridState, steps: u64) -> bool {
        let counters = &grid.reporter.counters;
        let executed: Vec<u64> = counters.by_instruction.iter().map(|c| c.warps).collect();
        let achieved = Achievements {
            instructions: executed.iter().filter(|&&n| n > 0).count(),
            exits: grid.progress.exits,
            blocks: counters.blocks,
        };
        let before = std::mem::replace(&mut self.executed, executed);
        self.scanned_at = steps;
        if achieved != self.achieved {
            self.achieved = achieved;
            self.progress_at = steps;
            self.clocks.restart(&grid.progress);
        } else {
            self.idle = true;
            self.clocks.advance(&mut grid.progress);
        }
        let idle = steps - self.progress_at;
        if idle <= self.limits.idle_steps {
            return false;
        }
        let repeated = self.executed.iter().zip(&before).enumerate().filter(|(_, (now, before))| now > before);
        let pcs: Vec<u32> = repeated.map(|(pc, _)| pc as u32).collect();
        report_endless_loop(grid, &pcs, idle);
        stop(grid, StopCause::NoProgress)
    }
}

/// Returns the bytes of host memory that call frames and local memory of all running warps take.
fn stack_bytes(grid: &GridState) -> u64 {
    let warps = grid.blocks.iter().flat_map(|block| block.warps.iter().flatten());
    warps.map(|warp| warp.stack_bytes()).sum()
}

/// Records why the run stops. Returns false if it does not stop, because all blocks have ended.
fn stop(grid: &mut GridState, cause: StopCause) -> bool {
    let (line, place) = match busiest_site(grid) {
        Some((site, lanes)) => {
            let ([bx, by, bz], [x, y, z]) = (site.block, site.thread);
            let place =
                format!("block ({bx},{by},{bz}) thread ({x},{y},{z}) and {} more threads of its warp", lanes - 1);
            (grid.context.source_line(site.pc), place)
        }
        None if grid.reporter.counters.blocks == block_count(grid) => return false,
        None => (grid.context.source_line(0), "between two blocks".to_string()),
    };
    let executed_part = executed_part(grid);
    grid.reporter.stopped = Some(EarlyStop { cause, line, place, executed_part });
    true
}

/// Estimates the part of the grid's instructions that was executed; `None` if no block has ended.
fn executed_part(grid: &GridState) -> Option<f64> {
    let running = grid.blocks.iter().filter(|block| block.live > 0);
    let (count, instructions) = running.fold((0, 0), |(count, instructions), block| {
        (count + 1, instructions + block.warps.iter().flatten().map(|warp| warp.clock).sum::<u64>())
    });
    let ended = grid.reporter.counters.blocks - count;
    let executed = grid.progress.executed;
    let by_ended = executed.saturating_sub(instructions) as f64;
    (by_ended > 0.0 && ended > 0)
        .then(|| (executed as f64 * ended as f64 / (by_ended * block_count(grid) as f64)).min(1.0))
}

/// Returns the number of blocks of the grid.
fn block_count(grid: &GridState) -> u64 {
    grid.context.launch.grid.iter().map(|&n| u64::from(n)).product()
}

/// Finds the warp that has executed the most instructions. Returns the instruction at which most of its lanes are, and
/// the number of these lanes.
fn busiest_site(grid: &GridState) -> Option<(FindingSite, u32)> {
    let warps = grid.blocks.iter().flat_map(|block| block.warps.iter().flatten().map(move |warp| (block, &**warp)));
    let (block, warp): (_, &Warp) = warps.filter(|(_, warp)| warp.live != 0).max_by_key(|(_, warp)| warp.clock)?;
    let fragment = warp.fragments.iter().max_by_key(|f| f.mask.count_ones())?;
    let frame = warp.frames.get(fragment.frame as usize)?.as_ref()?;
    let code = &grid.context.kernel.functions[frame.function as usize];
    let pc = code.first + fragment.pc.min(code.instrs.len() as u32 - 1);
    let thread = warp.index * 32 + fragment.mask.trailing_zeros();
    Some((grid.context.finding_site(block.coordinates, thread, pc), fragment.mask.count_ones()))
}

/// Reports an endless loop: the warps only repeat the instructions `pcs`.
fn report_endless_loop(grid: &mut GridState, pcs: &[u32], steps: u64) {
    let Some((site, _)) = busiest_site(grid) else { return };
    let (context, waiting) = (grid.context, describe_blocks_not_started(grid));
    let lines = pcs.iter().map(|&pc| source_line(context.program, context.kernel, pc));
    let (own, other): (BTreeSet<_>, BTreeSet<_>) = lines.map(|l| (l.file, l.line)).partition(|l| l.0.is_none());
    // Lines of headers are listed only if the loop has no line of the main file.
    let lines = if own.is_empty() { other } else { own };
    let name = |(file, line): &(Option<String>, u32)| match file {
        Some(file) => format!("{file}:{line}"),
        None => line.to_string(),
    };
    let listed: Vec<String> = lines.iter().take(MAX_LINES).map(name).collect();
    let more = if lines.len() > MAX_LINES { format!(" and {} more", lines.len() - MAX_LINES) } else { String::new() };
    grid.reporter.report(FindingKind::Deadlock, site, || {
        let lines = if lines.len() == 1 { "line" } else { "lines" };
        format!(
            "a loop without an end: in {steps} steps the warps only repeated the instructions of {lines} {}{more}, and \
             no thread ended{waiting} (if the loop ends, raise the limit)",
            listed.join(", ")
        )
    });
}
