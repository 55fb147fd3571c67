//! NVIDIA's management library: the few calls that [`GpuReading`] needs. The library comes with the driver.
//!
//! Source: NVIDIA's NVML API reference. All functions return 0 for success. A GPU that does not support a value returns
//! an error for it, and the value is `None`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::ptr;

use super::{GpuReading, GpuSensor};
use crate::shared_library::SharedLibrary;

/// The name by which the library is opened.
pub const NVML_LIBRARY: &str = "libnvidia-ml.so.1";

type Handle = *mut c_void;

const SM_CLOCK: c_int = 1;
const MEMORY_CLOCK: c_int = 2;
const GPU_TEMPERATURE: c_int = 0;

/// The bits of `nvmlDeviceGetCurrentClocksThrottleReasons`, with their names in nvidia-smi's queries.
const THROTTLE_REASONS: [(u64, &str); 9] = [
    (0x1, "gpu_idle"),
    (0x2, "applications_clocks_setting"),
    (0x4, "sw_power_cap"),
    (0x8, "hw_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal_slowdown"),
    (0x40, "hw_thermal_slowdown"),
    (0x80, "hw_power_brake_slowdown"),
    (0x100, "display_clock_setting"),
];

/// `nvmlMemory_t`.
#[repr(C)]
#[derive(Default)]
struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlUtilization_t`: percentages.
#[repr(C)]
#[derive(Default)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

type Get<T> = unsafe extern "C" fn(Handle, *mut T) -> c_int;
type GetOf<T> = unsafe extern "C" fn(Handle, c_int, *mut T) -> c_int;

/// The opened and initialised library.
struct Nvml {
    library: SharedLibrary,
}

impl Nvml {
    fn open(library: &str) -> Result<Self, String> {
        let library = SharedLibrary::open(library)?;
        // SAFETY: the type of the function in nvml.h; it has no preconditions.
        let status = unsafe { library.function::<unsafe extern "C" fn() -> c_int>(c"nvmlInit_v2")?() };
        let nvml = Self { library };
        if status == 0 { Ok(nvml) } else { Err(format!("nvmlInit_v2: {}", nvml.error(status))) }
    }

    /// Describes an error code.
    fn error(&self, status: c_int) -> String {
        // SAFETY: the type of the function in nvml.h.
        let function =
            unsafe { self.library.function::<unsafe extern "C" fn(c_int) -> *const c_char>(c"nvmlErrorString") };
        // SAFETY: the function takes any number.
        let text = function.map_or(ptr::null(), |function| unsafe { function(status) });
        if text.is_null() {
            return format!("error {status}");
        }
        // SAFETY: the function returns a constant string.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    fn gpu(&self, bus_id: &str) -> Result<Handle, String> {
        let id = CString::new(bus_id).map_err(|e| e.to_string())?;
        let mut gpu = ptr::null_mut();
        type ByBusId = unsafe extern "C" fn(*const c_char, *mut Handle) -> c_int;
        // SAFETY: the type of the function in nvml.h; both pointers are valid during the call.
        let status = unsafe {
            self.library.function::<ByBusId>(c"nvmlDeviceGetHandleByPciBusId_v2")?(id.as_ptr(), &raw mut gpu)
        };
        if status == 0 { Ok(gpu) } else { Err(format!("no GPU at PCI bus id {bus_id}: {}", self.error(status))) }
    }

    /// Calls a function that writes one value. `None` if it fails or if the driver lacks it.
    fn get<T: Default>(&self, name: &CStr, gpu: Handle) -> Option<T> {
        let mut value = T::default();
        // SAFETY: the callers name functions whose type in nvml.h is `Get<T>`; `gpu` is a handle of this library.
        let status = unsafe { self.library.function::<Get<T>>(name).ok()?(gpu, &raw mut value) };
        (status == 0).then_some(value)
    }

    /// Calls a function that writes one value of the clock or sensor `which`.
    fn get_of(&self, name: &CStr, gpu: Handle, which: c_int) -> Option<f64> {
        let mut value: c_uint = 0;
        // SAFETY: the callers name functions whose type in nvml.h is `GetOf<c_uint>`; `gpu` is a handle of this
        // library.
        let status = unsafe { self.library.function::<GetOf<c_uint>>(name).ok()?(gpu, which, &raw mut value) };
        (status == 0).then(|| f64::from(value))
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        type Shutdown = unsafe extern "C" fn() -> c_int;
        // SAFETY: the type of the function in nvml.h. The library counts initialisations, so others stay valid.
        if let Ok(shutdown) = unsafe { self.library.function::<Shutdown>(c"nvmlShutdown") } {
            // SAFETY: `open` has initialised the library.
            unsafe { shutdown() };
        }
    }
}

/// A GPU as NVML knows it. It is found by its PCI bus id, which does not depend on how CUDA numbers GPUs and on
/// `CUDA_VISIBLE_DEVICES`. An instance of a divided GPU (MIG) has the bus id and the readings of the whole GPU.
pub struct NvmlGpu {
    nvml: Nvml,
    gpu: Handle,
    /// `GPU-…`, as nvidia-smi and DCGM name the GPU.
    uuid: Option<String>,
}

// SAFETY: NVML's functions may be called from any thread, and its handles are valid in all of them.
unsafe impl Send for NvmlGpu {}

impl std::fmt::Debug for NvmlGpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NvmlGpu").field("uuid", &self.uuid).finish_non_exhaustive()
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

    /// As [`Self::open`], with another name or path of the library.
    fn open_by(library: &str, bus_id: &str) -> Result<Self, String> {
        let nvml = Nvml::open(library)?;
        let gpu = nvml.gpu(bus_id)?;
        let uuid = uuid(&nvml, gpu);
        Ok(Self { nvml, gpu, uuid })
    }

    /// The UUID of the GPU, if the library reports it.
    pub fn uuid(&self) -> Option<&str> {
        self.uuid.as_deref()
    }
}

impl GpuSensor for NvmlGpu {
    fn read(&mut self) -> GpuReading {
        let (nvml, gpu) = (&self.nvml, self.gpu);
        let memory = nvml.get::<Memory>(c"nvmlDeviceGetMemoryInfo", gpu);
        let utilization = nvml.get::<Utilization>(c"nvmlDeviceGetUtilizationRates", gpu);
        let energy = nvml.get::<c_ulonglong>(c"nvmlDeviceGetTotalEnergyConsumption", gpu);
        let reasons = nvml.get::<c_ulonglong>(c"nvmlDeviceGetCurrentClocksThrottleReasons", gpu);
        GpuReading {
            power_watts: nvml.get::<c_uint>(c"nvmlDeviceGetPowerUsage", gpu).map(|mw| f64::from(mw) / 1e3),
            energy_joules: energy.map(|mj| mj as f64 / 1e3),
            sm_mhz: nvml.get_of(c"nvmlDeviceGetClockInfo", gpu, SM_CLOCK),
            memory_mhz: nvml.get_of(c"nvmlDeviceGetClockInfo", gpu, MEMORY_CLOCK),
            temperature_celsius: nvml.get_of(c"nvmlDeviceGetTemperature", gpu, GPU_TEMPERATURE),
            busy_share: utilization.map(|u| f64::from(u.gpu) / 100.0),
            memory_used_bytes: memory.as_ref().map(|m| m.used as f64),
            memory_bytes: memory.as_ref().map(|m| m.total as f64),
            throttled: reasons.map(throttle_reasons).unwrap_or_default(),
        }
    }
}

fn throttle_reasons(bits: c_ulonglong) -> Vec<&'static str> {
    THROTTLE_REASONS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect()
}

/// Reads a text that a function writes into a buffer.
fn text(write: impl FnOnce(*mut c_char, c_uint) -> c_int) -> Option<String> {
    let mut buffer = [0u8; 96];
    let status = write(buffer.as_mut_ptr().cast(), buffer.len() as c_uint);
    let text = CStr::from_bytes_until_nul(&buffer).ok()?.to_str().ok()?;
    (status == 0).then(|| text.to_string())
}

fn uuid(nvml: &Nvml, gpu: Handle) -> Option<String> {
    type Function = unsafe extern "C" fn(Handle, *mut c_char, c_uint) -> c_int;
    // SAFETY: the type of the function in nvml.h.
    let function = unsafe { nvml.library.function::<Function>(c"nvmlDeviceGetUUID") }.ok()?;
    // SAFETY: the buffer has the given length, and `gpu` is a handle of this library.
    text(|buffer, length| unsafe { function(gpu, buffer, length) })
}

/// Opens NVML and returns the version of the driver.
///
/// # Errors
/// The library is not installed, or the driver does not run; the reason in one line.
pub fn nvml_driver_version() -> Result<String, String> {
    let nvml = Nvml::open(NVML_LIBRARY)?;
    type Function = unsafe extern "C" fn(*mut c_char, c_uint) -> c_int;
    // SAFETY: the type of the function in nvml.h.
    let function = unsafe { nvml.library.function::<Function>(c"nvmlSystemGetDriverVersion") }?;
    // SAFETY: the buffer has the given length.
    let version = text(|buffer, length| unsafe { function(buffer, length) });
    version.ok_or_else(|| "nvmlSystemGetDriverVersion fails".to_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// Compiles the stand-in for the library, with these options of the C compiler.
    fn stand_in(options: &[&str]) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/stub_nvml.c");
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
        // The counter of energy grows by 0.5 J with each reading.
        assert_eq!(gpu.read().energy_joules.unwrap() - reading.energy_joules.unwrap(), 0.5);
    }

    /// Every call but those that find the GPU may be missing in the driver or be refused by the GPU.
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
        assert_eq!(error(&library, "0000:01:00.0"), "no GPU at PCI bus id 0000:01:00.0: Not Found");
        let (_folder, library) = stand_in(&["-DNO_DRIVER"]);
        assert_eq!(error(&library, "0000:00:00.0"), "nvmlInit_v2: Driver Not Loaded");
        let missing = error("/nowhere/libnvidia-ml.so.1", "0000:00:00.0");
        assert!(missing.contains("/nowhere/libnvidia-ml.so.1") && !missing.contains('\n'), "{missing}");
    }

    #[test]
    fn every_throttle_reason_has_a_name() {
        assert_eq!(throttle_reasons(0x1ff).len(), 9);
        assert_eq!(throttle_reasons(0x4), ["sw_power_cap"]);
        assert!(throttle_reasons(0).is_empty());
    }
}
