"""How the pictures come: in random batches, each picture shifted a little.

A data set is two arrays, images (N, H, W, channels) in uint8 and labels (N,) in int64: MNIST is 55
MB (datasets.py reads it). Each pass through it, an epoch, has a new random order, cut into batches;
each image may be moved by a pixel or two (max_shift), so that no single pixel is learnt by heart:

>>> import numpy as np
>>> from minimixer.training.data import Batches, shift_images
>>> images = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2, 1)
>>> batches = Batches(images, np.array([0, 1, 2, 3, 4]), batch_size=2, seed=7)
>>> [labels.tolist() for _, labels in batches.epoch(0)]
[[3, 4], [1, 0], [2]]
>>> [labels.tolist() for _, labels in batches.epoch(1)]
[[1, 3], [0, 2], [4]]

An order depends on seed and epoch alone, so a run that was stopped finds its next batch at once:

>>> batches.batch(1, 2)[1].tolist()
[4]
>>> shift_images(images[:1], np.array([[0, 1]]))[0, :, :, 0].tolist()  # one pixel to the right
[[0, 0], [0, 2]]

Next: `loop.py`, a whole training run.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..engine.arrays import native  # in this machine's order of bytes
from ..engine.checks import check_integer
from ..engine.random import Purpose, random_bits  # of seed, purpose and four numbers: one hash
from .datasets import DataSet as DataSet
from .datasets import load_directory as load_directory
from .datasets import load_mnist as load_mnist
from .datasets import num_classes as num_classes
from .datasets import pixel_mean_std as pixel_mean_std
from .idx import read_idx as read_idx
from .idx import write_idx as write_idx
from .prefetch import Epoch, prefetched  # batch after batch, made ahead by a thread


def shift_images(images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Move image b down by shifts[b, 0] rows and right by shifts[b, 1] columns; zeros come in.
    images (B, H, W, channels), shifts integers (B, 2) -> as images, a copy. ValueError for other
    shapes, TypeError if shifts are not integers."""
    images, shifts = np.asarray(images), np.asarray(shifts)
    if images.ndim != 4 or shifts.shape != (len(images), 2):
        met = f"{images.shape} and {shifts.shape}"
        raise ValueError(f"shift_images: needs (B, H, W, channels) and shifts (B, 2), not {met}")
    if shifts.dtype.kind not in "iu" or not np.can_cast(shifts.dtype, np.int64):
        raise TypeError(f"shift_images: shifts must be integers that fit int64, not {shifts.dtype}")
    batch, height, width, channels = images.shape
    shifts = np.clip(shifts.astype(np.int64), [-height, -width], [height, width])
    # With a margin as wide as the largest shift, a shifted image is a window of the padded one.
    # Picking one for each image copies rows, not pixels: a quarter of a Python loop's time.
    top, left = abs(shifts).max(axis=0, initial=0).tolist()
    padded = np.zeros((batch, height + 2 * top, width + 2 * left, channels), images.dtype)
    padded[:, top : top + height, left : left + width] = images
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    windows = np.moveaxis(windows, 3, -1)  # (B, 2 top + 1, 2 left + 1, H, W, channels)
    return windows[np.arange(batch), top - shifts[:, 0], left - shifts[:, 1]]


class Batches:
    """A data set cut into random batches, any of which can be found again by its number.

    images (N, H, W, channels), labels (N, ...); the last batch of an epoch may be smaller. With
    `max_shift` each image moves by up to so many pixels along both axes, anew in each epoch. Order
    and shifts depend on seed, epoch and the example's number alone. TypeError for numbers that are
    not integers; ValueError for those out of range, empty data, and lengths that differ."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        seed: int = 0,
        max_shift: int = 0,
        shuffle: bool = True,
    ):
        self.images: np.ndarray = np.asarray(images)
        self.labels: np.ndarray = np.asarray(labels)
        if self.images.ndim != 4 or self.labels.ndim < 1 or self.images.size == 0:
            met = f"{self.images.shape} and {self.labels.shape}"
            raise ValueError(f"Batches: needs (N, H, W, channels) and labels (N, ...), not {met}")
        if len(self.images) != len(self.labels):
            raise ValueError(f"Batches: {len(self.images)} images, but {len(self.labels)} labels")
        self.batch_size: int = check_integer("batch_size", batch_size, 1, 1 << 63)
        self.seed: int = check_integer("seed", seed, 0, (1 << 64) - 1)
        self.max_shift: int = check_integer("max_shift", max_shift, 0, 1 << 31)
        self.shuffle = shuffle
        self._last_order = (-1, np.arange(len(self.images)))  # one tuple: threads see both or none

    def __repr__(self) -> str:
        data = f"{len(self.images)} images {self.images.shape[1:]} of {self.images.dtype}"
        settings = f"seed={self.seed}, max_shift={self.max_shift}, shuffle={self.shuffle}"
        return f"Batches({data}; {len(self)} batches of {self.batch_size}, {settings})"

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return (len(self.images) + self.batch_size - 1) // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of the examples in the order of `epoch`: int64 (N,), not to be written."""
        epoch = check_integer("epoch", epoch, 0, (1 << 64) - 1)
        last_epoch, order = self._last_order
        if epoch != last_epoch:
            order = np.arange(len(self.images))
            if self.shuffle:  # sorting by random keys; stable, so that equal keys have one order
                keys = random_bits(self.seed, Purpose.SHUFFLE, epoch, 0, 0, order)
                order = np.argsort(keys, kind="stable")
            order.flags.writeable = False
            self._last_order = (epoch, order)
        return order

    def batch(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `index` of `epoch`: images (B, H, W, channels) and labels (B, ...), as copies."""
        index = check_integer("index", index, 0, len(self) - 1)
        start = index * self.batch_size
        examples = self.order(epoch)[start : start + self.batch_size]
        images = native(self.images[examples])
        if self.max_shift:
            axes = np.arange(2)
            bits = random_bits(self.seed, Purpose.SHIFT, epoch, 0, examples[:, None], axes)
            # The remainder favours some shifts, by one part in 2^64 / (2 max_shift + 1).
            shifts = (bits % np.uint64(2 * self.max_shift + 1)).astype(np.int64) - self.max_shift
            images = shift_images(images, shifts)
        return images, native(self.labels[examples])

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("Batches: say which epoch: `for images, labels in batches.epoch(0)`")

    def epoch(self, epoch: int, start: int = 0) -> "Epoch":
        """The batches of `epoch` from number `start` on, prepared ahead by one thread.

        What goes wrong in it is raised here; it ends with the iterator, also when that is closed or
        forgotten. Where there can be no thread, as in a browser, they are made when asked for."""
        epoch = check_integer("epoch", epoch, 0, (1 << 64) - 1)
        start = check_integer("start", start, 0, len(self))
        return prefetched(self.batch, epoch, start, len(self))
