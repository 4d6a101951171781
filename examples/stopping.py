"""Being told to stop, and telling: also where the terminal is gone."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


class StopSignal:
    """Ctrl-C, SIGTERM and a closed terminal take effect between two steps, when weights and
    progress belong together; also if they come during a validation. A second one stops at once, but
    for that of a terminal, which may come twice. What was ignored before (nohup) still is."""

    def __init__(self, tells: bool) -> None:
        self.requested, self.tells = False, tells
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # as Python demands
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # no system has all
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():  # None: not set by Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(self, number: int, frame: Any) -> None:
        self.requested = True
        if number == getattr(signal, "SIGHUP", None):
            return
        signal.signal(number, signal.SIG_DFL)
        if self.tells and sys.__stderr__ is not None:  # else 2 may be a file of ours
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping after the next step; once more: at once\n")


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """What asks a program to end, or closes its terminal, is as Ctrl-C is: what the program keeps
    on the way down is kept. A signal that somebody chose to ignore (nohup) stays ignored."""
    there = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    taken = [s for s in there if s is not None and signal.getsignal(s) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def say(text: str, error: bool = False) -> None:
    """Print a line, to stderr if it is an `error`, without tearing the bar. What can't be written,
    to a disk that is full, is not worth a run: it goes on (begin.py, where nobody reads)."""
    stream = sys.stderr if error else sys.stdout
    try:
        with tqdm.external_write_mode(stream):
            print(text, file=stream, flush=True)
    except OSError as problem:
        print(f"what is printed is lost, and the run goes on: {problem}", file=sys.stderr)
