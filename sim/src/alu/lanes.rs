//! Loops over the 32 lanes of a warp: load the sources, compute all lanes, write the lanes of a mask, and mark
//! results of undefined sources as undefined.

use super::OperandSlots;
use crate::regs::{RegisterRow, Registers, Slot};

/// The value of a register in one lane: `u32` for a 32-bit register (one row of 32 lanes), `u64` for a 64-bit
/// register (two rows).
pub trait LaneValue: Copy + 'static {
    const ZERO: Self;
    /// Loads all lanes of the register at `slot`.
    fn load(r: &Registers, slot: Slot) -> [Self; 32];
    /// Stores the lanes of `mask`.
    fn store(r: &mut Registers, slot: Slot, value: &[Self; 32], mask: u32);
}

impl LaneValue for u32 {
    const ZERO: u32 = 0;
    #[inline(always)]
    fn load(r: &Registers, slot: Slot) -> [u32; 32] {
        r.get(slot)
    }
    #[inline(always)]
    fn store(r: &mut Registers, slot: Slot, value: &[u32; 32], mask: u32) {
        r.set(slot, value, mask);
    }
}

impl LaneValue for u64 {
    const ZERO: u64 = 0;
    #[inline(always)]
    fn load(r: &Registers, slot: Slot) -> [u64; 32] {
        let rows: &[RegisterRow] = &r.rows[slot as usize..slot as usize + 2];
        let (low, high): (&[u64; 16], &[u64; 16]) = (bytemuck::cast_ref(&rows[0]), bytemuck::cast_ref(&rows[1]));
        let mut out = [0; 32];
        out[..16].copy_from_slice(low);
        out[16..].copy_from_slice(high);
        out
    }
    #[inline(always)]
    fn store(r: &mut Registers, slot: Slot, value: &[u64; 32], mask: u32) {
        r.set64(slot, value, mask);
    }
}

/// Marks the register at `slot` in the lanes of `mask`: as undefined where the bit of the lane is set in `undefined`,
/// else as defined.
#[inline(always)]
pub fn mark_undefined_lanes(r: &mut Registers, slot: Slot, mask: u32, undefined: u32) {
    r.undefined[slot as usize] &= !mask;
    r.mark_undefined(slot, undefined & mask);
}

/// Computes `dst = f(src0, src1)`, which packs two halves into a register. `halves` are the indices of the sources of
/// the low and of the high half. Each half of a result lane is undefined where its source is undefined.
#[inline(always)]
pub fn pack_halves<D: LaneValue>(
    r: &mut Registers,
    s: &OperandSlots,
    mask: u32,
    halves: [usize; 2],
    f: impl Fn(u32, u32) -> D,
) {
    let undefined = halves.map(|half| r.undefined[s.src[half] as usize]);
    map_lanes_binary(r, s, mask, f);
    if (undefined[0] ^ undefined[1]) & mask != 0 {
        r.set_undefined_halves(s.dst[0], mask, undefined);
    }
}

/// Runs an instruction with one destination whose result may depend on only one half of a source. `undefined` returns
/// the lanes in which the result is undefined; it is called only if some registers have one defined and one undefined
/// half.
#[inline(always)]
pub fn run_with_half_definedness(
    r: &mut Registers,
    s: &OperandSlots,
    mask: u32,
    undefined: impl FnOnce(&Registers) -> u32,
    run: impl FnOnce(&mut Registers),
) {
    if !r.has_defined_halves() {
        return run(r);
    }
    let undefined = undefined(r);
    run(r);
    mark_undefined_lanes(r, s.dst[0], mask, undefined);
}

/// Writes a predicate, and which of its lanes are undefined, in the lanes of `mask`.
#[inline(always)]
pub fn set_predicate(r: &mut Registers, slot: Slot, value: u32, mask: u32, undefined: u32) {
    let p = &mut r.predicates[slot as usize];
    *p = *p & !mask | value & mask;
    let u = &mut r.undefined_predicates[slot as usize];
    *u = *u & !mask | undefined & mask;
}

/// Returns the lanes in which one of the first `N` sources is undefined.
#[inline(always)]
pub fn undefined_lanes<const N: usize>(r: &Registers, s: &OperandSlots) -> u32 {
    let mut u = 0;
    for slot in &s.src[..N] {
        u |= r.undefined[*slot as usize];
    }
    u
}

/// Computes `dst = f(src0)` in the lanes of `mask`. A result lane is undefined where the source is.
#[inline(always)]
pub fn map_lanes_unary<D: LaneValue, A: LaneValue>(r: &mut Registers, s: &OperandSlots, mask: u32, f: impl Fn(A) -> D) {
    let a = A::load(r, s.src[0]);
    let mut d = [D::ZERO; 32];
    for i in 0..32 {
        d[i] = f(a[i]);
    }
    D::store(r, s.dst[0], &d, mask);
    let u = undefined_lanes::<1>(r, s);
    mark_undefined_lanes(r, s.dst[0], mask, u);
}

/// Computes `dst = f(src0, src1)` in the lanes of `mask`. A result lane is undefined where a source is.
#[inline(always)]
pub fn map_lanes_binary<D: LaneValue, A: LaneValue, B: LaneValue>(
    r: &mut Registers,
    s: &OperandSlots,
    mask: u32,
    f: impl Fn(A, B) -> D,
) {
    let (a, b) = (A::load(r, s.src[0]), B::load(r, s.src[1]));
    let mut d = [D::ZERO; 32];
    for i in 0..32 {
        d[i] = f(a[i], b[i]);
    }
    D::store(r, s.dst[0], &d, mask);
    let u = undefined_lanes::<2>(r, s);
    mark_undefined_lanes(r, s.dst[0], mask, u);
}

/// Computes `dst = f(src0, src1, src2)` in the lanes of `mask`. A result lane is undefined where a source is.
#[inline(always)]
pub fn map_lanes_ternary<D: LaneValue, A: LaneValue, B: LaneValue, C: LaneValue>(
    r: &mut Registers,
    s: &OperandSlots,
    mask: u32,
    f: impl Fn(A, B, C) -> D,
) {
    let (a, b, c) = (A::load(r, s.src[0]), B::load(r, s.src[1]), C::load(r, s.src[2]));
    let mut d = [D::ZERO; 32];
    for i in 0..32 {
        d[i] = f(a[i], b[i], c[i]);
    }
    D::store(r, s.dst[0], &d, mask);
    let u = undefined_lanes::<3>(r, s);
    mark_undefined_lanes(r, s.dst[0], mask, u);
}

/// Returns the mask of the lanes in which `f` is true for the values of the registers at `a` and `b`.
#[inline(always)]
pub fn lanes_where<A: LaneValue>(r: &Registers, a: Slot, b: Slot, f: impl Fn(A, A) -> bool) -> u32 {
    let (a, b) = (A::load(r, a), A::load(r, b));
    let mut m = 0;
    for i in 0..32 {
        m |= (f(a[i], b[i]) as u32) << i;
    }
    m
}

/// Returns a mask whose bit i is bit 0 of lane i.
pub fn lane_mask(lanes: &[u64; 32]) -> u32 {
    (0..32).fold(0, |mask, i| mask | ((lanes[i] & 1) as u32) << i)
}
