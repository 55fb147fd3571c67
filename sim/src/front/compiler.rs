//! The options of the CUDA compiler.

use std::path::PathBuf;

use crate::kernel_check::CompilerSettings;
use clap::Args;

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

fn language_standard(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("td=").unwrap_or(text);
    match name.strip_prefix("c++") {
        Some("11" | "14" | "17" | "20" | "23") => Ok(name.to_string()),
        _ => Err("use c++11, c++14, c++17, c++20 or c++23".into()),
    }
}

impl CompilerOptions {
    /// Returns the settings that the options give.
    pub fn settings(&self) -> CompilerSettings {
        CompilerSettings {
            include: self.include.clone(),
            define: self.define.clone(),
            standard: self.standard.clone(),
            nvcc: self.nvcc_arg.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_may_be_written_as_for_nvcc() {
        assert_eq!(language_standard("c++20"), Ok("c++20".into()));
        assert_eq!(language_standard("td=c++17"), Ok("c++17".into()));
        assert!(language_standard("c11").is_err() && language_standard("c++99").is_err());
    }
}
