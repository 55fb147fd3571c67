//! Finds the stores of values that floating-point arithmetic made from the results of `shfl.bfly`: sums over the lanes of
//! a warp, for example. Every lane has such a sum, but the sums may differ by rounding, because a compiler may fuse the
//! first addition with a product, `fma(a, b, shuffled)`, so that the lanes round different products.

use super::uses::{collect_registers, destination_count, is_load, is_store};
use crate::ptx::ast::{Function, Instruction};
use std::collections::HashSet;

/// Returns, for each instruction, whether it is a store of such a value.
pub(super) fn butterfly_stores(function: &Function) -> Vec<bool> {
    let is_shuffle = |i: &Instruction| i.opcode.starts_with("shfl.") && i.opcode.contains(".bfly.");
    if !function.body.iter().any(is_shuffle) {
        return vec![false; function.body.len()];
    }
    let is_float = |i: &Instruction| {
        ["f16", "f16x2", "bf16", "bf16x2", "f32", "f64"].iter().any(|ty| i.opcode.rsplit('.').next() == Some(ty))
    };
    let passes = |i: &Instruction| ["mov.", "selp.", "cvt."].iter().any(|base| i.opcode.starts_with(base));
    let (mut shuffled, mut sums) = (HashSet::<u32>::new(), HashSet::<u32>::new());
    loop {
        let before = shuffled.len() + sums.len();
        for i in &function.body {
            let written = destination_count(i);
            let (mut reads, mut writes, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
            i.operands[..written].iter().for_each(|o| collect_registers(function, o, &mut writes, &mut addresses));
            i.operands[written..].iter().for_each(|o| collect_registers(function, o, &mut reads, &mut addresses));
            if is_shuffle(i) {
                shuffled.extend(writes.first());
            } else if passes(i) && reads.iter().any(|r| sums.contains(r))
                || is_float(i) && !is_load(i) && reads.iter().any(|r| shuffled.contains(r) || sums.contains(r))
            {
                sums.extend(writes);
            }
        }
        if shuffled.len() + sums.len() == before {
            break;
        }
    }
    let stores_sum = |i: &Instruction| {
        let mut stored = Vec::new();
        i.operands.iter().skip(1).for_each(|o| collect_registers(function, o, &mut stored, &mut Vec::new()));
        is_store(i) && stored.iter().any(|r| sums.contains(r))
    };
    function.body.iter().map(stores_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_of_butterfly_sums_are_recognised() {
        let stored = |sum: &str| {
            let shuffle = "shfl.sync.bfly.b32 %r1, %r0, 16, 31, -1;";
            let text = format!(
                ".version 8.0\n.target sm_80\n.address_size 64\n.entry k(.param .u64 p) {{ .reg .b32 %r<9>;
                {shuffle} {sum} st.shared.b32 [%r7], %r2; ret; }}"
            );
            butterfly_stores(&crate::ptx::parse(&text).unwrap().functions[0]).contains(&true)
        };
        assert!(stored("add.f32 %r2, %r0, %r1;"));
        assert!(stored("fma.rn.f32 %r3, %r4, %r5, %r1; mov.b32 %r2, %r3;"));
        for other in ["mov.b32 %r2, %r1;", "add.s32 %r2, %r0, %r1;", "add.f32 %r2, %r0, %r4; add.f32 %r3, %r0, %r1;"] {
            assert!(!stored(other), "{other}");
        }
    }
}
