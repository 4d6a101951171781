"""Memory of large arrays, used again when the last array that looks at it is gone.

The C library keeps what is freed, up to 32 MiB a piece (backend.py). Larger pieces go back to the
system, which hands out others page by page, cleared: 80 to 250 ms of the 2.0 s of a training step
of Mixer-S/16 at 32 images, whose hidden arrays have 49 MiB. Those are kept here, until a size is
asked for that is not among them, or `free()` is called.

>>> from minimixer.kernels.cpu.reuse import empty
>>> a = empty((3, 1 << 23), "float32")
>>> place = a.ctypes.data
>>> view = a[1, 5:]
>>> del a
>>> b = empty((3, 1 << 23), "float32")           # `view` still looks at the first
>>> b.ctypes.data == place
False
>>> del view
>>> empty((1 << 23, 3), "float32").ctypes.data == place
True
"""

import math
import weakref

import numpy as np

from ...engine.arrays import Array

LARGE = 32 << 20  # bytes; below, the C library does the same

_idle: dict[int, list[np.ndarray]] = {}  # by size


def empty(shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> Array:
    """np.empty. Memory may be that of an array that nobody holds any more, not even as a view."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return np.empty(shape, dtype=dtype)
    try:
        memory = _idle[size].pop()
    except (KeyError, IndexError):
        free()  # a new size: another model or batch, which may need the room
        memory = np.empty(size, dtype=np.uint8)
    # All views of `array` refer to it, not to `memory`: NumPy does not look behind `.data`.
    array = np.frombuffer(memory.data, dtype=dtype)
    weakref.finalize(array, _keep, memory).atexit = False
    return array.reshape(shape)


def free() -> None:
    """Give idle memory back to the system."""
    _idle.clear()


def _keep(memory: np.ndarray) -> None:
    _idle.setdefault(memory.size, []).append(memory)
