//! Tests of the rules that the fake NCCL enforces. The tests call the fake NCCL directly.

use std::sync::Arc;

use super::FakeDriver;
use crate::Arch;
use crate::cuda::Driver;
use crate::cuda::nccl::{CommHandle, Nccl, NcclResult};
use crate::cuda::types::StreamHandle;

/// A rank with a stream and 64 bytes of memory. Each byte holds the rank's number.
struct Rank {
    gpu: FakeDriver,
    nccl: Box<dyn Nccl>,
    comm: CommHandle,
    stream: StreamHandle,
    memory: u64,
}

impl Rank {
    fn send(&self, bytes: usize, peer: usize) -> NcclResult {
        // SAFETY: the communicator is live, and the memory is never freed.
        unsafe { self.nccl.send(self.memory, bytes, peer, self.comm, self.stream) }
    }

    fn receive(&self, bytes: usize, peer: usize) -> NcclResult {
        // SAFETY: the communicator is live, and the memory is never freed.
        unsafe { self.nccl.receive(self.memory + 32, bytes, peer, self.comm, self.stream) }
    }

    /// Returns the state of the communicator.
    fn state(&self) -> NcclResult {
        // SAFETY: the fake NCCL checks the communicator.
        unsafe { self.nccl.async_error(self.comm) }
    }

    fn synchronize(&self) -> Result<(), String> {
        // SAFETY: the stream is live.
        unsafe { self.gpu.synchronize(self.stream) }.map_err(|e| e.to_string())
    }

    /// Returns the received bytes.
    fn received(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        // SAFETY: the range is allocated, and the host bytes live until the stream is done.
        unsafe { self.gpu.copy_out(bytes.as_mut_ptr(), self.memory + 32, 8, self.stream) }.unwrap();
        self.synchronize().unwrap();
        bytes
    }
}

/// Creates `size` ranks that share a communicator.
fn ranks(size: usize) -> Vec<Rank> {
    let mut id = None;
    let mut ranks = Vec::new();
    for rank in 0..size {
        let gpu = FakeDriver::new(Arch::H100, 4 << 20);
        let nccl = gpu.nccl().unwrap();
        let id = *id.get_or_insert_with(|| nccl.unique_id().unwrap());
        let (stream, memory) = (gpu.stream().unwrap(), gpu.alloc(64).unwrap());
        // SAFETY: the range is allocated.
        unsafe { gpu.fill(memory, rank as u8, 64, stream) }.unwrap();
        let comm = nccl.init_rank(size, &id, rank).unwrap();
        ranks.push(Rank { gpu, nccl, comm, stream, memory });
        let joined = ranks[0].state();
        assert_eq!(joined, if rank + 1 < size { NcclResult::IN_PROGRESS } else { NcclResult::SUCCESS });
    }
    assert!(ranks.iter().all(|rank| rank.state() == NcclResult::SUCCESS));
    ranks
}

/// Runs `f` on each rank's thread.
fn on_threads<T: Send>(ranks: &[Rank], f: impl Fn(usize, &Rank) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads = ranks.iter().enumerate().map(|(i, rank)| {
            scope.spawn({
                let f = &f;
                move || f(i, rank)
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[track_caller]
fn violation(rank: &Rank, words: &str) {
    let violations = rank.gpu.violations();
    assert!(violations.iter().any(|v| v.contains(words)), "{words} in {violations:?}");
}

#[test]
fn grouped_send_and_receive_do_not_wait_for_each_other() {
    let both = ranks(2);
    let received = on_threads(&both, |rank, r| {
        r.nccl.group_start();
        assert_eq!([r.send(8, 1 - rank), r.receive(8, 1 - rank)], [NcclResult::SUCCESS; 2]);
        assert_eq!(r.nccl.group_end(), NcclResult::IN_PROGRESS);
        assert_eq!(r.state(), NcclResult::SUCCESS);
        r.received()
    });
    assert_eq!(received, [[1; 8], [0; 8]]);
}

/// Rank 0 receives the bytes of rank 1, although the thread of rank 1 never waits for its GPU.
#[test]
fn a_gpu_runs_without_its_host() {
    let both = ranks(2);
    assert_eq!([both[1].send(8, 0), both[1].state()], [NcclResult::IN_PROGRESS, NcclResult::SUCCESS]);
    assert_eq!([both[0].receive(8, 1), both[0].state()], [NcclResult::IN_PROGRESS, NcclResult::SUCCESS]);
    assert_eq!(both[0].received(), [1; 8]);
}

/// No data move before a host waits. So the sent bytes are those that earlier work on the stream has written.
#[test]
fn work_runs_as_late_as_allowed() {
    let both = ranks(2);
    for (rank, r) in both.iter().enumerate() {
        // SAFETY: the range is allocated.
        unsafe { r.gpu.fill(r.memory, 10 + rank as u8, 64, r.stream) }.unwrap();
        assert!(if rank == 0 { r.send(8, 1) } else { r.receive(8, 0) }.is_accepted());
        assert_eq!(r.state(), NcclResult::SUCCESS);
    }
    assert_eq!([both[0].gpu.launch_count(), both[1].gpu.launch_count()], [0, 0]);
    let event = both[1].gpu.event().unwrap();
    // SAFETY: event and stream are live.
    let answers = unsafe {
        both[1].gpu.record(event, both[1].stream).unwrap();
        [(); 5].map(|()| both[1].gpu.is_complete(event).unwrap())
    };
    assert!(!answers[0] && !answers[1] && answers[4], "the event completes only after several queries: {answers:?}");
    assert_eq!(both[1].received(), [10; 8]);
}

#[test]
fn ungrouped_sends_to_each_other_hang() {
    let both = ranks(2);
    let errors = on_threads(&both, |rank, r| {
        assert!(r.send(8, 1 - rank).is_accepted());
        assert_eq!(r.state(), NcclResult::SUCCESS);
        assert!(r.receive(8, 1 - rank).is_accepted());
        assert_eq!(r.state(), NcclResult::SUCCESS);
        r.synchronize().unwrap_err()
    });
    for error in errors {
        let hang = "the GPU would wait forever: rank 0 in group 1: sends 8 bytes to rank 1; \
                    rank 1 in group 1: sends 8 bytes to rank 0";
        assert!(error.contains(hang), "{error}");
    }
}

#[test]
fn sends_and_receives_of_different_sizes_hang() {
    let both = ranks(2);
    let errors = on_threads(&both, |rank, r| {
        assert!(if rank == 0 { r.send(8, 1) } else { r.receive(12, 0) }.is_accepted());
        assert_eq!(r.state(), NcclResult::SUCCESS);
        r.synchronize().unwrap_err()
    });
    let words = "rank 0 in group 1: sends 8 bytes to rank 1, which receives 12 bytes; \
                 rank 1 in group 1: receives 12 bytes from rank 0, which sends 8 bytes";
    assert!(errors.iter().all(|e| e.contains(words)), "{errors:?}");
}

#[test]
fn a_send_without_a_receive_hangs_until_the_abort() {
    let all = ranks(3);
    assert!(all[0].send(8, 2).is_accepted());
    assert_eq!(all[0].state(), NcclResult::SUCCESS);
    // A hang is reported only if no other rank can still act. So rank 1 aborts too, although it takes no part in the
    // transfer.
    for rank in [&all[1], &all[2]] {
        // SAFETY: the communicator is not used later.
        unsafe { rank.nccl.abort(rank.comm) };
    }
    let error = all[0].synchronize().unwrap_err();
    assert!(
        error.contains("rank 0 in group 1: sends 8 bytes to rank 2, which has aborted its communicator"),
        "{error}"
    );
    assert_eq!(all[0].state(), NcclResult::REMOTE_ERROR);
    // SAFETY: the communicator is not used later.
    unsafe { all[0].nccl.abort(all[0].comm) };
    all[0].synchronize().unwrap();
}

#[test]
fn prohibited_calls_are_reported() {
    let both = ranks(2);
    let (r, other) = (&both[0], &both[1]);
    assert_eq!(r.send(8, 2), NcclResult::INVALID_ARGUMENT);
    assert_eq!(r.nccl.group_end(), NcclResult::INVALID_USAGE);
    assert!(r.gpu.violations().is_empty());

    // SAFETY: the fake NCCL checks the communicator.
    assert_eq!(unsafe { other.nccl.async_error(r.comm) }, NcclResult::INVALID_ARGUMENT);
    violation(other, "use of another GPU's communicator");

    assert!(r.send(8, 1).is_accepted());
    assert_eq!(r.send(8, 1), NcclResult::INVALID_USAGE);
    violation(r, "a group on a communicator whose previous call is in progress");
    // SAFETY: the range is allocated.
    unsafe { r.gpu.fill(r.memory, 3, 8, r.stream) }.unwrap();
    r.state();
    violation(r, "work was enqueued on a stream while NCCL was enqueueing a group on it");

    // SAFETY: the fake NCCL checks the communicator.
    unsafe { r.nccl.abort(r.comm) };
    assert_eq!(r.state(), NcclResult::INVALID_ARGUMENT);
    violation(r, "use of a communicator that was destroyed or aborted");
}

#[test]
fn finalizing_waits_for_the_other_ranks() {
    let both = ranks(2);
    // SAFETY: the communicators are live, and are not used after they are destroyed.
    unsafe {
        assert_eq!(both[0].nccl.finalize(both[0].comm), NcclResult::IN_PROGRESS);
        assert_eq!(both[0].state(), NcclResult::IN_PROGRESS);
        assert_eq!(both[1].nccl.finalize(both[1].comm), NcclResult::IN_PROGRESS);
        for rank in &both {
            assert_eq!([rank.state(), rank.nccl.destroy(rank.comm)], [NcclResult::SUCCESS; 2]);
        }
    }
    assert!(both.iter().all(|rank| rank.gpu.violations().is_empty()));
}

/// Ranks are compared by their GPU and not by the driver object.
#[test]
fn a_second_rank_on_a_gpu_is_refused() {
    let gpu = FakeDriver::new(Arch::H100, 1 << 20);
    let [one, two] = [gpu.clone(), gpu].map(|gpu| Arc::new(gpu).nccl().unwrap());
    let id = one.unique_id().unwrap();
    let comms = [one.init_rank(2, &id, 0).unwrap(), two.init_rank(2, &id, 1).unwrap()];
    // SAFETY: the communicators are live.
    let states = unsafe { [one.async_error(comms[0]), two.async_error(comms[1])] };
    assert_eq!(states, [NcclResult::INVALID_USAGE; 2]);
    assert_eq!(one.describe(states[0]), "Duplicate GPU detected : rank 1 and rank 0 both on one CUDA device");
}
