//! Whole jobs: their launch, how their ranks find each other, what calls return, and how jobs fail.

mod calls;
mod common;
mod failures;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod rendezvous;
