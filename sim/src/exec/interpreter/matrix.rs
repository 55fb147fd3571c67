//! Matrix products of a warp on registers: `mma`, `wmma.mma`, and `movmatrix`.

use crate::exec::context::{InstructionContext, NextAction};
use crate::exec::operands::{lanes_with_undefined_register, mark_undefined_lanes};
use crate::exec::reporter::Reporter;
use crate::matrix::Lanes;
use crate::matrix::ldmatrix;
use crate::matrix::mma::{FragmentCache, MmaOp};
use crate::program::op::{DecodedInstruction, Mma, Op, Wmma};
use crate::regs::Registers;

/// Executes `mma` instructions; keeps scratch space from one instruction to the next.
#[derive(Debug, Default)]
pub struct MatrixUnit {
    fragments: FragmentCache,
}

impl MatrixUnit {
    /// Executes, for all lanes of a warp, the `mma` instructions of type `op` with which `instrs` begins; returns how
    /// many it executed. The caller has already counted the execution of the first one, whose index in the kernel is
    /// `pc`.
    #[inline(never)]
    pub fn mma_sequence(
        &mut self,
        reporter: &mut Reporter,
        count_only: bool,
        regs: &mut Registers,
        op: MmaOp,
        instrs: &[DecodedInstruction],
        pc: u32,
    ) -> u32 {
        // A guarded `mma` ends the sequence. Only the first one may have a guard, which the caller has evaluated.
        let alike = |(n, instr): &(usize, &DecodedInstruction)| match &instr.op {
            Op::Mma(m) => m.op == op && (*n == 0 || instr.guard.is_none()),
            _ => false,
        };
        let count = instrs.iter().enumerate().take_while(alike).count();
        let products = instrs[..count].iter().filter_map(|instr| match &instr.op {
            Op::Mma(m) => m.batched.as_ref(),
            _ => None,
        });
        for (n, p) in products.clone().enumerate() {
            let counts = reporter.counts(pc + n as u32);
            let again = u64::from(n > 0);
            counts.warps += again;
            counts.threads += 32 * again;
            counts.matrix_flops += op.flops();
            let undefined = lanes_with_undefined_register(regs, p.a.iter().chain(&p.b).chain(&p.c));
            if undefined == 0 {
                p.d.iter().for_each(|&s| regs.undefined[s as usize] = 0);
            } else {
                mark_dependent_results(regs, &op, [&p.a, &p.b, &p.c, &p.d], u32::MAX);
            }
        }
        if !count_only {
            self.fragments.multiply_add_sequence(&op, bytemuck::cast_slice_mut(&mut regs.rows), products);
        }
        count as u32
    }
}

/// Executes one `mma`; its guard may exclude lanes.
pub fn mma(cx: &mut InstructionContext, m: &Mma) -> NextAction {
    if !cx.gather_lanes(u32::MAX) {
        return NextAction::Stop;
    }
    let (mask, count_only) = (cx.mask, cx.grid.context.options.count_only);
    cx.grid.reporter.counts(cx.pc).matrix_flops += m.op.flops();
    let regs = cx.regs_mut();
    let undefined = lanes_with_undefined_register(regs, m.a.iter().chain(&m.b).chain(&m.c)) & mask;
    if !count_only {
        let row = |s: u32| &regs.rows[s as usize].0;
        match (&m.a[..], &m.b[..], &m.c[..], m.op.lane_arrays_per_register()) {
            (&[a0, a1, a2, a3], &[b0, b1], &[c0, c1, c2, c3], 1) => {
                let (a, b) = ([row(a0), row(a1), row(a2), row(a3)], [row(b0), row(b1)]);
                let c = [row(c0), row(c1), row(c2), row(c3)];
                let mut d = [[0; 32]; 4];
                m.op.multiply_add(&a, &b, &c, &mut d);
                if mask == u32::MAX {
                    m.d.iter().zip(&d).for_each(|(&s, d)| regs.rows[s as usize].0 = *d);
                } else {
                    m.d.iter().zip(&d).for_each(|(&s, d)| regs.set(s, d, mask));
                }
            }
            _ => mma_of_any_shape(m, regs, mask),
        }
    }
    if undefined == 0 {
        mark_results_undefined(regs, &m.d, undefined, mask);
    } else {
        mark_dependent_results(regs, &m.op, [&m.a, &m.b, &m.c, &m.d], mask);
    }
    NextAction::Next
}

pub fn wmma_mma(cx: &mut InstructionContext, m: &Wmma) -> NextAction {
    if !cx.gather_lanes(u32::MAX) {
        return NextAction::Stop;
    }
    let (mask, count_only) = (cx.mask, cx.grid.context.options.count_only);
    cx.grid.reporter.counts(cx.pc).matrix_flops += m.op.flops();
    let regs = cx.regs_mut();
    let undefined = lanes_with_undefined_register(regs, m.a.iter().chain(&m.b).chain(&m.c)) & mask;
    if !count_only {
        let rows = m.op.lane_arrays_per_register();
        let [a, b, c, _] = m.op.fragments.map(|f| f.distinct_register_count());
        let [a, b, c] = [&m.a[..a], &m.b[..b], &m.c[..c]].map(|slots| register_rows(regs, slots, rows));
        let d = m.op.multiply_add(&a, &b, &c);
        for (d, &slot) in d.chunks_exact(rows).zip(&m.d) {
            d.iter().enumerate().for_each(|(row, d)| regs.rows[slot as usize + row].0 = *d);
        }
    }
    mark_results_undefined(regs, &m.d, undefined, mask);
    NextAction::Next
}

/// Executes `movmatrix`: transposes an 8 × 8 matrix.
pub fn movmatrix(cx: &mut InstructionContext, dst: u32, src: u32) -> NextAction {
    if !cx.gather_lanes(u32::MAX) {
        return NextAction::Stop;
    }
    let mask = cx.mask;
    let regs = cx.regs_mut();
    let value = ldmatrix::transposed(&regs.get(src));
    let undefined = regs.undefined[src as usize] & mask;
    regs.set(dst, &value, mask);
    mark_results_undefined(regs, &[dst], undefined, mask);
    NextAction::Next
}

/// Marks the elements of an `mma`'s result D as undefined that depend on undefined registers of A, B and C.
#[cold]
fn mark_dependent_results(regs: &mut Registers, op: &MmaOp, [a, b, c, d]: [&[u32]; 4], mask: u32) {
    let lanes = |slots: &[u32]| -> Vec<u32> { slots.iter().map(|&s| regs.undefined[s as usize] & mask).collect() };
    let results = op.undefined_results(&lanes(a), &lanes(b), &lanes(c));
    d.iter().zip(results).for_each(|(&slot, undefined)| mark_undefined_lanes(regs, slot, undefined & mask, mask));
}

/// Marks all elements of a result as undefined if any input element is undefined. This is coarse: an input element
/// affects only a part of the result.
fn mark_results_undefined(regs: &mut Registers, results: &[u32], undefined: u32, mask: u32) {
    let spoiled = if undefined != 0 { mask } else { 0 };
    results.iter().for_each(|&slot| mark_undefined_lanes(regs, slot, spoiled, mask));
}

/// Computes D = A·B + C for any number of registers, also 64-bit registers.
fn mma_of_any_shape(m: &Mma, regs: &mut Registers, mask: u32) {
    let rows = m.op.lane_arrays_per_register();
    let [a, b, c] = [&m.a[..], &m.b[..], &m.c[..]].map(|slots| register_rows(regs, slots, rows));
    let mut d = vec![[0; 32]; c.len()];
    m.op.multiply_add(&a, &b, &c, &mut d);
    for (d, &s) in d.chunks_exact(rows).zip(&m.d) {
        if rows == 1 {
            regs.set(s, &d[0], mask);
        } else {
            (0..rows).for_each(|r| regs.rows[s as usize + r].0 = d[r]);
        }
    }
}

/// Returns the rows (32 lanes × 32 bits) of several registers: one row per 32-bit register, two per 64-bit register
/// (`rows`).
fn register_rows<'r>(regs: &'r Registers, slots: &[u32], rows: usize) -> Vec<&'r Lanes> {
    let rows_of = |&slot: &u32| regs.rows[slot as usize..slot as usize + rows].iter().map(|row| &row.0);
    slots.iter().flat_map(rows_of).collect()
}
