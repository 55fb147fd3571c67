//! The everyday instructions, inlined into the caller's loop; all others are behind one call.

use super::OperandSlots;
use super::f32s::{self, exp2, input, output};
use super::lanes::{compare, define, map1, map2, map3, set_predicate, undefined};
use super::rare::Rare;
use super::soft::add_odd;
use crate::regs::{Registers, Slot};

/// How a comparison is made of `a < b`, `a ≤ b` and `a = b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// `a < b`
    Less,
    /// `a ≤ b`
    LessEqual,
    /// `a = b`
    Equal,
    /// Both are numbers, and `a ≠ b`.
    Unequal,
    /// Both are numbers.
    Numbers,
}

/// What a predicate result is combined with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Nothing.
    None,
    /// `.and`
    And,
    /// `.or`
    Or,
    /// `.xor`
    Xor,
}

/// A comparison: `(b, a)` if `swap`, negated if `invert`, then combined with the predicate in `src[2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare {
    pub relation: Relation,
    pub swap: bool,
    pub invert: bool,
    pub combine: Combine,
    /// The combining predicate is negated.
    pub not: bool,
    /// There is a second destination: the combination with the comparison negated.
    pub pair: bool,
}

impl Compare {
    /// Writes the destinations, given the lanes in which the relation holds.
    #[inline(always)]
    pub fn finish(self, r: &mut Registers, s: &OperandSlots, mask: u32, holds: u32) {
        // Both before either is written: a destination may be the combining predicate.
        let (p, u) = self.combined(r, s, holds);
        if self.pair {
            let (q, _) = self.combined(r, s, !holds);
            set_predicate(r, s.dst[1], q, mask, u);
        }
        set_predicate(r, s.dst[0], p, mask, u);
    }

    /// Inverted and combined as asked, and where that is undefined.
    #[inline(always)]
    pub fn combined(self, r: &Registers, s: &OperandSlots, holds: u32) -> (u32, u32) {
        let x = holds ^ 0u32.wrapping_sub(self.invert as u32);
        let u = undefined::<2>(r, s);
        if self.combine == Combine::None {
            return (x, u);
        }
        let c = r.predicates[s.src[2] as usize] ^ 0u32.wrapping_sub(self.not as u32);
        let value = match self.combine {
            Combine::And => x & c,
            Combine::Or => x | c,
            _ => x ^ c,
        };
        (value, u | r.undefined_predicates[s.src[2] as usize])
    }

    #[inline(always)]
    fn operands(self, s: &OperandSlots) -> (Slot, Slot) {
        if self.swap { (s.src[1], s.src[0]) } else { (s.src[0], s.src[1]) }
    }

    /// `flip` is added to both operands before they are compared as signed numbers.
    #[inline(always)]
    fn run32(self, r: &mut Registers, s: &OperandSlots, mask: u32, flip: u32) {
        let (a, b) = self.operands(s);
        let holds = if self.relation == Relation::Less {
            compare::<u32>(r, a, b, |a, b| ((a ^ flip) as i32) < (b ^ flip) as i32)
        } else {
            compare::<u32>(r, a, b, |a, b| a == b)
        };
        self.finish(r, s, mask, holds);
    }

    #[inline(always)]
    fn run64(self, r: &mut Registers, s: &OperandSlots, mask: u32, flip: u64) {
        let (a, b) = self.operands(s);
        let holds = if self.relation == Relation::Less {
            compare::<u64>(r, a, b, |a, b| ((a ^ flip) as i64) < (b ^ flip) as i64)
        } else {
            compare::<u64>(r, a, b, |a, b| a == b)
        };
        self.finish(r, s, mask, holds);
    }

    #[inline(always)]
    fn run_f32(self, r: &mut Registers, s: &OperandSlots, mask: u32, ftz: bool) {
        let (a, b) = self.operands(s);
        let x = |a: u32| input(a, ftz);
        let holds = match self.relation {
            Relation::Less => compare::<u32>(r, a, b, |a, b| x(a) < x(b)),
            Relation::LessEqual => compare::<u32>(r, a, b, |a, b| x(a) <= x(b)),
            Relation::Equal => compare::<u32>(r, a, b, |a, b| x(a) == x(b)),
            Relation::Unequal => compare::<u32>(r, a, b, |a, b| (x(a) < x(b)) | (x(a) > x(b))),
            Relation::Numbers => compare::<u32>(r, a, b, |a, b| !f32s::is_nan(a) & !f32s::is_nan(b)),
        };
        self.finish(r, s, mask, holds);
    }
}

/// Logic on predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logic {
    /// `a & b`
    And,
    /// `a | b`
    Or,
    /// `a ^ b`
    Xor,
    /// `!a`
    Not,
    /// `a`
    Copy,
}

/// A decoded operation. `bool` payloads of f32 operations are `.ftz`.
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
    SetpS32(Compare),
    SetpU32(Compare),
    SetpS64(Compare),
    SetpU64(Compare),
    SetpF32(Compare, bool),
    Selp32,
    Selp64,
    PredicateLogic(Logic, bool, bool),
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
    /// Everything else.
    Rare(Rare),
}

impl Op {
    /// Executes for the lanes of `mask`.
    #[inline(always)]
    pub fn run(&self, r: &mut Registers, s: &OperandSlots, m: u32) {
        match *self {
            Op::Mov32 => map1(r, s, m, |a: u32| a),
            Op::Mov64 => map1(r, s, m, |a: u64| a),
            Op::Add32 => map2(r, s, m, |a: u32, b: u32| a.wrapping_add(b)),
            Op::Sub32 => map2(r, s, m, |a: u32, b: u32| a.wrapping_sub(b)),
            Op::MulLo32 => map2(r, s, m, |a: u32, b: u32| a.wrapping_mul(b)),
            Op::MadLo32 => map3(r, s, m, |a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c)),
            Op::Add64 => map2(r, s, m, |a: u64, b: u64| a.wrapping_add(b)),
            Op::Sub64 => map2(r, s, m, |a: u64, b: u64| a.wrapping_sub(b)),
            Op::MulLo64 => map2(r, s, m, |a: u64, b: u64| a.wrapping_mul(b)),
            Op::MadLo64 => map3(r, s, m, |a: u64, b: u64, c: u64| a.wrapping_mul(b).wrapping_add(c)),
            Op::MulWideS32 => map2(r, s, m, |a: u32, b: u32| (a as i32 as i64 * b as i32 as i64) as u64),
            Op::MulWideU32 => map2(r, s, m, |a: u32, b: u32| a as u64 * b as u64),
            Op::MadWideS32 => {
                map3(r, s, m, |a: u32, b: u32, c: u64| ((a as i32 as i64 * b as i32 as i64) as u64).wrapping_add(c))
            }
            Op::MadWideU32 => map3(r, s, m, |a: u32, b: u32, c: u64| (a as u64 * b as u64).wrapping_add(c)),
            Op::MulHiU32 => map2(r, s, m, |a: u32, b: u32| ((a as u64 * b as u64) >> 32) as u32),
            Op::Shl32 => map2(r, s, m, |a: u32, b: u32| if b < 32 { a << (b & 31) } else { 0 }),
            Op::ShrU32 => map2(r, s, m, |a: u32, b: u32| if b < 32 { a >> (b & 31) } else { 0 }),
            Op::ShrS32 => map2(r, s, m, |a: u32, b: u32| (a as i32 >> if b < 31 { b } else { 31 }) as u32),
            Op::Shl64 => map2(r, s, m, |a: u64, b: u32| if b < 64 { a << (b & 63) } else { 0 }),
            Op::ShrU64 => map2(r, s, m, |a: u64, b: u32| if b < 64 { a >> (b & 63) } else { 0 }),
            Op::ShrS64 => map2(r, s, m, |a: u64, b: u32| (a as i64 >> if b < 63 { b } else { 63 }) as u64),
            Op::And32 => map2(r, s, m, |a: u32, b: u32| a & b),
            Op::Or32 => map2(r, s, m, |a: u32, b: u32| a | b),
            Op::Xor32 => map2(r, s, m, |a: u32, b: u32| a ^ b),
            Op::Not32 => map1(r, s, m, |a: u32| !a),
            Op::Neg32 => map1(r, s, m, |a: u32| a.wrapping_neg()),
            Op::And64 => map2(r, s, m, |a: u64, b: u64| a & b),
            Op::Or64 => map2(r, s, m, |a: u64, b: u64| a | b),
            Op::Xor64 => map2(r, s, m, |a: u64, b: u64| a ^ b),
            Op::MinS32 => map2(r, s, m, |a: u32, b: u32| (a as i32).min(b as i32) as u32),
            Op::MaxS32 => map2(r, s, m, |a: u32, b: u32| (a as i32).max(b as i32) as u32),
            Op::MinU32 => map2(r, s, m, |a: u32, b: u32| a.min(b)),
            Op::MaxU32 => map2(r, s, m, |a: u32, b: u32| a.max(b)),
            Op::SetpS32(c) => c.run32(r, s, m, 0),
            Op::SetpU32(c) => c.run32(r, s, m, 1 << 31),
            Op::SetpS64(c) => c.run64(r, s, m, 0),
            Op::SetpU64(c) => c.run64(r, s, m, 1 << 63),
            Op::SetpF32(c, false) => c.run_f32(r, s, m, false),
            Op::SetpF32(c, true) => c.run_f32(r, s, m, true),
            Op::Selp32 => select::<u32>(r, s, m),
            Op::Selp64 => select::<u64>(r, s, m),
            Op::PredicateLogic(logic, not0, not1) => predicates(r, s, m, logic, not0, not1),
            Op::AddF32 => float2(r, s, m, false, |a, b| a + b),
            Op::AddFtzF32 => float2(r, s, m, true, |a, b| a + b),
            Op::SubF32 => float2(r, s, m, false, |a, b| a - b),
            Op::SubFtzF32 => float2(r, s, m, true, |a, b| a - b),
            Op::MulF32 => float2(r, s, m, false, |a, b| a * b),
            Op::MulFtzF32 => float2(r, s, m, true, |a, b| f32s::flushed(a as f64 * b as f64)),
            Op::FmaF32 => float3(r, s, m, false, |a, b, c| a.mul_add(b, c)),
            Op::FmaFtzF32 => float3(r, s, m, true, |a, b, c| f32s::flushed(add_odd(a as f64 * b as f64, c as f64))),
            // A loop each: a choice inside would be made in every lane.
            Op::MinF32(false) => map2(r, s, m, f32s::extreme::<false>),
            Op::MaxF32(false) => map2(r, s, m, f32s::extreme::<true>),
            Op::MinF32(true) => {
                map2(r, s, m, |a, b| f32s::extreme::<false>(f32s::flush(a, true), f32s::flush(b, true)))
            }
            Op::MaxF32(true) => map2(r, s, m, |a, b| f32s::extreme::<true>(f32s::flush(a, true), f32s::flush(b, true))),
            Op::NegF32(ftz) => map1(r, s, m, |a: u32| output(-input(a, ftz), false)),
            Op::AbsF32(ftz) => map1(r, s, m, |a: u32| output(input(a, ftz).abs(), false)),
            Op::Ex2F32(ftz) => map1(r, s, m, |a: u32| output(exp2(input(a, ftz)), ftz)),
            Op::CvtBf16x2 => map2(r, s, m, |a: u32, b: u32| f32s::to_bf16(a) << 16 | f32s::to_bf16(b)),
            Op::CvtBf16 => map1(r, s, m, f32s::to_bf16),
            Op::CvtF32Bf16 => map1(r, s, m, |a: u32| output(f32::from_bits(a << 16), false)),
            Op::CvtF32S32 => map1(r, s, m, |a: u32| (a as i32 as f32).to_bits()),
            Op::CvtF32U32 => map1(r, s, m, |a: u32| (a as f32).to_bits()),
            Op::CvtS32F32(ftz) => map1(r, s, m, |a: u32| f32s::to_s32(input(a, ftz))),
            Op::CvtU32F32(ftz) => map1(r, s, m, |a: u32| f32s::to_u32(input(a, ftz))),
            Op::CvtF16x2 => map2(r, s, m, |a: u32, b: u32| f32s::to_f16(a) << 16 | f32s::to_f16(b)),
            Op::CvtF16 => map1(r, s, m, f32s::to_f16),
            Op::CvtF32F16 => map1(r, s, m, f32s::from_f16),
            Op::RcpF32(ftz) => map1(r, s, m, |a: u32| output(1.0 / input(a, ftz), ftz)),
            Op::SqrtF32(ftz) => map1(r, s, m, |a: u32| output(input(a, ftz).sqrt(), ftz)),
            Op::RsqrtF32(ftz) => map1(r, s, m, |a: u32| output((1.0 / (input(a, ftz) as f64).sqrt()) as f32, ftz)),
            Op::DivF32(false) => float2(r, s, m, false, |a, b| a / b),
            Op::DivF32(true) => float2(r, s, m, true, |a, b| f32s::flushed(a as f64 / b as f64)),
            Op::ShfLWrap => {
                map3(r, s, m, |a: u32, b: u32, c: u32| (((a as u64 | (b as u64) << 32) << (c & 31)) >> 32) as u32)
            }
            Op::ShfRWrap => map3(r, s, m, |a: u32, b: u32, c: u32| ((a as u64 | (b as u64) << 32) >> (c & 31)) as u32),
            Op::AddS16 => map2(r, s, m, |a: u32, b: u32| a.wrapping_add(b) & 0xffff),
            Op::MulLoS16 => map2(r, s, m, |a: u32, b: u32| a.wrapping_mul(b) & 0xffff),
            Op::AddF64 => map2(r, s, m, |a: u64, b: u64| (f64::from_bits(a) + f64::from_bits(b)).to_bits()),
            Op::MulF64 => map2(r, s, m, |a: u64, b: u64| (f64::from_bits(a) * f64::from_bits(b)).to_bits()),
            Op::FmaF64 => map3(r, s, m, |a: u64, b: u64, c: u64| {
                f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()
            }),
            Op::CvtS64S32 => map1(r, s, m, |a: u32| a as i32 as i64 as u64),
            Op::CvtU64U32 => map1(r, s, m, |a: u32| a as u64),
            Op::CvtLow32 => map1(r, s, m, |a: u64| a as u32),
            Op::CvtU16 => map1(r, s, m, |a: u32| a & 0xffff),
            Op::CvtS32S16 => map1(r, s, m, |a: u32| a as i16 as i32 as u32),
            Op::Lop3 => lop3(r, s, m),
            Op::Prmt => prmt(r, s, m),
            Op::BfeU32 => map3(r, s, m, |a: u32, pos: u32, len: u32| {
                let (pos, len) = (pos & 0xff, len & 0xff);
                let x = if pos < 32 { a >> (pos & 31) } else { 0 };
                if len < 32 { x & !(u32::MAX << (len & 31)) } else { x }
            }),
            Op::BfeS32 => map3(r, s, m, |a: u32, pos: u32, len: u32| {
                let (pos, len) = (pos & 0xff, len & 0xff);
                // Bits above the field, and those past the end of `a`, are copies of the field's top bit.
                let x = (a as i32 >> if pos < 31 { pos } else { 31 }) as u32;
                let drop = 32u32.saturating_sub(len);
                let kept = ((x << (drop & 31)) as i32 >> (drop & 31)) as u32;
                if len == 0 { 0 } else { kept }
            }),
            Op::Pack32 => map2(r, s, m, |low: u32, high: u32| low & 0xffff | high << 16),
            Op::Pack64 => map2(r, s, m, |low: u32, high: u32| low as u64 | (high as u64) << 32),
            Op::Unpack32 => unpack::<u32>(r, s, m, |a| a & 0xffff, |a| a >> 16),
            Op::Rare(ref rare) => rare.run(r, s, m),
            Op::Unpack64 => unpack::<u64>(r, s, m, |a| a as u32, |a| (a >> 32) as u32),
        }
    }
}

#[inline(always)]
fn float2(r: &mut Registers, s: &OperandSlots, m: u32, ftz: bool, f: impl Fn(f32, f32) -> f32) {
    map2(r, s, m, |a: u32, b: u32| output(f(input(a, ftz), input(b, ftz)), ftz));
}

#[inline(always)]
fn float3(r: &mut Registers, s: &OperandSlots, m: u32, ftz: bool, f: impl Fn(f32, f32, f32) -> f32) {
    map3(r, s, m, |a: u32, b: u32, c: u32| output(f(input(a, ftz), input(b, ftz), input(c, ftz)), ftz));
}

/// `selp`: undefined where the predicate or the chosen source is.
#[inline(always)]
fn select<A: super::lanes::Lane>(r: &mut Registers, s: &OperandSlots, m: u32) {
    let p = r.predicates[s.src[2] as usize];
    let (a, b) = (A::load(r, s.src[0]), A::load(r, s.src[1]));
    let mut d = [A::ZERO; 32];
    for i in 0..32 {
        d[i] = if p >> i & 1 != 0 { a[i] } else { b[i] };
    }
    A::store(r, s.dst[0], &d, m);
    let (ua, ub) = (r.undefined[s.src[0] as usize], r.undefined[s.src[1] as usize]);
    let u = ua & p | ub & !p | r.undefined_predicates[s.src[2] as usize];
    define(r, s.dst[0], m, u);
}

#[inline(always)]
fn predicates(r: &mut Registers, s: &OperandSlots, m: u32, logic: Logic, not0: bool, not1: bool) {
    let source = |i: usize, not: bool| {
        let slot = s.src[i] as usize;
        (r.predicates[slot] ^ 0u32.wrapping_sub(not as u32), r.undefined_predicates[slot])
    };
    let (a, ua) = source(0, not0);
    let (value, u) = match logic {
        Logic::Copy => (a, ua),
        Logic::Not => (!a, ua),
        Logic::And => (a & source(1, not1).0, ua | source(1, not1).1),
        Logic::Or => (a | source(1, not1).0, ua | source(1, not1).1),
        Logic::Xor => (a ^ source(1, not1).0, ua | source(1, not1).1),
    };
    set_predicate(r, s.dst[0], value, m, u);
}

/// Any function of three bits is a polynomial over GF(2): eight coefficients, found from the table once a warp.
#[inline(always)]
fn lop3(r: &mut Registers, s: &OperandSlots, m: u32) {
    let k = coefficients(r.rows[s.src[3] as usize].0[0]);
    map3(r, s, m, |a: u32, b: u32, c: u32| polynomial(&k, a, b, c));
}

/// The result of `lop3` in all lanes.
pub fn lop3_value(r: &Registers, s: &OperandSlots) -> [u32; 32] {
    let k = coefficients(r.rows[s.src[3] as usize].0[0]);
    let [a, b, c] = [0, 1, 2].map(|i| r.get(s.src[i]));
    std::array::from_fn(|i| polynomial(&k, a[i], b[i], c[i]))
}

#[inline(always)]
fn polynomial(&[one, c1, b1, bc, a1, ac, ab, abc]: &[u32; 8], a: u32, b: u32, c: u32) -> u32 {
    one ^ a & a1 ^ b & (b1 ^ a & ab) ^ c & (c1 ^ a & ac ^ b & (bc ^ a & abc))
}

/// Coefficients (all ones or zero) of the products of a (bit 2 of the index), b (bit 1) and c (bit 0): the Möbius transform
/// of the table.
#[inline(always)]
fn coefficients(table: u32) -> [u32; 8] {
    let t = table ^ (table & 0x55) << 1;
    let t = t ^ (t & 0x33) << 2;
    let t = t ^ (t & 0x0f) << 4;
    std::array::from_fn(|i| 0u32.wrapping_sub(t >> i & 1))
}

/// `prmt` in its default mode, fast where all lanes share the selector.
#[inline(always)]
fn prmt(r: &mut Registers, s: &OperandSlots, m: u32) {
    let selectors = r.get(s.src[2]);
    let first = selectors[0];
    let mut differ = 0;
    for x in selectors {
        differ |= x ^ first;
    }
    if differ != 0 {
        return map3(r, s, m, permute);
    }
    match first & 0xffff {
        0x5410 => return map3(r, s, m, |a: u32, b: u32, _: u32| a & 0xffff | b << 16),
        0x7632 => return map3(r, s, m, |a: u32, b: u32, _: u32| a >> 16 | b & 0xffff_0000),
        signs if signs & 0x8888 != 0 => return map3(r, s, m, permute),
        _ => {}
    }
    let shift = |byte: u32| (first >> (4 * byte) & 3) * 8;
    let of_b = |byte: u32| 0u32.wrapping_sub(first >> (4 * byte + 2) & 1);
    let (s0, s1, s2, s3) = (shift(0), shift(1), shift(2), shift(3));
    let (b0, b1, b2, b3) = (of_b(0), of_b(1), of_b(2), of_b(3));
    map3(r, s, m, |a: u32, b: u32, _: u32| {
        let byte = |of_b: u32, shift: u32| (a & !of_b | b & of_b) >> shift & 0xff;
        byte(b0, s0) | byte(b1, s1) << 8 | byte(b2, s2) << 16 | byte(b3, s3) << 24
    });
}

/// `prmt` of one lane: each nibble of the selector picks a byte of `b:a`, its top bit the byte's sign instead.
#[inline(always)]
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = a as u64 | (b as u64) << 32;
    let mut d = 0;
    for i in 0..4 {
        let pick = selector >> (4 * i);
        let x = (bytes >> ((pick & 7) * 8)) as u32 & 0xff;
        let x = if pick & 8 != 0 { 0u32.wrapping_sub(x >> 7) & 0xff } else { x };
        d |= x << (8 * i);
    }
    d
}

#[inline(always)]
fn unpack<A: super::lanes::Lane>(
    r: &mut Registers,
    s: &OperandSlots,
    m: u32,
    f: impl Fn(A) -> u32,
    g: impl Fn(A) -> u32,
) {
    let a = A::load(r, s.src[0]);
    let (mut low, mut high) = ([0u32; 32], [0u32; 32]);
    for i in 0..32 {
        low[i] = f(a[i]);
        high[i] = g(a[i]);
    }
    let u = r.undefined[s.src[0] as usize];
    r.set(s.dst[0], &low, m);
    r.set(s.dst[1], &high, m);
    define(r, s.dst[0], m, u);
    define(r, s.dst[1], m, u);
}
