//! Comparison, selection and classification: `setp`, `set`, `selp`, `slct`, `testp`.
//!
//! Source: PTX ISA 9.0, chapter 9.7.6 (comparison and selection).

use super::OperandSlots;
use super::f32_math::{self, f32_from_operand_bits};
use super::half::half_to_f64;
use super::integer::integer_value;
use super::lanes::{LaneValue, lane_mask, lanes_where, mark_undefined_lanes, set_predicate, undefined_lanes};
use super::scalar::{ScalarFlags, ScalarOp, scalar_functions};
use crate::regs::{Registers, Slot};

/// The basic relations between two values. Each comparison operator is one of them, with swapped operands or an
/// inverted result where needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComparisonRelation {
    /// `a < b`
    Less,
    /// `a ≤ b`
    LessEqual,
    /// `a = b`
    Equal,
    /// Neither operand is NaN, and `a ≠ b`.
    Unequal,
    /// Neither operand is NaN.
    Numbers,
}

/// How a comparison's result is combined with a source predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredicateCombination {
    /// The comparison's result alone.
    None,
    /// `.and`
    And,
    /// `.or`
    Or,
    /// `.xor`
    Xor,
}

/// A decoded comparison. The relation is applied to `(b, a)` instead of `(a, b)` if `swap`; its result is negated if
/// `invert`, then combined with the source predicate `src[2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    pub relation: ComparisonRelation,
    pub swap: bool,
    pub invert: bool,
    pub combine: PredicateCombination,
    /// True if the source predicate is negated.
    pub not: bool,
    /// True if the instruction has two destinations `p|q`: `q` gets the negated comparison, combined with the source
    /// predicate.
    pub pair: bool,
}

impl Comparison {
    /// Writes the destination predicates, given the lanes in which the relation holds.
    #[inline(always)]
    pub fn write_predicates(self, r: &mut Registers, s: &OperandSlots, mask: u32, holds: u32) {
        // Compute both results before writing: a destination may also be the source predicate.
        let (p, u) = self.combine_with_predicate(r, s, holds);
        if self.pair {
            let (q, _) = self.combine_with_predicate(r, s, !holds);
            set_predicate(r, s.dst[1], q, mask, u);
        }
        set_predicate(r, s.dst[0], p, mask, u);
    }

    /// Takes the lanes `relation_holds` in which the relation is true, negates them if `invert`, and combines them with
    /// the source predicate. Returns the lanes in which the result is true, and the lanes in which it is undefined.
    #[inline(always)]
    pub fn combine_with_predicate(self, r: &Registers, s: &OperandSlots, relation_holds: u32) -> (u32, u32) {
        let x = relation_holds ^ 0u32.wrapping_sub(self.invert as u32);
        let u = undefined_lanes::<2>(r, s);
        if self.combine == PredicateCombination::None {
            return (x, u);
        }
        let c = r.predicates[s.src[2] as usize] ^ 0u32.wrapping_sub(self.not as u32);
        let value = match self.combine {
            PredicateCombination::And => x & c,
            PredicateCombination::Or => x | c,
            _ => x ^ c,
        };
        (value, u | r.undefined_predicates[s.src[2] as usize])
    }

    #[inline(always)]
    fn operands(self, s: &OperandSlots) -> (Slot, Slot) {
        if self.swap { (s.src[1], s.src[0]) } else { (s.src[0], s.src[1]) }
    }

    /// Compares as signed integers after XORing both operands with `xor_bits`. If `xor_bits` is the sign bit, this is
    /// an unsigned comparison.
    #[inline(always)]
    pub fn compare_32bit_integers(self, r: &mut Registers, s: &OperandSlots, mask: u32, xor_bits: u32) {
        let (a, b) = self.operands(s);
        let holds = if self.relation == ComparisonRelation::Less {
            lanes_where::<u32>(r, a, b, |a, b| ((a ^ xor_bits) as i32) < (b ^ xor_bits) as i32)
        } else {
            lanes_where::<u32>(r, a, b, |a, b| a == b)
        };
        self.write_predicates(r, s, mask, holds);
    }

    #[inline(always)]
    pub fn compare_64bit_integers(self, r: &mut Registers, s: &OperandSlots, mask: u32, xor_bits: u64) {
        let (a, b) = self.operands(s);
        let holds = if self.relation == ComparisonRelation::Less {
            lanes_where::<u64>(r, a, b, |a, b| ((a ^ xor_bits) as i64) < (b ^ xor_bits) as i64)
        } else {
            lanes_where::<u64>(r, a, b, |a, b| a == b)
        };
        self.write_predicates(r, s, mask, holds);
    }

    #[inline(always)]
    pub fn compare_f32(self, r: &mut Registers, s: &OperandSlots, mask: u32, ftz: bool) {
        let (a, b) = self.operands(s);
        let x = |a: u32| f32_from_operand_bits(a, ftz);
        let holds = match self.relation {
            ComparisonRelation::Less => lanes_where::<u32>(r, a, b, |a, b| x(a) < x(b)),
            ComparisonRelation::LessEqual => lanes_where::<u32>(r, a, b, |a, b| x(a) <= x(b)),
            ComparisonRelation::Equal => lanes_where::<u32>(r, a, b, |a, b| x(a) == x(b)),
            ComparisonRelation::Unequal => lanes_where::<u32>(r, a, b, |a, b| (x(a) < x(b)) | (x(a) > x(b))),
            ComparisonRelation::Numbers => {
                lanes_where::<u32>(r, a, b, |a, b| !f32_math::is_nan(a) & !f32_math::is_nan(b))
            }
        };
        self.write_predicates(r, s, mask, holds);
    }
}

/// Executes `selp`. A result lane is undefined where the predicate or the selected source is undefined.
#[inline(always)]
pub fn selp<A: LaneValue>(r: &mut Registers, s: &OperandSlots, mask: u32) {
    let p = r.predicates[s.src[2] as usize];
    let (a, b) = (A::load(r, s.src[0]), A::load(r, s.src[1]));
    let mut d = [A::ZERO; 32];
    for i in 0..32 {
        d[i] = if p >> i & 1 != 0 { a[i] } else { b[i] };
    }
    A::store(r, s.dst[0], &d, mask);
    let (ua, ub) = (r.undefined[s.src[0] as usize], r.undefined[s.src[1] as usize]);
    let u = ua & p | ub & !p | r.undefined_predicates[s.src[2] as usize];
    mark_undefined_lanes(r, s.dst[0], mask, u);
}

/// How `set` writes its result: the value for true, and whether the operands are packed halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetResultFormat {
    pub truth: u32,
    /// True if the operands are packed halves, which are compared one by one.
    pub halves: bool,
}

/// Returns the mask of the lanes in which the comparison function `scalar` returns 1.
pub fn lanes_where_comparison_holds(scalar: &ScalarOp, r: &Registers, s: &OperandSlots, mask: u32) -> u32 {
    lane_mask(&scalar.lane_results_and_undefined_lanes(r, s, mask).0)
}

/// Classifies an f32 or f64 for `testp`.
fn category(f: ScalarFlags, a: u64) -> std::num::FpCategory {
    if f.bits == 64 { f64::from_bits(a).classify() } else { f32::from_bits(a as u32).classify() }
}

scalar_functions! {
    is_finite |f, a, _, _, _|
        !matches!(category(f, a), std::num::FpCategory::Nan | std::num::FpCategory::Infinite) as u64;
    is_infinite |f, a, _, _, _| (category(f, a) == std::num::FpCategory::Infinite) as u64;
    is_number |f, a, _, _, _| (category(f, a) != std::num::FpCategory::Nan) as u64;
    is_nan |f, a, _, _, _| (category(f, a) == std::num::FpCategory::Nan) as u64;
    /// `testp.normal`, for which zeros count as normal numbers.
    is_normal |f, a, _, _, _|
        matches!(category(f, a), std::num::FpCategory::Normal | std::num::FpCategory::Zero) as u64;
    is_subnormal |f, a, _, _, _| (category(f, a) == std::num::FpCategory::Subnormal) as u64;
}

/// Compares two floats. `f.wide` is the mask of orderings for which the comparison holds: bit 0 less, 1 equal, 2
/// greater, 3 unordered (a NaN).
pub fn compare_floats(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let x = |a: u64| match f.bits {
        64 => f64::from_bits(a),
        32 => f32_math::f32_from_operand_bits(a as u32, f.ftz) as f64,
        _ => half_to_f64(f, a),
    };
    (f.wide & ordering_bit(x(a).partial_cmp(&x(b))) != 0) as u64
}

/// Compares the upper halves of two packed registers if the flag `sat` is set, else the lower halves. Comparisons do
/// not saturate, so the flag is free for this use.
pub fn compare_half(f: ScalarFlags, a: u64, b: u64, c: u64, d: u64) -> u64 {
    let shift = if f.sat { 16 } else { 0 };
    compare_floats(f, a >> shift & 0xffff, b >> shift & 0xffff, c, d)
}

/// Compares two integers; `f.wide` is the mask of orderings for which the comparison holds, as in [`compare_floats`].
pub fn compare_integers(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    (f.wide & ordering_bit(integer_value(f, a).partial_cmp(&integer_value(f, b))) != 0) as u64
}

/// Returns the bit of an ordering in the masks of [`compare_floats`]; `None` is unordered.
pub fn ordering_bit(ordering: Option<std::cmp::Ordering>) -> u8 {
    match ordering {
        Some(std::cmp::Ordering::Less) => 1,
        Some(std::cmp::Ordering::Equal) => 2,
        Some(std::cmp::Ordering::Greater) => 4,
        None => 8,
    }
}

/// `slct`: returns `a` if `c` ≥ 0, else `b`; a NaN selects `b`. `c` is an f32 if `variant`, else an s32.
pub fn slct(f: ScalarFlags, a: u64, b: u64, c: u64, _: u64) -> u64 {
    let first = if f.variant { f32_math::f32_from_operand_bits(c as u32, f.ftz) >= 0.0 } else { c as u32 as i32 >= 0 };
    if first { a } else { b }
}
