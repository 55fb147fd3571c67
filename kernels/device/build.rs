//! Embeds the kernels' machine code in the binary if `REEL_KERNELS` names an archive that `reel kernels pack` wrote.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-env-changed=REEL_KERNELS");
    let archive = env::var_os("REEL_KERNELS").filter(|v| !v.is_empty()).map(PathBuf::from);
    let text = match archive {
        None => "&[]".to_string(),
        Some(path) => {
            let path = fs::canonicalize(&path).unwrap_or_else(|e| {
                panic!(
                    "REEL_KERNELS: {}: {e}; set REEL_KERNELS to a file that `reel kernels pack` wrote",
                    path.display()
                )
            });
            println!("cargo:rerun-if-changed={}", path.display());
            format!("include_bytes!({:?})", path.display().to_string())
        }
    };
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let to = Path::new(&out).join("archive.rs");
    fs::write(&to, text).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
}
