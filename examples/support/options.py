"""Options of the example scripts: their kinds, and what becomes of an error."""

import argparse
import errno
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from minimixer.training.names import printable
from support import begin
from support.settings import Settings, dashes


class Parser(argparse.ArgumentParser):
    """One line for a wrong option, whose name is whole, and docstrings as they are."""

    def __init__(self, **options: Any):
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=kind, allow_abbrev=False, **options)

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; see --help")

    def add_out(self, default: str) -> None:
        """--out and --overwrite: run_directory.py."""
        self.add_argument(
            "--out", default="", help=f"directory for results (default: {default}, or the first of "
            f"{default}-2, {default}-3 and so on that has none)",
        )  # fmt: skip
        self.add_argument(
            "--overwrite", action="store_true", help="replace the results that --out has"
        )

    def add_resume(self) -> None:
        self.add_argument(
            "--resume", action="store_true", help="go on with the run in --out, with its settings; "
            "without --out, with the unfinished run that was saved last",
        )  # fmt: skip

    def add_device(self) -> None:
        self.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")

    def add_graph(self) -> None:
        self.add_argument(
            "--graph", default="auto", choices=["auto", "on", "off"],
            help="CUDA graphs: record a training step and replay it (default: auto, on a GPU)",
        )  # fmt: skip

    def add_settings(self, settings: Settings) -> None:
        """An option for each setting, of the type of its default."""
        for name, setting in settings.items():
            kind = type(setting.default)
            self.add_argument(dashes(name), type=kind, default=setting.default, help=setting.help)


def parse(parser: Callable[[], Parser]) -> tuple[argparse.Namespace, set[str]]:
    """The options, and the names of those that were given."""
    options, bare = parser().parse_args(), parser()
    bare.set_defaults(**dict.fromkeys(vars(options), None))
    return options, {name for name, value in vars(bare.parse_args()).items() if value is not None}


# ---- kinds of values ----------------------------------------------------------------------------


def positive(text: str) -> int:
    number = int(text)
    if not 0 < number <= 1 << 31:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return number


def share(text: str) -> float:
    number = float(text)
    if not 0.01 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0.01 to 1, not {text}")
    return number


def numbers(text: str) -> list[float] | float:
    values = [float(part) for part in text.split(",")]
    return values[0] if len(values) == 1 else values


# ---- errors -------------------------------------------------------------------------------------


def run_script(
    program: Callable[[], int], name: str, memory: str = "a lower --batch-size needs less",
    errors: tuple[type[Exception], ...] = (), for_pipes: bool = False,
) -> None:  # fmt: skip
    """Run a script's main; what the user can mend becomes one sentence and status 2. In a notebook
    (`%run`) the sentence is all. `for_pipes`: what it prints is what it is for, and it ends when
    nobody reads that any more (`| head`)."""
    status, handlers = 2, {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    if for_pipes and isinstance(sys.stdout, begin.Stream):
        sys.stdout.heeded += (errno.EPIPE,)
    if signal.getsignal(signal.SIGINT) is begin.stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with np.errstate(all="ignore"):  # what is not finite is found, and said once
            status = program()
            sys.stdout.flush()
    except BrokenPipeError:
        status = 0
    except (ValueError, TypeError, OSError, ImportError, MemoryError, *errors) as problem:
        text = "; ".join(line.strip() for line in str(problem).splitlines())
        if isinstance(problem, MemoryError):
            text = f"out of memory; {memory}: {text}"
        text = printable(text, 2000)  # there may be names in it
        print(f"{begin.rank()}{name}: {text}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{begin.rank()}{name}: stopped", file=sys.stderr)
        status = 130
    if not begin.NOTEBOOK:
        sys.exit(status)
    for number, handler in handlers.items():
        signal.signal(number, handler)
