//! What code for the CPU needs: instruction sets, and memory on large pages.

pub mod large_pages;
pub mod simd;
