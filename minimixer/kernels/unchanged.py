"""Is the plain code what the fast forms were compared with? If not, it runs itself.

Whoever edits an operation to see what happens must see it happen. So a fast form stands in for
plain code only while that is

    unedited    The source of each module that it stands for has the digest it had when the tests
                last compared the two (`digests.json`, written by `python -m minimixer.kernels
                --renew`). Helpers and constants count; comments, docstrings, blank lines and line
                ends do not. Looked at once, at the first use.
    unpatched   What the module, and each class and table in it, calls by which name is what it was
                when this package was imported, and nothing was added. Looked at each time, at C's
                speed: about 1 us for an operation, 10 for a whole model.

>>> from minimixer.kernels.unchanged import digest
>>> digest("x = 1  # one\\n\\n") == digest("'What it is.'\\nx = 1\\n")
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
from importlib.util import decode_source  # which knows of encodings and line ends
from operator import itemgetter
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("digests.json")
PACKAGE = __name__.removesuffix("kernels.unchanged")  # "minimixer.", or what a copy is called


@functools.cache
def digest(source: str) -> str:
    """Of what a module's source means, on every Python the same."""
    import tokenize  # seldom needed

    # From Python 3.12 on the literal parts of an f-string are tokens of their own.
    strings = tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)
    lines = source.split("\n")
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    dropped = [(token.start, token.end) for token in tokens if token.type == tokenize.COMMENT]
    tokens = [token for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]
    begins = True  # a statement
    within: set[int] = set()  # the rows that end in the middle of a string, where blanks count
    for token, following in itertools.pairwise(tokens):
        alone = token.type == tokenize.STRING and begins and following.type == tokenize.NEWLINE
        if alone and token.string[0] not in "bBfF":  # a docstring
            dropped.append((token.start, token.end))
        begins = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if token.type in strings:
            within.update(range(token.start[0] - 1, token.end[0] - 1))
    for (row, column), (last_row, last_column) in sorted(dropped, reverse=True):
        lines[row - 1] = lines[row - 1][:column] + lines[last_row - 1][last_column:]
        for empty in range(row, last_row):
            lines[empty] = ""
        within.difference_update(range(row - 1, last_row))
    kept = [line if i in within else line.rstrip() for i, line in enumerate(lines)]
    meant = "\n".join(line for i, line in enumerate(kept) if line or i in within)
    return _hash(meant.encode())


@functools.cache
def state(module: str) -> str:
    """ "as compared" or "edited", which may be gone; "unchecked" where there is no source."""
    if module not in known() or PACKAGE + module not in sys.modules:
        return "edited"
    data = _source(module)
    if data is None:
        return "unchecked"
    raw, meant = known()[module]
    same = _hash(data) == raw or digest(decode_source(data)) == meant
    return "as compared" if same else "edited"


def renew(modules: Iterable[str]) -> None:
    """Write down what the modules are now."""
    found = {}
    for module in sorted(modules):
        data = _source(module) or b""
        found[module] = _hash(data), digest(decode_source(data))
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    known.cache_clear()
    state.cache_clear()


def _source(module: str) -> bytes | None:
    path = sys.modules[PACKAGE + module].__file__ or ""
    return _read(path) if path.endswith(".py") else None


def _read(path: str) -> bytes | None:
    """A file of the package, which may lie in an archive; None if it is not there."""
    try:
        return __spec__.loader.get_data(path)  # type: ignore[union-attr]
    except OSError:
        return None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


@functools.cache
def known() -> dict[str, list[str]]:
    """The modules that fast forms stand for, and the digests of each: of its bytes, its meaning.
    Empty if they can't be read, as in a merge: the plain code runs until they are renewed.
    """
    try:
        return json.loads(_read(str(FILE)) or b"{}")
    except ValueError:
        return {}


# ---- patches ------------------------------------------------------------------------------------

_held: dict[str, list[tuple[Any, dict[str, Any]]]] = {}  # by module: places, and what they held


def remember(modules: Iterable[str]) -> None:
    """What these modules, their classes and their tables hold now is what they are to hold. They
    are named from the package on; those of others by their whole name."""
    for name in modules:
        module = sys.modules.get(PACKAGE + name) or sys.modules.get(name)
        if module is None or name in _held:  # it has another name now; or kernels/ was reloaded
            continue
        places: list[Any] = [vars(module)]
        for key, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module.__name__:
                places.append(vars(value))
            elif type(value) is dict and _counts(key, value):
                places.append(value)
        _held[name] = [(place, dict(place)) for place in places if place]


def _names(place: Any) -> list[str]:
    return [name for name, value in place.items() if _counts(name, value)]


def _counts(name: str, value: Any) -> bool:
    """Not a counter, nor what Python itself writes down about a module or a class."""
    return name != "changes" and (not name.startswith("__") or callable(value))


def watched(modules: Iterable[str]) -> list[tuple[Any, Any, tuple[Any, ...], int, int]]:
    """What `unpatched` looks at for these modules."""
    found = []
    for place, held in (pair for module in modules for pair in _held.get(module, ())):
        names = _names(held)
        get = itemgetter(*[next(iter(held))] * 2, *names)  # of one name it would make no tuple
        found.append((place, get, get(held), len(held), len(names)))
    return found


def unpatched(places: list[tuple[Any, Any, tuple[Any, ...], int, int]]) -> bool:
    """Do these modules, classes and tables hold what they held, and no more?"""
    for place, get, values, size, counted in places:
        try:
            if get(place) != values:  # objects that are the same are not asked
                return False
        except (KeyError, ValueError):  # something was taken away, or is an array now
            return False
        if len(place) != size and len(_names(place)) != counted:
            return False
    return True
