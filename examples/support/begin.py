"""What a script imports first: what holds while it is still importing the rest.

    from support import begin  # noqa: F401  isort: skip

That takes a second, in which Ctrl-C may come, or a package turn out to be missing. Either is said
in a line. With mpirun, the other processes would wait for this one without end: MPI, which could
tell them, has not started here yet. But mpirun ends all if one dies by a signal. Only what comes
with Python is imported here.
"""

import atexit
import builtins
import contextlib
import errno
import io
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

# How launchers tell a process how many there are, and which it is: minimixer/parallel/world.py.
RANKS = {"PMI_SIZE": "PMI_RANK", "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
         "SLURM_STEP_NUM_TASKS": "SLURM_PROCID"}  # fmt: skip
SCRIPT = Path(sys.argv[0]).stem
NOTEBOOK = hasattr(builtins, "__IPYTHON__")  # whose signals, streams and end are its own


def rank() -> str:
    """ "rank 1: " of several processes as long as this one has not started MPI, else ""."""
    for size, number in RANKS.items():
        if int(os.environ.get(size, 1)) > 1 and "mpi4py.MPI" not in sys.modules:
            return f"rank {os.environ.get(number, '?')}: "
    return ""


def end_others() -> None:
    """When this process ends without having started MPI: by a signal, for mpirun to see it."""
    if rank():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
        time.sleep(0.1)  # for mpirun to pass on what was said
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def stop(number: int, frame: FrameType | None) -> None:
    """Ctrl-C while importing: there is nothing to keep."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{rank()}{SCRIPT}: stopped\n".encode())
    end_others()
    os._exit(130)


def tell(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """A package that is missing, in a line; anything else as ever."""
    if issubclass(kind, ImportError):
        text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        print(f"{rank()}{SCRIPT}: {text}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


class Stream:
    """stdout or stderr. A terminal that is gone, or a pipe that nobody reads any more, takes what
    is written and says nothing: messages are not worth a run. `heeded` are errors that are raised
    all the same, once."""

    def __init__(self, stream: io.TextIOWrapper, heeded: tuple[int, ...] = ()):
        stream.reconfigure(errors="backslashreplace")  # names of files
        self._stream, self.heeded = stream, heeded

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except OSError as error:  # what waits to be written, and what comes, goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if error.errno in self.heeded:
                raise
            return len(*arguments) if arguments else None


def streams() -> None:
    """Both are there, even if they were closed (`>&-`), and no other file takes their numbers."""
    if NOTEBOOK:
        return
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for number, which in (1, "stdout"), (2, "stderr"):
        stream = getattr(sys, which)
        if stream is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper):
            full = () if number == 2 else (errno.ENOSPC, errno.EDQUOT)  # of the file at `> FILE`
            setattr(sys, which, Stream(stream, full))


def _is_for_us() -> bool:
    """Is it one of these scripts that runs? Not a test, nor a process that a script has started."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    return bool(main) and Path(main).resolve().parent == Path(__file__).resolve().parents[1]


if _is_for_us() and not NOTEBOOK:
    streams()
    sys.excepthook = tell
    atexit.register(end_others)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody ignores it
        signal.signal(signal.SIGINT, stop)
