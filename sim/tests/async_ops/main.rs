//! Asynchronous instructions in whole kernels: results, findings at planted bugs, and none in their correct twins.

mod clusters;
mod common;
mod copies;
mod dependents;
mod gemm;
mod mbarriers;
mod mma;
mod tensors;
mod wgmmas;
