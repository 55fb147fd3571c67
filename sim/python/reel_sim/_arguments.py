"""Converts the arguments of a kernel: numbers, arrays, structs and tensor maps.

Arrays are numpy arrays or torch tensors in the memory of the CPU. Arrays that share memory share a buffer, so that a
kernel that writes through one pointer and reads through another sees its own writes, as on a GPU.
"""

import ctypes
import struct
from dataclasses import dataclass
from typing import Any, Optional, Sequence, Tuple

import numpy

from ._report import InputError

#: Names of element types: those of numpy, ml_dtypes and torch, and the simulator's. Others of one byte are bytes.
DTYPES = {
    "bool": "u8",
    "uint8": "u8",
    "int8": "i8",
    "uint16": "u16",
    "int16": "i16",
    "uint32": "u32",
    "int32": "i32",
    "uint64": "u64",
    "int64": "i64",
    "float16": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
    "float64": "f64",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "u8",
    "float8_e4m3fnuz": "u8",
    "float8_e5m2fnuz": "u8",
    "float8_e8m0fnu": "u8",
}


@dataclass(frozen=True)
class TensorMap:
    """A tensor map (TMA descriptor) of an array, passed by value, as `cuTensorMapEncodeTiled` makes it.

    The default tensor is the array: its shape and strides, of which the last dimension must be contiguous.
    """

    #: The array.
    array: Any
    #: Elements of a box along each dimension, in the order of the array's shape.
    box: Sequence[int]
    #: Bytes of the swizzle pattern: 0, 32, 64 or 128.
    swizzle: int = 0
    #: The element type if it differs from the array's, such as `tf32`.
    dtype: Optional[str] = None
    #: Elements along each dimension, and bytes from one to the next, if they differ from the array's. The last stride
    #: may be None: the elements are contiguous.
    shape: Optional[Sequence[int]] = None
    strides: Optional[Sequence[int]] = None
    #: The address of the tensor's first element if it is not that of the array.
    address: Optional[int] = None


class Struct:
    """A struct passed by value in C's layout. Fields are numpy numbers, arrays (their pointers) and tensor maps."""

    def __init__(self, *fields):
        self.fields = fields


class uninitialized:
    """An array whose contents nothing has written: a kernel that reads them has a finding."""

    def __init__(self, array):
        self.array = array


class Address:
    """A pointer into an array, given by its address. Errors and findings call the array `name`."""

    def __init__(self, address, array, name):
        self.address, self.array, self.name = address, array, name


@dataclass
class Memory:
    """The memory of an array: [start, stop)."""

    start: int
    stop: int
    #: The address of the first element.
    address: int
    dtype: str
    itemsize: int
    writable: bool
    shape: Tuple[int, ...]
    #: In bytes.
    strides: Tuple[int, ...]
    #: Keeps the memory alive.
    owner: Any


def dtype_name(dtype, location):
    name = str(dtype).rsplit(".", 1)[-1]
    if name not in DTYPES:
        raise InputError(f"{location}: elements of type {dtype}; use {', '.join(list(DTYPES)[:13])} or fp8")
    return DTYPES[name]


def memory_of(value, location) -> Optional[Memory]:
    """Returns the memory of an array; None if the value is none."""
    if hasattr(value, "data_ptr") and hasattr(value, "stride"):
        device = str(getattr(value, "device", "cpu"))
        if device != "cpu":
            raise InputError(f"{location}: a tensor on {device}; the simulator needs it in the CPU's memory: x.cpu()")
        size = value.element_size()
        shape, strides = tuple(value.shape), tuple(size * n for n in value.stride())
        address, writable = value.data_ptr(), True
    elif isinstance(value, numpy.ndarray):
        shape, strides, size = value.shape, value.strides, value.itemsize
        address, writable = value.__array_interface__["data"]
        writable = not writable
    else:
        return None
    start = address + sum((n - 1) * step for n, step in zip(shape, strides) if step < 0 and n > 0)
    stop = address + sum((n - 1) * step for n, step in zip(shape, strides) if step > 0 and n > 0) + size
    if 0 in shape:
        start = stop = address
    return Memory(start, stop, address, dtype_name(value.dtype, location), size, writable, shape, strides, value)


@dataclass
class Buffer:
    """Memory that the kernel sees as one buffer."""

    start: int
    stop: int
    names: list
    dtypes: set
    sizes: set
    writable: bool
    written: bool


class Arguments:
    """The arguments of a launch as the native module takes them, and the buffers to write back."""

    def __init__(self, values, names):
        found = []
        for value, name in zip(values, names):
            self._find(value, name, found)
        self.buffers = _buffers(found)
        self.arguments = [{"name": name, "value": self._value(value, name)} for value, name in zip(values, names)]

    def contents(self):
        return [ctypes.string_at(b.start, b.stop - b.start) if b.written else None for b in self.buffers]

    def descriptions(self):
        def one(buffer):
            plain = len(buffer.dtypes) == 1 and (buffer.stop - buffer.start) % max(buffer.sizes) == 0
            dtype, size = (*buffer.dtypes, *buffer.sizes) if plain else ("u8", 1)
            names = list(dict.fromkeys(buffer.names))
            return {"name": " = ".join(names), "dtype": dtype, "count": (buffer.stop - buffer.start) // size}

        return [one(buffer) for buffer in self.buffers]

    def write_back(self, before, after):
        """Copies the buffers that the kernel has changed to the arrays."""
        for buffer, old, new in zip(self.buffers, before, after):
            if old == new:
                continue
            if not buffer.writable:
                raise InputError(f"{' = '.join(buffer.names)}: the kernel writes to a read-only array; pass a copy")
            ctypes.memmove(buffer.start, new, len(new))

    def _find(self, value, name, found):
        if isinstance(value, Struct):
            for number, field in enumerate(value.fields):
                self._find(field, f"{name}.{number}", found)
            return
        written = not isinstance(value, uninitialized)
        array = value.array if isinstance(value, (TensorMap, uninitialized, Address)) else value
        name = value.name if isinstance(value, Address) else name
        memory = memory_of(array, name)
        if memory is not None:
            found.append((memory, name, written))
        elif isinstance(value, (TensorMap, uninitialized)):
            raise InputError(f"{name}: {type(array).__name__} is not an array; give a numpy array or a torch tensor")

    def _pointer(self, address, name):
        for number, buffer in enumerate(self.buffers):
            if buffer.start <= address < buffer.stop or address == buffer.start == buffer.stop:
                return {"buffer": number, "offset": address - buffer.start}
        raise InputError(f"{name}: address {address:#x} is in no array of the launch; pass the array as well")

    def _value(self, value, name):
        if isinstance(value, Struct):
            fields = [self._value(field, f"{name}.{number}") for number, field in enumerate(value.fields)]
            return {"kind": "struct", "fields": fields}
        if isinstance(value, TensorMap):
            return self._tensor_map(value, name)
        if isinstance(value, Address):
            return {"kind": "pointer", **self._pointer(value.address, name)}
        array = value.array if isinstance(value, uninitialized) else value
        memory = memory_of(array, name)
        if memory is not None:
            return {"kind": "pointer", **self._pointer(memory.address, name)}
        if value is None:
            return {"kind": "int", "value": "0"}
        if isinstance(value, (bytes, bytearray, numpy.void)):
            return {"kind": "bytes", "bytes": list(bytes(value))}
        if isinstance(value, (bool, int)):
            return {"kind": "int", "value": str(int(value))}
        if isinstance(value, float) and not isinstance(value, numpy.generic):
            return {"kind": "float", "bits": struct.unpack("<Q", struct.pack("<d", value))[0]}
        if isinstance(value, numpy.generic):
            return {"kind": "scalar", "dtype": dtype_name(value.dtype, name), "bytes": list(value.tobytes())}
        raise InputError(f"{name}: {type(value).__name__} is not an argument of a kernel; give a number or an array")

    def _tensor_map(self, value, name):
        memory = memory_of(value.array, name)
        shape = list(memory.shape if value.shape is None else value.shape)
        strides = list(memory.strides if value.strides is None else value.strides)
        if len(value.box) != len(shape) or len(strides) != len(shape):
            raise InputError(f"{name}: a box of {len(value.box)} dimensions for a tensor of {len(shape)}; give as many")
        if strides and strides[-1] not in (None, memory.itemsize) and shape[-1] > 1:
            raise InputError(f"{name}: the last dimension is not contiguous; transpose the array, or copy it")
        return {
            "kind": "tensormap",
            **self._pointer(memory.address if value.address is None else value.address, name),
            "dtype": value.dtype or memory.dtype,
            "dims": shape[::-1],
            "strides": strides[-2::-1],
            "box": list(value.box)[::-1],
            "swizzle": value.swizzle,
        }


def _buffers(found):
    """Joins memory that overlaps."""
    buffers = []
    for memory, name, written in sorted(found, key=lambda one: one[0].start):
        of = {memory.dtype}, {memory.itemsize}
        if buffers and memory.start < buffers[-1].stop:
            last = buffers[-1]
            last.stop = max(last.stop, memory.stop)
            last.names.append(name)
            last.dtypes |= of[0]
            last.sizes |= of[1]
            last.writable &= memory.writable
            last.written |= written
        else:
            buffers.append(Buffer(memory.start, memory.stop, [name], *of, memory.writable, written))
    return buffers
