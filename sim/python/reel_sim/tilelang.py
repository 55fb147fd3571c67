"""TileLang kernels on the simulator, without a GPU.

`check` generates the CUDA source of a kernel for `Settings.arch`, compiles it by NVRTC to PTX, and runs TileLang's own
host code, whose launches run on the simulator. TileLang keeps no Python lines; findings name lines of the generated
source, which is kept in a temporary file.
"""

import contextlib
import ctypes
import dataclasses
import importlib
import importlib.util
import os
import re
import sys
import tempfile
import types

# A kernel from TileLang's cache would not be compiled, and so have no PTX here.
os.environ.setdefault("TILELANG_DISABLE_CACHE", "1")

import numpy  # noqa: E402
import tilelang  # noqa: E402
import torch  # noqa: E402

from ._arguments import TensorMap  # noqa: E402
from ._launch import recording  # noqa: E402
from ._report import InputError, Report  # noqa: E402

_generator = importlib.import_module("tilelang.jit.adapter.nvrtc.libgen")
_adapter = importlib.import_module("tilelang.jit.adapter.nvrtc.adapter")

__all__ = ["check"]


def check(func, *args, sim=None, out_idx=None, pass_configs=None, **kwargs) -> Report:
    """Runs a kernel on the simulator and returns what it found. `Report.result` is what the kernel returned.

    `func` is a `T.prim_func`, a compiled kernel (it is compiled again for the simulator), or a function with
    `tilelang.jit` that runs when it is called. Arguments are numpy arrays or torch tensors in the CPU's memory, and
    numbers. `out_idx` and `pass_configs` are those of `tilelang.compile`. `sim` are the `Settings`.
    """
    tensors = [torch.from_numpy(value) if isinstance(value, numpy.ndarray) else value for value in args]
    with recording(sim) as recorder:
        target = {"kind": "cuda", "arch": recorder.settings.arch}
        options = {"execution_backend": "nvrtc", "target": target}
        with _driver(recorder, [value for value in tensors if isinstance(value, torch.Tensor)]):
            if hasattr(func, "prim_func"):
                chosen = func.out_idx if out_idx is None else out_idx
                configs = func.pass_configs if pass_configs is None else pass_configs
                compiled = tilelang.compile(func.prim_func, out_idx=chosen, pass_configs=configs, **options)
            elif dataclasses.is_dataclass(func):
                if out_idx is not None or pass_configs is not None:
                    raise InputError("out_idx, pass_configs: tilelang.jit has them; give them there")
                compiled = dataclasses.replace(func, **options)
            else:
                compiled = tilelang.compile(func, out_idx=out_idx, pass_configs=pass_configs, **options)
            result = compiled(*tensors, **kwargs)
    if not recorder.reports:
        raise InputError("func: no kernel ran; give the kernel itself, or a function of tilelang.jit that runs one")
    report = recorder.report
    report.result = result
    return report


class _CudaDriver(types.ModuleType):
    """The functions of `cuda.bindings.driver` that TileLang's host code calls; launches run on the simulator."""

    CUresult = types.SimpleNamespace(CUDA_SUCCESS=0)

    def __init__(self, recorder, tensors):
        super().__init__("cuda.bindings.driver")
        self.recorder, self.tensors = recorder, tensors
        self.kernels = {}

    def __getattr__(self, name):
        # Types and enumerations, which the fake functions take as they are, and functions without results.
        if name.startswith("__"):
            raise AttributeError(name)
        if name.startswith("cu") and not name.startswith("cuuint"):
            return lambda *args: (0, 0)
        return _Anything()

    class CUlaunchConfig:
        numAttrs = 0
        attrs = ()

    def CUlaunchAttribute(self):
        return _Anything()

    def cuLibraryGetKernel(self, library, name):
        return 0, name.decode()

    def cuLibraryUnload(self, library):
        return (0,)

    def cuTensorMapEncodeTiled(self, dtype, rank, address, dims, strides, box, steps, interleave, swizzle, *of):
        if int(interleave) or any(int(step) != 1 for step in steps):
            raise InputError("tensor map: interleaved and strided maps are not simulated")
        tensor = self._tensor_at(int(address))
        return 0, TensorMap(
            tensor,
            box=[int(n) for n in box][::-1],
            swizzle=(0, 32, 64, 128)[int(swizzle)],
            dtype=_MAP_TYPES[int(dtype)],
            shape=[int(n) for n in dims][::-1],
            strides=[*[int(n) for n in strides][::-1], None],
            address=int(address),
        )

    def cuTensorMapEncodeIm2col(self, *of):
        raise InputError("tensor map: im2col maps are not simulated")

    def cuLaunchKernelEx(self, config, kernel, arguments, extra):
        values = [self._value(value, kind) for value, kind in zip(*arguments)]
        source = self.kernels[kernel]
        self.recorder.check(
            source.ptx,
            kernel,
            [int(n) for n in (config.gridDimX, config.gridDimY, config.gridDimZ)],
            [int(n) for n in (config.blockDimX, config.blockDimY, config.blockDimZ)],
            values,
            names=_parameter_names(source.text, kernel, len(values)),
            shared=int(config.sharedMemBytes),
            name=source.path,
        )
        return (0,)

    def _tensor_at(self, address):
        for tensor in self.tensors:
            start = tensor.data_ptr()
            if start <= address < start + max(1, tensor.untyped_storage().nbytes()):
                return tensor
        raise InputError(f"address {address:#x} is in no tensor of the call; pass the tensor to check()")

    def _value(self, value, kind):
        if isinstance(value, TensorMap):
            return value
        if kind is ctypes.c_void_p:
            return self._tensor_at(int(value)) if value else None
        return numpy.frombuffer(bytes(kind(value)), _NUMBERS[kind])[0]


class _Anything:
    """A value of any enumeration: every attribute is another one, equal to 0."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Anything()
        setattr(self, name, made)
        return made

    def __call__(self, *args):
        return args[0] if args else _Anything()

    def __int__(self):
        return 0


#: Element types of tensor maps in the order of `CUtensorMapDataType`.
_MAP_TYPES = ("u8", "u16", "u32", "i32", "u64", "i64", "f16", "f32", "f64", "bf16", "f32", "tf32", "tf32")

_NUMBERS = {
    ctypes.c_bool: numpy.uint8,
    ctypes.c_byte: numpy.int8,
    ctypes.c_ubyte: numpy.uint8,
    ctypes.c_short: numpy.int16,
    ctypes.c_ushort: numpy.uint16,
    ctypes.c_int: numpy.int32,
    ctypes.c_uint: numpy.uint32,
    ctypes.c_long: numpy.int64,
    ctypes.c_ulong: numpy.uint64,
    ctypes.c_float: numpy.float32,
    ctypes.c_double: numpy.float64,
}


@dataclasses.dataclass
class _Source:
    """The generated CUDA source of a kernel, the file with it, and its PTX."""

    text: str
    path: str
    ptx: str


def _parameter_names(text, kernel, count):
    """Returns the names of a kernel's parameters in its CUDA source."""
    declared = re.search(r"\b" + re.escape(kernel) + r"\s*\(([^)]*)\)\s*;", text)
    names = [parameter.split()[-1].strip("*&") for parameter in declared[1].split(",")] if declared else []
    return names if len(names) == count else [f"parameter {number}" for number in range(count)]


def _compile(generator, arch, flags):
    """Compiles the generated source as TileLang does, but to PTX with lines."""
    from tilelang.contrib.nvrtc import compile_cuda, get_nvrtc_version
    from tilelang.env import CUTLASS_INCLUDE_DIR, TILELANG_TEMPLATE_PATH

    root = os.path.dirname(tilelang.__file__)
    options = [
        f"-I{TILELANG_TEMPLATE_PATH or os.path.join(root, 'src')}",
        f"-I{CUTLASS_INCLUDE_DIR or os.path.join(root, '3rdparty', 'cutlass', 'include')}",
        *(f"-I{folder}" for folder in _cuda_headers()),
        f"-D__CUDACC_VER_MAJOR__={get_nvrtc_version()[0]}",
        "-lineinfo",
        *(item for flag in flags or () for item in flag.split()),
    ]
    number = int("".join(c for c in arch if c.isdigit()))
    ptx = bytes(compile_cuda(generator.lib_code, target_format="ptx", arch=number, options=options, verbose=False))
    return ptx.decode().rstrip("\0")


def _cuda_headers():
    """Returns the folders of CUDA's headers: of `CUDA_HOME`, else of the packages that pip installed."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        homes[:0] = [os.path.join(folder, "cu13"), os.path.join(folder, "cuda_runtime")]
    found = [os.path.join(home, "include") for home in homes if os.path.isfile(os.path.join(home, "include", "cuda.h"))]
    if not found:
        raise InputError("CUDA's headers: not found; install nvidia-cuda-runtime by pip, or set CUDA_HOME")
    return [found[0], os.path.join(found[0], "cccl")]


@contextlib.contextmanager
def _driver(recorder, tensors):
    """Lets TileLang compile for the simulator and its host code call the driver of this module."""
    fake = _CudaDriver(recorder, tensors)
    generator = _generator.NVRTCLibraryGenerator

    def compile_lib(self, timeout=None):
        ptx = _compile(self, recorder.settings.arch, self.compile_flags)
        folder = tempfile.mkdtemp(prefix="reel-sim-")
        names = re.findall(r"\.entry\s+(\w+)", ptx)
        path = os.path.join(folder, f"{names[0] if names else 'kernel'}.cu")
        # TileLang's compiler puts one line before the source; so do these files, so that their lines are those of the
        # PTX.
        with open(path, "w", encoding="utf-8") as file:
            file.write("#include <tl_templates/cuda/nvrtc_std.h>\n" + self.lib_code)
        ptx = re.sub(r'(\.file\s+\d+\s+)"[^"]*tvm_kernels"', lambda found: f'{found[1]}"{path}"', ptx)
        fake.kernels.update({name: _Source(self.lib_code, path, ptx) for name in names})
        self.srcpath, self.libpath, self.pypath = path, path[:-3] + ".cubin", path[:-3] + ".py"
        with open(self.pypath, "w", encoding="utf-8") as file:
            file.write(self.host_func)

    def load_lib(self, lib_path=None):
        import cuda.bindings

        held = sys.modules.get("cuda.bindings.driver"), cuda.bindings.driver
        sys.modules["cuda.bindings.driver"] = cuda.bindings.driver = fake
        try:
            self.pymodule = self.import_from_file("kernel", self.pypath)
        finally:
            sys.modules["cuda.bindings.driver"], cuda.bindings.driver = held
        # There is no library to unload.
        self.culib = 0

    replaced = [
        (generator, "compile_lib", compile_lib),
        (generator, "load_lib", load_lib),
        (_generator, "cuda", fake),
        (_adapter, "cuda", fake),
        (torch.cuda, "is_available", lambda: False),
        (torch.cuda, "current_device", lambda: torch.device("cpu")),
        (torch, "empty", _remembering_empty(fake)),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _remembering_empty(fake):
    """Returns `torch.empty` for outputs that the adapter allocates: the launch knows their memory."""
    empty = torch.empty

    def remembering(*size, **options):
        tensor = empty(*size, **options)
        fake.tensors.append(tensor)
        return tensor

    return remembering
