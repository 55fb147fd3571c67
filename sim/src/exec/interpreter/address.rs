//! Instructions on addresses: `cvta`, `isspacep`, `mapa`, `getctarank`, `alloca`.

use super::control::exit;
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::limits::MAX_LOCAL_BYTES;
use crate::exec::memory_system::MemorySystem;
use crate::exec::operands::{lanes_where, mark_undefined_lanes, set_predicate};
use crate::finding::FindingKind;
use crate::layout;
use crate::program::op::AddressWindow;

/// Executes `cvta`: converts an address of a state space to a generic address, or back if `from_generic` is true.
pub fn cvta(
    cx: &mut InstructionContext,
    (dst, src): (u32, u32),
    wide: bool,
    window: AddressWindow,
    from_generic: bool,
) -> NextAction {
    let base = match window {
        AddressWindow::Shared | AddressWindow::SharedCluster => layout::SHARED_BASE,
        AddressWindow::Local => layout::LOCAL_BASE,
        AddressWindow::KernelParam | AddressWindow::FrameParam => layout::PARAM_BASE,
        _ => 0,
    };
    let mask = cx.mask;
    let regs = cx.regs_mut();
    let undefined = regs.undefined[src as usize] & mask;
    if wide {
        let a = regs.get64(src);
        let out = if from_generic { a.map(|a| a.wrapping_sub(base)) } else { a.map(|a| a.wrapping_add(base)) };
        regs.set64(dst, &out, mask);
    } else {
        let a = regs.get(src);
        regs.set(dst, &a, mask);
    }
    mark_undefined_lanes(regs, dst, undefined, mask);
    NextAction::Next
}

/// Executes `isspacep`: sets a predicate to whether a generic address lies in a state space.
pub fn isspacep(
    cx: &mut InstructionContext,
    memory: &MemorySystem,
    (dst, src): (u32, u32),
    window: AddressWindow,
) -> NextAction {
    let (rank, mask) = (cx.block().rank, cx.mask);
    let addresses = cx.regs().get64(src);
    let inside = |l: usize| {
        let found = layout::state_space_of(addresses[l]).unwrap_or(AddressWindow::Global);
        let own = || layout::split_shared_address(addresses[l] as u32, rank).rank.is_none();
        match window {
            AddressWindow::SharedCluster => found == AddressWindow::Shared,
            AddressWindow::Shared => found == AddressWindow::Shared && own(),
            AddressWindow::FrameParam => found == AddressWindow::KernelParam,
            AddressWindow::Const => memory.is_constant_address(addresses[l]),
            // The address window of kernel parameters lies within the window of global memory.
            AddressWindow::Global => matches!(found, AddressWindow::Global | AddressWindow::KernelParam),
            window => found == window,
        }
    };
    set_predicate(cx.regs_mut(), dst, lanes_where(u32::MAX, inside), mask);
    NextAction::Next
}

/// Executes `mapa`: computes the address of the same shared variable in the cluster's block of another rank.
pub fn mapa(cx: &mut InstructionContext, (dst, src): (u32, u32), rank: u32, wide: bool, generic: bool) -> NextAction {
    let regs = cx.regs();
    let ranks = regs.get(rank);
    if wide {
        let a = regs.get64(src);
        let base = if generic { layout::SHARED_BASE } else { 0 };
        let mapped = |l: usize| base + layout::shared_address_in_cluster(a[l] as u32, ranks[l]) as u64;
        cx.set_register64(dst, &std::array::from_fn(mapped));
    } else {
        let a = regs.get(src);
        cx.set_register(dst, &std::array::from_fn(|l| layout::shared_address_in_cluster(a[l], ranks[l])));
    }
    NextAction::Next
}

/// Executes `getctarank`: returns the cluster rank of the block whose shared memory holds an address.
pub fn getctarank(cx: &mut InstructionContext, dst: u32, src: u32, wide: bool) -> NextAction {
    let (rank, regs) = (cx.block().rank, cx.regs());
    let addresses: [u32; 32] = if wide { regs.get64(src).map(|a| a as u32) } else { regs.get(src) };
    cx.set_register(dst, &addresses.map(|a| layout::split_shared_address(a, rank).rank.unwrap_or(rank)));
    NextAction::Next
}

/// Executes `alloca`: allocates bytes on the stack of local memory. Each lane gets as many bytes as the lane with the
/// largest size.
pub fn alloca(cx: &mut InstructionContext, dst: u32, size: u32) -> NextAction {
    let (sizes, undefined) = (cx.regs().get64(size), cx.regs().undefined[size as usize] & cx.mask);
    if undefined != 0 {
        cx.report_undefined(undefined.trailing_zeros(), || "the size of alloca is an undefined register".into());
    }
    let bytes = lanes_in_mask(cx.mask & !undefined).map(|lane| sizes[lane as usize]).max().unwrap_or(0);
    if bytes.saturating_add(u64::from(cx.warp.local_top)) > u64::from(MAX_LOCAL_BYTES) {
        cx.report(FindingKind::OutOfBounds, cx.first_lane(), || {
            format!(
                "stack overflow: alloca of {bytes} bytes; a thread has at most {MAX_LOCAL_BYTES} bytes of local memory"
            )
        });
        return exit(cx);
    }
    let base = cx.warp.grow_local_memory(bytes as u32);
    cx.set_register64(dst, &[base as u64; 32]);
    NextAction::Next
}

/// Executes `stacksave`: returns the number of bytes of local memory that are in use, which is the same in all lanes.
pub fn stacksave(cx: &mut InstructionContext, dst: u32, wide: bool) -> NextAction {
    let top = cx.warp.local_top;
    if wide {
        cx.set_register64(dst, &[u64::from(top); 32]);
    } else {
        cx.set_register(dst, &[top; 32]);
    }
    NextAction::Next
}

/// Executes `stackrestore`: frees what `alloca` has allocated since the `stacksave`. If only some lanes of the warp
/// execute the instruction, the bytes may hold allocations of the other lanes; these bytes are then freed only when the
/// function returns.
pub fn stackrestore(cx: &mut InstructionContext, src: u32, wide: bool) -> NextAction {
    let regs = cx.regs();
    let saved: [u64; 32] = if wide { regs.get64(src) } else { regs.get(src).map(u64::from) };
    let undefined = regs.undefined[src as usize] & cx.mask;
    if undefined != 0 {
        cx.report_undefined(undefined.trailing_zeros(), || "stackrestore from an undefined register".into());
        return NextAction::Next;
    }
    let (top, frame) = (cx.warp.local_top, cx.warp.frame(cx.fragment.frame));
    let variables = cx.grid.context.kernel.functions[frame.function as usize].local_bytes;
    let allowed = u64::from(frame.local_base + variables)..=u64::from(top);
    if let Some(lane) = lanes_in_mask(cx.mask).find(|&lane| !allowed.contains(&saved[lane as usize])) {
        cx.report(FindingKind::OutOfBounds, lane, || {
            format!("stackrestore to {:#x}, which no stacksave of this function returned", saved[lane as usize])
        });
    } else if cx.mask == cx.warp.live {
        let largest = lanes_in_mask(cx.mask).map(|lane| saved[lane as usize] as u32).max();
        cx.warp.local_top = largest.unwrap_or(top);
    }
    NextAction::Next
}
