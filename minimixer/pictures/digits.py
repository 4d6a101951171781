"""A digit of one's own as MNIST has it: white on black, 20 pixels large, in the middle of 28 x 28.

A model knows what it was shown, and MNIST's digits were all prepared in one way (LeCun et al.
1998, section III.A): cut to the ink, shrunk until the longest side had 20 pixels, and put into 28 x
28 so that the centre of mass was in the centre. Someone else's picture is dark on light, has a
margin, a shadow, perhaps a fine pencil line. `prepare_digit` does the same to it:

>>> import numpy as np
>>> from minimixer.pictures.digits import box, prepare_digit
>>> picture = np.full((200, 150, 3), 250, dtype=np.uint8)    # white paper
>>> picture[20:150, 40:55] = (30, 30, 90)                    # a blue stroke, in the upper left
>>> digit = prepare_digit(picture)
>>> digit.shape, box(digit > 0)                              # top, bottom, left, right
((28, 28), (4, 24, 13, 16))

Five steps, each a function below; `examples/draw_digit.py` draws them for a picture of yours.

Next: `augment.py`.
"""

import contextlib
import os
from typing import Any

import numpy as np

from .folders import BadPicture, decode, import_pillow

SIZE, BOX = 28, 20  # of MNIST's images, and of the digit in them
FINE = 10  # a digit is worked on with so many pixels for one of MNIST's, each way
LONGEST = 800  # of a picture: larger ones are shrunk first
LEAST = 8.0  # steps of 255 by which ink must differ from paper
EDGE = 0.35  # of the ink's strength: what has less is paper
PEN = 1.7  # of MNIST's pixels: nine of ten of its digits have wider strokes


Box = tuple[int, int, int, int]


class NoInk(BadPicture):
    """A picture of paper only, as far as it can be told."""


def prepare_digit(picture: Any, steps: list[tuple[str, np.ndarray]] | None = None) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3), one digit on paper of another colour -> uint8 (28, 28).

    `steps`, a list, receives (what was done, an array) after each step. TypeError for what is no
    uint8 image; BadPicture, a ValueError, if it shows no ink or more than one digit.
    """
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim < 2 or pixels.shape[2:] not in ((), (3,)):
        got = f"{pixels.dtype} {pixels.shape}"
        raise TypeError(f"a digit's picture must be uint8 (H, W) or (H, W, 3), got {got}")
    if pixels.size == 0:
        raise BadPicture(f"it has no pixels: {pixels.shape}")
    seen = [] if steps is None else steps
    pixels = shrink(pixels)
    seen.append(("the picture", pixels))
    ink = find_ink(pixels)
    sheet = find_sheet(ink)
    if sheet is not None:
        with contextlib.suppress(NoInk):  # of a blot
            ink = find_ink(pixels[sheet])
    seen.append(("ink: paper taken away", ink))
    ink = keep_digit(ink)
    seen.append(("the digit alone", ink))
    ink = fit(ink)
    seen.append((f"longest side {BOX}, in finer pixels", ink))
    ink = thicken(ink)
    seen.append(("fine strokes thickened", ink))
    digit = centre(ink)
    seen.append(("centred by its mass", digit))
    return digit


def read_digit(
    path: str | os.PathLike[str], steps: list[tuple[str, np.ndarray]] | None = None
) -> np.ndarray:
    """The digit in a picture's file, prepared: uint8 (28, 28). BadPicture if there is none. `steps`
    as in `prepare_digit`."""
    steps = [] if steps is None else steps
    try:
        return prepare_digit(np.asarray(decode(path, LONGEST)), steps)
    except NoInk:  # white on nothing
        steps.clear()
        return prepare_digit(np.asarray(decode(path, LONGEST, behind="black")), steps)


def shrink(pixels: np.ndarray, longest: int = LONGEST) -> np.ndarray:
    """float32 (H, W, 3), of at most `longest` pixels a side."""
    pixels = np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3))
    factor = -(-max(pixels.shape) // longest)
    if factor > 1:
        image = import_pillow().fromarray(np.ascontiguousarray(pixels).astype(np.uint8))
        pixels = np.asarray(image.reduce(factor))
    return pixels.astype(np.float32)


def find_ink(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H, W): 0 for paper, 1 for ink, whatever their colours."""
    differs = differences(pixels)
    strong = differs.reshape(-1, 3) * np.linalg.norm(differs, axis=-1).reshape(-1, 1)
    value = differs @ np.linalg.eigh(strong.T @ strong)[1][:, -1]  # along the colour of the ink
    value *= 1 if (value.astype(np.float64) ** 3).sum() > 0 else -1
    noise = 2.6 * float(np.quantile(abs(value), 0.3))  # a standard deviation, blind to the ink
    ink = level(value, noise)
    if not (ink > EDGE).any():
        raise NoInk("it shows no ink: nothing on it differs from the paper")
    thin = drop_lines(ink, 0.01)
    if corners(ink).all() and (rim(thin) > EDGE).mean() < 0.15:
        return thin  # of a frame, which the digit may touch
    tries = [ink, thin]
    if corners(ink).any():
        # A thick frame, the desk under the paper, a shadow. If most of the paper lies in the
        # shadow, the light part of it is what differs most; but the digit is darker.
        sides = [np.maximum(side, 0) for side in (-value, value)]
        sides = [side for side in sides if strength(side) > strength(value) / 3]
        tries += [drop_lines(level(side - wide(side), noise), 0.04) for side in sides]
    for left in [*tries, drop_lines(ink, 0.04)]:
        if has_margin(left):
            return left
    return ink  # of a digit that reaches the edges itself


def find_sheet(ink: np.ndarray) -> tuple[slice, slice] | None:
    """Where most of the picture is the desk, the sheet of paper on it, which was taken for ink: no
    digit fills its box, with all the corners. None if there is no such sheet."""
    cell, _, amounts, boxes = pieces(ink)
    if not boxes:
        return None
    top, bottom, start, end = (n * cell for n in boxes[max(boxes, key=lambda n: amounts[n])])
    rim = 1 + max(bottom - top, end - start) // 30
    place = np.s_[top + rim : bottom - rim, start + rim : end - rim]
    sheet = ink[place]
    if min(sheet.shape) < max(10, max(sheet.shape) / 3) or not corners(sheet).all():
        return None
    return place if (sheet > EDGE).mean() > 0.7 else None


def corners(ink: np.ndarray) -> np.ndarray:
    """Which of the picture's four corners have ink: (4,)."""
    return ink[[0, 0, -1, -1], [0, -1, 0, -1]] > EDGE


def differences(pixels: np.ndarray) -> np.ndarray:
    """The pixels minus the paper's colour.

    Paper is what most of the picture is. Its colour may change slowly across it, as under a lamp:
    a quadratic function of place for each channel, fitted so that the sum of distances is least
    (a sum of squares would be drawn to the ink).
    """
    step = -(-max(pixels.shape) // 50)
    for small in (shrink(pixels, 50), pixels[::step, ::step]):  # without noise; without mixtures
        edges = rim(small)
        paper, outside = np.median(small, axis=(0, 1)), np.median(edges, axis=0)
        if 0.5 < near(edges, outside) < 0.97 and 0.3 < near(small, outside) < 0.6:
            return pixels - outside  # a bold digit that fills the picture: ink is the most
        if near(small, paper) > 0.5:
            return pixels - paper
        if near(edges, outside) > 0.97 and near(small, outside) > 0.3:  # a desk, and a sheet on it
            return pixels - outside
    terms, known = quadratic(*pixels.shape[:2]), quadratic(*small.shape[:2]).reshape(-1, 6)
    wanted, weight = small.reshape(-1, 3), np.ones((len(known), 1), np.float32)
    for _ in range(20):  # least squares, again and again, with less weight for what is far off
        found = np.linalg.lstsq(known * weight, wanted * weight, rcond=None)[0]
        far = np.linalg.norm(wanted - known @ found, axis=1, keepdims=True)
        weight = 1 / np.sqrt(np.maximum(far, 1.0))
    return pixels - terms @ found


def rim(array: np.ndarray) -> np.ndarray:
    """The pixels along the four edges."""
    return np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])


def near(pixels: np.ndarray, colour: np.ndarray) -> float:
    """The share of the pixels that have this colour, or nearly."""
    return float((np.linalg.norm(pixels - colour, axis=-1) < LEAST).mean())


def quadratic(height: int, width: int) -> np.ndarray:
    """1, x, y, x^2, x y, y^2 at every pixel, x and y from -1 to 1: (H, W, 6)."""
    y, x = ((np.arange(n, dtype=np.float32) * 2 + 1) / n - 1 for n in (height, width))
    x, y = np.meshgrid(x, y)
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def level(value: np.ndarray, noise: float) -> np.ndarray:
    """Differences from paper -> ink from 0 to 1, without the paper's noise."""
    value = np.where(value < max(LEAST, 4 * noise), 0, value)
    return drop_specks(np.minimum(value / strength(value), 1))


def strength(ink: np.ndarray) -> float:
    """The value of typical ink: half of all that is, weighted by squares, is stronger."""
    values = np.sort(ink[ink > 0].astype(np.float64))
    if not len(values):
        return 1.0
    return float(values[np.searchsorted(np.cumsum(values**2), (values**2).sum() / 2)])


def wide(value: np.ndarray) -> np.ndarray:
    """What is wider than a quarter of the picture, or goes on beyond its edge: its lowest value
    within a distance, and of these the highest within the same (an opening)."""
    cell = -(-max(value.shape) // 60)
    cells = blocks(value, cell).max(axis=(1, 3))
    height, width = cells.shape
    radius = min(cells.shape) // 8
    margin = 2 * radius + 1
    padded = np.pad(cells, margin, mode="edge")  # as if it went on outside
    opened = grow(-grow(-padded, radius), radius + 1)[margin:, margin:][:height, :width]
    opened = opened.repeat(cell, axis=0).repeat(cell, axis=1)
    return opened[: len(value), : len(value[0])]


def has_margin(ink: np.ndarray) -> bool:
    """Do all pieces of ink keep off the edges? Those of a digit that fills the picture do not."""
    _, labels, _, boxes = pieces(ink)
    if not boxes:
        return False
    tops, bottoms, starts, ends = np.array(list(boxes.values())).T
    height, width = labels.shape
    room = min(tops.min(), height - bottoms.max(), starts.min(), width - ends.max())
    return room > 0 and max((bottoms - tops).max(), (ends - starts).max()) > 5


def drop_specks(ink: np.ndarray) -> np.ndarray:
    """Without single pixels, or two together."""
    mask = np.pad(ink > EDGE, 1).astype(np.int8)
    rows = mask[:-2] + mask[1:-1] + mask[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return np.where((ink > EDGE) & (around < 3), 0, ink)


def drop_lines(ink: np.ndarray, most: float) -> np.ndarray:
    """Without lines from edge to edge: those of ruled paper, a frame, a scanner's edge.

    `most`: how wide a line may be, as a share of the picture; a pixel more is a line's blurred rim.
    Where strokes cross a line, what is on both sides of it remains.
    """
    left = ink.copy()
    for view in (left, left.T):
        lines = (view > EDGE).mean(axis=1) > 0.85
        edges = np.flatnonzero(np.diff(lines, prepend=False, append=False))
        for start, stop in edges.reshape(-1, 2):
            if stop - start <= most * max(ink.shape) + (len(view) > 50):
                start, stop = max(0, start - 1), min(len(view), stop + 1)  # and their blurred rims
                above = view[start - 1] if start > 0 else np.zeros_like(view[0])
                below = view[stop] if stop < len(view) else np.zeros_like(view[0])
                view[start:stop] = np.minimum(above, below)
    return left


def blocks(ink: np.ndarray, cell: int) -> np.ndarray:
    """(H, W) -> (h, cell, w, cell); the last blocks are filled with what is at the edge."""
    height, width = (-(-n // cell) for n in ink.shape)
    more = ((0, height * cell - len(ink)), (0, width * cell - len(ink[0])))
    padded = np.pad(ink, more, mode="edge")
    return padded.reshape(height, cell, width, cell)


def pieces(ink: np.ndarray) -> tuple[int, np.ndarray, np.ndarray, dict[Any, Any]]:
    """Ink that hangs together, or nearly: in cells of `cell` x `cell` pixels, the number of the
    piece (0: paper), how much ink each has, and boxes around those that have more than a little."""
    cell = max(1, -(-max(ink.shape) // 100))
    cells = blocks(ink, cell)
    labels = label(cells.max(axis=(1, 3)) > EDGE)
    amounts = np.bincount(labels.ravel(), cells.sum(axis=(1, 3)).ravel())
    amounts[0] = 0
    boxes = {n: box(labels == n) for n in np.flatnonzero(amounts > amounts.max() / 50)}
    for n, outer in list(boxes.items()):
        if any(is_frame(outer, inner, amounts[n] / cell**2) for inner in boxes.values()):
            amounts[n] = 0
    boxes = {n: found for n, found in boxes.items() if amounts[n] > amounts.max() / 12}
    return cell, labels, amounts, boxes


def is_frame(outer: Box, inner: Box, area: float) -> bool:
    """Is a piece with this box and area a thin line around another, not a zero with a dot?"""
    (top, bottom, start, end), (up, down, left, right) = outer, inner
    around = top < up and down < bottom and start < left and right < end
    height, width = bottom - top, end - start
    return around and down - up > 0.15 * height and area < 0.18 * height * width


def keep_digit(ink: np.ndarray) -> np.ndarray:
    """The part with the digit, which may be of several pieces; specks have little ink."""
    cell, labels, amounts, boxes = pieces(ink)
    top, bottom, start, end = boxes[max(boxes, key=lambda n: amounts[n])]
    if max(bottom - top, end - start) * cell < 6:
        raise BadPicture("it shows no digit: there are only specks on it")
    for other in boxes.values():
        aside, tall = max(other[2] - end, start - other[3]), other[1] - other[0]
        if aside > max(1, (bottom - top) // 8) and 0.5 < tall / (bottom - top) < 2:
            raise BadPicture("it shows more than one digit; cut out one")
    mask = grow(np.isin(labels, list(boxes)), 1)
    mask = mask.repeat(cell, axis=0).repeat(cell, axis=1)[: ink.shape[0], : ink.shape[1]]
    ink = np.where(mask, ink, 0)
    top, bottom, start, end = box(ink > 0)
    return ink[top:bottom, start:end]


def label(mask: np.ndarray) -> np.ndarray:
    """A number from 1 on for each piece of what is True, 0 elsewhere; corners join."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # each cell takes the highest number around it, until nothing changes
        spread = np.where(mask, grow(labels, 1), 0)
        if (spread == labels).all():
            numbers = np.unique(np.append(0, labels), return_inverse=True)[1]
            return numbers[1:].reshape(mask.shape)
        labels = spread


def grow(array: np.ndarray, radius: float) -> np.ndarray:
    """The highest of the values within `radius` (1: of the eight around, too)."""
    reach = int(radius)
    padded = np.pad(array, reach)
    height, width = array.shape
    grown = array.copy()
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dy * dy + dx * dx <= radius * radius + 1:
                part = padded[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
                np.maximum(grown, part, out=grown)
    return grown


def box(mask: np.ndarray) -> Box:
    """(top, bottom, left, right) around what is True."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def fit(ink: np.ndarray) -> np.ndarray:
    """The longest side to BOX * FINE, the other in proportion."""
    height, width = (max(FINE, round(n * BOX * FINE / max(ink.shape))) for n in ink.shape)
    return resample(resample(ink, height).T, width).T


def resample(ink: np.ndarray, rows: int) -> np.ndarray:
    """(H, W) -> float32 (rows, W): each row the mean of those whose middles lie in it, or, if there
    are more rows than before, the one in which its own middle lies."""
    scale = len(ink) / rows
    if scale <= 1:
        return ink[((np.arange(rows) + 0.5) * scale).astype(int)].astype(np.float32)
    edges = (np.arange(rows + 1) * scale + 0.5).astype(int)
    sums = np.add.reduceat(ink.astype(np.float64), edges[:-1], axis=0)
    return (sums / np.diff(edges)[:, None]).astype(np.float32)


def thicken(ink: np.ndarray) -> np.ndarray:
    """Strokes at least as wide as most of MNIST's: a pencil's line would vanish in 28 x 28."""
    ink = np.minimum(ink / strength(ink), 1)  # fine lines of a large picture became fainter
    more = (PEN - stroke_width(ink) / FINE) / 2 * FINE  # to each side
    return fit(grow(np.pad(ink, int(more) + 1), more)) if more > 0 else ink


def stroke_width(ink: np.ndarray) -> float:
    """Of strokes of length L and width w: area L w, outline 2 L."""
    mask = np.pad(ink > 0.5, 1)
    crossings = np.diff(mask, axis=0).sum() + np.diff(mask, axis=1).sum()
    return 2 * mask.sum() / max(1, np.pi / 4 * crossings)  # Crofton: crossings of a grid


def centre(ink: np.ndarray) -> np.ndarray:
    """(h, w) of FINE pixels for one of ours -> uint8 (28, 28), moved by whole pixels of ours."""
    small = [-(-n // FINE) for n in ink.shape]
    padded = np.zeros([n * FINE for n in small], np.float32)
    top, left = (n * FINE - m for n, m in zip(small, ink.shape, strict=True))
    padded[top // 2 :, left // 2 :][: ink.shape[0], : ink.shape[1]] = ink
    ink = padded.reshape(small[0], FINE, small[1], FINE).mean(axis=(1, 3))
    digit = np.zeros((SIZE, SIZE), np.uint8)
    places = []
    for axis, n in enumerate(small):
        mass = ink.sum(axis=1 - axis)
        middle = (mass * (np.arange(n) + 0.5)).sum() / mass.sum()
        places.append(int(np.clip(np.ceil(SIZE / 2 - middle), 0, SIZE - n)))
    y, x = places
    digit[y : y + small[0], x : x + small[1]] = np.rint(255 * ink)
    return digit
