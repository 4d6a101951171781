"""Data sets: MNIST, which is part of the package, and any in its format.

>>> from minimixer.training.datasets import load_mnist, num_classes
>>> _, _, images, labels = load_mnist()
>>> images.shape, images.dtype, labels[:4]
((10000, 28, 28, 1), dtype('uint8'), array([7, 2, 1, 0]))
>>> num_classes(labels)
10
"""

import itertools
import math
import os
import warnings
from pathlib import Path

import numpy as np

from .idx import read_idx

DataSet = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_RECOGNISED = (
    "recognised names: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
    "t10k-labels-idx1-ubyte, each also with .gz at the end, .idx for -idx, test- for t10k-, "
    "and idx4 for images with channels"
)


def load_mnist() -> DataSet:
    """The embedded MNIST: (train_images, train_labels, test_images, test_labels).

    Images uint8 (60000, 28, 28, 1) and (10000, 28, 28, 1), 0 is paper; labels int64, 0 to 9.
    """
    return load_directory(Path(__file__).with_name("mnist"))


def load_directory(path: str | os.PathLike[str]) -> DataSet:
    """A data set in MNIST's format: (train_images, train_labels, test_images, test_labels).

    Recognised names: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte,
    t10k-labels-idx1-ubyte; each also with .gz at the end, with .idx in place of -idx, with test-
    in place of t10k-; idx4 in place of idx3 for images with channels (of two, the first counts).
    They hold uint8 images (N, H, W) or (N, H, W, channels), all of one size, and as many integer
    labels (N,). Returns images (N, H, W, channels) as they are and labels in int64.
    NotADirectoryError if `path` is none; ValueError naming the file that is wrong or missing.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise NotADirectoryError(f"{directory} is not a directory; give one with IDX files")
    wanted = itertools.product(("train", "t10k"), ("images", "labels"))
    found = {f"{split}-{kind}": _find_file(directory, split, kind) for split, kind in wanted}
    files = [file for file in found.values() if file is not None]
    missing = [name for name, file in found.items() if file is None]
    if missing:
        raise ValueError(f"{directory} has no file for {', '.join(missing)}; {_RECOGNISED}")
    train_images, train_labels = _load_pair(*files[:2])
    test_images, test_labels = _load_pair(*files[2:])
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"images of {files[0]} are {train_images.shape[1:]} (H, W, channels), those of "
            f"{files[2]} are {test_images.shape[1:]}; one model needs one size"
        )
    return train_images, train_labels, test_images, test_labels


def _find_file(directory: Path, split: str, kind: str) -> Path | None:
    splits = ("t10k", "test") if split == "t10k" else (split,)
    numbers = ("idx3", "idx4") if kind == "images" else ("idx1",)
    for name, number, dot, end in itertools.product(splits, numbers, "-.", ("", ".gz")):
        file = directory / f"{name}-{kind}{dot}{number}-ubyte{end}"
        if file.is_file():
            return file
    return None


def _load_pair(images_file: Path, labels_file: Path) -> tuple[np.ndarray, np.ndarray]:
    labels = read_idx(labels_file)  # the small file first: what is wrong shows early
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
        met = f"{labels.dtype} {labels.shape} from {labels.min()}"
        raise ValueError(f"{labels_file}: labels must be integers (N,), 0 or more, not {met}")
    images = read_idx(images_file)
    if images.ndim not in (3, 4) or images.dtype != np.uint8:
        met = f"{images.dtype} {images.shape}"
        raise ValueError(f"{images_file}: images must be uint8 (N, H, W[, channels]), not {met}")
    if len(images) != len(labels):
        images_met, labels_met = f"{len(images)} images", f"{len(labels)} labels"
        raise ValueError(f"{images_file} has {images_met}, but {labels_file} has {labels_met}")
    return images.reshape(*images.shape[:3], -1), labels.astype(np.int64)


def num_classes(labels: np.ndarray) -> int:
    """One more than the largest label. ValueError unless labels are integers from 0 to 2^20; a
    warning where they begin above 0, as EMNIST's letters do."""
    labels = np.asarray(labels)
    if labels.size == 0 or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(f"num_classes: needs integers, 0 or more; got {labels.dtype} {labels}")
    if labels.max() > 1 << 20:
        raise ValueError(f"num_classes: a label of {labels.max()} is taken for damage")
    if labels.min() > 0:
        warnings.warn(
            f"the labels begin at {labels.min()}: of {labels.max() + 1} classes, those before it "
            f"have no examples; subtract {labels.min()} from all labels to be rid of them",
            stacklevel=2,
        )
    return int(labels.max()) + 1


def pixel_mean_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images (N, H, W, channels) / 255.

    There are only 256 values, so counting them gives exact integer sums, and no float copy of the
    data is made. ValueError for other images. A channel of one value has standard deviation 0.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or images.size == 0:
        met = f"{images.dtype} {images.shape}"
        raise ValueError(f"pixel_mean_std: needs uint8 images (N, H, W, channels), not {met}")
    values, means, deviations = np.arange(256), [], []
    step = max(1, (1 << 20) // images[0].size)  # bincount makes an int64 copy: 8 MiB at a time
    for channel in np.moveaxis(images, -1, 0):  # (N, H, W)
        blocks = (channel[i : i + step].ravel() for i in range(0, len(channel), step))
        counts = sum(np.bincount(block, minlength=256) for block in blocks)
        n, total, squares = (int(counts @ values**power) for power in (0, 1, 2))
        means.append(total / (n * 255))
        # n^2 variance = n sum(x^2) - (sum x)^2, in Python's integers: no cancellation, no overflow
        deviations.append(math.sqrt(n * squares - total**2) / (n * 255))
    return tuple(means), tuple(deviations)
