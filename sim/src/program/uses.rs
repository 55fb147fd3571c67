//! Finds which registers of wgmma instructions (accumulators, and matrix A if it is in registers) each instruction
//! reads or writes. wgmma accesses them asynchronously, so other instructions must not access them before
//! `wgmma.wait_group`. Finds in the same way which instructions read the registers of `tcgen05.ld`. No target has both
//! kinds of instructions.

use super::op::{DecodedInstruction, Op, Tcgen05};
use crate::ptx::ast::{AddressBase, Function, Instruction, Operand, Type};
use crate::regs::Slot;
use std::collections::HashSet;

/// The registers of wgmma or `tcgen05.ld` that one instruction reads and writes; empty for most instructions.
#[derive(Clone, Debug, Default)]
pub struct WgmmaRegisterUse {
    /// First row of each register that the instruction reads.
    pub reads: Box<[Slot]>,
    /// First row of each register that the instruction writes.
    pub writes: Box<[Slot]>,
    /// True if the instruction only copies a register or a constant, as compilers do to rename accumulators.
    pub copies: bool,
}

impl WgmmaRegisterUse {
    /// Returns true if the instruction accesses none of these registers.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.writes.is_empty()
    }
}

/// Returns the register use of each instruction; empty for a function without wgmma and `tcgen05.ld`.
pub(super) fn wgmma_register_uses(
    function: &Function,
    instrs: &[DecodedInstruction],
    slot: impl Fn(u32) -> Slot,
) -> Vec<WgmmaRegisterUse> {
    let mut watched: HashSet<Slot> = HashSet::new();
    for instr in instrs {
        match &instr.op {
            Op::Wgmma(w) => watched.extend(w.d.iter().chain(&w.a)),
            Op::Tcgen05(op) => {
                if let Tcgen05::Transfer(t) = &**op
                    && !t.store
                {
                    watched.extend(&t.registers);
                }
            }
            _ => {}
        }
    }
    if watched.is_empty() {
        return Vec::new();
    }
    let moves: Vec<(Slot, Slot)> = function
        .body
        .iter()
        .filter(|i| is_register_copy(function, i))
        .filter_map(|i| match i.operands[..] {
            [Operand::Register(to), Operand::Register(from)] => Some((slot(to), slot(from))),
            _ => None,
        })
        .collect();
    // Count a register as a wgmma register, too, if an accumulator is copied to it or from it; repeat until none is
    // added.
    loop {
        let before = watched.len();
        for (to, from) in &moves {
            if watched.contains(to) || watched.contains(from) {
                watched.extend([*to, *from]);
            }
        }
        if watched.len() == before {
            break;
        }
    }
    let kept = |registers: Vec<u32>| registers.into_iter().map(&slot).filter(|s| watched.contains(s)).collect();
    let mut out = Vec::with_capacity(instrs.len());
    for (n, instr) in instrs.iter().enumerate() {
        let Some(i) = function.body.get(n).filter(|_| !matches!(instr.op, Op::Wgmma(_))) else {
            out.push(WgmmaRegisterUse::default());
            continue;
        };
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        let written = destination_count(i);
        i.operands[..written].iter().for_each(|o| collect_registers(function, o, &mut writes, &mut reads));
        let mut sources = Vec::new();
        i.operands[written..].iter().for_each(|o| collect_registers(function, o, &mut reads, &mut sources));
        reads.append(&mut sources);
        out.push(WgmmaRegisterUse { reads: kept(reads), writes: kept(writes), copies: is_register_copy(function, i) });
    }
    out
}

/// Returns the number of operands that are destinations; they come first.
pub(super) fn destination_count(i: &Instruction) -> usize {
    let base = i.opcode.split('.').next().unwrap_or("");
    let count = match base {
        "st" | "red" | "stmatrix" | "bra" | "brx" | "barrier" | "membar" | "fence" | "cp" | "wgmma" | "prefetch"
        | "prefetchu" | "exit" | "ret" | "trap" | "nanosleep" | "griddepcontrol" | "setmaxnreg" | "tensormap"
        | "discard" | "applypriority" | "stackrestore" => 0,
        "tcgen05" => usize::from(i.opcode.starts_with("tcgen05.ld")),
        "clusterlaunchcontrol" => usize::from(i.opcode.contains(".query_cancel")),
        "wmma" => usize::from(!i.opcode.starts_with("wmma.store")),
        "bar" => usize::from(i.opcode.contains(".red")),
        "call" => usize::from(matches!(i.operands.first(), Some(Operand::List(_)))),
        _ => 1,
    };
    count.min(i.operands.len())
}

/// Returns true for a move of a 32-bit register or of a constant to a 32-bit register.
pub(super) fn is_register_copy(function: &Function, i: &Instruction) -> bool {
    let narrow = |o: &Operand| match o {
        Operand::Register(r) => {
            matches!(
                function.registers[*r as usize].ty,
                Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::BF16x2
            )
        }
        Operand::Integer(_) | Operand::Float32(_) => true,
        _ => false,
    };
    i.opcode.starts_with("mov.") && i.operands.len() == 2 && i.operands.iter().all(narrow)
}

/// Whether an instruction is an ordinary store (`st`).
pub(super) fn is_store(i: &Instruction) -> bool {
    i.opcode.starts_with("st.") && !i.opcode.starts_with("st.async") && !i.opcode.starts_with("st.bulk")
}

/// Whether an instruction is an ordinary load (`ld`, `ldu`).
pub(super) fn is_load(i: &Instruction) -> bool {
    i.opcode.starts_with("ld.") || i.opcode.starts_with("ldu.")
}

/// Appends the registers of an operand to `out`, and the registers of its addresses to `addresses`. Skips predicates.
pub(super) fn collect_registers(function: &Function, operand: &Operand, out: &mut Vec<u32>, addresses: &mut Vec<u32>) {
    match operand {
        Operand::Register(r) if function.registers[*r as usize].ty != Type::Pred => out.push(*r),
        Operand::Vector(list) | Operand::List(list) => {
            list.iter().for_each(|o| collect_registers(function, o, out, addresses))
        }
        Operand::Pair(a, b) => {
            collect_registers(function, a, out, addresses);
            collect_registers(function, b, out, addresses);
        }
        Operand::Address(AddressBase::Register(r), _) => addresses.push(*r),
        Operand::TensorAddress(base, _, list) => {
            if let AddressBase::Register(r) = base {
                addresses.push(*r);
            }
            let mut inner = Vec::new();
            list.iter().for_each(|o| collect_registers(function, o, addresses, &mut inner));
            addresses.append(&mut inner);
        }
        _ => {}
    }
}
