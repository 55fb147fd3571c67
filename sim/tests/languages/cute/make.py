"""Compiles each launch of kernels.py to PTX for sm_90a, without a GPU, and writes cases.txt.

Needs nvidia-cutlass-dsl 4.8.1 and NumPy. CuTe DSL compiles the host function to machine code, which calls nine
functions of the CUDA runtime. Functions of this module that only record stand in for them.
"""

import ctypes
import inspect
import os
import re
import struct
from pathlib import Path

ARCH = "sm_90a"
os.environ["CUTE_DSL_ARCH"] = ARCH
import cutlass
import cutlass.cute as cute
import numpy
from cutlass._mlir import execution_engine
from cutlass.cute.runtime import from_dlpack, make_fake_compact_tensor
from cutlass.cutlass_dsl import cuda_jit_executor

FOLDER = Path(__file__).parent
TYPES = {"float32": "f32", "float16": "f16", "int32": "i32"}
NUMBERS = {"float32": cutlass.Float32, "float16": cutlass.Float16, "int32": cutlass.Int32}
# The types of a tensor map in the numbering of PTX.
MAP_TYPES = ["u8", "u16", "u32", "i32", "u64", "i64", "f16", "f32", "f32", "f64", "bf16"]
launches, callbacks = [], {}
record = None
kernel_name = ""


def launch(function=None, *, name=None):
    if function is None:
        return lambda function: launch(function, name=name)
    launches.append((name, function))
    return function


def callback(*parameters):
    def register(function):
        callbacks[function.__name__] = ctypes.CFUNCTYPE(ctypes.c_int32, *parameters)(function)
    return register


pointer, integer = ctypes.c_void_p, ctypes.c_int32


@callback(pointer, pointer, pointer)
def _cudaLaunchKernelEx(config, _kernel, arguments):
    global record
    sizes = struct.unpack("<6I", ctypes.string_at(config, 24))
    shared, _stream, attributes, count = struct.unpack("<QQQI", ctypes.string_at(config + 24, 28))
    cluster = (1, 1, 1)
    for index in range(count):
        attribute = ctypes.string_at(attributes + 72 * index, 72)
        if attribute[0] == 4:
            cluster = struct.unpack_from("<3I", attribute, 8)
    record = (sizes[:3], sizes[3:], shared, cluster, arguments)
    record += ([ctypes.string_at(at, size)
               for at, size in zip((pointer * 64).from_address(arguments), parameter_sizes())],)
    return 0


@callback(pointer, pointer, ctypes.c_char_p)
def _cudaLibraryGetKernel(out, _library, _name):
    pointer.from_address(out).value = 1
    return 0


@callback(pointer, pointer, pointer, pointer, ctypes.c_uint, pointer, pointer, ctypes.c_uint)
def _cudaLibraryLoadData(out, *_):
    pointer.from_address(out).value = 1
    return 0


@callback(pointer)
def _cudaGetDevice(out):
    integer.from_address(out).value = 0
    return 0


@callback(pointer, integer, integer)
def _cudaDeviceGetAttribute(out, _attribute, _device):
    integer.from_address(out).value = 232448
    return 0


@callback(pointer, integer, pointer, integer)
def _cuKernelGetAttribute(out, _attribute, _kernel, _device):
    integer.from_address(out).value = 0
    return 0


@callback(pointer, integer, integer)
def _cudaFuncSetAttribute(*_):
    return 0


@callback(pointer, integer, integer, integer)
def _cudaKernelSetAttributeForDevice(*_):
    return 0


class Engine(execution_engine.ExecutionEngine):
    def __init__(self, module, opt_level=2, shared_libs=()):
        super().__init__(module, opt_level=opt_level, shared_libs=[])
        for name, function in callbacks.items():
            self.raw_register_runtime(name, ctypes.cast(function, pointer))


ptx = ""


def parameter_sizes():
    declared = re.search(r"\.entry \w+\((.*?)\)", ptx, re.S)[1].split(",")
    arrays = [re.search(r"\.b8 \S+\[(\d+)\]", text) for text in declared]
    return [int(a[1]) if a else int(re.search(r"\.[bufs](\d+)", text)[1]) // 8 for a, text in zip(arrays, declared)]


def decoded_map(data):
    """Decodes a tensor map as CuTe DSL's host code encodes it, or returns None."""
    address, word = struct.unpack_from("<QI", data)
    if word & 15 != 2 or word & 0x9800:
        return None
    rank, kind = (word >> 4 & 7) + 1, MAP_TYPES[word >> 7 & 15]
    low, high = struct.unpack_from("<4I", data, 12), struct.unpack_from("<H", data, 28)[0]
    dims = [1 + n for n in struct.unpack_from(f"<{rank}I", data, 32)]
    strides = [16 * (low[i] | (high >> 4 * i & 15) << 32) for i in range(rank - 1)]
    parts = [",".join(map(str, numbers)) for numbers in (dims, strides, [1 + n for n in data[55:55 + rank]])]
    return address, f"{kind}:{':'.join(parts)}:{['none', '32', '64', '128'][word >> 13 & 3]}"


def arguments(buffers):
    specs = {array.ctypes.data: f"buf:{TYPES[str(array.dtype)]}:{array.size}:{fill}" for array, fill in buffers}
    parameters, home, words, after = record[5], {}, [], []
    for index, data in enumerate(parameters):
        address = int.from_bytes(data[:8], "little")
        if len(data) == 128:
            words.append(decoded_map(data))
        elif address in specs:
            home[address] = index
            rest = "".join(f",u32={n}" for n in struct.unpack(f"<{len(data) // 4 - 2}I", data[8:]))
            words.append(f"struct:{specs[address].replace(':', '=', 1)}{rest}" if rest else specs[address])
            home[address] = f"{index}.0" if rest else index
        else:
            words.append(f"struct:{data.hex()}" if len(data) != 4 else f"u32:{address}")
    for index, word in enumerate(words):
        if isinstance(word, tuple):
            if word[0] not in home:
                home[word[0]] = len(words) + len(after)
                after.append(specs[word[0]])
            words[index] = f"tmap:{home[word[0]]}:{word[1]}"
    return words + after


def run(function, *buffers):
    """Compiles and launches `function` with arrays, each given with its fill."""
    global ptx
    tensors = [from_dlpack(array, assumed_align=16) for array, _ in buffers]
    # Tensors in global memory; `from_dlpack` gives those of NumPy generic addresses.
    order = lambda array: tuple(range(array.ndim))[::-1]
    declared = [make_fake_compact_tensor(NUMBERS[str(array.dtype)], array.shape, stride_order=order(array),
                                         assumed_align=16) for array, _ in buffers]
    compiled = cute.compile(
    function,
    *declared,
     options=f"--gpu-arch {ARCH} --keep-ptx --generate-line-info --dump-dir /tmp")
    ptx = compiled.__ptx__
    compiled(*tensors)
    return buffers


def array(dtype, shape, fill="random"):
    memory = numpy.zeros(int(numpy.prod(shape)) + 64, dtype)
    start = -memory.ctypes.data % 128 // memory.itemsize
    return memory[start:start + int(numpy.prod(shape))].reshape(shape), fill


def stripped(text):
    """Removes debug sections and comments, makes the paths relative, and shortens the entry's name."""
    text = re.sub(r"\t\.section\t\.debug_(?!str)\w+\s*\{.*?\n?\s*\}\n?", "", text, flags=re.S)
    text = re.sub(r'(\.file\t\d+ )"(?:[^"]*/)?([^/"]*)"', r'\1"\2"', text)
    text = re.sub(r"[ \t]*//(?! (?:begin|end) inline asm)[^\n]*", "", text)
    entry = re.search(r"\.entry (\w+)\(", text)[1]
    return re.sub(r"\n\s*\n+", "\n", text.replace(entry, "k")).strip() + "\n"


def main():
    execution_engine.ExecutionEngine = Engine
    cuda_jit_executor.CudaDialectJitCompiledFunction.num_devices = 1
    import kernels
    lines = []
    for name, function in launches:
        name = name or function.__name__
        buffers = function()
        (FOLDER / f"{name}.ptx").write_text(stripped(ptx))
        source = inspect.getsource(kernels).splitlines()
        first, last = next((i, i + 200) for i, line in enumerate(source) if line.startswith(f"def {name}_kernel("))
        body = next((i for i in range(first + 1, len(source)) if source[i].startswith(("def ", "@"))), last)
        marks = [(re.search("# finding: (.*)", source[i]), i + 1) for i in range(first, body)]
        finding = next((f"1 {mark[1]}@{line}" for mark, line in marks if mark), "0")
        grid, block, shared, cluster = (",".join(map(str, r)) if isinstance(r, tuple) else r for r in record[:4])
        words = [finding, f"cute/{name}.ptx", "--arch", ARCH, "--grid", grid, "--block", block]
        words += (["--smem", str(shared)] if shared else []) + (["--cluster", cluster] if cluster != "1,1,1" else [])
        lines.append(" ".join(words + [f"--arg {word}" for word in arguments(buffers)]))
        print(lines[-1])
    (FOLDER / "cases.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    import make  # kernels.py imports this module, too: the launches must be in one of the two.
    make.main()
