//! Instructions in which lanes exchange registers: shuffles, votes, match, redux, elect, and `bar.warp.sync`. Only the last
//! orders memory.

use super::run::{Flow, set_predicate};
use super::warp::{Fragment, State, Warp};
use super::{Block, Machine};
use crate::finding::FindingKind;
use crate::program::op::{AtomicOp, ShuffleMode, VoteMode, WarpOp, WarpOpKind};

impl Machine<'_> {
    pub(super) fn warp_op(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        w: &WarpOp,
        mask: u32,
        pc: u32,
    ) -> Flow {
        let members_row = warp.frame(fragment.frame).regs.get(w.members);
        let members = members_row[mask.trailing_zeros() as usize];
        if !self.one_membership(block, warp, fragment, &members_row, mask) {
            return Flow::Jumped;
        }
        if mask & !members != 0 {
            let site = self.site(block, warp.index, (mask & !members).trailing_zeros(), pc);
            self.report(FindingKind::Barrier, site, None, None, || {
                format!("a thread executes a .sync instruction whose member mask {members:#010x} leaves it out")
            });
        }
        if matches!(w.kind, WarpOpKind::Sync) {
            return self.warp_sync(warp, fragment, members, mask);
        }
        if !self.gather(warp, fragment, members, mask) {
            return Flow::Stop;
        }
        let regs = &mut warp.frame(fragment.frame).regs;
        match w.kind {
            WarpOpKind::Sync => {}
            WarpOpKind::Shfl { mode, a, b, c } => {
                let (values, undefined) = (regs.get(a), regs.undefined[a as usize]);
                let (index, clamp) = (regs.get(b), regs.get(c));
                let mut out = [0u32; 32];
                let (mut valid, mut bad, mut inactive) = (0u32, 0u32, 0u32);
                for lane in (0..32usize).filter(|&l| mask >> l & 1 != 0) {
                    let (source, inside) = shuffle_source(mode, lane as u32, index[lane], clamp[lane]);
                    let source = if inside { source } else { lane as u32 };
                    valid |= u32::from(inside) << lane;
                    out[lane] = values[source as usize & 31];
                    bad |= (undefined >> (source & 31) & 1) << lane;
                    if mask >> (source & 31) & 1 == 0 {
                        // The source lane does not take part: its value is undefined.
                        inactive |= 1 << lane;
                    }
                }
                if let Some(dst) = w.dst {
                    regs.set(dst, &out, mask);
                    let slot = &mut regs.undefined[dst as usize];
                    *slot = *slot & !mask | bad | inactive;
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
                    let slot = &mut regs.undefined[dst as usize];
                    *slot = *slot & !mask | unknown;
                }
                if let Some(q) = w.dst_pred {
                    set_predicate(regs, q, if yes { u32::MAX } else { 0 }, mask);
                    regs.undefined_predicates[q as usize] |= unknown;
                }
            }
            WarpOpKind::Match { all, wide, a } => {
                let values: [u64; 32] = if wide { regs.get64(a) } else { regs.get(a).map(u64::from) };
                let same = |lane: usize| {
                    (0..32).filter(|&l| mask >> l & 1 != 0 && values[l] == values[lane]).fold(0u32, |m, l| m | 1 << l)
                };
                let mut out = [0u32; 32];
                let mut everyone = true;
                for lane in (0..32usize).filter(|&l| mask >> l & 1 != 0) {
                    out[lane] = same(lane);
                    everyone &= out[lane] == mask;
                }
                if all {
                    out = [if everyone { mask } else { 0 }; 32];
                }
                let unknown = if regs.undefined[a as usize] & mask != 0 { mask } else { 0 };
                if let Some(dst) = w.dst {
                    regs.set(dst, &out, mask);
                    let slot = &mut regs.undefined[dst as usize];
                    *slot = *slot & !mask | unknown;
                }
                if let Some(p) = w.dst_pred {
                    set_predicate(regs, p, if everyone { u32::MAX } else { 0 }, mask);
                }
            }
            WarpOpKind::Redux { op, signed, a } => {
                let values = regs.get(a);
                let lanes = (0..32usize).filter(|&l| mask >> l & 1 != 0);
                let result = lanes.map(|l| values[l]).reduce(|x, y| match (op, signed) {
                    (AtomicOp::Add, _) => x.wrapping_add(y),
                    (AtomicOp::Min, true) => (x as i32).min(y as i32) as u32,
                    (AtomicOp::Max, true) => (x as i32).max(y as i32) as u32,
                    (AtomicOp::Min, false) => x.min(y),
                    (AtomicOp::Max, false) => x.max(y),
                    (AtomicOp::And, _) => x & y,
                    (AtomicOp::Or, _) => x | y,
                    _ => x ^ y,
                });
                let unknown = if regs.undefined[a as usize] & mask != 0 { mask } else { 0 };
                if let Some(dst) = w.dst {
                    regs.set(dst, &[result.unwrap_or(0); 32], mask);
                    let slot = &mut regs.undefined[dst as usize];
                    *slot = *slot & !mask | unknown;
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
        Flow::Next
    }

    /// Lanes that name different members execute the instruction one group after the other. Whether all name the same.
    fn one_membership(
        &mut self,
        _block: &Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        members: &[u32; 32],
        mask: u32,
    ) -> bool {
        let first = members[mask.trailing_zeros() as usize];
        let same = (0..32).filter(|&l| mask >> l & 1 != 0 && members[l] == first).fold(0u32, |m, l| m | 1 << l);
        if same == mask {
            return true;
        }
        let here = fragment.pc;
        let other = warp.split(fragment, same, here, here, Some(here + 1));
        warp.fragments.push(other);
        false
    }

    fn warp_sync(&mut self, warp: &mut Warp, fragment: &mut Fragment, members: u32, mask: u32) -> Flow {
        if fragment.gathered {
            // The order was made when the last lane came.
            fragment.gathered = false;
            return Flow::Next;
        }
        if members & warp.live & !mask == 0 {
            warp.order.sync(mask);
            return Flow::Next;
        }
        fragment.state = State::Gather { members, whole: false };
        Flow::Stop
    }
}

/// The lane that `shfl` reads, and whether it is inside the segment. PTX ISA, `shfl.sync`.
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
