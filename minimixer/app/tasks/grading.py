"""Grading: a line for each student, whose code runs in processes of its own.

Code of students may loop for ever, end the process, crash, print, or import what is not there. None
of that reaches this process: each task of each student has one of its own, with a time limit, no
input, and nowhere to print. It is no sandbox: the code may do all that whoever runs it may do.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...training.files import open_file, parse_json, read_file
from ...training.names import distinct, printable
from .judge import MOST, Verdict
from .sheets import Task

PACKAGE = Path(__file__).parents[2]
# A shell between this process and the code, which may end its parent, or the group of its session.
PARENT = ["/bin/sh", "-c", '"$@"; exit $?', "sh"] if os.name == "posix" else []


def verdict_on(task: Task, folder: Path, limit: float) -> Verdict:
    """What becomes of a student's file for one task, within `limit` seconds."""
    file = Path(os.path.abspath(folder), task.file)
    try:
        open_file(file, MOST).close()
    except FileNotFoundError:
        return Verdict("open", f"there is no {task.file}")
    except (OSError, ValueError) as error:  # no permission, a pipe, a link that leads to itself
        return Verdict("failed", f"{task.file} can't be read ({error})")
    try:
        return _judged(task, file, limit)
    except OSError as error:  # a disk is full, or there are too many processes
        return Verdict("failed", f"{task.file} can't be tested here ({error})")


def _judged(task: Task, file: Path, limit: float) -> Verdict:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        answer = Path(scratch, "verdict")
        process = subprocess.Popen(
            [*PARENT, sys.executable, "-m", f"{__package__}.judge", task.name, file, answer],
            cwd=scratch, env=_environment(), start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return Verdict("failed", f"it took longer than {limit:g} s: does a loop never end?")
        finally:
            _end(process)
        return _read(answer, status)


def _environment() -> dict[str, str]:
    """That of a process that imports this very package, and leaves nothing in students' folders."""
    paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip


def _end(process: Any) -> None:
    """The process, and those that it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _read(answer: Path, status: int) -> Verdict:
    try:
        state, said = parse_json(read_file(answer, 20_000))
        if state in ("passed", "failed", "open"):
            return Verdict(state, str(said))
    except (OSError, ValueError, TypeError):
        pass
    number = -status if status < 0 else status - 128  # as shells tell of it
    ending = f"crashed (signal {number})" if number > 0 else f"ended (exit status {status})"
    return Verdict("failed", f"its process {ending} before the test did")


# ---- the table ----------------------------------------------------------------------------------


def grade(folders: Sequence[str], tasks: Sequence[Task], limit: float, verbose: bool) -> None:
    """Print one line for each folder, as soon as it is known."""
    names = distinct([os.path.basename(os.path.realpath(folder)) for folder in folders], 40)
    if len(set(names)) < len(names):
        names = distinct(folders, 60)
    width = max(map(len, [*names, "student"]))
    most = str(len(tasks))
    print(f"{'student':{width}}  passed  failed              not written")
    for folder, name in zip(folders, names, strict=True):
        if not os.path.isdir(folder):  # which no name is an error for
            print(f"{name:{width}}  there is no such folder", flush=True)
            continue
        found = {task: verdict_on(task, Path(folder), limit) for task in tasks}
        numbers = {
            state: " ".join(str(t.number) for t, v in found.items() if v.state == state) or "-"
            for state in ("failed", "open")
        }
        passed = sum(v.state == "passed" for v in found.values())
        share = f"{passed:>{len(most)}}/{most}"
        print(f"{name:{width}}  {share:6}  {numbers['failed']:18}  {numbers['open']}", flush=True)
        for task, verdict in found.items() if verbose else ():
            said = printable(verdict.said or "passed", 500)
            print(f"    {task.number:2} {task.short}: {said}", flush=True)
