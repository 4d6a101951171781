"""Names from outside, made fit to show: file names, class names, what a damaged file holds.

A file name may hold any byte but two, and a class name any character: an escape sequence that
repaints the terminal, a letter that reverses the line, half a character that no file can store.
What is not plainly visible is written out, as Python would:

>>> print(printable("caf\\u00e9 \\x1b[31m\\n"))
café \\x1b[31m\\n
>>> printable("a" * 30, most=9)
'aaaa…aaaa'
>>> for_picture("5$ or 7$")  # between two dollars matplotlib would see a formula
'5\\\\$ or 7\\\\$'

Next: `files.py`.
"""

import unicodedata
from typing import Any

# Unicode's categories of what can't be seen: control, format (which reverses lines), half
# characters, private use, not assigned, and what ends a line.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(name: Any, most: int = 200) -> str:
    """str(name) on one line, of visible characters alone, at most `most`: what is longer loses its
    middle. Bytes that are no UTF-8 (as Python hands over file names) become \\xNN."""
    text = "".join(map(_visible, str(name)))
    if len(text) <= most:
        return text
    return text[: most // 2] + "…" + text[len(text) - (most - 1) // 2 :]


def for_picture(name: Any, most: int = 24) -> str:
    """The same for a text of matplotlib's, where a dollar begins a formula."""
    return printable(name, most).replace("$", r"\$")


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python writes a byte that it couldn't decode
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
