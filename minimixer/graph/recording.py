"""One recording: the graph, the memory that it uses, the queue that it is recorded from.

A CUDA graph knows addresses. What was allocated while recording has to stay where it is for as long
as the graph may run, though the arrays that lay there are long gone; and nobody else may write
there. So recordings have a memory pool of their own.

Next: `fingerprint.py`, whether a recorded step may be repeated.
"""

import contextlib
import ctypes
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from ..engine import forms
from ..engine.devices import driver
from ..training.optim import Optimizer

MAIN_LINE = -1  # its priority; what is put aside (kernels/gpu/side.py) has 0, which is lower
_BY_NODE = 8  # the driver's flag: each node of a graph has the priority that it was recorded with


class Recording:
    """A graph, its results, and what the function did to Parameters besides arrays."""

    def __init__(
        self, graph: Any, result: Any, parameters: list[Any], before: list[Any], after: list[Any]
    ):  # fmt: skip
        self.graph: Any = graph
        self.result = result
        self.last_call = 0
        self.forms: Any = forms.table  # whose id is part of the key: no other may have it meanwhile
        changes = [(p, *b, *a) for p, b, a in zip(parameters, before, after, strict=True)]
        self.flags: list[Any] = [(p, has) for p, had, _, has, _ in changes if had != has]
        self.versions: list[Any] = [(p, new - old) for p, _, old, _, new in changes if new != old]
        self.clipped: tuple[Optimizer, bool] | None = None

    def replay(self) -> Any:
        self.graph.launch(sys.modules["cupy"].cuda.get_current_stream())
        for parameter, has_grad in self.flags:
            parameter.has_grad = has_grad
        for parameter, steps in self.versions:
            parameter.version += steps
        if self.clipped is not None:
            self.clipped[0].clipped = self.clipped[1]
        return self.result


class _Graph:
    """One that the driver can start by this address. `called`: what it calls on the CPU."""

    def __init__(self, address: int, called: Any):
        self.address, self.called = ctypes.c_void_p(address), called
        weakref.finalize(self, driver().cuGraphExecDestroy, self.address).atexit = False

    def launch(self, stream: Any) -> None:
        status = driver().cuGraphLaunch(self.address, ctypes.c_void_p(stream.ptr))
        if status:
            raise RuntimeError(f"cuGraphLaunch: status {status}")


def with_priorities(graph: Any) -> Any:
    """CuPy's graph, whose nodes all have the priority of the stream that it is started on, as one
    in which the main line goes first; as it is where the driver is too old for that."""
    made = ctypes.c_void_p()
    status = driver().cuGraphInstantiateWithFlags(
        ctypes.byref(made), ctypes.c_void_p(graph.graph), ctypes.c_ulonglong(_BY_NODE)
    )
    return graph if status or not made.value else _Graph(made.value, graph.host_funcargs)


class Pool:
    """Memory of one GPU for recordings. What CuPy takes from the GPU stays taken while there are
    any: short of memory, CuPy would give back what no array uses, and graphs use that."""

    def __init__(self, device: int, recordings: dict[Any, Any]):
        cupy = sys.modules["cupy"]
        self.device: Any = cupy.cuda.Device(device)
        self.recordings = recordings
        self.taken: list[Any] = []
        self.pool: Any = cupy.cuda.MemoryPool(self._take)
        self.most: int = 0  # bytes that were in use at once

    def _take(self, size: int) -> Any:
        cupy = sys.modules["cupy"]
        try:
            memory = cupy.cuda.Memory(size)
        except cupy.cuda.runtime.CUDARuntimeError:
            if not cupy.cuda.get_current_stream().is_capturing():
                self.drop()
            raise  # and CuPy gives back what is free, and tries once more
        self.taken.append(memory)
        return cupy.cuda.MemoryPointer(memory, 0)

    def malloc(self, size: int) -> Any:
        pointer = self.pool.malloc(size)
        self.most = max(self.most, self.pool.used_bytes())
        return pointer

    def gather(self) -> None:
        """Before the first recording: as much in one stretch as the call before it used at once.
        Pieces taken from the GPU one by one, as they were asked for, leave gaps that nothing fits.
        """
        if not self.recordings:
            self.drop()
            with contextlib.suppress(MemoryError):  # then piece by piece
                self.pool.malloc(self.most)  # and free at once: CuPy cuts up what is free

    def drop(self) -> None:
        """Forget all recordings, and free all memory but that of arrays."""
        self.recordings.clear()
        self.taken.clear()
        with self.device:
            self.pool.free_all_blocks()

    def total_bytes(self) -> int:
        with self.device:
            return self.pool.total_bytes()


class _Streams(threading.local):
    def __init__(self) -> None:
        self.by_device: dict[int, Any] = {}


_streams = _Streams()


@contextlib.contextmanager
def own_stream() -> Iterator[Any]:
    """A queue of this thread's own, since the default one can't be recorded; what is in the
    current queue comes before it, and what enters that later comes after it."""
    cupy = sys.modules["cupy"]
    device, current = cupy.cuda.Device().id, cupy.cuda.get_current_stream()
    if device not in _streams.by_device:
        made = cupy.cuda.Stream(non_blocking=True, priority=MAIN_LINE)
        _streams.by_device[device] = made
    own = _streams.by_device[device]
    own.wait_event(current.record())
    try:
        with own:
            yield own
    finally:
        current.wait_event(own.record())
