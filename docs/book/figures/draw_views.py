"""One stretch of memory, (S, B, C), looked at as two matrices."""

import numpy as np
from picture import Picture

S, B, C = 3, 2, 4
CELL = 24


def draw() -> dict[str, str]:
    x = np.arange(S * B * C).reshape(S, B, C)
    token, image = np.indices(x.shape)[:2]
    kinds = 2 * token + image  # a colour for each token, light and dark for the images
    wide, tall = x.reshape(S, B * C), x.reshape(S * B, C)
    assert np.shares_memory(x, wide) and np.shares_memory(x, tall)
    picture = Picture(
        456,
        f"24 numbers in memory: {S} tokens of {B} images with {C} channels. As a matrix of {S} "
        f"rows of {B * C} they meet W1 from the left, which mixes tokens; as one of {S * B} rows "
        f"of {C} they meet W3 from the right, which mixes channels. No number has moved.",
    )
    picture.text(220, 26, f"{x.size} numbers in memory", "bold")
    colours = f"{S} tokens (colours), {B} images (light, dark), {C} channels"
    picture.text(220, 46, colours, "small")
    for half in (0, 12):  # too long for one line
        flat, kind = (
            x.reshape(1, -1)[:, half : half + 12],
            kinds.reshape(1, -1)[:, half : half + 12],
        )
        picture.numbered(76, 58 + half * 2.25, flat, kind, CELL)

    top = 168
    picture.path(f"M20 {top - 36} H420", "thin")
    picture.text(20, top - 14, "S \N{MULTIPLICATION SIGN} BC, for token mixing", "bold left")
    _weight(picture, 20, top + CELL / 2, 3, 2, "W1")
    picture.text(20 + 3 * CELL + 14, top + 1.5 * CELL + 5, "\N{MULTIPLICATION SIGN}")
    picture.numbered(122, top, wide, kinds.reshape(wide.shape), CELL)
    picture.rect(122 + 2 * CELL, top, CELL, S * CELL, "mark", 2)
    picture.text(424, top + 20, "a column:", "small right")
    picture.text(424, top + 38, "one channel's", "small right")
    picture.text(424, top + 56, "tokens", "small right")

    top = 294
    picture.path(f"M20 {top - 38} H420", "thin")
    picture.text(20, top - 14, "SB \N{MULTIPLICATION SIGN} C, for channel mixing", "bold left")
    picture.numbered(122, top, tall, kinds.reshape(tall.shape), CELL)
    picture.rect(122, top + 3 * CELL, C * CELL, CELL, "mark", 2)
    picture.text(122 + C * CELL + 14, top + 3 * CELL + 5, "\N{MULTIPLICATION SIGN}")
    _weight(picture, 122 + C * CELL + 28, top + CELL, 3, 4, "W3")
    picture.text(108, top + 3 * CELL + 8, "a row:", "small right")
    picture.text(108, top + 3 * CELL + 26, "one token's", "small right")
    picture.text(108, top + 3 * CELL + 44, "channels", "small right")
    return {"views.svg": picture.svg()}


def _weight(picture: Picture, x: float, y: float, wide: int, tall: int, name: str) -> None:
    picture.rect(x, y, wide * CELL, tall * CELL, "box")
    picture.text(x + wide * CELL / 2, y + tall * CELL / 2 + 5, name, "bold")
