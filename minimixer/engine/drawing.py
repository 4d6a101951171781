"""The graph behind a result, as a picture.

The operations stand one below the other in the order in which they ran, the result at the bottom;
Parameters and other leaves on the left of the first that reads them. A line leads from each
operation to those that used what it made: straight to the next one, on the right to later ones, as
skip connections do. Backward goes along these lines, upwards.

>>> from minimixer import Tensor, draw_graph
>>> x = Tensor([1.0, 2.0], requires_grad=True)
>>> picture = draw_graph((x * x + x).sum())  # a notebook shows it; picture.save("graph.svg")
>>> [name for name in ("Multiply", "Add", "Sum", "(2,)") if name in picture]
['Multiply', 'Add', 'Sum', '(2,)']
"""

import html
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .autograd import Function, Variable

MOST = 2000  # operations; a picture of more says nothing
ROW, LEAF, GAP, LANE, LETTER = 44, 18, 30, 14, 7.4  # heights and widths in pixels
STYLE = """
.graph text { font: 12px ui-monospace, monospace; fill: #1c2733 }
.graph text.shape { fill: #5c6b7a } .graph rect { fill: #e8eef6; stroke: #8193a8 }
.graph rect.leaf { fill: #fbeedb; stroke: #b08d57 }
.graph path { fill: none; stroke: #8193a8; stroke-width: 1.5 } .graph path.skip { stroke: #c05a3c }
@media (prefers-color-scheme: dark) {
.graph text { fill: #e4eaf1 } .graph text.shape { fill: #9fb0c2 }
.graph rect { fill: #22303f; stroke: #6f859d } .graph rect.leaf { fill: #3d3222; stroke: #a98a58 }
.graph path { stroke: #6f859d } .graph path.skip { stroke: #e0876b }
}
"""  # with a class: a page that has the picture may have others


class Drawing(str):
    """An SVG picture: its text, which notebooks show as a picture."""

    def _repr_svg_(self) -> str:
        return str(self)

    def __repr__(self) -> str:  # not some thousand characters
        return f"Drawing({len(self):,} characters of SVG; .save(path) writes them)"

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self, encoding="utf-8")


def draw_graph(result: Any, model: Any = None) -> Drawing:
    """What was recorded on the way to `result`, a Tensor that backward could start from, as SVG.

    `model`, a Module: its Parameters are drawn by their names. ValueError if nothing was recorded,
    if backward has released it, or if it has more than 2,000 operations; TypeError for what is no
    Module."""
    if model is not None and (isinstance(model, type) or not hasattr(model, "named_parameters")):
        raise TypeError(f"draw_graph: model must be a Module, got {model!r:.60}")
    if not isinstance(result, Variable) or result.node is None:
        raise ValueError(
            "draw_graph: nothing was recorded: give a result of operations on Tensors of which one "
            "has requires_grad=True, not under no_grad()"
        )
    nodes = _recorded(result.node)
    row = {node: i for i, node in enumerate(nodes)}
    names = {} if model is None else {id(p): name for name, p in model.named_parameters()}
    shapes = {(result.node, result.output_index): result.data.shape}
    leaves: dict[Function, list[tuple[str, str]]] = {node: [] for node in nodes}
    skips, drawn = [], set[int]()
    for node in nodes:
        for source, output, shape in filter(None, node.parents or ()):
            if output is not None:
                shapes[source, output] = shape
                skips.append((row[source], row[node]))
            elif id(source) not in drawn:
                drawn.add(id(source))
                kind = "Parameter" if source.is_parameter else "Tensor"
                leaves[node].append((names.get(id(source), kind), f"{shape}"))
    made = [
        next((f"{shapes[n, i]}" for i in range(n.outputs) if (n, i) in shapes), "") for n in nodes
    ]
    left = _width(pair for found in leaves.values() for pair in found)
    width = _width((type(node).__name__, shape) for node, shape in zip(nodes, made, strict=True))
    tall = [max(ROW, LEAF * len(found) + 8) for found in leaves.values()]
    tops = [0, *itertools.accumulate(tall)]  # of the rows
    lines, boxes, lanes = [], [], list[int]()
    start = left + GAP
    for start_row, stop_row in skips:
        lines.append(_line(start_row, stop_row, start, width, lanes, tops))
    for node, y, high, shape in zip(nodes, tops, tall, made, strict=False):
        boxes.append(_box(start, y, width, high - 10, type(node).__name__, shape))
        found = leaves[node]
        height = (high - 8) / max(1, len(found))
        for i, (name, of) in enumerate(found):
            boxes.append(_box(0, y + i * height, left, height - 2, name, of, "leaf"))
        if found:
            lines.append(f'<path d="M{left} {y + high // 2 - 5} h{GAP}"/>')
    whole, height = start + width + LANE * (len(lanes) + 1), tops[-1]
    body = "\n".join([*lines, *boxes])
    return Drawing(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="graph" viewBox="-1 -1 {whole} {height}" '
        f'width="{whole}" height="{height}"><style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def _recorded(last: Function) -> list[Function]:
    """All nodes behind this one, and itself, in the order in which they were made."""
    found, todo = {last}, [last]
    while todo:
        parents = todo.pop().parents
        if parents is None:
            raise ValueError("draw_graph: backward has released this graph: draw it before")
        new = {p[0] for p in parents if p and p[1] is not None} - found
        found |= new
        todo += new
        if len(found) > MOST:
            raise ValueError(f"draw_graph: more than {MOST} operations: draw a smaller model's")
    return sorted(found, key=lambda node: node.serial)


def _width(texts: Iterable[tuple[str, str]]) -> int:
    return int(max((len(a) + len(b) + 5 for a, b in texts), default=0) * LETTER)


def _line(start: int, stop: int, x: int, width: int, lanes: list[int], tops: list[int]) -> str:
    """From one row down to another. `lanes`: the row from which on each lane is free."""
    if stop == start + 1:
        return f'<path d="M{x + width // 2} {tops[stop] - 10} v10"/>'
    free = next((i for i, until in enumerate(lanes) if until <= start), len(lanes))
    lanes[free : free + 1] = [stop]
    right, top, bottom = x + width + LANE * (free + 1), tops[start] + 24, tops[stop] + 10
    return f'<path class="skip" d="M{x + width} {top} H{right} V{bottom} H{x + width}"/>'


def _box(
    x: float, y: float, width: float, height: float, name: str, shape: str, kind: str = ""
) -> str:
    middle, shown = y + height / 2 + 4, html.escape(repr(name)[1:-1])  # no controls, no surrogates
    return (
        f'<rect class="{kind}" x="{x}" y="{y:g}" width="{width}" height="{height:g}" rx="4"/>'
        f'<text x="{x + 8}" y="{middle:g}">{shown}</text><text class="shape" '
        f'x="{x + width - 8}" y="{middle:g}" text-anchor="end">{shape}</text>'
    )
