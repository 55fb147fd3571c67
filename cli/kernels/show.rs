//! `reel kernels show`: formulas, launch geometry, resources and least time of a kernel.

use anyhow::Result;
use clap::Args;
use reel_device::compile::ptxas::FunctionResources;
use reel_device::{Arch, Stage, compile};
use reel_kernels::catalogue::{ExampleCall, KernelFolder};
use reel_tools::measure::catalogue::{dtype_of_kernel, find_example_calls};
use reel_tools::measure::machine::MachineSpec;
use serde_json::{Value, json};

use crate::common::CommonOptions;
use crate::output;

/// Show what a kernel computes, its launch geometry, registers and shared memory, and the least time that GPUs need for
/// it.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel kernels show rms_norm_fwd_bf16")]
pub struct KernelsShowArgs {
    /// Kernel name, or the name of a folder for all of its kernels
    #[arg(value_name = "KERNEL")]
    kernel: String,
}

/// The GPUs for which launches are shown: name, properties, and the architecture for which code is compiled.
const PLANNED_GPUS: [(&str, Arch, &str); 2] = [("a100", Arch::A100, "sm_80"), ("h100", Arch::H100, "sm_90a")];

/// A planned launch on a GPU; `resources` is what ptxas reports for the kernel, or `None` if it was not compiled.
struct Planned {
    gpu: &'static str,
    sm: &'static str,
    stage: Stage,
    resources: Option<FunctionResources>,
}

/// The least time that a kernel needs on a GPU, by the peak rates in the GPU's data sheet.
struct Floor {
    gpu: &'static str,
    seconds: f64,
    bound: &'static str,
}

impl KernelsShowArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let kernels = find_example_calls(&self.kernel)?;
        if common.json {
            let all = kernels.iter().map(|(f, e)| to_json(f, e)).collect::<Result<Vec<_>>>()?;
            return output::print_json(&all);
        }
        output::print_line(format!("{}\n\n{}", kernels[0].0.name, kernels[0].0.documentation()))?;
        kernels.iter().try_for_each(|(_, example)| print(example))
    }
}

fn print(example: &ExampleCall) -> Result<()> {
    let (cost, kernel) = (example.launch.cost, example.launch.kernel);
    output::print_line(format!("\n{}, {}:", kernel.name, example.size))?;
    let (planned, note) = plan(example);
    for p in &planned {
        let s = &p.stage;
        let cluster = if s.cluster == [1; 3] { String::new() } else { format!(", cluster {}", dims(s.cluster)) };
        output::print_line(format!("  {} {:6} {}", p.gpu, p.sm, s.symbol))?;
        output::print_line(format!(
            "    grid {}, block {}{cluster}, {} bytes of dynamic shared memory",
            dims(s.grid),
            dims(s.block),
            s.shared
        ))?;
        if let Some(r) = &p.resources {
            let of = format!("{} registers, {} bytes of static shared memory", r.registers, r.shared);
            output::print_line(format!(
                "    {of}, {} bytes of stack, {} bytes spilled",
                r.stack,
                r.spill_stores + r.spill_loads
            ))?;
        }
    }
    if let Some(note) = note {
        output::print_line(format!("  {note}"))?;
    }
    output::print_line(format!(
        "  {:.3} GFLOP, moves at least {:.3} MB: {:.2} FLOP/byte",
        cost.flops / 1e9,
        cost.bytes / 1e6,
        cost.flops / cost.bytes
    ))?;
    for f in floors(example)? {
        output::print_line(format!("  {}: takes at least {:.1} us, limited by {}", f.gpu, f.seconds * 1e6, f.bound))?;
    }
    Ok(())
}

fn to_json(folder: &KernelFolder, example: &ExampleCall) -> Result<Value> {
    let (planned, note) = plan(example);
    let launches: Vec<Value> = planned
        .iter()
        .map(|p| {
            let resources = p.resources.as_ref().map(super::check::resources_json);
            json!({
                "gpu": p.gpu, "arch": p.sm, "symbol": p.stage.symbol, "grid": p.stage.grid, "block": p.stage.block,
                "cluster": p.stage.cluster, "dynamic_shared": p.stage.shared, "resources": resources,
            })
        })
        .collect();
    let floors: Vec<Value> =
        floors(example)?.iter().map(|f| json!({"gpu": f.gpu, "seconds": f.seconds, "bound": f.bound})).collect();
    let cost = example.launch.cost;
    Ok(json!({
        "kernel": example.launch.kernel.name, "folder": folder.name, "maths": folder.documentation(), "size": example.size,
        "launches": launches, "note": note, "flops": cost.flops, "bytes": cost.bytes,
        "intensity": cost.flops / cost.bytes, "floors": floors,
    }))
}

/// Returns the launches of a kernel on each GPU and, if it could not be compiled, the reason.
fn plan(example: &ExampleCall) -> (Vec<Planned>, Option<String>) {
    let kernel = example.launch.kernel;
    let (mut planned, mut note) = (Vec::new(), None);
    for (gpu, arch, sm) in PLANNED_GPUS {
        let report =
            compile::compile_to_cubin(kernel.source, sm).map(|c| c.report).map_err(|e| note = Some(e.to_string())).ok();
        for stage in (kernel.plan)(&example.launch.params, &arch) {
            let resources = report.as_ref().and_then(|r| r.resources_of_function(stage.symbol)).cloned();
            planned.push(Planned { gpu, sm, stage, resources });
        }
    }
    (planned, note)
}

fn floors(example: &ExampleCall) -> Result<Vec<Floor>> {
    let (name, cost) = (example.launch.kernel.name, example.launch.cost);
    let floor = |gpu: &'static str| {
        let rates = MachineSpec::gpu_by_name(gpu)?.ceilings;
        let seconds = rates.roofline_seconds(name, cost, dtype_of_kernel(name).unwrap_or(reel_device::DType::F32));
        let bound = if seconds * rates.bytes > cost.bytes * 1.000_001 { "arithmetic" } else { "memory" };
        Ok(Floor { gpu, seconds, bound })
    };
    ["a100", "h100", "h200"].into_iter().map(floor).collect()
}

fn dims(d: [u32; 3]) -> String {
    let used = d.iter().rposition(|&n| n != 1).map_or(1, |i| i + 1);
    d[..used].iter().map(u32::to_string).collect::<Vec<_>>().join(" x ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_dimensions_of_one_are_omitted() {
        assert_eq!(dims([7, 1, 1]), "7");
        assert_eq!(dims([1, 1, 1]), "1");
        assert_eq!(dims([1, 2, 1]), "1 x 2");
        assert_eq!(dims([4, 1, 3]), "4 x 1 x 3");
    }
}
