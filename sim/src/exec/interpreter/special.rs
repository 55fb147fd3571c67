//! Special registers, and `setmaxnreg`, which moves registers between the warps of a block.

use crate::exec::context::{InstructionContext, NextAction};
use crate::exec::grid_context::GridContext;
use crate::exec::operands::set_predicate;
use crate::exec::state::block::Block;
use crate::exec::state::warp::{ExecutedSetmaxnreg, FragmentState, Warp};
use crate::finding::FindingKind;
use crate::layout::FIRST_SHARED_ADDRESS;
use crate::program::ConstantSpecialRegister;
use crate::program::op::VaryingSpecialRegister;

/// Executes a read of a special register that changes while the warp runs.
pub fn read_special_register(cx: &mut InstructionContext, dst: u32, which: VaryingSpecialRegister) -> NextAction {
    // The simulator does not model time: it assumes one cycle and 2 ns per instruction, until `clock_advance.rs`
    // advances the clocks.
    let lead = cx.grid.progress.clock_lead;
    let clock = cx.warp.clock.wrapping_add(lead);
    let nanoseconds = (cx.grid.progress.elapsed() * 2).wrapping_add(lead);
    let is_clock = !matches!(which, VaryingSpecialRegister::Activemask | VaryingSpecialRegister::ExplicitCluster);
    cx.grid.progress.clock_reads += u64::from(is_clock);
    match which {
        VaryingSpecialRegister::Clock => cx.set_register(dst, &[clock as u32; 32]),
        VaryingSpecialRegister::ClockHi => cx.set_register(dst, &[(clock >> 32) as u32; 32]),
        VaryingSpecialRegister::Clock64 => cx.set_register64(dst, &[clock; 32]),
        VaryingSpecialRegister::Globaltimer => cx.set_register64(dst, &[nanoseconds; 32]),
        VaryingSpecialRegister::GlobaltimerLo => cx.set_register(dst, &[nanoseconds as u32; 32]),
        VaryingSpecialRegister::GlobaltimerHi => cx.set_register(dst, &[(nanoseconds >> 32) as u32; 32]),
        VaryingSpecialRegister::Activemask => cx.set_register(dst, &[cx.mask; 32]),
        VaryingSpecialRegister::ExplicitCluster => {
            let value = if cx.grid.context.cluster == [1, 1, 1] { 0 } else { u32::MAX };
            let mask = cx.mask;
            set_predicate(cx.regs_mut(), dst, value, mask);
        }
    }
    NextAction::Next
}

/// Returns the value of a special register that stays the same while the warp runs.
pub fn fixed_special_register(
    context: &GridContext,
    block: &Block,
    warp: u32,
    which: ConstantSpecialRegister,
    lane: u32,
) -> u32 {
    let launch = context.launch;
    let component = |v: [u32; 3], c: u8| v.get(c as usize).copied().unwrap_or(0);
    let per_cluster = |v: [u32; 3]| -> [u32; 3] { std::array::from_fn(|i| v[i] / context.cluster[i]) };
    match which {
        ConstantSpecialRegister::Tid(c) => {
            component(crate::exec::grid_context::coordinates_of_index(warp * 32 + lane, launch.block), c)
        }
        ConstantSpecialRegister::Ntid(c) => component(launch.block, c),
        ConstantSpecialRegister::Ctaid(c) => component(block.coordinates, c),
        ConstantSpecialRegister::Nctaid(c) => component(launch.grid, c),
        ConstantSpecialRegister::ClusterId(c) => component(per_cluster(block.coordinates), c),
        ConstantSpecialRegister::NclusterId(c) => component(per_cluster(launch.grid), c),
        ConstantSpecialRegister::ClusterCtaid(c) => {
            component([0, 1, 2].map(|i| block.coordinates[i] % context.cluster[i]), c)
        }
        ConstantSpecialRegister::ClusterNctaid(c) => component(context.cluster, c),
        ConstantSpecialRegister::ClusterCtarank => block.rank,
        ConstantSpecialRegister::ClusterNctarank => context.cluster_blocks(),
        ConstantSpecialRegister::LaneId => lane,
        ConstantSpecialRegister::WarpId => warp,
        ConstantSpecialRegister::NwarpId => launch.block.iter().product::<u32>().div_ceil(32),
        ConstantSpecialRegister::SmId => block.index % context.options.gpu.multiprocessors,
        ConstantSpecialRegister::NsmId => context.options.gpu.multiprocessors,
        ConstantSpecialRegister::GridId => 1,
        ConstantSpecialRegister::LanemaskEq => 1 << lane,
        ConstantSpecialRegister::LanemaskLt => (1 << lane) - 1,
        ConstantSpecialRegister::LanemaskLe => ((1u32 << lane) - 1) | 1 << lane,
        ConstantSpecialRegister::LanemaskGt => !(((1u32 << lane) - 1) | 1 << lane),
        ConstantSpecialRegister::LanemaskGe => !((1u32 << lane) - 1),
        ConstantSpecialRegister::DynamicSmem => launch.dynamic_shared,
        ConstantSpecialRegister::TotalSmem => context.kernel.static_shared + launch.dynamic_shared,
        ConstantSpecialRegister::ReservedSmem(end) => end as u32 * FIRST_SHARED_ADDRESS,
        ConstantSpecialRegister::Zero => 0,
    }
}

/// Executes `setmaxnreg`: returns registers to the block's pool, or takes registers from the pool and waits until it
/// has enough.
pub fn set_max_registers(cx: &mut InstructionContext, count: u32, increase: bool) -> NextAction {
    if !cx.gather_lanes(u32::MAX) {
        return NextAction::Stop;
    }
    let lane = cx.first_lane();
    if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
        cx.report(FindingKind::Setmaxnreg, lane, || {
            format!("setmaxnreg {count}: the register count must be a multiple of 8 from 24 to 256")
        });
        return NextAction::Next;
    }
    let kernel = cx.grid.context.kernel;
    let has_bounds =
        kernel.max_threads.is_some() || kernel.max_registers.is_some() || kernel.required_threads.is_some();
    // ptxas drops the instruction if neither the kernel nor its own options limit the registers at the entry.
    if !has_bounds && cx.warp.max_registers.is_none() {
        cx.grid.reporter.add_note(cx.pc, "ptxas ignores setmaxnreg in a kernel without launch bounds");
        return NextAction::Next;
    }
    // Triton ends the work of a warpgroup with two equal `setmaxnreg` in a row. The second one changes nothing.
    if cx.warp.max_registers == Some(count) {
        return NextAction::Next;
    }
    report_unsynchronised_setmaxnreg(cx);
    // A warp whose register count is unknown counts as holding no registers. A wait is then reported only if it could
    // not end with any register count.
    let known = cx.warp.max_registers;
    let now = known.unwrap_or(0);
    if known.is_some() && (increase && count < now || !increase && count > now) {
        cx.report(FindingKind::Setmaxnreg, lane, || {
            let (direction, bound) = if increase { ("inc", "at least") } else { ("dec", "at most") };
            format!(
                "setmaxnreg.{direction} to {count}: the count must be {bound} {now}, the warp's registers per thread"
            )
        });
        return NextAction::Next;
    }
    if increase {
        let need = (count - now) * 32;
        if cx.block().register_pool < need {
            cx.fragment.gathered = true;
            cx.fragment.state = FragmentState::Registers;
            return NextAction::Stop;
        }
        cx.fragment.gathered = false;
        cx.block_mut().register_pool -= need;
    } else if known.is_some() {
        let block = cx.block_mut();
        block.register_pool += (now - count) * 32;
        block.pool_grew = true;
    } else {
        let block = cx.block_mut();
        block.register_pool = block.register_pool.saturating_sub(count * 32);
    }
    cx.warp.max_registers = Some(count);
    cx.warp.setmaxnreg.push(ExecutedSetmaxnreg { pc: cx.pc, epoch: cx.warp.order.epoch() });
    cx.grid.count_memory_or_barrier_change();
    NextAction::Next
}

/// Reports a second or later `setmaxnreg` before which the warps of the warpgroup have not synchronised: the previous
/// `setmaxnreg` of every other warp must happen before this one.
fn report_unsynchronised_setmaxnreg(cx: &mut InstructionContext) {
    let Some(previous) = cx.warp.setmaxnreg.len().checked_sub(1) else { return };
    if cx.grid.context.options.count_only {
        return;
    }
    let first = cx.warp.index as usize / 4 * 4;
    let others = cx.block().warps.iter().skip(first).take(4).flatten().filter(|warp| warp.live != 0);
    let is_ordered = |other: &Warp| {
        other.setmaxnreg.get(previous).is_some_and(|executed| {
            let clocks = || cx.warp.order.lane_groups_with_clocks();
            (0..32).any(|lane| clocks().any(|(_, clock)| clock.includes(other.order.agent(lane), executed.epoch)))
        })
    };
    if !others.into_iter().all(|other| is_ordered(other)) {
        let line = cx.grid.context.source_line(cx.warp.setmaxnreg[previous].pc);
        cx.report(FindingKind::Setmaxnreg, cx.first_lane(), || {
            format!("setmaxnreg follows the setmaxnreg at line {line}, but the four warps of the warpgroup have not synchronised in between")
        });
    }
}
