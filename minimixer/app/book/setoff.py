"""What is set off in a note: formulas in rows, lists in two columns.

    dW[i, j] = sum_m x[m, i] dy[m, j]       dW = x^T dy

    name        what stands two spaces or more after it; a line that begins below those words
                goes on with them

The first is formulas, the second a list. Both are None where the lines are something else.
"""

import html
import re
from collections.abc import Callable
from functools import partial

from .finding import spans
from .formulas import NoFormulaError, latex, mathml

RELATION = re.compile(r"(?<![<>\[(])(?:<-|\+=|>>|<|(?<!=)=)(?![=-])")
# Signs of drawings and of Python.
DRAWN = re.compile(r"-->|<--|\+-|-\+|\||>>>|\w\.\w+\(|['\"#]\w|\w\(\w+=")
LONG = 16  # characters of words beside a formula; more of them stand below it
Prose = Callable[[str], str]


def indent(line: str) -> int:
    """How many blanks it begins with."""
    return len(line) - len(line.lstrip())


# ---- formulas -----------------------------------------------------------------------------------


def formula_rows(lines: list[str], prose: Prose, found: list[str]) -> list[list[str]] | None:
    """The cells of each row, as HTML: left of the relation, right of it, and what else is there,
    set by `prose`. A line further in goes on with the last cell. The formulas go into `found`."""
    if any(DRAWN.search(line) for line in lines):
        return None
    paragraph = indent(lines[0]) < 4  # not set off: then every line must begin with a formula
    margin, split = min(map(indent, lines)), list[list[str]]()
    for line in lines:
        cells = re.split(r"  +", re.sub(r" +(=|<-) +", r" \1 ", line.strip()))
        if any(map(_begins_with, cells[:2])):
            split.append(cells)
        elif paragraph or not split or indent(line) == margin or RELATION.search(line):
            return None
        else:
            split[-1][-1] += " " + line.strip()
    try:
        rows = [_row(cells, paragraph, prose, found) for cells in split]
    except NoFormulaError:
        return None
    if paragraph and len(rows) == 1 and re.search(r"\w", _words("".join(rows[0]))):
        return None  # a sentence that begins with one
    return rows


def _row(cells: list[str], paragraph: bool, prose: Prose, found: list[str]) -> list[str]:
    """Of `a < 1   y = x   words` the first is a condition; so it may be words too."""
    formulas = [n for n, cell in enumerate(cells[:2]) if _begins_with(cell)]
    if not formulas:
        raise NoFormulaError(str(cells))
    at = min(formulas, key=lambda n: not re.search("=|<-", cells[n]))
    formula = _begins_with(cells[at])
    rest = cells[at][len(formula) :]
    if paragraph and (at or rest.strip(".,;:")):
        raise NoFormulaError(str(cells))
    before, sign, after = _split(formula)
    found.append(formula)
    if at:
        left, right = f'<span class="where">{prose(cells[0])}</span>', formula
    else:
        left, right = mathml(latex(before), True) if before else "", sign + after
    return [left, mathml(latex(right), True) + prose(rest), *map(prose, cells[at + 1 :])]


def _split(formula: str) -> tuple[str, str, str]:
    found = RELATION.search(formula)
    if found is None:
        raise NoFormulaError(formula)
    return formula[: found.start()].strip(), found[0], formula[found.end() :]


def _begins_with(cell: str) -> str:
    """The formula, with a relation, that a cell begins with, or is; "" if there is none."""
    whole = re.sub(r"[.,;:]$", "", cell)
    first = next(((part if formula else "") for part, formula in spans(cell, set_off=True)), "")
    for part in whole, first:
        try:
            before, sign, after = _split(part)
            if before:
                latex(before)
            latex(sign + after)
        except NoFormulaError:
            continue
        return part
    return ""


def formulas_html(rows: list[list[str]]) -> str:
    """Rows of MathML, relations below each other."""
    return f'<div class="formulas"><table>{"".join(map(_in_table, rows))}</table></div>'


def _in_table(row: list[str]) -> str:
    if len(row) == 3 and (len(_words(row[2])) > LONG or len(_seen(row[2])) > LONG + 4):
        about = f'<tr class="about"><td></td><td>{row[2]}</td></tr>'
        return _in_table(row[:2]) + about
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"


_words = partial(re.sub, r"<math.*?</math>|<[^>]*>|&\w+;", "")  # those of HTML


def _seen(shown: str) -> str:
    """And the letters of its formulas."""
    return html.unescape(re.sub("<[^>]*>", "", shown))


# ---- lists and tables ---------------------------------------------------------------------------


def table(lines: list[str]) -> list[list[str]] | None:
    """Cells of lines with more than two columns. One begins where a word does in all lines, and
    two spaces or more stand before it in one of them."""
    starts, last = [0], min(map(len, lines))
    for at in range(2, last):
        begins = all(line[at - 1] == " " != line[at] for line in lines)
        if begins and any(line[at - 2] == " " for line in lines):
            starts.append(at)
    rows = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
            for line in lines]  # fmt: skip
    plain = all("  " not in cell for row in rows for cell in row)
    return rows if plain and len(lines) > 1 and len(starts) > 2 else None


def in_columns(line: str) -> re.Match[str] | None:
    """Does a line begin a list? Then up to where its words begin."""
    return re.match(r" *\S.*?  +(?=\S)", line)


def list_items(lines: list[str]) -> list[tuple[str, str]] | None:
    """The names and what is said about each."""
    found, margin = in_columns(lines[0]), indent(lines[0])
    if found is None or (margin == 0 and len(lines) < 2):
        return None
    start, items = found.end(), list[list[str]]()
    for line in lines:
        name, gap, words = line[margin:].partition("  ")
        if indent(line) > margin:
            if indent(line) < start:
                return None
            items[-1][1] += " " + line.strip()
        elif gap:
            items.append([name, words.strip()])
        elif " " not in line[margin : start - 1] and line[start - 1 : start] == " ":
            items.append([line[margin : start - 1], line[start:]])  # a name that fills its column
        else:
            return None
    if sum("  " in words for _, words in items) > len(items) / 3:
        return None  # more columns than two
    return [(name, words) for name, words in items]
