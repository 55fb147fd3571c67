//! Machines to plan for: GPUs by their data sheets, and the CPU of this machine.

use reel_device::cuda::{Driver, Nvidia};
use reel_device::{Cost, DType, Device, OpTotals};

use crate::ceilings::Ceilings;
use crate::error::{Result, bad_option};

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
    /// Where the rates come from, as text.
    pub source: String,
}

/// The data sheet of a GPU: dense rates (without sparsity) in TFLOP/s, bf16 with f32 sums and f32 without tensor cores;
/// bandwidth in TB/s; memory in GB; L2 cache in MB.
///
/// The memory of the H200 is what its driver reports, which is more than the 141 GB of the data sheet.
struct DataSheet {
    name: &'static str,
    compute_capability: u32,
    bf16: f64,
    f32: f64,
    bandwidth: f64,
    memory: f64,
    l2: f64,
    model: &'static str,
}

/// Data sheets by NVIDIA.
const DATA_SHEETS: [DataSheet; 5] = [
    DataSheet {
        name: "h200",
        compute_capability: 90,
        bf16: 989.4,
        f32: 66.9,
        bandwidth: 4.8,
        // 143771 MiB, as the driver reports it.
        memory: 150.75482,
        l2: 50.0,
        model: "H200 SXM",
    },
    DataSheet {
        name: "h100",
        compute_capability: 90,
        bf16: 989.4,
        f32: 66.9,
        bandwidth: 3.35,
        memory: 80.0,
        l2: 50.0,
        model: "H100 SXM",
    },
    DataSheet {
        name: "a100",
        compute_capability: 80,
        bf16: 312.0,
        f32: 19.5,
        bandwidth: 2.039,
        memory: 80.0,
        l2: 40.0,
        model: "A100 SXM 80 GB",
    },
    DataSheet {
        name: "l40s",
        compute_capability: 89,
        bf16: 362.0,
        f32: 91.6,
        bandwidth: 0.864,
        memory: 48.0,
        l2: 96.0,
        model: "L40S",
    },
    DataSheet {
        name: "rtx4090",
        compute_capability: 89,
        bf16: 165.2,
        f32: 82.6,
        bandwidth: 1.008,
        memory: 24.0,
        l2: 72.0,
        model: "GeForce RTX 4090",
    },
];

/// The data sheet of a GPU by its full name, such as `NVIDIA H200`.
fn data_sheet(full_name: &str) -> Option<&'static DataSheet> {
    let plain = full_name.to_lowercase().replace(' ', "");
    DATA_SHEETS.iter().find(|s| plain.contains(s.name))
}

/// The short name of a GPU, looked up by its full name; `None` if the table does not have the GPU.
pub(crate) fn data_sheet_name(full_name: &str) -> Option<&'static str> {
    data_sheet(full_name).map(|s| s.name)
}

/// Operations per second of the GPU `device` for products of `dtype` by its data sheet (dense, without sparsity): what
/// MFU is measured against. `None` for a CPU and for a GPU that is not in the table.
pub fn peak_flops_per_second(device: &Device, dtype: DType) -> Option<f64> {
    let Ceilings { f32, bf16, .. } = PublishedLimits::of_device(device)?.rates;
    Some(if dtype == DType::BF16 { bf16 } else { f32 })
}

/// The limits of a GPU by its data sheet. A launch that seems faster has wrongly counted operations or bytes.
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
        let rates = Ceilings { f32: s.f32 * 1e12, bf16: s.bf16 * 1e12, bytes: s.bandwidth * 1e12, cache: None };
        Some(Self { rates, l2_bytes: s.l2 * 1e6 })
    }

    /// Whether the launches of the kernel `name` took less time than the data sheet allows for their operations and for
    /// the bytes that L2 cannot have held. If so, the operations or the bytes are counted wrong.
    pub fn exceeded_by(&self, name: &str, totals: &OpTotals, dtype: DType) -> bool {
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
    /// A GPU by its short name.
    ///
    /// # Errors
    /// The table has no GPU of that name; the error lists the names.
    pub fn gpu_by_name(name: &str) -> Result<Self> {
        let Some(s) = DATA_SHEETS.iter().find(|s| s.name == name) else {
            let names: Vec<&str> = DATA_SHEETS.iter().map(|s| s.name).collect();
            return Err(bad_option(
                "--gpu",
                format!("there is no data sheet for a GPU named {name:?}"),
                format!("give one of {}", names.join(", ")),
            ));
        };
        let source = format!(
            "assumes {:.0} % of the arithmetic rate and {:.0} % of the bandwidth that the data sheet states ({} TFLOP/s in bf16, {} TFLOP/s in f32, {} TB/s for {})",
            100.0 * ACHIEVABLE_ARITHMETIC,
            100.0 * ACHIEVABLE_BANDWIDTH,
            s.bf16,
            s.f32,
            s.bandwidth,
            s.model
        );
        let ceilings = Ceilings {
            f32: ACHIEVABLE_ARITHMETIC * s.f32 * 1e12,
            bf16: ACHIEVABLE_ARITHMETIC * s.bf16 * 1e12,
            bytes: ACHIEVABLE_BANDWIDTH * s.bandwidth * 1e12,
            cache: None,
        };
        let compute_capability = s.compute_capability;
        Ok(Self { name: name.to_string(), ceilings, compute_capability, memory: Some(s.memory * 1e9), source })
    }

    /// GPU number `number` of this machine, with the rates of its data sheet.
    ///
    /// # Errors
    /// The driver cannot open the GPU, or the table of data sheets does not have it.
    pub fn this_gpu(number: usize) -> Result<Self> {
        let gpu = Nvidia::open(number)?;
        let full_name = &gpu.properties().name;
        let Some(sheet) = data_sheet(full_name) else {
            return Err(bad_option("--device", format!("there is no data sheet for {full_name}"), "give --gpu NAME"));
        };
        Ok(Self { memory: Some(gpu.properties().memory as f64), ..Self::gpu_by_name(sheet.name)? })
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
        assert_eq!(bf16("AMD EPYC 7763"), None);
        assert_eq!(peak_flops_per_second(&Device::cpu(1), DType::F32), None);
    }

    #[test]
    fn launches_that_are_faster_than_the_data_sheet_are_counted_wrong() {
        let h200 = PublishedLimits::of_gpu("NVIDIA H200").unwrap();
        let took = |launches: u64, cost: Cost, seconds: f64| {
            let totals = OpTotals { launches, cost, seconds, ..OpTotals::default() };
            h200.exceeded_by("paged_attention_fwd_bf16", &totals, DType::BF16)
        };
        let bytes = |bytes: f64| Cost { flops: 0.0, bytes };
        // Attention of a decode step of 64 sequences. The first byte count is that of the record of 2026-11-27, which
        // means an impossible 5 186 GB/s. The second one counts only the keys that existed.
        assert!(took(448, bytes(448.0 * 1074.66e6), 0.092_827));
        assert!(!took(448, bytes(448.0 * 537.8e6), 0.092_827));
        // Up to 50 MB of each launch may have been in L2, so these launches are not too fast.
        assert!(!took(10, bytes(10.0 * 45e6), 10.0 * 5e-6) && took(1, bytes(450e6), 50e-6));
        assert!(took(1, Cost { flops: 1e12, bytes: 0.0 }, 1e-3) && !took(1, Cost { flops: 9e11, bytes: 0.0 }, 1e-3));
    }
}
