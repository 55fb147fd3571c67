//! Assigns each decoded instruction to the class under which the execution counters count it.

use crate::program::op::{AddressWindow, InstructionClass, Op, WarpOpKind};

/// Returns the instruction class of a decoded instruction.
pub(super) fn instruction_class(opcode: &str, op: &Op) -> InstructionClass {
    match op {
        Op::Alu { .. } => alu_class(opcode),
        Op::Load(t) | Op::Store(t) => match t.window {
            AddressWindow::Generic | AddressWindow::Global => InstructionClass::Global,
            AddressWindow::Shared | AddressWindow::SharedCluster => InstructionClass::Shared,
            AddressWindow::Local => InstructionClass::Local,
            _ => InstructionClass::Constant,
        },
        Op::Atomic(_) => InstructionClass::Atomic,
        Op::Branch { .. } | Op::BranchIndexed { .. } | Op::Call(_) | Op::Ret | Op::Exit | Op::Trap => {
            InstructionClass::Control
        }
        Op::Warp(w) if matches!(w.kind, WarpOpKind::Sync) => InstructionClass::Barrier,
        Op::Warp(_) => InstructionClass::Shuffle,
        Op::Barrier(_) | Op::ClusterArrive { .. } | Op::ClusterWait { .. } | Op::Fence(_) | Op::Mbarrier(_) => {
            InstructionClass::Barrier
        }
        Op::CpAsync(_)
        | Op::CpAsyncCommit
        | Op::CpAsyncWait { .. }
        | Op::BulkCopy(_)
        | Op::BulkCommit
        | Op::BulkWait { .. }
        | Op::LaunchControl(_)
        | Op::StAsync { .. } => InstructionClass::Async,
        Op::LdStMatrix(_) => InstructionClass::Shared,
        Op::WmmaTransfer(t) => match t.transfers.first().map(|t| t.window) {
            Some(AddressWindow::Shared) => InstructionClass::Shared,
            _ => InstructionClass::Global,
        },
        Op::Mma(_)
        | Op::Wmma(_)
        | Op::Wgmma(_)
        | Op::WgmmaFence
        | Op::WgmmaCommit
        | Op::WgmmaWait { .. }
        | Op::Tcgen05(_) => InstructionClass::Matrix,
        _ => InstructionClass::Other,
    }
}

fn alu_class(opcode: &str) -> InstructionClass {
    let base = opcode.split('.').next().unwrap_or("");
    let last = opcode.rsplit('.').next().unwrap_or("");
    match base {
        "mov" => InstructionClass::Move,
        "cvt" => InstructionClass::Convert,
        "setp" | "selp" | "set" | "slct" => InstructionClass::Predicate,
        "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "sin" | "cos" | "tanh" | "div" if last.starts_with('f') => {
            InstructionClass::Special
        }
        // Also pairs of f32, and f32 arithmetic with f16 sources (`add.f32.f16`).
        _ if opcode.contains(".f32") => InstructionClass::Float,
        _ => match last {
            "f64" => InstructionClass::Double,
            "f16" | "f16x2" | "bf16" | "bf16x2" => InstructionClass::Half,
            "pred" => InstructionClass::Predicate,
            _ => InstructionClass::Integer,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_of_f32_is_one_class() {
        for (opcode, class) in [
            ("add.f32", InstructionClass::Float),
            ("fma.rn.f32x2", InstructionClass::Float),
            ("sub.rn.f32.bf16", InstructionClass::Float),
            ("ex2.approx.ftz.f32", InstructionClass::Special),
            ("cvt.rn.f32.f16", InstructionClass::Convert),
            ("add.bf16x2", InstructionClass::Half),
            ("add.u32", InstructionClass::Integer),
        ] {
            assert_eq!(alu_class(opcode), class, "{opcode}");
        }
    }
}
