"""World: all processes that train one model, seen from one of them.

Every method that talks to the others has to be called by all ranks, in the same order: a rank that
leaves one out makes the others wait for it. That is also why an error must end all of them. The
block `with parallel.start() as world:` sees to it. Its rules: if all ranks fail, as they do when
a file is missing, rank 0 tells; if some do, each of these tells, with its rank, and ends all by
MPI's Abort, upon which mpirun kills whoever waits for it, in an all-reduce or on a GPU. A process
that is killed itself mpirun notices by itself.

Inside of the block only rank 0 prints: what others write to stdout and stderr is dropped.

>>> from minimixer.parallel.world import start
>>> with start() as world:
...     print(world.rank, world.size, world.part(7), world.gather([1.5, True]).tolist())
0 1 slice(0, 7, None) [[1.5, 1.0]]

Next: `same.py`.
"""

import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..engine import forms
from ..engine.arrays import Array, to_device, to_numpy
from ..engine.aside import join
from ..engine.devices import check_device, synchronize
from ..nn.layers import Module
from ..training.optim import Optimizer
from .same import describe, differences
from .sums import HostSum, NcclSum

# How launchers tell a process how many there are: MPICH and Intel MPI, Open MPI, Slurm's srun.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
PATIENCE = 2.0  # seconds in which all ranks fail if they fail for one reason
# Told in a sentence, others with traceback.
_PLAIN = (ValueError, TypeError, OSError, ImportError, MemoryError)


def start(plain: tuple[type[Exception], ...] = ()) -> "World":
    """The world that this process belongs to: of one, unless mpirun or srun started several. Errors
    of the kinds `plain`, as ValueError and others, are told in a sentence, without a traceback.

    Only then is mpi4py imported. ValueError if it can't be, or if its MPI is not the launcher's.
    """
    size = next((int(os.environ[name]) for name in _SIZES if name in os.environ), 1)
    if size == 1:
        return World()
    install = "pip install mpi4py mpich"
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"{size} processes talk through mpi4py ({error}): {install}") from None
    if MPI.COMM_WORLD.size != size:
        raise ValueError(
            f"{size} processes were started, but mpi4py's MPI ({MPI.Get_library_version():.20}...) "
            f"knows of {MPI.COMM_WORLD.size}: it is another MPI than the launcher's; {install} "
            "brings a pair, and an mpi4py built with the launcher's mpicc is one too"
        )
    try:
        return World(MPI.COMM_WORLD, plain)
    except BaseException as error:  # the others wait for us, and no `with` sees to it yet
        print(f"rank {MPI.COMM_WORLD.rank}: {_words(error, _PLAIN)}", file=sys.stderr, flush=True)
        time.sleep(0.1)
        MPI.COMM_WORLD.Abort(2)
        os._exit(2)


class World:
    """rank    this process's number, from 0, of `size`;  local_rank  that on its machine
    device  "cpu", or the GPU that `use` took

    comm    MPI's communicator; None: there is no other process
    """

    def __init__(self, comm: Any = None, plain: tuple[type[Exception], ...] = ()):
        self._plain: tuple[type[BaseException], ...] = (*_PLAIN, *plain)
        self.comm = comm
        self.rank: int = 0
        self.size: int = 1
        self.device: str = "cpu"
        self.local_rank: int = 0
        self.local_size: int = 1
        self._all_reduce: Callable[[Array], None] | None = None
        self._streams: tuple[Any, Any] | None = None
        self._overlaps: dict[int, Any] = {}  # by id of models, which they hold
        if comm is not None:
            self.rank, self.size = comm.rank, comm.size
            machine = comm.Split_type(sys.modules["mpi4py.MPI"].COMM_TYPE_SHARED)
            self.local_rank, self.local_size = machine.rank, machine.size
            self._machine = machine.bcast(comm.rank)  # the first rank on it stands for it
            self._share_cores(machine)
            self._failures = comm.Dup()  # a line of its own, while others may wait on the first
            self._all_reduce = HostSum(comm)

    def _share_cores(self, machine: Any) -> None:
        """BLAS, and so our threads, would else take all cores of the machine for each rank."""
        if not (forms.table and hasattr(os, "sched_getaffinity")):
            return
        from ..kernels.cpu import threads

        cores = set().union(*machine.allgather(os.sched_getaffinity(0)))
        threads.limit_blas(max(1, len(cores) // machine.size))

    def use(self, device: str) -> str:
        """The full name of the device that this rank is to use: for "cuda", the GPU of its number
        on its machine. ValueError if there are too few GPUs, or for "cuda:N" with several ranks."""
        if self.size == 1:
            self.device = check_device(device)
            return self.device
        if device.startswith("cuda:"):
            raise ValueError(f"{device} is one GPU, and {self.size} processes need their own: cuda")
        place, count = "", 0
        if device == "cuda":
            device, place, count = self._my_gpu()
        self.device = check_device(device)
        places = self.comm.allgather((self._machine, place))
        if len({place == "" for _, place in places}) > 1:
            raise ValueError("some ranks are to use a GPU, and some are not")
        if place and len(set(places)) < self.size:
            raise ValueError(
                f"{self.local_size} processes on this machine, but only {count} GPU(s), and each "
                "process needs its own: start fewer"
            )
        if place:
            self._all_reduce = NcclSum(self.comm)
        return self.device

    def _my_gpu(self) -> tuple[str, str, int]:
        """Its name, its place on the bus, and how many this process sees. A launcher may have given
        each process a GPU of its own, which all call cuda:0; the place tells."""
        try:
            import cupy

            count = cupy.cuda.runtime.getDeviceCount()
            index = self.local_rank % count
            cupy.cuda.Device(index).use()  # first of all, or every rank takes memory of cuda:0
            return f"cuda:{index}", cupy.cuda.runtime.deviceGetPCIBusId(index), count
        except Exception:
            check_device("cuda")  # whose error says what is missing
            raise

    # ---- my part --------------------------------------------------------------------------------

    def part(self, count: int) -> slice:
        """This rank's part of `count` examples; all parts together are all of them, none differs
        from another by more than one, and some are empty if there are fewer examples than ranks."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def counts(self, count: int) -> list[int]:
        """How many of `count` examples each rank has."""
        borders = [count * rank // self.size for rank in range(self.size + 1)]
        return [b - a for a, b in itertools.pairwise(borders)]

    def check_batch_size(self, batch_size: int) -> None:
        """ValueError if there are more ranks than examples in a batch."""
        if self.size > batch_size:
            raise ValueError(
                f"{self.size} processes for a batch of {batch_size}: each needs an example at "
                "least; start fewer, or take a larger batch"
            )

    # ---- the same start -------------------------------------------------------------------------

    def check_same(self, **things: Any) -> None:
        """ValueError, on all ranks, naming what differs and where, unless each thing (a setting,
        text, an array, or a dict of such) is the same on all ranks."""
        if self.size > 1:
            found = differences(self.comm.allgather(describe(things)))
            if found:
                raise ValueError(f"the ranks do not run the same thing: {found}")

    def share(self, value: Any) -> Any:
        """Rank 0's value, on all ranks: a few numbers or texts."""
        return value if self.size == 1 else self.comm.bcast(value)

    def every(self, value: Any) -> list[Any]:
        """All ranks' values, by rank, on all ranks: a few numbers, texts or arrays."""
        return [value] if self.size == 1 else self.comm.allgather(value)

    def broadcast(self, model: Module, optimizer: Optimizer | None = None) -> None:
        """Rank 0's weights, random step and optimizer state, to all ranks."""
        if self.size == 1:
            return
        buffer = model.parameters()[0].buffer
        assert buffer is not None
        buffer.write(0, self._from_first(buffer.values))
        for parameter in model.parameters():
            parameter.version += 1
        buffer.random.seed = self.share(buffer.random.seed)
        arrays = [buffer.random.counters, buffer.loss_scale]
        if optimizer is not None:
            optimizer._follow()
            arrays += [optimizer.control, *optimizer.state.values()]
        for array in arrays:
            array[...] = to_device(self._from_first(array), buffer.device)

    def _from_first(self, array: Array) -> np.ndarray:
        host = np.ascontiguousarray(to_numpy(array))
        self.comm.Bcast(host)
        return host

    # ---- every step -----------------------------------------------------------------------------

    def sum_gradients(self, model: Module) -> None:
        """The gradients become their sum over the ranks: the same bits on all, in each run.

        A Parameter that has a gradient on some ranks only (one whose part is empty has none) counts
        as 0 on the others; those that have none anywhere stay without. On a GPU it is queued on the
        current stream. While a CUDA graph is recorded the ranks can't ask each other which have
        one: all must have the same ones, and record, and replay, the same steps. ValueError if the
        model is not on the device that `use` gave.
        """
        if self._all_reduce is None:
            return
        join()
        overlap = self._overlaps.get(id(model))
        if overlap is not None and overlap.finish():
            return
        parameters = sorted(model.parameters(), key=lambda parameter: parameter.start)
        buffer = parameters[0].buffer
        assert buffer is not None
        if buffer.device != self.device:
            raise ValueError(f"the model is on {buffer.device}, this rank's device: {self.device}")
        gradients = buffer.make_gradients()
        if self._capturing():
            wanted = [parameter.has_grad for parameter in parameters]
        else:
            has = np.array([parameter.has_grad for parameter in parameters], dtype=np.uint8)
            wanted = list(np.maximum.reduce(self._all(has)))
        stretches: list[list[int]] = []
        for parameter, is_wanted in zip(parameters, wanted, strict=True):
            if not is_wanted:
                continue
            if not parameter.has_grad:  # what lies there is of an earlier step
                gradients[parameter.start : parameter.stop] = 0
                parameter.has_grad = True
            if stretches and stretches[-1][1] == parameter.start:
                stretches[-1][1] = parameter.stop
            else:
                stretches.append([parameter.start, parameter.stop])
        for begin, end in stretches:  # one, unless some Parameters are frozen
            self._all_reduce(gradients[begin:end])

    def overlap(self, model: Any) -> None:
        """From now on, in recorded steps between GPUs, sum gradients while backward goes on: of a
        Mixer, all of whose Parameters are trained, with one backward for each `sum_gradients`."""
        trained = all(parameter.requires_grad for parameter in model.parameters())
        if isinstance(self._all_reduce, NcclSum) and trained and id(model) not in self._overlaps:
            from .overlap import Overlap

            self._overlaps[id(model)] = Overlap(model, self._all_reduce)

    def _capturing(self) -> bool:
        if self.device == "cpu":
            return False
        return sys.modules["cupy"].cuda.get_current_stream().is_capturing()

    def _all(self, mine: np.ndarray) -> np.ndarray:
        """All ranks' arrays, along a new first axis."""
        found = np.empty((self.size, *mine.shape), dtype=mine.dtype)
        self.comm.Allgather(mine, found)
        return found

    def gather(self, numbers: Sequence[Any]) -> np.ndarray:
        """Every rank's numbers (n), float64 (size, n), on every rank: to see which is NaN."""
        mine = np.array([float(number) for number in numbers])
        return mine[None] if self.size == 1 else self._all(mine)

    def sum(self, numbers: Sequence[Any]) -> np.ndarray:
        """The ranks' numbers (n) added up in float64, from rank 0 on: (n,), on every rank."""
        return self.gather(numbers).sum(axis=0)

    def any(self, flag: Any) -> bool:
        """Is it so on any rank? To stop, all after the same step, when one was told to."""
        return bool(self.sum([bool(flag)])[0])

    def barrier(self) -> None:
        """Wait until all ranks are here, and their GPUs done."""
        synchronize(self.device)
        if self.size > 1:
            self.comm.Barrier()

    # ---- ending together ------------------------------------------------------------------------

    def __enter__(self) -> "World":
        if self.rank > 0:
            self._streams = sys.stdout, sys.stderr
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._streams is not None:
            sys.stdout, sys.stderr = self._streams
        if self.size == 1 or error is None:
            return
        status = 2 if isinstance(error, self._plain) else 1  # as the examples' own
        if isinstance(error, KeyboardInterrupt):
            status = 130
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if self._all_fail():
            # A GPU that waits for another must not hold up the end.
            if self.device != "cpu" and hasattr(signal, "alarm"):
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(5)
            if self.rank > 0:
                raise SystemExit(status)
            return
        print(f"rank {self.rank}: {_words(error, self._plain)}", file=sys.stderr, flush=True)
        time.sleep(0.1)  # for mpirun to pass it on
        self.comm.Abort(status or 1)
        os._exit(status or 1)  # MPICH's Abort comes back

    def _all_fail(self) -> bool:
        """Do all ranks come here, within PATIENCE?"""
        arrived = self._failures.Ibarrier()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if arrived.Test():
                return True
            time.sleep(0.01)
        return False


def _words(error: BaseException, plain: tuple[type[BaseException], ...]) -> str:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, str) else f"ended alone ({error!r})"
    text = str(error) or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, plain):
        return text
    return "".join(traceback.format_exception(error)).rstrip()
