//! Tests arithmetic with the carry flag against 96-bit integers.

use super::{Random, register_operands};
use crate::alu::{OperandSlots, decode};
use crate::regs::{RegisterRow, Registers};

/// Executes a program on one warp with the 32-bit registers `rows` and returns the registers. Each instruction is an
/// opcode, the index of its destination register, and the indices of its source registers; predicate 0 is the carry
/// flag.
fn sequence(program: &[(&str, u32, &[u32])], rows: &[[u32; 32]]) -> Registers {
    let mut r = Registers {
        rows: rows.iter().map(|x| RegisterRow(*x)).collect(),
        undefined: vec![0; rows.len()],
        predicates: vec![0x1234_5678; 2],
        undefined_predicates: vec![0; 2],
        ..Registers::default()
    };
    for (opcode, dst, src) in program {
        let (op, wants) = decode(opcode, &register_operands(1 + src.len()), &[]).expect(opcode);
        assert!(wants.carry, "{opcode}");
        let mut s = OperandSlots { carry: 0, ..OperandSlots::default() };
        s.dst[0] = *dst;
        s.src[..src.len()].copy_from_slice(src);
        op.run(&mut r, &s, u32::MAX);
    }
    r
}

#[test]
fn carry_chains_match_96_bit_arithmetic() {
    let mut random = Random(3);
    for _ in 0..200 {
        let mut rows = [[0u32; 32]; 12];
        for row in &mut rows[..6] {
            *row = std::array::from_fn(|_| random.random_or_edge_case() as u32);
        }
        let wide = |r: &Registers, at: usize, lane: usize| {
            (0..3).fold(0u128, |x, i| x | (r.rows[at + i].0[lane] as u128) << (32 * i))
        };
        let ones = (1u128 << 96) - 1;
        let sum = sequence(&[("add.cc.u32", 6, &[0, 3]), ("addc.cc.u32", 7, &[1, 4]), ("addc.u32", 8, &[2, 5])], &rows);
        let difference =
            sequence(&[("sub.cc.s32", 6, &[0, 3]), ("subc.cc.s32", 7, &[1, 4]), ("subc.s32", 8, &[2, 5])], &rows);
        // Adds the 64-bit product of registers 0 and 1 to the 96-bit number whose 32-bit words are registers 3
        // (lowest), 4 and 5.
        let fused = sequence(
            &[("mad.lo.cc.u32", 6, &[0, 1, 3]), ("madc.hi.cc.u32", 7, &[0, 1, 4]), ("addc.u32", 8, &[9, 5])],
            &rows,
        );
        for lane in 0..32 {
            let (a, b) = (wide(&sum, 0, lane), wide(&sum, 3, lane));
            assert_eq!(wide(&sum, 6, lane), (a + b) & ones);
            assert_eq!(wide(&difference, 6, lane), a.wrapping_sub(b) & ones);
            let product = sum.rows[0].0[lane] as u128 * sum.rows[1].0[lane] as u128;
            assert_eq!(wide(&fused, 6, lane), (product + b) & ones);
        }
    }
}
