"""Options as commands and scripts read them, and what becomes of an error: one sentence.

parser = Parser(description=__doc__)
parser.add_device()
parser.add_argument("--batch-size", type=positive, default=64)
status = attempt(lambda: run(parser.parse_args()), "predict")
"""

import argparse
import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ..training.names import printable


class Parser(argparse.ArgumentParser):
    """One line for a wrong option, whose name is whole, and docstrings as they are."""

    def __init__(self, **options: Any):
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=kind, allow_abbrev=False, **options)

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; see --help")

    def add_device(self) -> None:
        self.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")


# ---- kinds of values ----------------------------------------------------------------------------


def positive(text: str) -> int:
    """A whole number from 1 to 2^31; ArgumentTypeError for another."""
    number = int(text)
    if not 0 < number <= 1 << 31:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return number


def share(text: str) -> float:
    """A number from 0.01 to 1; ArgumentTypeError for another."""
    number = float(text)
    if not 0.01 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0.01 to 1, not {text}")
    return number


def numbers(text: str) -> list[float] | float:
    """One number, or several between commas; ValueError for what is none."""
    values = [float(part) for part in text.split(",")]
    return values[0] if len(values) == 1 else values


# ---- errors -------------------------------------------------------------------------------------


def attempt(
    program: Callable[[], int], name: str, memory: str = "a lower --batch-size needs less",
    errors: tuple[type[Exception], ...] = (), prefix: Callable[[], str] = str,
) -> int:  # fmt: skip
    """The exit status of a program. What the user can mend (`errors`: more of that kind) becomes
    one sentence on stderr, after `prefix()` and its name, and status 2; Ctrl-C "stopped" and 130; a
    pipe that nobody reads any more is the end, and no error."""
    known: tuple[type[BaseException], ...] = (
        ValueError, TypeError, OSError, ImportError, MemoryError, *errors
    )  # fmt: skip
    try:
        with np.errstate(all="ignore"):  # what is not finite is found, and said once
            status = program()
        print(end="", flush=True)
        return status
    except BrokenPipeError:
        return 0
    except known as problem:
        text = "; ".join(line.strip() for line in str(problem).splitlines())
        if isinstance(problem, MemoryError):
            text = f"out of memory; {memory}: {text}"
        said, status = printable(text, 2000), 2  # there may be names in it
    except KeyboardInterrupt:
        said, status = "stopped", 130
    with contextlib.suppress(OSError):
        print(f"{prefix()}{name}: {said}", file=sys.stderr)
    return status
