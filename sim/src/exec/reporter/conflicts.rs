//! Turns conflicts that the shadow memory finds into findings and notes.

use super::Reporter;
use crate::exec::grid_context::coordinates_of_index;
use crate::finding::{FindingKind, FindingSite, OtherInstruction, line_and_inlining_chain};
use crate::order::{AccessKind, Agent, AsyncOpKind, AsyncOperationTable, Conflict, ConflictKind, EarlierAccess};
use crate::program::op::Op;

/// A conflict of an access with earlier accesses to the same bytes, and the access itself.
pub struct MemoryConflict<'c> {
    /// The thread and the instruction of the access.
    pub site: FindingSite,
    /// Whether the access reads, writes or both.
    pub access: AccessKind,
    /// The state space: `global` or `shared`.
    pub space: &'static str,
    /// Address of the first conflicting byte in its state space.
    pub address: u64,
    /// The conflict as shadow memory found it.
    pub conflict: &'c Conflict,
    /// Whether the access stored the value that memory already held.
    pub same_value: bool,
    /// Whether the thread of the earlier access exited before a barrier that the thread of this access waited at.
    pub after_exit: bool,
}

impl Reporter<'_> {
    /// Reports a conflict of an access. `ops` are the asynchronous operations of the launch.
    pub fn report_conflict(&mut self, m: &MemoryConflict, ops: &AsyncOperationTable) {
        if self.report_dependent(m) {
            return;
        }
        let (context, strict) = (self.context, self.context.options.strict_proxy);
        let c = m.conflict;
        let (site, space, address, memory) = (m.site, m.space, m.address, Some((m.space, m.address)));
        let harmless_race = match c.kind {
            ConflictKind::Race { two_stores, .. } => m.after_exit || m.same_value && two_stores,
            _ => false,
        };
        // Repeated conflicts are counted without a message, because a missing barrier causes a conflict at every
        // access.
        let cause = match c.kind {
            _ if harmless_race || self.is_cas_loop_read(m) => None,
            ConflictKind::ProxyRead if !strict => None,
            ConflictKind::Uninitialized => Some((FindingKind::Uninitialized, None)),
            ConflictKind::Race { .. } => Some((FindingKind::Race, Some(c.earlier.1))),
            ConflictKind::NotWaited(op) => Some((FindingKind::AsyncNotWaited, Some(ops.pc(op)))),
            ConflictKind::ProxyRead | ConflictKind::Proxy | ConflictKind::TensorMapProxy => {
                Some((FindingKind::AsyncProxy, Some(c.earlier.1)))
            }
        };
        let Some((kind, other)) = cause else {
            self.note_conflict(m);
            return;
        };
        if self.findings.count_repeated_finding(kind, site.pc, other) {
            return;
        }
        let access = access_name(m.access);
        let other = other.map(|pc| OtherInstruction { pc, thread: context.coordinates(c.earlier.0) });
        let thread = || context.thread_name(c.earlier.0);
        let line = other.map_or(0, |other| context.source_line(other.pc));
        self.report_with_details(kind, site, other, memory, || match c.kind {
            ConflictKind::Uninitialized => {
                format!("{access} of {space} memory at {address:#x} that no thread has written")
            }
            ConflictKind::Race { mixed_sizes, .. } => {
                let (earlier, thread) = (earlier_access_name(c.earlier_kind), thread());
                let reason = match mixed_sizes {
                    true => "; atomic, relaxed and volatile accesses race if their sizes differ",
                    false => "",
                };
                format!(
                    "{access} of {space} memory at {address:#x} is not ordered after the {earlier} of {thread} at line {line}{reason}"
                )
            }
            ConflictKind::NotWaited(op) => {
                let operation = operation_name(ops.kind(op));
                format!(
                    "{access} of {space} memory at {address:#x} while the {operation} of line {line} may still use it: this thread has not waited for it"
                )
            }
            ConflictKind::TensorMapProxy => {
                let thread = thread();
                format!(
                    "a tensor copy reads the tensor map in {space} memory at {address:#x} that {thread} wrote at line {line}, without fence.proxy.tensormap::generic.acquire in between"
                )
            }
            ConflictKind::ProxyRead => {
                let thread = thread();
                format!(
                    "the async proxy overwrites {space} memory at {address:#x} that {thread} read through the generic proxy at line {line}, without fence.proxy.async in between"
                )
            }
            ConflictKind::Proxy => {
                let thread = thread();
                format!(
                    "the async proxy uses {space} memory at {address:#x} that {thread} wrote through the generic proxy at line {line}, without fence.proxy.async in between"
                )
            }
        });
    }

    /// Whether a race is between an atomic operation and the plain load that reads the first expected value of a
    /// compare-and-swap loop. If another thread has changed the value since, the compare-and-swap fails and the loop
    /// tries again.
    fn is_cas_loop_read(&self, m: &MemoryConflict) -> bool {
        let (c, kernel) = (m.conflict, self.context.kernel);
        let load = match (c.kind, m.access, c.earlier_kind) {
            (ConflictKind::Race { .. }, AccessKind::Read, EarlierAccess::Atomic) => m.site.pc,
            (ConflictKind::Race { .. }, AccessKind::Atomic, EarlierAccess::Read) => c.earlier.1,
            _ => return false,
        };
        let (code, index) = kernel.function_and_instruction_index(load);
        matches!(code.instrs.get(index).map(|i| &i.op), Some(Op::Load(t)) if t.cas_read)
    }

    /// Adds a note for a conflict that is not a defect. Such conflicts are: the plain first read of a compare-and-swap
    /// loop, an access of a thread that exits instead of waiting at a barrier, two stores of the same value, and an
    /// overwrite by the async proxy of bytes that were read before.
    fn note_conflict(&mut self, m: &MemoryConflict) {
        let space = m.space;
        if self.is_cas_loop_read(m) {
            let pc = if m.access == AccessKind::Read { m.site.pc } else { m.conflict.earlier.1 };
            self.add_note(
                pc,
                "a plain read of a word that other threads change by atomics; the value is only the first guess of a compare-and-swap loop, so an old value costs one more iteration (a relaxed atomic load would be no race at all)",
            );
            return;
        }
        if let ConflictKind::Race { .. } = m.conflict.kind
            && m.after_exit
        {
            let line = self.context.source_line(m.conflict.earlier.1);
            self.add_note(
                m.site.pc,
                &format!(
                    "line {line} accesses the same {space} memory in threads that then exit; a barrier of the block does not \
                     wait for threads that have exited, but the CUDA programming guide promises that only the \
                     accesses of threads that reach __syncthreads() are visible after it"
                ),
            );
            return;
        }
        if let ConflictKind::Race { .. } = m.conflict.kind {
            self.add_note(
                m.site.pc,
                &format!("several threads store the same value to one {space} address without synchronisation"),
            );
            return;
        }
        let other = self.context.source_line(m.conflict.earlier.1);
        self.add_note(
            m.site.pc,
            &format!("the async proxy overwrites {space} memory that line {other} read, without fence.proxy.async"),
        );
    }

    /// Reports a conflict with an access that the dependent grid made before its `griddepcontrol.wait`, as a defect
    /// of the dependent grid. Returns false if the earlier access was not made by the dependent grid.
    fn report_dependent(&mut self, m: &MemoryConflict) -> bool {
        let context = self.context;
        let Some(dependent) = &mut self.dependent else { return false };
        let (agent, pc) = m.conflict.earlier;
        if agent == Agent::HOST || agent.block() < dependent.first_block {
            return false;
        }
        let launch = dependent.launch;
        let site = FindingSite {
            pc,
            block: coordinates_of_index(agent.block() - dependent.first_block, launch.launch.grid),
            thread: coordinates_of_index(agent.thread_index().unwrap_or(0), launch.launch.block),
        };
        let (earlier, later, address) = (
            match m.conflict.earlier_kind {
                EarlierAccess::Read => "read",
                EarlierAccess::Async(_) => "asynchronous access",
                _ => "write",
            },
            access_name(m.access),
            m.address,
        );
        let memory = Some(("global", address));
        dependent.findings.add_kernel_defect(launch.program, launch.kernel, FindingKind::Race, site, None, memory, || {
            let (line, _) = line_and_inlining_chain(context.program, context.kernel, m.site.pc);
            format!(
                "{earlier} of global memory at {address:#x} without griddepcontrol.wait before it: not ordered after the {later} at line {line} of the primary grid"
            )
        });
        true
    }
}

fn access_name(access: AccessKind) -> &'static str {
    match access {
        AccessKind::Read => "read",
        AccessKind::Write => "write",
        AccessKind::Atomic => "atomic access",
    }
}

fn earlier_access_name(other: EarlierAccess) -> &'static str {
    match other {
        EarlierAccess::None => "access",
        EarlierAccess::Read => "read",
        EarlierAccess::Write => "write",
        EarlierAccess::Atomic => "atomic access",
        EarlierAccess::Async(_) => "asynchronous access",
    }
}

fn operation_name(kind: AsyncOpKind) -> &'static str {
    match kind {
        AsyncOpKind::CpAsync => "cp.async",
        AsyncOpKind::BulkCopy => "bulk copy",
        AsyncOpKind::TensorCopy => "tensor copy",
        AsyncOpKind::Reduce => "bulk reduction",
        AsyncOpKind::StAsync => "asynchronous store",
        AsyncOpKind::Wgmma => "wgmma",
        AsyncOpKind::Tcgen05 => "tcgen05.mma",
    }
}
