"""The check of a kernel of PTX or CUDA C++."""

import json
import os
from dataclasses import dataclass, replace
from typing import Optional, Sequence, Tuple, Union

from . import _native, _toolkit
from ._arguments import Arguments
from ._report import InputError, Report

Size = Union[int, Sequence[int]]


@dataclass(frozen=True)
class Settings:
    """How to check, for the doors whose own keywords are those of the kernel."""

    #: The architecture to compile for and whose limits apply: `sm_80`, `sm_90a` or `sm_100a`.
    arch: str = "sm_90a"
    #: Number of runs, each with another order of warps, blocks and asynchronous copies. None: 8, or what pytest's
    #: --sim-interleavings says.
    interleavings: Optional[int] = None
    #: Determines the interleavings.
    seed: int = 0
    #: CPU threads; None: all.
    threads: Optional[int] = None
    #: Only count, in one run: finds no races.
    count_only: bool = False
    #: Also report missing proxy fences that are harmless by default; see the page of findings.
    strict_proxy: bool = False
    #: Instructions without progress, seconds, and MiB of simulated memory after which a check stops with `InputError`.
    limit_instructions: Optional[int] = None
    max_seconds: Optional[float] = None
    max_memory: Optional[int] = None


#: Number of runs where neither the call nor pytest says otherwise.
_default_interleavings = 8


def check(
    source,
    entry: Optional[str],
    grid: Size,
    block: Size,
    args: Sequence,
    *,
    cluster: Size = 1,
    shared: int = 0,
    arch: str = "sm_90a",
    interleavings: Optional[int] = None,
    names: Optional[Sequence[str]] = None,
    name: str = "source",
    include: Sequence = (),
    define: Sequence[str] = (),
    standard: Optional[str] = None,
    write_back: bool = True,
    **settings,
) -> Report:
    """Runs a kernel on the simulator and returns what it found.

    `source` is PTX or CUDA C++: a text, or the path of a file. `entry` is the kernel's symbol, its name in the source,
    or a unique part of that name; None if there is only one. `args` has one value per parameter: numbers, numpy arrays
    or torch tensors in the CPU's memory (a pointer; the result is written back), `TensorMap`, `Struct`, `bytes`. A
    Python number takes the type of its parameter. `shared` are the bytes of dynamic shared memory. `names` are the
    names of the arguments in messages, `name` that of a text. `include`, `define` and `standard` are options of the
    compiler of CUDA C++. The other keywords are those of `Settings`.

    Raises `InputError` if the kernel could not be checked.
    """
    own = Settings(arch=arch, interleavings=interleavings)
    unknown = set(settings) - set(Settings.__dataclass_fields__)
    if unknown:
        raise TypeError(f"check() got an unexpected keyword argument {sorted(unknown)[0]!r}")
    options = replace(own, **settings)
    names = [f"args[{number}]" for number in range(len(args))] if names is None else list(names)
    converted = Arguments(args, names)
    request = {
        **_source(source, name),
        "entry": entry,
        "grid": _size(grid, "grid"),
        "block": _size(block, "block"),
        "cluster": None if _size(cluster, "cluster") == (1, 1, 1) else _size(cluster, "cluster"),
        "shared": shared,
        "arch": options.arch,
        "arguments": converted.arguments,
        "buffers": converted.descriptions(),
        "interleavings": options.interleavings or _default_interleavings,
        "count_only": options.count_only,
        "strict_proxy": options.strict_proxy,
        "threads": options.threads,
        "seed": options.seed,
        "include": [os.fspath(folder) for folder in include],
        "define": list(define),
        "standard": standard,
        "limit_instructions": options.limit_instructions,
        "max_seconds": options.max_seconds,
        "max_memory": options.max_memory,
    }
    before = converted.contents()
    try:
        document, shown, flame_graph, after = _native.check(json.dumps(request), before)
    except ValueError as e:
        raise InputError(str(e)) from None
    if write_back:
        converted.write_back(before, after)
    return Report._of(document, shown, flame_graph)


def compile_cuda(source, *, arch="sm_90a", include=(), define=(), standard=None, name="source") -> str:
    """Compiles CUDA C++ to PTX with line information, by NVRTC or nvcc, for an architecture."""
    request = {
        **_source(source, name),
        "entry": None,
        "grid": (1, 1, 1),
        "block": (1, 1, 1),
        "cluster": None,
        "shared": 0,
        "arch": arch,
        "arguments": [],
        "buffers": [],
        "interleavings": 1,
        "count_only": False,
        "strict_proxy": False,
        "threads": None,
        "seed": 0,
        "include": [os.fspath(folder) for folder in include],
        "define": list(define),
        "standard": standard,
        "limit_instructions": None,
        "max_seconds": None,
        "max_memory": None,
    }
    try:
        return _native.compile(json.dumps(request))
    except ValueError as e:
        raise InputError(str(e)) from None


def _source(source, name):
    _toolkit.find()
    if isinstance(source, os.PathLike) or "\n" not in source and source.endswith((".ptx", ".cu", ".cuh")):
        return {"path": os.fspath(source), "name": os.fspath(source), "text": None}
    if not isinstance(source, str):
        raise InputError(f"source: {type(source).__name__} is not a text; give PTX, CUDA C++, or a path")
    return {"path": None, "name": name, "text": source}


def _size(value, name) -> Tuple[int, int, int]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    if not 1 <= len(sizes) <= 3 or not all(0 <= int(size) < 1 << 32 for size in sizes):
        raise InputError(f"{name}: {value} is not a size; give one to three integers")
    return tuple(int(size) for size in sizes) + (1,) * (3 - len(sizes))
