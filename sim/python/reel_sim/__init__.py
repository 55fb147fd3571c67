"""Finds races, missing fences, deadlocks and bad accesses of CUDA kernels on a CPU, without a GPU.

`check` runs a kernel of PTX or CUDA C++ on numpy arrays. The modules `reel_sim.triton`, `reel_sim.tilelang` and
`reel_sim.cute` do the same for kernels that are written in Python, `reel_sim.cuda` for CUDA C++ with options of the
compiler. Each returns a `Report`.
"""

from ._arguments import Struct, TensorMap, uninitialized
from ._check import Settings, check
from ._native import __version__
from ._report import Finding, FindingsError, InputError, Place, Report, write_sarif

__all__ = [
    "Finding",
    "FindingsError",
    "InputError",
    "Place",
    "Report",
    "Settings",
    "Struct",
    "TensorMap",
    "__version__",
    "check",
    "uninitialized",
    "write_sarif",
]
