//! Launches, and the devices that execute them.
//!
//! - What is a launch? Plain data: [`launch`].
//! - How does CUDA become machine code? [`compile`].
//! - How does a launch run on a GPU, real or fake? [`cuda`]; on the simulator: [`simulate`].
//! - What does code for the CPU need? [`Team`] and [`cpu`].
//!
//! The kernels are above this crate: it names none, and a launch carries the code that executes it.

pub mod compile;
pub mod cpu;
pub mod cuda;
pub mod launch;
pub mod simulate;
mod team;

pub use launch::{Addr, Arch, Cost, DType, Element, Kernel, KernelLaunch, Launch, Source, Stage};
pub use team::Team;
