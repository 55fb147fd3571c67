//! Register hazards of wgmma: between the issue of a product and the wait for it, no ordinary instruction may access
//! its accumulators or write its registers of operand A.

use crate::exec::context::InstructionContext;
use crate::exec::grid::GridState;
use crate::exec::grid_context::GridContext;
use crate::exec::state::warp::Warp;
use crate::exec::state::wgmma::{IssuedProduct, WarpWgmma};
use crate::finding::FindingKind;
use crate::program::op::{Op, Wgmma};
use crate::program::uses::WgmmaRegisterUse;

/// A register hazard: an access to a register that an incomplete product still uses.
struct Hazard {
    /// Index in the kernel of the `wgmma` that issued the product.
    pc: u32,
    /// The register's role in the product.
    role: &'static str,
    /// "read" or "written".
    verb: &'static str,
}

pub(super) fn product_instruction<'a>(context: &GridContext<'a>, issued: &IssuedProduct) -> &'a Wgmma {
    match &context.kernel.functions[issued.function as usize].instrs[issued.index as usize].op {
        Op::Wgmma(w) => w,
        _ => unreachable!("only a wgmma issues a product"),
    }
}

/// Reports hazards when a wgmma is issued: its registers were accessed since the last `wgmma.fence`, or an earlier
/// product still uses them.
pub(super) fn check_registers_at_issue(cx: &mut InstructionContext, w: &Wgmma) {
    let (lane, context) = (cx.first_lane(), cx.grid.context);
    let site = cx.finding_site(lane);
    let state = &cx.warp.wgmma;
    let reporter = &mut cx.grid.reporter;
    if !state.fenced {
        reporter.report(FindingKind::Wgmma, site, || "wgmma without any wgmma.fence before it".into());
    } else if state.any_accessed && w.a.iter().chain(&w.d).any(|&s| state.was_accessed_since_fence(s)) {
        reporter.report(FindingKind::Wgmma, site, || {
            "wgmma uses registers that were accessed after the last wgmma.fence".into()
        });
    }
    if !state.late.is_empty() && w.a.iter().chain(&w.d).any(|s| state.late.contains(s)) {
        reporter.add_note(site.pc, "registers of this wgmma are accessed between the last wgmma.fence and the wgmma");
    }
    let issued = state.issued.iter().enumerate();
    for (n, issued) in issued.filter(|(_, issued)| issued.frame == cx.fragment.frame) {
        let other = product_instruction(&context, issued);
        let unfenced = state.waited + n as u64 >= state.products_before_fence;
        let shape = |w: &Wgmma| (w.op.n, w.op.accumulator);
        let other_shape = || shape(w) != shape(other) && w.d.iter().any(|s| other.d.contains(s));
        if w.a.iter().any(|s| other.d.contains(s)) || unfenced && other_shape() {
            let line = context.source_line(issued.pc);
            reporter.report_with_details(FindingKind::Wgmma, site, Some(issued.pc.into()), None, || {
                format!(
                    "wgmma uses accumulators of the wgmma at line {line}, which has another shape and has not been waited for"
                )
            });
        }
    }
}

/// Records that an ordinary instruction accesses registers that some wgmma or `tcgen05.ld` of the kernel uses, and
/// reports hazards of wgmma.
#[cold]
#[inline(never)]
pub fn access_wgmma_registers(
    grid: &mut GridState,
    warp: &mut Warp,
    frame: u32,
    watch: &WgmmaRegisterUse,
    mask: u32,
    pc: u32,
) {
    let context = grid.context;
    if warp.tensor.has_loaded {
        let (epoch, accesses) = (warp.order.epoch(), &mut grid.tensor_accesses);
        let loads = warp.tensor.loads_into(frame, &watch.reads);
        warp.tensor.complete(accesses, &loads, epoch);
        return;
    }
    let state = &mut warp.wgmma;
    let mut hazard = None;
    if watch.copies && !watch.writes.is_empty() {
        hazard = move_register(&context, state, frame, watch.reads.first().copied(), watch.writes[0]);
    } else {
        for &s in &watch.reads {
            state.mark_access(s, true);
            let in_use = |p: &&IssuedProduct| {
                product_instruction(&context, p).d.contains(&s) || p.copies.iter().any(|c| c.0 == s)
            };
            let product = state.issued.iter().filter(|p| p.frame == frame).find(in_use);
            hazard = hazard.or(product.map(|p| Hazard { pc: p.pc, role: "an accumulator", verb: "read" }));
        }
        for &s in &watch.writes {
            state.mark_access(s, true);
            hazard = hazard.or(overwrite_register(&context, state, frame, s));
        }
    }
    if let Some(Hazard { pc: other, role: register, verb }) = hazard {
        let site = grid.finding_site(warp.slot, warp.index, mask.trailing_zeros(), pc);
        let line = context.source_line(other);
        grid.reporter.report_with_details(FindingKind::Wgmma, site, Some(other.into()), None, || {
            format!(
                "{register} of the wgmma at line {line} is {verb} before a wgmma.wait_group has waited for that wgmma"
            )
        });
    }
}

/// Records a write to a register. Returns a hazard if an incomplete product uses the register.
fn overwrite_register(context: &GridContext, state: &mut WarpWgmma, frame: u32, register: u32) -> Option<Hazard> {
    let mut hazard = None;
    for p in state.issued.iter_mut().filter(|p| p.frame == frame) {
        let w = product_instruction(context, p);
        if w.d.contains(&register) {
            hazard = hazard.or(Some(Hazard { pc: p.pc, role: "an accumulator", verb: "written" }));
        } else if w.a.contains(&register) {
            hazard = hazard.or(Some(Hazard { pc: p.pc, role: "a register of operand A", verb: "written" }));
        }
        p.copies.retain(|c| c.0 != register);
    }
    hazard
}

/// Records a move between registers. A move of an incomplete product's accumulator is no hazard, because the compiler
/// renames accumulators by moves: the copy gets the result, too, when the product is computed.
fn move_register(
    context: &GridContext,
    state: &mut WarpWgmma,
    frame: u32,
    from: Option<u32>,
    to: u32,
) -> Option<Hazard> {
    if let Some(from) = from {
        state.mark_access(to, state.was_accessed_since_fence(from));
    }
    let accumulator_of = |p: &IssuedProduct| {
        let from = from?;
        let copied = p.copies.iter().find(|c| c.0 == from).map(|c| c.1);
        copied.or_else(|| product_instruction(context, p).d.contains(&from).then_some(from))
    };
    let newest = (0..state.issued.len())
        .rev()
        .find(|&i| state.issued[i].frame == frame && accumulator_of(&state.issued[i]).is_some());
    let Some(newest) = newest else { return overwrite_register(context, state, frame, to) };
    let accumulator = accumulator_of(&state.issued[newest])?;
    let mut hazard = None;
    for p in state.issued.iter_mut().filter(|p| p.frame == frame) {
        p.copies.retain(|c| c.0 != to);
        if product_instruction(context, p).a.contains(&to) {
            hazard = Some(Hazard { pc: p.pc, role: "a register of operand A", verb: "written" });
        }
    }
    if to != accumulator {
        state.issued[newest].copies.push((to, accumulator));
    }
    hazard
}
