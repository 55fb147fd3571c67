//! Tensors, ops and the autograd tape ([`tensor`]); the optimizer ([`optim`]).
//!
//! Every op calls [`Device::launch`](reel_device::Device::launch) with plain data, so a new device needs no change to
//! ops or models. Read [`tensor::cx`] first: it shows how an op computes and how it records its backward rule.

mod error;
pub mod optim;
pub mod tensor;

pub use error::{Result, RuntimeError};
pub use tensor::cx::{Checkpointing, Cx, GatheredWeights};
pub use tensor::ops;
pub use tensor::tape::{BackwardEvent, Grads, WeightUnit};
pub use tensor::{OnDemandMemory, SavedTensor, Tensor, TensorMeta, format_shape};
