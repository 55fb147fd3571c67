//! Decodes random opcodes and executes those that are valid, which must not panic.

use super::{Random, register_operands};
use crate::alu::{OperandSlots, decode};
use crate::ptx::ast::Operand;
use crate::regs::{RegisterRow, Registers};

#[test]
fn random_opcodes_never_panic() {
    let words = "mov add sub mul mad fma div rem min max abs neg not and or xor shl shr shf lop3 prmt setp set selp slct testp cvt \
                 pack popc clz bfe bfi bfind brev fns bmsk szext dp4a dp2a addc subc madc mul24 mad24 sad copysign rcp sqrt rsqrt ex2 lg2 \
                 sin cos tanh lo hi wide rn rz rm rp rna rni rzi ftz sat relu satfinite approx full NaN xorsign abs cc l r wrap \
                 clamp eq ne lt le equ nan shiftamt f4e rc8 pred b8 b16 b32 b64 b128 u8 u16 u32 u64 s8 s16 s32 s64 f16 f16x2 bf16 \
                 bf16x2 f32 f64 e4m3x2 e5m2x2 tf32 s16x2 u16x2 x";
    let words: Vec<&str> = words.split_whitespace().collect();
    let mut random = Random(5);
    let names = words.iter().position(|w| *w == "lo").expect("the first modifier");
    let mut lengths = Random(6);
    let random_length = |r: &mut Random| r.next() % 4;
    let mut known = 0;
    for _ in 0..400_000 {
        // An opcode is a name, modifiers and a type. With probability 1/16, `word` draws a word of another kind.
        let mut word = |from: usize, to: usize| {
            let (from, to) = if random.next().is_multiple_of(16) { (0, words.len()) } else { (from, to) };
            words[from + random.next() as usize % (to - from)]
        };
        let mut opcode = vec![word(0, names)];
        opcode.extend((0..random_length(&mut lengths)).map(|_| word(names, words.len() - 25)));
        opcode.push(word(words.len() - 25, words.len()));
        let mut operands = register_operands(random.next() as usize % 6);
        for o in &mut operands {
            match random.next() % 12 {
                0 => *o = Operand::Vector(register_operands(random.next() as usize % 5)),
                1 => *o = Operand::Not(0),
                2 => *o = Operand::Pair(Box::new(Operand::Sink), Box::new(Operand::Register(9))),
                _ => {}
            }
        }
        let Some((op, wants)) = decode(&opcode.join("."), &operands, &[]) else { continue };
        known += 1;
        assert!(wants.dst.len() <= 4 && wants.src.len() <= 5);
        let mut r = Registers {
            rows: (0..16).map(|_| RegisterRow(std::array::from_fn(|_| random.random_or_edge_case() as u32))).collect(),
            undefined: vec![0; 16],
            predicates: vec![random.next() as u32; 16],
            undefined_predicates: vec![0; 16],
            ..Registers::default()
        };
        op.run(&mut r, &OperandSlots { dst: [0, 4, 8, 12], src: [12, 8, 4, 0, 4], carry: 3 }, random.next() as u32);
    }
    assert!(known > 1000, "only {known} were instructions");
}
