//! The state of a running grid that all parts of the simulator share: the launch, the resident blocks, the random
//! generator, progress counters, and the reporter.

use super::grid_context::GridContext;
use super::reporter::Reporter;
use super::rng::SeededRng;
use super::state::block::BlockTable;
use super::state::location::{LaneGroup, MemoryLocation};
use super::state::warp::Warp;
use crate::finding::{FindingKind, FindingSite};
use crate::order::TensorAccesses;
use crate::program::uses::WgmmaRegisterUse;
use crate::regs::UnwrittenSource;

/// Counters by which the scheduler decides whether the grid makes progress or only waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProgressCounters {
    /// Number of changes to memory and to barriers so far.
    pub changes: u64,
    /// Number of warp instructions executed so far.
    pub executed: u64,
    /// Number of executed instructions that are typical of waiting loops: strong loads (volatile, relaxed, acquire),
    /// atomics, `nanosleep`, mbarrier tests that are false.
    pub waits: u64,
    /// Number of executed strong loads and atomics that access global memory, by which blocks wait for each other.
    pub global_polls: u64,
    /// Number of instructions that count as executed while warps slept (`nanosleep`, a false mbarrier test).
    pub slept: u64,
    /// Number of steps so far, as [`super::limits::RunLimits::idle_steps`] counts them.
    pub steps: u64,
    /// Number of threads that have exited.
    pub exits: u64,
    /// Number of reads of a clock (`%clock`, `%globaltimer`) so far.
    pub clock_reads: u64,
    /// Cycles by which the clocks have been advanced while the grid only waited for time to pass.
    pub clock_lead: u64,
}

impl ProgressCounters {
    /// Returns the number of executed instructions plus the instructions that count as executed while warps slept.
    pub fn elapsed(&self) -> u64 {
        self.executed + self.slept
    }

    /// Counts a strong load or an atomic that accesses the memory of `groups`.
    pub fn count_strong_access(&mut self, groups: &[LaneGroup]) {
        self.waits += 1;
        self.global_polls += u64::from(groups.iter().any(|group| matches!(group.location, MemoryLocation::Global(_))));
    }

    /// Counts one waiting instruction as the number of instructions that run during a sleep of about 200 ns.
    pub fn count_wait(&mut self) {
        self.waits += 1;
        self.slept += 100;
    }
}

/// The state of a running grid that all parts of the simulator share.
#[derive(Debug)]
pub struct GridState<'a> {
    /// The launch: module, kernel, sizes, parameters and options.
    pub context: GridContext<'a>,
    /// Resident blocks.
    pub blocks: BlockTable,
    /// The generator from which every random choice of the run comes.
    pub rng: SeededRng,
    /// Counters of memory changes and executed instructions.
    pub progress: ProgressCounters,
    /// Findings, notes and counters.
    pub reporter: Reporter<'a>,
    /// True while the primary grid of a dependent launch runs, so that `griddepcontrol.wait` has to wait.
    pub primary_runs: bool,
    /// The accesses of `tcgen05` instructions to tensor memory.
    pub tensor_accesses: TensorAccesses,
    /// The next cluster to start, in issue order.
    pub next_cluster: u32,
}

impl<'a> GridState<'a> {
    /// Creates the state before the first block starts.
    pub fn new(context: GridContext<'a>) -> GridState<'a> {
        GridState {
            context,
            blocks: BlockTable::default(),
            rng: SeededRng::new(context.options.seed),
            progress: ProgressCounters::default(),
            reporter: Reporter::new(context),
            primary_runs: false,
            tensor_accesses: TensorAccesses::default(),
            next_cluster: 0,
        }
    }

    /// Returns whether a wgmma register that an instruction of `warp` accesses lacks the value of a deferred sum.
    #[inline]
    pub fn has_deferred_sum(&self, warp: &Warp, access: &WgmmaRegisterUse) -> bool {
        let group = self.blocks[warp.slot].warpgroups.get(warp.index as usize / 4);
        group.is_some_and(|group| group.defers_any_of(&access.reads) || group.defers_any_of(&access.writes))
    }

    /// Returns the location for a finding: the thread of `lane` of a warp, and the instruction `pc`.
    pub fn finding_site(&self, block_slot: u32, warp: u32, lane: u32, pc: u32) -> FindingSite {
        self.context.finding_site(self.blocks[block_slot].coordinates, warp * 32 + lane, pc)
    }

    /// Reports that the instruction `pc` uses an undefined register of a lane where its value can change what the
    /// kernel does. If the value may come from shared memory that nothing has written, the finding points at the load
    /// of that memory.
    #[cold]
    pub fn report_undefined(&mut self, warp: &Warp, lane: u32, pc: u32, message: impl FnOnce() -> String) {
        // The simulator leaves the result of an unsupported instruction undefined, so a use of this result is not a
        // defect of the kernel.
        if self.reporter.findings().contains_kind(FindingKind::Unsupported) {
            return;
        }
        let site = self.finding_site(warp.slot, warp.index, lane, pc);
        match warp.unwritten_load(lane) {
            None => self.reporter.report(FindingKind::Uninitialized, site, message),
            Some(source) => self.report_unwritten(site, source),
        }
    }

    /// Reports bytes that nothing has written. The finding points at `source`, the load that read the bytes; `site` is
    /// the instruction that uses the value.
    pub fn report_unwritten(&mut self, site: FindingSite, source: UnwrittenSource) {
        let UnwrittenSource { pc, space, address, .. } = source;
        let writer = if space == "local" { "instruction" } else { "thread" };
        let [line, line_of_use] = [pc, site.pc].map(|pc| self.context.source_line(pc));
        let site = FindingSite { pc, ..site };
        if space == "param" {
            self.reporter.report_with_details(FindingKind::Uninitialized, site, None, None, || {
                "an undefined register is passed to or from a function, and then stored".into()
            });
            return;
        }
        self.reporter.report_with_details(FindingKind::Uninitialized, site, None, Some((space, address)), || {
            let used = if line == line_of_use { String::new() } else { format!("; line {line_of_use} uses the value") };
            format!("read of {space} memory at {address:#x} that no {writer} has written{used}")
        });
    }

    /// Counts a change to memory or barriers, which may end a loop that waits for it.
    #[inline]
    pub fn count_memory_or_barrier_change(&mut self) {
        self.progress.changes += 1;
    }
}
