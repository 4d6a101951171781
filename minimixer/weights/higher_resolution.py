"""A model for larger images, as the paper fine-tunes at a higher resolution (its appendix C).

Token mixing has one weight for each place in the image, so a larger image needs other weights. Cut
it into K x K tiles of the old size, and mix within each tile as before: W1 and W2 of K^2 S tokens
and K^2 D_S hidden units, with a copy of the old ones for each tile and zeros between tiles. The new
model thus begins as the old one, applied to each tile, with the features of all tiles averaged; and
then learns to look across.

A tile's tokens are not neighbours in the new order, which is row by row through the whole image:

    tile 0 | tile 1        0  1 |  2  3        token 5 is number 3 of tile 0,
    -------+-------        4  5 |  6  7        token 8 is number 0 of tile 2
    tile 2 | tile 3        8  9 | 10 11
                          12 13 | 14 15

>>> from minimixer.weights.higher_resolution import places
>>> places((2, 2), 2)[5], places((2, 2), 2)[8]
((0, 3), (2, 0))
"""

from typing import Any

import numpy as np

from ..model.mixer import Mixer
from ..nn.layers import check_sizes
from .remake import remake


def resize(model: Mixer, image_size: int | tuple[int, int]) -> Mixer:
    """A new model for images K times as high and as wide, K a whole number: ValueError names the
    sizes that work. In eval or training mode as the old one, on its device."""
    height, width = model.config["image_size"]
    pair = isinstance(image_size, (tuple, list)) and len(image_size) == 2
    high, wide = image_size if pair else (image_size, image_size)  # type: ignore[misc]
    check_sizes(image_height=high, image_width=wide)
    factor = high // height
    if (high, wide) != (factor * height, factor * width) or factor < 1:
        works = ", ".join(f"{k * height} x {k * width}" for k in (1, 2, 3, 4))
        raise ValueError(
            f"resize: {high} x {wide} is no whole number of times {height} x {width}; "
            f"{works} and so on are"
        )
    patch = model.config["patch_size"]
    where = places((height // patch, width // patch), factor)
    changes: dict[str, Any] = {
        "image_size": (high, wide), "tokens_mlp_dim": factor**2 * model.config["tokens_mlp_dim"]
    }  # fmt: skip
    state = model.state_dict()
    for name, value in state.items():
        kind = name.partition("token_mixing.")[2]
        if kind in ("w1", "w2"):
            state[name] = _spread(value, where, factor**2)
        elif kind == "b1":
            state[name] = np.tile(value, factor**2)
        elif kind == "b2":
            state[name] = value[[inner for _, inner in where]]
    return remake(model, state, **changes)


def places(grid: tuple[int, int], factor: int) -> list[tuple[int, int]]:
    """For each token of the larger image, row by row: (its tile, its number within the tile)."""
    rows, columns = grid
    return [
        (row // rows * factor + column // columns, row % rows * columns + column % columns)
        for row in range(factor * rows)
        for column in range(factor * columns)
    ]


def _spread(weight: np.ndarray, where: list[tuple[int, int]], tiles: int) -> np.ndarray:
    """(S, D_S) -> (K^2 S, K^2 D_S): token i of tile k has the old weights of its place in the
    k-th stretch of hidden units, and zeros elsewhere."""
    hidden = weight.shape[1]
    larger = np.zeros((len(where), tiles * hidden), dtype=weight.dtype)
    for token, (tile, inner) in enumerate(where):
        larger[token, tile * hidden : (tile + 1) * hidden] = weight[inner]
    return larger
