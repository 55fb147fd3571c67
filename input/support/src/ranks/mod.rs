//! The processes (ranks) of one job find each other, exchange bytes, and end together when one of them fails. This
//! crate does not depend on a model or a device.
//!
//! ```no_run
//! # use std::path::Path;
//! # use reel_support::ranks::{RankError, Ranks, Timeouts, World};
//! # fn main() -> Result<(), RankError> {
//! let Some(world) = World::from_variables(|name| std::env::var(name).ok())? else { return Ok(()) };
//! let ranks = Ranks::join(world, Path::new("out"), Timeouts::default(), Box::new(|error| {
//!     eprintln!("{error}");
//!     std::process::exit(1);
//! }))?;
//! let sums = ranks.all_gather("sums of step 1", &1.5f32.to_le_bytes())?;
//! ranks.leave()
//! # }
//! ```
//!
//! [`World::from_variables`] reads the rank and size of this process from the launcher's variables (torchrun, mpirun,
//! srun, Kubernetes). [`Ranks::join`] connects the ranks. [`Ranks`] has the calls. No call reduces data, so the
//! caller chooses the order of its sums. [`Ranks::check_same`] finds ranks with other options or files.
//!
//! # Connections
//!
//! ```text
//!   control: a star                    data: a mesh, each connection made by the first call that needs it
//!
//!   1       2                          1 ───── 2
//!    ╲     ╱                           │ ╲   ╱ │
//!       0                              │   ╳   │
//!       │                              │ ╱   ╲ │
//!       3                              0 ───── 3
//! ```
//!
//! All connections are TCP. Each rank has two of its threads at work: a thread that calls [`Ranks`] uses the mesh, and
//! the watching thread uses the star.
//!
//! With the feature `mpi`, data go through MPI instead of the mesh if an MPI launcher has started the processes
//! ([`World::transport`]). The star is the same: it notices dead ranks, of which MPI says nothing.
//!
//! # Protocol
//!
//! 1. **Rendezvous.** Rank 0 listens at a free port. It writes its addresses, the port and a random token to the file
//!    `ranks-….json` in the job's folder, whose name is a hash of the job id. The other ranks wait for this file and
//!    connect: at 127.0.0.1 on the same machine, else at `MASTER_ADDR` and then at each address in the file.
//! 2. **Handshake.** A process that connects sends the token, its rank and the number of ranks. Without the right token
//!    its connection is closed. When all ranks have connected, rank 0 removes the file and sends each rank the
//!    addresses of all.
//! 3. **Calls.** For data, the higher rank of a pair connects to the lower one, with the same handshake. A message
//!    contains the kind, the name and the sequence number of its call. The receiver compares them with its own call.
//! 4. **Failures.** Each rank sends heartbeats with its last call to rank 0. Rank 0 declares the job failed if a
//!    control connection closes, heartbeats stop, a call waits too long, or a rank reports an error. It sends the
//!    failure to all ranks, so that all return the same error. If rank 0 itself ends, each rank notices that by its
//!    own control connection. By default all processes end at most 50 s after the first one.
//! 5. **Leaving.** A rank tells rank 0 that it will make no more calls, waits for a confirmation and closes its
//!    connections. Rank 0 leaves last. With MPI, each rank waits until rank 0 says that all have left, and then
//!    finalizes MPI.
//!
//! # Where to read on
//!
//! The files from below: `launch` and `rendezvous` start a job; `message`, `exchange` and `mesh` carry data by sockets,
//! `mpi` by MPI, and `link` is one of the two; `control`, `failure_detector` and `watch` notice failures; `ranks` has
//! the calls.

mod agreement;
mod call;
mod calls;
mod control;
mod error;
mod exchange;
mod failure_detector;
mod handshake;
mod launch;
mod link;
mod member;
mod mesh;
mod message;
#[cfg(feature = "mpi")]
mod mpi;
mod rendezvous;
mod shared;
mod timeouts;
mod traffic;
mod watch;

pub use agreement::Fact;
pub use calls::Ranks;
pub use error::{RankError, Result};
pub use launch::{Launcher, Transport, World};
pub use rendezvous::is_rendezvous_file;
pub use timeouts::Timeouts;
pub use traffic::{Traffic, TrafficVolume};
pub use watch::OnFailure;
