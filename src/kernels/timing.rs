//! Times of kernels and products at the sizes of the catalogue or at others, on a GPU or on the processor.

use std::sync::OnceLock;

use anyhow::Result;
use reel_kernels::bench::{Timed, bytes, bytes_of_product, time, time_on_cpu, time_product, time_product_on_cpu};
use reel_kernels::catalogue::{Example, Product};
use reel_kernels::cuda::blas::Blas;
use reel_kernels::cuda::{Algorithms, Gpu};
use reel_kernels::{Cost, DType, Team};
use serde_json::{Value, json};

use super::dtype;
use crate::fail::failed;
use crate::machines::Machine;

/// A kernel's times.
pub struct Row {
    /// The kernel, or what else was timed.
    pub kernel: &'static str,
    /// The size in words.
    pub size: String,
    /// What it computes in.
    pub dtype: DType,
    /// The least that it must do.
    pub cost: Cost,
    /// Of each run.
    pub timed: Timed,
}

/// Where kernels run.
pub enum Place {
    /// A GPU, and its products' library once one was asked for.
    Gpu(Gpu, OnceLock<Box<dyn Blas>>),
    /// The processor, with this many threads.
    Cpu(usize),
}

impl Place {
    /// A GPU.
    pub fn gpu(gpu: Gpu) -> Place {
        Place::Gpu(gpu, OnceLock::new())
    }

    /// Times a call.
    pub fn time(&self, example: &Example, runs: usize) -> Result<Row> {
        let kernel = example.launch.kernel.name;
        self.has_room(kernel, bytes(example))?;
        let timed = match self {
            Place::Gpu(gpu, _) => time(gpu, example, runs)?,
            Place::Cpu(threads) => time_on_cpu(&Team::new(*threads), example, runs),
        };
        let dtype = dtype(kernel).unwrap_or(DType::F32);
        Ok(Row { kernel, size: example.size.to_string(), dtype, cost: example.launch.cost, timed })
    }

    /// Times a product.
    pub fn time_product(&self, p: &Product, runs: usize) -> Result<Row> {
        self.has_room(p.name, bytes_of_product(&p.product))?;
        let timed = match self {
            Place::Gpu(gpu, blas) => {
                let blas = match blas.get() {
                    Some(blas) => blas,
                    None => {
                        let opened = gpu.driver().blas()?;
                        blas.get_or_init(|| opened)
                    }
                };
                time_product(gpu, &**blas, &p.product, runs)?
            }
            Place::Cpu(threads) => time_product_on_cpu(&Team::new(*threads), &p.product, runs),
        };
        Ok(Row { kernel: p.name, size: p.size.clone(), dtype: p.dtype, cost: p.product.cost(), timed })
    }

    /// The products' library with the algorithms that were chosen, where one was asked for.
    pub fn products(&self) -> Option<Value> {
        let Place::Gpu(_, blas) = self else { return None };
        let blas = blas.get()?;
        let Algorithms { count, hash } = blas.algorithms();
        Some(json!({"library": blas.version(), "algorithms": count, "hash": format!("{hash:016x}")}))
    }

    /// Refuses a call whose operands there is no room for.
    fn has_room(&self, name: &str, need: f64) -> Result<()> {
        let (has, cure) = match self {
            Place::Gpu(gpu, _) => (gpu.driver().memory_free().ok().map(|b| b as f64), "give smaller sizes"),
            Place::Cpu(_) => (Machine::memory_free(), "give smaller sizes, or end other programs"),
        };
        match has.filter(|has| need > *has) {
            None => Ok(()),
            Some(has) => {
                let what = format!("needs {:.1} GB for its operands, of which {:.1} are free", need / 1e9, has / 1e9);
                Err(failed(name, what, cure))
            }
        }
    }
}

impl Row {
    /// As results have it.
    pub fn json(&self) -> Value {
        let (seconds, longest) = (&self.timed.seconds, self.timed.seconds.last());
        let Cost { flops, bytes } = self.cost;
        json!({
            "kernel": self.kernel, "size": self.size, "dtype": self.dtype.name(), "flops": flops, "bytes": bytes,
            "seconds": self.timed.median(), "min": self.timed.least(), "max": longest, "samples": seconds,
        })
    }

    /// The head of the columns of [`Row::columns`].
    pub fn head() -> String {
        format!(
            "{:34} {:>12} {:>8} {:>11} {:>11} {:>9} {:>9}",
            "kernel", "us", "spread", "GFLOP", "MB", "GB/s", "TFLOP/s"
        )
    }

    /// Kernel, time with the spread of its runs, work and rates.
    pub fn columns(&self) -> String {
        let (seconds, Cost { flops, bytes }) = (self.timed.median(), self.cost);
        let spread = self.timed.seconds.last().map_or(f64::NAN, |most| (most - self.timed.least()) / seconds);
        format!(
            "{:34} {:12.1} {:6.1} % {:11.3} {:11.2} {:9.0} {:9.2}",
            self.kernel,
            seconds * 1e6,
            100.0 * spread,
            flops / 1e9,
            bytes / 1e6,
            bytes / seconds * 1e-9,
            flops / seconds * 1e-12
        )
    }
}
