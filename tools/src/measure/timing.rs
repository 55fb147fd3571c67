//! Times single kernels and matrix products on a GPU or on the CPU.

use std::sync::OnceLock;

use reel_device::cuda::blas::Blas;
use reel_device::cuda::{AlgorithmFingerprint, Gpu};
use reel_device::{Cost, DType, Kernel, Team};
use reel_kernels::bench::{
    RunTimes, max_allocated_bytes_of_call, max_allocated_bytes_of_product, time_call_on_cpu, time_call_on_gpu,
    time_product_on_cpu, time_product_on_gpu,
};
use reel_kernels::catalogue::{ExampleCall, ExampleProduct, variants_of};
use reel_kernels::tuning::Variant;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::measure::catalogue::dtype_of_kernel;
use crate::measure::clocks::ClockSummary;
use crate::measure::machine::MachineSpec;
use crate::measure::pricing::code_hash_of_kernel;

/// The measured times of a kernel or matrix product.
pub struct TimedKernel {
    /// Name of the kernel or matrix product.
    pub kernel: &'static str,
    /// The variant of the kernel (`reel_kernels::tuning`) that was timed; `None` for the variant that the kernel's plan
    /// chooses.
    pub variant: Option<&'static str>,
    /// Size as text, such as `tokens=8192 hidden=3584`.
    pub size: String,
    /// The dtype that the kernel computes in.
    pub dtype: DType,
    /// Floating-point operations of a run, and bytes that the run must read and write.
    pub cost: Cost,
    /// Times of the single runs.
    pub timed: RunTimes,
    /// Power, clocks and temperature of the GPU from the preparation of the operands to the last run, if they were read.
    pub clocks: Option<ClockSummary>,
}

/// The GPU or the CPU that kernels are timed on.
pub enum TimingDevice {
    /// A GPU with its matrix product library. The library is opened when the first product is timed.
    Gpu(Gpu, OnceLock<Box<dyn Blas>>),
    /// The CPU, with this number of threads.
    Cpu(usize),
}

impl TimingDevice {
    /// Creates a timing device for a GPU. Its matrix product library is not opened yet.
    pub fn for_gpu(gpu: Gpu) -> TimingDevice {
        TimingDevice::Gpu(gpu, OnceLock::new())
    }

    /// Times a kernel: warm-up runs, then `runs` timed runs.
    ///
    /// # Errors
    /// The operands do not fit into memory, or a launch fails.
    pub fn time_kernel(&self, example: &ExampleCall, runs: usize) -> Result<TimedKernel> {
        Ok(self.time_variants(example, &[], runs)?.remove(0))
    }

    /// Times a kernel and these variants of it: warm-up runs of each, then `runs` timed runs of each. On a GPU, the
    /// kernel and its variants run in turns.
    ///
    /// # Errors
    /// The operands do not fit into memory, or a launch fails.
    pub fn time_variants(
        &self,
        example: &ExampleCall,
        variants: &[&'static Variant],
        runs: usize,
    ) -> Result<Vec<TimedKernel>> {
        let kernel = example.launch.kernel.name;
        self.check_memory(kernel, max_allocated_bytes_of_call(example))?;
        let kernels = std::iter::once(example.launch.kernel).chain(variants.iter().map(|variant| variant.kernel));
        let times: Vec<RunTimes> = match self {
            TimingDevice::Gpu(gpu, _) => time_call_on_gpu(gpu, example, &kernels.collect::<Vec<_>>(), runs)?,
            // On a CPU all variants run the same code, so differences between their times are measurement noise.
            TimingDevice::Cpu(threads) => {
                kernels.map(|_| time_call_on_cpu(&Team::new(*threads), example, runs)).collect()
            }
        };
        let dtype = dtype_of_kernel(kernel).unwrap_or(DType::F32);
        let names = std::iter::once(None).chain(variants.iter().map(|variant| Some(variant.name)));
        let timed = names.zip(times).map(|(variant, timed)| {
            let (size, cost) = (example.size.to_string(), example.launch.cost);
            TimedKernel { kernel, variant, size, dtype, cost, timed, clocks: None }
        });
        Ok(timed.collect())
    }

    /// Times a matrix product: warm-up runs, then `runs` timed runs. On a GPU it is timed by cuBLASLt, then, in turns
    /// with cuBLASLt, by the kernel of this project if there is one, and with `variants` by the kernel's variants.
    ///
    /// # Errors
    /// The operands do not fit into memory, or a launch fails.
    pub fn time_product(&self, p: &ExampleProduct, runs: usize, variants: bool) -> Result<Vec<TimedKernel>> {
        self.check_memory(p.name, max_allocated_bytes_of_product(&p.product))?;
        let mut own: Vec<(Option<&'static str>, &'static Kernel)> = Vec::new();
        let timed = match self {
            TimingDevice::Gpu(gpu, blas) => {
                let blas = match blas.get() {
                    Some(blas) => blas,
                    None => {
                        let opened = gpu.driver().blas()?;
                        blas.get_or_init(|| opened)
                    }
                };
                if let Some(launch) = (p.product.code.gpu_kernel)(&p.product, &gpu.arch()) {
                    own.push((None, launch.kernel));
                    let all = variants_of(launch.kernel).filter(|_| variants);
                    own.extend(all.map(|variant| (Some(variant.name), variant.kernel)));
                }
                let kernels: Vec<_> = own.iter().map(|(_, kernel)| *kernel).collect();
                time_product_on_gpu(gpu, &**blas, &p.product, &kernels, runs)?
            }
            TimingDevice::Cpu(threads) => vec![time_product_on_cpu(&Team::new(*threads), &p.product, runs)],
        };
        let own = own.into_iter().map(|(variant, kernel)| (variant, kernel.name));
        let names = std::iter::once((None, p.name)).chain(own);
        let timed = names.zip(timed).map(|((variant, kernel), timed)| {
            let (size, cost) = (p.size.clone(), p.product.cost());
            TimedKernel { kernel, variant, size, dtype: p.dtype, cost, timed, clocks: None }
        });
        Ok(timed.collect())
    }

    /// Version of the matrix product library and a hash of its algorithms; `None` unless a product was timed on a
    /// GPU.
    pub fn matmul_library_json(&self) -> Option<Value> {
        let TimingDevice::Gpu(_, blas) = self else { return None };
        let blas = blas.get()?;
        let AlgorithmFingerprint { count, hash } = blas.algorithms();
        Some(json!({"library": blas.version(), "algorithms": count, "hash": format!("{hash:016x}")}))
    }

    /// Returns an error if the operands of a call do not fit into the free memory.
    fn check_memory(&self, name: &str, need: f64) -> Result<()> {
        let (free, help) = match self {
            TimingDevice::Gpu(gpu, _) => (gpu.driver().memory_free().ok().map(|b| b as f64), "give smaller sizes"),
            TimingDevice::Cpu(_) => (MachineSpec::host_memory_available(), "give smaller sizes, or end other programs"),
        };
        match free.filter(|free| need > *free) {
            None => Ok(()),
            Some(free) => {
                let what = format!("needs {:.1} GB for its operands; {:.1} GB are free", need / 1e9, free / 1e9);
                Err(Error::failed(name, what, help))
            }
        }
    }
}

impl TimedKernel {
    /// These times as JSON.
    pub fn json(&self) -> Value {
        let (seconds, longest) = (&self.timed.seconds, self.timed.seconds.last());
        let Cost { flops, bytes } = self.cost;
        json!({
            "kernel": self.kernel, "variant": self.variant, "source": code_hash_of_kernel(self.kernel), "size": self.size, "dtype": self.dtype.name(), "flops": flops, "bytes": bytes,
            "seconds": self.timed.median_seconds(), "min": self.timed.least_seconds(), "max": longest, "samples": seconds,
            "clocks": self.clocks.as_ref().map(ClockSummary::json),
        })
    }

    /// The header line of the table with the rows of [`TimedKernel::table_row`].
    pub fn table_header() -> String {
        format!(
            "{:34} {:>12} {:>8} {:>11} {:>11} {:>9} {:>9}",
            "kernel", "us", "spread", "GFLOP", "MB", "GB/s", "TFLOP/s"
        )
    }

    /// These times as a line of text: kernel, median time, spread (longest minus shortest run, over the median),
    /// operations, bytes and rates.
    pub fn table_row(&self) -> String {
        let (seconds, Cost { flops, bytes }) = (self.timed.median_seconds(), self.cost);
        let spread = self.timed.seconds.last().map_or(f64::NAN, |max| (max - self.timed.least_seconds()) / seconds);
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
