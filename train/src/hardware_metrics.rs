//! The metrics of a step that describe the machine: utilization, power, clocks, temperature, throttling, memory.

use std::collections::BTreeMap;

use reel_device::gpu_sensor::GpuReading;
use serde::{Deserialize, Serialize};

/// The state of the machine during a step. Values that the machine does not report are absent from the JSON line. All
/// values may differ between equal runs.
///
/// The values of a GPU are those of rank 0: means over readings that a thread makes at a fixed interval during the
/// step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HardwareMetrics {
    /// Model FLOPs utilization, from 0 to 1: operations of the model ([`reel_model::flops`]) per second and GPU,
    /// divided by the rate of the GPU's data sheet for the dtype. For GRPO, the seconds are `train_seconds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Resident memory of the process in bytes, at the end of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_memory_bytes: Option<u64>,
    /// Power of the GPU's board in W.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_power_watts: Option<f64>,
    /// Clock of the streaming multiprocessors in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_sm_mhz: Option<f64>,
    /// Clock of the GPU's memory in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory_mhz: Option<f64>,
    /// Temperature of the GPU in °C.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_temperature_celsius: Option<f64>,
    /// Share of the time in which a kernel ran on the GPU, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_busy_share: Option<f64>,
    /// Bytes of GPU memory that all processes use; the largest reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory_used_bytes: Option<f64>,
    /// For each reason why the GPU ran below its highest clock, the share of readings with this reason. The pair
    /// `("sw_power_cap", 0.5)` is the key `gpu_throttled/sw_power_cap` of the JSON line.
    #[serde(flatten, with = "throttled_by_name")]
    pub gpu_throttled: BTreeMap<String, f64>,
}

impl HardwareMetrics {
    /// Summarizes the readings of a GPU during a step. The reason `gpu_idle` is left out, because it is not
    /// throttling: an idle GPU reports it.
    pub fn from_gpu_readings(readings: &[GpuReading]) -> Self {
        let values = |value: fn(&GpuReading) -> Option<f64>| readings.iter().filter_map(value).collect::<Vec<f64>>();
        let mean = |value: fn(&GpuReading) -> Option<f64>| {
            let values = values(value);
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let mut throttled = BTreeMap::new();
        for reason in readings.iter().flat_map(|reading| &reading.throttled).filter(|reason| **reason != "gpu_idle") {
            *throttled.entry(reason.to_string()).or_insert(0.0) += 1.0 / readings.len() as f64;
        }
        Self {
            gpu_power_watts: mean(|r| r.power_watts),
            gpu_sm_mhz: mean(|r| r.sm_mhz),
            gpu_memory_mhz: mean(|r| r.memory_mhz),
            gpu_temperature_celsius: mean(|r| r.temperature_celsius),
            gpu_busy_share: mean(|r| r.busy_share),
            gpu_memory_used_bytes: values(|r| r.memory_used_bytes).into_iter().reduce(f64::max),
            gpu_throttled: throttled,
            ..Self::default()
        }
    }
}

/// Writes and reads the reasons as the keys `gpu_throttled/NAME` of the JSON line.
mod throttled_by_name {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::{Map, Value};

    const PREFIX: &str = "gpu_throttled/";

    pub fn serialize<S: Serializer>(reasons: &BTreeMap<String, f64>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(reasons.iter().map(|(name, share)| (format!("{PREFIX}{name}"), share)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
        let fields = Map::<String, Value>::deserialize(deserializer)?;
        let reason = |(key, value): (&String, &Value)| Some((key.strip_prefix(PREFIX)?.to_string(), value.as_f64()?));
        Ok(fields.iter().filter_map(reason).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(watts: Option<f64>, used: f64, throttled: &[&'static str]) -> GpuReading {
        GpuReading {
            power_watts: watts,
            memory_used_bytes: Some(used),
            throttled: throttled.to_vec(),
            ..GpuReading::default()
        }
    }

    #[test]
    fn readings_of_a_step_are_summarized() {
        let readings = [
            reading(Some(300.0), 2e9, &["gpu_idle"]),
            reading(None, 5e9, &["sw_power_cap"]),
            reading(Some(700.0), 3e9, &["sw_power_cap", "hw_slowdown"]),
            reading(Some(500.0), 1e9, &[]),
        ];
        let metrics = HardwareMetrics::from_gpu_readings(&readings);
        let line = serde_json::to_string(&metrics).unwrap();
        let want = r#"{"gpu_power_watts":500.0,"gpu_memory_used_bytes":5000000000.0,"gpu_throttled/hw_slowdown":0.25,"gpu_throttled/sw_power_cap":0.5}"#;
        assert_eq!(line, want);
        assert_eq!(serde_json::from_str::<HardwareMetrics>(&line).unwrap(), metrics);
        assert_eq!(serde_json::to_string(&HardwareMetrics::from_gpu_readings(&[])).unwrap(), "{}");
    }
}
