//! Opens NVIDIA's libraries at run time: NVRTC, cuBLASLt and NCCL.
#![allow(unsafe_code)]

use std::error::Error;
use std::ffi::{CStr, OsStr};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// An open library. The functions that it returns may be called as long as this value exists.
#[derive(Debug)]
pub struct SharedLibrary(Library);

impl SharedLibrary {
    /// Opens the library with this path, or with this name in the loader's search path. The library's initialisers
    /// must have no preconditions; NVIDIA's libraries have none.
    ///
    /// # Errors
    /// The library cannot be opened. The error is the message of the system's loader in one line.
    pub fn open(name: impl AsRef<OsStr>) -> Result<Self, String> {
        let name = name.as_ref();
        // SAFETY: the initialisers have no preconditions.
        unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.map(Self).map_err(|e| one_line(&e))
    }

    /// Returns the function with this name.
    ///
    /// # Safety
    /// `T` is the function pointer type that the library's header declares.
    ///
    /// # Errors
    /// The library has no such function. The error is the reason in one line.
    pub unsafe fn function<T: Copy>(&self, name: &CStr) -> Result<T, String> {
        // SAFETY: the caller guarantees the type.
        unsafe { self.0.get::<T>(name) }.map(|function| *function).map_err(|e| one_line(&e))
    }
}

/// Returns the innermost cause of an error in one line. That cause is the message of the system's loader, which says
/// more than libloading's error around it.
pub fn one_line(e: &dyn Error) -> String {
    let mut cause = e;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::ffi::c_int;

    use super::*;

    #[test]
    fn functions_are_found_and_errors_are_one_line() {
        let library = SharedLibrary::open("libc.so.6").unwrap();
        type Abs = unsafe extern "C" fn(c_int) -> c_int;
        // SAFETY: this is the type of `abs` in stdlib.h.
        let abs = unsafe { library.function::<Abs>(c"abs") }.unwrap();
        // SAFETY: `abs` has no preconditions for this number.
        assert_eq!(unsafe { abs(-3) }, 3);
        // SAFETY: the library has no such function, so none is called.
        let missing = unsafe { library.function::<Abs>(c"reel_has_no_such_function") }.unwrap_err();
        let unknown = SharedLibrary::open("/nowhere/libreel.so.9").unwrap_err();
        assert!(missing.contains("reel_has_no_such_function") && !missing.contains('\n'), "{missing}");
        assert!(unknown.contains("/nowhere/libreel.so.9") && !unknown.contains('\n'), "{unknown}");
    }
}
