//! The metrics of the machine in `/metrics`: operations of the model, the GPU's power, clocks, temperature, throttling
//! and memory, and the memory of the process.
//!
//! The GPU is read when a client asks for the metrics, and at no other time.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use reel_device::gpu_sensor::{GpuReading, GpuSensor, NvmlGpu};
use reel_device::resident_host_bytes;
use reel_engine::EngineStats;
use reel_input::config::ModelConfig;
use reel_model::flops::ForwardFlops;

use crate::settings::ServedModel;

/// Why a GPU runs below its highest clock: the values of the label `reason`.
const THROTTLE_REASONS: [&str; 8] = [
    "applications_clocks_setting",
    "display_clock_setting",
    "hw_power_brake_slowdown",
    "hw_slowdown",
    "hw_thermal_slowdown",
    "sw_power_cap",
    "sw_thermal_slowdown",
    "sync_boost",
];

/// Reads the metrics of the machine for `/metrics`.
pub(crate) struct HardwareGauges {
    gpu: Option<Gpu>,
    config: ModelConfig,
    /// The number of processes that divide the decoder.
    processes: usize,
    /// Operations per second of the GPU by its data sheet, if known.
    peak_flops_per_second: Option<f64>,
}

struct Gpu {
    sensor: Mutex<Box<dyn GpuSensor>>,
    /// Labels of the GPU's series, the same as in NVIDIA's dcgm-exporter.
    labels: String,
}

impl std::fmt::Debug for HardwareGauges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gpu = self.gpu.as_ref().map(|gpu| &gpu.labels);
        f.debug_struct("HardwareGauges").field("gpu", &gpu).finish_non_exhaustive()
    }
}

impl HardwareGauges {
    /// The gauges of the machine that serves `model`. Without NVML the GPU's gauges are absent: `reel doctor` says why.
    pub(crate) fn new(model: &ServedModel, peak_flops_per_second: Option<f64>) -> Self {
        let opened = model.device.hardware().bus_id.and_then(|id| NvmlGpu::open(&id).ok().map(|gpu| (id, gpu)));
        let gpu = opened.map(|(bus_id, gpu)| {
            let labels = format!("UUID=\"{}\",pci_bus_id=\"{bus_id}\"", gpu.uuid().unwrap_or_default());
            Gpu { sensor: Mutex::new(Box::new(gpu)), labels }
        });
        let processes = model.divided.as_ref().map_or(1, |divided| divided.parallel.rank_count());
        Self { gpu, config: model.folder.config.clone(), processes, peak_flops_per_second }
    }

    /// Appends the metrics in Prometheus' text format. `labels` are the labels of all series, without braces.
    pub(crate) fn write(&self, out: &mut String, labels: &str, engine: Option<EngineStats>) {
        let mut family = |name: &str, kind: &str, help: &str, labels: &str, value: Option<f64>| {
            let Some(value) = value else { return };
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{{labels}}} {value}");
        };
        let flops = engine.map(|stats| self.flops_per_gpu(&stats));
        let name = "vllm:estimated_flops_per_gpu_total";
        family(name, "counter", "Floating-point operations of the model on each GPU.", labels, flops);
        let name = "reel:gpu_peak_flops_per_second";
        family(
            name,
            "gauge",
            "Peak floating-point operations per second in the GPU's data sheet.",
            labels,
            self.peak_flops_per_second,
        );
        if let Some(Gpu { sensor, labels: of_gpu }) = &self.gpu {
            let reading = sensor.lock().unwrap_or_else(PoisonError::into_inner).read();
            let labels = format!("{of_gpu},{labels}");
            for (name, kind, help, value) in gauges(&reading) {
                family(name, kind, help, &labels, value);
            }
            let name = "reel:gpu_throttled";
            let _ = writeln!(out, "# HELP {name} Whether the GPU runs below its highest clock.\n# TYPE {name} gauge");
            for reason in THROTTLE_REASONS {
                let is_throttled = u8::from(reading.throttled.contains(&reason));
                let _ = writeln!(out, "{name}{{reason=\"{reason}\",{labels}}} {is_throttled}");
            }
        }
        if let Some(bytes) = resident_host_bytes() {
            let name = "process_resident_memory_bytes";
            let _ = writeln!(out, "# HELP {name} Resident memory of the process.\n# TYPE {name} gauge\n{name} {bytes}");
        }
    }

    /// Operations of the model on each GPU. If the model is divided, each GPU computes a part of the decoder and the
    /// whole vision tower.
    fn flops_per_gpu(&self, stats: &EngineStats) -> f64 {
        let tokens = (stats.prefill_tokens + stats.generated_tokens) as f64;
        let (pairs, rows) = (stats.attended_keys as f64, stats.sampled_positions as f64);
        let decoder = ForwardFlops::for_tokens(&self.config, tokens, pairs, rows).total();
        decoder / self.processes as f64 + stats.vision_flops as f64
    }
}

/// Name, kind, description and value of each metric of a GPU, in base units as Prometheus recommends.
fn gauges(reading: &GpuReading) -> [(&'static str, &'static str, &'static str, Option<f64>); 8] {
    let hertz = |mhz: Option<f64>| mhz.map(|mhz| mhz * 1e6);
    [
        ("reel:gpu_power_watts", "gauge", "Power of the GPU's board.", reading.power_watts),
        ("reel:gpu_energy_joules_total", "counter", "Energy since the driver was loaded.", reading.energy_joules),
        ("reel:gpu_sm_clock_hertz", "gauge", "Clock of the streaming multiprocessors.", hertz(reading.sm_mhz)),
        ("reel:gpu_memory_clock_hertz", "gauge", "Clock of the GPU's memory.", hertz(reading.memory_mhz)),
        ("reel:gpu_temperature_celsius", "gauge", "Temperature of the GPU.", reading.temperature_celsius),
        ("reel:gpu_busy_ratio", "gauge", "Share of time in which a kernel ran, 0 to 1.", reading.busy_share),
        ("reel:gpu_memory_used_bytes", "gauge", "GPU memory that all processes use.", reading.memory_used_bytes),
        ("reel:gpu_memory_bytes", "gauge", "GPU memory.", reading.memory_bytes),
    ]
}

#[cfg(test)]
impl HardwareGauges {
    /// Gauges of a GPU with this sensor, for a small model.
    pub(crate) fn with_sensor(sensor: Option<Box<dyn GpuSensor>>, peak: Option<f64>) -> Self {
        let config = include_str!("../../input/src/config/tiny.json");
        let config = ModelConfig::parse("config.json", config).expect("a configuration");
        let labels = "UUID=\"GPU-1\",pci_bus_id=\"0000:1B:00.0\"".to_string();
        let gpu = sensor.map(|sensor| Gpu { sensor: Mutex::new(sensor), labels });
        Self { gpu, config, processes: 1, peak_flops_per_second: peak }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(GpuReading);

    impl GpuSensor for Fixed {
        fn read(&mut self) -> GpuReading {
            self.0.clone()
        }
    }

    fn text(gauges: &HardwareGauges, stats: Option<EngineStats>) -> String {
        let mut out = String::new();
        gauges.write(&mut out, "model_name=\"m\"", stats);
        out
    }

    #[test]
    fn values_have_base_units_and_the_labels_of_the_gpu() {
        let reading = GpuReading {
            power_watts: Some(612.5),
            sm_mhz: Some(1755.0),
            busy_share: Some(0.5),
            memory_used_bytes: Some(3e9),
            throttled: vec!["gpu_idle", "sw_power_cap"],
            ..GpuReading::default()
        };
        let gauges = HardwareGauges::with_sensor(Some(Box::new(Fixed(reading))), Some(989.4e12));
        let text = text(&gauges, None);
        for line in [
            "reel:gpu_power_watts{UUID=\"GPU-1\",pci_bus_id=\"0000:1B:00.0\",model_name=\"m\"} 612.5",
            "reel:gpu_sm_clock_hertz{UUID=\"GPU-1\",pci_bus_id=\"0000:1B:00.0\",model_name=\"m\"} 1755000000",
            "reel:gpu_memory_used_bytes{UUID=\"GPU-1\",pci_bus_id=\"0000:1B:00.0\",model_name=\"m\"} 3000000000",
            "reel:gpu_throttled{reason=\"sw_power_cap\",UUID=\"GPU-1\",pci_bus_id=\"0000:1B:00.0\",model_name=\"m\"} 1",
            "reel:gpu_throttled{reason=\"hw_slowdown\",UUID=\"GPU-1\",pci_bus_id=\"0000:1B:00.0\",model_name=\"m\"} 0",
            "reel:gpu_peak_flops_per_second{model_name=\"m\"} 989400000000000",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
        }
        for absent in ["gpu_temperature", "gpu_energy", "gpu_idle", "estimated_flops"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
    }

    #[test]
    fn operations_are_counted_without_a_gpu() {
        let gauges = HardwareGauges::with_sensor(None, None);
        let stats = EngineStats {
            prefill_tokens: 4,
            generated_tokens: 2,
            attended_keys: 10 + 5 + 6,
            sampled_positions: 3,
            vision_flops: 1000,
            ..EngineStats::default()
        };
        let text = text(&gauges, Some(stats));
        let want = ForwardFlops::for_tokens(&gauges.config, 6.0, 21.0, 3.0).total() + 1000.0;
        let line = format!("vllm:estimated_flops_per_gpu_total{{model_name=\"m\"}} {want}");
        assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
        assert!(!text.contains("reel:gpu_") && text.contains("\nprocess_resident_memory_bytes "), "{text}");
    }
}
