//! Who runs next: a seeded choice among the warps that can, blocks becoming resident in order, and what happens when
//! nobody can go on.

use super::warp::{State, Warp};
use super::{Block, CompletionTiming, Machine};
use crate::finding::{FindingKind, Site};

/// Why nobody can go on.
enum StuckCause {
    Unknown,
    /// Warps of the block in this slot miss at a wgmma.
    Warpgroup(usize),
    At(FindingKind, Site, String),
}

/// Warp instructions without a change after which everybody gets a chance.
const STIR: u64 = 20_000;

impl Machine<'_> {
    /// Runs the grid to its end or to a deadlock.
    pub(super) fn run(&mut self) {
        let (mut last_spin_check, mut last_stir, mut waits_at_progress) = (0, 0, 0);
        let slice = match self.options.seed % 4 {
            0 => 512,
            1 => 96,
            2 => 24,
            _ => 256,
        };
        loop {
            while self.live_blocks < self.window
                && self.live_blocks + self.cluster_size() <= self.resident.max(self.cluster_size())
            {
                if !self.start_cluster() {
                    break;
                }
            }
            if self.options.completion == CompletionTiming::Random
                && !self.in_flight.is_empty()
                && self.rng.below(4) == 0
            {
                self.complete_random();
            }
            if self.runnable.is_empty() {
                if self.stuck || !self.unblock() {
                    return;
                }
                continue;
            }
            let pick = self.rng.below(self.runnable.len() as u32) as usize;
            let (slot, w) = self.runnable[pick];
            if !self.is_ready(slot, w) {
                self.runnable.swap_remove(pick);
                if let Some(q) = self.queued.get_mut(slot as usize).and_then(|q| q.get_mut(w as usize)) {
                    *q = false;
                }
                continue;
            }
            let budget = 1 + self.rng.below(2 * slice);
            self.run_warp(slot, w, budget);
            if self.options.until_finding && !self.findings.is_empty() {
                return;
            }
            if self.progress != self.last_progress {
                self.last_progress = self.progress;
                self.executed_at_progress = self.executed;
                waits_at_progress = self.waits;
                last_stir = self.executed;
                // Waiting loops look again now and then.
                if self.executed > last_spin_check + 4096 {
                    last_spin_check = self.executed;
                    self.wake_spinners();
                }
            } else if self.executed - last_stir > STIR {
                last_stir = self.executed;
                self.stir();
                // Calculations may take long; loops that look for a change again and again may not.
                let idle = self.executed - self.executed_at_progress;
                let waiting = self.waits - waits_at_progress > idle / 1000;
                if idle > self.options.patience.saturating_mul(if waiting { 1 } else { 40 }) {
                    self.out_of_patience();
                    return;
                }
            }
        }
    }

    /// Much was executed and nothing changed: perhaps loops wait in ways that cannot be told from work. Whoever they wait
    /// for gets a chance.
    fn stir(&mut self) {
        self.wake_spinners();
        self.give_up_joins_everywhere();
        self.complete_oldest();
        for _ in 0..=self.live_blocks / self.cluster_size() {
            if self.live_blocks + self.cluster_size() > self.resident || !self.start_cluster() {
                break;
            }
        }
    }

    fn is_ready(&self, slot: u32, w: u32) -> bool {
        let block = self.blocks.get(slot as usize).and_then(|b| b.as_ref());
        block.and_then(|b| b.warps.get(w as usize)?.as_ref()).is_some_and(|w| w.is_ready())
    }

    /// Puts a warp among those to choose from.
    pub(super) fn enqueue(&mut self, slot: u32, w: u32) {
        if let Some(queued) = self.queued[slot as usize].get_mut(w as usize)
            && !*queued
        {
            *queued = true;
            self.runnable.push((slot, w));
        }
    }

    /// Nobody is runnable: starts blocks, wakes waiting loops, completes what is in flight. False: all is over, or stuck.
    fn unblock(&mut self) -> bool {
        if self.wake_spinners() {
            return true;
        }
        if self.give_up_joins_everywhere() {
            return true;
        }
        if self.complete_oldest() {
            return true;
        }
        if self.live_blocks + self.cluster_size() <= self.resident && self.start_cluster() {
            return true;
        }
        if self.waits_for_grid() {
            return false;
        }
        if self.blocks.iter().flatten().any(|b| b.live > 0) {
            if self.false_try_waits() {
                return true;
            }
            self.deadlock();
            self.stuck = true;
        }
        false
    }

    /// Loops that wait for memory look again if it has changed. Whether any does.
    fn wake_spinners(&mut self) -> bool {
        let progress = self.progress;
        self.wake(|state| matches!(state, State::Spin { progress: seen } if *seen != progress))
    }

    /// A try_wait may be false: whoever waits in one goes on, once a change.
    fn false_try_waits(&mut self) -> bool {
        let mut any = false;
        let progress = self.progress;
        for slot in 0..self.blocks.len() {
            let Some(block) = &mut self.blocks[slot] else { continue };
            let mut woken = Vec::new();
            for (w, warp) in block.warps.iter_mut().enumerate() {
                let Some(warp) = warp else { continue };
                for f in &mut warp.fragments {
                    if matches!(f.state, State::Mbarrier { .. }) && f.spin_hash != progress.wrapping_mul(2) | 1 {
                        // The loop around it must not come here again without a change.
                        f.spin_hash = progress.wrapping_mul(2) | 1;
                        f.gathered = true;
                        f.state = State::Ready;
                        any = true;
                        woken.push(w as u32);
                    }
                }
            }
            woken.into_iter().for_each(|w| self.enqueue(slot as u32, w));
        }
        any
    }

    /// Makes fragments ready whose state `which` names.
    pub(super) fn wake(&mut self, which: impl Fn(&State) -> bool) -> bool {
        let mut any = false;
        for slot in 0..self.blocks.len() {
            any |= self.wake_in(slot as u32, &which);
        }
        any
    }

    /// The same in one block.
    pub(super) fn wake_in(&mut self, slot: u32, which: &impl Fn(&State) -> bool) -> bool {
        let Some(block) = &mut self.blocks[slot as usize] else { return false };
        let mut woken = Vec::new();
        for (w, warp) in block.warps.iter_mut().enumerate() {
            let Some(warp) = warp else { continue };
            let mut here = false;
            for f in &mut warp.fragments {
                if which(&f.state) {
                    f.state = State::Ready;
                    here = true;
                }
            }
            if here {
                woken.push(w as u32);
            }
        }
        let any = !woken.is_empty();
        woken.into_iter().for_each(|w| self.enqueue(slot, w));
        any
    }

    /// Lanes that wait for their siblings at a join, while these wait for something that never comes without them.
    fn give_up_joins_everywhere(&mut self) -> bool {
        let mut any = false;
        for slot in 0..self.blocks.len() {
            let Some(block) = &mut self.blocks[slot] else { continue };
            let mut woken = Vec::new();
            for (w, warp) in block.warps.iter_mut().enumerate() {
                if let Some(warp) = warp
                    && warp.give_up_joins()
                {
                    woken.push(w as u32);
                }
            }
            any |= !woken.is_empty();
            woken.into_iter().for_each(|w| self.enqueue(slot as u32, w));
        }
        any
    }

    /// A warp has no lanes left.
    pub(super) fn warp_ended(&mut self, block: &mut Block, w: u32) {
        self.warp_exit_checks(block, w);
    }

    /// After a warp's turn: barriers that are complete now, and blocks that are over.
    pub(super) fn settle_block(&mut self, slot: u32) {
        self.complete_barriers(slot);
        self.settle_cluster(slot);
        self.wake_mbarriers();
        if std::mem::take(&mut self.pool_grew) {
            self.wake_in(slot, &|state: &State| *state == State::Registers);
        }
        if std::mem::take(&mut self.wgmma_complete) {
            self.wake_in(slot, &|state: &State| *state == State::Wgmma);
        }
        let Some(block) = &mut self.blocks[slot as usize] else { return };
        if block.live > 0 || block.ended {
            return;
        }
        block.ended = true;
        self.live_blocks -= 1;
        let cluster = block.cluster.clone();
        self.block_exit_checks(slot);
        // Shared memory lives on until the cluster is over: peers may still use it.
        if cluster.iter().all(|&s| self.blocks[s as usize].as_ref().is_none_or(|b| b.ended)) {
            for s in cluster {
                if let Some(block) = self.blocks[s as usize].take() {
                    self.recycle(*block);
                }
                self.queued[s as usize].clear();
                self.runnable.retain(|r| r.0 != s);
            }
        }
    }

    fn recycle(&mut self, block: Block) {
        if self.spare_blocks.len() < 8 {
            self.spare_blocks.push((block.shared, block.shadow));
        }
    }

    fn out_of_patience(&mut self) {
        self.stuck = true;
        self.deadlock();
    }

    /// Whether all that live of a block wait at one barrier whose count they cannot make up: a wrong count, or a barrier that
    /// some leave out, which is more than a deadlock in general.
    fn incomplete_barrier(&mut self) -> bool {
        let mut found = Vec::new();
        for block in self.blocks.iter().flatten().filter(|b| b.live > 0) {
            let fragments = || block.warps.iter().flatten().flat_map(|w| w.fragments.iter().map(move |f| (w, f)));
            let Some((warp, first)) = fragments().next() else { continue };
            let State::Barrier { id } = first.state else { continue };
            let barrier = &block.barriers[id as usize];
            if barrier.is_counted() && fragments().all(|(_, f)| f.state == first.state) {
                let words = format!("barrier {id}: {}, and nobody is left who could", barrier.describe(block.live));
                found.push((self.site(block, warp.index, first.mask.trailing_zeros(), barrier.pc()), words));
            }
        }
        let any = !found.is_empty();
        for (site, words) in found {
            self.report(FindingKind::Barrier, site, None, None, || words);
        }
        any
    }

    /// Nobody can go on: one finding that says who waits where.
    fn deadlock(&mut self) {
        // Waiting for ever is what these lead to.
        let causes = [
            FindingKind::Barrier,
            FindingKind::Mbarrier,
            FindingKind::Setmaxnreg,
            FindingKind::Trap,
            FindingKind::Unsupported,
        ];
        if causes.iter().any(|&k| self.findings.has(k)) || self.incomplete_barrier() {
            return;
        }
        let mut lines = Vec::new();
        let mut first = None;
        for slot in 0..self.blocks.len() {
            let Some(block) = &self.blocks[slot] else { continue };
            for warp in block.warps.iter().flatten() {
                for f in &warp.fragments {
                    let Some(frame) = warp.frames.get(f.frame as usize).and_then(|f| f.as_ref()) else { continue };
                    let code = &self.kernel.functions[frame.function as usize];
                    // Barriers are left behind when they are waited at.
                    let at = match f.state {
                        State::Barrier { .. } | State::Cluster { .. } => f.pc.saturating_sub(1),
                        _ => f.pc,
                    };
                    let pc = code.first + at.min(code.instrs.len() as u32 - 1);
                    let lane = f.mask.trailing_zeros();
                    let site = self.site(block, warp.index, lane, pc);
                    let (line, _) = crate::finding::source(self.program, self.kernel, pc);
                    // A waiting loop is the least informative place.
                    let rank = if matches!(f.state, State::Ready | State::Joined) { 1 } else { 0 };
                    if first.as_ref().is_none_or(|(r, _)| rank < *r) {
                        first = Some((rank, site));
                    }
                    let what = self.describe_wait(block, warp, f.state);
                    let (b, n) = (block.at, f.mask.count_ones());
                    let text = format!(
                        "block ({},{},{}) warp {} ({n} lanes) {what} at line {line}",
                        b[0], b[1], b[2], warp.index
                    );
                    if lines.len() < 12 {
                        lines.push(text);
                    }
                }
            }
        }
        let total: u64 = self.launch.grid.iter().map(|&n| n as u64).product();
        let started = self.counters.blocks;
        let Some((_, site)) = first else { return };
        let (kind, site, cause) = match self.stuck_cause() {
            StuckCause::Warpgroup(slot) => {
                if let Some(mut block) = self.blocks[slot].take() {
                    self.warpgroup_exit_checks(&mut block);
                    self.blocks[slot] = Some(block);
                }
                return;
            }
            StuckCause::At(kind, site, cause) => (kind, site, cause),
            StuckCause::Unknown => (FindingKind::Deadlock, site, String::new()),
        };
        self.report(kind, site, None, None, || {
            let rest = total - started;
            let rest = match rest {
                0 => String::new(),
                n => format!("; {n} more blocks of the grid cannot become resident until one ends"),
            };
            format!("{cause}nobody can go on: {}{rest}", lines.join("; "))
        });
    }

    /// What made a deadlock, where that can be said: a more specific kind of finding.
    fn stuck_cause(&self) -> StuckCause {
        let mut short_of_bytes = None;
        for slot in 0..self.blocks.len() {
            let Some(block) = &self.blocks[slot] else { continue };
            for warp in block.warps.iter().flatten() {
                for f in &warp.fragments {
                    let Some(frame) = warp.frames.get(f.frame as usize).and_then(|f| f.as_ref()) else { continue };
                    let pc = self.kernel.functions[frame.function as usize].first + f.pc;
                    let site = self.site(block, warp.index, f.mask.trailing_zeros(), pc);
                    match f.state {
                        State::Wgmma => {
                            return StuckCause::Warpgroup(slot);
                        }
                        State::Registers => {
                            let left = block.register_pool;
                            let cause = format!(
                                "setmaxnreg.inc waits for registers that no setmaxnreg.dec will free ({} a thread now, {left} in the block's pool); ",
                                warp.max_registers
                            );
                            return StuckCause::At(FindingKind::Setmaxnreg, site, cause);
                        }
                        State::Mbarrier { slot, address, .. } => {
                            let home = self.blocks[slot as usize].as_ref();
                            let object = home.and_then(|b| b.mbarriers.get(&address));
                            if let Some(o) = object.filter(|o| o.is_short())
                                && short_of_bytes.is_none()
                            {
                                let cause = format!(
                                    "the mbarrier at shared address {address:#x} never completes its phase: {}; ",
                                    o.describe()
                                );
                                short_of_bytes = Some((site, cause));
                            }
                        }
                        // A loop of test_wait, perhaps.
                        State::Spin { .. } | State::Ready => {
                            if let Some((address, o)) = block.mbarriers.iter().find(|(_, o)| o.is_short())
                                && short_of_bytes.is_none()
                            {
                                let cause = format!(
                                    "the mbarrier at shared address {address:#x} never completes its phase: {}; ",
                                    o.describe()
                                );
                                short_of_bytes = Some((site, cause));
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        match short_of_bytes {
            Some((site, cause)) => StuckCause::At(FindingKind::Mbarrier, site, cause),
            None => StuckCause::Unknown,
        }
    }

    fn describe_wait(&self, block: &Block, warp: &Warp, state: State) -> String {
        match state {
            State::Ready => "runs without effect".into(),
            State::Joined => "waits for its other lanes".into(),
            State::Gather { members, .. } => format!("waits for lanes {:#010x}", members & warp.live),
            State::Barrier { id } => {
                let b = &block.barriers[id as usize];
                format!("waits at barrier {id}, where {}", b.describe(block.live))
            }
            State::Cluster { .. } => "waits at the cluster's barrier".into(),
            State::Mbarrier { address, .. } => match block.mbarriers.get(&address) {
                Some(o) => format!("waits for the mbarrier at shared address {address:#x}: {}", o.describe()),
                None => format!("waits for an mbarrier at shared address {address:#x}"),
            },
            State::Spin { .. } => "spins in a loop that only other threads' writes can end".into(),
            State::Registers => "waits for registers (setmaxnreg.inc)".into(),
            State::Wgmma => "waits for a wgmma that not all four warps of its warpgroup execute".into(),
            State::GridDependency => "waits for the grid before".into(),
        }
    }
}
