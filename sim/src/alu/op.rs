//! Dispatch tables of the arithmetic unit: every decoded instruction and how a warp executes it.
//!
//! There are two tables for speed. [`Op::run`] is inlined into the interpreter's loop and holds the frequent
//! instructions. [`RareOp::run`] holds all others and is called as a function, which keeps the machine code of
//! the loop small. The instructions themselves are in one file per class: [`super::integer`], [`super::logic`],
//! [`super::compare`], [`super::float`], [`super::half`], …

use super::carry::CarryOp;
use super::compare::{Comparison, PredicateCombination, SetResultFormat, lanes_where_comparison_holds, selp};
use super::f32_math::{self, exp2, f32_from_operand_bits, f32_to_result_bits};
use super::half::HalfOp;
use super::lanes::{
    lane_mask, map_lanes_binary, map_lanes_ternary, map_lanes_unary, mark_undefined_lanes, pack_halves,
    run_with_half_definedness, set_predicate, undefined_lanes,
};
use super::logic::{PredicateLogic, lop3, lop3_value, prmt, run_predicate_logic};
use super::moves::{VectorMove, load_128bit_lanes, store_128bit_lanes, unpack};
use super::scalar::ScalarOp;
use super::soft_float::add_round_to_odd;
use super::{OperandSlots, RegisterClass};
use crate::regs::Registers;

/// A decoded instruction. The `bool` of an f32 instruction is `.ftz`.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Mov32,
    Mov64,
    Add32,
    Sub32,
    MulLo32,
    MadLo32,
    Add64,
    Sub64,
    MulLo64,
    MadLo64,
    MulWideS32,
    MulWideU32,
    MadWideS32,
    MadWideU32,
    MulHiU32,
    Shl32,
    ShrU32,
    ShrS32,
    Shl64,
    ShrU64,
    ShrS64,
    And32,
    Or32,
    Xor32,
    Not32,
    Neg32,
    And64,
    Or64,
    Xor64,
    MinS32,
    MaxS32,
    MinU32,
    MaxU32,
    SetpS32(Comparison),
    SetpU32(Comparison),
    SetpS64(Comparison),
    SetpU64(Comparison),
    SetpF32(Comparison, bool),
    Selp32,
    Selp64,
    PredicateLogic(PredicateLogic, bool, bool),
    AddF32,
    AddFtzF32,
    SubF32,
    SubFtzF32,
    MulF32,
    MulFtzF32,
    FmaF32,
    FmaFtzF32,
    MinF32(bool),
    MaxF32(bool),
    NegF32(bool),
    AbsF32(bool),
    Ex2F32(bool),
    CvtBf16x2,
    CvtBf16,
    CvtF32Bf16,
    CvtF32S32,
    CvtF32U32,
    CvtS32F32(bool),
    CvtU32F32(bool),
    CvtF16x2,
    CvtF16,
    CvtF32F16,
    RcpF32(bool),
    SqrtF32(bool),
    RsqrtF32(bool),
    DivF32(bool),
    ShfLWrap,
    ShfRWrap,
    AddS16,
    MulLoS16,
    AddF64,
    MulF64,
    FmaF64,
    CvtS64S32,
    CvtU64U32,
    CvtLow32,
    CvtU16,
    CvtS32S16,
    Lop3,
    Prmt,
    BfeU32,
    BfeS32,
    Pack32,
    Pack64,
    Unpack32,
    Unpack64,
    /// Any other instruction; it is executed through a function call.
    OutOfLine(RareOp),
}

impl Op {
    /// Executes the instruction for the lanes of `mask`.
    #[inline(always)]
    pub fn run(&self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        match *self {
            Op::Mov32 => map_lanes_unary(r, s, mask, |a: u32| a),
            Op::Mov64 => map_lanes_unary(r, s, mask, |a: u64| a),
            Op::Add32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| a.wrapping_add(b)),
            Op::Sub32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| a.wrapping_sub(b)),
            Op::MulLo32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| a.wrapping_mul(b)),
            Op::MadLo32 => map_lanes_ternary(r, s, mask, |a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c)),
            Op::Add64 => map_lanes_binary(r, s, mask, |a: u64, b: u64| a.wrapping_add(b)),
            Op::Sub64 => map_lanes_binary(r, s, mask, |a: u64, b: u64| a.wrapping_sub(b)),
            Op::MulLo64 => map_lanes_binary(r, s, mask, |a: u64, b: u64| a.wrapping_mul(b)),
            Op::MadLo64 => map_lanes_ternary(r, s, mask, |a: u64, b: u64, c: u64| a.wrapping_mul(b).wrapping_add(c)),
            Op::MulWideS32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| (a as i32 as i64 * b as i32 as i64) as u64),
            Op::MulWideU32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| a as u64 * b as u64),
            Op::MadWideS32 => map_lanes_ternary(r, s, mask, |a: u32, b: u32, c: u64| {
                ((a as i32 as i64 * b as i32 as i64) as u64).wrapping_add(c)
            }),
            Op::MadWideU32 => {
                map_lanes_ternary(r, s, mask, |a: u32, b: u32, c: u64| (a as u64 * b as u64).wrapping_add(c))
            }
            Op::MulHiU32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| ((a as u64 * b as u64) >> 32) as u32),
            Op::Shl32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| if b < 32 { a << (b & 31) } else { 0 }),
            Op::ShrU32 => run_with_half_definedness(
                r,
                s,
                mask,
                |r| {
                    let drops_low_half =
                        r.get(s.src[1]).iter().rev().fold(0, |lanes, &by| lanes << 1 | u32::from(by >= 16));
                    let whole = r.undefined[s.src[0] as usize] & !drops_low_half;
                    whole | r.undefined_half(s.src[0], 1) | r.undefined[s.src[1] as usize]
                },
                |r| map_lanes_binary(r, s, mask, |a: u32, b: u32| if b < 32 { a >> (b & 31) } else { 0 }),
            ),
            Op::ShrS32 => {
                map_lanes_binary(r, s, mask, |a: u32, b: u32| (a as i32 >> if b < 31 { b } else { 31 }) as u32)
            }
            Op::Shl64 => map_lanes_binary(r, s, mask, |a: u64, b: u32| if b < 64 { a << (b & 63) } else { 0 }),
            Op::ShrU64 => map_lanes_binary(r, s, mask, |a: u64, b: u32| if b < 64 { a >> (b & 63) } else { 0 }),
            Op::ShrS64 => {
                map_lanes_binary(r, s, mask, |a: u64, b: u32| (a as i64 >> if b < 63 { b } else { 63 }) as u64)
            }
            Op::And32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| a & b),
            Op::Or32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| a | b),
            Op::Xor32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| a ^ b),
            Op::Not32 => map_lanes_unary(r, s, mask, |a: u32| !a),
            Op::Neg32 => map_lanes_unary(r, s, mask, |a: u32| a.wrapping_neg()),
            Op::And64 => map_lanes_binary(r, s, mask, |a: u64, b: u64| a & b),
            Op::Or64 => map_lanes_binary(r, s, mask, |a: u64, b: u64| a | b),
            Op::Xor64 => map_lanes_binary(r, s, mask, |a: u64, b: u64| a ^ b),
            Op::MinS32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| (a as i32).min(b as i32) as u32),
            Op::MaxS32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| (a as i32).max(b as i32) as u32),
            Op::MinU32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| a.min(b)),
            Op::MaxU32 => map_lanes_binary(r, s, mask, |a: u32, b: u32| a.max(b)),
            Op::SetpS32(c) => c.compare_32bit_integers(r, s, mask, 0),
            Op::SetpU32(c) => c.compare_32bit_integers(r, s, mask, 1 << 31),
            Op::SetpS64(c) => c.compare_64bit_integers(r, s, mask, 0),
            Op::SetpU64(c) => c.compare_64bit_integers(r, s, mask, 1 << 63),
            Op::SetpF32(c, false) => c.compare_f32(r, s, mask, false),
            Op::SetpF32(c, true) => c.compare_f32(r, s, mask, true),
            Op::Selp32 => selp::<u32>(r, s, mask),
            Op::Selp64 => selp::<u64>(r, s, mask),
            Op::PredicateLogic(logic, not0, not1) => run_predicate_logic(r, s, mask, logic, not0, not1),
            Op::AddF32 => float2(r, s, mask, false, |a, b| a + b),
            Op::AddFtzF32 => float2(r, s, mask, true, |a, b| a + b),
            Op::SubF32 => float2(r, s, mask, false, |a, b| a - b),
            Op::SubFtzF32 => float2(r, s, mask, true, |a, b| a - b),
            Op::MulF32 => float2(r, s, mask, false, |a, b| a * b),
            Op::MulFtzF32 => float2(r, s, mask, true, |a, b| f32_math::round_and_flush(a as f64 * b as f64)),
            Op::FmaF32 => float3(r, s, mask, false, |a, b, c| a.mul_add(b, c)),
            Op::FmaFtzF32 => float3(r, s, mask, true, |a, b, c| {
                f32_math::round_and_flush(add_round_to_odd(a as f64 * b as f64, c as f64))
            }),
            // Each case has a loop of its own, because a branch inside the loop would prevent vectorisation.
            Op::MinF32(false) => map_lanes_binary(r, s, mask, f32_math::min_or_max::<false>),
            Op::MaxF32(false) => map_lanes_binary(r, s, mask, f32_math::min_or_max::<true>),
            Op::MinF32(true) => map_lanes_binary(r, s, mask, |a, b| {
                f32_math::min_or_max::<false>(f32_math::flush_subnormal(a, true), f32_math::flush_subnormal(b, true))
            }),
            Op::MaxF32(true) => map_lanes_binary(r, s, mask, |a, b| {
                f32_math::min_or_max::<true>(f32_math::flush_subnormal(a, true), f32_math::flush_subnormal(b, true))
            }),
            Op::NegF32(ftz) => {
                map_lanes_unary(r, s, mask, |a: u32| f32_to_result_bits(-f32_from_operand_bits(a, ftz), false))
            }
            Op::AbsF32(ftz) => {
                map_lanes_unary(r, s, mask, |a: u32| f32_to_result_bits(f32_from_operand_bits(a, ftz).abs(), false))
            }
            Op::Ex2F32(ftz) => {
                map_lanes_unary(r, s, mask, |a: u32| f32_to_result_bits(exp2(f32_from_operand_bits(a, ftz)), ftz))
            }
            Op::CvtBf16x2 => {
                pack_halves(r, s, mask, [1, 0], |a, b| f32_math::f32_to_bf16(a) << 16 | f32_math::f32_to_bf16(b))
            }
            Op::CvtBf16 => map_lanes_unary(r, s, mask, f32_math::f32_to_bf16),
            Op::CvtF32Bf16 => map_lanes_unary(r, s, mask, |a: u32| f32_to_result_bits(f32::from_bits(a << 16), false)),
            Op::CvtF32S32 => map_lanes_unary(r, s, mask, |a: u32| (a as i32 as f32).to_bits()),
            Op::CvtF32U32 => map_lanes_unary(r, s, mask, |a: u32| (a as f32).to_bits()),
            Op::CvtS32F32(ftz) => {
                map_lanes_unary(r, s, mask, |a: u32| f32_math::f32_to_s32(f32_from_operand_bits(a, ftz)))
            }
            Op::CvtU32F32(ftz) => {
                map_lanes_unary(r, s, mask, |a: u32| f32_math::f32_to_u32(f32_from_operand_bits(a, ftz)))
            }
            Op::CvtF16x2 => {
                pack_halves(r, s, mask, [1, 0], |a, b| f32_math::f32_to_f16(a) << 16 | f32_math::f32_to_f16(b))
            }
            Op::CvtF16 => map_lanes_unary(r, s, mask, f32_math::f32_to_f16),
            Op::CvtF32F16 => map_lanes_unary(r, s, mask, f32_math::f16_to_f32),
            Op::RcpF32(ftz) => {
                map_lanes_unary(r, s, mask, |a: u32| f32_to_result_bits(1.0 / f32_from_operand_bits(a, ftz), ftz))
            }
            Op::SqrtF32(ftz) => {
                map_lanes_unary(r, s, mask, |a: u32| f32_to_result_bits(f32_from_operand_bits(a, ftz).sqrt(), ftz))
            }
            Op::RsqrtF32(ftz) => map_lanes_unary(r, s, mask, |a: u32| {
                f32_to_result_bits((1.0 / (f32_from_operand_bits(a, ftz) as f64).sqrt()) as f32, ftz)
            }),
            Op::DivF32(false) => float2(r, s, mask, false, |a, b| a / b),
            Op::DivF32(true) => float2(r, s, mask, true, |a, b| f32_math::round_and_flush(a as f64 / b as f64)),
            Op::ShfLWrap => map_lanes_ternary(r, s, mask, |a: u32, b: u32, c: u32| {
                (((a as u64 | (b as u64) << 32) << (c & 31)) >> 32) as u32
            }),
            Op::ShfRWrap => map_lanes_ternary(r, s, mask, |a: u32, b: u32, c: u32| {
                ((a as u64 | (b as u64) << 32) >> (c & 31)) as u32
            }),
            Op::AddS16 => map_lanes_binary(r, s, mask, |a: u32, b: u32| a.wrapping_add(b) & 0xffff),
            Op::MulLoS16 => map_lanes_binary(r, s, mask, |a: u32, b: u32| a.wrapping_mul(b) & 0xffff),
            Op::AddF64 => {
                map_lanes_binary(r, s, mask, |a: u64, b: u64| (f64::from_bits(a) + f64::from_bits(b)).to_bits())
            }
            Op::MulF64 => {
                map_lanes_binary(r, s, mask, |a: u64, b: u64| (f64::from_bits(a) * f64::from_bits(b)).to_bits())
            }
            Op::FmaF64 => map_lanes_ternary(r, s, mask, |a: u64, b: u64, c: u64| {
                f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()
            }),
            Op::CvtS64S32 => map_lanes_unary(r, s, mask, |a: u32| a as i32 as i64 as u64),
            Op::CvtU64U32 => map_lanes_unary(r, s, mask, |a: u32| a as u64),
            Op::CvtLow32 => map_lanes_unary(r, s, mask, |a: u64| a as u32),
            Op::CvtU16 => run_with_half_definedness(
                r,
                s,
                mask,
                |r| r.undefined_half(s.src[0], 0),
                |r| map_lanes_unary(r, s, mask, |a: u32| a & 0xffff),
            ),
            Op::CvtS32S16 => map_lanes_unary(r, s, mask, |a: u32| a as i16 as i32 as u32),
            Op::Lop3 => lop3(r, s, mask),
            Op::Prmt => prmt(r, s, mask),
            Op::BfeU32 => map_lanes_ternary(r, s, mask, |a: u32, pos: u32, len: u32| {
                let (pos, len) = (pos & 0xff, len & 0xff);
                let x = if pos < 32 { a >> (pos & 31) } else { 0 };
                if len < 32 { x & !(u32::MAX << (len & 31)) } else { x }
            }),
            Op::BfeS32 => map_lanes_ternary(r, s, mask, |a: u32, pos: u32, len: u32| {
                let (pos, len) = (pos & 0xff, len & 0xff);
                // Bits above the field and bits past the end of `a` are copies of the field's top bit.
                let x = (a as i32 >> if pos < 31 { pos } else { 31 }) as u32;
                let drop = 32u32.saturating_sub(len);
                let kept = ((x << (drop & 31)) as i32 >> (drop & 31)) as u32;
                if len == 0 { 0 } else { kept }
            }),
            Op::Pack32 => pack_halves(r, s, mask, [0, 1], |low, high| low & 0xffff | high << 16),
            Op::Pack64 => pack_halves(r, s, mask, [0, 1], |low, high| low as u64 | (high as u64) << 32),
            Op::Unpack32 => {
                let halves = [0, 1].map(|half| r.undefined_half(s.src[0], half));
                unpack::<u32>(r, s, mask, halves, |a| a & 0xffff, |a| a >> 16)
            }
            Op::OutOfLine(ref rare) => rare.run(r, s, mask),
            Op::Unpack64 => {
                let halves = [0, 1].map(|half| r.undefined_half(s.src[0], half));
                unpack::<u64>(r, s, mask, halves, |a| a as u32, |a| (a >> 32) as u32)
            }
        }
    }
}

#[inline(always)]
fn float2(r: &mut Registers, s: &OperandSlots, mask: u32, ftz: bool, f: impl Fn(f32, f32) -> f32) {
    map_lanes_binary(r, s, mask, |a: u32, b: u32| {
        f32_to_result_bits(f(f32_from_operand_bits(a, ftz), f32_from_operand_bits(b, ftz)), ftz)
    });
}

#[inline(always)]
fn float3(r: &mut Registers, s: &OperandSlots, mask: u32, ftz: bool, f: impl Fn(f32, f32, f32) -> f32) {
    map_lanes_ternary(r, s, mask, |a: u32, b: u32, c: u32| {
        f32_to_result_bits(
            f(f32_from_operand_bits(a, ftz), f32_from_operand_bits(b, ftz), f32_from_operand_bits(c, ftz)),
            ftz,
        )
    });
}

/// An instruction that is executed through a function call instead of being inlined.
#[derive(Clone, Copy, Debug)]
pub enum RareOp {
    /// A scalar function and the register class of its destination.
    Scalar(ScalarOp, RegisterClass),
    /// `setp` whose comparison is computed by a scalar function, one call per lane.
    Setp(Comparison, ScalarOp),
    /// `setp` of packed halves: one predicate for the lower and one for the upper half.
    SetpHalves(Comparison, ScalarOp, ScalarOp),
    /// `set`: two comparison functions, one for the lower half (or the whole value) and one for the upper half.
    Set(Comparison, ScalarOp, ScalarOp, SetResultFormat),
    /// `slct`: the scalar function that chooses one of two sources, and the register class of these sources.
    Slct(ScalarOp, RegisterClass),
    Carry(CarryOp),
    Vector(VectorMove),
    Mov128,
    /// f16 or bf16 arithmetic without modifiers.
    Half(HalfOp),
    /// `lop3` that also writes the predicate `result != 0`, combined with a source predicate; the `bool` is true if the
    /// source predicate is negated.
    Lop3(PredicateCombination, bool),
}

impl RareOp {
    /// Executes the instruction for the lanes of `mask`.
    #[inline(never)]
    pub fn run(&self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        match self {
            RareOp::Scalar(scalar, to) => scalar.run(r, s, mask, *to),
            RareOp::Setp(compare, scalar) => {
                let holds = lanes_where_comparison_holds(scalar, r, s, mask);
                compare.write_predicates(r, s, mask, holds);
            }
            RareOp::SetpHalves(compare, low, high) => {
                for (i, scalar) in [low, high].into_iter().enumerate() {
                    let (p, u) = compare.combine_with_predicate(r, s, lanes_where_comparison_holds(scalar, r, s, mask));
                    set_predicate(r, s.dst[i], p, mask, u);
                }
            }
            RareOp::Set(compare, low, high, set) => {
                let (p, u) = compare.combine_with_predicate(r, s, lanes_where_comparison_holds(low, r, s, mask));
                let q = if set.halves {
                    compare.combine_with_predicate(r, s, lanes_where_comparison_holds(high, r, s, mask)).0
                } else {
                    0
                };
                let bit = |mask: u32, i: usize| mask >> i & 1;
                let out = std::array::from_fn(|i| (bit(p, i) * set.truth) | ((bit(q, i) * set.truth) << 16));
                r.set(s.dst[0], &out, mask);
                mark_undefined_lanes(r, s.dst[0], mask, u);
            }
            RareOp::Slct(scalar, class) => {
                // A result lane is undefined where the chosen source is undefined, and where the third source, which
                // decides the choice, is undefined.
                let (u, c) = ([0, 1].map(|i| r.undefined[s.src[i] as usize]), r.undefined[s.src[2] as usize]);
                let first = lane_mask(&scalar.selects_first_source(r, s, mask));
                scalar.run(r, s, mask, *class);
                mark_undefined_lanes(r, s.dst[0], mask, u[0] & first | u[1] & !first | c);
            }
            RareOp::Carry(carry) => carry.run(r, s, mask),
            RareOp::Vector(vector) => vector.run(r, s, mask),
            RareOp::Half(half) => half.run(r, s, mask),
            RareOp::Mov128 => {
                let lanes = load_128bit_lanes(r, s.src[0]);
                let u = r.undefined[s.src[0] as usize];
                store_128bit_lanes(r, s.dst[0], &lanes, mask);
                mark_undefined_lanes(r, s.dst[0], mask, u);
            }
            RareOp::Lop3(combine, not) => {
                let value = lop3_value(r, s);
                let q = r.predicates[s.src[4] as usize] ^ 0u32.wrapping_sub(*not as u32);
                let set = (0..32).fold(0, |mask, i| mask | ((value[i] != 0) as u32) << i);
                let u = undefined_lanes::<3>(r, s);
                let up = u | r.undefined_predicates[s.src[4] as usize];
                let p = if *combine == PredicateCombination::And { set & q } else { set | q };
                r.set(s.dst[0], &value, mask);
                mark_undefined_lanes(r, s.dst[0], mask, u);
                set_predicate(r, s.dst[1], p, mask, up);
            }
        }
    }
}
