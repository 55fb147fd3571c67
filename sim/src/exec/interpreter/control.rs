//! Control flow of a warp fragment: indexed branches, calls, returns and exits.

use super::frames::{copy_argument, enter_function};
use super::host;
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::limits::{MAX_LOCAL_BYTES, MAX_RECURSION_BYTES, STACK_BYTES_PER_CALL};
use crate::exec::memory_system::MemorySystem;
use crate::exec::operands::lanes_where;
use crate::exec::state::warp::{NO_RECONVERGENCE_POINT, ReconvergencePoint};
use crate::finding::FindingKind;
use crate::layout;
use crate::program::FunctionCode;
use crate::program::op::{Call, CallArgument, CallTarget, Op};

/// Executes `brx.idx`: a branch to one of the instructions `targets`, selected by register `index`. The lanes
/// reconverge at instruction `reconverge`.
pub fn branch_indexed(cx: &mut InstructionContext, index: u32, targets: &[u32], reconverge: Option<u32>) -> NextAction {
    let values = cx.regs().get(index);
    let undefined = cx.regs().undefined[index as usize] & cx.mask;
    if undefined != 0 {
        cx.report_undefined(undefined.trailing_zeros(), || "brx.idx depends on an undefined register".into());
    }
    let here = cx.fragment.pc;
    let mut left = cx.mask;
    let mut groups: Vec<(u32, u32)> = Vec::new();
    while left != 0 {
        let value = values[left.trailing_zeros() as usize];
        let same = lanes_where(left, |l| values[l] == value);
        left &= !same;
        match targets.get(value as usize) {
            Some(&target) => groups.push((target, same)),
            None => {
                let n = targets.len();
                cx.report(FindingKind::OutOfBounds, same.trailing_zeros(), || {
                    format!("brx.idx: index {value} is out of range, there are {n} branch targets")
                });
                groups.push((here + 1, same));
            }
        }
    }
    if cx.mask != cx.fragment.mask {
        groups.push((here + 1, cx.fragment.mask & !cx.mask));
    }
    let Some((target, last)) = groups.pop() else { return NextAction::Next };
    for (target, same) in groups {
        let rest = cx.fragment.mask & !same;
        let mut part = cx.warp.split_off_lanes(cx.fragment, same, target, here, reconverge);
        // The lanes with this target become a separate warp fragment; the loop goes on to split the remaining lanes.
        std::mem::swap(cx.fragment, &mut part);
        cx.warp.fragments.push(part);
        debug_assert_eq!(cx.fragment.mask, rest);
    }
    debug_assert_eq!(cx.fragment.mask, last);
    cx.fragment.pc = target;
    NextAction::Jumped
}

pub fn call(cx: &mut InstructionContext, memory: &mut MemorySystem, call: &Call) -> NextAction {
    let function = match call.target {
        CallTarget::Function(f) => f,
        CallTarget::Indirect(slot) => {
            match indirect_target(cx, slot) {
                Ok(f) if fits(call, &cx.grid.context.kernel.functions[f as usize]) => f,
                Ok(f) => {
                    let name = &cx.grid.context.kernel.functions[f as usize].name;
                    cx.report(FindingKind::OutOfBounds, cx.first_lane(), || {
                    format!("a call through a pointer reaches function {name}, whose parameters or results have other sizes")
                });
                    return exit(cx);
                }
                Err(flow) => return flow,
            }
        }
        CallTarget::Vprintf => return host::vprintf(cx, memory, call),
        CallTarget::AssertFail => {
            host::report_failed_assertion(cx, memory, call);
            return exit(cx);
        }
        CallTarget::Malloc => return host::malloc(cx, memory, call),
        CallTarget::Free => return host::free(cx, memory, call),
        CallTarget::Unknown(name) => {
            let name = &cx.grid.context.kernel.unknown[name as usize];
            cx.report(FindingKind::Unsupported, cx.first_lane(), || {
                format!("call of function {name}, which is declared but not defined")
            });
            return NextAction::Next;
        }
    };
    if let Some(problem) = stack_overflow(cx, function) {
        cx.report(FindingKind::OutOfBounds, cx.first_lane(), || problem);
        return exit(cx);
    }
    let (parent, next, mask, all) = (cx.fragment.frame, cx.fragment.pc + 1, cx.mask, cx.fragment.mask);
    // All lanes that execute the call reconverge at the instruction after it.
    let join = ReconvergencePoint { pc: next, frame: parent, expected: all, arrived: 0, parent: cx.fragment.join };
    let mut rest = *cx.fragment;
    let join = cx.warp.push_reconvergence_point(join);
    let block = &cx.grid.blocks[cx.warp.slot];
    let frame = enter_function(&cx.grid.context, block, cx.warp, function, Some((parent, next)), mask, None);
    let callee = &cx.grid.context.kernel.functions[function as usize];
    for (from, to) in call.args.iter().zip(&callee.formals) {
        copy_argument(cx.warp, (parent, *from), (frame, *to), mask);
    }
    if mask != all {
        (rest.mask, rest.pc, rest.join, rest.join_pc) = (all & !mask, next, join, next);
        cx.warp.fragments.push(rest);
    }
    cx.fragment.mask = mask;
    cx.fragment.frame = frame;
    cx.fragment.pc = 0;
    cx.fragment.join = join;
    cx.fragment.join_pc = NO_RECONVERGENCE_POINT;
    NextAction::Jumped
}

/// Returns what is wrong if a call of `function` needs more stack than a thread has. Nested calls that need more than
/// [`MAX_RECURSION_BYTES`] are an error only if they are recursive: the driver gives other kernels the stack that they
/// need.
fn stack_overflow(cx: &mut InstructionContext, function: u32) -> Option<String> {
    let code = &cx.grid.context.kernel.functions[function as usize];
    let caller = cx.fragment.frame;
    let depth = cx.warp.frame(caller).depth + 1;
    let bytes =
        cx.warp.local_top.saturating_add(code.local_bytes).saturating_add(depth.saturating_mul(STACK_BYTES_PER_CALL));
    if bytes <= MAX_RECURSION_BYTES {
        return None;
    }
    let mut at = Some(caller);
    let mut recursive = false;
    while let Some(index) = at {
        let frame = cx.warp.frame(index);
        recursive |= frame.function == function;
        at = frame.parent.map(|(parent, _)| parent);
    }
    let name = &code.name;
    let limit = if recursive { MAX_RECURSION_BYTES } else { MAX_LOCAL_BYTES };
    (bytes > limit).then(|| {
        format!(
            "stack overflow: {depth} nested calls, the last of {name}, take about {bytes} bytes of stack per thread \
             (CUDA gives a thread 1024 bytes unless the host raises cudaLimitStackSize); does the recursion end?"
        )
    })
}

/// Returns the function that the lowest lane calls in an indirect call. Lanes that call another function are split
/// off and execute the call later. `Err` holds the interpreter's next action if the call is not executed now.
fn indirect_target(cx: &mut InstructionContext, slot: u32) -> Result<u32, NextAction> {
    let regs = cx.regs();
    let (address, undefined, mask) = (regs.get64(slot), regs.undefined[slot as usize], cx.mask);
    cx.drop_lanes_with_undefined_address(undefined);
    if cx.mask != mask {
        return Err(NextAction::Next);
    }
    let first = address[cx.first_lane() as usize];
    let same = lanes_where(mask, |l| address[l] == first);
    if same != cx.fragment.mask {
        let here = cx.fragment.pc;
        let other = cx.warp.split_off_lanes(cx.fragment, same, here, here, Some(here + 1));
        cx.warp.fragments.push(other);
        return Err(NextAction::Jumped);
    }
    function_at(cx, first).ok_or_else(|| {
        cx.report(FindingKind::OutOfBounds, cx.first_lane(), || {
            format!("call of address {first:#x}, at which there is no function")
        });
        exit(cx)
    })
}

/// Returns whether the arguments and results of a call have the sizes that a function declares.
fn fits(call: &Call, callee: &FunctionCode) -> bool {
    let bytes = |arg: &CallArgument| match *arg {
        CallArgument::Bytes { size, .. } => size,
        CallArgument::Row { rows, .. } => 4 * u32::from(rows),
        CallArgument::Predicate(_) => 1,
    };
    let equal = |here: &[CallArgument], there: &[CallArgument]| here.iter().map(bytes).eq(there.iter().map(bytes));
    equal(&call.args, &callee.formals) && equal(&call.returns, &callee.returns)
}

/// Returns the index of the function at `address` in the kernel's list of functions.
fn function_at(cx: &InstructionContext, address: u64) -> Option<u32> {
    let context = &cx.grid.context;
    let offset = address.checked_sub(layout::FUNCTION_BASE + 16).filter(|offset| offset.is_multiple_of(16))?;
    let index = offset / 16;
    let name = &context.program.module.functions.get(index as usize)?.name;
    context.kernel.functions.iter().position(|f| f.name == *name).map(|i| i as u32)
}

/// Executes `ret`: returns from a function, or exits from the kernel.
pub fn ret(cx: &mut InstructionContext) -> NextAction {
    let (mask, index) = (cx.mask, cx.fragment.frame);
    let frame = cx.warp.frame(index);
    let Some((parent, return_pc)) = frame.parent else { return exit(cx) };
    let function = frame.function;
    frame.lanes &= !mask;
    let empty = frame.lanes == 0;
    let functions = &cx.grid.context.kernel.functions;
    // The `call` instruction stands directly before the return address.
    let caller = &functions[cx.warp.frame(parent).function as usize];
    if let Op::Call(call) = &caller.instrs[return_pc as usize - 1].op {
        for (to, from) in call.returns.iter().zip(&functions[function as usize].returns) {
            copy_argument(cx.warp, (index, *from), (parent, *to), mask);
        }
    }
    if empty {
        let base = cx.warp.frame(index).local_base;
        cx.warp.frames[index as usize] = None;
        if cx.warp.frames.iter().flatten().all(|f| f.local_base <= base) {
            cx.warp.local_top = base;
        }
    }
    let fragment = &mut *cx.fragment;
    if mask != fragment.mask {
        let mut other = *fragment;
        other.mask = fragment.mask & !mask;
        other.pc += 1;
        cx.warp.fragments.push(other);
    }
    fragment.mask = mask;
    fragment.frame = parent;
    fragment.pc = return_pc;
    // The warp fragment leaves the reconvergence points of the function from which it returns.
    while fragment.join != NO_RECONVERGENCE_POINT && cx.warp.joins[fragment.join as usize].frame == index {
        let join = fragment.join;
        let to = cx.warp.joins[join as usize].parent;
        cx.warp.leave_reconvergence_points(mask, join, to);
        fragment.join = to;
    }
    fragment.join_pc = cx.warp.reconvergence_pc_in_frame(fragment.join, parent);
    cx.warp.complete_reconvergence();
    NextAction::Jumped
}

/// Executes `exit`: the lanes leave the kernel.
pub fn exit(cx: &mut InstructionContext) -> NextAction {
    let mask = cx.mask;
    cx.warp.live &= !mask;
    cx.grid.progress.exits += u64::from(mask.count_ones());
    let first = cx.warp.index * 32;
    let block = cx.block_mut();
    block.live -= mask.count_ones();
    for lane in lanes_in_mask(mask) {
        block.barriers_at_exit[(first + lane) as usize] = block.block_barriers;
    }
    cx.warp.leave_reconvergence_points(mask, cx.fragment.join, NO_RECONVERGENCE_POINT);
    cx.grid.count_memory_or_barrier_change();
    cx.fragment.mask &= !mask;
    cx.fragment.pc += 1;
    cx.warp.complete_reconvergence();
    cx.warp.complete_gatherings();
    if cx.fragment.mask == 0 { NextAction::Stop } else { NextAction::Jumped }
}
