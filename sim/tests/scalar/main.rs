//! Scalar kernels, compiled by nvcc, on the simulator: planted mistakes and their correct twins, divergence,
//! instruction families, determinism.

mod corpus;
mod divergence;
mod families;
mod harness;
