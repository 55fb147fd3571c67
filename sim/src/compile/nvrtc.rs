//! Bindings to NVRTC's C functions, opened at run time.
//!
//! They are written here and not taken from a crate for three reasons: the library's folder is only known at run
//! time, the builtins library must be opened before it, and a missing library must be an error value.
#![allow(unsafe_code)]

use std::error::Error;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::toolkit::{self, Toolkit};
use super::{CompileError, CompilerOutput, Unit};

type Status = c_int;
type Program = *mut c_void;
type Get<T> = unsafe extern "C" fn(Program, *mut T) -> Status;

/// NVRTC's functions, loaded from its library.
pub struct Nvrtc {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: Get<usize>,
    log: Get<c_char>,
    ptx_size: Get<usize>,
    ptx: Get<c_char>,
    cubin_size: Get<usize>,
    cubin: Get<c_char>,
    // Keeps the libraries open, because the function pointers above point into them.
    _libraries: Vec<Library>,
}

/// Returns the NVRTC of this machine, which the first call opens.
///
/// # Errors
/// NVRTC is not installed or cannot be used.
pub fn shared() -> Result<&'static Nvrtc, CompileError> {
    static NVRTC: OnceLock<Result<Nvrtc, CompileError>> = OnceLock::new();
    let open = || Nvrtc::open(&Toolkit::from_environment().nvrtc().ok_or(CompileError::NoNvrtc)?);
    NVRTC.get_or_init(open).as_ref().map_err(Clone::clone)
}

impl Nvrtc {
    /// Opens the library at `path`.
    ///
    /// # Errors
    /// It is not a library that can be opened, or it lacks a function.
    pub fn open(path: &Path) -> Result<Nvrtc, CompileError> {
        let failed = |path: &Path, reason: String| CompileError::Unusable { path: path.to_path_buf(), reason };
        let mut libraries = Vec::new();
        for p in toolkit::nvrtc_builtins_libraries(path).iter().map(|p| p.as_path()).chain([path]) {
            // SAFETY: the initialisers of NVIDIA's libraries have no preconditions.
            let opened = unsafe { Library::open(Some(p), RTLD_NOW | RTLD_LOCAL) };
            libraries.push(opened.map_err(|e| failed(p, one_line(&e)))?);
        }
        let library = libraries.last().expect("NVRTC itself was pushed");
        macro_rules! get {
            ($name:literal) => {
                // SAFETY: the field's type is the function's type in nvrtc.h of CUDA 13.
                unsafe { library.get($name) }.map(|function| *function).map_err(|e| failed(path, one_line(&e)))?
            };
        }
        Ok(Nvrtc {
            version: get!(c"nvrtcVersion"),
            error_string: get!(c"nvrtcGetErrorString"),
            create: get!(c"nvrtcCreateProgram"),
            destroy: get!(c"nvrtcDestroyProgram"),
            compile: get!(c"nvrtcCompileProgram"),
            log_size: get!(c"nvrtcGetProgramLogSize"),
            log: get!(c"nvrtcGetProgramLog"),
            ptx_size: get!(c"nvrtcGetPTXSize"),
            ptx: get!(c"nvrtcGetPTX"),
            cubin_size: get!(c"nvrtcGetCUBINSize"),
            cubin: get!(c"nvrtcGetCUBIN"),
            _libraries: libraries,
        })
    }

    /// Returns the major and minor version of the library.
    pub fn version(&self) -> (u32, u32) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are writable; the call fails for null pointers only.
        unsafe { (self.version)(&mut major, &mut minor) };
        (major as u32, minor as u32)
    }

    /// Compiles one translation unit.
    ///
    /// # Errors
    /// NVRTC reports errors in the source or in the options.
    pub fn compile(&self, unit: &Unit) -> Result<CompilerOutput, CompileError> {
        let text = c_string(unit, &unit.text)?;
        let name = c_string(unit, &unit.name)?;
        let headers = unit.headers.iter().map(|(_, t)| c_string(unit, t)).collect::<Result<Vec<_>, _>>()?;
        let names = unit.headers.iter().map(|(n, _)| c_string(unit, n)).collect::<Result<Vec<_>, _>>()?;
        let options = unit.options.iter().map(|o| c_string(unit, o)).collect::<Result<Vec<_>, _>>()?;
        let (header_ptrs, name_ptrs, option_ptrs) = (pointers(&headers), pointers(&names), pointers(&options));

        let mut owned = Owned { nvrtc: self, program: ptr::null_mut() };
        let count = headers.len() as c_int;
        // SAFETY: all strings are NUL-terminated and live until the end of this function; both arrays have `count`
        // pointers.
        let status = unsafe {
            let (headers, names) = (header_ptrs.as_ptr(), name_ptrs.as_ptr());
            (self.create)(&mut owned.program, text.as_ptr(), name.as_ptr(), count, headers, names)
        };
        self.check(status, unit, String::new)?;
        let program = owned.program;
        // SAFETY: `program` was just created; `option_ptrs` has `options.len()` pointers to live strings.
        let status = unsafe { (self.compile)(program, options.len() as c_int, option_ptrs.as_ptr()) };
        let log = text_of(self.get(unit, program, self.log_size, self.log)?);
        self.check(status, unit, || log.clone())?;
        Ok(CompilerOutput {
            ptx: text_of(self.get(unit, program, self.ptx_size, self.ptx)?),
            cubin: self.get(unit, program, self.cubin_size, self.cubin)?,
            log,
        })
    }

    /// Reads one of the byte strings (log, PTX, CUBIN) of a program.
    fn get(
        &self,
        unit: &Unit,
        program: Program,
        size: Get<usize>,
        bytes: Get<c_char>,
    ) -> Result<Vec<u8>, CompileError> {
        let mut length = 0;
        // SAFETY: `program` is live and `length` is writable.
        self.check(unsafe { size(program, &mut length) }, unit, String::new)?;
        let mut buffer = vec![0u8; length];
        if length > 0 {
            // SAFETY: `program` is live, and `buffer` has the length that it reported.
            self.check(unsafe { bytes(program, buffer.as_mut_ptr().cast()) }, unit, String::new)?;
        }
        Ok(buffer)
    }

    fn check(&self, status: Status, unit: &Unit, log: impl Fn() -> String) -> Result<(), CompileError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: nvrtcGetErrorString returns a static string for any status.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
        Err(CompileError::refused(&unit.name, &text.to_string_lossy(), log()))
    }
}

/// A program that is destroyed when it is dropped.
struct Owned<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created by this NVRTC, destroyed once.
            unsafe { (self.nvrtc.destroy)(&mut self.program) };
        }
    }
}

/// Returns the innermost cause of an error in one line: the message of the system's loader.
fn one_line(e: &dyn Error) -> String {
    let mut cause = e;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn c_string(unit: &Unit, text: &str) -> Result<CString, CompileError> {
    CString::new(text)
        .map_err(|_| CompileError::refused(&unit.name, "the source contains a NUL character", String::new()))
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).collect()
}

/// Converts a text from NVRTC, which ends in NUL, to a string.
fn text_of(mut bytes: Vec<u8>) -> String {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
