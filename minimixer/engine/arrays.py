"""NumPy or CuPy: what differs between them, in one place.

What follows is array code that runs on both, but for a word here and there where a GPU wants
another way. An array brings its namespace with it (`xp`, everywhere, is numpy or cupy, whichever
the array is of), so work on CPU and GPU lives side by side in one process.

>>> import numpy as np
>>> from minimixer.engine.arrays import device_of, namespace
>>> x = np.arange(6, dtype="float32").reshape(2, 3)
>>> device_of(x), namespace(x) is np
('cpu', True)
"""

import sys
from types import ModuleType
from typing import Any

import numpy as np

from .devices import check_device, check_not_recorded, several_gpus, synchronize

Array = Any  # numpy.ndarray or cupy.ndarray; CuPy is never imported for a type


def namespace(array: Array) -> ModuleType:
    """The module whose functions work on `array`: numpy or cupy."""
    return _namespaces[type(array)]


class _Namespaces(dict[type, ModuleType]):
    def __missing__(self, kind: type) -> ModuleType:
        self[kind] = sys.modules["cupy"] if kind.__module__.partition(".")[0] == "cupy" else np
        return self[kind]


_namespaces = _Namespaces()


def is_array(value: object) -> bool:
    """Is it a NumPy or CuPy array?"""
    return isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "cupy"


def device_of(array: Array) -> str:
    """ "cpu", or "cuda:N" for the GPU that holds `array`."""
    return "cpu" if namespace(array) is np else f"cuda:{array.device.id}"


def same_device(a: Array, b: Array) -> bool:
    """Do two arrays lie on one device?"""
    return namespace(a) is namespace(b) and (namespace(a) is np or a.device == b.device)


def address(array: Array) -> int:
    """Where its first element lies."""
    return array.ctypes.data if namespace(array) is np else array.data.ptr


def to_device(array: Array, device: str) -> Array:
    """`array` on `device`: itself if it is there already, else a copy."""
    if device_of(array) == device or device_of(array) == (device := check_device(device)):
        return array
    if device == "cpu":
        return array.get()
    cupy = sys.modules["cupy"]
    cupy.cuda.Device(int(device[5:])).use()
    check_not_recorded("copying from the CPU")
    return cupy.asarray(native(array))


def to_numpy(array: Array) -> np.ndarray:
    """`array` as a NumPy array: itself on the CPU, a copy from a GPU."""
    return to_device(array, "cpu")


def use_device_of(array: Array) -> None:
    """Let what comes next run on the GPU that holds `array`, where there are several."""
    if namespace(array) is not np and several_gpus():
        array.device.use()


def native(array: Any) -> Any:
    """`array` in this machine's order of bytes: itself, or a copy of one in the other order."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def describe(array: Array) -> str:
    """For error messages: float32 (3, 4) on cpu."""
    return f"{array.dtype} {array.shape} on {device_of(array)}"


def blocks(array: Array, start: int = 0, stop: int | None = None) -> list[slice]:
    """Slices that cover the flat range [start, stop) of `array`, all of it by default.

    On the CPU each is 128 KiB: a few temporaries of that size stay in the cache between one
    operation and the next, where whole arrays would travel to memory and back. On a GPU, which
    wants few large operations, it is one slice.
    """
    stop = array.size if stop is None else stop
    size = (1 << 17) // array.itemsize if namespace(array) is np else max(1, stop - start)
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]


def one(like: Array) -> Array:
    """1 as a 0-d array of the same dtype, where `like` is: always the same one, for reading."""
    device = device_of(like)
    found = _ones.get((device, like.dtype))
    if found is None:
        found = namespace(like).ones((), dtype=like.dtype)
        if device == "cpu":
            found.flags.writeable = False
        elif sys.modules["cupy"].cuda.get_current_stream().is_capturing():
            return found  # not written before the recording is replayed
        synchronize(device)
        _ones[device, like.dtype] = found
    return found


_ones: dict[tuple[str, np.dtype], Array] = {}
