//! NVTX ranges: named spans of host time that NVIDIA Nsight shows. Every launch is one. Without the feature `nvtx` they
//! are empty, and without a profiling tool they cost almost nothing.

/// A named span of host time, which ends when this is dropped on the thread that began it.
pub struct NvtxRange {
    #[cfg(feature = "nvtx")]
    _range: nvtx::LocalRange,
}

/// Begins a named span of host time.
#[must_use]
pub fn nvtx_range(name: &str) -> NvtxRange {
    #[cfg(not(feature = "nvtx"))]
    let _ = name;
    NvtxRange {
        #[cfg(feature = "nvtx")]
        _range: nvtx::LocalRange::new(std::ffi::CString::new(name).unwrap_or_default()),
    }
}
