"""What `python -m minimixer` does: the commands of an installed package, a file each.

    info.py     what is here, what runs, what is missing
    predict.py  what a Mixer sees in pictures
    book/       the package as pages to read
    tasks/      ten tasks: written for students, graded
    draw/       a page where one draws a digit and watches every layer
    options.py  options as commands and scripts read them, and what becomes of an error
    model.py    the model that options name
    folder.py   a folder that a command writes

A command is one entry in COMMANDS, and a module with `main(words, prog)`: `words` are those after
the command's name, `prog` is what its help calls it, and what it returns is the exit status. Its
module is imported when it is asked for; so that each command runs without the rooms that it does
not need, it imports those of the machinery inside functions.
"""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO


class Command(NamedTuple):
    """What may stand after `python -m minimixer`."""

    name: str
    help: str
    module: str  # in this room


COMMANDS = [
    Command("info", "what is installed here, what runs, and what is missing", "info"),
    Command("predict", "what a Mixer sees in pictures of your own", "predict"),
    Command("book", "the package as pages to read, notes beside code", "book"),
    Command("tasks", "ten tasks with a hole to fill in each, and what grades them", "tasks"),
    Command("draw", "draw a digit in your browser, and watch every layer", "draw"),
]
# What may be asked for here, but is a script of the repository.
SCRIPTS = {"train": "train_mnist", **{name: name for name in (
    "ablations", "benchmark", "compare", "evaluate", "finetune", "transfer")}}  # fmt: skip
PROGRAM = "python -m minimixer"


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; the exit status, 2 if there is none of that name."""
    name, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files
    from .options import attempt

    try:
        return attempt(lambda: _run(name, rest), name if name in _names() else "minimixer")
    finally:
        for stream in sys.stdout, sys.stderr:
            _give_up(stream)


def _run(name: str, rest: list[str]) -> int:
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in _names():
        raise ValueError(unknown(name))
    module = COMMANDS[_names().index(name)].module
    return importlib.import_module(f".{module}", __name__).main(rest, f"{PROGRAM} {name}")


def _names() -> list[str]:
    return [command.name for command in COMMANDS]


def usage() -> str:
    """The help: all commands, a line each."""
    width = max(len(name) for name in _names())
    lines = [f"  {command.name:{width}}  {command.help}" for command in COMMANDS]
    return "\n".join([f"usage: {PROGRAM} COMMAND ...", "", *lines, "",
                      f"{PROGRAM} COMMAND --help says more."])  # fmt: skip


def unknown(name: str) -> str:
    """What to do instead of a command that does not exist."""
    script = SCRIPTS.get(name)
    if script is None:
        return f"there is no command {name!r:.60}; there are: {', '.join(_names())} (see --help)"
    path = Path(__file__).parents[2] / "examples" / f"{script}.py"
    if path.is_file():
        return f"{name} is a script of the repository: python {path}"
    return (f"{name} is a script, examples/{script}.py in minimixer's repository, and is not "
            "installed with the package")  # fmt: skip


def _give_up(stream: TextIO | None) -> None:
    """What nobody reads any more goes nowhere, without a word when Python ends."""
    if stream is not None:  # it is None where it was closed (`>&-`)
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
