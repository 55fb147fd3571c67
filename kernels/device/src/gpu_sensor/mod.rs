//! Readings of a GPU's power, clocks, temperature, memory in use and throttling, through NVIDIA's management library
//! (NVML), which is opened at run time ([`nvml`]).
//!
//! A reading queries the driver on the host. It launches nothing on the GPU and does not wait for the GPU. Some calls
//! take milliseconds, so programs that train or measure read on a separate thread ([`GpuSampler`]).

mod nvml;

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub use nvml::{NVML_LIBRARY, NvmlGpu, nvml_driver_version};

/// The state of a GPU at one moment. A value is `None` if the GPU does not report it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuReading {
    /// Power draw of the whole board, in W. GPUs since Ampere report the mean over the last second.
    pub power_watts: Option<f64>,
    /// Energy since the driver was loaded, in J.
    pub energy_joules: Option<f64>,
    /// Clock of the streaming multiprocessors in MHz.
    pub sm_mhz: Option<f64>,
    /// Clock of the memory in MHz.
    pub memory_mhz: Option<f64>,
    /// Temperature of the GPU in °C.
    pub temperature_celsius: Option<f64>,
    /// Share of the driver's last sample period in which a kernel ran, from 0 to 1.
    pub busy_share: Option<f64>,
    /// Bytes of GPU memory that all processes use.
    pub memory_used_bytes: Option<f64>,
    /// The total GPU memory in bytes.
    pub memory_bytes: Option<f64>,
    /// The reasons why the clocks are below the highest ones, by names such as `sw_power_cap`. `gpu_idle` is one of
    /// these names.
    pub throttled: Vec<&'static str>,
}

/// A source of readings: a GPU, or a fixed list of readings in tests.
pub trait GpuSensor: Send {
    /// Reads the current values.
    fn read(&mut self) -> GpuReading;
}

/// A thread that reads a sensor at a fixed interval.
#[derive(Debug)]
pub struct GpuSampler {
    end: Sender<()>,
    thread: Option<JoinHandle<()>>,
    readings: Arc<Mutex<Vec<GpuReading>>>,
    /// The last reading that [`Self::take_readings`] has returned.
    last: Option<GpuReading>,
}

impl GpuSampler {
    /// Starts a thread that reads `sensor` at once and then once per `interval`.
    pub fn start(mut sensor: impl GpuSensor + 'static, interval: Duration) -> GpuSampler {
        let (end, ended) = mpsc::channel();
        let readings = Arc::new(Mutex::new(Vec::new()));
        let list = readings.clone();
        let thread = thread::spawn(move || {
            let mut read = || {
                let reading = sensor.read();
                list.lock().unwrap_or_else(PoisonError::into_inner).push(reading);
            };
            read();
            while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                read();
            }
            read();
        });
        GpuSampler { end, thread: Some(thread), readings, last: None }
    }

    /// Returns the readings since the last call, oldest first. If there are no new readings, returns the last reading
    /// again, so that work shorter than the interval also has a reading.
    pub fn take_readings(&mut self) -> Vec<GpuReading> {
        let new = std::mem::take(&mut *self.readings.lock().unwrap_or_else(PoisonError::into_inner));
        if new.is_empty() {
            return self.last.iter().cloned().collect();
        }
        self.last = new.last().cloned();
        new
    }

    /// Makes one last reading, ends the thread, and returns all readings since the last [`Self::take_readings`].
    pub fn stop(mut self) -> Vec<GpuReading> {
        self.end();
        std::mem::take(&mut *self.readings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(&mut self) {
        // The send fails if the thread has panicked. There is no last reading then.
        let _ = self.end.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for GpuSampler {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sensor that returns readings of 1, 2, 3, … W.
    struct Counter(f64);

    impl GpuSensor for Counter {
        fn read(&mut self) -> GpuReading {
            self.0 += 1.0;
            GpuReading { power_watts: Some(self.0), ..GpuReading::default() }
        }
    }

    fn watts(readings: &[GpuReading]) -> Vec<f64> {
        readings.iter().filter_map(|r| r.power_watts).collect()
    }

    #[test]
    fn sampler_reads_at_the_start_and_at_the_end() {
        let sampler = GpuSampler::start(Counter(0.0), Duration::from_secs(3600));
        assert_eq!(watts(&sampler.stop()), [1.0, 2.0]);
    }

    #[test]
    fn work_without_a_new_reading_has_the_last_one() {
        let mut sampler = GpuSampler::start(Counter(0.0), Duration::from_secs(3600));
        let first = loop {
            let readings = sampler.take_readings();
            if !readings.is_empty() {
                break readings;
            }
            thread::yield_now();
        };
        assert_eq!(watts(&first), [1.0]);
        assert_eq!(watts(&sampler.take_readings()), [1.0]);
        assert_eq!(watts(&sampler.stop()), [2.0]);
    }
}
