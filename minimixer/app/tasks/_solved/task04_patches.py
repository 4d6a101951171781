"""Task 4: a reshape's gradient. About 20 minutes.

A Mixer cuts an image into patches; put them together again. x (S, B, P P C) are the patches of B
images in reading order, S = rows columns of them, each with its P x P pixels of C channels in
(row, column, channel) order. y (B, rows P, columns P, C) are the images. Write `forward` and
`backward`: no arithmetic, numbers only move. Two images and more must not mix.

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


def test(task, check) -> None:
    rows, columns, patch, batch, channels = 2, 3, 2, 2, 3
    x = check.draw(rows * columns, batch, patch * patch * channels)
    six = rows, columns, batch, patch, patch, channels
    options = dict(rows=rows, columns=columns, patch=patch)
    image = batch, rows * patch, columns * patch, channels
    right = np.empty(image)
    places = [
        (n, slice(i * patch, (i + 1) * patch), slice(j * patch, (j + 1) * patch))
        for i, j, n in np.ndindex(rows, columns, batch)
    ]
    patches = x.reshape(-1, patch, patch, channels)
    for one, place in zip(patches, places, strict=True):
        right[place] = one
    check.compare("y", check.forward(task.JoinPatches, x, **options), right, {
        "y has x's numbers in x's order: a reshape alone moves none": x.reshape(image),
        "the pixels within each patch are transposed: rows and columns change places":
            x.reshape(six).transpose(2, 0, 4, 1, 3, 5).reshape(image),
        "the patches are laid down column by column; reading order goes along the rows":
            x.reshape(columns, rows, *six[2:]).transpose(2, 1, 3, 0, 4, 5).reshape(image),
        "images are mixed: B is an axis of its own, behind S":
            x.reshape(batch, rows, columns, *six[3:]).transpose(0, 1, 3, 2, 4, 5).reshape(image),
    })  # fmt: skip
    _, dy, (dx,) = check.both_ways(task.JoinPatches, x, **options)
    back = np.stack([dy[place] for place in places])
    apart = dy.reshape(batch, rows, patch, columns, patch, channels)
    check.compare("dx", dx, back.reshape(x.shape), {
        "dx has dy's numbers in dy's order: it has the right shape, but forward moved the numbers, "
        "and backward must move them back": dy.reshape(x.shape),
        "backward moves the axes as forward did; it needs the inverse permutation":
            apart.transpose(2, 0, 3, 1, 4, 5).reshape(x.shape),
        "backward transposes the pixels within each patch":
            apart.transpose(1, 3, 0, 4, 2, 5).reshape(x.shape),
        "backward puts the images before the patches: x is (S, B, P P C)":
            apart.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape),
    })  # fmt: skip
    check.both_dtypes(task.JoinPatches, x, **options)
