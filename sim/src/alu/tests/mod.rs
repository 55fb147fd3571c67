//! Compares arithmetic instructions with independent definitions.

mod blackwell;
mod carry;
mod compare;
mod convert;
mod hardware;
mod integer;
mod logic;
mod moves;
mod random_opcodes;
mod rounding;
mod special;

use super::{OperandSlots, RegisterClass, decode};
use crate::ptx::ast::{Operand, RegisterDecl};
use crate::regs::{RegisterRow, Registers};

/// A xorshift64* generator of random test data.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns uniform random bits, or an edge case: few bits set, sign bits, all ones, special float values.
    pub fn random_or_edge_case(&mut self) -> u64 {
        let x = self.next();
        let small = self.next() % 70;
        match self.next() % 8 {
            0 => small,
            1 => 0u64.wrapping_sub(small),
            2 => 1u64.checked_shl(small as u32).unwrap_or(0),
            3 => (1u64.checked_shl(small as u32).unwrap_or(0)).wrapping_sub(1) ^ 0x8000_0000,
            4 => {
                let special =
                    [0, 0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7fc0_0001, 1, 0x7f_ffff, 0x80_0000, 0x3f80_0000];
                special[x as usize % special.len()]
            }
            _ => x,
        }
    }
}

/// The sources and results of one instruction of a warp, as 64 bits per lane (a predicate is 0 or 1).
pub struct WarpRun {
    pub sources: Vec<[u64; 32]>,
    pub results: Vec<[u64; 32]>,
}

/// Runs an instruction on the values that `source` returns for each source and lane.
///
/// Also checks that a partial mask leaves the other lanes unchanged, and that an undefined lane of any source makes
/// the result undefined in exactly that lane (unless another source decides the result).
pub fn run_instruction(
    opcode: &str,
    operands: &[Operand],
    registers: &[RegisterDecl],
    source: &mut dyn FnMut(usize) -> u64,
) -> WarpRun {
    let (op, wants) = decode(opcode, operands, registers).unwrap_or_else(|| panic!("{opcode} is unknown"));
    let empty = Registers {
        rows: vec![RegisterRow([0x5555_5555; 32]); 64],
        undefined: vec![0; 64],
        predicates: vec![0x5555_5555; 16],
        undefined_predicates: vec![0; 16],
        ..Registers::default()
    };
    let mut r = empty;
    let mut s = OperandSlots { carry: 15, ..OperandSlots::default() };
    let mut sources = Vec::new();
    for (i, want) in wants.src.iter().enumerate() {
        s.src[i] = if want.class == RegisterClass::Pred { 8 + i as u32 } else { 24 + 4 * i as u32 };
        let bits = want.ty.bits();
        let values: [u64; 32] =
            std::array::from_fn(|_| source(i) & if bits >= 64 { u64::MAX } else { (1 << bits) - 1 });
        put(&mut r, want.class, s.src[i], &values);
        sources.push(values);
    }
    for (i, want) in wants.dst.iter().enumerate() {
        s.dst[i] = if want.class == RegisterClass::Pred { i as u32 } else { 4 * i as u32 };
    }
    let before = r.clone();
    op.run(&mut r, &s, u32::MAX);
    let read = |r: &Registers| -> Vec<[u64; 32]> {
        wants.dst.iter().enumerate().map(|(i, want)| get(r, want.class, s.dst[i])).collect()
    };
    let results = read(&r);
    let mut masked = before.clone();
    let mask = 0x0f0f_1234;
    op.run(&mut masked, &s, mask);
    let old = read(&before);
    for (i, lanes) in read(&masked).iter().enumerate() {
        for lane in 0..32 {
            let expected = if mask >> lane & 1 != 0 { results[i][lane] } else { old[i][lane] };
            assert_eq!(lanes[lane], expected, "{opcode}: lane {lane} under a mask");
        }
    }
    let one_source_may_decide = ["selp", "slct", "and.pred", "or.pred"].iter().any(|o| opcode.starts_with(o));
    if !one_source_may_decide {
        // The table operand of `lop3` is an immediate and always defined.
        let registers = if opcode.starts_with("lop3") { 3 } else { wants.src.len() };
        for (i, want) in wants.src[..registers].iter().enumerate() {
            let mut r = before.clone();
            let u = if want.class == RegisterClass::Pred { &mut r.undefined_predicates } else { &mut r.undefined };
            u[s.src[i] as usize] = 1 << 5 | 1 << 20;
            op.run(&mut r, &s, 0xffff);
            for (want, slot) in wants.dst.iter().zip(s.dst) {
                let u = if want.class == RegisterClass::Pred { &r.undefined_predicates } else { &r.undefined };
                assert_eq!(u[slot as usize], 1 << 5, "{opcode}: undefinedness of source {i}");
            }
        }
    }
    WarpRun { sources, results }
}

fn put(r: &mut Registers, class: RegisterClass, slot: u32, values: &[u64; 32]) {
    match class {
        RegisterClass::Pred => {
            r.predicates[slot as usize] = (0..32).fold(0, |m, i| m | ((values[i] & 1) as u32) << i);
        }
        RegisterClass::B32 => r.set(slot, &values.map(|v| v as u32), u32::MAX),
        _ => r.set64(slot, values, u32::MAX),
    }
}

fn get(r: &Registers, class: RegisterClass, slot: u32) -> [u64; 32] {
    match class {
        RegisterClass::Pred => std::array::from_fn(|i| (r.predicates[slot as usize] >> i & 1) as u64),
        RegisterClass::B32 => r.get(slot).map(|v| v as u64),
        _ => r.get64(slot),
    }
}

/// Returns `n` register operands.
pub fn register_operands(n: usize) -> Vec<Operand> {
    vec![Operand::Register(0); n]
}

/// Compares an instruction with `expected` on random edge-case data. The instruction has one destination and
/// `source_count` register sources.
pub fn check_instruction(opcode: &str, source_count: usize, expected: impl Fn(&[u64]) -> u64) {
    check_instruction_with(
        opcode,
        &register_operands(1 + source_count),
        &[],
        &mut |random, _| random.random_or_edge_case(),
        |s| vec![expected(s)],
    );
}

/// Compares an instruction with `expected`, as [`check_instruction`] does, but for any operands, random sources, and
/// any number of results.
pub fn check_instruction_with(
    opcode: &str,
    operands: &[Operand],
    registers: &[RegisterDecl],
    source: &mut dyn FnMut(&mut Random, usize) -> u64,
    expected: impl Fn(&[u64]) -> Vec<u64>,
) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..40 {
        let ran = run_instruction(opcode, operands, registers, &mut |i| source(&mut random, i));
        for lane in 0..32 {
            let s: Vec<u64> = ran.sources.iter().map(|v| v[lane]).collect();
            let got: Vec<u64> = ran.results.iter().map(|v| v[lane]).collect();
            assert_eq!(got, expected(&s), "{opcode} of {s:x?} (results in hexadecimal: {got:x?})");
        }
    }
}

/// Returns the low `bits` of `x` as a signed or unsigned number.
pub fn as_integer(x: u64, bits: u32, signed: bool) -> i128 {
    let x = x as i128 & ((1 << bits) - 1);
    if signed && x >> (bits - 1) != 0 { x - (1 << bits) } else { x }
}

/// Returns the low `bits` of a number.
pub fn low_bits(x: i128, bits: u32) -> u64 {
    (x & ((1 << bits) - 1)) as u64
}

/// Returns the low 32 bits as a signed number.
pub fn low_s32(x: u64) -> i64 {
    x as u32 as i32 as i64
}
