//! What `tcgen05` instructions have queued: products and the arrivals of `tcgen05.commit`, one pipe per thread.

use crate::exec::state::mbarrier::MbarrierLocation;
use crate::finding::FindingSite;
use crate::matrix::tcgen05::MmaShape;
use crate::matrix::wgmma::SharedOperand;
use crate::order::{AsyncOpId, VectorClock};
use std::collections::VecDeque;

/// The state that `tcgen05` instructions share.
#[derive(Debug, Default)]
pub struct TensorCore {
    /// The queues of products and arrivals that have not been executed, one per thread; none is empty.
    pub(in crate::exec::async_engine) pipes: Vec<TensorPipe>,
    /// Whether the kernel has `tcgen05.fence` instructions; `None` until the first instruction that needs to know.
    pub(super) has_fences: Option<bool>,
}

/// The products and arrivals of one thread that have not been executed.
#[derive(Debug)]
pub struct TensorPipe {
    /// Slot of the thread's block, its warp and its lane.
    pub(super) thread: (u32, u32, u32),
    /// What has not been executed, in order.
    pub(super) items: VecDeque<PipeItem>,
}

/// An entry of a pipe.
#[derive(Debug)]
pub(super) enum PipeItem {
    /// A product.
    Product(Box<QueuedProduct>),
    /// An arrival at mbarriers, which observes the completion of the operation `op` and of those before it.
    Arrive {
        /// The operation of the products before the commit; `None` if there are none.
        op: Option<AsyncOpId>,
        mbarriers: Vec<MbarrierLocation>,
        /// What the thread knew: its products are ordered after it, and so is the arrival.
        clock: VectorClock,
        /// The commit.
        site: FindingSite,
    },
}

/// A product that was issued.
#[derive(Debug)]
pub(super) struct QueuedProduct {
    pub shape: MmaShape,
    /// Slots of the blocks that compute the product, by rank.
    pub slots: Vec<u32>,
    pub a: ProductOperand,
    pub b: SharedOperand,
    /// Address of D in tensor memory.
    pub d: u32,
    /// The factor of the old D; `None` if it is not added.
    pub scale_d: Option<f32>,
    /// Masks of lanes that are not written: empty, or four words per block.
    pub disabled_lanes: Vec<u32>,
}

/// Operand A of a product.
#[derive(Debug)]
pub(super) enum ProductOperand {
    /// In shared memory.
    Shared(SharedOperand),
    /// In tensor memory, at this address.
    Tensor(u32),
}
