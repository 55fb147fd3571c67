//! NVML, NVIDIA's management library, which comes with the driver. This module makes the calls that [`GpuReading`]
//! needs, through the crate nvml-wrapper, which opens the library at run time.

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};

use super::{GpuReading, GpuSensor};
use reel_support::shared_library::one_line;

/// The file name by which the library is opened.
pub const NVML_LIBRARY: &str = "libnvidia-ml.so.1";

/// The reasons for a low clock, with their names in the queries of nvidia-smi.
const THROTTLE_REASONS: [(ThrottleReasons, &str); 9] = [
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

/// A GPU in NVML. The GPU is found by its PCI bus id, which does not depend on CUDA's numbering of GPUs or on
/// `CUDA_VISIBLE_DEVICES`. An instance of a divided GPU (MIG) has the bus id and the readings of the whole GPU.
pub struct NvmlGpu {
    nvml: Nvml,
    bus_id: String,
    /// The name of the GPU in nvidia-smi and DCGM (`GPU-…`).
    uuid: Option<String>,
}

impl std::fmt::Debug for NvmlGpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NvmlGpu").field("bus_id", &self.bus_id).field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

impl NvmlGpu {
    /// Opens NVML and the GPU with this PCI bus id, such as `0000:1B:00.0`.
    ///
    /// # Errors
    /// The library is not installed or does not know the GPU; the reason in one line.
    pub fn open(bus_id: &str) -> Result<Self, String> {
        Self::open_by(NVML_LIBRARY, bus_id)
    }

    /// Does the same as [`Self::open`], with another name or path of the library.
    fn open_by(library: &str, bus_id: &str) -> Result<Self, String> {
        let nvml = open(library)?;
        let gpu = nvml.device_by_pci_bus_id(bus_id).map_err(|e| format!("no GPU at PCI bus id {bus_id}: {e}"))?;
        let uuid = gpu.uuid().ok();
        Ok(Self { nvml, bus_id: bus_id.to_string(), uuid })
    }

    /// The UUID of the GPU, if the library reports it.
    pub fn uuid(&self) -> Option<&str> {
        self.uuid.as_deref()
    }
}

impl GpuSensor for NvmlGpu {
    fn read(&mut self) -> GpuReading {
        let Ok(gpu) = self.nvml.device_by_pci_bus_id(self.bus_id.as_str()) else { return GpuReading::default() };
        let clock = |which| gpu.clock_info(which).ok().map(f64::from);
        let memory = gpu.memory_info().ok();
        GpuReading {
            power_watts: gpu.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
            energy_joules: gpu.total_energy_consumption().ok().map(|millijoules| millijoules as f64 / 1e3),
            sm_mhz: clock(Clock::SM),
            memory_mhz: clock(Clock::Memory),
            temperature_celsius: gpu.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
            busy_share: gpu.utilization_rates().ok().map(|percent| f64::from(percent.gpu) / 100.0),
            memory_used_bytes: memory.as_ref().map(|memory| memory.used as f64),
            memory_bytes: memory.as_ref().map(|memory| memory.total as f64),
            throttled: gpu.current_throttle_reasons().map(throttle_reasons).unwrap_or_default(),
        }
    }
}

/// Opens NVML and returns the version of the driver.
///
/// # Errors
/// The library is not installed, or the driver does not run; the reason in one line.
pub fn nvml_driver_version() -> Result<String, String> {
    open(NVML_LIBRARY)?.sys_driver_version().map_err(|e| one_line(&e))
}

fn open(library: &str) -> Result<Nvml, String> {
    Nvml::builder().lib_path(library.as_ref()).init().map_err(|e| one_line(&e))
}

fn throttle_reasons(reasons: ThrottleReasons) -> Vec<&'static str> {
    THROTTLE_REASONS.iter().filter(|(reason, _)| reasons.contains(*reason)).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// Compiles the stand-in for the library with these options of the C compiler.
    fn stand_in(options: &[&str]) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/support/stub_nvml.c");
        let library = folder.path().join(NVML_LIBRARY);
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1"]).args(options).arg("-o").arg(&library).arg(source);
        let done = cc.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        (folder, library.display().to_string())
    }

    #[test]
    fn a_gpu_is_found_by_its_bus_id_and_read() {
        let (_folder, library) = stand_in(&[]);
        let mut gpu = NvmlGpu::open_by(&library, "0000:00:00.0").unwrap();
        assert_eq!(gpu.uuid(), Some("GPU-12345678-stub"));
        let reading = gpu.read();
        let want = GpuReading {
            power_watts: Some(612.5),
            energy_joules: Some(reading.energy_joules.unwrap()),
            sm_mhz: Some(1755.0),
            memory_mhz: Some(2619.0),
            temperature_celsius: Some(61.0),
            busy_share: Some(0.97),
            memory_used_bytes: Some(3e9),
            memory_bytes: Some(80e9),
            throttled: vec!["sw_power_cap", "hw_thermal_slowdown"],
        };
        assert_eq!(reading, want);
        // The stand-in's energy counter grows by 0.5 J with each reading.
        assert_eq!(gpu.read().energy_joules.unwrap() - reading.energy_joules.unwrap(), 0.5);
    }

    /// Calls may be missing in the driver or refused by the GPU, except those calls that find the GPU.
    #[test]
    fn values_that_a_gpu_does_not_report_are_absent() {
        for option in ["-DLACKS_VALUES", "-DREFUSES_VALUES"] {
            let (_folder, library) = stand_in(&[option]);
            let mut gpu = NvmlGpu::open_by(&library, "0000:00:00.0").unwrap();
            assert_eq!((gpu.read(), gpu.uuid()), (GpuReading::default(), None), "{option}");
        }
    }

    #[test]
    fn errors_name_the_cause_in_one_line() {
        let error = |library: &str, bus_id: &str| NvmlGpu::open_by(library, bus_id).unwrap_err();
        let (_folder, library) = stand_in(&[]);
        assert_eq!(
            error(&library, "0000:01:00.0"),
            "no GPU at PCI bus id 0000:01:00.0: a query to find an object was unsuccessful"
        );
        let (_folder, library) = stand_in(&["-DNO_DRIVER"]);
        assert_eq!(error(&library, "0000:00:00.0"), "NVIDIA driver is not loaded");
        let missing = error("/nowhere/libnvidia-ml.so.1", "0000:00:00.0");
        assert!(missing.contains("/nowhere/libnvidia-ml.so.1") && !missing.contains('\n'), "{missing}");
    }

    #[test]
    fn every_throttle_reason_has_a_name() {
        assert_eq!(throttle_reasons(ThrottleReasons::all()).len(), THROTTLE_REASONS.len());
        assert_eq!(throttle_reasons(ThrottleReasons::SW_POWER_CAP), ["sw_power_cap"]);
        assert!(throttle_reasons(ThrottleReasons::empty()).is_empty());
    }
}
