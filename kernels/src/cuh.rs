//! The CUDA headers that kernels share: one device instruction, one small function.

/// Name as kernels include it, and text.
pub const HEADERS: &[(&str, &str)] = &[];
