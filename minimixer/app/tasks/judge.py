"""Is a task done? Its test, and whatever a student's code does instead of returning.

    python -m minimixer.app.tasks.judge task05_logsumexp FILE VERDICT

is how grading.py has it run, in a process of its own; the answer goes to the file VERDICT, since
the code may print anything.

>>> from minimixer.app.tasks import judge, sheets
>>> judge.judge("task01_product", lambda: sheets.source("task01_product"))
Verdict(state='passed', said='')
"""

import contextlib
import json
import os
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...training.files import read_file
from . import checking
from .sheets import SOURCES, source

# Bytes that a student's process may take, and write to a file, where the system can be told; and
# those of a student's file.
MEMORY, DISK, MOST = 4 << 30, 64 << 20, 1 << 20


class Verdict(NamedTuple):
    """What became of a task, and a sentence on it."""

    state: str  # "passed", "failed", "open": not written yet
    said: str


def judge(name: str, load: Callable[[], Any]) -> Verdict:
    """Whether load(), a module, passes the test of the task `name`."""
    try:
        module = load()
        with np.errstate(all="ignore"):  # whatever the file has set
            source(name).test(module, checking)
    except NotImplementedError as error:
        return Verdict("open", f"not written yet: {str(error) or 'NotImplementedError'}")
    except AssertionError as error:
        return Verdict("failed", str(error) or f"an assertion fails{_where(error, name)}")
    except SystemExit as error:
        return Verdict("failed", f"it ends with sys.exit{_where(error, name)}: a task's file only "
                       "defines things")  # fmt: skip
    except Exception as error:
        return _raised(error, name)
    return Verdict("passed", "")


def _raised(error: BaseException, name: str) -> Verdict:
    text = str(error)
    kind = f"{type(error).__name__}{_where(error, name)}"
    return Verdict("failed", f"{kind}: {text}" if text else kind)


def _where(error: BaseException, name: str) -> str:
    """In which line of the student's file. (The engine raises errors again, with more in them.)"""
    lines: list[Any] = []
    cause: BaseException | None = error
    while cause is not None:
        for frame in traceback.extract_tb(cause.__traceback__):
            file = Path(frame.filename)
            if file.stem == name and file.parent != SOURCES:
                lines.append(frame.lineno)
        cause = cause.__context__ or cause.__cause__
    return f" in line {lines[-1]}" if lines else ""


def load(path: Path) -> types.ModuleType:
    """The module in a file, which may be a link to one of another name, whatever that does."""
    code = compile(read_file(path, MOST), str(path), "exec", dont_inherit=True)
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    sys.modules[path.stem] = module
    exec(code, module.__dict__)
    return module


def main() -> None:
    name, file, answer = sys.argv[1:]
    _bound()
    sys.path.append(os.path.dirname(os.path.realpath(file)))  # as Python does that runs a file
    try:
        verdict = judge(name, lambda: load(Path(file)))
    except BaseException as error:
        verdict = _raised(error, name)
    Path(answer).write_text(json.dumps([verdict.state, verdict.said[:2000]]), encoding="utf-8")
    os._exit(0)  # whatever the code has left running


def _bound() -> None:
    """Bounds on what the code may take, each where the system can be told."""
    with contextlib.suppress(ImportError):
        import resource  # Unix has it

        for name, most in {"AS": MEMORY, "FSIZE": DISK, "CORE": 0}.items():
            with contextlib.suppress(AttributeError, ValueError, OSError):
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


if __name__ == "__main__":
    main()
