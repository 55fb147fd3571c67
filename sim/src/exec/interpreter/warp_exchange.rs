//! Instructions in which the lanes of a warp exchange registers: `shfl`, `vote`, `match`, `redux`, `elect`; and
//! `bar.warp.sync`, the only one of these instructions that orders memory.

use crate::alu::f32_math::{CANONICAL_NAN, is_nan, min_or_max};
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::operands::{lanes_where, mark_undefined_lanes, set_predicate};
use crate::exec::state::warp::FragmentState;
use crate::finding::FindingKind;
use crate::program::op::{AtomicOp, ReduxNumber, ShuffleMode, VoteMode, WarpOp, WarpOpKind};
use crate::regs::Registers;

/// Executes a `.sync` instruction of a warp.
pub fn execute_warp_exchange(cx: &mut InstructionContext, w: &WarpOp) -> NextAction {
    let members_row = cx.regs().get(w.members);
    let members = members_row[cx.first_lane() as usize];
    let same = lanes_where(cx.mask, |l| members_row[l] == members);
    if same != cx.mask {
        // Lanes with different member masks execute the instruction separately: one set of lanes after the other.
        let here = cx.fragment.pc;
        let other = cx.warp.split_off_lanes(cx.fragment, same, here, here, Some(here + 1));
        cx.warp.fragments.push(other);
        return NextAction::Jumped;
    }
    let outside = cx.mask & !members;
    if outside != 0 {
        cx.report(FindingKind::Barrier, outside.trailing_zeros(), || {
            format!("a thread executes a .sync instruction whose member mask {members:#010x} does not contain the thread's lane")
        });
    }
    if matches!(w.kind, WarpOpKind::Sync) {
        return warp_sync(cx, members);
    }
    if !cx.gather_lanes(members) {
        return NextAction::Stop;
    }
    let mask = cx.mask;
    exchange(cx.regs_mut(), w, mask);
    NextAction::Next
}

/// Executes `bar.warp.sync`.
fn warp_sync(cx: &mut InstructionContext, members: u32) -> NextAction {
    if cx.fragment.gathered {
        // The vector clocks of the lanes were already joined when the last lane arrived.
        cx.fragment.gathered = false;
        return NextAction::Next;
    }
    if members & cx.warp.live & !cx.mask == 0 {
        cx.warp.order.sync(cx.mask);
        return NextAction::Next;
    }
    cx.fragment.state = FragmentState::Gather { members, same_instruction: false };
    NextAction::Stop
}

/// Exchanges registers among the lanes of `mask`. A result that depends on an undefined register is undefined.
fn exchange(regs: &mut Registers, w: &WarpOp, mask: u32) {
    match w.kind {
        WarpOpKind::Sync => {}
        WarpOpKind::Shfl { mode, a, b, c } => {
            let (values, undefined) = (regs.get(a), regs.undefined[a as usize]);
            let (index, clamp) = (regs.get(b), regs.get(c));
            let mut out = [0u32; 32];
            let (mut valid, mut bad, mut inactive) = (0u32, 0u32, 0u32);
            for lane in lanes_in_mask(mask).map(|lane| lane as usize) {
                let (source, inside) = shuffle_source(mode, lane as u32, index[lane], clamp[lane]);
                let source = if inside { source } else { lane as u32 };
                valid |= u32::from(inside) << lane;
                out[lane] = values[source as usize & 31];
                bad |= (undefined >> (source & 31) & 1) << lane;
                if mask >> (source & 31) & 1 == 0 {
                    // Reading from a lane that does not execute the instruction gives an undefined value.
                    inactive |= 1 << lane;
                }
            }
            if let Some(dst) = w.dst {
                regs.set(dst, &out, mask);
                mark_undefined_lanes(regs, dst, bad | inactive, mask);
            }
            if let Some(p) = w.dst_pred {
                set_predicate(regs, p, valid, mask);
            }
        }
        WarpOpKind::Vote { mode, p, negated } => {
            let value = regs.predicates[p as usize] ^ if negated { u32::MAX } else { 0 };
            let undefined = regs.undefined_predicates[p as usize] & mask;
            let votes = value & mask;
            let yes = match mode {
                VoteMode::All => votes == mask,
                VoteMode::Any => votes != 0,
                VoteMode::Uni => votes == 0 || votes == mask,
                VoteMode::Ballot => false,
            };
            let unknown = if undefined != 0 { mask } else { 0 };
            if let Some(dst) = w.dst {
                regs.set(dst, &[votes; 32], mask);
                mark_undefined_lanes(regs, dst, unknown, mask);
            }
            if let Some(q) = w.dst_pred {
                set_predicate(regs, q, if yes { u32::MAX } else { 0 }, mask);
                regs.undefined_predicates[q as usize] |= unknown;
            }
        }
        WarpOpKind::Match { all, wide, a } => {
            let values: [u64; 32] = if wide { regs.get64(a) } else { regs.get(a).map(u64::from) };
            let same = |lane: usize| lanes_where(mask, |l| values[l] == values[lane]);
            let mut out = [0u32; 32];
            let mut all_equal = true;
            for lane in lanes_in_mask(mask).map(|lane| lane as usize) {
                out[lane] = same(lane);
                all_equal &= out[lane] == mask;
            }
            if all {
                out = [if all_equal { mask } else { 0 }; 32];
            }
            let unknown = if regs.undefined[a as usize] & mask != 0 { mask } else { 0 };
            if let Some(dst) = w.dst {
                regs.set(dst, &out, mask);
                mark_undefined_lanes(regs, dst, unknown, mask);
            }
            if let Some(p) = w.dst_pred {
                set_predicate(regs, p, if all_equal { u32::MAX } else { 0 }, mask);
            }
        }
        WarpOpKind::Redux { op, number, a } => {
            let row = regs.get(a);
            let values = lanes_in_mask(mask).map(|l| match number {
                ReduxNumber::F32 { .. } if is_nan(row[l as usize]) => CANONICAL_NAN,
                ReduxNumber::F32 { abs: true, .. } => row[l as usize] & 0x7fff_ffff,
                _ => row[l as usize],
            });
            let result = values.reduce(|x, y| match number {
                ReduxNumber::Unsigned => op.apply_unsigned(x as u64, y as u64) as u32,
                ReduxNumber::Signed => op.apply_signed(x as i32 as i64, y as i32 as i64) as u32,
                ReduxNumber::F32 { nan, .. } if nan && (is_nan(x) || is_nan(y)) => CANONICAL_NAN,
                ReduxNumber::F32 { .. } if op == AtomicOp::Max => min_or_max::<true>(x, y),
                ReduxNumber::F32 { .. } => min_or_max::<false>(x, y),
            });
            let unknown = if regs.undefined[a as usize] & mask != 0 { mask } else { 0 };
            if let Some(dst) = w.dst {
                regs.set(dst, &[result.unwrap_or(0); 32], mask);
                mark_undefined_lanes(regs, dst, unknown, mask);
            }
        }
        WarpOpKind::Elect => {
            let leader = mask.trailing_zeros();
            if let Some(dst) = w.dst {
                regs.set(dst, &[leader; 32], mask);
                regs.undefined[dst as usize] &= !mask;
            }
            if let Some(p) = w.dst_pred {
                set_predicate(regs, p, 1 << leader, mask);
            }
        }
    }
}

/// Returns the lane from which a lane of `shfl` reads, and whether that lane lies inside its segment. PTX ISA,
/// `shfl.sync`.
fn shuffle_source(mode: ShuffleMode, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, segment, clamp) = (b & 31, c >> 8 & 31, c & 31);
    let max = lane & segment | clamp & !segment;
    let min = lane & segment;
    match mode {
        ShuffleMode::Up => {
            let j = lane as i32 - b as i32;
            (j as u32, j >= max as i32)
        }
        ShuffleMode::Down => (lane + b, lane + b <= max),
        ShuffleMode::Bfly => (lane ^ b, lane ^ b <= max),
        ShuffleMode::Idx => {
            let j = min | b & !segment;
            (j, j <= max)
        }
    }
}
