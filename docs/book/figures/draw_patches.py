"""A digit cut into patches, and what the cut does to numbers in memory."""

import numpy as np
from picture import Picture

from minimixer import Tensor, data
from minimixer.model.images import cut_patches

PATCH = 7  # pixels along a side; of a digit
CHOSEN = 6  # the patch that is framed


def draw() -> dict[str, str]:
    return {"patches.svg": digit(), "patches_order.svg": order()}


def digit() -> str:
    _, _, images, _ = data.load_mnist()
    image = images[:1].astype("float64")  # (1, 28, 28, 1)
    tokens = cut_patches(Tensor(image), PATCH).data[:, 0]  # (S, P P)
    along = 28 // PATCH
    picture = Picture(
        284,
        f"A digit of 28 x 28 pixels, cut into {len(tokens)} patches of {PATCH} x {PATCH}; beside "
        f"it the same pixels as a table of {len(tokens)} rows, the tokens, of {PATCH**2} numbers. "
        f"Patch {CHOSEN} is framed in both.",
    )
    left, top, pixel = 18, 48, 6.5
    side = PATCH * pixel
    picture.text(left + 2 * side, 30, "28 x 28 pixels", "bold")
    picture.table(left, top, image[0, :, :, 0], pixel, 255)
    for i in range(1, along):
        picture.path(f"M{left + i * side} {top}v{along * side}", "frame")
        picture.path(f"M{left} {top + i * side}h{along * side}", "frame")
    row, column = divmod(CHOSEN, along)
    picture.rect(left + column * side, top + row * side, side, side, "mark", 2)
    for s in range(len(tokens)):
        x, y = left + (s % along) * side, top + (s // along) * side
        picture.text(x + 5, y + 15, str(s), "small left")
    cell, tall = 4, 4 * side / len(tokens)
    right = 440 - 16 - 49 * cell
    picture.text(right + 49 * cell / 2, 30, f"{len(tokens)} tokens of {PATCH**2}", "bold")
    picture.table(right, top, tokens, cell, 255, tall)
    for s in range(1, len(tokens)):
        picture.path(f"M{right} {top + s * tall:g}h{49 * cell}", "thin")
    picture.rect(right - 1, top + CHOSEN * tall - 1, 49 * cell + 2, tall + 2, "mark", 2)
    picture.text(left + 2 * side, 256, "numbered in reading order", "small")
    picture.text(right + 49 * cell / 2, 256, "one row for each patch", "small")
    return picture.svg()


def order() -> str:
    """A picture of 4 x 4 whose pixels are their own places in memory, and patches of 2 x 2."""
    image = np.arange(16)
    tokens = cut_patches(Tensor(image.reshape(1, 4, 4, 1).astype("float64")), 2).data
    places = tokens.reshape(4, 4).astype(int)  # (patch, pixel within it)
    owner = np.empty(16, int)
    for patch, pixels in enumerate(places):
        owner[pixels] = patch
    picture = Picture(
        292,
        "16 pixels in memory, row after row of the picture, and after cutting, patch after patch: "
        f"{', '.join(str(p) for p in places.ravel())}. The two rows of a patch, two pixels each, "
        "were apart and are now side by side.",
    )
    cell = 25
    picture.text(220, 28, "the picture", "bold")
    picture.numbered(220 - 2 * cell, 40, image.reshape(4, 4), owner.reshape(4, 4), cell)
    picture.text(20, 182, "in memory: row after row of the picture", "left")
    picture.numbered(20, 190, image[None], owner[None], cell)
    picture.text(20, 246, "cut: patch after patch, row after row of each", "left")
    picture.numbered(20, 254, places.reshape(1, 16), owner[places.reshape(1, 16)], cell)
    return picture.svg()
