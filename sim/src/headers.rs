//! Replacements for headers of the C library and of CUDA that kernels include, because NVRTC has none of them. They
//! declare only what device code can use; a file that needs more must be compiled by nvcc.

macro_rules! headers {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../headers/", $name)))),*] };
}

/// Names, as `#include` gives them, and texts of the headers.
pub const HEADERS: &[(&str, &str)] = headers!(
    "assert.h" "cassert" "cfloat" "climits" "cmath" "cstddef" "cstdint" "cstdio" "cstdlib" "cstring" "cuda.h" "cuda_runtime.h"
    "cuda_runtime_api.h" "device_launch_parameters.h" "float.h" "limits.h" "math.h" "stddef.h" "stdint.h" "stdio.h" "stdlib.h"
    "string.h"
);
