//! Errors of a GPU and its driver.

use crate::compile::CompileError;
use crate::launch::TensorMapError;

/// An error of a GPU or its driver. Each message is one line.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CudaError {
    /// No driver is installed on this machine.
    #[error("cuda: no NVIDIA driver (libcuda.so.1); install it, or choose --device cpu or --device sim")]
    NoDriver,
    /// The driver is too old for the kernels' machine code.
    #[error(
        "cuda: the driver is of CUDA {}, and needs to be of {} or newer; update it, or choose --device cpu or --device sim",
        version(*.has),
        version(*.needs)
    )]
    OldDriver {
        /// Its CUDA version times 1000.
        has: u32,
        /// The oldest that will do.
        needs: u32,
    },
    /// A driver, but no such GPU.
    #[error("cuda: there is no GPU {0} ({1} found); choose another, or --device cpu or --device sim")]
    NoGpu(usize, usize),
    /// The GPU's memory is full.
    #[error("cuda: out of memory: no room for {bytes} bytes")]
    OutOfMemory {
        /// What was asked.
        bytes: usize,
    },
    /// A call of the driver failed.
    #[error("cuda: {call}: {what}")]
    Call {
        /// What was being done.
        call: String,
        /// The driver's name of the failure.
        what: String,
    },
    /// A launch that cannot be.
    #[error("{symbol}: {why}; its plan is wrong for this GPU")]
    Launch {
        /// The kernel.
        symbol: &'static str,
        /// Which limit it breaks.
        why: String,
    },
    /// A tensor map that cannot be.
    #[error(transparent)]
    Map(#[from] TensorMapError),
    /// A matrix product that the library cannot compute.
    #[error("{product}: {why}")]
    Product {
        /// Name and shape.
        product: String,
        /// Why.
        why: String,
    },
    /// No cuBLASLt.
    #[error(
        "cuda: cuBLASLt not found: no libcublasLt.so.13; install CUDA 13 or the wheel nvidia-cublas, or set CUDA_HOME (`reel doctor` has more)"
    )]
    NoBlas,
    /// The source does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
}

/// `13000` as `13.0`.
fn version(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}
