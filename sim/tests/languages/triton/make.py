"""Compiles each launch of kernels.py to PTX for sm_80 and sm_90a, without a GPU, and writes the lines of cases.txt.

Needs triton 3.9. A driver that only records stands in for Triton's CUDA driver. The JIT compiles as for a GPU, and the
record has what Triton's launcher would pass to the GPU. Each line of cases.txt: the exit code of `reel-sim run`, for a
wrong kernel also the kind and Python line of its finding, then the arguments of `reel-sim run`.
"""

import inspect
import os
import re
import sys
from functools import partial
from pathlib import Path

os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.tools.tensor_descriptor import TensorDescriptor

FOLDER = Path(__file__).parent
# Triton's type, reel's name, bytes. Tensor maps number their types as PTX does.
TYPES = {"float32": ("f32", 4), "float16": ("f16", 2), "bfloat16": ("bf16", 2), "float8_e4m3fn": ("e4m3", 1),
         "int8": ("i8", 1), "uint8": ("u8", 1), "int32": ("i32", 4), "int64": ("i64", 8)}
MAP_TYPES = ["u8", "u16", "u32", "i32", "u64", "i64", "f16", "f32", "f32", "f64", "bf16"]
launches = []


class Dtype(str):
    itemsize = property(lambda self: TYPES[self][1])


class Buffer:
    """What the JIT reads of a tensor: its type and an address, which only says that it is aligned."""

    def __init__(self, dtype, shape, fill="random"):
        self.dtype = Dtype(dtype)
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        count = 1
        for size in self.shape:
            count *= size
        self.spec = f"buf:{TYPES[dtype][0]}:{count}:{fill}"

    def data_ptr(self):
        return 0x10000

    def ptr_range(self):
        return 0


f32, f16, bf16 = (partial(Buffer, dtype) for dtype in ("float32", "float16", "bfloat16"))
i8, u8, i32, i64 = (partial(Buffer, dtype) for dtype in ("int8", "uint8", "int32", "int64"))


def Descriptor(buffer, block_shape):
    return TensorDescriptor(buffer, list(buffer.shape), [buffer.shape[1], 1], list(block_shape))


def launch(function=None, *, name=None, capability=80):
    """Registers a launch, which needs at least this compute capability."""
    if function is None:
        return lambda function: launch(function, name=name, capability=capability)
    launches.append((function, name, capability))


class Launcher:
    """Takes the place of Triton's launcher, and keeps the last launch in `record`."""

    record = None

    def __init__(self, source, metadata):
        self.source, self.metadata = source, metadata

    def __call__(self, x, y, z, _stream, _function, _packed, _launch_metadata, _enter, _exit, *args):
        maps = list(self.metadata.tensordesc_meta or [])
        parameters, buffers_of_maps = [], []
        for kind, value in zip(self.source.signature.values(), args):
            parameters += self.parameters(kind, value, maps, buffers_of_maps)
        for size in (self.metadata.global_scratch_size, self.metadata.profile_scratch_size):
            parameters.append(f"buf:u8:{size * x * y * z}:uninit" if size else "u64:0")
        for index, spec in buffers_of_maps:
            parameters[parameters.index(index)] = index.replace("BUFFER", str(len(parameters)))
            parameters.append(spec)
        Launcher.record = (self.metadata, (x, y, z), parameters)

    def parameters(self, kind, value, maps, buffers_of_maps):
        if kind == "constexpr":
            return []
        if kind.startswith("tensordesc"):
            shape = [f"i32:{size}" for size in value.shape] + [f"i64:{stride}" for stride in value.strides]
            if not maps:
                wide = [f"i64:{size}" for size in (*value.shape, *value.strides)]
                return [value.base.spec, *wide, "u8:0", "u8:0", *shape]
            fields = maps.pop(0)
            numbers = lambda values: ",".join(str(v) for v in values)
            strides = [stride * fields["elem_size"] for stride in value.strides[:-1]]
            swizzle = ["none", "32", "64", "128"][fields["swizzle"]]
            sizes = [numbers(values[::-1]) for values in (value.shape, strides, fields["block_size"])]
            text = ":".join(["tmap", "BUFFER", MAP_TYPES[fields["elem_type"]], *sizes, swizzle])
            text = text.replace("BUFFER", "BUFFER" + " " * len(buffers_of_maps))
            buffers_of_maps.append((text, value.base.spec))
            return [text, *shape]
        if kind.startswith("*"):
            return [value.spec]
        return [f"{ {'fp32': 'f32', 'i1': 'u8'}.get(kind, kind)}:{value}"]


class Utilities:
    def get_device_properties(self, _device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 4}

    def load_binary(self, name, _binary, _shared, _device):
        return 1, name, 32, 0, 1024

    def unload_module(self, _module):
        pass


class Driver(DriverBase):
    capability = 80
    utils = Utilities()
    launcher_cls = Launcher

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, kind):
        return kind

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, _device):
        return 0

    def get_active_torch_device(self):
        raise NotImplementedError

    def get_benchmarker(self):
        raise NotImplementedError


def stripped(ptx):
    """Removes debug sections except the strings, which name inlined functions, and makes the paths relative."""
    ptx = re.sub(r"\t\.section\t\.debug_(?!str)\w+\s*\{.*?\n?\s*\}\n?", "", ptx, flags=re.S)
    ptx = re.sub(r'(\.file\t\d+ )"(?:[^"]*/)?([^/"]*)"', r'\1"\2"', ptx)
    ptx = re.sub(r"[ \t]*//(?! (?:begin|end) inline asm)[^\n]*", "", ptx)
    return re.sub(r"\n\s*\n+", "\n", ptx).strip() + "\n"


def expected_finding(kernel):
    lines, first = inspect.getsourcelines(kernel)
    marked = [(re.search("# finding: (.*)", line), first + i) for i, line in enumerate(lines)]
    return next((f"{mark[1]}@{line}" for mark, line in marked if mark), None)


def main():
    triton.runtime.driver.set_active(Driver())
    import kernels
    cases = []
    for function, name, at_least in launches:
        for Driver.capability in (80, 90):
            if Driver.capability < at_least:
                continue
            ptx = []
            triton.knobs.runtime.jit_post_compile_hook = lambda **keys: None
            compiled = triton.compiler.CompiledKernel.__init__
            triton.compiler.CompiledKernel.__init__ = lambda self, * \
                args: (compiled(self, *args), ptx.append(self.asm["ptx"]))[0]
            function()
            triton.compiler.CompiledKernel.__init__ = compiled
            metadata, grid, parameters = Launcher.record
            arch = {80: "sm_80", 90: "sm_90a"}[Driver.capability]
            file = f"{name or metadata.name}.{arch}.ptx"
            (FOLDER / file).write_text(stripped(ptx[-1]))
            finding = expected_finding(getattr(kernels, metadata.name).fn)
            # A loop that polls without end is stopped by the limit of instructions: the kernel is not checked to its end.
            code = 2 if finding and finding.startswith("deadlock") else 1
            words = [f"{code} {finding}" if finding else "0", f"triton/{file}",
                     "--arch", arch, "--grid", ",".join(map(str, grid))]
            words += ["--block", str(32 * metadata.num_warps)]
            words += ["--smem", str(metadata.shared)] if metadata.shared else []
            cases.append(" ".join(words + [f"--arg {parameter.replace(' ', '')}" for parameter in parameters]))
            print(cases[-1], file=sys.stderr)
    (FOLDER / "cases.txt").write_text("\n".join(cases) + "\n")


if __name__ == "__main__":
    import make  # kernels.py imports this module, too: the launches must be in one of the two.
    make.main()
