//! Decodes videos in worker processes: a file that crashes FFmpeg, hangs it or exhausts its memory gives one error
//! message and does not harm the caller.
//!
//! Starting a process takes ten times as long as decoding a short clip, because the dynamic linker loads FFmpeg's
//! hundred libraries. So the caller starts a *worker server* once, which forks a *worker* for each video. The worker
//! inherits the loaded libraries and no data of other videos. The server is the caller's program, started with the
//! hidden argument [`WORKER_ARGUMENT`]; the server calls [`worker_main`]. Protocol:
//! ```text
//! caller                            server                            worker (one video)
//! start the server once        ---> wait for jobs on a socket
//! create a memfd, write a
//! WorkerRequest (JSON)
//! send memfd and two pipes     ---> fork                         ---> limit its address space
//!                                   wait for the worker               read the request from standard input (memfd)
//!                                                                     decode into the memfd, over the request
//! read the reply until the deadline                              <--- write a WorkerReply (JSON, no pixels), exit 0
//! read the exit status         <--- send the exit status
//! check and seal the memfd, map it as pixels
//! ```
//! At the deadline the caller kills the server together with its worker, and starts another server for the next video.
//! An idle server waits for the next video. Each server has one worker at a time; threads that decode at the same time
//! use several servers. The kernel kills a worker when its server exits. A server exits when the caller exits, because
//! the socket is then closed.
//!
//! If a worker is killed, misses the deadline or fails without a reply, a new worker tries to decode it once more.
//! A worker that has met a damaged file replies so, even if its decoder panicked. A failure without a reply, or for
//! lack of threads, processes or open files, is [`crate::MediaError::Worker`], which is never the file's fault.
//!
//! A server has a process group of its own, so that Ctrl-C in a terminal reaches only the caller.

#![allow(unsafe_code)]

mod caller;
mod frame_cache;
mod process;
mod protocol;
mod serve;

pub use caller::{DEFAULT_DECODE_MEMORY_MIB, DEFAULT_DECODE_TIMEOUT, DecodeWorker, WORKER_ARGUMENT};
pub use frame_cache::FrameCache;
pub use serve::{run_job, serve_jobs, worker_main};
