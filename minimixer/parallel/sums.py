"""An all-reduce: every rank has an array, and every rank gets the sum of all of them.

On the CPU in two exchanges. Each rank is to sum one stretch of the array, and receives it from all
others; then each sends its finished stretch to all:

    rank 0    a0 b0 c0              a0+a1+a2  .  .           a b c
    rank 1    a1 b1 c1    sends     .  b0+b1+b2  .  sends    a b c
    rank 2    a2 b2 c2              .  .  c0+c1+c2           a b c

A rank thus sends and receives twice (N - 1) / N of the array, whatever N is: as little as possible.
MPI has an all-reduce of its own, but adds in an order that depends on its version, on the machine
and on how often it was called before; (x + y) + z is not x + (y + z), so a run that was resumed
would differ in its last bits. Here ranks are added from 0 on. (Thakur et al. 2005 compare
algorithms.)

Between GPUs it is NCCL's, over NVLink, queued like any kernel; so a CUDA graph can record it.

Next: `overlap.py`.
"""

import ctypes
import os
import sys
from typing import Any

import numpy as np

from ..engine.arrays import Array, use_device_of


class HostSum:
    """Sums contiguous NumPy arrays of float32 or float64 over the ranks of an MPI communicator."""

    def __init__(self, comm: Any):
        self.comm = comm
        self._scratch = np.empty(0)

    def __call__(self, array: np.ndarray) -> None:
        """`array` (n,) becomes the sum of all ranks' arrays, which must be of one size."""
        rank, size = self.comm.rank, self.comm.size
        starts = [array.size * i // size for i in range(size)]
        counts = [b - a for a, b in zip(starts, [*starts[1:], array.size], strict=True)]
        mine = slice(starts[rank], starts[rank] + counts[rank])
        if self._scratch.dtype != array.dtype or self._scratch.size < size * counts[rank]:
            self._scratch = np.empty(size * counts[rank], dtype=array.dtype)
        received = self._scratch[: size * counts[rank]].reshape(size, counts[rank])
        self.comm.Alltoallv([array, (counts, starts)], [received, [counts[rank]] * size])
        total = array[mine]
        total[...] = received[0]
        for other in received[1:]:
            total += other
        self.comm.Allgatherv(_in_place(), [array, (counts, starts)])


def _in_place() -> Any:
    return sys.modules["mpi4py.MPI"].IN_PLACE


class NcclSum:
    """Sums contiguous CuPy arrays, float32 or float64, over ranks that have a GPU each.

    Made by all ranks together, each on its current GPU. ValueError if NCCL can't be loaded.
    """

    def __init__(self, comm: Any):
        from cupy.cuda import nccl

        if not nccl.available:
            raise ValueError(
                "several GPUs exchange gradients through NCCL, which is not installed: pip install "
                "nvidia-nccl-cu12 (CUDA 12) or nvidia-nccl-cu13 (CUDA 13)"
            )
        # NVLink's switches can add by themselves, but in no fixed order (NCCL issue 1497).
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
        number = comm.bcast(nccl.get_unique_id() if comm.rank == 0 else None)
        self.comm: Any = nccl.NcclCommunicator(comm.size, number, comm.rank)
        # Never destroyed: that would wait for all CUDA graphs that use it to be destroyed before,
        # and for the other ranks. The end of the process frees it.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.comm))
        self._nccl = nccl

    def __call__(self, array: Array) -> None:
        """Queue it on the current stream: `array` (n,) becomes the sum of all ranks' arrays."""
        nccl = self._nccl
        kinds = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}
        kind, place = kinds[array.dtype.name], array.data.ptr
        use_device_of(array)
        stream = sys.modules["cupy"].cuda.get_current_stream().ptr
        self.comm.allReduce(place, place, array.size, kind, nccl.NCCL_SUM, stream)
