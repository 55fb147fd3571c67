//! Tests of whole jobs: launch, rendezvous, the results of calls, and failures.

mod calls;
mod common;
mod failures;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod rendezvous;
