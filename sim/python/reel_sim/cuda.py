"""CUDA C++ kernels on the simulator, compiled by NVRTC, or by nvcc if NVRTC does not take the file.

The compilers are those of `CUDA_HOME` or of the package nvidia-cuda-nvrtc.
"""

from ._check import check, compile_cuda

__all__ = ["check", "compile_cuda"]
