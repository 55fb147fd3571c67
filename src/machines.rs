//! Machines to plan for: what they can do and how much they hold.

use anyhow::Result;
use reel_kernels::cuda::{Driver, Nvidia};

use crate::ceilings::Ceilings;
use crate::fail::bad_usage;

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// What it does a second.
    pub ceilings: Ceilings,
    /// Compute capability of a GPU, as 90; 0 for a processor.
    pub compute_capability: u32,
    /// Bytes that it holds, where that is known.
    pub memory: Option<f64>,
    /// Where the figures come from.
    pub source: String,
}

/// What a data sheet says: compute capability; dense bf16 products with f32 sums, f32 outside tensor cores, both in TFLOP/s; TB/s; GB.
struct Sheet {
    name: &'static str,
    compute_capability: u32,
    bf16: f64,
    f32: f64,
    bandwidth: f64,
    memory: f64,
    of: &'static str,
}

/// NVIDIA's data sheets; dense rates, without sparsity.
const SHEETS: [Sheet; 5] = [
    Sheet {
        name: "h200",
        compute_capability: 90,
        bf16: 989.4,
        f32: 66.9,
        bandwidth: 4.8,
        memory: 141.0,
        of: "H200 SXM",
    },
    Sheet {
        name: "h100",
        compute_capability: 90,
        bf16: 989.4,
        f32: 66.9,
        bandwidth: 3.35,
        memory: 80.0,
        of: "H100 SXM",
    },
    Sheet {
        name: "a100",
        compute_capability: 80,
        bf16: 312.0,
        f32: 19.5,
        bandwidth: 2.039,
        memory: 80.0,
        of: "A100 SXM 80 GB",
    },
    Sheet { name: "l40s", compute_capability: 89, bf16: 362.0, f32: 91.6, bandwidth: 0.864, memory: 48.0, of: "L40S" },
    Sheet {
        name: "rtx4090",
        compute_capability: 89,
        bf16: 165.2,
        f32: 82.6,
        bandwidth: 1.008,
        memory: 24.0,
        of: "GeForce RTX 4090",
    },
];

/// The sheet of a GPU by its full name, as `NVIDIA H200`.
fn sheet(full: &str) -> Option<&'static Sheet> {
    let plain = full.to_lowercase().replace(' ', "");
    SHEETS.iter().find(|s| plain.contains(s.name))
}

/// Operations a second of dense bf16 products by the data sheet of a GPU of this full name, where it is in the table.
pub fn dense_bf16(full: &str) -> Option<f64> {
    sheet(full).map(|s| s.bf16 * 1e12)
}

/// What large products (790 of 989.4 TFLOP/s) and copies (4.3 of 4.8 TB/s) are known to reach of the H200's data sheet; taken
/// for the others too.
const PRODUCTS: f64 = 0.8;
const COPIES: f64 = 0.9;

impl Machine {
    /// A GPU by its name.
    pub fn gpu(name: &str) -> Result<Self> {
        let Some(s) = SHEETS.iter().find(|s| s.name == name) else {
            let names: Vec<&str> = SHEETS.iter().map(|s| s.name).collect();
            return Err(bad_usage(
                "--gpu",
                format!("there is no GPU {name:?} in the table"),
                format!("use one of {}", names.join(", ")),
            ));
        };
        let source = format!(
            "{:.0} % and {:.0} % of the data sheet's {} and {} TFLOP/s, {} TB/s for {}; launch overhead not counted",
            100.0 * PRODUCTS,
            100.0 * COPIES,
            s.bf16,
            s.f32,
            s.bandwidth,
            s.of
        );
        let ceilings = Ceilings {
            f32: PRODUCTS * s.f32 * 1e12,
            bf16: PRODUCTS * s.bf16 * 1e12,
            bytes: COPIES * s.bandwidth * 1e12,
        };
        let compute_capability = s.compute_capability;
        Ok(Self { name: name.to_string(), ceilings, compute_capability, memory: Some(s.memory * 1e9), source })
    }

    /// A GPU of this machine, by the data sheet of its kind.
    pub fn this_gpu(number: usize) -> Result<Self> {
        let gpu = Nvidia::open(number)?;
        let full = &gpu.properties().name;
        let Some(sheet) = sheet(full) else {
            return Err(bad_usage("--device", format!("{full} is not in the table of GPUs"), "give --gpu NAME"));
        };
        Ok(Self { memory: Some(gpu.properties().memory as f64), ..Self::gpu(sheet.name)? })
    }

    /// Bytes of the host's memory that programs may take, where Linux says it.
    pub fn memory_free() -> Option<f64> {
        let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
    }

    /// The processor that this runs on, measured now.
    pub fn this_processor(threads: usize) -> Self {
        Self {
            name: "cpu".to_string(),
            ceilings: Ceilings::of_processor(threads),
            compute_capability: 0,
            memory: Self::memory_free(),
            source: format!("measured just now with {threads} threads"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_found_by_its_full_name() {
        assert_eq!(dense_bf16("NVIDIA H200"), Some(989.4e12));
        assert_eq!(dense_bf16("NVIDIA GeForce RTX 4090"), Some(165.2e12));
        assert_eq!(dense_bf16("AMD EPYC 7763"), None);
    }
}
