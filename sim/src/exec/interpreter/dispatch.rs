//! Sends each instruction to the function that executes it.

use super::warp_turn::Interpreter;
use super::{address, control, matrix, special, warp_exchange};
use crate::exec::async_engine::{
    AsyncStore, TensorMapReplace, commit_bulk_group, cp_async_commit, tensormap_cp_fenceproxy, tensormap_replace,
    wait_for_bulk_groups, wgmma_commit, wgmma_fence,
};
use crate::exec::context::{InstructionContext, NextAction};
use crate::exec::memory_system::copy_register;
use crate::exec::state::warp::{FragmentState, Warp, WarpFragment};
use crate::exec::sync::{block_barrier, cluster_barrier};
use crate::finding::FindingKind;
use crate::program::op::{DecodedInstruction, Op};

impl Interpreter<'_> {
    /// Executes, in the lanes of `mask`, any instruction that is neither lane arithmetic nor a branch.
    pub(super) fn execute_instruction(
        &mut self,
        warp: &mut Warp,
        fragment: &mut WarpFragment,
        instr: &DecodedInstruction,
        mask: u32,
        pc: u32,
    ) -> NextAction {
        let (memory, engine) = (&mut self.memory, &mut self.async_engine);
        let cx = &mut InstructionContext { grid: &mut self.grid, warp, fragment, mask, pc };
        match &instr.op {
            Op::Alu { .. } | Op::Branch { .. } => unreachable!("run_fragment executes arithmetic and branches itself"),
            Op::Load(t) => memory.load(cx, t),
            Op::Store(t) => memory.store(cx, t),
            Op::CopyRegister { dst, src, rows } => copy_register(cx, *dst, *src, *rows),
            Op::Atomic(a) => memory.atomic(cx, a),
            Op::BranchIndexed { index, targets } => control::branch_indexed(cx, *index, targets, instr.reconverge),
            Op::Call(call) => control::call(cx, memory, call),
            Op::Ret => control::ret(cx),
            Op::Exit => control::exit(cx),
            Op::Trap => {
                cx.report(FindingKind::Trap, cx.first_lane(), || "trap: a GPU would abort the kernel".into());
                control::exit(cx)
            }
            Op::Nop | Op::GridDepLaunch | Op::Prefetch { .. } => NextAction::Next,
            Op::Yield => {
                cx.fragment.pc += 1;
                cx.warp.yielded = true;
                cx.grid.progress.count_wait();
                NextAction::Stop
            }
            Op::CreatePolicy { dst } => {
                cx.set_register64(*dst, &[0x1000_0000_0000_0000; 32]);
                NextAction::Next
            }
            Op::ReadSpecial { dst, which } => special::read_special_register(cx, *dst, *which),
            Op::Cvta { dst, src, wide, window, to } => address::cvta(cx, (*dst, *src), *wide, *window, *to),
            Op::Isspacep { dst, src, window } => address::isspacep(cx, memory, (*dst, *src), *window),
            Op::Mapa { dst, src, rank, wide, generic } => address::mapa(cx, (*dst, *src), *rank, *wide, *generic),
            Op::GetCtaRank { dst, src, wide } => address::getctarank(cx, *dst, *src, *wide),
            Op::Alloca { dst, size } => address::alloca(cx, *dst, *size),
            Op::StackSave { dst, wide } => address::stacksave(cx, *dst, *wide),
            Op::StackRestore { src, wide } => address::stackrestore(cx, *src, *wide),
            Op::Warp(w) => warp_exchange::execute_warp_exchange(cx, w),
            Op::Barrier(b) => block_barrier::execute_block_barrier(cx, b),
            Op::ClusterArrive { release, aligned } => cluster_barrier::cluster_arrive(cx, *release, *aligned),
            Op::ClusterWait { aligned } => cluster_barrier::cluster_wait(cx, *aligned),
            Op::Fence(f) => engine.execute_fence(cx, f),
            Op::Mbarrier(m) => engine.mbarrier(cx, memory, m),
            Op::CpAsync(c) => engine.cp_async(cx, memory, c),
            Op::CpAsyncCommit => cp_async_commit(cx),
            Op::CpAsyncWait { groups } => engine.cp_async_wait(cx, memory, *groups),
            Op::BulkCopy(b) => engine.bulk_copy(cx, memory, b),
            Op::BulkCommit => commit_bulk_group(cx),
            Op::BulkWait { groups, read } => wait_for_bulk_groups(cx, memory, *groups, *read),
            Op::StAsync { addr, width, regs, mbarrier, reduce } => {
                let (width, reduce) = (*width, *reduce);
                engine.async_store(cx, memory, &AsyncStore { to: addr, mbarrier, width, values: regs, reduce })
            }
            Op::TensorMapReplace { addr, window, field, ordinal, value, wide } => {
                let (window, field, ordinal, value, wide) = (*window, *field, *ordinal, *value, *wide);
                tensormap_replace(cx, memory, &TensorMapReplace { map: addr, window, field, ordinal, value, wide })
            }
            Op::TensorMapCopyFence { dst, src, scope } => tensormap_cp_fenceproxy(cx, memory, dst, src, *scope),
            Op::LdStMatrix(t) => memory.matrix_transfer(cx, t),
            Op::MovMatrix { dst, src } => matrix::movmatrix(cx, *dst, *src),
            Op::Mma(m) => matrix::mma(cx, m),
            Op::Wmma(m) => matrix::wmma_mma(cx, m),
            Op::WmmaTransfer(t) => memory.wmma_transfer(cx, t),
            Op::Wgmma(w) => engine.wgmma(cx, memory, w),
            Op::WgmmaFence => wgmma_fence(cx),
            Op::WgmmaCommit => wgmma_commit(cx),
            Op::WgmmaWait { groups } => engine.wgmma_wait(cx, memory, *groups),
            Op::Tcgen05(op) => engine.tcgen05(cx, memory, op),
            Op::LaunchControl(op) => engine.launch_control(cx, memory, op),
            Op::SetMaxNReg { count, increase } => special::set_max_registers(cx, *count, *increase),
            Op::GridDepWait if cx.grid.primary_runs => {
                cx.fragment.state = FragmentState::GridDependency;
                NextAction::Stop
            }
            Op::GridDepWait => NextAction::Next,
            Op::Unsupported(what) => {
                cx.report(FindingKind::Unsupported, cx.first_lane(), || {
                    format!("{what}: the simulator does not support this instruction")
                });
                NextAction::Next
            }
        }
    }
}
