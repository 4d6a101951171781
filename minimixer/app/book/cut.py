"""A source, cut into rows: a note and the code that it is about.

Notes are docstrings and the comments that have lines of their own; a comment at the end of a line
stays there. A row begins where its note does, or where the class or function does whose docstring
it is, and ends where the next row begins.
"""

import ast
import io
import re
import tokenize
from typing import NamedTuple

RULER = re.compile(r"^-{4,} *(.*?) *-*$")  # ---- a heading among the comments ----


class Row(NamedTuple):
    """A note, and the code that stands beside it."""

    line: int  # its first
    note: str  # "" for code that nothing is said about
    heading: str
    code: list[int]  # numbers of lines, from 1 on


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def rows(source: str, tree: ast.Module | None) -> list[Row]:
    """The rows of Python, whose tree this is, or of CUDA, which has none."""
    notes = sorted([*docstrings(tree), *comments(source)] if tree else blocks(source, r"\s*// ?"))
    lines = source.split("\n")
    count = len(lines)
    found: list[Row] = []
    if not notes or notes[0][0] > 1:
        notes.insert(0, (1, 1, 0, ""))
    for (start, first, last, note), follows in zip(notes, [*notes[1:], None], strict=True):
        end = follows[0] if follows else count + 1
        while last < count and first > start and not lines[last].strip():
            last += 1  # the blank lines after a docstring
        code = [n for n in range(start, end) if not first <= n <= last]
        heading = ""
        before, _, after = note.partition("\n")
        if ruler := RULER.match(before):
            heading, note = ruler[1], after.strip("\n")
        found.append(Row(start, note, heading, code))
    return found


def docstrings(tree: ast.Module) -> list[tuple[int, int, int, str]]:
    """(where the row begins, first line, last line, text) of each."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | Definition):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        string = node.body[0]
        start = 1
        if not isinstance(node, ast.Module):
            start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        found.append((start, string.lineno, string.end_lineno or string.lineno, text))
    return found


def comments(source: str) -> list[tuple[int, int, int, str]]:
    """The same of each block of comments."""
    own = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        own.add(token.start[0])
    return blocks(source, r"\s*#:? ?", own)


def blocks(
    source: str, mark: str, own: set[int] | None = None
) -> list[tuple[int, int, int, str]]:  # fmt: skip
    """The same of lines that begin with the mark, those in `own` or all: one block as long as they
    follow each other, equally far in."""
    found: list[tuple[int, int, list[str]]] = []
    for line, text in enumerate(source.split("\n"), 1):
        begins = re.match(mark, text) if own is None or line in own else None
        if begins is None:
            continue
        margin = len(text) - len(text.lstrip())
        if found and found[-1][0] + len(found[-1][2]) == line and found[-1][1] == margin:
            found[-1][2].append(text[begins.end() :])
        else:
            found.append((line, margin, [text[begins.end() :]]))
    return [
        (line, line, line + len(texts) - 1, "\n".join(texts).strip("\n"))
        for line, _, texts in found
    ]
