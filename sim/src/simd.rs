//! The widest vector instructions of this machine.

/// Runs `f` compiled for AVX2 and FMA where the processor has them, else for the baseline.
///
/// Only what is inlined into `f` gets the wide instructions: `f` and the loops that it calls must be `#[inline(always)]`,
/// else they run as compiled for the baseline. Results are the same either way; `mul_add` is fused in both.
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
