//! Tests that the PTX of every kernel is valid in an ISA version that the driver of CUDA 12.0 knows. So drivers of
//! CUDA 12 can run it, and ptxas 12 compiles it to machine code as good as that of ptxas 13. `ptx_isa.txt` lists
//! folder, target and ISA version.

use std::fmt::Write;

use reel_device::compile::driver_code::{compile_for_every_driver, driver_reads_cubin, isa_of_ptx};
use reel_device::compile::{skip_without_nvrtc, toolkit::Toolkit};
use reel_kernels::catalogue::FOLDERS;

/// If a kernel uses a newer instruction, ptxas refuses its PTX here. Then `oldest_isa` in
/// `kernels/device/src/compile/driver_code.rs` must be raised, and drivers that do not know this ISA cannot run the
/// kernel.
#[test]
fn every_kernel_is_assembled_in_the_oldest_isa() {
    let Some(()) = skip_without_nvrtc() else { return };
    if Toolkit::from_environment().ptxas_of_major(12).is_none() {
        println!("skipped: every_kernel_is_assembled_in_the_oldest_isa: no ptxas of CUDA 12");
        return;
    }
    let mut found = String::new();
    for folder in FOLDERS {
        for sm in ["sm_80", "sm_90a"] {
            let cubin = compile_for_every_driver(folder.source, sm).unwrap_or_else(|e| panic!("{}: {e}", folder.name));
            assert!(driver_reads_cubin(12_000, &cubin.image), "{} {sm}", folder.name);
            assert!(cubin.report.warnings.is_empty(), "{} {sm}: {:?}", folder.name, cubin.report.warnings);
            let spilled = cubin.report.functions.iter().find(|f| f.spill_stores + f.spill_loads > 0);
            assert!(spilled.is_none(), "{} {sm}: {spilled:?}", folder.name);
            let target = cubin.ptx.lines().find_map(|line| line.strip_prefix(".target ")).expect("a target");
            let isa = isa_of_ptx(&cubin.ptx).expect("a version");
            let line = format!("{} {target} {}.{}", folder.name, isa / 10, isa % 10);
            if !found.lines().any(|other| other == line) {
                writeln!(found, "{line}").expect("a string");
            }
        }
    }
    assert_eq!(found, include_str!("ptx_isa.txt"), "the list that was found (left) is not ptx_isa.txt");
}
