"""Docstrings and comments as HTML.

A note is prose with names in `backticks`; what stands further in, or in columns, is one of these:

    formulas    lines with a relation in them (formulas.py has the rule)
    a list      two columns: what it is, two spaces or more, and words about it; like this one
    a session   lines that begin with >>>, and what they print
    a drawing   all else: shown as it stands
"""

import html
import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from . import code
from .formulas import NoFormulaError, latex, spans

SIZE = r"(?:[A-Z]\w*|\d+|\.\.\.|in|out|[nm])"
SHAPE = rf"\((?:{SIZE}(?:[*+ ]+{SIZE})*(?:, (?=[^)])|,?(?=\))))+\)"  # such as (S, B, P*P*in)
INLINE = re.compile(
    rf"(`[^`]+`)|({SHAPE})|(?<![\w/`])((?:\w+/)*\w+\.py)\b|(?<![\w/`.])(\w+/)(?=[\s,.;:)])"
)
RELATION = re.compile(r"(?<![<>\[(])(?:<-|\+=|>>|<|(?<!=)=)(?!=)")


class Part(NamedTuple):
    kind: str  # prose, formulas, list, session or drawing
    html: str


class Notes:
    """The notes of one page. `link`: the address of a name, "" if it has none."""

    def __init__(self, link: Callable[[str], str], texts: list[str]):
        self.link = link
        self.typeset = 0  # formulas that were set off
        self.left: list[str] = []  # lines set off, with a relation, that were left as text
        self.letters = "".join(sorted({
            letter for text in texts for part, formula in spans(text) if formula
            for letter in re.findall(r"(?<![A-Za-z_])[A-Za-z](?![A-Za-z])", part)
        } - {"a", "A", "I", "s"}))  # fmt: skip

    def parts(self, note: str) -> list[Part]:
        return [self.part(block) for block in blocks(note)]

    def html(self, note: str) -> str:
        return "\n".join(part.html for part in self.parts(note))

    def part(self, lines: list[str]) -> Part:
        first = lines[0].lstrip()
        if first.startswith(">>>"):
            text = "\n".join(line[len(lines[0]) - len(first) :] for line in lines)
            return Part("session", code.session(text))
        if (inside := self.formulas(lines)) is not None:
            return Part("formulas", inside)
        if (inside := self.columns(lines)) is not None:
            return Part("list", inside)
        if lines[0].startswith("  "):
            self.left += [line for line in lines if RELATION.search(line)]
            return Part("drawing", f'<pre class="drawing">{self.linked(dedent(lines))}</pre>')
        items = re.split(r"\n(?=- )", "\n".join(lines))
        if all(item.startswith("- ") for item in items):
            inside = "".join(f"<li>{self.prose(item[2:])}</li>" for item in items)
            return Part("prose", f"<ul>{inside}</ul>")
        return Part("prose", f"<p>{self.prose(' '.join(line.strip() for line in lines))}</p>")

    # ---- sentences ------------------------------------------------------------------------------

    def prose(self, text: str, letters: str | None = None, bold: bool = False) -> str:
        """A sentence: names linked, shapes and formulas set."""
        letters = self.letters if letters is None else letters
        out, at = [], 0
        for found in INLINE.finditer(text):
            out.append(self._words(text[at : found.start()], letters, bold))
            quoted, shape, file, room = found.groups()
            if shape:
                out.append(f'<span class="shape">{html.escape(shape)}</span>')
            elif quoted or file:
                out.append(self.name(quoted.strip("`") if quoted else file))
            else:
                out.append(self.name(room) if self.link(room) else html.escape(room))
            at = found.end()
        return "".join(out) + self._words(text[at:], letters, bold)

    def name(self, name: str) -> str:
        href, shown = self.link(name), f"<code>{html.escape(name)}</code>"
        return f'<a href="{html.escape(href)}">{shown}</a>' if href else shown

    def linked(self, lines: list[str]) -> str:
        """Text as it stands, the names of files linked."""
        return re.sub(
            r"(?<![\w/])((?:\w+/)*\w+\.py)\b",
            lambda m: f'<a href="{self.link(m[1])}">{m[1]}</a>' if self.link(m[1]) else m[1],
            html.escape("\n".join(lines)),
        )

    @staticmethod
    def _words(text: str, letters: str, bold: bool) -> str:
        return "".join(
            html.escape(part, quote=False) if formula is None else mathml(formula, bold)
            for part, formula in spans(text, letters, bold)
        )

    # ---- what is set off ------------------------------------------------------------------------

    def formulas(self, lines: list[str]) -> str | None:
        """Lines with a relation, each a row; what follows two spaces is a cell of its own, and a
        line further in goes on with the last. None if these lines are something else."""
        if not lines[0].startswith("    ") or any(DRAWN.search(line) for line in lines):
            return None
        rows: list[list[str]] = []
        margin = min(len(line) - len(line.lstrip()) for line in lines)
        for line in lines:
            cells = re.split(
                r"  +(?![=<])", re.sub(r"  +(?=(=|<-)  )|(?<=[=-])  +", " ", line).strip()
            )
            try:
                row = self._row(cells)
            except NoFormulaError:
                if not rows or len(line) - len(line.lstrip()) == margin or RELATION.search(line):
                    return None
                rows[-1][-1] += " " + self.prose(line.strip())
                continue
            rows.append(row)
        self.typeset += len(rows)
        inside = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
        return f'<div class="formulas"><table>{inside}</table></div>'

    def _row(self, cells: list[str]) -> list[str]:
        """Left of the relation, right of it, and what else is in the row."""
        found = next(
            (n for n, c in enumerate(cells) if RELATION.search(c) and self._first(c)[0]), None
        )
        if found is None or found > 1:
            raise NoFormulaError(str(cells))
        before = " ".join(cells[:found])
        formula, rest = self._first(cells[found])
        relation = RELATION.search(formula)
        assert relation
        left, right = formula[: relation.start()].strip(), formula[relation.start() :]
        row = [
            html.escape(before) if before else mathml(latex(left), True) if left else "",
            mathml(latex(formula if before else right), True) + self.prose(rest, bold=True),
        ]
        return row + [self.prose(cell, bold=True) for cell in cells[found + 1 :]]

    @staticmethod
    def _first(cell: str) -> tuple[str, str]:
        """The formula that a cell begins with, and what follows; else "" and ""."""
        words = re.match(r"(.*?)([.,;:]?)$", cell)
        assert words
        for part, formula in (words[1], 1), *list(spans(cell, bold=True))[:1]:
            if formula and RELATION.search(part):
                try:
                    relation = RELATION.search(part)
                    assert relation
                    if part[: relation.start()].strip():
                        latex(part[: relation.start()])
                    latex(part[relation.start() :])
                except NoFormulaError:
                    continue
                return part, cell[len(part) :]
        return "", ""

    def columns(self, lines: list[str]) -> str | None:
        """A list in two columns; None if these lines are something else."""
        margin = len(lines[0]) - len(lines[0].lstrip())
        found = re.match(r"\s*\S.*?\S*  +(?=\S)", lines[0])
        if found is None or (margin == 0 and len(lines) < 2):
            return None
        start = found.end()
        items: list[list[str]] = []
        for line in lines:
            item = line[margin:]
            head, gap, rest = re.match(r"(.*?)(  +|$)(.*)", item).groups()  # type: ignore
            if item.startswith(" "):
                if line[:start].strip() or not items:
                    return None
                items[-1][1] += " " + line.strip()
            elif not gap and margin + len(head) > start and line[start - 1] == " ":
                items.append([line[margin : start - 1].strip(), line[start:]])
            elif not gap:
                return None
            else:
                items.append([head, rest])
        if sum("  " in item[1] for item in items) > len(items) / 3:
            return None
        inside = "".join(
            f"<dt>{self._key(key)}</dt><dd>{self.prose(words)}</dd>" for key, words in items
        )
        return f"<dl>{inside}</dl>"

    def _key(self, key: str) -> str:
        parts = re.split(r"(, |  +| )", key)
        return "".join(p if not p.strip(" ,") else self.name(p) for p in parts)


# Signs of drawings.
DRAWN = re.compile(r"-->|<--|\+-|-\+|\||>>>|\w\.\w+\(|['\"#]\w|\w\(\w+=")


def dedent(lines: list[str]) -> list[str]:
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return [line[margin:] for line in lines]


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
            in_columns = inside and not was and COLUMNS.match(block[0])
            if line.lstrip().startswith(">>>") or (inside != was and not in_columns):
                found.append([])
        found[-1].append(line)
    return [block for block in found if block]


COLUMNS = re.compile(r"\S+(?: \S+)*  +\S")  # what begins a list that is not set off


@cache
def mathml(formula: str, display: bool = False) -> str:
    """MathML of LaTeX; `display`: sums have their index below."""
    from latex2mathml.converter import convert

    made = convert(formula, display="block" if display else "inline")
    made = made.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    made = made.replace("<mo>&#x0002F;</mo>", '<mo lspace="0" rspace="0">/</mo>')
    return made.replace('<math display="block">', '<math displaystyle="true">').replace(
        '<math display="inline">', "<math>"
    )
