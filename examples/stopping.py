"""Being told to stop, and telling: also where the terminal is gone."""

import contextlib
import os
import signal
import sys
import threading
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


def say(text: str, error: bool = False) -> None:
    """Print a line, to stderr if it is an `error`, without tearing the bar. If nobody reads any
    more, nor will: a run goes on, and ends as it should."""
    stream = sys.stderr if error else sys.stdout
    try:
        with tqdm.external_write_mode(stream):
            print(text, file=stream, flush=True)
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
