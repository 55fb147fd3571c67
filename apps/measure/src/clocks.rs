//! Samples power, clocks and temperature of a GPU during a measurement, through NVIDIA's management library (NVML),
//! which is opened at run time.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use reel_device::Device;
use serde_json::{Map, Value, json};

use crate::stats;

/// Power, clocks and temperature of a GPU at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClockReading {
    /// The values in the order of [`READING_NAMES_AND_UNITS`]; `None` where the GPU does not report one.
    pub values: [Option<f64>; READING_NAMES_AND_UNITS.len()],
    /// Reasons why the GPU does not run at its highest clock at this moment.
    pub throttled: Vec<&'static str>,
}

/// Names and units of the values in a [`ClockReading`].
pub const READING_NAMES_AND_UNITS: [(&str, &str); 4] =
    [("power_watts", "W"), ("sm_mhz", "MHz"), ("memory_mhz", "MHz"), ("temperature_celsius", "°C")];

/// A source of clock and power readings: a GPU, or a fake in tests.
pub trait ClockSource: Send {
    /// Reads the current values.
    fn read(&mut self) -> ClockReading;
}

/// A GPU, identified by its PCI bus id, which does not depend on how CUDA numbers GPUs.
struct Gpu {
    nvml: Nvml,
    bus_id: String,
}

impl ClockSource for Gpu {
    fn read(&mut self) -> ClockReading {
        let Ok(gpu) = self.nvml.device_by_pci_bus_id(self.bus_id.as_str()) else { return ClockReading::default() };
        let clock = |which| gpu.clock_info(which).ok().map(f64::from);
        ClockReading {
            values: [
                gpu.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
                clock(Clock::SM),
                clock(Clock::Memory),
                gpu.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
            ],
            throttled: gpu.current_throttle_reasons().map(reasons).unwrap_or_default(),
        }
    }
}

fn reasons(bits: ThrottleReasons) -> Vec<&'static str> {
    let names = [
        (ThrottleReasons::GPU_IDLE, "gpu_idle"),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "applications_clocks_setting"),
        (ThrottleReasons::SW_POWER_CAP, "sw_power_cap"),
        (ThrottleReasons::HW_SLOWDOWN, "hw_slowdown"),
        (ThrottleReasons::SYNC_BOOST, "sync_boost"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "sw_thermal_slowdown"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hw_thermal_slowdown"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "hw_power_brake_slowdown"),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, "display_clock_setting"),
    ];
    names.into_iter().filter(|(bit, _)| bits.contains(*bit)).map(|(_, name)| name).collect()
}

/// A thread that reads clocks and power at a fixed interval.
pub struct ClockSampler {
    end: Sender<()>,
    thread: JoinHandle<Vec<ClockReading>>,
}

impl ClockSampler {
    /// Starts a thread that reads the clocks of a GPU device. Returns `None` for other devices. Also returns `None`,
    /// with a message on stderr, if NVML or the GPU cannot be opened.
    pub fn start_on_gpu_of(device: &Device, interval: Duration) -> Option<ClockSampler> {
        let bus_id = device.hardware().bus_id?;
        let found =
            Nvml::init().map_err(|e| format!("NVML (libnvidia-ml.so.1) cannot be opened: {e}")).and_then(|nvml| {
                let known = nvml.device_by_pci_bus_id(bus_id.as_str()).map(|_| ());
                known.map_err(|e| format!("NVML does not know the GPU at PCI bus id {bus_id}: {e}"))?;
                Ok(Gpu { nvml, bus_id })
            });
        match found {
            Ok(gpu) => Some(ClockSampler::start(gpu, interval)),
            Err(why) => {
                reel_diagnostic::note!("bench: power and clocks are not recorded: {why}");
                None
            }
        }
    }

    /// Starts a thread that reads `source` at once and then once per `interval`.
    pub fn start(mut source: impl ClockSource + 'static, interval: Duration) -> ClockSampler {
        let (end, ended) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut readings = vec![source.read()];
            while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                readings.push(source.read());
            }
            readings.push(source.read());
            readings
        });
        ClockSampler { end, thread }
    }

    /// Makes one last reading, ends the thread, and summarizes all readings.
    pub fn stop(self) -> ClockSummary {
        // If the sampling thread has panicked, sending fails and the summary has no readings.
        let _ = self.end.send(());
        ClockSummary::summarize(&self.thread.join().unwrap_or_default())
    }
}

/// A summary of all readings of clocks and power during a measurement.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClockSummary {
    /// Number of readings.
    pub readings: usize,
    /// Minimum, median and maximum of each value that was reported.
    pub values: [Option<[f64; 3]>; READING_NAMES_AND_UNITS.len()],
    /// For each reason why the clock was lower than the highest, the number of readings with this reason.
    pub throttled: BTreeMap<&'static str, usize>,
}

impl ClockSummary {
    /// Computes minimum, median and maximum of each value over these readings, and counts the reasons for lower
    /// clocks.
    pub fn summarize(readings: &[ClockReading]) -> ClockSummary {
        let figure = |i: usize| {
            let values: Vec<f64> = readings.iter().filter_map(|r| r.values[i]).collect();
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

    /// A clock source for tests: returns these readings one after the other and then repeats the last one.
    struct Fake(Vec<ClockReading>);

    impl ClockSource for Fake {
        fn read(&mut self) -> ClockReading {
            if self.0.len() > 1 { self.0.remove(0) } else { self.0[0].clone() }
        }
    }

    fn reading(watts: Option<f64>, mhz: f64, throttled: &[&'static str]) -> ClockReading {
        ClockReading { values: [watts, Some(mhz), None, Some(40.0)], throttled: throttled.to_vec() }
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

    /// Clocks are read at the start and at the end, however short the measured work is.
    #[test]
    fn sampler_reads_at_start_and_end() {
        let source = Fake(vec![reading(Some(100.0), 500.0, &["gpu_idle"]), reading(Some(600.0), 1900.0, &[])]);
        let clocks = ClockSampler::start(source, Duration::from_secs(3600)).stop();
        assert_eq!(clocks.readings, 2);
        assert_eq!(clocks.values[0], Some([100.0, 350.0, 600.0]));
        assert_eq!(clocks.throttled, BTreeMap::from([("gpu_idle", 1)]));
    }

    #[test]
    fn devices_without_a_gpu_have_no_sampler() {
        assert!(ClockSampler::start_on_gpu_of(&Device::cpu(1), Duration::from_secs(1)).is_none());
    }

    #[test]
    fn every_throttle_reason_has_a_name() {
        assert_eq!(reasons(ThrottleReasons::all()).len(), 9);
        assert_eq!(reasons(ThrottleReasons::SW_POWER_CAP), ["sw_power_cap"]);
    }
}
