//! Barriers of a block and of a cluster: arrival, completion, and the vector clocks that waiting threads acquire.

pub mod block_barrier;
pub mod cluster_barrier;
