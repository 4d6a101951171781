"""Being told to stop, and telling: also where the terminal is gone."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm


@contextlib.contextmanager
def on_signals(names: Iterable[str], handler: Any) -> Iterator[None]:
    """Within it `handler` meets these signals, of which no system has all. One that was ignored
    before (nohup) still is."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # as Python demands
        for name in names:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():  # None: not set by Python
            signal.signal(number, signal.SIG_DFL if old is None else old)


def stop_signals() -> Any:
    """What asks a program to end, or closes its terminal, is as Ctrl-C is: what the program keeps
    on the way down is kept."""
    return on_signals(("SIGTERM", "SIGHUP"), signal.default_int_handler)


class StopSignal:
    """Ctrl-C, SIGTERM and a closed terminal take effect between two steps, when weights and
    progress belong together; also if they come during a validation. A second one stops at once, but
    for that of a terminal, which may come twice."""

    def __init__(self, tells: bool) -> None:
        self.requested, self.tells = False, tells
        self._taken = on_signals(("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"), self.note)

    def __enter__(self) -> "StopSignal":
        self._taken.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._taken.__exit__(*error)

    def note(self, number: int, frame: Any) -> None:
        self.requested = True
        if number == getattr(signal, "SIGHUP", None):
            return
        signal.signal(number, signal.SIG_DFL)
        if self.tells and sys.__stderr__ is not None:  # else 2 may be a file of ours
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping after the next step; once more: at once\n")


def say(text: str, error: bool = False) -> None:
    """Print a line, to stderr if it is an `error`, without tearing the bar. What can't be written,
    to a disk that is full, is not worth a run: it goes on (begin.py, where nobody reads)."""
    stream = sys.stderr if error else sys.stdout
    try:
        with tqdm.external_write_mode(stream):
            print(text, file=stream, flush=True)
    except OSError as problem:
        print(f"what is printed is lost, and the run goes on: {problem}", file=sys.stderr)
