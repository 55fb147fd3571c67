//! Looks up kernels in the catalogue of `reel_kernels` by name.

use reel_device::DType;
use reel_kernels::catalogue::{ExampleCall, FOLDERS, KernelFolder};

use crate::error::{Error, Result};

/// Every kernel, with its folder and an example call.
pub fn example_calls_with_folders() -> impl Iterator<Item = (&'static KernelFolder, ExampleCall)> {
    FOLDERS.iter().flat_map(|f| f.examples().into_iter().map(move |e| (f, e)))
}

/// Returns all example calls of the kernel `name`, or of all kernels in the folder `name`, each with its folder.
///
/// # Errors
/// There is no such kernel or folder; the error lists the folders.
pub fn find_example_calls(name: &str) -> Result<Vec<(&'static KernelFolder, ExampleCall)>> {
    let found: Vec<_> =
        example_calls_with_folders().filter(|(f, e)| f.name == name || e.launch.kernel.name == name).collect();
    if found.is_empty() {
        let folders: Vec<&str> = FOLDERS.iter().map(|f| f.name).collect();
        let help =
            format!("use a kernel name from `reel kernels list`, or one of the kernel folders: {}", folders.join(" "));
        return Err(Error::usage(name, "no such kernel", help));
    }
    Ok(found)
}

/// The dtype that a kernel computes in, taken from the end of its name (`rms_norm_fwd_bf16`); `None` if the name ends
/// in no dtype.
pub fn dtype_of_kernel(name: &str) -> Option<DType> {
    [DType::F32, DType::BF16].into_iter().find(|t| name.ends_with(&format!("_{t}")))
}
