"""Task 4: a reshape's gradient. About 20 minutes.

A Mixer cuts an image into patches; put them together again. x (S, B, P P C) are the patches of B
images in reading order, S = rows columns of them, each with its P x P pixels of C channels in
(row, column, channel) order. y (B, rows P, columns P, C) are the images. Write `forward` and
`backward`: no arithmetic, numbers only move. Two images and more must not mix. rows, columns and
patch (P) are options: whole numbers, named in the call, which get no gradient; so backward returns
dx alone. forward keeps of them what backward needs. C is not given: x's last axis and P say it.

Read: minimixer/engine/rearrange.py (Reshape, Transpose), minimixer/model/images.py (cut_patches,
the way there).
"""

import numpy as np

from minimixer import Function


class JoinPatches(Function):
    """Tokens (S, B, P P C) -> images (B, rows P, columns P, C)"""

    def forward(self, x, rows, columns, patch):
        # solution: write forward, which returns the images
        _, batch, size = x.shape
        self.sizes = rows, columns, batch, patch, patch, size // patch**2
        y = x.reshape(self.sizes).transpose(2, 0, 3, 1, 4, 5)  # (B, rows, P, columns, P, C)
        return y.reshape(batch, rows * patch, columns * patch, -1)
        # end of solution

    def backward(self, dy):
        # solution: write backward, which returns dx, of x's shape
        rows, columns, batch, patch, _, channels = self.sizes
        dx = dy.reshape(batch, rows, patch, columns, patch, channels).transpose(1, 3, 0, 2, 4, 5)
        return dx.reshape(rows * columns, batch, patch * patch * channels)
        # end of solution


# ---- what follows stays in minimixer -------------------------------------------------------------

HINTS = (
    "A reshape can split an axis into several and join neighbours into one, but never changes the "
    "order of the numbers. A transpose changes the order of the axes. Which order must the axes "
    "have, so that rows of pixels lie next to each other in an image?",
    "Split x into six axes, (rows, columns, B, P, P, C); bring them into the order (B, rows, P, "
    "columns, P, C); join rows with P, and columns with P. Backward does the same from the end: it "
    "splits, brings the axes back (the inverse permutation), and joins.",
    "transpose(2, 0, 3, 1, 4, 5) leads there; axis 0 of its input is axis 1 of its output, axis 1 "
    "is axis 3, axis 2 is axis 0, and so on: transpose(1, 3, 0, 2, 4, 5) leads back.",
)


PATCHES = [(*split, "row in P", "column in P", "C") for split in (
    ("rows", "columns", "B"), ("columns", "rows", "B"),
    ("B", "rows", "columns"), ("B", "columns", "rows"),
)]  # fmt: skip
IMAGES = [("B", *split, "C") for split in (
    ("rows", "row in P", "columns", "column in P"), ("row in P", "rows", "columns", "column in P"),
    ("rows", "row in P", "column in P", "columns"), ("row in P", "rows", "column in P", "columns"),
)]  # fmt: skip


def moved(found, array, splits, sizes):
    """How `found` is made of `array`: split into which axes, and in which order; or nothing."""
    import itertools

    for split in splits:
        six = array.reshape([sizes[name] for name in split])
        for axes in itertools.permutations(range(6)):
            if (six.transpose(axes).reshape(found.shape) == found).all():
                order = ", ".join(split[i] for i in axes)
                return split, f"split into ({', '.join(split)}) and put in the order ({order})"
    return None


def test(task, check) -> None:
    # No two sizes are equal: each stands where it belongs, or nothing fits.
    cases = (2, 4, 3, 5, 6), (3, 2, 5, 1, 4)
    for case in cases:
        forward(task, check, *case)
    check.forward_is_right(backward, task, check, cases)


def places_of(rows, columns, patch, batch):
    """Where in the images each patch lies, in the order of x."""
    return [
        (n, slice(i * patch, (i + 1) * patch), slice(j * patch, (j + 1) * patch))
        for i, j, n in np.ndindex(rows, columns, batch)
    ]


def forward(task, check, rows, columns, patch, batch, channels):
    x = check.draw(rows * columns, batch, patch * patch * channels)
    six = rows, columns, batch, patch, patch, channels
    image = batch, rows * patch, columns * patch, channels
    right = np.empty(image)
    patches = x.reshape(-1, patch, patch, channels)
    for pixels, place in zip(patches, places_of(rows, columns, patch, batch), strict=True):
        right[place] = pixels
    y = check.forward(task.JoinPatches, x, rows=rows, columns=columns, patch=patch)
    mistakes = {
        "y has x's numbers in x's order: a reshape alone moves none": x.reshape(image),
        "the pixels within each patch are transposed: rows and columns change places":
            x.reshape(six).transpose(2, 0, 4, 1, 3, 5).reshape(image),
        "the patches are laid down column by column; reading order goes along the rows":
            x.reshape(columns, rows, *six[2:]).transpose(2, 1, 3, 0, 4, 5).reshape(image),
        "images are mixed: B is an axis of its own, behind S":
            x.reshape(batch, rows, columns, *six[3:]).transpose(0, 1, 3, 2, 4, 5).reshape(image),
    }  # fmt: skip
    if y.shape == image and not (y == right).all():
        way = moved(y, x, PATCHES, dict(zip(PATCHES[0], six, strict=True)))
        if way:
            split, how = way
            but = "Which axes does one go through along the uppermost row of pixels of an image?"
            if split != PATCHES[0]:
                but = "But x lies as (rows, columns, B, ...): the split must begin so."
            mistakes[f"y is x {how}. {but}"] = y
    check.compare("y", y, right, mistakes)


def backward(task, check, cases):
    for case in cases:
        back(task, check, *case)
    x = check.draw(6, 5, 4 * 7)
    check.both_dtypes(task.JoinPatches, x, rows=2, columns=3, patch=2)


def back(task, check, rows, columns, patch, batch, channels):
    x = check.draw(rows * columns, batch, patch * patch * channels)
    options = dict(rows=rows, columns=columns, patch=patch)
    _, dy, (dx,) = check.both_ways(task.JoinPatches, x, **options)
    places = places_of(rows, columns, patch, batch)
    right = np.stack([dy[place] for place in places]).reshape(x.shape)
    apart = dy.reshape(batch, rows, patch, columns, patch, channels)
    mistakes = {
        "dx has dy's numbers in dy's order: forward moved them, and backward must move them back":
            dy.reshape(x.shape),
        "backward moves the axes as forward did; it needs the inverse permutation":
            apart.transpose(2, 0, 3, 1, 4, 5).reshape(x.shape),
        "backward transposes the pixels within each patch":
            apart.transpose(1, 3, 0, 4, 2, 5).reshape(x.shape),
        "backward puts the images before the patches: x is (S, B, P P C)":
            apart.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape),
    }  # fmt: skip
    if getattr(dx, "shape", ()) == x.shape and not (dx == right).all():
        sizes = dict(zip(PATCHES[0], (rows, columns, batch, patch, patch, channels), strict=True))
        way = moved(dx, dy, IMAGES, sizes)
        if way:
            mistakes[f"dx is dy {way[1]}. But x has the patch's place first, then the image, then "
                     "the pixel."] = dx  # fmt: skip
    check.compare("dx", dx, right, mistakes)
