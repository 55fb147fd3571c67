//! Watches the machine during a run, for the metrics of each step.

use std::time::Duration;

use crate::hardware_metrics::HardwareMetrics;
use crate::setup::{RunControl, TrainerSetup};
use crate::step::trainer::StepResult;
use reel_device::gpu_sensor::{GpuSampler, NvmlGpu};
use reel_device::resident_host_bytes;

/// Time between two readings of the GPU. The interval is fixed, because a reading at the end of each step would
/// always find the GPU idle. NVML refreshes power and utilization at most a few times per second.
const READING_INTERVAL: Duration = Duration::from_millis(200);

/// Measures the [`HardwareMetrics`] of each step.
#[derive(Debug)]
pub(super) struct HardwareMonitor {
    /// The sampler of GPU readings; `None` on a CPU, and on a GPU that NVML cannot read.
    gpu: Option<GpuSampler>,
    /// Peak operations per second of all GPUs of the run together, by their data sheet, if known.
    peak_flops_per_second: Option<f64>,
}

impl HardwareMonitor {
    /// Starts to watch the device of a run. Only rank 0, which writes the metrics, reads its GPU. Without NVML the
    /// values of the GPU are absent; `reel doctor` explains why.
    pub(super) fn start(trainer: &TrainerSetup, control: &RunControl) -> Self {
        let bus_id = trainer.device.hardware().bus_id.filter(|_| control.is_rank_0());
        let gpu = bus_id.and_then(|bus_id| NvmlGpu::open(&bus_id).ok());
        Self {
            gpu: gpu.map(|gpu| GpuSampler::start(gpu, READING_INTERVAL)),
            peak_flops_per_second: trainer.peak_flops_per_second.map(|peak| peak * control.processes() as f64),
        }
    }

    /// Begins a step. Earlier readings, such as those of an evaluation, are dropped, because they do not belong to
    /// the step.
    pub(super) fn begin_step(&mut self) {
        if let Some(gpu) = &mut self.gpu {
            gpu.take_readings();
        }
    }

    /// Returns the metrics of a finished step that took `step_seconds` seconds.
    pub(super) fn metrics_of_step(&mut self, result: &StepResult, step_seconds: f64) -> HardwareMetrics {
        let seconds = result.grpo.train_seconds.unwrap_or(step_seconds);
        let mfu = self.peak_flops_per_second.map(|peak| result.model_flops / (seconds.max(1e-9) * peak));
        let gpu = self.gpu.as_mut().map(|gpu| HardwareMetrics::from_gpu_readings(&gpu.take_readings()));
        HardwareMetrics { mfu, host_memory_bytes: resident_host_bytes(), ..gpu.unwrap_or_default() }
    }
}
