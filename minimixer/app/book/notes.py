"""Docstrings and comments as HTML.

A note is prose with names in `backticks`; what stands further in, or in columns, is one of these:

    formulas    lines with a relation in them (formulas.py has the rule, setoff.py the rows)
    a list      two columns: what it is, two spaces or more, and words about it; like this one
    a table     more columns, which begin at the same places in each line
    a session   lines that begin with >>>, and what they print
    a drawing   all else: shown as it stands; but sentences are sentences further in, too
"""

import html
import re
import textwrap
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from . import code
from .finding import spans
from .formulas import NoFormulaError, latex, mathml
from .setoff import RELATION, formula_rows, formulas_html, in_columns, indent, list_items, table

WORD = r"(?:[A-Za-z]\w*|\d+|\.\.\.)"
SIZE = rf"{WORD}(?:(?:[*/]| [-+*/] | (?=[A-Z]\b)){WORD})*"  # such as H/P, P*P*in, P P C, N + 1
SHAPE = rf"\({SIZE}(?:(?:, {SIZE})+|,)\)"
INLINE = re.compile(
    rf"(?P<code>`[^`]+`)|(?<!\w)(?P<shape>{SHAPE})"
    r"|(?<![\w/`])(?P<file>(?:\w+/)*\w+\.(?:py|cu))\b"
    r"|(?<![\w/])(?P<elsewhere>docs/\w+\.md)\b"
    r"|(?<![\w/`.])(?P<room>(?:\w+/)+)(?=[\s,.;:)])|\b(?P<task>Task \d+)(?=[.,])"
)


OUTSIDE = " (in the repository)"  # behind the name of what is not in the book


class Part(NamedTuple):
    """A piece of a note, as HTML."""

    kind: str  # prose, formulas, list, session or drawing
    html: str


class Notes:
    """The notes of one page. `link`: the address of a name, "" if it has none."""

    def __init__(self, link: Callable[[str], str]):
        self.link = link
        self.set_off: list[tuple[str, str]] = []  # formulas: as the source has them, as LaTeX
        self.among_words: list[tuple[str, str]] = []
        self.left: list[str] = []  # lines set off, with a relation, that were left as text

    def parts(self, note: str) -> list[Part]:
        return [self.part(block) for block in blocks(note)]

    def part(self, lines: list[str]) -> Part:
        margin = indent(lines[0])
        if lines[0][margin:].startswith(">>>"):
            return Part("session", code.session("\n".join(line[margin:] for line in lines)))
        found: list[str] = []
        if rows := formula_rows(lines, lambda text: self.prose(text, set_off=True), found):
            self.set_off += [(formula, latex(formula)) for formula in found]
            return Part("formulas", formulas_html(rows))
        if pairs := list_items(lines):
            self.left += [name for name, _ in pairs if RELATION.search(name)]
            rest = "".join(f"<dt>{self._key(k)}</dt><dd>{self.prose(v)}</dd>" for k, v in pairs)
            return Part("list", f"<dl>{rest}</dl>")
        if margin and _is_prose(lines):
            return Part(
                "prose", f'<p class="inset">{self.prose(" ".join(map(str.strip, lines)))}</p>'
            )
        if margin:
            self.left += [line for line in lines if RELATION.search(line)]
            shown = textwrap.dedent("\n".join(lines))
            return Part("drawing", f'<pre class="drawing">{self.linked(shown)}</pre>')
        items = re.split(r"\n(?=- )", "\n".join(lines))
        if all(item.startswith("- ") for item in items):
            inside = "".join(f"<li>{self.prose(item[2:])}</li>" for item in items)
            return Part("prose", f"<ul>{inside}</ul>")
        if cells := table(lines):
            inside = "".join(f"<tr>{''.join(f'<td>{self.prose(c)}</td>' for c in row)}</tr>"
                             for row in cells)  # fmt: skip
            return Part("prose", f'<div class="table"><table>{inside}</table></div>')
        if all("  " in line for line in lines):  # lines that stand below each other
            return Part("prose", f"<p>{'<br>'.join(map(self.prose, lines))}</p>")
        return Part("prose", f"<p>{self.prose(' '.join(line.strip() for line in lines))}</p>")

    def _key(self, key: str) -> str:
        parts = re.split(r"(, |  +| )", key)
        return "".join(p if not p.strip(" ,") else self.name(p) for p in parts)

    # ---- sentences ------------------------------------------------------------------------------

    def prose(self, text: str, set_off: bool = False) -> str:
        """A sentence: names linked, shapes and formulas set."""
        out, at = [], 0
        for found in INLINE.finditer(text):
            out.append(self._words(text[at : found.start()], set_off))
            kind, shown = str(found.lastgroup), found[0]
            if kind == "shape":
                mark = re.match(r"[.,;:)']+(?=\s|$)", text[found.end() :])
                out.append(self._shape(shown, mark[0] if mark else ""))
                at = found.end() + (mark.end() if mark else 0)
                continue
            elif kind in ("code", "file"):
                out.append(self.name(shown.strip("`")))
            elif kind == "elsewhere":
                out.append(self.name(shown) + ("" if self.link(shown) else OUTSIDE))
            elif kind == "task" and self.link(shown):
                out.append(f'<a href="{self.link(shown)}">{shown}</a>')
            else:
                out.append(self.name(shown) if self.link(shown) else html.escape(shown))
            at = found.end()
        return "".join(out) + self._words(text[at:], set_off)

    def _shape(self, shape: str, mark: str) -> str:
        """With the letters of formulas, if it has any; a comma after it stays with it."""
        shown = html.escape(shape)
        if re.search(r"\b[A-Za-z]\b|[A-Z]_", shape):
            with suppress(NoFormulaError):
                shown = mathml(latex(shape, fractions=False))
                self.among_words.append((shape, latex(shape, fractions=False)))
        return f'<span class="shape whole">{shown}{html.escape(mark)}</span>'

    def name(self, name: str) -> str:
        href, shown = self.link(name), f"<code>{html.escape(name)}</code>"
        return f'<a href="{html.escape(href)}">{shown}</a>' if href else shown

    def linked(self, text: str) -> str:
        """Text as it stands, the names of files linked."""
        return re.sub(
            r"(?<![\w/])((?:\w+/)*\w+\.(?:py|cu))\b",
            lambda m: f'<a href="{self.link(m[1])}">{m[1]}</a>' if self.link(m[1]) else m[1],
            html.escape(text),
        )

    def _words(self, text: str, set_off: bool) -> str:
        out: list[str] = []
        for part, formula in spans(text, set_off):
            if formula is not None:
                self.among_words.append((part, formula))
                before = re.search(r"[^\s;]+$", out[-1]) if out and "<" not in out[-1] else None
                if before:  # a bracket stays with its formula, whatever the width
                    out[-1] = out[-1][: before.start()]
                    out.append(f'<span class="whole">{before[0]}{mathml(formula, set_off)}</span>')
                else:
                    out.append(mathml(formula, set_off))
                continue
            mark = re.match(r"[.,;:)']\S*", part) if out else None
            if mark:  # and so does a comma
                out[-1] = f'<span class="whole">{out[-1]}{html.escape(mark[0])}</span>'
                part = part[mark.end() :]
            out.append(html.escape(part.replace(" -> ", " → "), quote=False))
        return "".join(out)


def _is_prose(lines: list[str]) -> bool:
    """Are they sentences, further in? All equally far, without gaps, to a full stop."""
    gaps = any("  " in line.strip() for line in lines) or len(set(map(indent, lines))) > 1
    return len(lines) > 1 and not gaps and bool(re.search(r"[\w)]\.$", lines[-1]))


def blocks(note: str) -> list[list[str]]:
    """Runs of lines: a blank line ends one, and so does a change between prose and what stands four
    spaces further in, or where a session begins."""
    found: list[list[str]] = [[]]
    for line in note.splitlines():
        block = found[-1]
        if not line.strip():
            found.append([])
            continue
        if block and not block[0].lstrip().startswith(">>>"):
            inside, was = line.startswith("    "), block[0].startswith("    ")
            goes_on = inside and not was and in_columns(block[0])
            ends = not inside and not was and len(block) > 1 and list_items(block)
            if (
                line.lstrip().startswith(">>>")
                or (inside != was and not goes_on)
                or (ends and not list_items([*block, line]))  # prose that follows a list
            ):
                found.append([])
        found[-1].append(line)
    return _joined([block for block in found if block])


def _joined(found: list[list[str]]) -> list[list[str]]:
    """Blocks; a sentence that goes on after a blank line, as one behind a formula does, is one."""
    out: list[list[str]] = []
    for block in found:
        both = [out[-1][-1], block[0]] if out else [" ", " "]
        if both[0].endswith(",") and not any(line.startswith((" ", ">>>")) for line in both):
            out[-1] += block
        else:
            out.append(block)
    return out
