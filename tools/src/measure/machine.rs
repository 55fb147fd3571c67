//! Machines to plan for: GPUs by their data sheets, and the CPU of this machine.

use std::path::Path;

use reel_device::cuda::{Driver, Nvidia};
use reel_device::{Cost, DType, Device, OpTotals};

use crate::error::{Error, Result};
use crate::measure::ceilings::Ceilings;
use crate::measure::data_sheet::{self, DataSheet};

/// A GPU or CPU with its arithmetic rates, memory bandwidth and memory size.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// Short name: `h200`, `cpu`, …
    pub name: String,
    /// The highest rates of arithmetic and memory traffic.
    pub ceilings: Ceilings,
    /// Compute capability of a GPU, such as 90; 0 for a CPU.
    pub compute_capability: u32,
    /// Memory in bytes, if known.
    pub memory: Option<f64>,
    /// Bytes per second of NVLink in one direction; `None` without NVLink.
    pub nvlink: Option<f64>,
    /// Name of a GPU's PCIe link: `pcie4` or `pcie5`.
    pub pcie: String,
    /// Where the rates come from, as text.
    pub source: String,
}

/// The data sheet of a GPU by its full name, such as `NVIDIA H200`. `None` for slower variants of a GPU, such as
/// `NVIDIA H100 PCIe`.
fn data_sheet(full_name: &str) -> Option<&'static DataSheet> {
    // The rest of the name must begin with the model's name, so that a GB200 is not taken for a B200.
    let plain = full_name.to_lowercase().replace("nvidia", "").replace("geforce", "").replace(' ', "");
    let is_variant = ["pcie", "nvl", "laptop", "4090d"].iter().any(|part| plain.contains(part));
    data_sheet::built_in().iter().find(|sheet| plain.starts_with(&sheet.name) && !is_variant)
}

/// The short name of a GPU, looked up by its full name; `None` if the table does not have the GPU.
pub(crate) fn data_sheet_name(full_name: &str) -> Option<&'static str> {
    data_sheet(full_name).map(|sheet| sheet.name.as_str())
}

/// Operations per second of the GPU `device` for products of `dtype` by its data sheet (dense, without sparsity). MFU
/// is relative to this rate. `None` for a CPU and for a GPU that is not in the table.
pub fn peak_flops_per_second(device: &Device, dtype: DType) -> Option<f64> {
    let Ceilings { f32, bf16, .. } = PublishedLimits::of_device(device)?.rates;
    Some(if dtype == DType::BF16 { bf16 } else { f32 })
}

/// The limits of a GPU by its data sheet. If a launch seems faster than these limits, its operations or bytes are
/// counted wrong.
#[derive(Clone, Copy, Debug)]
pub struct PublishedLimits {
    /// The rates of the data sheet.
    pub rates: Ceilings,
    /// Size of the L2 cache in bytes. Up to this many bytes of each launch may still be in L2 from the previous launch.
    l2_bytes: f64,
}

impl PublishedLimits {
    /// The limits of the GPU `device`; `None` for a CPU and for a GPU that is not in the table.
    pub fn of_device(device: &Device) -> Option<Self> {
        if device.capabilities().async_launches { Self::of_gpu(&device.hardware().name) } else { None }
    }

    /// The limits of the GPU with this full name; `None` if the table does not have the GPU.
    pub fn of_gpu(full_name: &str) -> Option<Self> {
        let s = data_sheet(full_name)?;
        let rates = Ceilings { f32: s.f32, bf16: s.bf16, bytes: s.bandwidth, cache: None };
        Some(Self { rates, l2_bytes: s.l2.unwrap_or(0.0) })
    }

    /// Whether the launches of the kernel `name` took less time than the data sheet allows for their operations and for
    /// the bytes that L2 cannot have held. If so, the operations or the bytes are counted wrong.
    pub fn is_exceeded_by(&self, name: &str, totals: &OpTotals, dtype: DType) -> bool {
        let Cost { flops, bytes } = totals.cost;
        let beyond_l2 = (bytes - self.l2_bytes * totals.launches as f64).max(0.0);
        let cost = Cost { flops, bytes: beyond_l2 };
        totals.seconds > 0.0 && self.rates.roofline_seconds(name, cost, dtype) > totals.seconds
    }
}

/// The share of the data sheet's rate that large matrix products reach: 790 of 989.4 TFLOP/s on H200. The other GPUs
/// are assumed to reach the same share.
const ACHIEVABLE_ARITHMETIC: f64 = 0.8;
/// The share of the data sheet's bandwidth that large copies reach: 4.3 of 4.8 TB/s on H200. The other GPUs are
/// assumed to reach the same share.
const ACHIEVABLE_BANDWIDTH: f64 = 0.9;

impl MachineSpec {
    /// The GPU of the option `--gpu`: the short name of a built-in GPU, or a file with the figures of a GPU (see
    /// [`data_sheet`]).
    ///
    /// # Errors
    /// There is no built-in GPU of that name; the file cannot be read or has wrong figures.
    pub fn gpu_by_name_or_file(name_or_file: &str) -> Result<Self> {
        match DataSheet::is_file(name_or_file) {
            true => Ok(Self::of_data_sheet(&DataSheet::read(Path::new(name_or_file))?, "file")),
            false => Self::gpu_by_name(name_or_file),
        }
    }

    /// A built-in GPU by its short name.
    ///
    /// # Errors
    /// There is no built-in GPU of that name; the error lists the names.
    pub fn gpu_by_name(name: &str) -> Result<Self> {
        Ok(Self::of_data_sheet(data_sheet::by_name(name)?, "data sheet"))
    }

    /// Makes the machine of a data sheet. `origin` is a word that tells where the figures come from.
    fn of_data_sheet(s: &DataSheet, origin: &str) -> Self {
        let source = format!(
            "assumes {:.0} % of the arithmetic rate and {:.0} % of the bandwidth that the {origin} states ({} TFLOP/s in bf16, {:.3} TFLOP/s in f32, {} TB/s for {})",
            100.0 * ACHIEVABLE_ARITHMETIC,
            100.0 * ACHIEVABLE_BANDWIDTH,
            s.bf16 / 1e12,
            s.f32 / 1e12,
            s.bandwidth / 1e12,
            s.title
        );
        let ceilings = Ceilings {
            f32: ACHIEVABLE_ARITHMETIC * s.f32,
            bf16: ACHIEVABLE_ARITHMETIC * s.bf16,
            bytes: ACHIEVABLE_BANDWIDTH * s.bandwidth,
            cache: None,
        };
        Self {
            name: s.name.clone(),
            ceilings,
            compute_capability: s.compute_capability,
            memory: Some(s.memory),
            nvlink: s.nvlink,
            pcie: s.pcie.clone(),
            source,
        }
    }

    /// GPU number `number` of this machine, with the rates of its data sheet.
    ///
    /// # Errors
    /// The driver cannot open the GPU, or the table of data sheets does not have it.
    pub fn this_gpu(number: usize) -> Result<Self> {
        let gpu = Nvidia::open(number)?;
        let full_name = &gpu.properties().name;
        let Some(sheet) = data_sheet(full_name) else {
            let help = "give --gpu with the name of a similar GPU, or with a file of its figures";
            return Err(Error::usage("--device", format!("there is no data sheet for {full_name}"), help));
        };
        Ok(Self { memory: Some(gpu.properties().memory as f64), ..Self::of_data_sheet(sheet, "data sheet") })
    }

    /// Available host memory in bytes (`MemAvailable` of Linux), if known.
    pub fn host_memory_available() -> Option<f64> {
        let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
    }

    /// The CPU of this machine; this call measures its rates.
    pub fn this_cpu(threads: usize) -> Self {
        Self {
            name: "cpu".to_string(),
            ceilings: Ceilings::measure_cpu(threads),
            compute_capability: 0,
            memory: Self::host_memory_available(),
            nvlink: None,
            pcie: String::new(),
            source: format!("measured with {threads} threads"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sheet_is_found_by_full_name() {
        let bf16 = |name: &str| PublishedLimits::of_gpu(name).map(|limits| limits.rates.bf16);
        assert_eq!(bf16("NVIDIA H200"), Some(989.4e12));
        assert_eq!(bf16("NVIDIA GeForce RTX 4090"), Some(165.2e12));
        for other in ["AMD EPYC 7763", "NVIDIA GB200", "NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090 Laptop GPU"] {
            assert_eq!(bf16(other), None, "{other}");
        }
        assert_eq!(peak_flops_per_second(&Device::cpu(1), DType::F32), None);
    }

    #[test]
    fn launches_that_are_faster_than_the_data_sheet_are_counted_wrong() {
        let h200 = PublishedLimits::of_gpu("NVIDIA H200").unwrap();
        let took = |launches: u64, cost: Cost, seconds: f64| {
            let totals = OpTotals { launches, cost, seconds, ..OpTotals::default() };
            h200.is_exceeded_by("paged_attention_fwd_bf16", &totals, DType::BF16)
        };
        let bytes = |bytes: f64| Cost { flops: 0.0, bytes };
        // Attention of a decode step of 64 sequences. The first byte count is that of the record of 2026-11-27. It
        // would mean a bandwidth of 5 186 GB/s, which is impossible. The second byte count includes only the keys
        // that existed.
        assert!(took(448, bytes(448.0 * 1074.66e6), 0.092_827));
        assert!(!took(448, bytes(448.0 * 537.8e6), 0.092_827));
        // Up to 50 MB of each launch may have been in L2, so the data sheet allows these launches.
        assert!(!took(10, bytes(10.0 * 45e6), 10.0 * 5e-6) && took(1, bytes(450e6), 50e-6));
        assert!(took(1, Cost { flops: 1e12, bytes: 0.0 }, 1e-3) && !took(1, Cost { flops: 9e11, bytes: 0.0 }, 1e-3));
    }
}
