//! Samples power, clocks and temperature of a GPU during a measurement, and summarizes the readings.

use std::collections::BTreeMap;
use std::time::Duration;

use reel_device::Device;
use reel_device::gpu_sensor::{GpuReading, GpuSampler, NvmlGpu};
use serde_json::{Map, Value, json};

use crate::measure::stats;

/// Names and units of the values in a [`ClockSummary`].
pub const READING_NAMES_AND_UNITS: [(&str, &str); 4] =
    [("power_watts", "W"), ("sm_mhz", "MHz"), ("memory_mhz", "MHz"), ("temperature_celsius", "°C")];

/// The values of a reading in the order of [`READING_NAMES_AND_UNITS`].
fn values(reading: &GpuReading) -> [Option<f64>; READING_NAMES_AND_UNITS.len()] {
    [reading.power_watts, reading.sm_mhz, reading.memory_mhz, reading.temperature_celsius]
}

/// A thread that reads clocks and power at a fixed interval.
pub struct ClockSampler(GpuSampler);

impl ClockSampler {
    /// Starts a thread that reads the clocks of a GPU device. Returns `None` for other devices. Also returns `None`,
    /// with a message on stderr, if NVML or the GPU cannot be opened.
    pub fn start_on_gpu_of(device: &Device, interval: Duration) -> Option<ClockSampler> {
        match NvmlGpu::open(&device.hardware().bus_id?) {
            Ok(gpu) => Some(ClockSampler(GpuSampler::start(gpu, interval))),
            Err(why) => {
                reel_support::diagnostic::note!(
                    "bench: power and clocks are not recorded, because NVML cannot be used: {why}"
                );
                None
            }
        }
    }

    /// Summarizes the readings since the last call, or the last reading if there are no new ones. The readings are also
    /// appended to `all`.
    pub fn summarize_new(&mut self, all: &mut Vec<GpuReading>) -> ClockSummary {
        let new = self.0.take_readings();
        let summary = ClockSummary::summarize(&new);
        all.extend(new);
        summary
    }

    /// Makes one last reading, ends the thread, and summarizes all readings.
    pub fn stop(self) -> ClockSummary {
        ClockSummary::summarize(&self.0.stop())
    }
}

/// A summary of all readings of clocks and power during a measurement.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClockSummary {
    /// Number of readings.
    pub readings: usize,
    /// Minimum, median and maximum of each value that was reported.
    pub values: [Option<[f64; 3]>; READING_NAMES_AND_UNITS.len()],
    /// The number of readings with each throttle reason (why the clock was below its maximum).
    pub throttled: BTreeMap<&'static str, usize>,
}

impl ClockSummary {
    /// Computes minimum, median and maximum of each value over these readings, and counts the reasons for lower
    /// clocks.
    pub fn summarize(readings: &[GpuReading]) -> ClockSummary {
        let figure = |i: usize| {
            let values: Vec<f64> = readings.iter().filter_map(|r| values(r)[i]).collect();
            (!values.is_empty()).then(|| stats::min_median_max(&values))
        };
        let mut throttled = BTreeMap::new();
        readings.iter().flat_map(|r| &r.throttled).for_each(|&reason| *throttled.entry(reason).or_default() += 1);
        ClockSummary { readings: readings.len(), values: std::array::from_fn(figure), throttled }
    }

    /// This summary as `reel bench --json` prints it; values that the GPU did not report are null.
    pub fn json(&self) -> Value {
        let mut all = Map::new();
        all.insert("readings".into(), json!(self.readings));
        for ((name, _), figure) in READING_NAMES_AND_UNITS.iter().zip(&self.values) {
            let spread = figure.map(|[min, median, max]| json!({"min": min, "median": median, "max": max}));
            all.insert((*name).into(), spread.unwrap_or(Value::Null));
        }
        all.insert("throttled".into(), json!(self.throttled));
        Value::Object(all)
    }

    /// This summary in one line of text.
    pub fn summary_line(&self) -> String {
        let figure = |((_, unit), spread): (&(&str, &str), &Option<[f64; 3]>)| {
            spread.map(|[min, median, max]| format!("{median:.0} {unit} ({min:.0} to {max:.0})"))
        };
        let texts: Vec<String> = READING_NAMES_AND_UNITS.iter().zip(&self.values).filter_map(figure).collect();
        let throttled: Vec<String> =
            self.throttled.iter().map(|(reason, n)| format!("{reason} in {n} of {}", self.readings)).collect();
        let throttled = if throttled.is_empty() { "not throttled".into() } else { throttled.join(", ") };
        format!("  power, SM clock, memory clock, temperature: {}; {throttled}", texts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(watts: Option<f64>, mhz: f64, throttled: &[&'static str]) -> GpuReading {
        GpuReading {
            power_watts: watts,
            sm_mhz: Some(mhz),
            temperature_celsius: Some(40.0),
            throttled: throttled.to_vec(),
            ..GpuReading::default()
        }
    }

    #[test]
    fn readings_are_summarized() {
        let all = [
            reading(Some(300.0), 1980.0, &[]),
            reading(None, 1200.0, &["sw_power_cap"]),
            reading(Some(700.0), 1500.0, &["sw_power_cap", "hw_slowdown"]),
        ];
        let clocks = ClockSummary::summarize(&all).json();
        assert_eq!(clocks["power_watts"], json!({"min": 300.0, "median": 500.0, "max": 700.0}));
        assert_eq!(clocks["sm_mhz"], json!({"min": 1200.0, "median": 1500.0, "max": 1980.0}));
        assert_eq!(clocks["memory_mhz"], Value::Null);
        assert_eq!(clocks["throttled"], json!({"hw_slowdown": 1, "sw_power_cap": 2}));
        assert_eq!(clocks["readings"], 3);
        let line = ClockSummary::summarize(&all).summary_line();
        assert!(line.contains("500 W (300 to 700), 1500 MHz") && line.contains("sw_power_cap in 2 of 3"), "{line}");
        assert_eq!(ClockSummary::summarize(&[]).json()["power_watts"], Value::Null);
    }

    #[test]
    fn devices_without_a_gpu_have_no_sampler() {
        assert!(ClockSampler::start_on_gpu_of(&Device::cpu(1), Duration::from_secs(1)).is_none());
    }
}
