//! `reel kernels list`: a table of every kernel.

use anyhow::Result;
use reel_device::Arch;
use reel_kernels::catalogue::FOLDERS;
use reel_tools::measure::catalogue::dtype_of_kernel;
use serde_json::json;

use crate::common::CommonOptions;
use crate::output;

pub fn run(common: &CommonOptions) -> Result<()> {
    let mut rows = Vec::new();
    for folder in FOLDERS {
        for example in folder.examples() {
            let kernel = example.launch.kernel;
            let stages = (kernel.plan)(&example.launch.params, &Arch::H100);
            let symbols: Vec<_> = stages.iter().map(|s| s.symbol).collect();
            rows.push((kernel.name, folder.name, dtype_of_kernel(kernel.name).map_or("", |t| t.name()), symbols));
        }
    }
    if common.json {
        let rows = rows.iter().map(|(name, folder, dtype, stages)| {
            let dtype = Some(*dtype).filter(|t| !t.is_empty());
            json!({"kernel": name, "folder": folder, "dtype": dtype, "stages": stages})
        });
        return output::print_json(&rows.collect::<Vec<_>>());
    }
    let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0);
    output::print_line(format!("{:width$}  {:16} {:5}  launches in CUDA", "kernel", "folder", "dtype"))?;
    for (name, folder, dtype, stages) in rows {
        output::print_line(format!("{name:width$}  {folder:16} {dtype:5}  {}", stages.join(", ")))?;
    }
    Ok(())
}
