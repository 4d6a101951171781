"""Names from outside, made fit to show: file names, class names, what a damaged file holds.

A file name may hold any byte but two, and a class name any character: an escape sequence that
repaints the terminal, a letter that reverses the line, half a character that no file can store.
What is not plainly visible is written out, as Python would:

>>> from minimixer.training.names import command, distinct, escaped, for_picture, printable
>>> print(printable("caf\\u00e9 \\x1b[31m\\n"))
café \\x1b[31m\\n
>>> printable("a" * 30, most=9)
'aaaa…aaaa'
>>> for_picture("5$ or 7$")  # between two dollars matplotlib would see a formula
'5\\\\$ or 7\\\\$'

Shortened, two names may look the same; of several that stand side by side these get their numbers:

>>> distinct(["pine tree, young", "oak", "pine trees, young"], most=9)
['pine…oung [0]', 'oak', 'pine…oung [2]']

A table that is to be read again keeps all of a name, and Python's own codec reads it back:

>>> escaped("caf\\u00e9\\n")
'café\\\\n'
>>> escaped("caf\\u00e9\\n").encode("latin-1", "backslashreplace").decode("unicode_escape")
'café\\n'

A command to be pasted into a shell is not shortened, and means the same there (in bash and zsh):

>>> print(command(["rm", "two words", "\\x1b[31m"]))
rm 'two words' $'\\x1b[31m'
"""

import contextlib
import functools
import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# Letters and marks to Unicode, but nothing to the eye; the first of each range, and the last.
_BLANK = (0x34F, 0x34F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2800, 0x2800), \
         (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xE0100, 0xE01EF)  # fmt: skip
_FIRST_BLANK = chr(_BLANK[0][0])
_MOST_MARKS = 4  # on one letter; Hebrew has as many, and with fifty a name covers other lines


def printable(name: Any, most: int = 200) -> str:
    """str(name) on one line, of visible characters alone, at most `most`: what is longer loses its
    middle. Bytes that are no UTF-8 (as Python hands over file names) become \\xNN, as do spaces at
    either end; of nothing two quotes remain."""
    name = str(name)
    if len(name) > 2 * most:  # enough for all that is shown
        name = name[:most] + "…" + name[len(name) - most :]
    usual = name.isascii() and name.isprintable()  # as nearly all are
    text = list(name) if usual else list(_visible(name))
    for place in (0, -1):
        if text and text[place] == " ":
            text[place] = "\\x20"
    shown = "".join(text) or "''"
    if len(shown) <= most:
        return shown
    return shown[: most // 2] + "…" + shown[len(shown) - (most - 1) // 2 :]


def _visible(name: str) -> Iterator[str]:
    marks = _MOST_MARKS  # a mark without a letter before it would sit on something else
    for character in name:
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        hidden = marks > _MOST_MARKS or _is_hidden(character)
        yield _written(character) if hidden else character


def distinct(names: Iterable[Any], most: int = 200) -> list[str]:
    """Each as `printable` makes it; where that makes two of them equal, with their positions."""
    shown = [printable(name, most) for name in names]
    counts = Counter(shown)
    marked = [f"{name} [{k}]" if counts[name] > 1 else name for k, name in enumerate(shown)]
    if len(set(marked)) < len(marked):  # one of them was called so
        marked = [f"{name} [{k}]" for k, name in enumerate(shown)]
    return marked


def some(names: Sequence[Any], most: int = 3) -> str:
    """The first `most` of them, and how many more there are."""
    shown = ", ".join(printable(name, 80) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def for_picture(name: Any, most: int = 24) -> str:
    """The same as `printable` for a text of matplotlib's: a dollar would begin a formula, and of
    letters that its fonts lack, all of them empty boxes, the numbers are written."""
    known = _letters()
    text = "".join(
        c if not known or ord(c) in known else _written(c) for c in printable(name, most)
    )
    return printable(text, most).replace("$", r"\$")


@functools.cache
def _letters() -> frozenset[int]:
    """Of the fonts that matplotlib writes with; none without matplotlib."""
    try:
        from matplotlib import font_manager, rcParams
    except ImportError:
        return frozenset()
    found: set[int] = set()
    for family in rcParams["font.sans-serif"]:
        with contextlib.suppress(ValueError):  # not installed
            path = font_manager.findfont(
                font_manager.FontProperties(family=family), fallback_to_default=False
            )
            found.update(font_manager.get_font(path).get_charmap())
    return frozenset(found)


def escaped(name: Any) -> str:
    """All of the name, on one line that can be stored as UTF-8: as `printable`, but backslashes are
    doubled, and bytes that are no UTF-8 become \\udcNN, so that no two names come out equal."""
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character == "\\" or _is_hidden(character) else character
        for character in str(name)
    )  # fmt: skip


def command(words: Iterable[str]) -> str:
    """One line of visible characters that a shell takes for these words."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if not any(map(_is_hidden, word)):
        return shlex.quote(word)
    return "$'" + "".join(
        "".join(f"\\x{byte:02x}" for byte in os.fsencode(character)) if _is_hidden(character)
        else re.sub(r"[\\']", r"\\\g<0>", character)
        for character in word
    ) + "'"  # fmt: skip


def _is_hidden(character: str) -> bool:
    if not character.isprintable():
        return True
    return character >= _FIRST_BLANK and any(a <= ord(character) <= b for a, b in _BLANK)


def _written(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python writes a byte that it couldn't decode
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
