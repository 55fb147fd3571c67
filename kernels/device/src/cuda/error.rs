//! Errors of a GPU and its driver.

use std::ffi::OsStr;

use cudarc::driver::result::DriverError;

use crate::compile::CompileError;
use crate::error::DeviceError;
use crate::launch::TensorMapError;

/// An error of a GPU or its driver. Each message is one line.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CudaError {
    /// No driver is installed on this machine.
    #[error("{}", self.with_other_device())]
    NoDriver,
    /// The driver is too old to load the kernels' machine code.
    #[error("{}", self.with_other_device())]
    OldDriver {
        /// The newest CUDA version that the driver supports, times 1000.
        has: u32,
        /// The oldest CUDA version that is supported, times 1000.
        needs: u32,
    },
    /// The driver lacks calls that this program needs.
    #[error("{}", self.with_other_device())]
    IncompleteDriver {
        /// The newest CUDA version that the driver supports, times 1000.
        version: u32,
        /// The names of the missing calls.
        missing: Vec<&'static str>,
    },
    /// The machine has no GPU with this index: (index, number of GPUs).
    #[error("{}", self.with_other_device())]
    NoGpu(usize, usize),
    /// The GPU is out of memory.
    #[error("cuda: out of memory: no room for {bytes} bytes")]
    OutOfMemory {
        /// Size of the failed allocation in bytes.
        bytes: usize,
    },
    /// A call to the driver failed.
    #[error("cuda: {call}: {what}")]
    Call {
        /// The call, as an activity: `querying the driver version`.
        call: String,
        /// The driver's name for the failure, such as `CUDA_ERROR_ILLEGAL_ADDRESS`.
        what: String,
    },
    /// A launch exceeds a limit of the GPU.
    #[error("{symbol}: {why}; the launch plan of this kernel does not suit this GPU")]
    Launch {
        /// The kernel's symbol.
        symbol: &'static str,
        /// The limit that the launch exceeds.
        why: String,
    },
    /// A tensor map with invalid fields.
    #[error(transparent)]
    Map(#[from] TensorMapError),
    /// A matrix product that cuBLASLt cannot compute.
    #[error("{product}: {why}")]
    Product {
        /// Name and shape of the product.
        product: String,
        /// The reason why cuBLASLt cannot compute the product.
        why: String,
    },
    /// The machine has no cuBLASLt that works with the driver.
    #[error("cuda: cuBLASLt not found: {}; details: `reel doctor`", missing_blas(*.driver))]
    NoBlas {
        /// The major version of the newest CUDA version that the driver supports.
        driver: u32,
    },
    /// NCCL is not installed.
    #[error(
        "cuda: NCCL not found: no libnccl.so.2; install NVIDIA's package libnccl2 or the Python package nvidia-nccl-cu13 (nvidia-nccl-cu12 with a driver of CUDA 12), or add the library's folder to LD_LIBRARY_PATH"
    )]
    NoNccl,
    /// NCCL is too old.
    #[error("cuda: NCCL {} is too old; install NCCL {} or newer", nccl_version_text(*.has), nccl_version_text(*.needs))]
    OldNccl {
        /// The installed version of NCCL, for example 21403 for 2.14.3.
        has: u32,
        /// The oldest supported version of NCCL.
        needs: u32,
    },
    /// An exchange between ranks failed.
    #[error("NCCL: rank {rank} of {size}: {what}")]
    Exchange {
        /// This process's rank.
        rank: usize,
        /// The number of ranks.
        size: usize,
        /// What failed, and in which exchange between ranks.
        what: String,
    },
    /// A kernel does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
}

impl From<CudaError> for reel_support::error::Error {
    fn from(e: CudaError) -> Self {
        Self::device(e.to_string())
    }
}

impl CudaError {
    /// Returns the error for a library (named `library`) that cannot be opened or lacks a function.
    pub(super) fn library_error(library: &OsStr, reason: String) -> CudaError {
        CudaError::Call { call: format!("opening {}", library.display()), what: reason }
    }

    /// If this error means that no GPU can be opened, returns two texts: what is wrong, and how to get a GPU. The
    /// printed message also names the devices `cpu` and `sim`, which not every command supports.
    pub fn missing_gpu_message(&self) -> Option<(String, String)> {
        match self {
            Self::NoDriver => Some(("no NVIDIA driver (libcuda.so.1)".into(), "install it".into())),
            Self::OldDriver { has, needs } => Some((
                format!("the driver supports CUDA {}", cuda_version_text(*has)),
                format!("update the driver to {} or newer", cuda_version_text(*needs)),
            )),
            Self::IncompleteDriver { version: has, missing } => Some((
                format!("the driver reports CUDA {} but lacks {}", cuda_version_text(*has), missing.join(", ")),
                "reinstall it".into(),
            )),
            Self::NoGpu(number, count) => {
                Some((format!("there is no GPU {number} ({count} found)"), "choose another GPU".into()))
            }
            _ => None,
        }
    }

    /// Returns the message of an error for which [`CudaError::missing_gpu_message`] returns a text.
    fn with_other_device(&self) -> String {
        let (what, remedy) = self.missing_gpu_message().unwrap_or_default();
        format!("cuda: {what}; {remedy}, or choose --device cpu or --device sim")
    }
}

/// Returns which cuBLASLt a driver of this CUDA major version needs, and how to install it.
fn missing_blas(driver: u32) -> String {
    match driver {
        ..13 => "no libcublasLt.so.12; install CUDA 12 or the Python package nvidia-cublas-cu12, or set CUDA_HOME",
        _ => "no libcublasLt.so.13 or .12; install CUDA 13 or the Python package nvidia-cublas, or set CUDA_HOME",
    }
    .into()
}

/// Returns a CUDA version number as text: `13.0` for 13000.
pub fn cuda_version_text(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// Returns a version number of NCCL as text: `2.18.1` for 21801.
pub(super) fn nccl_version_text(number: u32) -> String {
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

/// Adds to a driver's error a text that says what the program was doing, such as "querying the driver version".
pub(super) fn named<T>(call: impl Into<String>, result: Result<T, DriverError>) -> Result<T, CudaError> {
    result.map_err(|e| {
        let text = e.error_string().ok().map(|s| s.to_string_lossy().into_owned());
        let code = e.error_name().ok().map(|s| s.to_string_lossy().into_owned());
        let what = match (code, text) {
            (Some(code), Some(text)) => format!("{code} ({text})"),
            _ => format!("error {}", e.0 as u32),
        };
        CudaError::Call { call: call.into(), what }
    })
}

pub(crate) fn device_error(e: CudaError) -> DeviceError {
    DeviceError::Failed(e.to_string())
}
