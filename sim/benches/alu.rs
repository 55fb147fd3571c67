//! Times one simulated arithmetic instruction of a full warp, including its dispatch: `cargo bench -p reel-sim
//! --bench alu`.

use reel_sim::alu::{AluOp, OperandSlots, RegisterClass, decode};
use reel_sim::ptx::ast::Operand;
use reel_sim::regs::{RegisterRow, Registers};
use std::hint::black_box;
use std::time::Instant;

const OPCODES: &[&str] = &[
    "mov.u32",
    "mov.b64",
    "add.s32",
    "sub.s32",
    "mul.lo.s32",
    "mad.lo.s32",
    "add.s64",
    "mul.lo.s64",
    "mad.lo.s64",
    "mul.wide.s32",
    "mul.wide.u32",
    "shl.b32",
    "shr.s32",
    "shr.u64",
    "and.b32",
    "xor.b32",
    "setp.lt.s32",
    "setp.eq.u32",
    "setp.lt.u64",
    "setp.lt.f32",
    "setp.neu.ftz.f32",
    "selp.b32",
    "selp.b64",
    "add.f32",
    "add.ftz.f32",
    "mul.f32",
    "fma.rn.f32",
    "fma.rn.ftz.f32",
    "max.f32",
    "min.ftz.f32",
    "neg.f32",
    "abs.f32",
    "cvt.rn.bf16x2.f32",
    "cvt.f32.bf16",
    "ex2.approx.ftz.f32",
    "cvt.s64.s32",
    "cvt.rn.f32.s32",
    "cvt.rn.f32.u32",
    "cvt.rzi.s32.f32",
    "cvt.rzi.u32.f32",
    "lop3.b32",
    "prmt.b32",
    "bfe.u32",
    "bfe.s32",
    "shf.l.wrap.b32",
    "cvt.rn.f16x2.f32",
    "cvt.f32.f16",
    "rcp.approx.ftz.f32",
    "rsqrt.approx.f32",
    "lg2.approx.f32",
    "div.rn.f32",
    "popc.b32",
    "fma.rn.bf16x2",
    "add.rn.bf16x2",
    "dp4a.s32.s32",
    "div.s32",
    "add.cc.u32",
    "setp.lt.s16",
    "cvt.rn.satfinite.e4m3x2.f32",
];

fn operands(opcode: &str) -> Vec<Operand> {
    (1..7).map(|n| vec![Operand::Register(0); n]).find(|o| decode(opcode, o, &[]).is_some()).expect(opcode)
}

fn main() {
    let mut r = Registers {
        rows: vec![RegisterRow([0; 32]); 64],
        undefined: vec![0; 64],
        predicates: vec![0xa5a5_5a5a; 8],
        undefined_predicates: vec![0; 8],
        ..Registers::default()
    };
    for i in 0..64 {
        for lane in 0..32 {
            r.rows[i].0[lane] = ((i * 32 + lane) as f32).sin().to_bits();
        }
    }
    // `prmt`'s selector and `lop3`'s truth table are constants, equal in every lane, as in compiled code.
    let selector = RegisterRow([0x5410; 32]);
    r.rows[48] = RegisterRow([0x96; 32]);
    for opcode in OPCODES {
        let (op, wants) = decode(opcode, &operands(opcode), &[]).expect("found above");
        let mut s = OperandSlots::default();
        for (i, dst) in wants.dst.iter().enumerate() {
            s.dst[i] = if dst.class == RegisterClass::Pred { 1 } else { 2 * i as u32 };
        }
        for (i, src) in wants.src.iter().enumerate() {
            s.src[i] = if src.class == RegisterClass::Pred { 2 } else { 24 + 8 * i as u32 };
        }
        r.rows[40] = if opcode.starts_with("prmt") { selector } else { r.rows[41] };
        println!(
            "{opcode:24} {:6.1} ns, with half the lanes active {:6.1} ns",
            time(op, s, &mut r, u32::MAX),
            time(op, s, &mut r, 0xffff)
        );
    }
}

/// Returns nanoseconds per instruction, the minimum of five rounds.
fn time(op: AluOp, s: OperandSlots, r: &mut Registers, mask: u32) -> f64 {
    const TIMES: usize = 100_000;
    let program = black_box(vec![(op, s); 16]);
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        reel_sim::simd::run_with_widest_simd(
            #[inline(always)]
            || {
                for _ in 0..TIMES / 16 {
                    for (op, s) in &program {
                        op.run(r, s, black_box(mask));
                    }
                }
            },
        );
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / TIMES as f64);
    }
    best
}
