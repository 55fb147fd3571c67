//! Compiles CUDA C++ by NVRTC, which is opened at run time: to PTX for the simulator, and to machine code (CUBIN) for
//! GPUs with ptxas' report of registers and memory.
//!
//! ```text
//! sm80.cu --NVRTC--> PTX of compute_80 --ptxas--> CUBIN of each architecture     if ptxas is beside NVRTC
//! sm80.cu --NVRTC--> CUBIN of each architecture                                  else
//! ```
//!
//! With ptxas, one translation to PTX serves all architectures and the simulator; it takes two thirds of NVRTC's time.
//! The two ways may give different machine code: for 12 kernel folders on four architectures it was the same in 46 of
//! 48 cases; for sm_86 NVRTC translates `advance` and `elementwise` with other instructions. Drivers that are older
//! than the compiler get code in another way (`driver_code.rs`).
//!
//! Results are cached on disk under `$XDG_CACHE_HOME/reel/kernels`; a cached unit is read without opening NVRTC. The
//! compilers are found and called by the simulator's crate (`reel_sim::compile`).

pub mod builtin;
mod cache;
pub mod check;
pub mod driver_code;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use reel_sim::compile::nvrtc::Nvrtc;
use reel_sim::compile::{self, CompilerOutput, Unit, number_of};
pub use reel_sim::compile::{ptxas, registers_of_kernel, skip_without_nvrtc, toolkit};

use crate::Source;
use cache::Cache;
use ptxas::PtxasReport;
use toolkit::Toolkit;

/// The architectures that every kernel is compiled for: A100; RTX 30; RTX 40 and L40S; H100 and H200.
pub const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_86", "sm_89", "sm_90a"];

/// The architecture whose PTX ptxas assembles for all architectures, see [`architecture_of_ptx`]. A file `sm80.cu` and
/// its headers use only what sm_80 has, except under `#if __CUDA_ARCH__ >= 900`.
const BASE_ARCHITECTURE: &str = "sm_80";
/// The architecture of the PTX for Hopper if a source has programmatic dependent launches.
const DEPENDENT_LAUNCH_ARCHITECTURE: &str = "sm_90";
/// The architecture of the PTX for Hopper if a source has warpgroup matrix products (wgmma). This PTX runs on no later
/// architecture.
const WARPGROUP_PRODUCT_ARCHITECTURE: &str = "sm_90a";

/// The reason why a kernel folder was not compiled. Each message is one line.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CompileError {
    /// NVRTC is not installed on this machine.
    #[error(
        "NVRTC not found: no libnvrtc.so.13 or .12; run `./x setup`, or install CUDA and set CUDA_HOME; details: `reel doctor`"
    )]
    NoNvrtc,
    /// The driver is too old for the code of NVRTC's toolkit, and no ptxas of the driver's own version is installed.
    /// The value is the driver's CUDA version times 1000.
    #[error(
        "ptxas of CUDA {major} not found, which compiles the kernels for drivers of CUDA {major}.{minor}; run `./x setup`, install the package nvidia-cuda-nvcc-cu{major} and set REEL_CUDA, or use a binary with built-in kernels",
        major = .0 / 1000, minor = .0 % 1000 / 10
    )]
    NoOlderPtxas(u32),
    /// The compiler cannot be used or reported errors.
    #[error(transparent)]
    Compiler(#[from] compile::CompileError),
}

/// A kernel folder compiled to machine code for one architecture.
#[derive(Clone, Debug)]
pub struct Cubin {
    /// The bytes of the CUBIN file, which the driver loads.
    pub image: Vec<u8>,
    /// The PTX from which the machine code was assembled.
    pub ptx: String,
    /// Registers, spills and warnings from ptxas' log.
    pub report: PtxasReport,
}

/// Compiles a kernel folder to PTX with line information, for an architecture such as `sm_80`.
pub fn compile_to_ptx(source: &Source, sm: &str) -> Result<String, CompileError> {
    Ok(compiler()?.build(&ptx_unit(source, sm)?)?.ptx)
}

/// Compiles a kernel folder to machine code with ptxas' report, for an architecture such as `sm_80`.
pub fn compile_to_cubin(source: &Source, sm: &str) -> Result<Cubin, CompileError> {
    let compiler = compiler()?;
    let CompilerOutput { ptx, cubin, log } = match &compiler.ptxas {
        Some(ptxas) => {
            let ptx = compile_to_ptx(source, architecture_of_ptx(source, sm)?)?;
            compiler.assemble(ptxas, &ptxas_unit(source, sm, ptx)?)?
        }
        None => compiler.build(&cubin_unit(source, sm)?)?,
    };
    let report = PtxasReport::from_log(&log);
    Ok(Cubin { image: cubin, ptx, report })
}

/// Whether the machine code of a kernel folder is in the cache, so that [`compile_to_cubin`] compiles nothing.
pub fn is_cached(source: &Source, sm: &str) -> bool {
    let entry = || {
        let compiler = compiler().ok()?;
        let cache = compiler.cache.as_ref()?;
        let load =
            |unit: Result<Unit, CompileError>, program: &Path| cache.load(&Cache::entry_key(&unit.ok()?, program));
        match &compiler.ptxas {
            Some(ptxas) => {
                let unit = ptx_unit(source, architecture_of_ptx(source, sm).ok()?);
                load(ptxas_unit(source, sm, load(unit, &compiler.library)?.ptx), ptxas)
            }
            None => load(cubin_unit(source, sm), &compiler.library),
        }
    };
    entry().is_some()
}

/// Returns the architecture whose PTX is assembled for `sm`. On Hopper, sources with programmatic dependent launches or
/// warpgroup matrix products (wgmma) need PTX of Hopper. All others use PTX of sm_80. GPUs newer than Hopper have no
/// wgmma.
fn architecture_of_ptx(source: &Source, sm: &str) -> Result<&'static str, CompileError> {
    let capability = number_of(sm)?.trim_end_matches(['a', 'f']).parse::<u32>().unwrap_or_default();
    Ok(match capability {
        90 if source.has_warpgroup_products() => WARPGROUP_PRODUCT_ARCHITECTURE,
        90 if source.has_dependent_launches() => DEPENDENT_LAUNCH_ARCHITECTURE,
        _ => BASE_ARCHITECTURE,
    })
}

/// Returns the unit that ptxas assembles. Its text is the PTX.
fn ptxas_unit(source: &Source, sm: &str, ptx: String) -> Result<Unit, CompileError> {
    let options = [format!("-arch=sm_{}", number_of(sm)?), "-v".into(), "-lineinfo".into()];
    Ok(Unit { name: format!("{}/sm80.ptx", source.name), text: ptx, headers: Vec::new(), options: options.to_vec() })
}

fn ptx_unit(source: &Source, sm: &str) -> Result<Unit, CompileError> {
    Ok(unit_of(source, &format!("compute_{}", number_of(sm)?), &[]))
}

fn cubin_unit(source: &Source, sm: &str) -> Result<Unit, CompileError> {
    Ok(unit_of(source, &format!("sm_{}", number_of(sm)?), &["--ptxas-options=-v"]))
}

fn unit_of(source: &Source, arch: &str, options: &[&str]) -> Unit {
    let text = source.text();
    let fixed = [&format!("-arch={arch}"), "--std=c++17", "-lineinfo"];
    Unit {
        name: format!("{}/sm80.cu", source.name),
        headers: headers_of(&text, &source.available_header_names_and_texts()),
        text,
        options: fixed.iter().chain(options).map(|o| o.to_string()).collect(),
    }
}

/// Returns the headers that `text` includes, directly or through another header. Only these are hashed for the cache,
/// so a changed header recompiles only the sources that include it.
fn headers_of(text: &str, all: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut texts = vec![text];
    let mut wanted = vec![false; all.len()];
    while let Some(text) = texts.pop() {
        for (i, (name, header)) in all.iter().enumerate() {
            if !wanted[i] && text.contains(name) {
                wanted[i] = true;
                texts.push(header);
            }
        }
    }
    let wanted = all.iter().zip(wanted).filter(|(_, w)| *w);
    wanted.map(|((name, text), _)| (name.to_string(), text.to_string())).collect()
}

/// NVRTC and ptxas with a cache of their results. The library is opened when the first unit is not in the cache.
struct Compiler {
    library: PathBuf,
    /// The path of ptxas in the CUDA installation that NVRTC is from, so that both have the same version.
    ptxas: Option<PathBuf>,
    cache: Option<Cache>,
    nvrtc: OnceLock<Result<Nvrtc, compile::CompileError>>,
}

impl Compiler {
    fn new(library: &Path, ptxas: Option<PathBuf>, cache: Option<PathBuf>) -> Compiler {
        Compiler { library: library.to_path_buf(), ptxas, cache: cache.and_then(Cache::open), nvrtc: OnceLock::new() }
    }

    fn nvrtc(&self) -> Result<&Nvrtc, CompileError> {
        Ok(self.nvrtc.get_or_init(|| Nvrtc::open(&self.library)).as_ref().map_err(Clone::clone)?)
    }

    /// Compiles a unit by NVRTC.
    fn build(&self, unit: &Unit) -> Result<CompilerOutput, CompileError> {
        self.cached(unit, &self.library, || {
            let mut output = self.nvrtc()?.compile(unit)?;
            output.ptx = with_relative_files(&output.ptx);
            Ok(output)
        })
    }

    /// Assembles the PTX in a unit by ptxas.
    fn assemble(&self, ptxas: &Path, unit: &Unit) -> Result<CompilerOutput, CompileError> {
        self.cached(unit, ptxas, || Ok(ptxas::assemble(ptxas, unit)?))
    }

    /// Returns the output for `unit` from the cache, or else calls `compile` and stores its result. `program` is the
    /// file of the compiler.
    fn cached(
        &self,
        unit: &Unit,
        program: &Path,
        compile: impl FnOnce() -> Result<CompilerOutput, CompileError>,
    ) -> Result<CompilerOutput, CompileError> {
        let key = Cache::entry_key(unit, program);
        let load = || self.cache.as_ref().and_then(|c| c.load(&key));
        if let Some(output) = load() {
            return Ok(output);
        }
        let _lock = self.cache.as_ref().and_then(|c| c.lock(&key));
        // Another process may have compiled the unit while this one waited.
        if let Some(output) = load() {
            return Ok(output);
        }
        let output = compile()?;
        if let Some(cache) = &self.cache {
            cache.store(&key, &output);
        }
        Ok(output)
    }
}

/// Removes the current folder from the `.file` names that NVRTC writes, so that the PTX does not depend on that
/// folder.
fn with_relative_files(ptx: &str) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let prefix = format!("\"{}/", here.display().to_string().trim_end_matches('/'));
    let relative = |line: &str| match line.trim_start().starts_with(".file") {
        true => line.replacen(&prefix, "\"", 1),
        false => line.to_string(),
    };
    ptx.split_inclusive('\n').map(relative).collect()
}

/// Returns the compiler that this process uses.
fn compiler() -> Result<&'static Compiler, CompileError> {
    static COMPILER: OnceLock<Option<Compiler>> = OnceLock::new();
    let find = || {
        let toolkit = Toolkit::from_environment();
        let library = toolkit.nvrtc()?;
        Some(Compiler::new(&library, toolkit.ptxas_of_nvrtc(), toolkit::cache_folder().map(|c| c.join("kernels"))))
    };
    COMPILER.get_or_init(find).as_ref().ok_or(CompileError::NoNvrtc)
}

/// Checks that kernels can be compiled on this machine: NVRTC is found and opens.
pub fn check_nvrtc() -> Result<(), CompileError> {
    compiler()?.nvrtc().map(|_| ())
}

/// Returns the major and minor version of the NVRTC library.
pub fn nvrtc_version() -> Result<(u32, u32), CompileError> {
    compiler()?.nvrtc().map(Nvrtc::version)
}

#[cfg(test)]
mod tests;
