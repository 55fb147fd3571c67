//! Times of kernels at the sizes of the catalogue, on a GPU or on the processor.

use anyhow::Result;
use reel_kernels::Team;
use reel_kernels::bench::{Timed, bytes_on_cpu, time, time_on_cpu};
use reel_kernels::catalogue::Example;
use reel_kernels::cuda::Gpu;
use serde_json::{Value, json};

use crate::fail::failed;
use crate::machines::Machine;

/// A kernel's times.
pub struct Row {
    /// The kernel.
    pub kernel: &'static str,
    /// The size in words.
    pub size: &'static str,
    /// Operations.
    pub flops: f64,
    /// Bytes at the least.
    pub bytes: f64,
    /// Of each run.
    pub timed: Timed,
}

/// Where kernels run.
pub enum Place {
    /// A GPU.
    Gpu(Gpu),
    /// The processor, with this many threads.
    Cpu(usize),
}

impl Place {
    /// Times a call.
    pub fn time(&self, example: &Example, runs: usize) -> Result<Row> {
        let timed = match self {
            Place::Gpu(gpu) => time(gpu, example, runs)?,
            Place::Cpu(threads) => {
                let (need, has) = (bytes_on_cpu(example), Machine::memory_free());
                if has.is_some_and(|has| need as f64 > has) {
                    let what = format!("needs {:.1} GB for its operands, which are not free", need as f64 / 1e9);
                    return Err(failed(
                        example.launch.kernel.name,
                        what,
                        "end other programs, or use a larger machine",
                    ));
                }
                time_on_cpu(&Team::new(*threads), example, runs)
            }
        };
        let cost = example.launch.cost;
        Ok(Row { kernel: example.launch.kernel.name, size: example.size, flops: cost.flops, bytes: cost.bytes, timed })
    }
}

impl Row {
    /// As results have it.
    pub fn json(&self) -> Value {
        let (seconds, longest) = (&self.timed.seconds, self.timed.seconds.last());
        json!({
            "kernel": self.kernel, "size": self.size, "flops": self.flops, "bytes": self.bytes,
            "seconds": self.timed.median(), "min": self.timed.least(), "max": longest, "samples": seconds,
        })
    }

    /// The head of the columns of [`Row::columns`].
    pub fn head() -> String {
        format!("{:34} {:>12} {:>10} {:>10}", "kernel", "us", "GB/s", "TFLOP/s")
    }

    /// Kernel, time and rates.
    pub fn columns(&self) -> String {
        let seconds = self.timed.median();
        let (bytes, flops) = (self.bytes / seconds * 1e-9, self.flops / seconds * 1e-12);
        format!("{:34} {:12.1} {bytes:10.0} {flops:10.2}", self.kernel, seconds * 1e6)
    }
}
