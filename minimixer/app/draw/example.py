"""The drawing that the page starts with, a 3: as strokes for the pad, and as ink.

The page without a server has to show something before minimixer runs in it. So what is to be seen
of the example is computed when the page is written, from ink drawn here as the pad draws it: a
round pen that follows curves from the middle of one line to the middle of the next.

>>> from minimixer.app.draw.example import ink
>>> drawn = ink(140)
>>> drawn.shape, int(drawn.max()), bool(drawn.mean() < 40)
((140, 140), 255, True)
"""

import numpy as np

PEN = 24 / 280  # of the pad's side: the pen's width
STROKES = [[
    (0.3, 0.2), (0.38, 0.14), (0.5, 0.12), (0.62, 0.16), (0.67, 0.26), (0.63, 0.37), (0.53, 0.44),
    (0.44, 0.47), (0.53, 0.48), (0.65, 0.54), (0.71, 0.66), (0.68, 0.79), (0.57, 0.87),
    (0.43, 0.88), (0.3, 0.8),
]]  # fmt: skip


def ink(side: int) -> np.ndarray:
    """The strokes on paper: uint8 (side, side), 255 where the pen was."""
    middles = (np.arange(side) + 0.5) / side
    grid = np.stack(np.meshgrid(middles, middles), axis=-1)[:, :, None]  # (side, side, 1, 2)
    far = np.full((side, side), np.inf)
    for stroke in STROKES:
        away = np.linalg.norm(grid - _path(np.array(stroke)), axis=-1).min(axis=-1)
        far = np.minimum(far, away)
    cover = (PEN / 2 - far) * side + 0.5  # of the pixel, about
    return np.rint(255 * np.clip(cover, 0, 1)).astype(np.uint8)


def _path(points: np.ndarray) -> np.ndarray:
    """Points (n, 2) -> points close together on the curve that the pad draws through them."""
    ends = (points[:-1] + points[1:]) / 2
    starts = np.concatenate([points[:1], ends[:-1]])
    t = np.linspace(0, 1, 12)[:, None]
    curves = [(1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
              for a, b, c in zip(starts, points[:-1], ends, strict=True)]  # fmt: skip
    return np.concatenate([*curves, points[-1:]])
