//! NCCL, which moves memory between the GPUs of several ranks (processes, or threads in tests). Each rank has one GPU.
//!
//! The trait [`Nccl`] has the library's calls. `library.rs` implements it with NVIDIA's library, which is opened at run
//! time; the fake driver implements it for machines without a GPU (`fake/nccl.rs`).
//! `communicator.rs` is the interface for the rest of the program.
//!
//! Rules of NCCL that the code relies on and that the fake enforces. Source: NVIDIA's NCCL user guide 2.32, sections
//! "Creating a Communicator", "Error handling and communicator abort", "Fault Tolerance", "Group Calls",
//! "Point-to-point communication", "CUDA Stream Semantics" and "Thread Safety".
//!
//! - One rank creates a [`UniqueId`] and gives it to all ranks. Each id makes one communicator, and each rank of a
//!   communicator has a GPU of its own.
//! - A call returns when its work is enqueued on the stream. The work runs in stream order.
//! - A send waits on the GPU for a receive of the same size by the other rank, and a receive for a send. The sends and
//!   receives between [`Nccl::group_start`] and [`Nccl::group_end`] wait for each other; without a group, two ranks
//!   that first send and then receive wait forever. Sends and receives with the same peer match in the order of the
//!   calls.
//! - This project's communicators are nonblocking, because only these can be aborted at any time. A call may then
//!   return [`NcclResult::IN_PROGRESS`]. Until [`Nccl::async_error`] returns success, no other call is allowed on the
//!   communicator, and nothing may be enqueued on its stream.
//! - When another rank ends or the network fails, the calls succeed, and [`Nccl::async_error`] returns the error. Work
//!   that waits for the lost rank never completes. After an error, except for an invalid argument, the communicator can
//!   only be aborted.
//! - One thread at a time may use a communicator, and one thread makes all calls of a group.
//!
//! NCCL's kernels run on a stream while they wait for other ranks, so the host must not wait for the GPU without a time
//! limit. `Communicator::check` is the watchdog.
#![allow(unsafe_code)]

mod library;

use super::types::StreamHandle;
pub(super) use library::NcclLibrary;
pub use library::{installed_version, library_beside_toolkit};

/// The id with which ranks join the same communicator (`ncclUniqueId`).
pub type UniqueId = [u8; 128];

/// A communicator (`ncclComm_t`): one rank's membership in a group of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommHandle(pub usize);

/// The result of a call (`ncclResult_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NcclResult(pub i32);

impl NcclResult {
    /// The call succeeded.
    pub const SUCCESS: NcclResult = NcclResult(0);
    /// A call to CUDA failed.
    pub const UNHANDLED_CUDA_ERROR: NcclResult = NcclResult(1);
    /// A system call failed, such as a connection.
    pub const SYSTEM_ERROR: NcclResult = NcclResult(2);
    /// A check inside NCCL failed.
    pub const INTERNAL_ERROR: NcclResult = NcclResult(3);
    /// An argument is invalid; the call had no effect.
    pub const INVALID_ARGUMENT: NcclResult = NcclResult(4);
    /// The call is not allowed now.
    pub const INVALID_USAGE: NcclResult = NcclResult(5);
    /// Another rank has ended, or the network has failed.
    pub const REMOTE_ERROR: NcclResult = NcclResult(6);
    /// The call continues in the background.
    pub const IN_PROGRESS: NcclResult = NcclResult(7);

    /// The name of this result in nccl.h.
    pub fn name(self) -> String {
        const NAMES: [&str; 9] = [
            "ncclSuccess",
            "ncclUnhandledCudaError",
            "ncclSystemError",
            "ncclInternalError",
            "ncclInvalidArgument",
            "ncclInvalidUsage",
            "ncclRemoteError",
            "ncclInProgress",
            "ncclTimeout",
        ];
        let known = usize::try_from(self.0).ok().and_then(|code| NAMES.get(code));
        known.map_or_else(|| format!("ncclResult_t {}", self.0), |name| (*name).to_string())
    }

    /// Whether the call was accepted: it is done or in progress.
    pub fn is_accepted(self) -> bool {
        [NcclResult::SUCCESS, NcclResult::IN_PROGRESS].contains(&self)
    }
}

/// The NCCL library, for the communicators of one GPU.
///
/// The caller of an unsafe function ensures that the communicator is live, that no other thread uses it, that the
/// stream and the memory belong to this GPU, and that the memory stays allocated until the work is done.
#[allow(clippy::missing_safety_doc)]
pub trait Nccl: Send + Sync {
    /// The version, for example 23203 for 2.32.3.
    fn version(&self) -> u32;
    /// Describes an error in one line: the code's meaning, and the last error that the library has recorded.
    fn describe(&self, result: NcclResult) -> String;
    /// Creates an id for one communicator.
    fn unique_id(&self) -> Result<UniqueId, NcclResult>;
    /// Begins to create the nonblocking communicator of rank `rank` among `size` ranks; all ranks make this call. The
    /// communicator is created when [`Nccl::async_error`] returns success.
    fn init_rank(&self, size: usize, id: &UniqueId, rank: usize) -> Result<CommHandle, NcclResult>;
    /// Returns the state of the communicator: success, in progress, or an error that has occurred since its creation.
    unsafe fn async_error(&self, comm: CommHandle) -> NcclResult;
    /// Begins a group of sends and receives by this thread.
    fn group_start(&self) -> NcclResult;
    /// Ends this thread's group and enqueues its sends and receives.
    fn group_end(&self) -> NcclResult;
    /// Sends `bytes` bytes at `from` to rank `peer`.
    unsafe fn send(&self, from: u64, bytes: usize, peer: usize, comm: CommHandle, stream: StreamHandle) -> NcclResult;
    /// Receives `bytes` bytes from rank `peer` at `to`.
    unsafe fn receive(&self, to: u64, bytes: usize, peer: usize, comm: CommHandle, stream: StreamHandle) -> NcclResult;
    /// Begins to end the communicator: completes its work and waits for the other ranks, which make this call too.
    /// The communicator has ended when [`Nccl::async_error`] returns success.
    unsafe fn finalize(&self, comm: CommHandle) -> NcclResult;
    /// Frees a communicator that [`Nccl::finalize`] has ended.
    unsafe fn destroy(&self, comm: CommHandle) -> NcclResult;
    /// Frees a communicator at once. Unfinished work of the communicator ends with undefined results.
    unsafe fn abort(&self, comm: CommHandle) -> NcclResult;
}
