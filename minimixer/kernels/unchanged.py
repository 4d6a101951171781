"""Is the plain code what the fast forms were compared with? If not, it runs itself.

Whoever edits an operation to see what happens must see it happen. So a fast form stands in for
plain code only while that is

    unedited    The source of each module that it stands for has the digest it had when the tests
                last compared the two (`digests.json`, written by `python -m minimixer.kernels
                --renew`). Helpers and constants count; comments, docstrings, blank lines and line
                ends do not. Looked at once, when forms are chosen.
    unpatched   What the module, and each class in it, calls by which name is what it was when this
                package was imported: the very same objects. Looked at each time, at C's speed: 1 to
                2 us for an operation, 20 for a whole model.

>>> digest("x = 1  # one\\n\\n") == digest("'What it is.'\\r\\nx = 1\\r\\n")
True
>>> digest("x = 1") == digest("x = 2")
False
"""

import functools
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Iterable
from operator import is_, itemgetter
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("digests.json")


def digest(source: str) -> str:
    """Of what a module's source means, on every Python the same."""
    import tokenize  # seldom needed

    lines = source.replace("\r\n", "\n").split("\n")
    tokens = list(tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline))
    begins, dropped = True, []  # of a statement; where comments and docstrings are
    for token, following in itertools.pairwise(tokens):
        alone = token.type == tokenize.STRING and begins and following.type == tokenize.NEWLINE
        if token.type == tokenize.COMMENT or alone:
            dropped.append((token.start, token.end))
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            begins = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for (row, column), (last_row, last_column) in reversed(dropped):
        lines[row - 1 : last_row] = [lines[row - 1][:column] + lines[last_row - 1][last_column:]]
    meant = "\n".join(line.rstrip() for line in lines if line.strip())
    return hashlib.sha256(meant.encode()).hexdigest()[:32]


def state(module: str) -> str:
    """ "as compared" or "edited"; "unchecked" where there is no source."""
    data = _source(module)
    if data is None:
        return "unchecked"
    raw, meant = _known().get(module, ("", ""))
    same = _hash(data) == raw or digest(data.decode("utf-8")) == meant
    return "as compared" if same else "edited"


def renew(modules: Iterable[str]) -> None:
    """Write down what the modules are now."""
    found = {}
    for module in sorted(modules):
        data = _source(module) or b""
        found[module] = _hash(data), digest(data.decode("utf-8"))
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _known.cache_clear()


def _source(module: str) -> bytes | None:
    path = Path(sys.modules[f"minimixer.{module}"].__file__ or "")
    return path.read_bytes() if path.suffix == ".py" and path.is_file() else None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


@functools.cache
def _known() -> dict[str, list[str]]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


# ---- patches ------------------------------------------------------------------------------------

_snapshots: dict[str, list[tuple[Any, Any, tuple]]] = {}


def remember(modules: tuple[str, ...]) -> None:
    """What these modules and their classes hold now is what they are to hold."""
    for name in modules:
        if name in _snapshots:
            continue
        module = sys.modules[f"minimixer.{name}"]
        places: list[Any] = [vars(module)]
        places += [
            vars(value) for value in vars(module).values()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]  # fmt: skip
        _snapshots[name] = []
        for place in places:
            names = [key for key, value in place.items() if _counts(key, value)]
            if len(names) > 1:
                get = itemgetter(*names)
                _snapshots[name].append((place, get, get(place)))


def _counts(name: str, value: Any) -> bool:
    hidden = name.startswith("__") and name not in ("__call__", "__init__", "__add__")
    return not hidden and type(value) is not int  # a counter, mostly


def unpatched(modules: tuple[str, ...]) -> bool:
    """Do the modules, and their classes, hold what they held?"""
    for name in modules:
        for place, get, values in _snapshots[name]:
            try:
                if not all(map(is_, get(place), values)):
                    return False
            except KeyError:  # something was taken away
                return False
    return True
