//! Instructions that are seldom executed and are more than a scalar function: carries, vectors, predicates beside results.

use super::cold::Cold;
use super::halves::HalfOp;
use super::hot::{Combine, Compare, lop3_value};
use super::lanes::{define, set_predicate, undefined};
use super::{OperandSlots, RegisterClass};
use crate::regs::{Registers, Slot};

/// Extended-precision arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extended {
    /// `a + b`
    Add,
    /// `a − b` as `a + ¬b + 1`: the carry is 0 where there is a borrow, which `addc` after `sub.cc` can see, as on an H200.
    Sub,
    /// The low half of `a · b`, plus `c`.
    MadLow,
    /// The high half of `a · b`, plus `c`.
    MadHigh,
}

/// `add.cc`, `addc` and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carry {
    pub op: Extended,
    /// 32 or 64.
    pub bits: u8,
    pub signed: bool,
    /// Reads the carry.
    pub input: bool,
    /// Writes the carry.
    pub output: bool,
}

/// `mov` between a register and a vector of narrower ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector {
    /// Into one register, else out of one.
    pub pack: bool,
    /// Bits of an element.
    pub bits: u8,
    /// How many.
    pub count: u8,
}

/// What `set` writes for true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    pub truth: u32,
    /// Halves compared one by one; else one comparison.
    pub halves: bool,
}

/// A seldom executed operation.
#[derive(Clone, Copy, Debug)]
pub enum Rare {
    /// A scalar function.
    Cold(Cold, RegisterClass),
    /// `setp` by a scalar function.
    Setp(Compare, Cold),
    /// `setp` of two halves: a predicate each.
    SetpHalves(Compare, Cold, Cold),
    /// `set`, by functions of the lower and the upper half (or of the whole: the first).
    Set(Compare, Cold, Cold, Set),
    /// `slct`: the class of what is chosen, and the choosing function.
    Slct(Cold, RegisterClass),
    Carry(Carry),
    Vector(Vector),
    Mov128,
    /// Plain arithmetic on halves.
    Half(HalfOp),
    /// `lop3` with a predicate: result not zero, combined.
    Lop3(Combine, bool),
}

impl Rare {
    /// Executes for the lanes of `mask`.
    #[inline(never)]
    pub fn run(&self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        match self {
            Rare::Cold(cold, to) => cold.run(r, s, mask, *to),
            Rare::Setp(compare, cold) => {
                let holds = holds(cold, r, s, mask);
                compare.finish(r, s, mask, holds);
            }
            Rare::SetpHalves(compare, low, high) => {
                for (i, cold) in [low, high].into_iter().enumerate() {
                    let (p, u) = compare.combined(r, s, holds(cold, r, s, mask));
                    set_predicate(r, s.dst[i], p, mask, u);
                }
            }
            Rare::Set(compare, low, high, set) => {
                let (p, u) = compare.combined(r, s, holds(low, r, s, mask));
                let q = if set.halves { compare.combined(r, s, holds(high, r, s, mask)).0 } else { 0 };
                let bit = |m: u32, i: usize| m >> i & 1;
                let out = std::array::from_fn(|i| (bit(p, i) * set.truth) | ((bit(q, i) * set.truth) << 16));
                r.set(s.dst[0], &out, mask);
                define(r, s.dst[0], mask, u);
            }
            Rare::Slct(cold, class) => {
                // Undefined only by what was chosen and by what chose.
                let (u, c) = ([0, 1].map(|i| r.undefined[s.src[i] as usize]), r.undefined[s.src[2] as usize]);
                let first = bits(&cold.chosen(r, s, mask));
                cold.run(r, s, mask, *class);
                define(r, s.dst[0], mask, u[0] & first | u[1] & !first | c);
            }
            Rare::Carry(carry) => carry.run(r, s, mask),
            Rare::Vector(vector) => vector.run(r, s, mask),
            Rare::Half(half) => half.run(r, s, mask),
            Rare::Mov128 => {
                let lanes = get128(r, s.src[0]);
                let u = r.undefined[s.src[0] as usize];
                set128(r, s.dst[0], &lanes, mask);
                define(r, s.dst[0], mask, u);
            }
            Rare::Lop3(combine, not) => {
                let value = lop3_value(r, s);
                let q = r.predicates[s.src[4] as usize] ^ 0u32.wrapping_sub(*not as u32);
                let set = (0..32).fold(0, |m, i| m | ((value[i] != 0) as u32) << i);
                let u = undefined::<3>(r, s);
                let up = u | r.undefined_predicates[s.src[4] as usize];
                let p = if *combine == Combine::And { set & q } else { set | q };
                r.set(s.dst[0], &value, mask);
                define(r, s.dst[0], mask, u);
                set_predicate(r, s.dst[1], p, mask, up);
            }
        }
    }
}

/// The lanes in which a function gives 1.
fn holds(cold: &Cold, r: &Registers, s: &OperandSlots, mask: u32) -> u32 {
    bits(&cold.results(r, s, mask).0)
}

/// Bit 0 of each lane.
fn bits(lanes: &[u64; 32]) -> u32 {
    (0..32).fold(0, |m, i| m | ((lanes[i] & 1) as u32) << i)
}

impl Carry {
    fn run(self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        let sources = if matches!(self.op, Extended::MadLow | Extended::MadHigh) { 3 } else { 2 };
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
        define(r, s.dst[0], mask, u);
        if self.output {
            set_predicate(r, s.carry, carries, mask, u);
        }
    }

    /// The result and the carry out of it.
    fn lane(self, a: u64, b: u64, c: u64, carry: u128) -> (u64, bool) {
        let ones = super::int::ones(self.bits as u32) as u128;
        let wide = |x: u64| super::int::extend(x, self.bits as u32, self.signed);
        let product = wide(a).wrapping_mul(wide(b)) as u128;
        let sum = match self.op {
            Extended::Add => a as u128 + b as u128 + carry,
            Extended::Sub => a as u128 + (b as u128 ^ ones) + if self.input { carry } else { 1 },
            Extended::MadLow => (product & ones) + c as u128 + carry,
            Extended::MadHigh => (product >> self.bits & ones) + c as u128 + carry,
        };
        ((sum & ones) as u64, sum > ones)
    }
}

impl Vector {
    fn run(self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        let (bits, count) = (self.bits as u32, self.count as usize);
        let whole = bits * count as u32;
        let ones = super::int::ones(bits) as u128;
        if self.pack {
            let mut lanes = [0u128; 32];
            let mut u = 0;
            for i in 0..count {
                let element = load(r, s.src[i], bits);
                u |= r.undefined[s.src[i] as usize];
                for lane in 0..32 {
                    lanes[lane] |= (element[lane] & ones) << (bits * i as u32);
                }
            }
            store(r, s.dst[0], &lanes, whole, mask);
            return define(r, s.dst[0], mask, u);
        }
        let lanes = load(r, s.src[0], whole);
        let u = r.undefined[s.src[0] as usize];
        for i in 0..count {
            store(r, s.dst[i], &lanes.map(|x| x >> (bits * i as u32) & ones), bits, mask);
            define(r, s.dst[i], mask, u);
        }
    }
}

fn load(r: &Registers, slot: Slot, bits: u32) -> [u128; 32] {
    match bits {
        128 => get128(r, slot),
        64 => r.get64(slot).map(|x| x as u128),
        _ => r.get(slot).map(|x| x as u128),
    }
}

fn store(r: &mut Registers, slot: Slot, value: &[u128; 32], bits: u32, mask: u32) {
    match bits {
        128 => set128(r, slot, value, mask),
        64 => r.set64(slot, &value.map(|x| x as u64), mask),
        _ => r.set(slot, &value.map(|x| x as u32), mask),
    }
}

/// Four rows as 32 lanes of 128 bits.
fn get128(r: &Registers, slot: Slot) -> [u128; 32] {
    let lanes: &[u128] = bytemuck::cast_slice(&r.rows[slot as usize..slot as usize + 4]);
    std::array::from_fn(|i| lanes[i])
}

fn set128(r: &mut Registers, slot: Slot, value: &[u128; 32], mask: u32) {
    let lanes: &mut [u128] = bytemuck::cast_slice_mut(&mut r.rows[slot as usize..slot as usize + 4]);
    for i in (0..32).filter(|i| mask >> i & 1 != 0) {
        lanes[i] = value[i];
    }
}
