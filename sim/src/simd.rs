//! Runs code with the widest vector instructions of the host's processor.

/// Runs `f` compiled for AVX2 and FMA if the processor has them, otherwise for the baseline.
///
/// Only code that is inlined into `f` gets the wide instructions, so `f` and the loops that it calls must be
/// `#[inline(always)]`. Results are the same either way; `mul_add` is fused in both.
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
