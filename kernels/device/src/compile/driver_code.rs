//! What code a driver loads, and how kernels are compiled for a driver that is older than the compiler.
//!
//! | code | drivers that load it |
//! |---|---|
//! | machine code (CUBIN) of a 13.x toolkit | 13.0 and newer |
//! | machine code of a 12.x toolkit | 12.0 and newer |
//! | PTX of ISA x | those whose PTX compiler knows ISA x: 8.0 for CUDA 12.0, 9.0 for 13.0 |
//!
//! NVIDIA promises that machine code runs on older drivers within a major release only (CUDA Compatibility, "Minor
//! Version Compatibility"). CUDA 13 also changed the format of CUBIN files, so a 12.x driver cannot read them.
//!
//! ```text
//! driver 13: NVRTC 13 -> PTX ------------------> ptxas 13 -> CUBIN
//! driver 12: NVRTC 13 -> PTX of the oldest ISA -> ptxas 12 -> CUBIN
//!                                              -> the driver's compiler, if there is no ptxas 12
//! ```
//!
//! So the PTX that the simulator has checked is compiled for every driver, and one CUBIN made by ptxas 12 runs on all
//! of them.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::ptxas::PtxasReport;
use super::toolkit::{self, Toolkit};
use super::{CompileError, Cubin, architecture_of_ptx, compile_to_cubin, compile_to_ptx, compiler, ptxas_unit};
use crate::Source;

/// The oldest CUDA version whose driver runs the kernels, times 1000. A driver of CUDA 12.0 is the first that knows
/// compute capability 9.0 with its tensor maps.
pub const OLDEST_DRIVER: u32 = 12_000;

/// The oldest driver whose PTX compiler is used, as a CUDA version times 1000. The ptxas of CUDA 12.0, which is the
/// same compiler, crashes on the PTX of several folders for Hopper (`adamw`, `gelu`); that of 12.4 compiles all
/// folders.
pub const OLDEST_PTX_COMPILER: u32 = 12_040;

/// A kernel folder compiled for a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverCode {
    /// Machine code; empty if the driver compiles the PTX.
    pub cubin: Vec<u8>,
    /// The PTX from which the machine code was assembled.
    pub ptx: String,
}

/// Compiles a kernel folder for an architecture such as `sm_80` and a driver of this CUDA version (times 1000).
///
/// # Errors
/// NVRTC is missing, the source does not compile, or the driver is older than NVRTC and neither a ptxas of the driver's
/// major version nor the driver itself can compile the PTX.
pub fn compile_for_driver(source: &Source, sm: &str, driver: u32) -> Result<DriverCode, CompileError> {
    let newer = toolkit::major_of_library(&compiler()?.library).is_some_and(|major| major > driver / 1000);
    if !newer {
        let Cubin { image, ptx, .. } = compile_to_cubin(source, sm)?;
        return Ok(DriverCode { cubin: image, ptx });
    }
    match assemble_by_ptxas_12(source, sm)? {
        Some(Cubin { image, ptx, .. }) => Ok(DriverCode { cubin: image, ptx }),
        None if driver >= OLDEST_PTX_COMPILER => Ok(DriverCode { cubin: Vec::new(), ptx: older_ptx(source, sm)? }),
        None => Err(CompileError::NoOlderPtxas(driver)),
    }
}

/// Compiles a kernel folder by NVRTC and ptxas 12; `None` if there is no ptxas 12.
fn assemble_by_ptxas_12(source: &Source, sm: &str) -> Result<Option<Cubin>, CompileError> {
    static PTXAS: OnceLock<Option<PathBuf>> = OnceLock::new();
    let ptxas = PTXAS.get_or_init(|| Toolkit::from_environment().ptxas_of_major(OLDEST_DRIVER / 1000));
    let Some(ptxas) = ptxas else { return Ok(None) };
    let output = compiler()?.assemble(ptxas, &ptxas_unit(source, sm, older_ptx(source, sm)?)?)?;
    let report = PtxasReport::from_log(&output.log);
    Ok(Some(Cubin { image: output.cubin, ptx: output.ptx, report }))
}

/// Compiles a kernel folder to the machine code that every supported driver loads: by ptxas 12.
///
/// # Errors
/// NVRTC or ptxas 12 is missing, or the source does not compile.
pub fn compile_for_every_driver(source: &Source, sm: &str) -> Result<Cubin, CompileError> {
    assemble_by_ptxas_12(source, sm)?.ok_or(CompileError::NoOlderPtxas(OLDEST_DRIVER))
}

/// Returns the PTX for `sm` with the oldest ISA version that has all of its instructions.
fn older_ptx(source: &Source, sm: &str) -> Result<String, CompileError> {
    Ok(with_oldest_isa(&compile_to_ptx(source, architecture_of_ptx(source, sm)?)?))
}

/// Declares in PTX the oldest ISA version that has all of its instructions (sm_80: 7.0; sm_90 and sm_90a: 8.0), and
/// removes the hint `used_bytes_mask`, which needs ISA 8.3 and changes no result. NVRTC writes its own version, 9.0 for
/// CUDA 13.0, although the kernels use no newer instruction: `tests/ptx_isa.rs` of the kernels checks that by ptxas.
pub fn with_oldest_isa(ptx: &str) -> String {
    let target = ptx.lines().find_map(|line| line.strip_prefix(".target ")).unwrap_or_default();
    let version = oldest_isa(target.split([',', ' ']).next().unwrap_or_default());
    let lower = |line: &str| match line {
        _ if line.starts_with(".version ") => format!(".version {}.{}\n", version / 10, version % 10),
        _ if line.trim_start().starts_with(".pragma \"used_bytes_mask") => "\n".into(),
        _ => line.to_string(),
    };
    ptx.split_inclusive('\n').map(lower).collect()
}

/// Returns the version (times 10) of the oldest PTX ISA that has the architecture `target` and all instructions of its
/// kernels. Sources: PTX ISA manual, "Release Notes"; for sm_90, which ISA 7.8 has, the kernel folder `sample` uses
/// `barrier.cluster.arrive.release` of ISA 8.0.
fn oldest_isa(target: &str) -> u32 {
    match target {
        "sm_80" => 70,
        "sm_86" => 71,
        "sm_89" => 78,
        "sm_90" | "sm_90a" => 80,
        // Later targets. The kernels have no PTX for them.
        _ => 90,
    }
}

/// Returns the newest PTX ISA (times 10) that a driver of this CUDA version (times 1000) compiles (PTX ISA manual,
/// "Release Notes").
pub fn newest_isa_of_driver(driver: u32) -> u32 {
    let minor = driver % 1000 / 10;
    match driver / 1000 {
        ..12 => 78,
        12 if minor <= 5 => 80 + minor,
        // 12.6 has the ISA of 12.5; from 12.7 on, the ISA is one behind the release.
        12 => 80 + minor - 1,
        major => 90 + 10 * (major - 13) + minor,
    }
}

/// Returns the ISA version (times 10) of PTX; `None` if the text has no `.version` line.
pub fn isa_of_ptx(ptx: &str) -> Option<u32> {
    let (major, minor) = ptx.lines().find_map(|line| line.trim().strip_prefix(".version "))?.trim().split_once('.')?;
    Some(10 * major.parse::<u32>().ok()? + minor.parse::<u32>().ok()?)
}

/// Whether a driver of this CUDA version (times 1000) reads the format of this machine code.
pub fn driver_reads_cubin(driver: u32, cubin: &[u8]) -> bool {
    /// The byte of an ELF header that names the operating system's ABI: 0x33 in a CUBIN of CUDA 12 (ptxas 12.0, 12.4
    /// and 12.9 were tried), 0x41 in one of CUDA 13.
    const OS_ABI: usize = 7;
    const OF_CUDA_13: u8 = 0x41;
    driver >= 13_000 || cubin.get(OS_ABI).is_some_and(|abi| *abi < OF_CUDA_13)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_isa_of_each_release() {
        let known = [(11_080, 78), (12_000, 80), (12_030, 83), (12_050, 85), (12_060, 85), (12_080, 87), (12_090, 88)];
        for (driver, isa) in known.into_iter().chain([(13_000, 90), (13_010, 91)]) {
            assert_eq!(newest_isa_of_driver(driver), isa, "{driver}");
        }
    }

    #[test]
    fn ptx_gets_the_isa_of_its_target_and_keeps_its_lines() {
        let ptx = "//\n.version 9.0\n.target sm_90a\n.address_size 64\n\t.pragma \"used_bytes_mask 0xfff\";\n\tret;\n";
        let lowered = with_oldest_isa(ptx);
        assert_eq!(lowered, "//\n.version 8.0\n.target sm_90a\n.address_size 64\n\n\tret;\n");
        assert_eq!((isa_of_ptx(ptx), isa_of_ptx(&lowered), isa_of_ptx("ret;")), (Some(90), Some(80), None));
        let debug = with_oldest_isa(".version 9.0\n.target sm_80, debug\n");
        assert_eq!(debug, ".version 7.0\n.target sm_80, debug\n");
    }

    #[test]
    fn a_12_driver_reads_no_cubin_of_13() {
        let cubin = |abi: u8| [b"\x7fELF\x02\x01\x01".as_slice(), &[abi, 0]].concat();
        assert!(driver_reads_cubin(12_000, &cubin(0x33)) && driver_reads_cubin(13_000, &cubin(0x33)));
        assert!(driver_reads_cubin(13_000, &cubin(0x41)) && !driver_reads_cubin(12_090, &cubin(0x41)));
        assert!(!driver_reads_cubin(12_090, b"ELF"));
    }
}
