//! `reel bench op NAME`: a kernel by itself, against its floor on this machine.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use reel_kernels::{Cost, DType};
use reel_runtime::Device;
use serde_json::{Value, json};

use super::clocks::{Clocks, Sampler};
use super::measure::machine;
use crate::ceilings::Ceilings;
use crate::common::{self, Common};
use crate::fail::{bad_usage, failed};
use crate::kernels::timing::{Place, Row};
use crate::kernels::{dtype, gpu, named};
use crate::{model, output};

/// Time a kernel, or those of a folder, by itself on the processor or a GPU, at the size of `reel kernels list`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel bench op grpo_loss --device cpu --runs 5")]
pub struct Op {
    /// A kernel of `reel kernels list`, or a folder
    #[arg(value_name = "NAME")]
    name: String,
    /// Runs that count; the caches are overwritten before each
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
}

impl Op {
    /// Measures and prints.
    pub fn run(&self, common: &Common) -> Result<()> {
        let examples = named(&self.name)?;
        let device = match common.device()? {
            common::Device::Cpu | common::Device::Cuda(_) => model::device(common)?,
            _ => return Err(bad_usage("--device", "kernels are timed on cpu and cuda", "use one of them")),
        };
        let ceilings = Ceilings::of(&device)?;
        let place = match common.device()? {
            common::Device::Cuda(number) => Place::Gpu(gpu(&format!("cuda:{number}"))?),
            _ => Place::Cpu(common.threads()?),
        };
        if !common.json {
            output::line(format!("{}  of its floor", Row::head()))?;
        }
        let sampler = Sampler::of_gpu(&device, Duration::from_millis(20));
        let (mut rows, mut problems) = (Vec::new(), Vec::new());
        for (_, example) in &examples {
            match place.time(example, self.runs as usize) {
                Ok(row) => {
                    if !common.json {
                        output::line(format!("{}  {:5.1} %", row.columns(), 100.0 * share(&row, &ceilings)))?;
                    }
                    rows.push(row);
                }
                Err(e) => problems.push(e.to_string()),
            }
        }
        let clocks = sampler.map(Sampler::stop);
        if common.json {
            self.print(&device, &ceilings, &rows, clocks.as_ref(), &problems)?;
        } else if let Some(clocks) = clocks {
            output::line(clocks.line())?;
        }
        match problems.into_iter().next() {
            None => Ok(()),
            Some(first) => Err(failed(&self.name, first, "the others were timed")),
        }
    }

    fn print(
        &self,
        device: &Device,
        ceilings: &Ceilings,
        rows: &[Row],
        clocks: Option<&Clocks>,
        problems: &[String],
    ) -> Result<()> {
        let kernels: Vec<Value> = rows
            .iter()
            .map(|row| {
                let mut one = row.json();
                one["floor_seconds"] = json!(floor(row, ceilings));
                one["share_of_floor"] = json!(share(row, ceilings));
                one
            })
            .collect();
        output::json(&json!({
            "op": "op", "name": self.name, "n": self.runs, "device": device.name(), "threads": device.threads(),
            "machine": machine(device), "kernels": kernels, "ceilings": ceilings, "clocks": clocks.map(Clocks::json),
            "problems": problems, "version": env!("CARGO_PKG_VERSION"),
        }))
    }
}

/// The least seconds of a kernel on this machine.
fn floor(row: &Row, ceilings: &Ceilings) -> f64 {
    let cost = Cost { flops: row.flops, bytes: row.bytes };
    ceilings.least(row.kernel, cost, dtype(row.kernel).unwrap_or(DType::F32))
}

fn share(row: &Row, ceilings: &Ceilings) -> f64 {
    floor(row, ceilings) / row.timed.median()
}
