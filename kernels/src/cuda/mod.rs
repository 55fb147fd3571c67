//! A GPU through its driver: memory, launches of our kernels, matrix products, and the time that they take.
//!
//! [`Driver`] is what is asked of a driver; [`Nvidia`] is NVIDIA's, opened at run time, and [`fake::Fake`] one for machines without a
//! GPU, which enforces the documented rules and runs launches on the simulator. [`Gpu`] is the door that everything goes through: it
//! loads kernels at first use and checks each launch against [`rules`] before the driver sees it.
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

#[cfg(test)]
mod tests;

pub use algorithms::Algorithms;
pub use driver::Driver;
pub use error::CudaError;
pub use gpu::{Buffer, Foreign, Gpu};
pub use graph::Recorded;
pub use nvidia::Nvidia;
