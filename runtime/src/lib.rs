//! Devices and buffers ([`device`]), tensors, ops and the autograd tape ([`tensor`]), and the optimizer ([`optim`]).
//!
//! Every op goes through [`Device::launch`] with plain data, so that a device is added beside the others without
//! touching a model.

pub mod device;
mod error;
pub mod optim;
pub mod tensor;

pub use device::{Category, Device, Hardware, Kernels, MemoryUse, OpTotals, SimOptions};
pub use error::{Result, RuntimeError};
pub use reel_kernels::{Addr, Cost, DType, Launch};
pub use tensor::cx::Cx;
pub use tensor::ops;
pub use tensor::tape::Grads;
pub use tensor::{Tensor, dims};
