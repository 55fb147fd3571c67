//! Access to a GPU through its driver: memory, kernel launches, matrix products, and their run times.
//!
//! The trait [`Driver`] has the driver's calls. [`Nvidia`] implements it with NVIDIA's driver, which is opened at run
//! time. [`fake::FakeDriver`] implements it for machines without a GPU: it enforces the documented rules and runs
//! launches on the simulator. [`Gpu`] is the interface for the rest of the program: it loads kernels at first use and
//! checks each launch against [`rules`] before it calls the driver.
#![allow(unsafe_code)]

mod algorithms;
pub mod arena;
pub mod blas;
pub mod cublaslt;
pub mod driver;
mod error;
pub mod fake;
mod gpu;
mod graph;
mod nvidia;
pub mod rules;
mod types;

pub use algorithms::{AlgorithmFingerprint, ProductShape};
pub use driver::Driver;
pub use error::CudaError;
pub use gpu::{Buffer, Gpu, PtxFunction};
pub use graph::GpuGraph;
pub use nvidia::Nvidia;
