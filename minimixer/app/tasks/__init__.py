"""Ten tasks that go with the book: a hole to fill in each, a test, three hints.

    python -m minimixer tasks                            what they are
    python -m minimixer tasks --out my_tasks             write them: ten files, each with a hole
    cd my_tasks && python task01_product.py              is it right? if not, what is wrong
    python task01_product.py hint 1                      a hint; 2 and 3 say more
    python -m minimixer tasks --grade class/*            a line for each student's folder
    python -m minimixer tasks --grade ana --verbose      and what each test says
    python -m minimixer tasks --grade ana --task 5       one task alone, with what its test says

--out keeps every file that is there already. --grade RUNS the students' code, with all that you may
do yourself: each task in a process of its own, with a time limit, but in no sandbox. So run it for
people whom you trust, or where nothing can be lost. Its exit status is 0 whatever the grades are.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..options import Parser, positive


def main(words: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = Parser(description=__doc__, prog=prog)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--out", metavar="DIR", help="write the tasks into this folder")
    what.add_argument("--grade", metavar="DIR", nargs="+",
                      help="run what is in these folders, one a student")  # fmt: skip
    parser.add_argument("--task", metavar="TASK", help="with --grade: its number or name")
    parser.add_argument("--verbose", action="store_true", help="what each test says")
    parser.add_argument("--limit", metavar="SECONDS", type=positive, default=20,
                        help="for each task of each student (default: 20)")  # fmt: skip
    options = parser.parse_args(words)
    if options.task and not options.grade:
        parser.error("--task goes with --grade")
    if "" in (options.out, *(options.grade or ())):
        parser.error(f"--{'out' if options.out == '' else 'grade'} needs the name of a folder")
    if options.grade:
        _grade(options)
    elif options.out:
        _write(Path(options.out))
    else:
        _list()
    return 0


def _list() -> None:
    from .sheets import TASKS

    for task in TASKS:
        print(f"{task.number:2}  {task.title:50}  {task.minutes:2} minutes  {task.file}")
    print("\npython -m minimixer tasks --out DIR writes them; --help says more.")


def _write(folder: Path) -> None:
    from ...training.names import printable
    from .sheets import TASKS, write

    written, kept = write(folder)
    print(f"{printable(folder, 4096)}: {len(written)} of {len(TASKS)} tasks written")
    if kept:
        print(f"kept, as they are there and differ from what would be written: {', '.join(kept)}")
    if written:
        print(f"begin with {written[0]}: what to do stands in it; python {written[0]} tests it")


def _grade(options: argparse.Namespace) -> None:
    from .grading import grade
    from .sheets import TASKS

    chosen = TASKS
    if options.task:
        chosen = [t for t in TASKS if options.task in (str(t.number), t.short, t.name, t.file)]
        if not chosen:
            names = ", ".join(f"{t.number} {t.short}" for t in TASKS)
            raise ValueError(f"there is no task {options.task!r:.60}; there are: {names}")
    grade(options.grade, chosen, options.limit, bool(options.verbose or options.task))


def try_out(file: str) -> None:
    """What a student's file does when it is run: its test, or, after the words "hint 1", a hint."""
    from .judge import judge
    from .sheets import TASKS

    name, words = Path(file).stem, sys.argv[1:]
    found = [task for task in TASKS if task.name == name]
    if not found:
        sys.exit(f"{Path(file).name}: there is no task of this name; it must be named as written")
    if words:
        sys.exit(_hint(name, words))
    verdict = judge(name, lambda: sys.modules["__main__"])
    if verdict.state != "passed":
        sys.exit(f"{name}: {verdict.said}")
    following = TASKS[found[0].number :][:1]
    _say(f"{name}: right." + "".join(f" Next: {task.file}" for task in following))


def _hint(name: str, words: list[str]) -> str | None:
    from .sheets import source

    if len(words) != 2 or words[0] != "hint" or words[1] not in ("1", "2", "3"):
        return f"{name}: after the file's name comes nothing, or hint 1, hint 2 or hint 3"
    _say(source(name).HINTS[int(words[1]) - 1])
    return None


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # nobody reads it (`hint 1 | true`): no error, now or as Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
