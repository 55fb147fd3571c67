//! The memory system: global buffers and shared memory, the bounds and alignment of accesses, and the race checks of
//! every access against shadow memory.
//!
//! Steps of an access by a warp:
//!
//! ```text
//! locate:   group the 32 lanes by buffer or shared memory; report and drop lanes with a bad address
//! for each group:
//!     count_traffic:  sectors of global memory, passes through the banks of shared memory
//!     check:          shadow memory finds conflicts with earlier accesses; the reporter makes findings of them
//!     move the bytes between memory and registers
//!     strong accesses: acquire or release vector clocks at their addresses
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
mod unwritten;
mod wmma;

pub use check::AccessSize;
pub use locate::AccessRequest;
pub use system::MemorySystem;
pub use unwritten::copy_register;
