//! Asynchronous instructions in whole kernels: results, findings at planted bugs, and none in their correct twins.

#[path = "async_ops/clusters.rs"]
mod clusters;
#[path = "async_ops/common.rs"]
mod common;
#[path = "async_ops/copies.rs"]
mod copies;
#[path = "async_ops/dependents.rs"]
mod dependents;
#[path = "async_ops/gemm.rs"]
mod gemm;
#[path = "async_ops/mbarriers.rs"]
mod mbarriers;
#[path = "async_ops/mma.rs"]
mod mma;
#[path = "async_ops/tensors.rs"]
mod tensors;
#[path = "async_ops/wgmmas.rs"]
mod wgmmas;
