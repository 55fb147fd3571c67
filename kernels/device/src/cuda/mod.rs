//! Access to a GPU through its driver: memory, kernel launches, matrix products, and their run times.
//!
//! The trait [`Driver`] has the driver's calls. [`Nvidia`] implements it with NVIDIA's driver, which is opened at run
//! time. [`fake::FakeDriver`] implements it for machines without a GPU: it enforces the documented rules and runs
//! launches on the simulator. [`Gpu`] is the interface for the rest of the program: it loads kernels at first use and
//! checks each launch against [`rules`] before it calls the driver. Device `cuda` (`device.rs`) builds on [`Gpu`]:
//! its memory is a pool, its copies go through page-locked memory, and its profiler records events.
#![allow(unsafe_code)]

mod algorithms;
pub mod arena;
pub mod blas;
mod communicator;
#[cfg(test)]
mod communicator_tests;
mod context;
mod copy_ring;
pub mod cublaslt;
mod device;
pub mod driver;
mod driver_calls;
mod error;
pub mod fake;
mod gpu;
mod graph;
mod memory;
pub mod nccl;
mod nvidia;
pub mod rules;
mod staging;
mod timeline;
#[cfg(test)]
mod timeline_tests;
mod types;

pub use algorithms::{AlgorithmFingerprint, ProductShape};
pub(crate) use communicator::Communicator;
pub(crate) use device::Cuda;
pub use device::{MIN_WAVE_SHARE, MULTI_STREAM_BYTES, MatmulImplementation};
pub use driver::Driver;
pub use driver_calls::DriverLibrary;
pub(crate) use error::device_error;
pub use error::{CudaError, cuda_version_text};
pub use gpu::{Buffer, Gpu, PtxFunction};
pub use graph::GpuGraph;
pub use nvidia::Nvidia;
