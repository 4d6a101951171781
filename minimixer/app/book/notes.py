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

SIZE = r"(?:[A-Za-z]\w*|\d+|\.\.\.)"
SHAPE = rf"\({SIZE}(?:\*{SIZE})*(?:(?:, {SIZE}(?:\*{SIZE})*)+|,)\)"  # such as (S, B, P*P*in)
INLINE = re.compile(
    rf"(?P<code>`[^`]+`)|(?<!\w)(?P<shape>{SHAPE})"
    r"|(?<![\w/`])(?P<file>(?:\w+/)*\w+\.(?:py|cu))\b"
    r"|(?<![\w/`.])(?P<room>(?:\w+/)+)(?=[\s,.;:)])|\b(?P<task>Task \d+)(?=\.)"
)
RELATION = re.compile(r"(?<![<>\[(])(?:<-|\+=|>>|<|(?<!=)=)(?![=-])")


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
            for letter in re.findall(r"(?<![A-Za-z_])d?([A-Za-z])(?![A-Za-z])", part)
        } - {"a", "A", "I"}))  # fmt: skip

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
        between = "<br>" if all("  " in line for line in lines) else " "
        if between == " ":
            lines = [" ".join(line.strip() for line in lines)]
        return Part("prose", f"<p>{between.join(map(self.prose, lines))}</p>")

    # ---- sentences ------------------------------------------------------------------------------

    def prose(self, text: str, letters: str | None = None, bold: bool = False) -> str:
        """A sentence: names linked, shapes and formulas set."""
        letters = self.letters if letters is None else letters
        out, at = [], 0
        for found in INLINE.finditer(text):
            out.append(self._words(text[at : found.start()], letters, bold))
            kind, shown = str(found.lastgroup), found[0]
            if kind == "shape":
                out.append(f'<span class="shape">{html.escape(shown)}</span>')
            elif kind in ("code", "file"):
                out.append(self.name(shown.strip("`")))
            else:
                out.append(self.name(shown) if self.link(shown) else html.escape(shown))
            at = found.end()
        return "".join(out) + self._words(text[at:], letters, bold)

    def name(self, name: str) -> str:
        href, shown = self.link(name), f"<code>{html.escape(name)}</code>"
        return f'<a href="{html.escape(href)}">{shown}</a>' if href else shown

    def linked(self, lines: list[str]) -> str:
        """Text as it stands, the names of files linked."""
        return re.sub(
            r"(?<![\w/])((?:\w+/)*\w+\.(?:py|cu))\b",
            lambda m: f'<a href="{self.link(m[1])}">{m[1]}</a>' if self.link(m[1]) else m[1],
            html.escape("\n".join(lines)),
        )

    @staticmethod
    def _words(text: str, letters: str, bold: bool) -> str:
        out: list[str] = []
        for part, formula in spans(text, letters, bold):
            if formula is not None:
                before = re.search(r"[^\s;]+$", out[-1]) if out and "<" not in out[-1] else None
                if before:  # a bracket stays with its formula, whatever the width
                    out[-1] = out[-1][: before.start()]
                    out.append(f'<span class="whole">{before[0]}{mathml(formula, bold)}</span>')
                else:
                    out.append(mathml(formula, bold))
                continue
            mark = re.match(r"[.,;:)']\S*", part) if out else None
            if mark:  # and so does a comma
                out[-1] = f'<span class="whole">{out[-1]}{html.escape(mark[0])}</span>'
                part = part[mark.end() :]
            out.append(html.escape(part.replace(" -> ", " → "), quote=False))
        return "".join(out)

    # ---- what is set off ------------------------------------------------------------------------

    def formulas(self, lines: list[str]) -> str | None:
        """Lines with a relation, each a row; what follows two spaces is a cell of its own, and a
        line further in goes on with the last. None if these lines are something else."""
        if any(DRAWN.search(line) for line in lines):
            return None
        whole = not lines[0].startswith("    ")  # a paragraph: every line begins with one
        rows: list[list[str]] = []
        margin = min(len(line) - len(line.lstrip()) for line in lines)
        for line in lines:
            cells = re.split(r"  +", re.sub(r" +(=|<-) +", r" \1 ", line.strip()))
            try:
                row = self._row(cells, whole)
            except NoFormulaError:
                further = len(line) - len(line.lstrip()) > margin
                if whole or not rows or not further or RELATION.search(line):
                    return None
                rows[-1][-1] += " " + self.prose(line.strip())
                continue
            rows.append(row)
        words = re.sub(r"<math.*?</math>|<[^>]*>", "", " ".join(rows[0]))
        if whole and len(rows) == 1 and re.search(r"\w", words):
            return None  # a sentence that begins with one
        self.typeset += len(rows)
        return f'<div class="formulas"><table>{"".join(map(_in_table, rows))}</table></div>'

    def _row(self, cells: list[str], whole: bool) -> list[str]:
        """Left of the relation, right of it, and what else is in the row."""
        formulas = [n for n, cell in enumerate(cells[:2]) if self._first(cell)[0]]
        formulas.sort(key=lambda n: "=" not in cells[n])  # a < 1   y = x: the first is a condition
        if not formulas:
            raise NoFormulaError(str(cells))
        found = formulas[0]
        formula, rest = self._first(cells[found])
        if whole and (found or rest.strip(".,;:")):
            raise NoFormulaError(str(cells))
        relation = RELATION.search(formula)
        assert relation
        left, right = formula[: relation.start()].strip(), formula[relation.start() :]
        if found:
            left, right = "", formula
        row = [
            self.prose(cells[0], bold=True) if found else mathml(latex(left), True) if left else "",
            mathml(latex(right), True) + self.prose(rest, bold=True),
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


def _in_table(row: list[str]) -> str:
    """A row of formulas; long words about it stand below."""
    plain = [len(re.sub(r"<[^>]*>|&\w+;", "", re.sub(r"<math.*?</math>", "", c))) for c in row]
    if len(row) == 3 and plain[2] > 16:
        words = f'<tr class="about"><td></td><td>{row.pop()}</td></tr>'
        return _in_table(row) + words
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"


# A minus that follows a bracket or a relation belongs to what comes after it.
SIGN = re.compile(
    r"(<mo[^>]*>(?:&#x0003D;|&#x00028;|&#x0005B;|&#x02190;|&#x0002C;)</mo>)<mo>(?=&#x02212;)"
)
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

    formula = formula.replace("'", "′")  # the font's stands high as it is
    made = convert(formula, display="block" if display else "inline")
    made = made.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    made = made.replace("<mo>&#x0002F;</mo>", '<mo lspace="0" rspace="0">/</mo>')
    made = made.replace("<mo>&#x0005E;</mo>", "<mo>&#x002C6;</mo>")  # a hat made to sit on letters
    made = SIGN.sub(r'\1<mo form="prefix">', made)
    return made.replace('<math display="block">', '<math displaystyle="true">').replace(
        '<math display="inline">', "<math>"
    )
