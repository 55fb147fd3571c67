//! Tests of kernels that nvcc compiled, without asynchronous instructions: planted bugs and their correct twins,
//! divergence, instruction families, determinism.

mod corpus;
mod divergence;
mod families;
mod harness;
