//! The calls of NVIDIA's driver that `nvidia.rs` makes, and a check that a driver has them.
//!
//! The driver of CUDA 12.0 has all these calls, in the interface version that `nvidia.rs` uses. Newer drivers keep
//! the old versions beside new ones: `cuEventElapsedTime` of CUDA 2.0 beside `cuEventElapsedTime_v2` of 12.8. The
//! bindings are those of CUDA 12.0 (feature `cuda-12000` of the crate cudarc), so a newer version cannot be called by
//! accident. Features of newer drivers are switched on by the driver's version: see
//! [`graphs_have_programmatic_launches`](rules::graphs_have_programmatic_launches).
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use cudarc::driver::sys;

use super::rules;
use crate::compile::driver_code::OLDEST_PTX_COMPILER;

/// The symbol of each call, and the CUDA version (times 1000) that introduced it. Source: `cudaTypedefs.h` of CUDA
/// 13.0.
const CALLS: [(&str, u32); 58] = [
    ("cuCtxSetCurrent", 4000),
    ("cuDeviceGet", 2000),
    ("cuDeviceGetAttribute", 2000),
    ("cuDeviceGetCount", 2000),
    ("cuDeviceGetName", 2000),
    ("cuDeviceGetPCIBusId", 4010),
    ("cuDeviceGetUuid", 9020),
    ("cuDevicePrimaryCtxRelease_v2", 11_000),
    ("cuDevicePrimaryCtxRetain", 7000),
    ("cuDeviceTotalMem_v2", 3020),
    ("cuDriverGetVersion", 2020),
    ("cuEventCreate", 2000),
    ("cuEventDestroy_v2", 4000),
    ("cuEventElapsedTime", 2000),
    ("cuEventQuery", 2000),
    ("cuEventRecord", 2000),
    ("cuEventSynchronize", 2000),
    ("cuFuncGetAttribute", 2020),
    ("cuFuncSetAttribute", 9000),
    ("cuGetErrorName", 6000),
    ("cuGetErrorString", 6000),
    ("cuGraphDestroy", 10_000),
    ("cuGraphExecDestroy", 10_000),
    ("cuGraphInstantiateWithFlags", 11_040),
    ("cuGraphLaunch", 10_000),
    ("cuInit", 2000),
    ("cuLaunchKernelEx", 11_060),
    ("cuMemAddressFree", 10_020),
    ("cuMemAddressReserve", 10_020),
    ("cuMemAlloc_v2", 3020),
    ("cuMemCreate", 10_020),
    ("cuMemFreeHost", 2000),
    ("cuMemFree_v2", 3020),
    ("cuMemGetAllocationGranularity", 10_020),
    ("cuMemGetInfo_v2", 3020),
    ("cuMemHostAlloc", 2020),
    ("cuMemMap", 10_020),
    ("cuMemRelease", 10_020),
    ("cuMemSetAccess", 10_020),
    ("cuMemUnmap", 10_020),
    ("cuMemcpyDtoDAsync_v2", 3020),
    ("cuMemcpyDtoHAsync_v2", 3020),
    ("cuMemcpyHtoDAsync_v2", 3020),
    ("cuMemsetD8Async", 3020),
    ("cuModuleGetFunction", 2000),
    ("cuModuleLoadData", 2000),
    ("cuModuleUnload", 2000),
    ("cuOccupancyMaxActiveBlocksPerMultiprocessor", 6050),
    ("cuOccupancyMaxActiveClusters", 11_070),
    ("cuProfilerStart", 4000),
    ("cuProfilerStop", 4000),
    ("cuStreamBeginCapture_v2", 10_010),
    ("cuStreamCreate", 2000),
    ("cuStreamDestroy_v2", 4000),
    ("cuStreamEndCapture", 10_000),
    ("cuStreamSynchronize", 2000),
    ("cuStreamWaitEvent", 3020),
    ("cuTensorMapEncodeTiled", 12_000),
];

/// The driver library that is installed on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverLibrary {
    /// The newest CUDA version that the driver supports, times 1000: 13000 for 13.0.
    pub version: u32,
    /// The calls that the library lacks.
    pub missing: Vec<&'static str>,
}

impl DriverLibrary {
    /// Opens the driver's library and looks for all calls; `None` if there is no library. Needs no GPU.
    pub fn open() -> Option<DriverLibrary> {
        // SAFETY: only opens the library; its initialisers have no preconditions.
        let library = unsafe { sys::is_culib_present().then(|| sys::culib())? };
        // SAFETY: the symbols are only looked for.
        let has = |name: &str| unsafe { library.get::<*const c_void>(name.as_bytes()) }.is_ok();
        let missing: Vec<&str> = CALLS.into_iter().map(|(name, _)| name).filter(|name| !has(name)).collect();
        let mut version: c_int = 0;
        if has("cuDriverGetVersion") {
            // SAFETY: the driver writes one number to `version`; if it fails, the number stays 0.
            let _ = unsafe { sys::cuDriverGetVersion(&mut version) };
        }
        Some(DriverLibrary { version: version.max(0) as u32, missing })
    }

    /// Returns what this driver lacks in comparison with a newer one, one clause per feature. `has_ptxas_12` tells
    /// whether a ptxas of CUDA 12 is installed.
    pub fn limitations(&self, has_ptxas_12: bool) -> Vec<&'static str> {
        let mut all = Vec::new();
        if !rules::graphs_have_programmatic_launches(self.version) {
            all.push("before CUDA 12.3 the launches of a decode step do not overlap, which makes it slower on Hopper");
        }
        if self.version < 13_000 {
            all.push("it needs cuBLASLt 12");
            all.push(match (has_ptxas_12, self.version >= OLDEST_PTX_COMPILER) {
                (true, _) => "ptxas 12 compiles the kernels that are not built in",
                (false, true) => "the driver compiles the kernels that are not built in, at each start",
                (false, false) => "kernels that are not built in need ptxas 12, which is not installed",
            });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::driver_code::OLDEST_DRIVER;

    #[test]
    fn the_oldest_driver_has_every_call() {
        for (name, version) in CALLS {
            assert!(version <= OLDEST_DRIVER, "{name} needs a driver of CUDA {version}");
        }
        assert!(CALLS.is_sorted(), "sorted by name");
    }

    #[test]
    fn limitations_depend_on_the_version() {
        let count = |version, ptxas| DriverLibrary { version, missing: Vec::new() }.limitations(ptxas).len();
        assert_eq!([12_000, 12_020, 12_030, 12_090, 13_000].map(|version| count(version, true)), [3, 3, 2, 2, 0]);
        let of = |version| DriverLibrary { version, missing: Vec::new() }.limitations(false).join("; ");
        assert!(of(12_000).contains("need ptxas 12") && of(12_040).contains("the driver compiles"));
    }

    /// Each call that `nvidia.rs` makes without a wrapper of cudarc is in the list `CALLS`.
    #[test]
    fn the_list_has_the_calls_of_nvidia() {
        let text = include_str!("nvidia.rs");
        let calls = text.split("sys::cu").skip(1).map(|rest| rest.split('(').next().unwrap_or_default());
        let calls: Vec<String> = calls.map(|rest| format!("cu{rest}")).collect();
        assert!(calls.len() > 10, "{calls:?}");
        for call in calls {
            assert!(CALLS.into_iter().any(|(name, _)| name == call), "{call}");
        }
    }
}
