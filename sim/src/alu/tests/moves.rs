//! Tests of `mov` between registers and vectors of registers.

use super::{Random, check_instruction_with, register_operands};
use crate::alu::{OperandSlots, decode};
use crate::ptx::ast::Operand;
use crate::regs::{RegisterRow, Registers};

#[test]
fn vectors_are_packed_and_unpacked_with_the_first_lowest() {
    let vector = |n: usize| Operand::Vector(register_operands(n));
    for (opcode, n, bits) in
        [("mov.b32", 2, 16), ("mov.b64", 2, 32), ("mov.b16", 2, 8), ("mov.b32", 4, 8), ("mov.b64", 4, 16)]
    {
        let mut any = |r: &mut Random, _: usize| r.next();
        check_instruction_with(opcode, &[Operand::Register(0), vector(n)], &[], &mut any, |s| {
            vec![s.iter().rev().fold(0, |d, x| d << bits | x)]
        });
        check_instruction_with(opcode, &[vector(n), Operand::Register(0)], &[], &mut any, |s| {
            (0..n).map(|i| s[0] >> (bits * i) & ((1 << bits) - 1)).collect()
        });
    }
    // Packs two 64-bit registers into a 128-bit register and unpacks them.
    let mut r = Registers { rows: vec![RegisterRow([0; 32]); 12], undefined: vec![0; 12], ..Registers::default() };
    for (slot, salt) in [(0, 3u64), (2, 5)] {
        r.set64(slot, &std::array::from_fn(|i| (i as u64 + salt) << 40 | salt), u32::MAX);
    }
    let (pack, _) = decode("mov.b128", &[Operand::Register(0), vector(2)], &[]).expect("packs");
    let (unpack, _) = decode("mov.b128", &[vector(2), Operand::Register(0)], &[]).expect("unpacks");
    pack.run(&mut r, &OperandSlots { dst: [4, 0, 0, 0], src: [0, 2, 0, 0, 0], carry: 0 }, u32::MAX);
    let before = (r.get64(0), r.get64(2));
    unpack.run(&mut r, &OperandSlots { dst: [2, 0, 0, 0], src: [4, 0, 0, 0, 0], carry: 0 }, 0);
    unpack.run(&mut r, &OperandSlots { dst: [8, 10, 0, 0], src: [4, 0, 0, 0, 0], carry: 0 }, u32::MAX);
    assert_eq!((r.get64(8), r.get64(10)), before);
}
