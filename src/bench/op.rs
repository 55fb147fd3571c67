//! `reel bench op NAME`: a kernel, a product or a whole op by itself, against its floor on this machine.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use reel_kernels::DType;
use reel_kernels::catalogue::{SizeError, Sizes, products};
use reel_runtime::Device;
use serde_json::{Map, Value, json};

use super::clocks::{Clocks, Sampler};
use super::head;
use super::measure::{self, machine};
use crate::ceilings::Ceilings;
use crate::common::{self, Common};
use crate::fail::{bad_usage, failed};
use crate::kernels::timing::{Place, Row};
use crate::kernels::{gpu, named};
use crate::{model, output};

/// Time a kernel, a product or an op by itself on the processor or a GPU, at the size of `reel kernels list` or at one of your own.
///
/// NAME is a kernel of `reel kernels list`, or a folder; or `matmul`: the products of a linear layer, forward and both gradients
/// (matmul_fwd_bf16, matmul_dx_f32, …); or `linear_log_prob_fused` and `linear_log_prob_products`: output layer and log-probabilities as
/// training runs them, forward and backward, by the kernel that stores no logits or by plain products of tiles.
///
/// Sizes: matmul has m, n, k; attention tokens, heads, kv_heads, head_dim, causal; paged_attention batch, context, heads, kv_heads,
/// head_dim; rms_norm tokens, hidden; swiglu tokens, intermediate; linear_log_prob and its two ways tokens, hidden, vocab; log_prob rows,
/// vocab; skinny batch, n, k; adamw count.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel bench op attention --size tokens=256 --dtype bf16 --runs 5")]
pub struct Op {
    /// What to time
    #[arg(value_name = "NAME")]
    name: String,
    /// A size instead of the usual one; may be repeated
    #[arg(long = "size", value_name = "KEY=VALUE", value_parser = size)]
    sizes: Vec<(String, u64)>,
    /// Runs that count; 256 MiB elsewhere are overwritten before each, so that no operand is in a cache
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
}

fn size(text: &str) -> Result<(String, u64), String> {
    let (key, value) = text.split_once('=').ok_or("not KEY=VALUE, as tokens=4096")?;
    let value = value.parse().map_err(|_| format!("{value:?} is no whole number"))?;
    Ok((key.to_string(), value))
}

fn refused(e: SizeError) -> anyhow::Error {
    bad_usage(&format!("--size {}", e.key), e.what, e.cure)
}

/// What was found.
struct Found<'a> {
    rows: &'a [Row],
    clocks: Option<&'a Clocks>,
    problems: &'a [String],
    /// The products' library and its algorithms.
    products: Value,
}

/// One thing to time.
type Work<'a> = Box<dyn FnOnce() -> Result<Vec<Row>> + 'a>;

impl Op {
    /// Measures and prints.
    pub fn run(&self, common: &Common) -> Result<()> {
        let sizes = Sizes::new(self.sizes.iter().cloned()).map_err(refused)?;
        let device = match common.device()? {
            common::Device::Cpu | common::Device::Cuda(_) => model::device(common)?,
            _ => return Err(bad_usage("--device", "kernels are timed on cpu and cuda", "use one of them")),
        };
        let place = match common.device()? {
            common::Device::Cuda(number) => Place::gpu(gpu(&format!("cuda:{number}"))?),
            _ => Place::Cpu(common.threads()?),
        };
        let work = self.work(common, &sizes, &device, &place)?;
        let ceilings = Ceilings::of(&device)?;
        if !common.json {
            output::line(format!("{}  of its floor", Row::head()))?;
        }
        let sampler = Sampler::of_gpu(&device, Duration::from_millis(20));
        let (mut rows, mut problems) = (Vec::new(), Vec::new());
        for one in work {
            match one() {
                Ok(some) => {
                    for row in some {
                        if !common.json {
                            output::line(format!("{}  {:5.1} %", row.columns(), 100.0 * share(&row, &ceilings)))?;
                        }
                        rows.push(row);
                    }
                }
                Err(e) => problems.push(e.to_string()),
            }
        }
        let clocks = sampler.map(Sampler::stop);
        if common.json {
            let products = place.products().unwrap_or_else(|| measure::products(&device));
            let found = Found { rows: &rows, clocks: clocks.as_ref(), problems: &problems, products };
            self.print(&device, &ceilings, found)?;
        } else {
            if let Some(row) = rows.first() {
                output::line(format!("  {}", row.size))?;
            }
            if let Some(clocks) = clocks {
                output::line(clocks.line())?;
            }
        }
        match problems.split_first() {
            None => Ok(()),
            Some((first, _)) if rows.is_empty() => Err(anyhow::anyhow!("{first}")),
            Some((first, _)) => Err(failed(&self.name, first, "the others were timed")),
        }
    }

    /// What the name stands for.
    fn work<'a>(
        &'a self,
        common: &Common,
        sizes: &Sizes,
        device: &'a Device,
        place: &'a Place,
    ) -> Result<Vec<Work<'a>>> {
        let runs = self.runs as usize;
        // A kernel of no type, as one for indices, is wanted in any.
        let wanted = move |dtype: Option<DType>| {
            let other = match common.dtype {
                Some(common::Dtype::F32) => Some(DType::BF16),
                Some(common::Dtype::Bf16) => Some(DType::F32),
                None => return true,
            };
            dtype.is_none() || dtype != other
        };
        let mut work: Vec<Work<'a>> = Vec::new();
        if let Some(way) = head::way(&self.name) {
            let shape = head::Shape::of(sizes).map_err(refused)?;
            for dtype in [DType::F32, DType::BF16].into_iter().filter(|t| wanted(Some(*t))) {
                let shape = shape.clone();
                work.push(Box::new(move || head::time(device, way, &shape, dtype, runs)));
            }
        } else if self.name.starts_with("matmul") {
            let all = products(sizes).map_err(refused)?;
            let found = all.into_iter().filter(|p| self.name == "matmul" || p.name == self.name);
            for product in found.filter(|p| wanted(Some(p.dtype))) {
                work.push(Box::new(move || Ok(vec![place.time_product(&product, runs)?])));
            }
        } else {
            let usual = named(&self.name)?;
            let folder = usual[0].0;
            let names: Vec<&str> = usual.iter().map(|(_, e)| e.launch.kernel.name).collect();
            let all = folder.examples_with_sizes(sizes).map_err(refused)?;
            let found = all.into_iter().filter(|e| names.contains(&e.launch.kernel.name));
            for example in found.filter(|e| wanted(crate::kernels::dtype(e.launch.kernel.name))) {
                work.push(Box::new(move || Ok(vec![place.time(&example, runs)?])));
            }
        }
        if work.is_empty() {
            let cure = "give `matmul`, or a name of `reel kernels list` in the type that you want";
            return Err(bad_usage(&self.name, "names nothing that there is", cure));
        }
        Ok(work)
    }

    fn print(&self, device: &Device, ceilings: &Ceilings, found: Found) -> Result<()> {
        let Found { rows, clocks, problems, products } = found;
        let kernels: Vec<Value> = rows
            .iter()
            .map(|row| {
                let mut one = row.json();
                one["floor_seconds"] = json!(floor(row, ceilings));
                one["share_of_floor"] = json!(share(row, ceilings));
                one
            })
            .collect();
        let sizes: Map<String, Value> = self.sizes.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        output::json(&json!({
            "op": "op", "name": self.name, "sizes": sizes, "n": self.runs, "device": device.name(),
            "threads": device.threads(), "machine": machine(device), "kernels": kernels, "ceilings": ceilings,
            "products": products, "clocks": clocks.map(Clocks::json), "problems": problems, "version": env!("CARGO_PKG_VERSION"),
        }))
    }
}

/// The least seconds of a call on this machine.
fn floor(row: &Row, ceilings: &Ceilings) -> f64 {
    ceilings.least(row.kernel, row.cost, row.dtype)
}

fn share(row: &Row, ceilings: &Ceilings) -> f64 {
    floor(row, ceilings) / row.timed.median()
}
