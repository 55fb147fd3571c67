"""CuTe DSL kernels on the simulator, without a GPU.

`check` compiles a `cute.jit` function by `cute.compile` and runs its host code on the CPU. Every kernel that it launches
runs on the simulator. Nothing of CUDA is needed: the functions of the CUDA runtime that the host code calls are those
of this module.
"""

import contextlib
import ctypes
import inspect
import os
import re
import struct
import tempfile

# The DSL reads the architecture when it is imported, and finds none on a machine without a GPU.
os.environ.setdefault("CUTE_DSL_ARCH", "sm_90a")

import cutlass.cute as cute  # noqa: E402
import numpy  # noqa: E402
from cutlass._mlir import execution_engine  # noqa: E402
from cutlass.cute.runtime import from_dlpack  # noqa: E402
from cutlass.cutlass_dsl import CuTeDSL, cuda_jit_executor  # noqa: E402

from ._arguments import Address, Struct, TensorMap, memory_of  # noqa: E402
from ._launch import recording  # noqa: E402
from ._report import InputError, Report  # noqa: E402

__all__ = ["check"]


def check(fn, *args, sim=None, options="") -> Report:
    """Compiles `fn`, calls it with `args`, and returns what the simulator found in the kernels that it launched.

    `fn` is a function with `cute.jit`. Arguments are numpy arrays and torch tensors in the CPU's memory (they become
    tensors by `from_dlpack`), tensors that `from_dlpack` made of such arrays, numbers, and constants. The results are
    in the arrays. `sim` are the `Settings`, `options` further options of `cute.compile`.
    """
    with recording(sim) as recorder:
        arrays, converted = [], []
        for number, value in enumerate(args):
            name = f"args[{number}]"
            memory = _memory(value, name)
            if memory is not None:
                arrays.append((name, memory))
            if isinstance(value, numpy.ndarray) or type(value).__module__.startswith("torch"):
                value = from_dlpack(value, assumed_align=_alignment(memory.address))
            converted.append(value)
        with _runtime(recorder, arrays) as runtime, tempfile.TemporaryDirectory() as folder:
            flags = f"--gpu-arch {recorder.settings.arch} --keep-ptx --generate-line-info --dump-dir {folder}"
            compiled = cute.compile(fn, *converted, options=f"{options} {flags}".strip())
            if not compiled.__ptx__:
                raise InputError(f"fn: the compiler kept no PTX for {recorder.settings.arch}; see its messages")
            runtime.ptx = compiled.__ptx__
            compiled(*[value for value, constant in zip(converted, _constants(fn, converted)) if not constant])
            if runtime.error is not None:
                raise runtime.error
    if not recorder.reports:
        raise InputError("fn: the function launched no kernel; call `.launch(…)` of a kernel in it")
    return recorder.report


def _constants(fn, args):
    """Returns for each argument whether it is compiled in (`cutlass.Constexpr`): the call leaves it out then."""
    parameters = list(inspect.signature(fn).parameters.values())
    named = ["Constexpr" in str(parameter.annotation) for parameter in parameters[: len(args)]]
    return named + [False] * (len(args) - len(named))


def _memory(value, name):
    """Returns the memory of an array, or of a tensor that `from_dlpack` made; None for other arguments."""
    if isinstance(value, cute.Tensor) and hasattr(value, "load_dltensor"):
        value.load_dltensor()
        width = value.element_type.width
        if width % 8:
            raise InputError(f"{name}: elements of {width} bits; use those of whole bytes")
        extents = [(n - 1) * step for n, step in zip(_flat(value.shape), _flat(value.stride))]
        size = width // 8 * (1 + sum(extents))
        at = value.data_ptr
        bytes_ = numpy.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(at))
        return memory_of(bytes_, name)
    return memory_of(value, name)


def _flat(shape):
    for part in shape if isinstance(shape, tuple) else (shape,):
        yield from _flat(part) if isinstance(part, tuple) else (int(part),)


def _alignment(address):
    return min(16, address & -address) if address else 16


#: The functions of the CUDA runtime that the host code calls, with the types of their arguments.
_POINTER, _INT, _TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
_SIGNATURES = {
    "_cudaLaunchKernelEx": (_POINTER, _POINTER, _POINTER),
    "_cudaLibraryGetKernel": (_POINTER, _POINTER, _TEXT),
    "_cudaLibraryLoadData": (_POINTER, _POINTER, _POINTER, _POINTER, ctypes.c_uint, _POINTER, _POINTER, ctypes.c_uint),
    "_cudaGetDevice": (_POINTER,),
    "_cudaDeviceGetAttribute": (_POINTER, _INT, _INT),
    "_cudaFuncSetAttribute": (_POINTER, _INT, _INT),
    "_cuKernelGetAttribute": (_POINTER, _INT, _POINTER, _INT),
    "_cudaKernelSetAttributeForDevice": (_POINTER, _INT, _INT, _INT),
}
#: cudaDevAttrMultiProcessorCount, and the value of every other attribute: the shared memory of a block.
_MULTIPROCESSOR_COUNT, _MULTIPROCESSORS, _SHARED_BYTES = 16, 132, 232448
#: cudaLaunchAttributeClusterDimension.
_CLUSTER_DIMENSION = 4


class _Runtime:
    """A CUDA runtime whose launches run on the simulator."""

    def __init__(self, recorder, arrays):
        self.recorder, self.arrays = recorder, arrays
        self.ptx, self.error, self.kernels = "", None, {}
        made = {name: getattr(self, name) for name in _SIGNATURES}
        self.callbacks = {name: ctypes.CFUNCTYPE(_INT, *_SIGNATURES[name])(f) for name, f in made.items()}

    def _cudaLibraryLoadData(self, library, *of):
        _POINTER.from_address(library).value = 1
        return 0

    def _cudaLibraryGetKernel(self, kernel, library, name):
        handle = 1 + len(self.kernels)
        self.kernels[handle] = name.decode()
        _POINTER.from_address(kernel).value = handle
        return 0

    def _cudaGetDevice(self, device):
        _INT.from_address(device).value = 0
        return 0

    def _cudaDeviceGetAttribute(self, value, attribute, device):
        _INT.from_address(value).value = _MULTIPROCESSORS if attribute == _MULTIPROCESSOR_COUNT else _SHARED_BYTES
        return 0

    def _cudaFuncSetAttribute(self, function, attribute, value):
        return 0

    def _cuKernelGetAttribute(self, value, attribute, kernel, device):
        _INT.from_address(value).value = 0
        return 0

    def _cudaKernelSetAttributeForDevice(self, kernel, attribute, value, device):
        return 0

    def _cudaLaunchKernelEx(self, config, kernel, args):
        # An exception must not pass through the host code.
        try:
            self._launch(config, self.kernels[kernel], args)
        except BaseException as e:
            self.error = self.error or e
            return 1
        return 0

    def _launch(self, config, entry, args):
        # cudaLaunchConfig_t: grid, block, dynamic shared memory, stream, attributes, their number.
        *sizes, shared, _, attributes, count = struct.unpack("<6IQQQI", ctypes.string_at(config, 52))
        cluster = (1, 1, 1)
        for number in range(count):
            identifier, _, *value = struct.unpack("<5I", ctypes.string_at(attributes + 72 * number, 20))
            if identifier == _CLUSTER_DIMENSION:
                cluster = tuple(value)
        parameters = _parameter_sizes(self.ptx, entry)
        pointers = (_POINTER * len(parameters)).from_address(args) if parameters else ()
        values = [self._parameter(ctypes.string_at(at, size)) for at, size in zip(pointers, parameters)]
        self.recorder.check(
            self.ptx,
            entry,
            sizes[:3],
            sizes[3:],
            values,
            names=[f"parameter {number}" for number in range(len(values))],
            cluster=cluster,
            shared=shared,
            name=f"{entry}.ptx",
        )

    def _array_at(self, address):
        for name, memory in self.arrays:
            if memory.start <= address < memory.stop:
                return name, memory
        return None

    def _parameter(self, content):
        """Converts the bytes of a parameter: pointers into the arrays become those of the simulator."""
        if len(content) == 128 and content[8] & 15 == 2:
            return self._tensor_map(content)
        fields, plain = [], b""
        for at in range(0, len(content), 8):
            word = content[at : at + 8]
            found = self._array_at(struct.unpack("<Q", word)[0]) if len(word) == 8 else None
            if found is None:
                plain += word
                continue
            fields += [plain] if plain else []
            fields.append(Address(struct.unpack("<Q", word)[0], found[1].owner, found[0]))
            plain = b""
        fields += [plain] if plain else []
        return Struct(*fields) if len(fields) != 1 else fields[0]

    def _tensor_map(self, content):
        """Decodes a tensor map in the format of sm_90, which the host code writes itself."""
        address, word = struct.unpack_from("<QI", content)
        element, rank = word >> 7 & 15, (word >> 4 & 7) + 1
        if word >> 11 & 3 or word & 0x8000 or element >= len(_MAP_TYPES) or any(content[52:55]):
            raise InputError("tensor map: interleaved, im2col and strided maps are not simulated")
        low, high = struct.unpack_from("<4I", content, 12), struct.unpack_from("<H", content, 28)[0]
        strides = [16 * (low[n] | (high >> 4 * n & 15) << 32) for n in range(rank - 1)]
        found = self._array_at(address)
        if found is None:
            raise InputError(f"tensor map: address {address:#x} is in no array of the call; pass the array to check()")
        name, memory = found
        dtype = "tf32" if word >> 16 & 1 else _MAP_TYPES[element]
        shape = [1 + n for n in struct.unpack_from(f"<{rank}I", content, 32)]
        return TensorMap(
            memory.owner,
            box=[1 + n for n in content[55 : 55 + rank]][::-1],
            swizzle=(0, 32, 64, 128)[word >> 13 & 3],
            dtype=dtype,
            shape=shape[::-1],
            strides=[*strides[::-1], None],
            address=address,
        )


#: Element types of tensor maps in the order of PTX (`tensormap.replace`, .elemtype).
_MAP_TYPES = ("u8", "u16", "u32", "i32", "u64", "i64", "f16", "f32", "f32", "f64", "bf16")


def _parameter_sizes(ptx, entry):
    declared = re.search(r"\.entry\s+" + re.escape(entry) + r"\s*\((.*?)\)", ptx, re.DOTALL)
    if declared is None:
        raise InputError(f"fn: the PTX has no kernel {entry}")
    sizes = []
    for parameter in declared[1].split(","):
        array = re.search(r"\.b8\s+\S+\[(\d+)\]", parameter)
        scalar = re.search(r"\.[bufs](\d+)\s", parameter)
        if array or scalar:
            sizes.append(int(array[1]) if array else int(scalar[1]) // 8)
    return sizes


@contextlib.contextmanager
def _runtime(recorder, arrays):
    """Lets compiled functions call the runtime of this module instead of CUDA's."""
    runtime = _Runtime(recorder, arrays)
    original, environment = execution_engine.ExecutionEngine, CuTeDSL._get_dsl().envar

    class Engine(original):
        def __init__(self, module, opt_level=2, shared_libs=()):
            super().__init__(module, opt_level=opt_level, shared_libs=[])
            for name, function in runtime.callbacks.items():
                self.raw_register_runtime(name, ctypes.cast(function, _POINTER))

    executor = cuda_jit_executor.CudaDialectJitCompiledFunction
    devices, arch = executor.num_devices, environment.arch
    execution_engine.ExecutionEngine, executor.num_devices, environment.arch = Engine, 1, recorder.settings.arch
    try:
        yield runtime
    finally:
        execution_engine.ExecutionEngine, executor.num_devices, environment.arch = original, devices, arch
