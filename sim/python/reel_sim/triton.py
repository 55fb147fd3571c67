"""Triton kernels on the simulator, without a GPU.

`check` compiles and runs one launch; in the `with` statement of `launches`, every launch of unchanged host code runs on
the simulator. Arrays are numpy arrays (in `check`, or wrapped by `Tensor`) or torch tensors in the CPU's memory. Triton
itself specialises and compiles the kernel, as for a GPU of the architecture `Settings.arch`.
"""

import contextlib
import os

import numpy

# Triton 3.9 warns unless this variable is set; 1 is its default.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton  # noqa: E402
import triton.compiler.compiler as _compiler  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.driver import DriverBase  # noqa: E402

from ._arguments import TensorMap, uninitialized  # noqa: E402
from ._launch import active, recording  # noqa: E402
from ._report import InputError, Report  # noqa: E402

__all__ = ["Tensor", "check", "launches"]


class Tensor:
    """A numpy array with the methods of a torch tensor that Triton and its host code use."""

    def __init__(self, array):
        self.array = array
        self.dtype = array.dtype
        self.shape = array.shape
        self.device = "cpu"

    def data_ptr(self):
        return self.array.__array_interface__["data"][0]

    def element_size(self):
        return self.array.itemsize

    def numel(self):
        return self.array.size

    def dim(self):
        return self.array.ndim

    def stride(self, dimension=None):
        strides = tuple(step // self.array.itemsize for step in self.array.strides)
        return strides if dimension is None else strides[dimension]


def check(kernel, grid, *args, sim=None, **constexprs) -> Report:
    """Runs `kernel[grid](*args, **constexprs)` on the simulator and returns what it found.

    `kernel` is a function with `triton.jit`, also with `triton.autotune` or `triton.heuristics`; the results are in the
    arrays. `sim` are the `Settings`. Every configuration of an autotuned kernel is checked, and the report has one
    launch for each; the results are those of the last.
    """
    with launches(sim) as recorder:
        wrapped = [_wrapped(value) for value in args]
        kernel[grid](*wrapped, **{name: _wrapped(value) for name, value in constexprs.items()})
    if not recorder.reports:
        raise InputError("grid: the launch has no blocks; give a grid of at least one block")
    return recorder.report


@contextlib.contextmanager
def launches(sim=None):
    """Runs the launches of the `with` statement on the simulator; its target has their `report`.

    The results are in the arrays, so host code may go on with them.
    """
    before, before_init = triton.runtime.driver._active, _compiler.CompiledKernel.__init__
    with recording(sim) as recorder:
        _compiler.CompiledKernel.__init__ = _remember_ptx
        triton.runtime.driver.set_active(_Driver(recorder))
        try:
            yield recorder
        finally:
            triton.runtime.driver._active = before
            _compiler.CompiledKernel.__init__ = before_init


def _wrapped(value):
    return Tensor(value) if isinstance(value, numpy.ndarray) else value


#: The PTX of compiled kernels by the hash in their metadata.
_ptx = {}
_compiled_kernel_init = _compiler.CompiledKernel.__init__


def _remember_ptx(self, *args, **kwargs):
    _compiled_kernel_init(self, *args, **kwargs)
    _ptx[self.metadata.hash] = self.asm["ptx"]


class _Utilities:
    """What Triton asks of the driver's library."""

    def __init__(self, capability):
        self.shared = 232448 if capability >= 90 else 166912

    def get_device_properties(self, device):
        return {
            "max_shared_mem": self.shared,
            "max_num_regs": 65536,
            "multiprocessor_count": 4,
            "warpSize": 32,
            "sm_clock_rate": 1,
            "mem_clock_rate": 1,
            "mem_bus_width": 1,
        }

    def load_binary(self, name, binary, shared, device):
        # Module, function, registers, spilled registers, threads of a block at most.
        return 1, name, 32, 0, 1024

    def unload_module(self, module):
        pass

    def cuOccupancyMaxActiveClusters(self, *of):
        return 4


class _Driver(DriverBase):
    """A driver of a GPU that is not there: it compiles for it, and gives launches to the simulator."""

    def __init__(self, recorder):
        arch = recorder.settings.arch
        self.capability = int("".join(c for c in arch if c.isdigit()))
        self.name = f"reel-sim {arch}"
        self.utils = _Utilities(self.capability)
        self.launcher_cls = _Launcher

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        # Triton keeps compiled kernels by device; this name keeps ours apart from those of a GPU.
        return self.name

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device=None):
        return 0

    def get_device_capability(self, device=None):
        return divmod(self.capability, 10)

    def get_active_torch_device(self):
        import torch

        return torch.device("cpu")

    def get_device_interface(self):
        import torch

        return torch.cuda

    def get_benchmarker(self):
        def benchmark(launch, **options):
            # A configuration is checked, and its results are dropped: the launch that counts comes later.
            recorder = active()
            before, recorder.write_back = recorder.write_back, False
            try:
                launch()
            finally:
                recorder.write_back = before
            return [0.0, 0.0, 0.0]

        return benchmark

    def get_empty_cache_for_benchmark(self):
        return None

    def clear_cache(self, cache):
        pass


class _Launcher:
    """Runs the launches of a compiled kernel."""

    def __init__(self, source, metadata):
        self.source, self.metadata = source, metadata

    def __call__(self, x, y, z, stream, function, packed, launch_metadata, enter_hook, exit_hook, *args):
        metadata = self.metadata
        maps = list(getattr(metadata, "tensordesc_meta", None) or [])
        parameters = []
        for (name, signature), value in zip(self.source.signature.items(), args):
            _flatten(str(name), signature, value, maps, parameters)
        clusters = getattr(metadata, "num_ctas", 1)
        blocks = x * y * z * clusters
        for kind in ("global", "profile"):
            # The last parameters: memory of each block, of which the Python source knows nothing.
            size = getattr(metadata, f"{kind}_scratch_size", 0)
            scratch = uninitialized(_aligned_bytes(size * blocks)) if size else None
            parameters.append((f"{kind}_scratch", scratch))
        if blocks == 0:
            return
        active().check(
            _ptx[metadata.hash],
            metadata.name,
            (x * clusters, y, z),
            32 * metadata.num_warps,
            [value for _, value in parameters],
            names=[name for name, _ in parameters],
            cluster=clusters,
            shared=metadata.shared,
            name=f"{metadata.name}.ptx",
        )


def _aligned_bytes(count):
    """Returns `count` bytes that begin at a multiple of 256, as an allocator of a GPU returns them."""
    memory = numpy.empty(count + 256, numpy.uint8)
    start = -memory.__array_interface__["data"][0] % 256
    return memory[start : start + count]


#: Types of the tensor maps that Triton makes, by the number in its metadata, which is that of PTX.
_MAP_TYPES = ("u8", "u16", "u32", "i32", "u64", "i64", "f16", "f32", "f32", "f64", "bf16")

_NUMBERS = {
    "i1": numpy.uint8,
    "u1": numpy.uint8,
    "i8": numpy.int8,
    "u8": numpy.uint8,
    "i16": numpy.int16,
    "u16": numpy.uint16,
    "i32": numpy.int32,
    "u32": numpy.uint32,
    "i64": numpy.int64,
    "u64": numpy.uint64,
    "fp16": numpy.float16,
    "fp32": numpy.float32,
    "f32": numpy.float32,
    "fp64": numpy.float64,
}


def _flatten(name, signature, value, maps, out):
    """Appends the parameters that an argument of this signature becomes, with their names."""
    if isinstance(signature, (tuple, list)):
        for number, (inner, part) in enumerate(zip(signature, value)):
            _flatten(f"{name}.{number}", inner, part, maps, out)
    elif signature == "constexpr":
        return
    elif signature.startswith("tensordesc"):
        _flatten_descriptor(name, value, maps, out)
    elif signature.startswith("*"):
        out.append((name, value.array if isinstance(value, Tensor) else value))
    elif signature == "bf16":
        bits = numpy.float32(value).view(numpy.uint32) + 0x7FFF + (numpy.float32(value).view(numpy.uint32) >> 16 & 1)
        out.append((name, numpy.uint16(bits >> 16)))
    elif signature in _NUMBERS:
        out.append((name, _NUMBERS[signature](value)))
    else:
        raise InputError(f"{name}: arguments of type {signature} are not known; pass a number or a tensor")


def _flatten_descriptor(name, value, maps, out):
    base = value.base.array if isinstance(value.base, Tensor) else value.base
    shape, strides = [int(n) for n in value.shape], [int(n) for n in value.strides]
    if maps:
        of = maps.pop(0)
        if of.get("is_im2col") or of.get("fp4_padded"):
            raise InputError(f"{name}: tensor maps of im2col and of padded fp4 are not simulated")
        if value.padding == "nan":
            raise InputError(f"{name}: tensor maps that fill with NaN are not simulated; use padding 'zero'")
        size = of["elem_size"]
        tensor_map = TensorMap(
            base,
            box=of["block_size"],
            swizzle=(0, 32, 64, 128)[of["swizzle"]],
            dtype="tf32" if value.round_f32_to_tf32 else _MAP_TYPES[of["elem_type"]],
            shape=shape,
            strides=[size * step for step in strides],
        )
        out.append((name, tensor_map))
    else:
        out.append((name, base))
        out += [(name, numpy.int64(n)) for n in (*shape, *strides)]
        out += [(name, numpy.uint8(value.padding == "nan")), (name, numpy.uint8(value.round_f32_to_tf32))]
    out += [(name, numpy.int32(n)) for n in shape]
    out += [(name, numpy.int64(n)) for n in strides]
