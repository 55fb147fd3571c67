//! Runs code with the widest vector instructions of the host's processor.

/// Runs `f` compiled for AVX2 and FMA if the processor has them, otherwise for the baseline.
///
/// Only code that is inlined into `f` is compiled this way, so `f` and the loops that it calls must be
/// `#[inline(always)]`. Results do not depend on the processor: `mul_add` rounds once in both cases.
#[inline(always)]
pub fn run_with_widest_simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
