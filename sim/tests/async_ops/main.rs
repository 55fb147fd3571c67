//! Whole kernels with asynchronous instructions: correct kernels have the right results and no findings, planted bugs
//! are reported.

mod clusters;
mod common;
mod copies;
mod dependents;
mod gemm;
mod mbarriers;
mod mma;
mod tensors;
mod wgmmas;
