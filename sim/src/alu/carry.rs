//! Extended-precision integer arithmetic, which reads and writes the carry flag: `add.cc`, `addc`, `sub.cc`, `subc`,
//! `mad.cc`, `madc`.
//!
//! Source: PTX ISA 9.0, chapter 9.7.2.

use super::OperandSlots;
use super::integer::{low_bits_mask, sign_or_zero_extend};
use super::lanes::{mark_undefined_lanes, set_predicate};
use crate::regs::{Registers, Slot};

/// Arithmetic operations that can read and write the carry flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarryArithmetic {
    /// `a + b`
    Add,
    /// `a − b`, computed as `a + ¬b + 1`, so a borrow clears the carry flag. An H200 does the same: `addc` after
    /// `sub.cc` shows it.
    Sub,
    /// The low half of `a · b`, plus `c`.
    MadLow,
    /// The high half of `a · b`, plus `c`.
    MadHigh,
}

/// A decoded instruction with carry, such as `add.cc` or `addc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarryOp {
    pub op: CarryArithmetic,
    /// Width in bits: 32 or 64.
    pub bits: u8,
    pub signed: bool,
    /// True if the carry flag is an input.
    pub input: bool,
    /// True if the carry flag is an output.
    pub output: bool,
}

impl CarryOp {
    /// Executes the instruction for the lanes of `mask`.
    pub fn run(self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        let sources = if matches!(self.op, CarryArithmetic::MadLow | CarryArithmetic::MadHigh) { 3 } else { 2 };
        let mut u = s.src[..sources].iter().fold(0, |u, &slot| u | r.undefined[slot as usize]);
        let mut carry = 0;
        if self.input {
            carry = r.predicates[s.carry as usize];
            u |= r.undefined_predicates[s.carry as usize];
        }
        let load = |slot: Slot| if self.bits == 64 { r.get64(slot) } else { r.get(slot).map(|x| x as u64) };
        let (a, b) = (load(s.src[0]), load(s.src[1]));
        let c = if sources == 3 { load(s.src[2]) } else { [0; 32] };
        let (mut out, mut carries) = ([0; 32], 0);
        for i in 0..32 {
            let (x, carried) = self.lane(a[i], b[i], c[i], (carry >> i & 1) as u128);
            out[i] = x;
            carries |= (carried as u32) << i;
        }
        if self.bits == 64 {
            r.set64(s.dst[0], &out, mask);
        } else {
            r.set(s.dst[0], &out.map(|x| x as u32), mask);
        }
        mark_undefined_lanes(r, s.dst[0], mask, u);
        if self.output {
            set_predicate(r, s.carry, carries, mask, u);
        }
    }

    /// Returns the result and the carry out of one lane.
    fn lane(self, a: u64, b: u64, c: u64, carry: u128) -> (u64, bool) {
        let low_bits_mask = low_bits_mask(self.bits as u32) as u128;
        let wide = |x: u64| sign_or_zero_extend(x, self.bits as u32, self.signed);
        let product = wide(a).wrapping_mul(wide(b)) as u128;
        let sum = match self.op {
            CarryArithmetic::Add => a as u128 + b as u128 + carry,
            CarryArithmetic::Sub => a as u128 + (b as u128 ^ low_bits_mask) + if self.input { carry } else { 1 },
            CarryArithmetic::MadLow => (product & low_bits_mask) + c as u128 + carry,
            CarryArithmetic::MadHigh => (product >> self.bits & low_bits_mask) + c as u128 + carry,
        };
        ((sum & low_bits_mask) as u64, sum > low_bits_mask)
    }
}
