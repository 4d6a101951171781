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
from pathlib import Path
from typing import Any

from .autograd import Function, Variable

MOST = 2000  # operations; a picture of more says nothing
ROW, LEAF, BOX, LANE = 44, 250, 190, 14  # heights and widths in pixels
STYLE = """
text { font: 12px ui-monospace, monospace; fill: #1c2733 } text.shape { fill: #5c6b7a }
rect { fill: #e8eef6; stroke: #8193a8 } rect.leaf { fill: #fbeedb; stroke: #b08d57 }
path { fill: none; stroke: #8193a8; stroke-width: 1.5 } path.skip { stroke: #c05a3c }
@media (prefers-color-scheme: dark) {
text { fill: #e4eaf1 } text.shape { fill: #9fb0c2 } rect { fill: #22303f; stroke: #6f859d }
rect.leaf { fill: #3d3222; stroke: #a98a58 } path { stroke: #6f859d }
path.skip { stroke: #e0876b } }
"""


class Drawing(str):
    """An SVG picture: its text, which notebooks show as a picture."""

    def _repr_svg_(self) -> str:
        return str(self)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self, encoding="utf-8")


def draw_graph(result: Any, model: Any = None) -> Drawing:
    """What was recorded on the way to `result`, a Tensor that backward could start from, as SVG.

    `model`, a Module: its Parameters are drawn by their names. ValueError if nothing was recorded,
    if backward has released it, or if it has more than 2,000 operations."""
    if not isinstance(result, Variable) or result.node is None:
        raise ValueError(
            "draw_graph: nothing was recorded: give a result of operations on Tensors of which one "
            "has requires_grad=True, not under no_grad()"
        )
    nodes = _recorded(result.node)
    row = {node: i for i, node in enumerate(nodes)}
    names = {} if model is None else {id(p): name for name, p in model.named_parameters()}
    shapes = {(result.node, result.output_index): result.data.shape}
    boxes, lines, drawn, lanes = [], [], set[int](), list[int]()
    for node in nodes:
        y, leaves = row[node] * ROW, []
        for source, output, shape in filter(None, node.parents or ()):
            if output is not None:
                shapes[source, output] = shape
                lines.append(_line(row[source], row[node], lanes))
            elif id(source) not in drawn:
                drawn.add(id(source))
                leaves.append((names.get(id(source), _kind(source)), shape))
        for i, (name, shape) in enumerate(leaves):
            height = (ROW - 8) / len(leaves)
            boxes.append(_box(0, y + i * height, LEAF - 30, height - 1, name, shape, "leaf"))
        if leaves:
            lines.append(f'<path d="M{LEAF - 30} {y + 17} H{LEAF}"/>')
    for node in nodes:
        made = [shapes[node, i] for i in range(node.outputs) if (node, i) in shapes]
        boxes.append(_box(LEAF, row[node] * ROW, BOX, ROW - 10, type(node).__name__, *made[:1]))
    width, height = LEAF + BOX + LANE * (len(lanes) + 1) + 2, len(nodes) * ROW
    return Drawing(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {width} {height}" width="{width}" '
        f'height="{height}"><style>{STYLE}</style>\n' + "\n".join([*lines, *boxes]) + "\n</svg>\n"
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


def _kind(leaf: Any) -> str:
    return "Parameter" if leaf.is_parameter else "Tensor"


def _line(start: int, stop: int, lanes: list[int]) -> str:
    """From one row down to another. `lanes`: the row from which on each lane is free."""
    if stop == start + 1:
        return f'<path d="M{LEAF + BOX // 2} {stop * ROW - 10} v10"/>'
    free = next((i for i, until in enumerate(lanes) if until <= start), len(lanes))
    lanes[free : free + 1] = [stop]
    x, right = LEAF + BOX, LEAF + BOX + LANE * (free + 1)
    top, bottom = start * ROW + 22, stop * ROW + 12
    return f'<path class="skip" d="M{x} {top} H{right} V{bottom} H{x}"/>'


def _box(
    x: float, y: float, width: float, height: float, name: str, shape: Any = "", kind: str = ""
) -> str:
    middle = y + height / 2 + 4
    return (
        f'<rect class="{kind}" x="{x}" y="{y:g}" width="{width}" height="{height:g}" rx="4"/>'
        f'<text x="{x + 8}" y="{middle:g}">{html.escape(name)}</text><text class="shape" '
        f'x="{x + width - 8}" y="{middle:g}" text-anchor="end">{shape}</text>'
    )
