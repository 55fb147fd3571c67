//! Tests of whole kernels with asynchronous instructions: correct kernels have right results and no findings, and
//! planted bugs are reported.

mod clusters;
mod common;
mod copies;
mod dependents;
mod gemm;
mod mbarriers;
mod mma;
mod ranks;
mod tcgen05;
mod tensors;
mod wgmmas;
