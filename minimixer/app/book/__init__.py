"""The package as a book to read: pages with notes on the left and code on the right.

    python -m minimixer book --out DIR
    python -m minimixer book --formulas        every formula: its page, how it stands there, LaTeX

Writes a static site, DIR/index.html, to open from disk. It has every module in the order of
reading; where the repository is there, two scripts before them, essays between them, and tasks; and
a page where a reader draws a digit. No request goes anywhere, but that page fetches Python if it is
asked to run in the browser. DIR must be new, empty, or a book that this command wrote.

    order.py     what is in the book, and in which order
    cut.py       a source, cut into notes and code
    names.py     where names are defined
    code.py      code as HTML
    formulas.py  formulas in plain text, read
    finding.py   formulas among words
    setoff.py    formulas in rows, lists in columns
    tasks.py     what the tasks ask, and the pages they rest on
    notes.py     docstrings and comments as HTML
    essays.py    Markdown as HTML
    pages.py     the pages, the index, and the page for drawing
    searched.py  the words that the search looks through
    frame.py     what surrounds them, and the start
"""

import importlib
import time
from collections.abc import Sequence
from pathlib import Path

from ...training.names import printable
from ..folder import check_folder, write_folder
from ..options import Parser
from .pages import Site

PACKAGES = {
    "pygments": "pygments", "markdown_it": "markdown-it-py", "mdit_py_plugins": "mdit-py-plugins",
    "latex2mathml": "latex2mathml",
}  # fmt: skip


def main(words: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = Parser(description=__doc__, prog=prog)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", metavar="DIR", help="where the book goes")
    what.add_argument("--formulas", action="store_true", help="print all formulas, write nothing")
    options = parser.parse_args(words)
    if options.formulas:
        print_formulas()
        return 0
    out = Path(options.out)
    check_folder(out, "book")
    start = time.perf_counter()
    check_packages()
    site = Site()
    files = site.build()
    write_folder(out, "book", files)
    took, size = time.perf_counter() - start, sum(map(len, files.values())) / 1e6
    formulas = len(site.set_off) + len(site.among_words)
    print(
        f"{len(site.pages)} pages, {formulas} formulas, {len(site.set_off)} of them set off, "
        f"{size:.1f} MB, {took:.1f} s"
    )
    if not any(page.kind in ("before", "essay") for page in site.pages):
        print("modules only: scripts, essays and tasks are in the repository")
    print(f"open {printable(out / 'index.html')}")
    return 0


def print_formulas() -> None:
    """One a line; a formula that a page has several times comes once."""
    check_packages()
    site = Site()
    site.build()
    for page, text, latex in dict.fromkeys([*site.set_off, *site.among_words]):
        print(f"{page}: {' '.join(text.split())}" + (f"    {latex}" if latex != text else ""))


def check_packages() -> None:
    """ImportError that names what to install."""
    try:
        for name in PACKAGES:
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"the book needs {', '.join(PACKAGES.values())} ({error}): pip install "
            f"{' '.join(PACKAGES.values())}"
        ) from None
