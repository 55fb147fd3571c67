//! Names for stretches of the host's time that NVIDIA's Nsight shows, by NVTX: every launch is one. Without the feature `nvtx` they
//! are nothing, and where no tool looks they cost next to nothing.

/// A stretch that ends when this is dropped, on the thread that began it.
pub struct Range {
    #[cfg(feature = "nvtx")]
    _range: nvtx::LocalRange,
}

/// Begins a stretch.
#[must_use]
pub fn range(name: &str) -> Range {
    #[cfg(not(feature = "nvtx"))]
    let _ = name;
    Range {
        #[cfg(feature = "nvtx")]
        _range: nvtx::LocalRange::new(std::ffi::CString::new(name).unwrap_or_default()),
    }
}
