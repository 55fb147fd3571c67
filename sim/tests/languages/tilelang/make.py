"""Compiles each kernel of kernels.py to PTX, without a GPU, and writes the lines of cases.txt.

Needs TileLang 0.1.15 (and 0.1.11 for the kernels that name it: run this script with each), torch, and CUDA 13 headers
at CUDA_HOME. TileLang's NVRTC backend generates CUDA source and a Python function that launches the kernels by
`cuda.bindings.driver`. A module that only records stands in for that driver, and the source is compiled to PTX.
"""

import importlib
import os
import re
import sys
import types
from collections import Counter
from pathlib import Path

os.environ["TILELANG_DISABLE_CACHE"] = "1"
import tilelang
import torch

FOLDER = Path(__file__).parent
# torch's type, reel's name.
TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "e4m3", "uint8": "u8", "int32": "i32"}
# The types of a tensor map in the driver's order.
MAP_TYPES = ["u8", "u16", "u32", "i32", "u64", "i64", "f16", "f32", "f64", "bf16", "f32", "tf32", "tf32"]
launches = []
record = None


def launch(function=None, *, name=None, archs=("sm_80", "sm_90a"),
           finding={}, version="0.1.15", pass_configs=None, fills=None):
    """Registers a kernel. `finding` has the kind of the finding and a pattern of its line, by architecture; `fills` has
    the fills of buffers that are not random, by the index of the argument.
    """
    if function is None:
        return lambda function: launch(function, name=name, archs=archs, finding=finding, version=version,
                                       pass_configs=pass_configs, fills=fills)
    launches.append((name or function.__name__, function, archs, finding, version, pass_configs, fills or {}))


class TensorMap:
    def __init__(self, *fields):
        self.fields = fields


class LaunchConfig:
    pass


def record_launch(config, kernel, arguments, _extra):
    global record
    values, kinds = arguments
    record = (
    config,
    kernel,
    values if isinstance(
        values,
        tuple) else (
            values,
            ),
            kinds if isinstance(
                kinds,
                tuple) else (
                    kinds,
                    ))
    return (0,)


driver = types.ModuleType("cuda.bindings.driver")
driver.cuTensorMapEncodeTiled = lambda *fields: (0, TensorMap(*fields))
driver.cuLaunchKernelEx = record_launch
driver.cuLibraryGetKernel = lambda _library, name: (0, name.decode())
driver.CUlaunchConfig = LaunchConfig
driver.CUresult = types.SimpleNamespace(CUDA_SUCCESS=0)
driver.CUfunction_attribute = types.SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
driver.__getattr__ = lambda name: (
    lambda *_: (0,)) if name.startswith("cu") and name[2].isupper() else (lambda value=None: value)

generator = importlib.import_module("tilelang.jit.adapter.nvrtc.libgen")
adapter = importlib.import_module("tilelang.jit.adapter.nvrtc.adapter")
adapter.cuda = generator.cuda = driver


def compile_library(self, timeout=None):
    from tilelang.contrib.nvrtc import compile_cuda
    root, headers = Path(tilelang.__file__).parent, Path(os.environ["CUDA_HOME"]) / "include"
    folders = [root / "src", root / "3rdparty/cutlass/include", headers, headers / "cccl"]
    options = [f"-I{folder}" for folder in folders] + ["-D__CUDACC_VER_MAJOR__=13", "-lineinfo"]
    arch = int(re.search(r"sm_(\d+)", self.target.attrs["arch"]
               if "arch" in self.target.attrs else self.target.arch)[1])
    self.ptx = bytes(
    compile_cuda(
        self.lib_code,
        target_format="ptx",
        arch=arch,
        options=options,
         verbose=True)).decode()
    self.libpath = "kernel.cubin"


def load_library(self, _path=None):
    self.pymodule = types.ModuleType("kernel")
    import cuda.bindings
    real, sys.modules["cuda.bindings.driver"] = sys.modules["cuda.bindings.driver"], driver
    cuda.bindings.driver = driver
    exec(self.host_func, self.pymodule.__dict__)
    sys.modules["cuda.bindings.driver"] = cuda.bindings.driver = real
    self.culib = None


generator.NVRTCLibraryGenerator.compile_lib = compile_library
generator.NVRTCLibraryGenerator.load_lib = load_library
torch.cuda.current_stream = lambda *_: types.SimpleNamespace(cuda_stream=0)


def stripped(ptx):
    """Removes unused constants and the debug sections except the strings, and makes the paths relative."""
    ptx = re.sub(r"\t\.section\t\.debug_(?!str)\w+\s*\{.*?\n?\s*\}\n?", "", ptx.rstrip("\0"), flags=re.S)
    ptx = re.sub(r'(\.file\t\d+ )"(?:[^"]*/)?([^/"]*)"', r'\1"\2"', ptx)
    constants = re.findall(r"^\.global .*? (\w+)(?: = .*)?;$", ptx, flags=re.M)
    words = Counter(re.findall(r"\w+", ptx))
    unused = "|".join(name for name in constants if words[name] == 1)
    ptx = re.sub(rf"^\.global .*? (?:{unused})(?: = .*)?;\n", "", ptx, flags=re.M) if unused else ptx
    ptx = re.sub(r"[ \t]*//(?! (?:begin|end) inline asm)[^\n]*", "", ptx)
    return re.sub(r"\n\s*\n+", "\n", ptx).strip() + "\n"


def arguments(tensors, fills):
    """Returns the arguments of `reel-sim run` for the recorded launch."""
    _, _, values, kinds = record
    specs = {}
    for index, tensor in enumerate(tensors):
        fill = fills.get(index, "random")
        specs[tensor.data_ptr()] = f"buf:{TYPES[str(tensor.dtype).split('.')[1]]}:{tensor.numel()}:{fill}"
    home = {value: index for index, (value, kind) in enumerate(zip(values, kinds)) if not isinstance(value, TensorMap)}
    words, after = [], []
    for value in values:
        if not isinstance(value, TensorMap):
            words.append(specs[value])
            continue
        kind, _rank, base, dims, strides, box, element_strides, interleave, swizzle, _l2, _fill = value.fields
        assert set(element_strides) == {1} and interleave == 0
        if base not in home:
            home[base] = len(values) + len(after)
            after.append(specs[base])
        parts = [",".join(str(int(number)) for number in numbers) for numbers in (dims, strides, box)]
        words.append(f"tmap:{home[base]}:{MAP_TYPES[kind]}:{':'.join(parts)}:{['none', '32', '64', '128'][swizzle]}")
    return words + after


def main():
    import kernels
    cases = {line.split("tilelang/")[1].split()[0]: line for line in (FOLDER / "cases.txt").read_text().splitlines()}
    for name, function, archs, finding, version, pass_configs, fills in launches:
        if version != tilelang.__version__.split("+")[0]:
            continue
        for arch in archs:
            kernel = tilelang.compile(
    function(), execution_backend="nvrtc", target={
        "kind": "cuda", "arch": arch}, pass_configs=pass_configs)
            tensors = [torch.empty(tuple(int(size) for size in p.shape), dtype=p.torch_dtype()) for p in kernel.params]
            kernel(*tensors)
            config, entry, _, _ = record
            file = f"{name}.{arch}.ptx"
            (FOLDER / file).write_text(stripped(kernel.adapter.lib_generator.ptx))
            words = ["0"]
            if arch in finding:
                kind, pattern = finding[arch].split(": ", 1)
                # NVRTC compiles the source with one line before it.
                lines = kernel.get_kernel_source().split("\n")
                words = [f"1 {kind}@{next(i for i, line in enumerate(lines, 2) if re.search(pattern, line))}"]
            words += [f"tilelang/{file}", "--arch", arch]
            words += ["--grid", f"{config.gridDimX},{config.gridDimY},{config.gridDimZ}"]
            words += ["--block", f"{config.blockDimX},{config.blockDimY},{config.blockDimZ}"]
            words += ["--smem", str(config.sharedMemBytes)] if config.sharedMemBytes else []
            cases[file] = " ".join(words + [f"--arg {word}" for word in arguments(tensors, fills)])
    (FOLDER / "cases.txt").write_text("".join(line + "\n" for line in cases.values()))


if __name__ == "__main__":
    import make  # kernels.py imports this module, too: the kernels must be registered in one of the two.
    make.main()
