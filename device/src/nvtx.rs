//! NVTX ranges: named spans of host time that NVIDIA Nsight shows. Every launch is one span. Without the feature `nvtx`
//! the ranges do nothing, and without a profiling tool they cost almost nothing.

/// A named span of host time. It ends when this value is dropped, which must be on the thread that began it.
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
