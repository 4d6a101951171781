"""Pictures of letters without end: image number n is a function of (seed, n), 32 x 32 pixels, RGB.

A letter of a random font and form, turned by up to 20 degrees, slanted, stretched, 14 to 28 pixels
large, anywhere that it fits, in a random colour; behind it a second colour mixed into a third by a
large piece of another letter; all with a little noise. Fonts are those of `glyphs.py`, whole groups
of which are never drawn for training.

All arithmetic on pixels is on integers, so the same bytes come out on every machine.

>>> atlas = np.zeros((2, 50, 32, 32), np.uint8)                   # two fonts, without ink
>>> images, labels = draw(atlas, seed=0, numbers=np.arange(3))
>>> images.shape, images.dtype, labels.shape
((3, 32, 32, 3), dtype('uint8'), (3,))
>>> alone, _ = draw(atlas, seed=0, numbers=np.arange(2, 3))
>>> bool((alone[0] == images[2]).all())
True
"""

import contextlib
import os

import numpy as np

from comparison.glyphs import CLASSES, FORMS, SIDE
from minimixer.backend import random_bits
from minimixer.training.prefetch import start_threads

LETTERS, PIXELS = 205, 206  # purposes of random numbers, above those of data.py
ONE = 1 << 12  # fixed point: a coordinate of one pixel
AT_ONCE = 128  # images of one call, whose arrays then fit into a processor's cache
CENTRE = (SIDE - 1) * ONE // 2


def draw(atlas: np.ndarray, seed: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Letters uint8 (fonts, 50, 32, 32), numbers int64 (n,) -> images uint8 (n, 32, 32, 3), labels
    int64 (n,)."""
    many = np.asarray(numbers)[:, None]
    bits = random_bits(seed, LETTERS, 0, 0, many, np.arange(24))  # (n, 24)
    u = (bits >> np.uint64(40)).astype(np.float64) * 2.0**-24  # in [0, 1)
    font, form = (u[:, 0] * len(atlas)).astype(int), (u[:, 1] * len(FORMS)).astype(int)
    glyphs = atlas.reshape(-1, SIDE, SIDE)
    ink = sample(glyphs, font * len(FORMS) + form, *placed(u[:, 2:8], least=14, most=28))
    other = (u[:, 8] * len(glyphs)).astype(int)
    behind = sample(glyphs, other, *placed(u[:, 9:15], least=64, most=128))
    colours = (u[:, 15:24].reshape(-1, 3, 3) * 256).astype(np.int32)  # letter, ground, second
    ground, second = colours[:, 1], (colours[:, 1] * 2 + colours[:, 2]) // 3
    letter = contrast(colours[:, 0], (ground + second) // 2)
    image = mix(mix(ground[:, None], second[:, None], behind[..., None]),
                letter[:, None], ink[..., None])  # fmt: skip
    noise = random_bits(seed, PIXELS, 0, 0, many, np.arange(SIDE * SIDE))
    image += (noise[..., None] >> np.array([0, 8, 16], np.uint64) & np.uint64(15)).astype(np.int32)
    image -= 8
    images = np.clip(image, 0, 255).astype(np.uint8).reshape(-1, SIDE, SIDE, 3)
    return images, CLASSES[form]


def draw_many(atlas: np.ndarray, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers 0 to count - 1, by a thread for each processor."""
    images, labels = np.empty((count, SIDE, SIDE, 3), np.uint8), np.empty(count, np.int64)

    def fill(start: int) -> None:
        part = slice(start, min(start + AT_ONCE, count))
        images[part], labels[part] = draw(atlas, seed, np.arange(part.start, part.stop))

    # Of the processors that it may use: on fewer of them more threads get in each other's way.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = start_threads(cores or 1)
    with pool or contextlib.nullcontext():
        for _ in (pool.map if pool else map)(fill, range(0, count, AT_ONCE)):
            pass
    return images, labels


def placed(u: np.ndarray, least: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Random numbers (n, 6) -> where each pixel of n images lies in its letter's own image: int32
    rows and columns, (n, 32 * 32), in 1 / ONE pixels."""
    size = least + (most - least) * u[:, 0]
    angle, slant, stretch = np.pi / 9 * (2 * u[:, 1] - 1), 0.6 * u[:, 2] - 0.3, 2 ** (u[:, 3] - 0.5)
    scale = SIDE / size
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    # Back from the picture to the letter: turned, then slanted, then stretched.
    rows = np.stack([cos, -sin], axis=1) / np.sqrt(stretch)[:, None]
    columns = np.stack([sin + slant * cos, cos - slant * sin], axis=1) * np.sqrt(stretch)[:, None]
    free = abs(SIDE - size) / 2
    shift = np.round((2 * u[:, 4:6] - 1) * free[:, None] * ONE).astype(np.int64)  # (n, 2)
    place = np.arange(SIDE) * ONE - CENTRE
    down, right = place - shift[:, :1], place - shift[:, 1:]  # (n, 32)

    def along(vector: np.ndarray) -> np.ndarray:
        fixed = np.round(vector * ONE).astype(np.int64)
        total = fixed[:, :1, None] * down[:, :, None] + fixed[:, 1:, None] * right[:, None, :]
        return ((total // ONE) + CENTRE).astype(np.int32).reshape(len(u), -1)

    return along(rows), along(columns)


def sample(
    glyphs: np.ndarray, which: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Ink of n letters at (n, pixels) places, bilinear, 0 outside: int32 in 0 ... 255."""
    padded = np.zeros((len(which), SIDE + 2, SIDE + 2), np.int32)
    padded[:, 1:-1, 1:-1] = glyphs[which]
    top = np.clip(rows, -ONE, SIDE * ONE - 1)
    left = np.clip(columns, -ONE, SIDE * ONE - 1)
    first = (top // ONE + 1) * (SIDE + 2) + left // ONE + 1
    first += (np.arange(len(which), dtype=np.int32) * (SIDE + 2) ** 2)[:, None]
    flat = padded.reshape(-1)
    down, right = top % ONE >> 4, left % ONE >> 4  # in 1 / 256
    upper = flat[first] * (256 - right) + flat[first + 1] * right
    first += SIDE + 2
    lower = flat[first] * (256 - right) + flat[first + 1] * right
    return (upper * (256 - down) + lower * down) >> 16


def mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """a where share is 0, b where it is 255."""
    return a + (b - a) * share // 255


def contrast(letter: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Colours (n, 3), moved half the circle of values on in each channel where letter and ground
    differ by less than 60 in the mean."""
    near = abs(letter - ground).mean(axis=1, keepdims=True) < 60
    return np.where(near, (ground + 128) % 256, letter)
