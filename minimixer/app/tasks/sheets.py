"""From a source to a student's file: the solutions are cut out.

A source, in _solved/, is a Python file that is complete: docstring, solution, hints and test, so
that hole and solution can't drift apart. In a student's file each region

    # solution: write backward, which returns dx
    ...
    # end of solution

is one line that raises NotImplementedError with that sentence; hints and test stay behind.

>>> from minimixer.app.tasks.sheets import TASKS, sheet
>>> len(TASKS), TASKS[0].title, TASKS[0].minutes
(10, 'the gradient of a product', 5)
>>> "dy * b * c" in sheet(TASKS[0])
False
"""

import ast
import importlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from ...training.files import read_file, replace_file

SOURCES = Path(__file__).parent / "_solved"
REST = "# ---- what follows stays in minimixer"
REGION = re.compile(r"^( *)# solution: (.+)\n(?:.*\n)*?\1# end of solution\n", re.MULTILINE)
HOW = """
Is it right?  python {file}
Three hints:  python {file} hint 1
"""
START = """

if __name__ == "__main__":
    from minimixer.app.tasks import try_out

    try_out(__file__)
"""


class Task(NamedTuple):
    """One of the ten, as its source's first line has it."""

    number: int
    name: str  # task05_logsumexp
    title: str
    minutes: int

    @property
    def file(self) -> str:
        return f"{self.name}.py"

    @property
    def short(self) -> str:
        return self.name.partition("_")[2]


def _task(path: Path) -> Task:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    found = re.match(r"Task (\d+): (.+)\. About (\d+) minutes\.\n", text)
    assert found, f"{path} does not begin with its number, title and minutes"
    return Task(int(found[1]), path.stem, found[2], int(found[3]))


TASKS = [_task(path) for path in sorted(SOURCES.glob("task??_*.py"))]


def source(name: str) -> Any:
    """The module that a student's file is made from, with `test` and `HINTS`."""
    return importlib.import_module(f"._solved.{name}", __package__)


def sheet(task: Task) -> str:
    """The student's version of a task."""
    text = REGION.sub(r'\1raise NotImplementedError("\2")  # your code\n', solved(task))
    docstring, end, code = text.partition('"""\n\n')
    return docstring + HOW.format(file=task.file) + end + code + START


def solved(task: Task) -> str:
    """The same with the solution in it."""
    text = (SOURCES / task.file).read_text(encoding="utf-8")
    return text.partition(REST)[0].rstrip() + "\n"


def write(folder: Path) -> tuple[list[str], list[str]]:
    """The student's files, in `folder`, each whole or not at all: names of those written, and of
    those kept because they are there and differ. OSError if they can't be written."""
    folder.mkdir(parents=True, exist_ok=True)
    written, kept = [], []
    for task in TASKS:
        file, data = folder / task.file, sheet(task).encode()
        if not os.path.lexists(file):  # never over what is there, nor through a link
            with replace_file(file) as new:
                new.write(data)
            written.append(task.file)
        elif not _holds(file, data):
            kept.append(task.file)
    return written, kept


def _holds(file: Path, data: bytes) -> bool:
    try:
        return read_file(file, len(data)) == data
    except (OSError, ValueError):  # a folder, a pipe, a file that is longer or may not be read
        return False
