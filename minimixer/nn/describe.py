"""What a Module looks like: a tree of layers, and a table.

>>> from minimixer import Linear, Module
>>> class Network(Module):
...     def __init__(self):
...         self.layers, self.head = [Linear(4, 4), Linear(4, 4)], Linear(4, 2, bias=False)
>>> Network()
Network(48 weights
  (layers.0-1): 2 x Linear(weight (4, 4), bias (4,); 20 weights)
  (head): Linear(weight (4, 2); 8 weights)
)
>>> Network().summary()
layer     kind    parameters                weights
---------------------------------------------------
layers.0  Linear  weight (4, 4), bias (4,)       20
layers.1  Linear  weight (4, 4), bias (4,)       20
head      Linear  weight (4, 2)                   8
---------------------------------------------------
total                                            48
"""

from typing import Any

from .module import walk
from .parameters import Parameter


class Table:
    """Rows of text under a heading, above a total; `str` of it, and `repr`, is the whole."""

    def __init__(self, cells: list[list[str]], words: int):
        """`words`: how many columns stand on the left; the others are numbers."""
        self.cells = cells
        self.words = words

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.cells, strict=True)]
        lines = []
        for row in self.cells:
            pairs = list(zip(row, widths, strict=True))
            text = [cell.ljust(width) for cell, width in pairs[: self.words]]
            text += [cell.rjust(width) for cell, width in pairs[self.words :]]
            lines.append("  ".join(text))
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    __repr__ = __str__


def _own(module: Any) -> str:
    found = walk(module, deep=False)
    return ", ".join(f"{path} {p.shape}" for path, p in found if isinstance(p, Parameter))


def tree(module: Any, around: tuple[int, ...] = ()) -> str:
    """A line for each layer: settings, shapes, number of weights; equal neighbours as one."""
    kind = type(module).__name__
    if id(module) in around:  # a part that points back at the whole
        return f"{kind}(...)"
    own = [f"{name}={getattr(module, name, None)!r}" for name in module.shown]
    own += [_own(module)] if _own(module) else []
    count = module.num_parameters()
    text = "; ".join([*([", ".join(own)] if own else []), *([f"{count:,} weights"] * (count > 0))])
    groups: list[list[Any]] = []  # [first path, last path, how many, text]
    for path, child in walk(module, deep=False):
        if isinstance(child, Parameter):
            continue
        lines = tree(child, (*around, id(module)))
        front = path.rpartition(".")[0]
        if (
            groups
            and (groups[-1][0].rpartition(".")[0], groups[-1][3]) == (front, lines)
            and (path.rpartition(".")[2].isdigit())
        ):
            groups[-1][1:3] = path, groups[-1][2] + 1
        else:
            groups.append([path, path, 1, lines])
    if not groups:
        return f"{kind}({text})"
    shown = [f"{kind}({text}"]
    for first, last, times, lines in groups:
        name, times = (
            (first, "") if times == 1 else (f"{first}-{last.rpartition('.')[2]}", f"{times} x ")
        )
        shown.append(f"  ({name}): {times}" + lines.replace("\n", "\n  "))
    return "\n".join([*shown, ")"])


def summary_of(module: Any) -> Table:
    """One row for each Module with Parameters of its own; a shared one counts once in the total."""
    cells = [["layer", "kind", "parameters", "weights"]]
    for path, layer in module.named_modules():
        own = {id(p): p.size for _, p in walk(layer, deep=False) if isinstance(p, Parameter)}
        if own:
            cells.append([path, type(layer).__name__, _own(layer), f"{sum(own.values()):,}"])
    return Table([*cells, ["total", "", "", f"{module.num_parameters():,}"]], words=3)
