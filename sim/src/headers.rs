//! Stand-ins for the C library's and CUDA's headers that people's kernels include, for a compiler that has no such library: NVRTC.
//! Only what device code can use; a file that needs more needs nvcc.

macro_rules! headers {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../headers/", $name)))),*] };
}

/// Name as a file includes it, and text.
pub const HEADERS: &[(&str, &str)] = headers!(
    "assert.h" "cassert" "cfloat" "climits" "cmath" "cstddef" "cstdint" "cstdio" "cstdlib" "cstring" "cuda.h" "cuda_runtime.h"
    "cuda_runtime_api.h" "device_launch_parameters.h" "float.h" "limits.h" "math.h" "stddef.h" "stdint.h" "stdio.h" "stdlib.h"
    "string.h"
);
