//! Tests of scalar kernels that nvcc compiled: planted bugs and their correct twins, divergence, instruction
//! families, determinism.

mod corpus;
mod divergence;
mod families;
mod harness;
