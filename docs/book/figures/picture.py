"""What all figures of the book share: a card of fixed width, and what is drawn on it.

A figure is plain SVG with text as text, so that a reader can select it and a program can read it.
It brings its own background, and colours for light and for dark. It is 440 wide: on a telephone,
which shows it at four fifths of that, the smallest letters are still 10 pixels tall.

    picture = Picture(height=200, title="What is seen, in a sentence, for who can't see it.")
    picture.text(220, 30, "a heading", "bold")
    picture.table(20, 50, values, cell=9)
    picture.svg()

`values` are drawn as in docs/mixer.svg: orange above 0, blue below, the stronger the larger.
"""

import html

import numpy as np

WIDTH = 440
LEVELS = 10  # of colour: more can't be told apart
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1c2733; text-anchor: middle }
.small { font-size: 13px; fill: #52616f } .bold { font-weight: 600 }
.left { text-anchor: start } .right { text-anchor: end }
.page { fill: #ffffff } .box { fill: #f3f6fa; stroke: #8193a8 }
.frame { fill: none; stroke: #8193a8 }
.thin { fill: none; stroke: #a9b8c8 } .line { fill: none; stroke: #52616f; stroke-width: 1.5 }
.plus { fill: #dd7722 } .minus { fill: #3478c8 } .ink { fill: #6e7d8e }
.forth { fill: none; stroke: #3478c8; stroke-width: 2 } text.forth { stroke: none; fill: #2463ad }
.back { fill: none; stroke: #dd7722; stroke-width: 2 } text.back { stroke: none; fill: #a8500c }
.mark { fill: none; stroke: #b0307a; stroke-width: 2 } text.mark { stroke: none; fill: #b0307a }
.shade { fill: #8193a8; fill-opacity: .13 } .tip { fill: context-stroke }
.in { font-size: 13px } text.halo { paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
.kind0 { fill: #3478c8; fill-opacity: .25 } .kind1 { fill: #3478c8; fill-opacity: .55 }
.kind2 { fill: #dd7722; fill-opacity: .25 } .kind3 { fill: #dd7722; fill-opacity: .55 }
.kind4 { fill: #b0307a; fill-opacity: .2 } .kind5 { fill: #b0307a; fill-opacity: .45 }
rect[class^=kind] { stroke: #ffffff }
.dashed { stroke-dasharray: 4 4 }
@media (prefers-color-scheme: dark) {
text { fill: #e4eaf1 } .small { fill: #a9b8c8 } .page { fill: #0f161e }
.box { fill: #1b2733; stroke: #6f859d } .frame { stroke: #6f859d } .thin { stroke: #4a5b6d }
.line { stroke: #a9b8c8 } .plus { fill: #f08a35 } .minus { fill: #5b9bea } .ink { fill: #93a4b7 }
.forth { stroke: #5b9bea } text.forth { fill: #8dbbf5 } .back { stroke: #f08a35 }
text.back { fill: #f7ad70 } rect[class^=kind], text.halo { stroke: #0f161e }
.mark { stroke: #f07ab8 } text.mark { fill: #f07ab8 } }
"""


class Picture:
    """An SVG of `height`, and of WIDTH unless told otherwise. `title`: for screen readers."""

    def __init__(self, height: float, title: str, width: float = WIDTH):
        self.width, self.height, self.title = width, height, title
        self.parts = [f'<rect class="page" width="{width}" height="{height}" rx="10"/>']

    def svg(self) -> str:
        tip = (
            '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
            'markerHeight="6" orient="auto"><path class="tip" d="M0 0 L8 4 L0 8 z"/></marker>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style><defs>{tip}</defs>\n"
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        named = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text{named} x="{n(x)}" y="{n(y)}">{html.escape(words)}</text>')

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, round_by: float = 0
    ) -> None:
        corner = f' rx="{n(round_by)}"' if round_by else ""
        size = f'x="{n(x)}" y="{n(y)}" width="{n(width)}" height="{n(height)}"'
        self.parts.append(f'<rect class="{kind}" {size}{corner}/>')

    def circle(self, x: float, y: float, radius: float, kind: str) -> None:
        self.parts.append(f'<circle class="{kind}" cx="{n(x)}" cy="{n(y)}" r="{n(radius)}"/>')

    def path(self, d: str, kind: str, tip: bool = False, opacity: float = 1) -> None:
        end = ' marker-end="url(#tip)"' if tip else ""
        end += f' opacity="{n(opacity)}"' if opacity != 1 else ""
        self.parts.append(f'<path class="{kind}" d="{d}"{end}/>')

    def arrow(self, x1: float, y1: float, x2: float, y2: float, kind: str = "line") -> None:
        self.path(f"M{n(x1)} {n(y1)} L{n(x2)} {n(y2)}", kind, tip=True)

    def curve(self, x: np.ndarray, y: np.ndarray, kind: str, opacity: float = 1) -> None:
        """A line through all points."""
        points = " ".join(f"{n(a)} {n(b)}" for a, b in zip(x, y, strict=True))
        self.path(f"M{points}", kind, opacity=opacity)

    def table(
        self, x: float, y: float, values: np.ndarray, cell: float, largest: float | None = None,
        tall: float | None = None,
    ) -> None:  # fmt: skip
        """(rows, columns), each a square, or `tall`; full of colour at `largest`, 0 has none. Those
        of one colour are one path, so that large tables stay small files."""
        tall = cell if tall is None else tall
        largest = abs(values).max() if largest is None else largest
        levels = np.ceil(np.minimum(1, abs(values) / (largest or 1)) * LEVELS)
        levels[abs(values) < 1e-9 * (largest or 1)] = 0
        for sign, kind in ((1, "plus"), (-1, "minus")):
            for level in range(1, LEVELS + 1):
                rows, columns = np.nonzero((np.sign(values) == sign) & (levels == level))
                squares = "".join(
                    f"M{n(x + j * cell)} {n(y + i * tall)}h{n(cell)}v{n(tall)}h-{n(cell)}z"
                    for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
                )
                if squares:
                    shade = f' fill-opacity="{n(level / LEVELS)}"'
                    self.parts.append(f'<path class="{kind}"{shade} d="{squares}"/>')
        self.rect(x, y, values.shape[1] * cell, values.shape[0] * tall, "frame")

    def numbered(
        self, x: float, y: float, values: np.ndarray, kinds: np.ndarray, cell: float
    ) -> None:
        """Whole numbers (rows, columns) in squares, coloured by `kinds`, 0 to 5."""
        for i, j in np.ndindex(*values.shape):
            left, top = x + j * cell, y + i * cell
            self.rect(left, top, cell, cell, f"kind{kinds[i, j]}")
            self.text(left + cell / 2, top + cell / 2 + 5, str(values[i, j]), "in")


def n(number: float) -> str:
    """To two decimals, as short as can be."""
    return f"{round(float(number), 2) + 0.0:.2f}".rstrip("0").rstrip(".")


def minus(number: float, form: str = "g") -> str:
    """A number as it is printed in a book: with a real minus sign."""
    return format(number, form).replace("-", "\N{MINUS SIGN}")
