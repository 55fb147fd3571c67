//! The memory system: global buffers and shared memory, the bounds and alignment of accesses, and the race checks of
//! every access against shadow memory.
//!
//! An access of a warp goes through these steps:
//!
//! ```text
//! locate:   addresses of 32 lanes -> groups of lanes by buffer or shared memory; bad lanes are reported and dropped
//! for each group:
//!     count_traffic:  sectors of global memory, passes through the banks of shared memory
//!     check:          shadow memory finds conflicts with earlier accesses; the reporter makes findings of them
//!     move the bytes between memory and registers
//!     strong accesses: acquire and release through the variables of synchronisation
//! ```

mod atomics;
mod check;
mod combine;
mod load;
mod local;
mod locate;
mod matrix_rows;
mod registers;
mod store;
mod system;
mod wmma;

pub use locate::AccessRequest;
pub use system::MemorySystem;
