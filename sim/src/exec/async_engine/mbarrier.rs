//! mbarriers: the instructions `mbarrier.*` and the transitions of mbarrier objects. PTX ISA, "Parallel
//! synchronization: mbarrier". The pseudo-code of the phases is in [`super`].

use super::engine::AsyncEngine;
use super::mbarrier_access::{check_mbarrier_use, locate_mbarrier};
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::grid::GridState;
use crate::exec::memory_system::MemorySystem;
use crate::exec::operands::{lane_addresses, lanes_where, lanes_with_undefined_address, set_predicate};
use crate::exec::state::mbarrier::{ArrivalClocks, MbarrierLocation, MbarrierObject};
use crate::exec::state::warp::FragmentState;
use crate::finding::{FindingKind, FindingSite};
use crate::order::{AccessKind, AccessStrength, Agent, VectorClock};
use crate::program::op::{Mbarrier, MbarrierOperationKind};

/// Largest count of arrivals, and of bytes, that one mbarrier phase can expect.
const MAX_COUNT: u32 = (1 << 20) - 1;

impl AsyncEngine {
    /// Executes an mbarrier instruction.
    pub fn mbarrier(&mut self, cx: &mut InstructionContext, memory: &mut MemorySystem, m: &Mbarrier) -> NextAction {
        if let MbarrierOperationKind::PendingCount { dst, state } = m.kind {
            let states = cx.regs().get64(state);
            cx.set_register(dst, &states.map(|s| (s >> 32) as u32));
            return NextAction::Next;
        }
        let regs = cx.regs();
        let (at, undefined) = (lane_addresses(regs, &m.addr), lanes_with_undefined_address(regs, &m.addr));
        cx.drop_lanes_with_undefined_address(undefined);
        match m.kind {
            MbarrierOperationKind::Wait { .. } => return self.mbarrier_wait(cx, memory, m, &at),
            MbarrierOperationKind::CpAsyncArrive { noinc } => {
                let mut left = cx.mask;
                while left != 0 {
                    let lane = left.trailing_zeros();
                    let same = lanes_where(left, |l| at[l] == at[lane as usize]);
                    left &= !same;
                    let Some(object) = locate_mbarrier(cx, lane, m.window, at[lane as usize]) else { continue };
                    if check_mbarrier_use(cx, memory, lane, object, "arrived at") {
                        self.cp_async_arrive(cx, memory, object, noinc, same);
                    }
                }
            }
            MbarrierOperationKind::Arrive { .. } => self.mbarrier_arrive(cx, memory, m, &at),
            _ => {
                for lane in lanes_in_mask(cx.mask) {
                    if let Some(object) = locate_mbarrier(cx, lane, m.window, at[lane as usize]) {
                        self.mbarrier_update(cx, memory, m, lane, object);
                    }
                }
            }
        }
        cx.grid.count_memory_or_barrier_change();
        NextAction::Next
    }

    /// Executes `init`, `inval`, `expect_tx` or `complete_tx` in one lane.
    fn mbarrier_update(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        m: &Mbarrier,
        lane: u32,
        at: MbarrierLocation,
    ) {
        match m.kind {
            MbarrierOperationKind::Init { count } => {
                let count = cx.regs().get(count)[lane as usize];
                mbarrier_init(cx, memory, lane, at, count);
            }
            MbarrierOperationKind::Inval => {
                if check_mbarrier_use(cx, memory, lane, at, "invalidated")
                    && let Some(block) = cx.grid.blocks.get_mut(at.slot)
                {
                    block.mbarriers.remove(&at.address);
                }
            }
            MbarrierOperationKind::ExpectTx { bytes } => {
                let bytes = cx.regs().get(bytes)[lane as usize];
                if check_mbarrier_use(cx, memory, lane, at, "given bytes to expect") {
                    let site = cx.finding_site(lane);
                    expect_bytes(cx.grid, at, bytes, site);
                }
            }
            MbarrierOperationKind::CompleteTx { bytes } => {
                let bytes = cx.regs().get(bytes)[lane as usize];
                if check_mbarrier_use(cx, memory, lane, at, "signalled (complete_tx)") {
                    let site = cx.finding_site(lane);
                    self.complete_tx(cx.grid, at, bytes, Some(site));
                }
            }
            _ => {}
        }
    }

    /// Executes `mbarrier.arrive` in the lanes of the mask.
    fn mbarrier_arrive(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        m: &Mbarrier,
        addresses: &[u64; 32],
    ) {
        let MbarrierOperationKind::Arrive { state, count, expect, drop, no_complete } = m.kind else { return };
        let mask = cx.mask;
        let mut released: Option<(MbarrierLocation, VectorClock)> = None;
        for lane in lanes_in_mask(mask) {
            let l = lane as usize;
            let Some(at) = locate_mbarrier(cx, lane, m.window, addresses[l]) else { continue };
            let count = count.map_or(1, |c| cx.regs().get(c)[l]);
            let expect = expect.map(|e| cx.regs().get(e)[l]);
            let set_state = |cx: &mut InstructionContext, token: u64| {
                if let Some(dst) = state {
                    let regs = cx.regs_mut();
                    regs.set64(dst, &[token; 32], 1 << lane);
                    regs.undefined[dst as usize] &= !(1 << lane);
                }
            };
            if !check_mbarrier_use(cx, memory, lane, at, "arrived at") {
                // The simulator has already reported that the mbarrier does not exist. The state register becomes 0,
                // so that a later wait that reads the register is not reported as a use of an undefined register.
                set_state(cx, 0);
                continue;
            }
            // Lanes that arrive in the same phase of an mbarrier release their accesses together, with one vector
            // clock. Lanes whose arrival comes after the phase is complete belong to the next phase.
            let clock = match &released {
                // An arrival with `.cta` scope at another block's mbarrier orders no accesses: it releases no vector
                // clock.
                _ if at.slot != cx.warp.slot && m.scope < AccessStrength::Cluster => None,
                // A relaxed arrival releases only the accesses that an earlier fence of its thread covers.
                _ if !m.ordered => cx.warp.order.release_fenced(1 << lane, scope_of_arrival(cx, at)),
                Some((to, clock)) if *to == at => Some(clock.clone()),
                _ => {
                    let pending = cx.grid.blocks.mbarrier(at).map_or(1, |object| object.pending);
                    let left = mask & (u32::MAX << lane);
                    let arriving = lanes_in_mask(lanes_where(left, |k| addresses[k] == addresses[l]));
                    let in_phase = arriving.take(pending.div_ceil(count.max(1)).max(1) as usize);
                    let clock = cx.warp.order.release(in_phase.fold(0, |lanes, k| lanes | 1 << k));
                    released = Some((at, clock.clone()));
                    Some(clock)
                }
            };
            let site = cx.finding_site(lane);
            if let Some(bytes) = expect {
                expect_bytes(cx.grid, at, bytes, site);
            }
            if let Some(object) = cx.grid.blocks.mbarrier(at) {
                let token = object.phase as u64 | (object.pending as u64) << 32;
                if drop {
                    object.expected = object.expected.saturating_sub(count);
                }
                set_state(cx, token);
            }
            let clocks = match clock {
                clock if at.slot == cx.warp.slot => ArrivalClocks { own_block: clock, other_blocks: None },
                clock => ArrivalClocks { own_block: None, other_blocks: clock },
            };
            let completed = self.count_arrivals(cx.grid, at, count, clocks, site);
            if completed {
                released = None;
            }
            if completed && no_complete {
                cx.report(FindingKind::Mbarrier, lane, || {
                    "an mbarrier.arrive with .noComplete completes the phase; with .noComplete another arrival must still be pending".into()
                });
            }
            cx.fragment.backward_branches = 0;
        }
    }

    /// Executes `test_wait` or `try_wait`.
    fn mbarrier_wait(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        m: &Mbarrier,
        addresses: &[u64; 32],
    ) -> NextAction {
        let MbarrierOperationKind::Wait { dst, operand, parity, blocking } = m.kind else { return NextAction::Next };
        let regs = cx.regs();
        let operands: [u64; 32] = if parity { regs.get(operand).map(u64::from) } else { regs.get64(operand) };
        let undefined = regs.undefined[operand as usize] & cx.mask;
        if undefined != 0 {
            cx.report_undefined(undefined.trailing_zeros(), || {
                "the phase or parity register of an mbarrier wait is undefined".into()
            });
        }
        let mut done = 0u32;
        let mut blocked = None;
        let mut left = cx.mask;
        while left != 0 {
            let lane = left.trailing_zeros();
            let l = lane as usize;
            let same = lanes_where(left, |k| addresses[k] == addresses[l] && operands[k] == operands[l]);
            left &= !same;
            let Some(at) = locate_mbarrier(cx, lane, m.window, addresses[l]) else {
                done |= same;
                continue;
            };
            if at.slot != cx.warp.slot {
                cx.report(FindingKind::Mbarrier, lane, || {
                    "a wait on an mbarrier of another block: a thread can wait only on mbarriers of its own block"
                        .into()
                });
            }
            if !check_mbarrier_use(cx, memory, lane, at, "waited for") {
                done |= same;
                continue;
            }
            if parity && operands[l] > 1 {
                cx.grid.reporter.add_note(
                    cx.pc,
                    "an mbarrier wait on a parity above 1; the PTX ISA allows 0 and 1, ptxas's code uses the lowest bit",
                );
            }
            let Some(object) = cx.grid.blocks.mbarrier(at) else { continue };
            let phase = object.phase;
            // Whether the phase that the wait names has completed. A state token holds the number of the phase in
            // which `mbarrier.arrive` returned it. A parity names the current or the previous phase.
            let over = if parity { phase as u64 & 1 != operands[l] & 1 } else { phase != operands[l] as u32 };
            let mbarrier = (at.slot, at.address);
            let late = parity && !over && std::mem::take(&mut cx.warp.passes_late_wait);
            if over || late {
                done |= same;
                if late {
                    cx.grid.reporter.add_note(
                        cx.pc,
                        "a warp waits for a phase of an mbarrier by its parity after this phase and the next one were over; \
                         if a warp pauses for so long on a GPU, it waits forever",
                    );
                }
                if parity {
                    cx.warp.count_phase(mbarrier, operands[l] as u32 & 1, phase);
                }
                if phase > 0 {
                    let (agent, released) = (object.agent, object.released.clone());
                    acquire_phase(cx, m, same, (agent, phase), released);
                }
            } else {
                blocked = Some((at, phase));
            }
        }
        if let (true, 0, Some((at, phase)), false) = (blocking, done, blocked, cx.fragment.gathered) {
            cx.fragment.state =
                FragmentState::Mbarrier { slot: at.slot, address: at.address, phase, by_parity: parity };
            return NextAction::Stop;
        }
        cx.fragment.gathered = false;
        let mask = cx.mask;
        set_predicate(cx.regs_mut(), dst, done, mask);
        if done == 0 {
            // The warp polls, so other warps run first.
            cx.grid.progress.count_wait();
            cx.fragment.pc += 1;
            cx.warp.yielded = true;
            return NextAction::Stop;
        }
        NextAction::Next
    }

    /// Counts `count` arrivals and joins `clocks`, the vector clocks of the arriving threads, into the phase. Returns
    /// whether this completed the phase.
    pub(super) fn count_arrivals(
        &mut self,
        grid: &mut GridState,
        at: MbarrierLocation,
        count: u32,
        clocks: ArrivalClocks,
        site: FindingSite,
    ) -> bool {
        let Some(object) = grid.blocks.mbarrier(at) else { return false };
        let (pending, expected) = (object.pending, object.expected);
        object.pending = pending.saturating_sub(count);
        object.arrived.join(clocks);
        if count > pending {
            let memory = Some(("shared", at.address as u64));
            grid.reporter.report_with_details(FindingKind::Mbarrier, site, None, memory, || {
                format!("{count} arrivals at an mbarrier whose current phase lacks only {pending} of its {expected} arrivals")
            });
        }
        self.complete_phase(grid, at)
    }

    /// Subtracts `bytes`, which the copy issued at `site` has delivered, from the bytes that the phase still expects.
    /// Returns whether this completed the phase.
    pub(super) fn complete_tx(
        &mut self,
        grid: &mut GridState,
        at: MbarrierLocation,
        bytes: u32,
        site: Option<FindingSite>,
    ) -> bool {
        let Some(object) = grid.blocks.mbarrier(at) else { return false };
        object.pending_bytes -= bytes as i64;
        object.last_copy = site;
        // Until the last arrival a thread may still raise the expected bytes, so excess bytes are reported only after
        // the last arrival.
        let (excess, pending) = (-object.pending_bytes, object.pending);
        if let (Some(site), 0, true) = (site, pending, excess > 0) {
            let memory = Some(("shared", at.address as u64));
            grid.reporter.report_with_details(FindingKind::Mbarrier, site, None, memory, || {
                format!("copies deliver {excess} bytes more to an mbarrier than its phase expects")
            });
        }
        self.complete_phase(grid, at)
    }

    fn complete_phase(&mut self, grid: &mut GridState, at: MbarrierLocation) -> bool {
        let Some(object) = grid.blocks.mbarrier(at) else { return false };
        if !object.try_complete_phase() {
            return false;
        }
        self.completed_mbarriers.push(at);
        grid.count_memory_or_barrier_change();
        true
    }
}

/// Returns the smallest scope that contains the block of the executing thread and the block of the mbarrier.
fn scope_of_arrival(cx: &InstructionContext, at: MbarrierLocation) -> AccessStrength {
    if at.slot == cx.warp.slot { AccessStrength::Cta } else { AccessStrength::Cluster }
}

/// Called after a successful wait: makes `lanes` acquire the vector clocks of the arrivals in the complete phases, and
/// the completion of the operations that delivered the bytes. A relaxed wait acquires them only at a later fence.
/// `agent` is the mbarrier and the number of its complete phases.
fn acquire_phase(
    cx: &mut InstructionContext,
    m: &Mbarrier,
    lanes: u32,
    (agent, phases): (Agent, u32),
    released: ArrivalClocks,
) {
    let mut own_block = released.own_block.unwrap_or_else(|| VectorClock::empty(cx.block().index));
    own_block.record_happens_before(agent, phases);
    let other_blocks = released.other_blocks.filter(|_| m.scope >= AccessStrength::Cluster);
    let order = &mut cx.warp.order;
    if m.ordered {
        order.acquire(lanes, &own_block);
        other_blocks.iter().for_each(|clock| order.acquire(lanes, clock));
        return;
    }
    for lane in lanes_in_mask(lanes) {
        order.record_observed_clock(lane, AccessStrength::Cta, &own_block);
        other_blocks.iter().for_each(|clock| order.record_observed_clock(lane, AccessStrength::Cluster, clock));
    }
}

/// Executes `mbarrier.init` in one lane.
fn mbarrier_init(cx: &mut InstructionContext, memory: &mut MemorySystem, lane: u32, at: MbarrierLocation, count: u32) {
    let address = ("shared", at.address as u64);
    if count == 0 || count > MAX_COUNT {
        cx.report_access(FindingKind::Mbarrier, lane, address, || {
            format!("mbarrier.init with a count of {count}: the count must be from 1 to {MAX_COUNT}")
        });
    }
    if at.slot != cx.warp.slot {
        cx.report(FindingKind::Mbarrier, lane, || {
            "mbarrier.init of an mbarrier in another block's shared memory: a thread can initialise only \
             mbarriers of its own block"
                .into()
        });
        return;
    }
    if cx.block().mbarriers.contains_key(&at.address) {
        cx.report_access(FindingKind::Mbarrier, lane, address, || {
            "an mbarrier is initialised again without mbarrier.inval".into()
        });
    }
    let init = (cx.warp.order.agent(lane), cx.warp.order.epoch());
    let block = cx.block_mut();
    let agent = Agent::virtual_agent(block.index, block.virtual_agents);
    block.virtual_agents = (block.virtual_agents + 1).min(1023);
    let object = MbarrierObject {
        expected: count,
        pending: count,
        pending_bytes: 0,
        phase: 0,
        agent,
        arrived: ArrivalClocks::default(),
        released: ArrivalClocks::default(),
        init,
        last_copy: None,
    };
    block.mbarriers.insert(at.address, object);
    memory.check_mbarrier_access(cx, lane, at, AccessKind::Write);
}

/// Adds `bytes` to the number of bytes that the current phase expects.
fn expect_bytes(grid: &mut GridState, at: MbarrierLocation, bytes: u32, site: FindingSite) {
    let Some(object) = grid.blocks.mbarrier(at) else { return };
    object.pending_bytes += bytes as i64;
    let expected = object.pending_bytes;
    if expected > MAX_COUNT as i64 || bytes > MAX_COUNT {
        grid.reporter.report_with_details(
            FindingKind::Mbarrier,
            site,
            None,
            Some(("shared", at.address as u64)),
            || format!("an mbarrier expects {expected} bytes in a phase; at most {MAX_COUNT} are possible"),
        );
    }
}

/// Reports the mbarriers of an exiting block that received more bytes than their phases expected.
pub(super) fn report_excess_bytes(grid: &mut GridState, block_slot: u32) {
    let Some(block) = grid.blocks.get(block_slot) else { return };
    for (&address, object) in block.mbarriers.iter().filter(|(_, object)| object.pending_bytes < 0) {
        let Some(site) = object.last_copy else { continue };
        let excess = -object.pending_bytes;
        grid.reporter.report_with_details(FindingKind::Mbarrier, site, None, Some(("shared", address as u64)), || {
            format!(
                "copies deliver {excess} bytes more to an mbarrier than its phases expect: an earlier phase completed too early"
            )
        });
    }
}
