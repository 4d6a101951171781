"""Draw docs/mixer.svg: the Mixer at a glance, with what a trained one computes for one digit.

    python docs/draw_mixer.py                   needs Pillow, for the tables in it

The model is the one that comes with the package. All numbers are of `model.inspect`: tokens, what
enters the first block's two MLPs, the pooled features, the probabilities. Positive numbers are
orange, negative ones blue, 0 is clear: so it can be read on white and on black.
"""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from minimixer import Mixer, data, no_grad

FILE = Path(__file__).with_name("mixer.svg")
WIDTH, HEIGHT = 984, 316
TOP, TALL = 104, 128  # of pictures and tables
ORANGE, BLUE = (221, 119, 34), (52, 120, 200)
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1c2733; text-anchor: middle }
.small { font-size: 11.5px; fill: #52616f } .bold { font-weight: 600 }
.page { fill: #ffffff } .room { fill: #f3f6fa; stroke: #a9b8c8 }
.mlp { fill: #ffffff; stroke: #8193a8 }
.line { fill: none; stroke: #52616f; stroke-width: 1.5; marker-end: url(#tip) }
.grid { fill: none; stroke: #8193a8 } .mark { fill: none; stroke: #b0307a; stroke-width: 2.5 }
.tip { fill: #52616f } .bar { fill: #8193a8 } .best { fill: #dd7722 }
@media (prefers-color-scheme: dark) {
text { fill: #e4eaf1 } .small { fill: #a9b8c8 } .page { fill: #0f161e } .line { stroke: #a9b8c8 }
.room { fill: #17212c; stroke: #4a5b6d } .mlp { fill: #22303f; stroke: #6f859d }
.mark { stroke: #f07ab8 } .tip { fill: #a9b8c8 } }
"""


def main() -> None:
    model = Mixer.load("digits")
    _, _, images, labels = data.load_mnist()
    with no_grad():
        seen = {name: x.numpy()[0] for name, x in model.inspect(images[:1]).items()}
    probabilities = np.exp(seen["logits"] - seen["logits"].max())
    probabilities /= probabilities.sum()
    S, C = seen["tokens"].shape
    parts = [
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="10"/>',
        '<rect class="room" x="304" y="22" width="460" height="272" rx="8"/>',
        text(534, 42, f"{len(model.blocks)} Mixer blocks, one after the other", "bold"),
        digit(16, images[0, ..., 0], model.patch_size),
        *said(80, "image", f"cut into {S} patches"),
        arrow(144, 190), text(167, TOP + TALL / 2 - 8, "stem", "small"),
        table(192, seen["tokens"]), *said(240, "tokens", f"{S} rows, {C} channels"),
        arrow(288, 322),
        text(372, TOP - 8, "LayerNorm", "small"), text(588, TOP - 8, "LayerNorm", "small"),
        table(324, seen["blocks.0.norm1"]), mark(324 + 36, TOP - 3, 7, TALL + 6),
        mlp(436), *said(415, "token mixing", "one MLP for all columns"), skip(309, 521),
        arrow(502, 515), arrow(527, 541),
        table(540, seen["blocks.0.norm2"]), mark(540 - 3, TOP + 40, C + 6, 8),
        mlp(652), *said(631, "channel mixing", "one MLP for all rows"), skip(535, 744),
        arrow(720, 738), arrow(750, 772),
        table(776, seen["pooled"][None], TOP + TALL / 2 - 4, 8),
        text(824, TOP + 32, "LayerNorm", "small"), text(824, TOP + 48, "and mean", "small"),
        *said(826, "features", "of the whole image"),
        arrow(872, 904), text(888, TOP + TALL / 2 - 8, "head", "small"),
        bars(906, probabilities), *said(934, "classes", "how likely"),
    ]  # fmt: skip
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" '
        'orient="auto"><path class="tip" d="M0 0 L8 4 L0 8 z"/></marker>'
    )
    words = (
        f"An image is cut into {S} patches; a shared matrix makes a token of each. A block mixes "
        "first along the columns of the table of tokens, then along its rows, by an MLP each, with "
        "LayerNorm before and a skip connection around both. The mean over the tokens goes through "
        f"a linear head to the scores; here {probabilities.argmax()} wins."
    )
    FILE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img"><title>{words}</title><style>{STYLE}</style>'
        f"<defs>{tip}</defs>\n" + "\n".join(parts) + "\n</svg>\n",
        encoding="utf-8",
    )
    assert probabilities.argmax() == labels[0]


def said(x: float, name: str, more: str) -> list[str]:
    return [text(x, TOP + TALL + 28, name, "bold"), text(x, TOP + TALL + 46, more, "small")]


def text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{words}</text>'


def arrow(start: float, stop: float) -> str:
    return f'<path class="line" d="M{start + 3} {TOP + TALL / 2} H{stop - 2}"/>'


def skip(start: float, stop: float) -> str:
    """Around a LayerNorm and an MLP, from the line before them into the line after."""
    y = TOP + TALL / 2
    return (
        f'<path class="line" d="M{start} {y - 2} V{TOP - 26} H{stop} V{y - 8}"/>'
        + text((start + stop) / 2, TOP - 32, "skip", "small")
        + f'<circle class="mlp" cx="{stop}" cy="{y}" r="8"/>'
        + text(stop, y + 4.5, "+", "bold")
    )


def mlp(x: float) -> str:
    """Linear, GELU, Linear, behind an arrow."""
    steps = "".join(
        f'<rect class="mlp" x="{x + 6}" y="{TOP + 22 + 30 * i}" width="62" height="24" rx="4"/>'
        + text(x + 37, TOP + 38 + 30 * i, name, "small")
        for i, name in enumerate(("Linear", "GELU", "Linear"))
    )
    joints = "".join(f"M{x + 37} {TOP + 46 + 30 * i} v6 " for i in range(2))
    return (
        f'<path class="line" d="M{x - 14} {TOP + TALL / 2} h17"/>'
        f'<path class="grid" d="{joints}"/>{steps}'
    )


def mark(x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="mark" x="{x}" y="{y}" width="{width}" height="{height}" rx="2"/>'


def picture(x: float, y: float, width: float, height: float, pixels: np.ndarray) -> str:
    """RGBA (rows, columns, 4), uint8, every number of it a square of its own."""
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG", optimize=True)
    code = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<image x="{x}" y="{y:g}" width="{width}" height="{height}" preserveAspectRatio="none" '
        f'style="image-rendering: pixelated" href="data:image/png;base64,{code}"/>'
    )


def table(x: float, values: np.ndarray, y: float = TOP, height: float = TALL) -> str:
    """(rows, columns) as colours, a pixel wide each."""
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = np.where(values[..., None] > 0, ORANGE, BLUE)
    pixels[..., 3] = 255 * np.minimum(1, abs(values) / np.quantile(abs(values), 0.98))
    width = values.shape[1]
    frame = f'<rect class="grid" x="{x}" y="{y:g}" width="{width}" height="{height}"/>'
    return picture(x, y, width, height, pixels) + frame


def digit(x: float, image: np.ndarray, patch: int) -> str:
    """(H, W), uint8: ink on whatever is behind, and the cuts between patches."""
    pixels = np.empty((*image.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = (110, 125, 142), image
    side = TALL * patch / len(image)
    cuts = "".join(
        f"M{x + i * side:g} {TOP} v{TALL} M{x} {TOP + i * side:g} h{TALL} "
        for i in range(len(image) // patch + 1)
    )
    return picture(x, TOP, TALL, TALL, pixels) + f'<path class="grid" d="{cuts}"/>'


def bars(x: float, probabilities: np.ndarray) -> str:
    step = TALL / len(probabilities)
    best = probabilities.argmax()
    return "".join(
        f'<rect class="{"best" if k == best else "bar"}" x="{x + 12}" y="{TOP + k * step + 2:g}" '
        f'width="{2 + 44 * p:.1f}" height="{step - 4:g}"/>'
        + text(x + 4, TOP + k * step + 10, str(k), "small")
        for k, p in enumerate(probabilities)
    )


if __name__ == "__main__":
    main()
