//! Matrix instructions as pure functions of registers and bytes: which lane holds what, and the arithmetic.
//!
//! Nothing here knows of memory, clocks or orders; the interpreter fetches, checks and stores.

mod format;
pub mod ldmatrix;
pub mod mma;
pub mod wgmma;

/// A 32-bit register of a warp: one word a lane.
pub type Lanes = [u32; 32];

/// Calls `f` compiled for AVX2 and FMA where the machine has them. Results do not depend on it: multiply-add is fused
/// either way.
#[inline(always)]
pub(crate) fn vectorized<F: pulp::NullaryFnOnce>(f: F) -> F::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(v3) = pulp::x86::V3::try_new() {
        return v3.vectorize(f);
    }
    f.call()
}
