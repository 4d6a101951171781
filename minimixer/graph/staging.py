"""Batches on their way to a GPU, results on their way back, while both sides work on.

A GPU runs behind Python: a call queues work and returns. Reading a result, or copying a batch from
ordinary memory, makes Python wait for all that is queued, and then the GPU for Python. Neither has
to: a GPU copies from and to "pinned" memory (which the system never moves) when its turn in the
queue comes, and an event says when it has. On the CPU there is nothing to wait for.

>>> from minimixer import Tensor, fetch
>>> asked = fetch(Tensor([0.5, 0.25]))
>>> asked.results()                          # here the program waits, if it has to
[array([0.5 , 0.25], dtype=float32)]
"""

import sys
import threading
from collections import deque
from typing import Any

import numpy as np

from ..engine.arrays import Array, namespace
from ..engine.autograd import Variable

SLOTS = 3  # batches on their way at once


class Inbox:
    """An array on the current GPU that takes one batch after another, of one shape and dtype."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
        cupy = sys.modules["cupy"]
        self.array: Array = cupy.empty(shape, dtype=dtype)
        self._slots: list[tuple[np.ndarray, Any]] = []  # pinned memory, when it may be written to
        self._turn = 0

    def take(self, values: Array) -> None:
        """Queue the copy of `values`, on CPU or GPU, which may then be changed at once."""
        if namespace(values) is not np:
            if values.data.ptr != self.array.data.ptr:
                self._copy(values)
            return
        import cupyx

        cupy = sys.modules["cupy"]
        stream = cupy.cuda.get_current_stream()
        if len(self._slots) < SLOTS:
            pinned = cupyx.empty_pinned(self.array.shape, self.array.dtype)
            self._slots.append((pinned, cupy.cuda.Event(block=False, disable_timing=True)))
        pinned, copied = self._slots[self._turn % SLOTS]
        self._turn += 1
        copied.synchronize()  # at once, unless all slots are still waiting in the queue
        pinned[...] = values
        self.array.data.copy_from_host_async(pinned.ctypes.data, pinned.nbytes, stream)
        copied.record(stream)
        _keep(pinned, copied)

    def _copy(self, values: Array) -> None:
        if values.flags.c_contiguous and values.device == self.array.device:
            stream = sys.modules["cupy"].cuda.get_current_stream()
            self.array.data.copy_from_device_async(values.data, values.nbytes, stream)
        else:
            self.array[...] = values


_under_way: deque[tuple[np.ndarray, Any]] = deque()
_lock = threading.Lock()


def _keep(pinned: np.ndarray, done: Any) -> None:
    """Pinned memory that nobody holds is given to the next who asks, even while the GPU copies:
    hold it until then."""
    with _lock:
        while _under_way and _under_way[0][1].done:
            _under_way.popleft()
        _under_way.append((pinned, done))


class Fetched:
    """Results that were asked for. `results()` are NumPy arrays, and waits for them if need be."""

    def __init__(self, values: list[np.ndarray], events: list[Any]):
        self._values, self._events = values, events

    def results(self) -> list[np.ndarray]:
        for arrived in self._events:
            arrived.synchronize()
        return self._values


def fetch(*arrays: Any) -> Fetched:
    """Queue the copy of Tensors or arrays to the CPU: their values as they are at this point of the
    queue, whatever is written there later."""
    values, events = [], []
    for array in arrays:
        array = array.data if isinstance(array, Variable) else array
        if namespace(array) is np:
            values.append(array.copy())
            continue
        import cupyx

        cupy = sys.modules["cupy"]
        with array.device:
            stream = cupy.cuda.get_current_stream()
            source = array if array.flags.c_contiguous else array.copy()
            pinned = cupyx.empty_pinned(source.shape, source.dtype)
            source.data.copy_to_host_async(pinned.ctypes.data, pinned.nbytes, stream)
            arrived = cupy.cuda.Event(block=False, disable_timing=True)
            arrived.record(stream)
        _keep(pinned, arrived)
        values.append(pinned)
        events.append(arrived)
    return Fetched(values, events)
