//! Decodes videos in worker processes: a file that crashes FFmpeg, hangs it or exhausts its memory gives one error
//! message and does not harm the caller.
//!
//! The worker is the same program with the hidden argument [`WORKER_ARGUMENT`], which calls [`worker_main`]. Protocol:
//! ```text
//! caller                                           worker
//! create a memfd, write a WorkerRequest (JSON)
//! start the worker, memfd as standard input  --->  read the request
//!                                                  limit its own address space, die with the caller
//!                                                  decode into the memfd (the pixels replace the request)
//! read the reply until the deadline          <---  write a WorkerReply (JSON, no pixels) to standard output, exit 0
//! kill the process group at the deadline
//! check and seal the memfd, map it as pixels
//! ```
//! A worker that was killed or missed the deadline is replaced once by a new one.
//!
//! The worker has a process group of its own, so that Ctrl-C in a terminal reaches only the caller.

#![allow(unsafe_code)]

mod caller;
mod process;
mod protocol;
mod serve;

pub use caller::{DEFAULT_DECODE_MEMORY_MIB, DEFAULT_DECODE_TIMEOUT, DecodeWorker, WORKER_ARGUMENT};
pub use serve::worker_main;
