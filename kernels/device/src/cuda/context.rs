//! The context of NVIDIA's driver that a thread uses.
#![allow(unsafe_code)]

use std::cell::Cell;

use cudarc::driver::{result, sys};

use super::error::{CudaError, named};

/// A GPU's primary context (a `CUcontext`).
#[derive(Clone, Copy)]
pub(super) struct Context(pub(super) usize);

impl Context {
    /// Makes the context current on this thread, unless it already is.
    ///
    /// # Safety
    /// The context must be retained.
    pub(super) unsafe fn make_current(self) -> Result<(), CudaError> {
        thread_local! { static CURRENT: Cell<usize> = const { Cell::new(0) } }
        if CURRENT.get() != self.0 {
            // SAFETY: the caller guarantees that the context is retained.
            named("opening a CUDA context", unsafe { result::ctx::set_current(self.0 as sys::CUcontext) })?;
            CURRENT.set(self.0);
        }
        Ok(())
    }
}
