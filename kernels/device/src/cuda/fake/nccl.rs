//! The fake NCCL, for GPUs of the fake driver in one process: each rank is a thread with its own fake GPU.
//!
//! The fake NCCL enforces the rules in `crate::cuda::nccl`. Like the fake driver, it does everything as late as the
//! rules allow. A group is enqueued when the rank asks for the state of the communicator after the end of the group.
//! A communicator is created when all ranks have joined. Data move when a thread waits for a stream. If the user
//! guide leaves the outcome of an error undefined, the call fails and adds a violation to the GPU.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use super::transfers::{CommunicatorState, JoinedRank, RankGroup, Transfer, TransferPart};
use super::{FakeDriver, Inner, Op};
use crate::cuda::nccl::{CommHandle, Nccl, NcclResult, UniqueId};
use crate::cuda::types::StreamHandle;

/// The fake NCCL library for one fake GPU.
pub(super) struct FakeNccl(pub FakeDriver);

/// The communicators of this process.
#[derive(Default)]
struct Registry {
    handles: usize,
    /// The communicators that some ranks have not joined yet, by id.
    joining: HashMap<UniqueId, Arc<RankGroup>>,
    /// The ids of communicators that all ranks have joined.
    used: HashSet<UniqueId>,
    comms: HashMap<usize, Comm>,
}

/// One rank's handle of a communicator.
#[derive(Clone)]
struct Comm {
    group: Arc<RankGroup>,
    rank: usize,
    gpu: FakeDriver,
    /// The group that is being enqueued, its stream, and the value of `Queue::enqueued` for this stream at the end of
    /// the group.
    in_progress: Option<(Arc<Transfer>, StreamHandle, u64)>,
    /// The error of the communicator, if it has one.
    error: Option<NcclResult>,
    /// Whether all ranks have joined the communicator.
    is_created: bool,
}

/// A group of sends and receives that a thread has begun.
#[derive(Default)]
struct OpenGroup {
    depth: usize,
    comm: Option<(CommHandle, StreamHandle)>,
    sends: Vec<TransferPart>,
    receives: Vec<TransferPart>,
}

thread_local! {
    static GROUP: RefCell<OpenGroup> = RefCell::default();
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

fn registry() -> MutexGuard<'static, Registry> {
    static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);
    REGISTRY.lock().unwrap_or_else(|e| e.into_inner())
}

/// Returns the number of communicators of a GPU that are neither destroyed nor aborted.
pub(super) fn open_communicators(gpu: &Arc<Inner>) -> usize {
    registry().comms.values().filter(|comm| Arc::ptr_eq(&comm.gpu.0, gpu)).count()
}

/// Ends the ranks that use a GPU, as if their process were killed.
pub(super) fn kill_ranks(gpu: &Arc<Inner>) {
    let comms: Vec<Comm> = registry().comms.values().filter(|comm| Arc::ptr_eq(&comm.gpu.0, gpu)).cloned().collect();
    for Comm { group, rank, .. } in comms {
        group.update_and_wake(|state| state.record_member_end(rank, CommunicatorState::Dead));
    }
}

/// Records the text for `ncclGetLastError` and returns the result code.
fn fail(result: NcclResult, text: impl Into<String>) -> NcclResult {
    LAST_ERROR.set(text.into());
    result
}

impl FakeNccl {
    /// Fails a call whose outcome the user guide does not define.
    fn violation(&self, result: NcclResult, text: &str) -> NcclResult {
        self.0.0.state().add_violation(text.to_string());
        fail(result, text)
    }

    /// Returns the communicator, or an error if it has ended or belongs to another GPU.
    fn comm(&self, handle: CommHandle) -> Result<Comm, NcclResult> {
        let comm = registry().comms.get(&handle.0).cloned();
        match comm {
            Some(comm) if Arc::ptr_eq(&comm.gpu.0, &self.0.0) => Ok(comm),
            Some(_) => Err(self.violation(NcclResult::INVALID_ARGUMENT, "use of another GPU's communicator")),
            None => {
                let text = "use of a communicator that was destroyed or aborted";
                Err(self.violation(NcclResult::INVALID_ARGUMENT, text))
            }
        }
    }

    /// Applies a change to a registered communicator.
    fn update(&self, handle: CommHandle, f: impl FnOnce(&mut Comm)) {
        if let Some(comm) = registry().comms.get_mut(&handle.0) {
            f(comm);
        }
    }

    /// Adds a send or a receive to this thread's group. If the thread has begun no group, the call is a group by
    /// itself.
    fn add(&self, is_send: bool, part: TransferPart, handle: CommHandle, stream: StreamHandle) -> NcclResult {
        let comm = match self.comm(handle) {
            Ok(comm) => comm,
            Err(error) => return error,
        };
        if part.peer >= comm.group.size {
            return fail(NcclResult::INVALID_ARGUMENT, format!("peer {} of {} ranks", part.peer, comm.group.size));
        }
        let is_alone = GROUP.with_borrow(|group| group.depth == 0);
        if is_alone {
            self.group_start();
        }
        let other = GROUP.with_borrow_mut(|group| {
            let other = *group.comm.get_or_insert((handle, stream)) != (handle, stream);
            let parts = if is_send { &mut group.sends } else { &mut group.receives };
            parts.push(part);
            other
        });
        match (is_alone, other) {
            (_, true) => {
                fail(NcclResult::INVALID_USAGE, "the fake NCCL supports one communicator and one stream per group")
            }
            (true, false) => self.group_end(),
            (false, false) => NcclResult::SUCCESS,
        }
    }

    /// Begins to enqueue a group.
    fn begin_to_enqueue(&self, group: OpenGroup) -> NcclResult {
        let Some((handle, stream)) = group.comm else { return NcclResult::SUCCESS };
        let comm = match self.comm(handle) {
            Ok(comm) => comm,
            Err(error) => return error,
        };
        if !comm.is_created || comm.in_progress.is_some() {
            let text = "a group on a communicator whose previous call is in progress";
            return self.violation(NcclResult::INVALID_USAGE, text);
        }
        let enqueued = match self.0.0.state().streams.get(&stream.0) {
            None => return fail(NcclResult::UNHANDLED_CUDA_ERROR, "CUDA_ERROR_INVALID_HANDLE"),
            Some(queue) if queue.capture.is_some() => {
                return fail(NcclResult::INVALID_USAGE, "the fake NCCL does not capture sends and receives");
            }
            Some(queue) => queue.enqueued,
        };
        let number = comm.group.update_and_wake(|state| {
            let member = state.members.get_mut(&comm.rank)?;
            member.groups += 1;
            Some(member.groups)
        });
        let transfer = Arc::new(Transfer {
            group: comm.group,
            rank: comm.rank,
            number: number.unwrap_or_default(),
            sends: group.sends,
            receives: group.receives,
            posted: Mutex::default(),
        });
        self.update(handle, |comm| comm.in_progress = Some((transfer, stream, enqueued)));
        NcclResult::IN_PROGRESS
    }

    /// Enqueues the group that is in progress.
    fn enqueue(&self, handle: CommHandle, transfer: Arc<Transfer>, stream: StreamHandle, enqueued: u64) -> NcclResult {
        self.update(handle, |comm| comm.in_progress = None);
        let mut state = self.0.0.state();
        if state.streams.get(&stream.0).is_none_or(|queue| queue.enqueued != enqueued) {
            state.add_violation("work was enqueued on a stream while NCCL was enqueueing a group on it".into());
        }
        let result = state.enqueue("a group of NCCL", stream, Op::Transfer(transfer.clone()));
        drop(state);
        transfer.group.update_and_wake(|_| ());
        match result {
            Ok(()) => NcclResult::SUCCESS,
            Err(e) => {
                self.update(handle, |comm| comm.error = Some(NcclResult::UNHANDLED_CUDA_ERROR));
                fail(NcclResult::UNHANDLED_CUDA_ERROR, e.to_string())
            }
        }
    }

    /// Returns the state of a communicator that is being created.
    fn joining_state(&self, handle: CommHandle, comm: &Comm) -> NcclResult {
        let state = comm.group.state();
        let same_gpu = |(rank, member): (&usize, &JoinedRank)| {
            *rank != comm.rank && std::ptr::eq(member.gpu.as_ptr(), Arc::as_ptr(&comm.gpu.0))
        };
        let duplicate = state.members.iter().find(|entry| same_gpu(*entry)).map(|(rank, _)| *rank);
        let have_all_joined = state.members.len() == comm.group.size;
        let is_one_lost =
            state.members.values().any(|m| matches!(m.life, CommunicatorState::Aborted | CommunicatorState::Dead));
        drop(state);
        if let (true, Some(other)) = (have_all_joined, duplicate) {
            self.update(handle, |comm| comm.error = Some(NcclResult::INVALID_USAGE));
            let text = format!("Duplicate GPU detected : rank {} and rank {other} both on one CUDA device", comm.rank);
            return fail(NcclResult::INVALID_USAGE, text);
        }
        if is_one_lost {
            return fail(NcclResult::REMOTE_ERROR, "a rank has ended while the ranks were joining");
        }
        if !have_all_joined {
            return NcclResult::IN_PROGRESS;
        }
        self.update(handle, |comm| comm.is_created = true);
        NcclResult::SUCCESS
    }

    /// Returns the state of a communicator after [`Nccl::finalize`].
    fn finalizing_state(&self, comm: &Comm) -> NcclResult {
        if self.0.0.run_to_next_transfers(&comm.group) {
            comm.group.run_other_gpus(comm.rank);
            return NcclResult::IN_PROGRESS;
        }
        let state = comm.group.state();
        let is_leaving = |m: &JoinedRank| matches!(m.life, CommunicatorState::Finalized | CommunicatorState::Destroyed);
        if state.members.values().all(is_leaving) { NcclResult::SUCCESS } else { NcclResult::IN_PROGRESS }
    }

    fn end(&self, handle: CommHandle, life: CommunicatorState) -> NcclResult {
        match self.comm(handle) {
            Err(error) => error,
            Ok(comm) => {
                comm.group.update_and_wake(|state| state.record_member_end(comm.rank, life));
                if life != CommunicatorState::Finalized {
                    registry().comms.remove(&handle.0);
                }
                if life == CommunicatorState::Finalized { NcclResult::IN_PROGRESS } else { NcclResult::SUCCESS }
            }
        }
    }
}

// SAFETY (of each call below): the fake NCCL checks its arguments.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Nccl for FakeNccl {
    fn version(&self) -> u32 {
        23_203
    }

    fn describe(&self, result: NcclResult) -> String {
        let text = LAST_ERROR.with_borrow(String::clone);
        if text.is_empty() { result.name() } else { text }
    }

    fn unique_id(&self) -> Result<UniqueId, NcclResult> {
        let mut registry = registry();
        registry.handles += 1;
        let mut id = [0; 128];
        id[..8].copy_from_slice(&(registry.handles as u64).to_le_bytes());
        Ok(id)
    }

    fn init_rank(&self, size: usize, id: &UniqueId, rank: usize) -> Result<CommHandle, NcclResult> {
        if rank >= size {
            return Err(fail(NcclResult::INVALID_ARGUMENT, format!("rank {rank} of {size}")));
        }
        let mut known = registry();
        if known.used.contains(id) {
            drop(known);
            return Err(self.violation(NcclResult::SYSTEM_ERROR, "a second communicator with the same id"));
        }
        let group = known.joining.entry(*id).or_insert_with(|| Arc::new(RankGroup::new(size))).clone();
        let mut state = group.state();
        if group.size != size || state.members.contains_key(&rank) {
            drop((state, known));
            return Err(
                self.violation(NcclResult::INTERNAL_ERROR, "a rank that joins twice, or with another number of ranks")
            );
        }
        drop(state);
        group.update_and_wake(|state| state.members.insert(rank, JoinedRank::new(&self.0.0)));
        state = group.state();
        if state.members.len() == size {
            known.joining.remove(id);
            known.used.insert(*id);
        }
        drop(state);
        known.handles += 1;
        let handle = known.handles;
        let gpu = self.0.clone();
        known.comms.insert(handle, Comm { group, rank, gpu, in_progress: None, error: None, is_created: false });
        Ok(CommHandle(handle))
    }

    unsafe fn async_error(&self, handle: CommHandle) -> NcclResult {
        let comm = match self.comm(handle) {
            Ok(comm) => comm,
            Err(error) => return error,
        };
        if let Some(error) = comm.error {
            return error;
        }
        if !comm.is_created {
            return self.joining_state(handle, &comm);
        }
        if let Some((transfer, stream, enqueued)) = comm.in_progress {
            return self.enqueue(handle, transfer, stream, enqueued);
        }
        let (own, lost) = {
            let state = comm.group.state();
            let lost = state
                .members
                .iter()
                .find(|(_, m)| matches!(m.life, CommunicatorState::Aborted | CommunicatorState::Dead));
            (state.members.get(&comm.rank).map(|m| m.life), lost.map(|(rank, _)| *rank))
        };
        match (own, lost) {
            (_, Some(lost)) => fail(NcclResult::REMOTE_ERROR, format!("connection to rank {lost} closed by the peer")),
            (Some(CommunicatorState::Finalized), None) => self.finalizing_state(&comm),
            _ => NcclResult::SUCCESS,
        }
    }

    fn group_start(&self) -> NcclResult {
        GROUP.with_borrow_mut(|group| group.depth += 1);
        NcclResult::SUCCESS
    }

    fn group_end(&self) -> NcclResult {
        let depth = GROUP.with_borrow_mut(|group| {
            let depth = group.depth;
            group.depth = depth.saturating_sub(1);
            depth
        });
        match depth {
            0 => fail(NcclResult::INVALID_USAGE, "the end of a group that has not begun"),
            1 => self.begin_to_enqueue(GROUP.take()),
            _ => NcclResult::SUCCESS,
        }
    }

    unsafe fn send(&self, addr: u64, bytes: usize, peer: usize, comm: CommHandle, stream: StreamHandle) -> NcclResult {
        self.add(true, TransferPart { peer, addr, bytes }, comm, stream)
    }

    unsafe fn receive(
        &self,
        addr: u64,
        bytes: usize,
        peer: usize,
        comm: CommHandle,
        stream: StreamHandle,
    ) -> NcclResult {
        self.add(false, TransferPart { peer, addr, bytes }, comm, stream)
    }

    unsafe fn finalize(&self, comm: CommHandle) -> NcclResult {
        self.end(comm, CommunicatorState::Finalized)
    }

    unsafe fn destroy(&self, comm: CommHandle) -> NcclResult {
        self.end(comm, CommunicatorState::Destroyed)
    }

    unsafe fn abort(&self, comm: CommHandle) -> NcclResult {
        self.end(comm, CommunicatorState::Aborted)
    }
}
