//! Gets the PTX of the user's file: reads the file, or compiles it with the user's options.

use std::path::{Path, PathBuf};

use crate::compile::{self, CompileError, UserCompilerOptions};
use crate::headers::HEADER_NAMES_AND_TEXTS;
use anyhow::Result;
use clap::Args;

use super::output;

/// Options of the CUDA compiler.
#[derive(Args, Debug)]
pub struct CompilerOptions {
    /// Additional folder for `#include`
    #[arg(short = 'I', long, value_name = "DIR")]
    include: Vec<PathBuf>,
    /// Define a macro
    #[arg(short = 'D', long, value_name = "NAME[=VALUE]")]
    define: Vec<String>,
    /// C++ standard, also written -std=c++20 [default: c++17]
    // `-std=c++20` reaches clap as the option `-s` with the value `td=c++20`.
    #[arg(short = 's', long = "std", value_name = "STANDARD", value_parser = language_standard)]
    standard: Option<String>,
    /// Argument for nvcc, which then compiles the file instead of NVRTC, such as --nvcc-arg=-G
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    nvcc_arg: Vec<String>,
}

/// The PTX of the file that the user named.
pub struct PtxSource {
    pub ptx: String,
    /// True if the PTX was compiled from CUDA C++, false if the file itself is PTX.
    pub cuda_source: bool,
}

fn language_standard(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("td=").unwrap_or(text);
    match name.strip_prefix("c++") {
        Some("11" | "14" | "17" | "20" | "23") => Ok(name.to_string()),
        _ => Err("use c++11, c++14, c++17, c++20 or c++23".into()),
    }
}

impl CompilerOptions {
    /// The nvcc options that limit registers per thread (`maxrregcount`), which ptxas takes too.
    pub fn register_options(&self) -> Vec<String> {
        let limits = |option: &&String| option.trim_start_matches('-').starts_with("maxrregcount=");
        self.nvcc_arg.iter().filter(limits).cloned().collect()
    }

    /// Returns the file's text if it is PTX; else compiles it for the architecture and returns the compiler's PTX.
    pub fn read_or_compile(&self, file: &Path, architecture: Option<&str>) -> Result<PtxSource> {
        let bytes = output::read_file(file)?;
        let text = String::from_utf8_lossy(&bytes);
        let is_ptx = match file.extension().and_then(|e| e.to_str()) {
            Some("ptx") => true,
            Some("cu" | "cuh" | "cpp" | "cc" | "h" | "hpp") => false,
            _ => text.lines().any(|line| line.trim_start().starts_with(".version")),
        };
        if is_ptx {
            return Ok(PtxSource { ptx: text.into_owned(), cuda_source: false });
        }
        let options = UserCompilerOptions {
            include: &self.include,
            define: &self.define,
            standard: self.standard.as_deref(),
            nvcc: &self.nvcc_arg,
            stand_ins: HEADER_NAMES_AND_TEXTS,
        };
        compile::compile_user_file(file, architecture.unwrap_or("sm_90a"), &options)
            .map(|built| PtxSource { ptx: built.ptx, cuda_source: true })
            .map_err(|e| compiler_error(&e, file))
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
    anyhow::Error::msg(log).context(line)
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

    #[test]
    fn the_standard_may_be_written_as_for_nvcc() {
        assert_eq!(language_standard("c++20"), Ok("c++20".into()));
        assert_eq!(language_standard("td=c++17"), Ok("c++17".into()));
        assert!(language_standard("c11").is_err() && language_standard("c++99").is_err());
    }
}
