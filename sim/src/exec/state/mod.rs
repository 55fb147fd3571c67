//! The state of a running grid as plain data: warps and their fragments, blocks and their barriers, mbarrier objects,
//! and the asynchronous operations of a warp. The parts of the machine (`scheduler`, `memory_system`, `async_engine`)
//! act on it.

pub mod barrier;
pub mod block;
pub mod copies;
pub mod location;
pub mod mbarrier;
pub mod warp;
pub mod wgmma;
