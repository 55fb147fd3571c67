//! Devices and buffers ([`device`]); tensors, ops and the autograd tape ([`tensor`]); the optimizer ([`optim`]).
//!
//! Every op calls [`Device::launch`] with plain data, so a new device needs no change to ops or models. Read
//! [`tensor::cx`] first: it shows how an op computes and how it records its backward rule.

pub mod device;
mod error;
pub mod optim;
pub mod tensor;

pub use device::{Capabilities, Device, Hardware, Kernels, MemoryCategory, MemoryUse, OpTotals, SimOptions};
pub use error::{Result, RuntimeError, format_bytes};
pub use reel_device::{Addr, Cost, DType, Launch};
pub use tensor::cx::{Checkpointing, Cx};
pub use tensor::ops;
pub use tensor::tape::Grads;
pub use tensor::{Saved, Tensor, TensorMeta, format_shape};
