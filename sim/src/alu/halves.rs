//! Half-precision arithmetic without modifiers, a warp at a time.

use super::OperandSlots;
use super::f32s::{self, from_f16, to_bf16, to_f16};
use super::float::Arithmetic;
use super::lanes::map3;
use super::soft::add_odd;
use crate::regs::Registers;
use crate::simd::dispatch;

/// `add`, `sub`, `mul` or `fma` of one or two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOp {
    pub op: Arithmetic,
    pub bf16: bool,
    pub pair: bool,
}

impl HalfOp {
    /// Executes for the lanes of `mask`. Operations of two operands read the second again as the third.
    pub fn run(self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        let mut s = *s;
        if self.op != Arithmetic::Fma {
            s.src[2] = s.src[1];
        }
        let s = &s;
        dispatch(
            #[inline(always)]
            || match (self.op, self.bf16) {
                (Arithmetic::Add, false) => self.lanes::<false>(r, s, mask, |a, b, _| add_odd(a, b)),
                (Arithmetic::Add, true) => self.lanes::<true>(r, s, mask, |a, b, _| add_odd(a, b)),
                (Arithmetic::Sub, false) => self.lanes::<false>(r, s, mask, |a, b, _| add_odd(a, -b)),
                (Arithmetic::Sub, true) => self.lanes::<true>(r, s, mask, |a, b, _| add_odd(a, -b)),
                (Arithmetic::Mul, false) => self.lanes::<false>(r, s, mask, |a, b, _| a * b),
                (Arithmetic::Mul, true) => self.lanes::<true>(r, s, mask, |a, b, _| a * b),
                (_, false) => self.lanes::<false>(r, s, mask, |a, b, c| add_odd(a * b, c)),
                (_, true) => self.lanes::<true>(r, s, mask, |a, b, c| add_odd(a * b, c)),
            },
        );
    }

    #[inline(always)]
    fn lanes<const BF16: bool>(self, r: &mut Registers, s: &OperandSlots, mask: u32, f: impl Fn(f64, f64, f64) -> f64) {
        let wide = |x: u32| f32::from_bits(if BF16 { x << 16 } else { from_f16(x & 0xffff) }) as f64;
        let half = |a: u32, b: u32, c: u32| {
            let odd = to_odd(f(wide(a), wide(b), wide(c)));
            if BF16 { to_bf16(odd) } else { to_f16(odd) }
        };
        if self.pair {
            map3(r, s, mask, |a: u32, b: u32, c: u32| half(a, b, c) | half(a >> 16, b >> 16, c >> 16) << 16);
        } else {
            map3(r, s, mask, half);
        }
    }
}

/// The bits of the f32 to which an f64 rounds to odd; a further rounding to half precision is then as of the f64.
#[inline(always)]
fn to_odd(x: f64) -> u32 {
    let near = x as f32;
    let (beyond, inexact) = ((near as f64).abs() > x.abs(), near as f64 != x);
    let odd = (near.to_bits() - beyond as u32) | inexact as u32;
    if f32s::is_nan(near.to_bits()) { f32s::NAN } else { odd }
}
