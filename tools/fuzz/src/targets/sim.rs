//! Fuzz targets for the simulator: PTX text, launches of kernels in PTX, and tensor maps.

use std::path::PathBuf;

use anyhow::Result;
use reel_sim::check::{CheckPlan, check_kernel};
use reel_sim::exec::{ExecOptions, LaunchConfig, RunLimits};
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;
use reel_sim::tensor_map::{DataType, MapField, Swizzle, TensorMap, replace_field};
use reel_support::diagnostic::Diagnostic;

use super::{Runner, accepted, random_of, run, text_of};

/// PTX text. The text is parsed, then each of its kernels is decoded.
pub fn ptx(_: PathBuf) -> Result<Runner> {
    run(|input| {
        let text = text_of(input);
        let program = checked(Program::parse(&text))?;
        let names = program.kernel_names();
        let decoded = names.iter().filter(|name| checked(program.kernel(name)).is_some()).count();
        (decoded == names.len()).then_some(())
    })
}

/// Checks the error of a PTX file as `reel sim run` prints it.
fn checked<T>(result: Result<T, impl ToString>) -> Option<T> {
    accepted(result.map_err(|e| Diagnostic::new("k.ptx", e.to_string(), "give complete PTX")))
}

/// Small kernels. The simulator runs them with limits of steps and memory but without a deadline: the limits of
/// `reel sim run`, but with fewer steps.
pub fn ptx_run(_: PathBuf) -> Result<Runner> {
    run(|input| {
        let text = text_of(input);
        let program = checked(Program::parse(&text))?;
        let kernel = checked(program.kernel(program.kernel_names().first()?))?;
        let (mut random, mut memory) = (random_of(input), SimMemory::new());
        let mut params = memory.alloc((0..512).map(|i| i as u8).collect()).to_le_bytes().to_vec();
        params.resize(kernel.param_bytes as usize, 0);
        let (grid, dynamic_shared) = ([random.u32(1..3), 1, 1], 1024 * u32::from(kernel.uses_dynamic_shared));
        let launch = LaunchConfig { grid, block: [64, 1, 1], cluster: [1; 3], dynamic_shared, params };
        let limits = RunLimits { idle_steps: 500_000, memory_bytes: 256 << 20, ..RunLimits::default() };
        let options = ExecOptions { seed: random.u64(..), patience: 200_000, limits, ..ExecOptions::default() };
        let plan = CheckPlan { interleavings: 2, threads: 1, options, buffers: Vec::new() };
        let report = checked(check_kernel(&program, &kernel, &launch, &memory, &plan))?;
        std::hint::black_box(format!("{:?}", report.findings));
        Some(())
    })
}

/// Tensor maps. A valid map is encoded, the input changes fields of the encoded map as the instruction
/// `tensormap.replace` does, and the result is decoded and used for a copy. Each 16 bytes of an input are one change.
pub fn tensor_map(_: PathBuf) -> Result<Runner> {
    let map = TensorMap::tiled(DataType::F32, 4096, &[64, 16, 3], &[256, 4096], &[16, 8, 2], Swizzle::B64)?;
    let valid = map.encode()?;
    run(move |input| {
        let (mut random, mut bytes) = (random_of(input), valid);
        for change in input.as_chunks::<16>().0.iter().take(6) {
            let value = change[2..10].iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
            let _ = replace_field(&mut bytes, FIELDS[usize::from(change[0]) % 10], u32::from(change[1] % 6), value);
        }
        let map = accepted(TensorMap::decode(&bytes).map_err(|e| Diagnostic::new("map", e.to_string(), "change it")))?;
        let at: Vec<i32> = (0..map.rank).map(|_| random.i32(..) >> random.u32(..32)).collect();
        let copy = (map.box_bytes() <= 1 << 20).then(|| map.box_copy_at(&at, 1024).ok()).flatten();
        copy.map(|copy| std::hint::black_box((copy.occupied_shared_bytes(), copy.contiguous_parts().len())));
        Some(())
    })
}

const FIELDS: [MapField; 10] = [
    MapField::GlobalAddress,
    MapField::Rank,
    MapField::BoxDim,
    MapField::GlobalDim,
    MapField::GlobalStride,
    MapField::ElementStride,
    MapField::ElemType,
    MapField::InterleaveLayout,
    MapField::SwizzleMode,
    MapField::FillMode,
];
