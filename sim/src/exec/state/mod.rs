//! The state of a running grid as plain data: warps, blocks, barriers, mbarriers, and asynchronous operations.
//! `scheduler`, `interpreter`, `memory_system` and `async_engine` change it.

pub mod barrier;
pub mod block;
pub mod copies;
pub mod location;
pub mod mbarrier;
pub mod tensor_memory;
pub mod warp;
pub mod wgmma;
