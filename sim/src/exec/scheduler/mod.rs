//! The scheduler decides which warp runs next, when blocks become resident, and when a run is over or stuck.
//!
//! ```text
//! loop:
//!     start clusters of blocks while the GPU has room and few blocks are live
//!     with random completion: now and then complete an asynchronous operation
//!     no warp can run?  wake loops that wait for memory, else give up joins, else complete an operation,
//!                       else start a cluster, else let a try_wait fail, else report a deadlock
//!     pick a ready warp at random and run it for a random number of instructions (its turn)
//!     settle its block: complete barriers, wake waiting warps, free blocks that have ended
//!     nothing has changed for long?  wake everything that might continue; at last report a deadlock
//!     blocks only poll global memory, or repeat the same instructions?  start further clusters
//! ```
//!
//! Every choice comes from the seeded generator of the grid, so a seed always gives the same interleaving.

mod blocks;
mod clock_advance;
mod deadlock;
mod limit_watch;
mod wake;

use super::grid::{GridState, ProgressCounters};
use super::interpreter::Interpreter;
use super::launch::{CompletionTiming, bytes_of_block};
use super::residency;
use super::state::warp::FragmentState;
use super::sync::block_barrier::complete_barriers;
use super::sync::cluster_barrier::complete_cluster_barrier;
use clock_advance::ClockAdvance;
use deadlock::report_deadlock;
use limit_watch::LimitWatch;

/// Number of warp instructions without a change to memory after which `wake_all` wakes everything that might continue.
const INSTRUCTIONS_BEFORE_WAKING_ALL: u64 = 20_000;
/// If memory changes all the time, waiting loops are woken to read memory again after this number of warp instructions.
const INSTRUCTIONS_BEFORE_SPIN_CHECK: u64 = 4096;
/// Loops that compute may run this many times longer without a memory change than loops that wait.
const COMPUTE_PATIENCE: u64 = 40;
/// If the running warps only compute, another block starts after this number of warp instructions without a change to
/// memory. This number is much larger than [`INSTRUCTIONS_BEFORE_WAKING_ALL`]: in a long loop without stores, every
/// further block would postpone the end of the running ones.
const COMPUTE_INSTRUCTIONS_BEFORE_NEXT_BLOCK: u64 = 1_000_000;

/// If no thread exits during this number of warp instructions and the blocks poll global memory, further blocks start:
/// the polling blocks may wait for blocks that have not started. Barriers and other changes to memory in their loops do
/// not matter.
const POLLING_INSTRUCTIONS_BEFORE_NEXT_BLOCK: u64 = 100_000;

/// The warps that can run, and the blocks that are to start.
#[derive(Debug)]
pub struct Scheduler {
    /// Warps that can run, as (block slot, index of the warp in its block). A warp that has begun to wait since it
    /// was added is skipped when it is picked.
    runnable: Vec<(u32, u32)>,
    /// For each slot and each warp of its block, whether the warp is in `runnable`. An empty list marks a free slot.
    queued: Vec<Vec<bool>>,
    /// Blocks that the GPU can hold at once.
    resident_limit: u32,
    /// Number of blocks that the scheduler keeps running at once; small, so that their warps interleave closely.
    live_target: u32,
    /// Blocks that have started and not ended.
    live_blocks: u32,
    /// Whether the run has ended with a deadlock.
    stuck: bool,
    marks: ProgressMarks,
    clocks: ClockAdvance,
    watch: LimitWatch,
}

/// Earlier values of the counters in [`super::grid::ProgressCounters`], from which the scheduler detects a lack of
/// progress.
#[derive(Debug, Default)]
struct ProgressMarks {
    /// Value of `changes` when the scheduler last compared the counters.
    changes: u64,
    /// `elapsed_at_change` and `waits_at_change` are the values of `elapsed` and `waits` when `changes` last changed.
    elapsed_at_change: u64,
    waits_at_change: u64,
    /// `spin_check` is the value of `elapsed` when a memory change last woke waiting loops; `wake_all` is its value
    /// when the method `wake_all` last ran or memory last changed.
    spin_check: u64,
    wake_all: u64,
    /// Value of `elapsed` when blocks were last started because memory did not change.
    block_start: u64,
    /// The counters when a thread last exited, or when the scheduler last looked for blocks that poll global memory.
    polling: ProgressCounters,
}

impl ProgressMarks {
    /// Whether no thread has exited for long and the running blocks poll global memory.
    fn blocks_poll(&mut self, progress: &ProgressCounters) -> bool {
        let (exited, elapsed) = (progress.exits != self.polling.exits, progress.elapsed() - self.polling.elapsed());
        if !exited && elapsed <= POLLING_INSTRUCTIONS_BEFORE_NEXT_BLOCK {
            return false;
        }
        let polls = progress.global_polls - self.polling.global_polls;
        self.polling = *progress;
        !exited && polls > elapsed / 1000
    }
}

impl Scheduler {
    /// Creates a scheduler for the blocks of a grid; no block has started.
    pub fn new(grid: &mut GridState) -> Scheduler {
        let context = grid.context;
        let window = if context.options.count_only { 1 } else { 1 + grid.rng.draw_below(6) };
        // Blocks that start at the beginning use at most half of the memory limit. The other half is for blocks that
        // start later because the running ones wait for them.
        let limits = &context.options.limits;
        let bytes = bytes_of_block(context.kernel, context.launch).max(1);
        let window = window.min((limits.memory_bytes / 2 / bytes).min(u64::from(window)).max(1) as u32);
        Scheduler {
            runnable: Vec::new(),
            queued: Vec::new(),
            resident_limit: residency::resident_blocks(context.kernel, context.launch, context.options),
            live_target: window.max(context.cluster_blocks()),
            live_blocks: 0,
            stuck: false,
            marks: ProgressMarks::default(),
            clocks: ClockAdvance::default(),
            watch: LimitWatch::new(limits),
        }
    }

    /// Runs the grid until its blocks have ended, wait for a primary grid, or are stuck.
    pub fn run(&mut self, interpreter: &mut Interpreter) {
        let options = interpreter.grid.context.options;
        let cluster_blocks = interpreter.grid.context.cluster_blocks();
        let ProgressMarks { changes, elapsed_at_change, polling, .. } = self.marks;
        self.marks = ProgressMarks { changes, elapsed_at_change, polling, ..ProgressMarks::default() };
        // Average number of instructions per turn of a warp. It depends on the seed, because long turns reveal other
        // defects than short ones.
        let turn = match options.seed % 4 {
            0 => 512,
            1 => 96,
            2 => 24,
            _ => 256,
        };
        loop {
            while self.live_blocks < self.live_target
                && self.live_blocks + cluster_blocks <= self.resident_limit.max(cluster_blocks)
            {
                if !self.start_cluster(&mut interpreter.grid) {
                    break;
                }
            }
            if options.completion == CompletionTiming::Random
                && !interpreter.async_engine.is_idle()
                && interpreter.grid.rng.draw_below(4) == 0
            {
                interpreter.async_engine.complete_random_operation(&mut interpreter.grid, &mut interpreter.memory);
                self.wake_waiters_at_mbarriers(interpreter);
            }
            if self.runnable.is_empty() {
                if self.stuck || !self.unblock(interpreter) {
                    return;
                }
                continue;
            }
            let pick = interpreter.grid.rng.draw_below(self.runnable.len() as u32) as usize;
            let (slot, w) = self.runnable[pick];
            if passes_over_polling_warp(&mut interpreter.grid, slot, w) {
                continue;
            }
            if !is_ready(&interpreter.grid, slot, w) {
                self.runnable.swap_remove(pick);
                if let Some(queued) = self.queued.get_mut(slot as usize).and_then(|q| q.get_mut(w as usize)) {
                    *queued = false;
                }
                continue;
            }
            let budget = 1 + interpreter.grid.rng.draw_below(2 * turn);
            let before = interpreter.grid.progress;
            interpreter.run_warp(slot, w, budget);
            postpone_polling_warp(&mut interpreter.grid, slot, w, &before);
            self.settle_block(interpreter, slot);
            if options.until_finding && !interpreter.grid.reporter.findings().is_empty() {
                return;
            }
            if self.is_out_of_patience(interpreter) {
                self.stuck = true;
                report_deadlock(&mut interpreter.grid);
                return;
            }
            if self.watch.is_beyond_limit(&mut interpreter.grid) {
                self.stuck = true;
                return;
            }
            let progress = interpreter.grid.progress;
            if self.watch.take_scan_without_progress() || self.marks.blocks_poll(&progress) {
                self.start_further_clusters(&mut interpreter.grid);
            }
        }
    }

    /// Lets a dependent grid continue after `griddepcontrol.wait`, because its primary grid has ended.
    pub fn resume_after_primary_grid(&mut self, grid: &mut GridState) {
        grid.primary_runs = false;
        self.wake_waiters_for_primary_grid(grid);
    }

    /// Returns whether the grid has run so long without progress that it counts as stuck. Wakes waiting loops now and
    /// then.
    fn is_out_of_patience(&mut self, interpreter: &mut Interpreter) -> bool {
        let progress = interpreter.grid.progress;
        let marks = &mut self.marks;
        if progress.changes != marks.changes {
            marks.changes = progress.changes;
            marks.elapsed_at_change = progress.elapsed();
            marks.waits_at_change = progress.waits;
            marks.wake_all = progress.elapsed();
            self.clocks.restart(&progress);
            if progress.elapsed() > marks.spin_check + INSTRUCTIONS_BEFORE_SPIN_CHECK {
                marks.spin_check = progress.elapsed();
                self.wake_spinning_loops(&mut interpreter.grid);
            }
            return false;
        }
        self.clocks.advance_if_due(&mut interpreter.grid.progress);
        if progress.elapsed() - marks.wake_all <= INSTRUCTIONS_BEFORE_WAKING_ALL {
            return false;
        }
        marks.wake_all = progress.elapsed();
        // A loop that computes may run long without a memory change; a loop that only waits for a change may not.
        let idle = progress.elapsed() - marks.elapsed_at_change;
        let waits = progress.waits - marks.waits_at_change > idle / 1000;
        let since_start = progress.elapsed() - marks.elapsed_at_change.max(marks.block_start);
        let starts_blocks = waits || since_start > COMPUTE_INSTRUCTIONS_BEFORE_NEXT_BLOCK;
        if starts_blocks {
            marks.block_start = progress.elapsed();
        }
        self.wake_all(interpreter, starts_blocks);
        let patience = interpreter.grid.context.options.patience;
        idle > patience.saturating_mul(if waits { 1 } else { COMPUTE_PATIENCE })
    }

    /// Wakes everything that might continue, after many instructions without a memory change. Some loops wait in ways
    /// that the interpreter does not recognise, and the threads that can end them must get a chance to run. If
    /// `starts_blocks` is true, also starts blocks.
    fn wake_all(&mut self, interpreter: &mut Interpreter, starts_blocks: bool) {
        self.wake_spinning_loops(&mut interpreter.grid);
        self.give_up_reconvergence(&mut interpreter.grid);
        self.complete_operation(interpreter);
        if starts_blocks {
            self.start_further_clusters(&mut interpreter.grid);
        }
    }

    /// Starts as many further clusters as are running now, plus one. Starts fewer if the GPU has no room for them.
    fn start_further_clusters(&mut self, grid: &mut GridState) {
        let cluster_blocks = grid.context.cluster_blocks();
        for _ in 0..=self.live_blocks / cluster_blocks {
            if !self.has_room(cluster_blocks) || !self.start_cluster(grid) {
                break;
            }
        }
    }

    /// Makes progress possible when no warp can run. Returns false if the run is over or stuck.
    fn unblock(&mut self, interpreter: &mut Interpreter) -> bool {
        if self.wake_spinning_loops(&mut interpreter.grid)
            || self.give_up_reconvergence(&mut interpreter.grid)
            || self.complete_operation(interpreter)
        {
            return true;
        }
        let grid = &mut interpreter.grid;
        if self.has_room(grid.context.cluster_blocks()) && self.start_cluster(grid) {
            return true;
        }
        if waits_for_primary(grid) {
            return false;
        }
        if grid.blocks.iter().any(|block| block.live > 0) {
            if self.let_try_waits_return_false(grid) {
                return true;
            }
            if !grid.context.options.strict_proxy && self.end_late_waits(grid) {
                return true;
            }
            report_deadlock(grid);
            self.stuck = true;
        }
        false
    }

    /// Whether the GPU can hold another cluster.
    fn has_room(&self, cluster_blocks: u32) -> bool {
        self.live_blocks + cluster_blocks <= self.resident_limit
    }

    /// Completes an asynchronous operation; returns false if no operation was in flight.
    fn complete_operation(&mut self, interpreter: &mut Interpreter) -> bool {
        let completed = interpreter.async_engine.complete_one_operation(&mut interpreter.grid, &mut interpreter.memory);
        if completed {
            self.wake_waiters_at_mbarriers(interpreter);
        }
        completed
    }

    /// After a warp's turn: completes barriers, wakes warps, and frees the block if all its threads have exited.
    fn settle_block(&mut self, interpreter: &mut Interpreter, slot: u32) {
        let grid = &mut interpreter.grid;
        for id in complete_barriers(grid, slot) {
            self.wake_waiters_at_block_barrier(grid, slot, id);
        }
        complete_cluster_barrier(grid, slot);
        self.wake_waiters_at_cluster_barrier(grid, slot);
        self.wake_waiters_at_mbarriers(interpreter);
        let grid = &mut interpreter.grid;
        self.wake_waiters_for_registers_and_wgmma(grid, slot);
        let Some(block) = grid.blocks.get_mut(slot) else { return };
        if block.live > 0 || block.ended {
            return;
        }
        block.ended = true;
        self.live_blocks -= 1;
        let cluster = block.cluster.clone();
        interpreter.async_engine.complete_block_operations(&mut interpreter.grid, &mut interpreter.memory, slot);
        self.wake_waiters_at_mbarriers(interpreter);
        // Shared memory lives until all blocks of the cluster have ended, because the other blocks may still access it.
        let blocks = &mut interpreter.grid.blocks;
        if cluster.iter().all(|&s| blocks.get(s).is_none_or(|block| block.ended)) {
            for s in cluster {
                blocks.remove(s);
                self.queued[s as usize].clear();
                self.runnable.retain(|r| r.0 != s);
            }
        }
    }
}

/// Maximum number of times that the scheduler passes over a polling warp before it runs again.
const MAX_PASSES: u32 = 64;

/// Whether the scheduler skips this warp because it only polls. The warps that it waits for then run more often.
fn passes_over_polling_warp(grid: &mut GridState, slot: u32, w: u32) -> bool {
    let warp = grid.blocks.get_mut(slot).and_then(|block| block.warps.get_mut(w as usize)?.as_mut());
    match warp {
        Some(warp) if warp.passes > 0 => {
            warp.passes -= 1;
            true
        }
        _ => false,
    }
}

/// After a turn: postpones the next turn of a warp that only polled. A warp polled if it executed an instruction that
/// is typical of waiting loops and changed neither memory nor a barrier. Each further turn of this kind doubles the
/// pause.
fn postpone_polling_warp(grid: &mut GridState, slot: u32, w: u32, before: &ProgressCounters) {
    let polled = grid.progress.changes == before.changes && grid.progress.waits > before.waits;
    let warp = grid.blocks.get_mut(slot).and_then(|block| block.warps.get_mut(w as usize)?.as_mut());
    if let Some(warp) = warp {
        warp.idle_turns = if polled { warp.idle_turns + 1 } else { 0 };
        warp.passes = if polled { (1 << warp.idle_turns.min(6)).min(MAX_PASSES) } else { 0 };
    }
}

/// Whether a warp fragment of a dependent grid waits for the end of its primary grid.
fn waits_for_primary(grid: &GridState) -> bool {
    let mut fragments = grid.blocks.iter().flat_map(|b| b.warps.iter().flatten()).flat_map(|w| &w.fragments);
    grid.primary_runs && fragments.any(|f| f.state == FragmentState::GridDependency)
}

/// Whether a warp has a fragment that can run.
fn is_ready(grid: &GridState, slot: u32, w: u32) -> bool {
    let warps = grid.blocks.get(slot).map(|block| &block.warps);
    warps.and_then(|warps| warps.get(w as usize)?.as_ref()).is_some_and(|warp| warp.is_ready())
}
