"""The same batches as data.py's, made on the GPU that trains, of a data set that lies there.

A thread that shifts images takes Python's time from the loop that asks the GPU for its steps; on
the GPU a hundred batches take as long as one. Which images, in which order, moved how far are pure
functions of seed, epoch and example, and so the same wherever they are made.

>>> import numpy as np
>>> from minimixer.training.data import Batches
>>> from minimixer.training.gpu_batches import on_device
>>> batches = Batches(np.zeros((5, 8, 8, 1), np.uint8), np.arange(5), batch_size=2)
>>> on_device(batches, "cpu") is batches
True
"""

from collections.abc import Iterator

import numpy as np

from ..engine.arrays import Array, device_of, namespace, to_device
from ..engine.checks import check_integer
from ..engine.dispatch import replaceable
from ..engine.random import Purpose, random_bits
from .data import Batches
from .prefetch import Epoch

AT_ONCE = 1 << 26  # bytes of images that are made together
SHARE = 8  # data may take one part in so many of what memory the GPU has left


def on_device(batches: Batches, device: str) -> Batches:
    """The same batches as arrays of `device`; or as they are, for the CPU, and if the data would
    take much of the GPU's memory."""
    images = placed(batches.images, device)
    return batches if images is batches.images else GpuBatches(batches, images)


def placed(images: np.ndarray, device: str) -> Array:
    """The images on the device; or as they are, if they would take much of a GPU's memory."""
    if device == "cpu":
        return images
    near = to_device(images[:1], device)
    free = namespace(near).cuda.runtime.memGetInfo()[0]
    return images if images.nbytes > free // SHARE else to_device(images, device)


class GpuBatches(Batches):
    """`batches`, whose images lie on a GPU."""

    def __init__(self, batches: Batches, images: Array):
        vars(self).update(vars(batches))
        self.images = images
        self.labels = to_device(batches.labels, device_of(images))

    def batch(self, epoch: int, index: int) -> tuple[Array, Array]:
        """As of Batches."""
        return self._made(epoch, check_integer("index", index, 0, len(self) - 1), 1)

    def epoch(self, epoch: int, start: int = 0) -> Epoch:
        """As of Batches; made many at a time."""
        epoch = check_integer("epoch", epoch, 0, (1 << 64) - 1)
        start = check_integer("start", start, 0, len(self))
        return Epoch(self._one_by_one(epoch, start), len(self) - start)

    def _one_by_one(self, epoch: int, start: int) -> Iterator[tuple[Array, Array]]:
        size = self.batch_size
        count = max(1, AT_ONCE // (size * self.images[0].nbytes))
        for index in range(start, len(self), count):
            images, labels = self._made(epoch, index, count)
            for first in range(0, len(labels), size):
                yield images[first : first + size], labels[first : first + size]

    def _made(self, epoch: int, index: int, count: int) -> tuple[Array, Array]:
        """So many batches in one."""
        start = index * self.batch_size
        examples = self.order(epoch)[start : start + count * self.batch_size]
        examples = to_device(examples, device_of(self.images))
        images = self.images[examples]
        if self.max_shift:
            xp, counters = namespace(images), examples.astype(np.uint64)[:, None]
            axes = xp.arange(2, dtype=np.uint64)
            bits = random_bits(self.seed, Purpose.SHIFT, epoch, 0, counters, axes)
            shifts = (bits % np.uint64(2 * self.max_shift + 1)).astype(np.int64) - self.max_shift
            images = shifted(images, shifts)
        return images, self.labels[examples]


@replaceable
def shifted(images: Array, shifts: Array) -> Array:
    """shift_images (data.py) without a copy for each way to move; shifts int64."""
    xp, (batch, height, width, _) = namespace(images), images.shape
    row = xp.arange(height)[:, None] - shifts[:, 0, None, None]  # (B, H, 1): where each came from
    column = xp.arange(width) - shifts[:, 1, None, None]  # (B, 1, W)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    found = images[xp.arange(batch)[:, None, None], row.clip(0, height - 1),
                   column.clip(0, width - 1)]  # fmt: skip
    return xp.where(inside[..., None], found, images.dtype.type(0))
