"""Options that only scripts have, and how a script ends; the rest is minimixer/app/options.py."""

import argparse
import contextlib
import errno
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable

from minimixer.app.options import Parser as AnyParser
from minimixer.app.options import attempt
from support import begin
from support.settings import Settings, dashes


class Parser(AnyParser):
    """With the options that only scripts have."""

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


def _share_headers() -> None:
    """CuPy, which reads this as it is imported, then compiles a first run's kernels in two thirds
    of the time: CUDA's headers are read once, and kept in the temporary directory until the end.
    (Where that is full, the compiler dies.)"""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(tempfile.gettempdir()).free > 1 << 28:
            os.environ.setdefault("CUPY_NVRTC_USE_PCH", "1")


def run_script(
    program: Callable[[], int], name: str, memory: str = "a lower --batch-size needs less",
    errors: tuple[type[Exception], ...] = (), for_pipes: bool = False,
) -> None:  # fmt: skip
    """Run a script's main; what the user can mend becomes one sentence and status 2. In a notebook
    (`%run`) the sentence is all. `for_pipes`: what it prints is what it is for, and it ends when
    nobody reads that any more (`| head`)."""
    _share_headers()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    if for_pipes and isinstance(sys.stdout, begin.Stream):
        sys.stdout.heeded += (errno.EPIPE,)
    if signal.getsignal(signal.SIGINT) is begin.stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = attempt(program, name, memory, errors, begin.rank)
    if not begin.NOTEBOOK:
        sys.exit(status)
    for number, handler in handlers.items():
        signal.signal(number, handler)
