//! `mov` between one register and a vector of narrower registers, and `mov.b128`.
//!
//! Source: PTX ISA 9.0, chapter 9.7.9 (data movement).

use super::OperandSlots;
use super::integer::low_bits_mask;
use super::lanes::{LaneValue, mark_undefined_lanes};
use crate::regs::{Registers, Slot};

/// A `mov` that packs narrower registers into one register, or unpacks one register into narrower ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorMove {
    /// True to pack into one register, false to unpack.
    pub pack: bool,
    /// Bits of one element.
    pub bits: u8,
    /// Number of elements.
    pub count: u8,
}

/// Splits a register into two; `undefined` are the lanes in which its low and its high half are undefined.
#[inline(always)]
pub fn unpack<A: LaneValue>(
    r: &mut Registers,
    s: &OperandSlots,
    mask: u32,
    undefined: [u32; 2],
    low_part: impl Fn(A) -> u32,
    high_part: impl Fn(A) -> u32,
) {
    let a = A::load(r, s.src[0]);
    let (mut low, mut high) = ([0u32; 32], [0u32; 32]);
    for i in 0..32 {
        low[i] = low_part(a[i]);
        high[i] = high_part(a[i]);
    }
    r.set(s.dst[0], &low, mask);
    r.set(s.dst[1], &high, mask);
    mark_undefined_lanes(r, s.dst[0], mask, undefined[0]);
    mark_undefined_lanes(r, s.dst[1], mask, undefined[1]);
}

impl VectorMove {
    /// Executes the move for the lanes of `mask`.
    pub fn run(self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        let (bits, count) = (self.bits as u32, self.count as usize);
        let whole = bits * count as u32;
        let low_bits_mask = low_bits_mask(bits) as u128;
        if self.pack {
            let mut lanes = [0u128; 32];
            let mut u = 0;
            for i in 0..count {
                let element = load(r, s.src[i], bits);
                u |= r.undefined[s.src[i] as usize];
                for lane in 0..32 {
                    lanes[lane] |= (element[lane] & low_bits_mask) << (bits * i as u32);
                }
            }
            store(r, s.dst[0], &lanes, whole, mask);
            return mark_undefined_lanes(r, s.dst[0], mask, u);
        }
        let lanes = load(r, s.src[0], whole);
        let u = r.undefined[s.src[0] as usize];
        for i in 0..count {
            store(r, s.dst[i], &lanes.map(|x| x >> (bits * i as u32) & low_bits_mask), bits, mask);
            mark_undefined_lanes(r, s.dst[i], mask, u);
        }
    }
}

fn load(r: &Registers, slot: Slot, bits: u32) -> [u128; 32] {
    match bits {
        128 => load_128bit_lanes(r, slot),
        64 => r.get64(slot).map(|x| x as u128),
        _ => r.get(slot).map(|x| x as u128),
    }
}

fn store(r: &mut Registers, slot: Slot, value: &[u128; 32], bits: u32, mask: u32) {
    match bits {
        128 => store_128bit_lanes(r, slot, value, mask),
        64 => r.set64(slot, &value.map(|x| x as u64), mask),
        _ => r.set(slot, &value.map(|x| x as u32), mask),
    }
}

/// Reads a 128-bit register, which is stored in four rows of 32 bits per lane.
pub fn load_128bit_lanes(r: &Registers, slot: Slot) -> [u128; 32] {
    let lanes: &[u128] = bytemuck::cast_slice(&r.rows[slot as usize..slot as usize + 4]);
    std::array::from_fn(|i| lanes[i])
}

pub fn store_128bit_lanes(r: &mut Registers, slot: Slot, value: &[u128; 32], mask: u32) {
    let lanes: &mut [u128] = bytemuck::cast_slice_mut(&mut r.rows[slot as usize..slot as usize + 4]);
    for i in (0..32).filter(|i| mask >> i & 1 != 0) {
        lanes[i] = value[i];
    }
}
