"""What floating-point formats hold: their range, their grid near 1, and sums of many small numbers.

Limits are asked of the formats themselves; gradients are those of the model that comes with the
package, of one batch; sums are made by adding, number after number. Needs ml_dtypes, for bfloat16.
"""

import math

import ml_dtypes
import numpy as np
from picture import Picture, n

from minimixer import Mixer, Tensor, data
from minimixer import functional as F

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SCALE = 2**16


def draw() -> dict[str, str]:
    return {"floats.svg": ranges(), "floats_near_1.svg": near_one(), "floats_sums.svg": sums()}


# ---- from the smallest to the largest -----------------------------------------------------------


def gradients(batch: int = 128) -> np.ndarray:
    """All dL/dx of the tokens that enter the first block, x (S, B, C), by their size; not 0."""
    model = Mixer.load("digits").to("float64").train()
    images, labels, _, _ = data.load_mnist()
    tokens = model.inspect(images[:batch])["tokens"].data.transpose(1, 0, 2)
    x = leaf = Tensor(np.ascontiguousarray(tokens), requires_grad=True)
    for block in model.blocks:
        x = block(x)
    scores = model.head(model.norm(x).mean(axis=0))
    F.cross_entropy(scores, labels[:batch]).backward()
    return abs(leaf.grad[leaf.grad != 0])


def lost(sizes: np.ndarray) -> float:
    """The share that float16 makes 0."""
    return float(np.mean(sizes.astype(np.float16) == 0))


def ranges() -> str:
    sizes = gradients()
    smaller = min(lost(sizes * SCALE), 1)
    picture = Picture(
        392,
        "Range of three formats, by powers of ten: float32 and bfloat16 from about 1e-38 to 3e38, "
        "float16 from 6e-5 to 65504; smaller numbers with fewer digits reach down to 1e-45, 9e-41 "
        f"and 6e-8. Below, the gradients of one batch: float16 makes {lost(sizes):.0%} of them 0; "
        f"times 65,536, {smaller:.2%}.",
    )
    left, right = 24, 416

    def place(power):  # of two
        return left + (right - left) * (power + 150) / 280

    picture.text(220, 26, "what can be held", "bold")
    formats = {"float32": ml_dtypes.finfo(np.float32), "bfloat16": ml_dtypes.finfo(BFLOAT16),
               "float16": ml_dtypes.finfo(np.float16)}  # fmt: skip
    for row, (name, info) in enumerate(formats.items()):
        y = 62 + 44 * row
        smallest, normal, largest = (
            place(math.log2(float(v)))
            for v in (info.smallest_subnormal, info.smallest_normal, info.max)
        )
        picture.rect(smallest, y, normal - smallest, 14, "kind0")
        picture.rect(normal, y, largest - normal, 14, "minus")
        words = f"{name}: {info.nmant + 1} binary digits"
        picture.text((normal + largest) / 2, y - 6, words, "small" + " halo" * (row > 1))
    base, tall = 324, 92
    for power in (-40, -30, -20, -10, 0, 10, 20, 30):
        x = place(power * math.log2(10))
        picture.path(f"M{n(x)} 46V{base}", "thin", opacity=0.6)
        picture.text(x, base + 20, "1" if power == 0 else f"10{raised(power)}", "small")
    floor = place(
        math.log2(float(formats["float16"].smallest_subnormal) / 2)
    )  # below: rounded to 0
    edges = np.arange(-150, 130, 1.0)
    for values, kind in ((sizes, "back"), (sizes * SCALE, "mark")):
        counts, _ = np.histogram(np.log2(values), edges)
        shown = np.flatnonzero(counts)
        inside = slice(max(shown[0] - 1, 0), shown[-1] + 2)
        heights = base - tall * counts[inside] / counts.max()
        picture.curve(place(edges[inside] + 0.5), heights, kind)
    picture.path(f"M{n(floor)} 162V{base}", "line dashed")
    picture.text(floor - 22, 232, "gradients of", "back right")
    picture.text(floor - 22, 250, "one batch", "back right")
    picture.text(floor + 46, 232, "the same", "mark left")
    picture.text(floor + 46, 250, "\N{MULTIPLICATION SIGN} 65,536", "mark left")
    picture.text(220, 376, f"float16 makes {lost(sizes):.0%} of them 0, left of the dashes",
                 "small")  # fmt: skip
    return picture.svg()


def raised(power: int) -> str:
    digits = dict(zip("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True))
    return "".join(digits[digit] for digit in str(power))


# ---- near 1 -------------------------------------------------------------------------------------


def near_one() -> str:
    picture = Picture(
        218,
        "All numbers from 0.98 to 1.03 that three formats hold. bfloat16 has steps of 1/128 above "
        "1 and 1/256 below; float16 and tf32 of 1/1024 and 1/2048; float32's, of 1/8388608, are "
        "too close to draw.",
    )
    picture.text(220, 26, "the numbers near 1", "bold")
    low, high, left, right = 0.98, 1.03, 24, 416
    for row, (name, bits) in enumerate((("bfloat16", 7), ("float16, tf32", 10), ("float32", 23))):
        y = 62 + 46 * row
        picture.text(left, y - 6, name, "small left")
        gap = f"step 1/{2**bits:,}"
        picture.text(right, y - 6, gap, "small right")
        if bits > 12:
            picture.rect(left, y, right - left, 16, "minus")
            continue
        below = 1 - np.arange(0, 1 - low, 2.0 ** -(bits + 1))[1:]
        grid = np.concatenate([below, np.arange(1, high, 2.0**-bits)])
        kept = grid.astype(BFLOAT16 if bits == 7 else np.float16).astype(float)
        assert (kept == grid).all()
        marks = "".join(
            f"M{n(left + (g - low) / (high - low) * (right - left))} {y}v16" for g in sorted(grid)
        )
        picture.path(marks, "forth")
    for value in (0.98, 0.99, 1.0, 1.01, 1.02, 1.03):
        x = left + (value - low) / (high - low) * (right - left)
        picture.text(x, 200, f"{value:g}", "small")
    return picture.svg()


# ---- sums of many -------------------------------------------------------------------------------


def running(dtype: np.dtype, many: int = 5000) -> np.ndarray:
    """0.01 + 0.01 + ..., every sum rounded to dtype."""
    total, totals = dtype.type(0), []
    for _ in range(many):
        total = dtype.type(total + dtype.type(0.01))
        totals.append(float(total))
    return np.array(totals)


def sums() -> str:
    totals = {name: running(dtype) for name, dtype in (
        ("float32", np.dtype("float32")), ("float16", np.dtype("float16")), ("bfloat16", BFLOAT16),
    )}  # fmt: skip
    ends = {name: total[-1] for name, total in totals.items()}
    picture = Picture(
        276,
        "0.01 added 5,000 times. float32 ends at "
        f"{ends['float32']:.2f}; float16 stays at {ends['float16']:g} from some point on, "
        f"bfloat16 at {ends['bfloat16']:g}: there 0.01 is less than half a step.",
    )
    left, right, top, bottom = 48, 416, 48, 226
    picture.text(220, 26, "0.01 + 0.01 + 0.01 + ...", "bold")
    for value in (0, 10, 20, 30, 40, 50):
        y = bottom - (bottom - top) * value / 50
        picture.path(f"M{left} {n(y)}H{right}", "thin")
        picture.text(left - 8, y + 5, str(value), "small right")
    for name, kind in (("float32", "forth"), ("float16", "back"), ("bfloat16", "mark")):
        chosen = [*range(0, 5000, 50), 4999]
        x = left + (right - left) * (np.array(chosen) + 1) / 5000
        y = bottom - (bottom - top) * totals[name][chosen] / 50
        picture.curve(x, y, kind)
        spot = {"float32": (300, 92, "right"), "float16": (right, 132, "right")}
        x0, y0, side = spot.get(name, (right, y[-1] - 8, "right"))
        said = f"{name}: {ends[name]:.2f}" if name == "float32" else f"{name}: {ends[name]:g}"
        picture.text(x0, y0, said, f"bold {kind} {side} halo")
    for many in (0, 1000, 2000, 3000, 4000, 5000):
        picture.text(left + (right - left) * many / 5000, 248, f"{many:,}", "small")
    picture.text(220, 267, "numbers added", "small")
    return picture.svg()
