//! The asynchronous engine: `cp.async`, bulk and tensor copies, `st.async`, mbarriers, and products of wgmma and
//! tcgen05.
//!
//! Steps of an asynchronous copy:
//!
//! ```text
//! issue:     check bounds; tell shadow memory which bytes the operation reads and writes;
//!            add it to the operations in flight (or complete it now, as the run's CompletionTiming says)
//! complete:  move the bytes, then signal:
//!            - bulk load: complete_tx on an mbarrier; cp.async.mbarrier.arrive: arrivals at an mbarrier
//!            - nothing for cp.async and bulk stores: their groups are completed by wait_group
//! observe:   a thread that waits (mbarrier wait, wait_group) has observed the completion from then on;
//!            an access to the copied bytes by a thread that has not observed it is reported
//! ```
//!
//! The phases of an mbarrier:
//!
//! ```text
//! init(count):   pending = count, bytes = 0, phase = 0
//! arrive:        pending -= 1; the phase collects the thread's vector clock
//! expect_tx(n):  bytes += n          complete_tx(n), also by a copy: bytes -= n
//! pending == 0 and bytes == 0:  phase += 1, pending = count; waiting warps are woken
//! wait(phase):   once that phase is over, the thread joins the clocks that the phase collected
//! ```

mod block_end;
mod bulk;
mod cp_async;
mod descriptor_rank;
mod effects;
mod engine;
mod launch_control;
mod mbarrier;
mod mbarrier_access;
mod tcgen05;
mod tensor;
mod tensor_map_update;
mod wgmma;
mod wgmma_compute;
mod wgmma_deferred;
mod wgmma_registers;

pub use bulk::{AsyncStore, commit_bulk_group, wait_for_bulk_groups};
pub use cp_async::cp_async_commit;
pub use engine::AsyncEngine;
pub use tensor_map_update::{TensorMapReplace, tensormap_cp_fenceproxy, tensormap_replace};
pub use wgmma::{report_missing_warps, wgmma_commit, wgmma_fence};
pub use wgmma_deferred::write_deferred_sums;
pub use wgmma_registers::access_wgmma_registers;
