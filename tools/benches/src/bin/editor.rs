//! Writes what an editor needs to understand the CUDA files of the kernels: for each kernel folder a header with the
//! parameter structs that `params!` declares in Rust, and one `compile_commands.json` for clangd. The commands in
//! this file include the generated header before the folder's `sm80.cu`; clangd compiles a header `*.cuh` with the
//! command of the `sm80.cu` in the same folder. `./x editor` runs this program.
//!
//! `cargo run -p reel-benches --bin editor -- --out target/editor`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use clap::Parser;
use reel_device::compile::toolkit::Toolkit;
use reel_kernels::catalogue::FOLDERS;
use serde_json::{Value, json};

#[derive(Parser)]
struct Arguments {
    /// Folder to write
    #[arg(long)]
    out: PathBuf,
}

fn main() -> ExitCode {
    let out = Arguments::parse().out;
    match write(&out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}: {e}; give a folder that can be written", out.display());
            ExitCode::FAILURE
        }
    }
}

fn write(out: &Path) -> io::Result<()> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    fs::create_dir_all(out)?;
    let out = out.canonicalize()?;
    let toolkit = toolkit_folder();
    let mut commands = Vec::with_capacity(FOLDERS.len());
    for folder in FOLDERS {
        let header = out.join(format!("{}.h", folder.name));
        fs::write(&header, folder.source.preamble())?;
        commands.push(compile_command(&project, folder.name, &header, toolkit.as_deref()));
    }
    fs::write(out.join("compile_commands.json"), serde_json::to_string_pretty(&commands)?)
}

/// The folder of the CUDA toolkit, which clang reads CUDA's headers from.
fn toolkit_folder() -> Option<PathBuf> {
    let headers = Toolkit::from_environment().header_folders();
    headers.first().and_then(|include| include.parent()).map(Path::to_path_buf)
}

/// The entry of `compile_commands.json` that compiles the `sm80.cu` of a kernel folder for Hopper with clang.
fn compile_command(project: &Path, kernel: &str, header: &Path, toolkit: Option<&Path>) -> Value {
    let file = project.join("kernels/src").join(kernel).join("sm80.cu");
    let mut arguments: Vec<String> =
        ["clang++", "-xcuda", "--cuda-gpu-arch=sm_90a", "--cuda-device-only", "-nocudalib", "-std=c++17"]
            .map(String::from)
            .to_vec();
    arguments.push(match toolkit {
        Some(folder) => format!("--cuda-path={}", folder.display()),
        None => "-nocudainc".into(),
    });
    arguments.extend(["-Ikernels/src".into(), "-include".into(), header.display().to_string()]);
    arguments.push(file.display().to_string());
    json!({"directory": project, "file": file, "arguments": arguments})
}
