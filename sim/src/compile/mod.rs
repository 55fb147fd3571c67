//! Compiles CUDA C++ to PTX with the compilers of this machine, which are found and opened at run time: NVRTC, else
//! nvcc. Runs ptxas for the registers of a kernel.
//!
//! A file's path and options go in, PTX with line information comes out ([`compile_user_file`]). [`toolkit`] finds the
//! compilers and headers, [`nvrtc`] calls NVRTC's library, [`ptxas`] runs ptxas and parses its report.
//!
//! Source: NVIDIA's NVRTC and PTX Compiler manuals of CUDA 13.0. NVRTC 12 has the same functions and is used where
//! there is no NVRTC 13.

pub mod nvrtc;
pub mod ptxas;
pub mod toolkit;
mod user_file;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

pub use user_file::{CompiledUserFile, UserCompilerOptions, compile_user_file, registers_of_kernel};

/// The reason why a unit was not compiled. Each message is one line.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CompileError {
    /// NVRTC is not installed on this machine.
    #[error(
        "NVRTC not found: no libnvrtc.so.13 or .12; install CUDA and set CUDA_HOME, or install the Python package nvidia-cuda-nvrtc and set REEL_CUDA to its environment"
    )]
    NoNvrtc,
    /// NVRTC was found but cannot be opened or lacks a function, or a compiler's program cannot be run.
    #[error("{path}: cannot be used: {reason}; reinstall CUDA")]
    Unusable {
        /// Path of the library, or of the program.
        path: PathBuf,
        /// The error of the dynamic loader or of the system.
        reason: String,
    },
    /// A file that cannot be read.
    #[error("{path}: cannot be read: {reason}; check the path")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// An architecture's name is not of the form `sm_80` or `sm_90a`.
    #[error("architecture {0}: not of the form sm_80 or sm_90a; use one of sm_80, sm_86, sm_89, sm_90a")]
    Architecture(String),
    /// NVRTC, nvcc or ptxas reported errors in the source.
    #[error("{first}")]
    Refused {
        /// The first error as `file:line: what is wrong`.
        first: String,
        /// The whole log.
        log: String,
    },
}

impl CompileError {
    /// Makes the error of a failed compilation from the first error in its log. If the log has no error, the message
    /// is `status`, the compiler's name for the failure.
    fn refused(unit: &str, status: &str, log: String) -> CompileError {
        let first = log.lines().find_map(first_error).unwrap_or_else(|| format!("{unit}: {status}"));
        CompileError::Refused { first, log }
    }

    /// Returns the whole log of a compilation that reported errors; for other errors the empty string.
    pub fn compiler_log(&self) -> &str {
        match self {
            CompileError::Refused { log, .. } => log,
            _ => "",
        }
    }
}

/// Rewrites `file(12): error: text` as `file:12: text`; also accepts errors without a location. Returns `None` for
/// lines that report no error.
fn first_error(line: &str) -> Option<String> {
    let (place, text) = line.split_once("error: ").or_else(|| line.split_once("error   : "))?;
    let place = place.trim_end_matches("catastrophic ").trim_end_matches([' ', ':', ';']);
    let place = match place.strip_suffix(')').and_then(|p| p.rsplit_once('(')) {
        Some((file, line)) => format!("{file}:{line}"),
        None => place.to_string(),
    };
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(if place.is_empty() { text } else { format!("{place}: {text}") })
}

/// A translation unit for NVRTC or ptxas.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The file name in messages and line tables.
    pub name: String,
    /// The text of the file: CUDA C++ for NVRTC, PTX for ptxas.
    pub text: String,
    /// (name in `#include` lines, text) of each header.
    pub headers: Vec<(String, String)>,
    /// The options of the compiler.
    pub options: Vec<String>,
}

/// The output of a compilation: PTX, and a CUBIN if a real architecture was requested.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompilerOutput {
    /// The PTX.
    pub ptx: String,
    /// The bytes of the CUBIN file; empty if none was requested.
    pub cubin: Vec<u8>,
    /// What the compiler printed.
    pub log: String,
}

/// Returns the part of an architecture's name after `sm_`.
///
/// # Errors
/// The name is not of the form `sm_80` or `sm_90a`.
pub fn number_of(sm: &str) -> Result<&str, CompileError> {
    let number = sm.strip_prefix("sm_").unwrap_or_default();
    let digits = number.trim_end_matches(['a', 'f']);
    let good = matches!(digits.len(), 2 | 3) && digits.bytes().all(|b| b.is_ascii_digit());
    let good = good && number.len() - digits.len() <= 1;
    if good { Ok(number) } else { Err(CompileError::Architecture(sm.to_string())) }
}

/// Creates a folder for temporary files that only this user can use (mode 0700). Dropping the value removes it.
fn temporary_folder() -> io::Result<tempfile::TempDir> {
    let only_this_user = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().prefix(".reel-").suffix(".part").permissions(only_this_user).tempdir()
}

/// For tests that compile kernels: `let Some(()) = compile::skip_without_nvrtc() else { return };`. Without NVRTC it
/// prints `skipped: NAME: NVRTC not found …` with the test's name and returns `None`.
///
/// # Panics
/// If NVRTC is missing in continuous integration (`CI` set and not empty), where no test may be skipped.
pub fn skip_without_nvrtc() -> Option<()> {
    let Err(e) = nvrtc::shared() else { return Some(()) };
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    let ci = std::env::var_os("CI").is_some_and(|v| !v.is_empty());
    assert!(!ci, "{name}: {e}");
    println!("skipped: {name}: {e}");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_errors_in_every_form() {
        let of = |line| first_error(line);
        assert_eq!(of("a/b.cu(12): error: x  is\todd").unwrap(), "a/b.cu:12: x is odd");
        assert_eq!(
            of("k.cu(1): catastrophic error: cannot open source file \"x\"").unwrap(),
            "k.cu:1: cannot open source file \"x\""
        );
        assert_eq!(of("nvrtc: error: invalid value").unwrap(), "nvrtc: invalid value");
        assert_eq!(of("ptxas k, line 5; error   : Unknown x").unwrap(), "ptxas k, line 5: Unknown x");
        assert_eq!(of("k.cu(3): warning #177-D: unused"), None);
    }

    #[test]
    fn names_of_architectures_are_checked() {
        assert_eq!(number_of("sm_90a").unwrap(), "90a");
        for sm in ["80", "sm_", "sm_80x", "sm_9000", "sm_aa", "sm_80 -I/"] {
            assert!(matches!(number_of(sm), Err(CompileError::Architecture(_))), "{sm}");
        }
    }
}
