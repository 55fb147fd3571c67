//! Gets the PTX of a kernel's source: reads a file or a text, and compiles it if it is CUDA C++.

use std::path::{Path, PathBuf};

use crate::compile::{self, CompileError, UserCompilerOptions};
use crate::headers::HEADER_NAMES_AND_TEXTS;
use anyhow::Result;

use super::error::{InputError, failed};
use super::file;

/// Where a kernel's code comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file of PTX or CUDA C++, which its ending tells, else its text.
    File(PathBuf),
    /// A text of PTX or CUDA C++; it is PTX if one of its lines begins with `.version`.
    Text {
        /// How messages name the text.
        name: String,
        /// The text.
        text: String,
    },
}

/// How to compile CUDA C++.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompilerSettings {
    /// Folders in which `#include` looks for headers, after the file's own folder.
    pub include: Vec<PathBuf>,
    /// Macros to define, each `NAME` or `NAME=VALUE`.
    pub define: Vec<String>,
    /// The language standard, for example `c++20`; `None`: C++17.
    pub standard: Option<String>,
    /// Further arguments for nvcc. If there are any, nvcc compiles the file and not NVRTC.
    pub nvcc: Vec<String>,
}

/// The PTX of a source.
#[derive(Clone, Debug)]
pub struct PtxSource {
    /// The PTX.
    pub ptx: String,
    /// True if the PTX was compiled from CUDA C++, false if the source itself is PTX.
    pub cuda_source: bool,
}

impl Source {
    /// Returns how messages name the source: the path as it was given, or the name of the text.
    pub fn name(&self) -> String {
        match self {
            Source::File(path) => path.display().to_string(),
            Source::Text { name, .. } => name.clone(),
        }
    }

    /// Returns the text if it is PTX; else compiles it for the architecture and returns the compiler's PTX.
    pub fn read_or_compile(&self, settings: &CompilerSettings, architecture: Option<&str>) -> Result<PtxSource> {
        let (text, ending) = match self {
            Source::File(path) => {
                let bytes = file::read_file(path)?;
                (String::from_utf8_lossy(&bytes).into_owned(), path.extension().and_then(|e| e.to_str()))
            }
            Source::Text { text, .. } => (text.clone(), None),
        };
        let is_ptx = match ending {
            Some("ptx") => true,
            Some("cu" | "cuh" | "cpp" | "cc" | "h" | "hpp") => false,
            _ => text.lines().any(|line| line.trim_start().starts_with(".version")),
        };
        if is_ptx {
            return Ok(PtxSource { ptx: text, cuda_source: false });
        }
        let options = UserCompilerOptions {
            include: &settings.include,
            define: &settings.define,
            standard: settings.standard.as_deref(),
            nvcc: &settings.nvcc,
            stand_ins: HEADER_NAMES_AND_TEXTS,
        };
        let architecture = architecture.unwrap_or("sm_90a");
        let compiled = |path: &Path| {
            let built = compile::compile_user_file(path, architecture, &options);
            built.map(|built| built.ptx).map_err(|e| compiler_error(&e, path))
        };
        let ptx = match self {
            Source::File(path) => compiled(path)?,
            Source::Text { name, text } => {
                let folder = tempfile::tempdir().map_err(|e| failed(name, e, "free space in the temporary folder"))?;
                let path = folder.path().join("kernel.cu");
                file::write_file(&path, text.as_bytes())?;
                let written = path.display().to_string();
                // Messages and the line table name the text, not the temporary file.
                let renamed = |e: anyhow::Error| InputError(e.to_string().replace(&written, name));
                compiled(&path).map_err(renamed)?.replace(&written, name)
            }
        };
        Ok(PtxSource { ptx, cuda_source: true })
    }
}

/// Converts a compiler error about `file` to a message that has only the first line of the log; `-v` shows the whole
/// log.
fn compiler_error(e: &CompileError, file: &Path) -> anyhow::Error {
    let line = match e {
        CompileError::Refused { first, .. } => format!("{first}; correct the file"),
        e => e.to_string(),
    };
    let [log, line] = [e.compiler_log(), &line].map(|text| with_given_name(text, file));
    anyhow::Error::msg(log).context(InputError(line))
}

/// Replaces `./FILE` in the compiler's output by the path that the user gave. nvcc gets relative paths in this form.
fn with_given_name(text: &str, file: &Path) -> String {
    let name = file.display().to_string();
    let compiled = format!("./{name}");
    if file.is_absolute() {
        return text.to_string();
    }
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(&compiled) {
        let (before, after) = rest.split_at(at);
        out += before;
        // In `../FILE` and `folder/./FILE`, the name is a part of another path and is kept.
        let is_part = out.ends_with(|c: char| c.is_alphanumeric() || "./_-".contains(c));
        out += if is_part { &compiled } else { &name };
        rest = &after[compiled.len()..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_errors_name_the_file_as_it_was_given() {
        for (text, file, wanted) in [
            ("./err.cu(1): error in \"./err.cu\"", "err.cu", "err.cu(1): error in \"err.cu\""),
            ("././err.cu:1: x", "./err.cu", "./err.cu:1: x"),
            ("../k/err.cu:1: a/./k/err.cu, ./k/err.cu", "k/err.cu", "../k/err.cu:1: a/./k/err.cu, k/err.cu"),
            ("/a/err.cu:1: x", "/a/err.cu", "/a/err.cu:1: x"),
        ] {
            assert_eq!(with_given_name(text, Path::new(file)), wanted);
        }
    }
}
