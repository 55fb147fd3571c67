//! Replacements for headers of the C library and of CUDA that kernels include, because NVRTC comes without them. They
//! declare only what device code can use; nvcc must compile files that need more.

macro_rules! headers {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../headers/", $name)))),*] };
}

/// Each header's name, as `#include` gives it, with its text.
pub const HEADER_NAMES_AND_TEXTS: &[(&str, &str)] = headers!(
    "assert.h" "cassert" "cfloat" "climits" "cmath" "cstddef" "cstdint" "cstdio" "cstdlib" "cstring" "cuda.h" "cuda_runtime.h"
    "cuda_runtime_api.h" "device_launch_parameters.h" "float.h" "limits.h" "math.h" "stddef.h" "stdint.h" "stdio.h" "stdlib.h"
    "string.h"
);
