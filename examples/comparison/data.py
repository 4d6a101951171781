"""Data for compare.py: MNIST, IDX and CIFAR files, image folders; held-out images; fixed shuffles.

    mnist                 the embedded MNIST
    mnist:0-4             its classes 0 to 4 alone, numbered anew; also 1,3,7 or 0-2,9
    DIRECTORY             IDX files; CIFAR-10's or CIFAR-100's binary files (.bin); or a folder of
                          pictures for each class, all of it or in train/ and val/
    DIRECTORY:0-49        classes of that, in the order of their numbers or of their folders' names
    DIRECTORY@1e5:7       so many pictures of the letters there (glyphs.py), drawn with seed 7

Of the training images one in twelve, 5,000 at most, is held out: learning rates are chosen on these
and on nothing else. The others are put in a random order once, so that the first n of them are a
random part, and each part is inside of every larger one. Letters of fonts are held out and tested
by whole designs.

The pickled form of CIFAR is not read: a pickle can run any program when it is opened.
"""

import contextlib
import functools
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from comparison import glyphs
from comparison.letters import draw_many
from minimixer import data
from minimixer.backend import random_bits
from minimixer.training.files import read_file
from minimixer.training.names import for_picture, printable
from minimixer.training.prefetch import start_threads

# Purposes of random numbers, above those of the package.
HELD_OUT, TEST_PART, PATCH_ORDER, PIXEL_ORDER = 201, 202, 203, 204
CIFAR_SIDE = 32
CIFAR_BYTES = 3 * CIFAR_SIDE**2  # of an image: 1024 red, 1024 green, 1024 blue, each by rows
MOST_FILE_BYTES = 1 << 31
HELD_LETTERS, TEST_LETTERS = 5000, 10000
MOST_PIXEL_BYTES = 8 << 30  # of all decoded pictures together


class Data(NamedTuple):
    """Images uint8 (N, H, W, channels) and labels int64 (N,) of the three parts; those to train on
    may be made Later."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    held_images: np.ndarray
    held_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int
    fingerprint: str

    @property
    def base(self) -> str:
        """The name without the directories that it lies in."""
        return printable(os.path.basename(os.path.abspath(self.name)))

    @property
    def title(self) -> str:
        """That, for a picture."""
        return for_picture(self.base)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, channels) of an image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels


class Later:
    """An array of which shape and type are known, and which is made when it's first asked for."""

    def __init__(self, shape: tuple[int, ...], dtype: type, make: Callable[[], np.ndarray]):
        self.shape, self.dtype, self._made = shape, np.dtype(dtype), functools.cache(make)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: Any) -> Any:
        return self._made()[part]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._made(), dtype)


def load(spec: str, image_size: int = 64) -> Data:
    """The data set that `spec` names, see above; `image_size` is for pictures from folders. Letters
    to train on are drawn when they are first looked at: cells that are there need none.

    ValueError for anything that is not such a data set, OSError for what can't be read,
    ImportError for pictures without Pillow.
    """
    drawn = re.fullmatch(r"(.+)@([^@/:]*)(?::(\d+))?", spec)
    if drawn is not None and not os.path.exists(spec):
        return load_letters(Path(drawn[1]), drawn[2], int(drawn[3] or 0))
    source, chosen = split_spec(spec)
    if source == "mnist":
        arrays = data.load_mnist()
    elif not os.path.isdir(source):
        name = printable(source)
        raise NotADirectoryError(f"{name} is neither 'mnist' nor a directory with data")
    elif any("-ubyte" in name for name in os.listdir(source)):
        arrays = data.load_directory(source)
    elif (directory := find_cifar(source)) is not None:
        arrays = load_cifar(directory)
    else:
        arrays = load_folders(source, image_size)
    train_images, train_labels, test_images, test_labels = arrays
    fingerprint = 0
    for array in arrays:
        fingerprint = zlib.crc32(np.ascontiguousarray(array).data, fingerprint)
    name = f"{fingerprint:08x}-{len(train_images)}-{len(test_images)}"
    # Split before classes are chosen, so that what is held out downstream is so upstream too.
    order = permutation(len(train_images), HELD_OUT)
    held, rest = np.split(order, [min(5000, len(order) // 12)])
    parts = [(train_images[rest], train_labels[rest]), (train_images[held], train_labels[held]),
             (test_images, test_labels)]  # fmt: skip
    classes = data.num_classes(np.concatenate([train_labels, test_labels]))
    if chosen is not None:
        if max(chosen) >= classes:
            raise ValueError(f"{printable(spec)} has the classes 0 to {classes - 1}")
        parts = [choose_classes(*part, chosen) for part in parts]
        classes, name = len(chosen), f"{name}:{','.join(map(str, chosen))}"
    counts = [len(labels) for _, labels in parts]
    if counts[0] < 22 or not all(counts[1:]):
        met = ", ".join(map(str, counts))
        raise ValueError(f"{printable(spec)} has {met} images to train on, held out for the sweep, "
                         "and to test; 22, 1 and 1 are needed at least")  # fmt: skip
    return Data(printable(spec), *parts[0], *parts[1], *parts[2], classes, name)


def load_letters(folder: Path, count: str, seed: int = 0) -> Data:
    """So many letters to train on, 5,000 of fonts to validate on, 10,000 of those to test."""
    try:
        number = float(count)
    except ValueError:
        number = 0
    title = f"{printable(folder)}@{printable(count)}"
    if not 22 <= number <= 1e8:
        raise ValueError(f"{title}: from 22 to 1e8 letters can be drawn")
    if not (folder / glyphs.LETTERS).is_file():
        raise FileNotFoundError(f"{printable(folder)} holds no {glyphs.LETTERS}, the letters of "
                                "fonts; examples/make_data.py makes it")  # fmt: skip
    atlas, held, test, fingerprint = _for_all(folder)

    @functools.cache
    def train() -> tuple[np.ndarray, np.ndarray]:
        try:
            return draw_many(atlas, seed, int(number))
        except MemoryError as error:
            raise ValueError(f"{title}: {error}; draw fewer") from None

    shape = int(number), glyphs.SIDE, glyphs.SIDE, 3
    images = Later(shape, np.uint8, lambda: train()[0])
    labels = Later(shape[:1], np.int64, lambda: train()[1])
    name = f"{fingerprint}-{int(number)}-{seed}"
    classes = len(set(glyphs.CLASSES.tolist()))
    return Data(f"{title}:{seed}", images, labels, *held, *test, classes, name)


@functools.lru_cache(1)
def _for_all(folder: Path) -> Any:
    """The fonts to train on, and what is the same whatever is trained on: 5,000 letters to choose
    by and 10,000 to test on, and the fonts' fingerprint."""
    atlas, fingerprint = glyphs.read(folder), 0
    for letters in atlas:
        fingerprint = zlib.crc32(np.ascontiguousarray(letters).data, fingerprint)
    held, test = (
        draw_many(atlas.validation, 1000, HELD_LETTERS),
        draw_many(atlas.test, 2000, TEST_LETTERS),
    )
    return atlas.train, held, test, f"letters-{fingerprint:08x}"


def in_colour(data: Data, side: int = 32) -> Data:
    """Grey images in three equal channels, smaller ones in the middle of side x side of zeros."""

    def changed(images: np.ndarray) -> np.ndarray:
        _, height, width, channels = images.shape
        if max(height, width) > side or channels not in (1, 3):
            raise ValueError(f"{data.name}: {data.shape} does not go into {(side, side, 3)}; for "
                             f"pictures in folders: --image-size {side}")  # fmt: skip
        above, left = (side - height) // 2, (side - width) // 2
        room = (above, side - height - above), (left, side - width - left)
        return np.pad(images, ((0, 0), *room, (0, 0))).repeat(3 // channels, axis=3)

    if data.shape == (side, side, 3):
        return data
    parts = {
        name: changed(getattr(data, name)) for name in data._fields if name.endswith("_images")
    }
    return data._replace(**parts, fingerprint=f"{data.fingerprint} in {side} x {side} x 3")


def permutation(count: int, purpose: int, seed: int = 0) -> np.ndarray:
    """The numbers 0 to count - 1 in a random order: a pure function of the arguments, int64."""
    keys = random_bits(seed, purpose, 0, 0, 0, np.arange(count))
    return np.argsort(keys, kind="stable")


# ---- classes ------------------------------------------------------------------------------------


def split_spec(spec: str) -> tuple[str, list[int] | None]:
    """ "mnist:0-2,9" -> ("mnist", [0, 1, 2, 9]); no classes are None. ValueError: fewer than two,
    or one twice."""
    source, colon, text = spec.rpartition(":")
    if not colon or os.path.exists(spec) or not re.fullmatch(r"[\d,\- ]+", text):
        return spec, None
    classes: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r" *(\d{1,6})(?:-(\d{1,6}))? *", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"{printable(spec)}: classes are given as 0-4, as 1,3,7 or as 0-2,9")
        classes += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"{printable(spec)}: at least two classes are needed, each of them once")
    return source, classes


def choose_classes(
    images: np.ndarray, labels: np.ndarray, classes: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Those images whose label is in `classes`, and for labels the places in that list."""
    places = np.full(max(int(labels.max()), *classes) + 1, -1, np.int64)
    places[classes] = np.arange(len(classes))
    kept = places[labels] >= 0
    return images[kept], places[labels[kept]]


# ---- CIFAR --------------------------------------------------------------------------------------


def find_cifar(directory: str | os.PathLike) -> Path | None:
    """Where CIFAR's binary files lie: there, or in the folder that its archive makes; else None.
    ValueError if there is only the pickled form."""
    top = Path(directory)
    for place in (top, top / "cifar-10-batches-bin", top / "cifar-100-binary"):
        if (place / "data_batch_1.bin").exists() or (place / "train.bin").exists():
            return place
    for place in (top, top / "cifar-10-batches-py", top / "cifar-100-python"):
        if (place / "data_batch_1").is_file() or (place / "train").is_file():
            raise ValueError(
                f"{place} holds CIFAR as Python pickles, which can run any program when they are "
                "opened; get the binary version (data_batch_1.bin or train.bin) instead"
            )
    return None


def load_cifar(directory: str | os.PathLike) -> data.DataSet:
    """CIFAR-10 (data_batch_1.bin to _5, test_batch.bin) or CIFAR-100 (train.bin, test.bin; the fine
    labels). ValueError naming the file that is missing or wrong."""
    top = Path(directory)
    if (top / "train.bin").exists():
        names = ["train.bin", "test.bin"]
        limits: tuple[int, ...] = (20, 100)
    else:
        names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
        limits = (10,)
    missing = [name for name in names if not (top / name).exists()]
    if missing:
        raise ValueError(f"{top} lacks {', '.join(missing)} of CIFAR's binary files")
    parts = [read_cifar(top / name, limits) for name in names]
    images = np.concatenate([images for images, _ in parts[:-1]])
    labels = np.concatenate([labels for _, labels in parts[:-1]])
    return images, labels, *parts[-1]


def read_cifar(path: str | os.PathLike, limits: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 32, 32, 3) and labels int64 (N,) of one file.

    Each record is one byte for each of `limits`, a class below that limit, the last of which is the
    label; then 3072 bytes of pixels. ValueError unless the file is made of whole such records.
    """
    record = len(limits) + CIFAR_BYTES
    try:
        content = np.frombuffer(read_file(path, MOST_FILE_BYTES), np.uint8)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if content.size == 0 or content.size % record:
        raise ValueError(
            f"{path} has {content.size} bytes, not a whole number of records of {record} bytes "
            "each, one at least; get it again"
        )
    records = content.reshape(-1, record)
    for column, limit in enumerate(limits):
        worst = int(records[:, column].max())
        if worst >= limit:
            raise ValueError(f"{path} has a class {worst}; there are {limit}, from 0")
    images = records[:, len(limits) :].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    labels = records[:, len(limits) - 1].astype(np.int64)
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels


# ---- folders ------------------------------------------------------------------------------------


def load_folders(directory: str | os.PathLike, image_size: int) -> data.DataSet:
    """Pictures, decoded once and cut to image_size x image_size, with one folder for each class.

    Without train/ and val/, one picture in five is a test image, the same ones each time. Those
    that can't be decoded are left out, and counted in a line of output. ValueError if too few are
    left, or if all together would take more than 8 GiB.
    """
    from minimixer.pictures.folders import find_splits, import_pillow

    import_pillow()
    train, val = find_splits(directory)
    found = len(train[0]) + (0 if val is None else len(val[0]))
    if found * image_size**2 * 3 > MOST_PIXEL_BYTES:
        raise ValueError(f"{found} pictures of {image_size} x {image_size} are more than 8 GiB; "
                         "lower --image-size")  # fmt: skip
    images, labels = decode_all(train[0], train[1], image_size)
    if val is not None:
        test_images, test_labels = decode_all(val[0], val[1], image_size)
        mixed = permutation(len(test_labels), TEST_PART)  # curves are taken on the first of them
        return images, labels, test_images[mixed], test_labels[mixed]
    test, rest = np.split(permutation(len(images), TEST_PART), [len(images) // 5])
    return images[rest], labels[rest], images[test], labels[test]


def decode_all(
    paths: list[str], labels: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Images uint8 (N, size, size, 3), the centre of each picture, and labels of those that could
    be decoded."""
    from minimixer.pictures.augment import resize_crop
    from minimixer.pictures.folders import BadPicture, decode

    images = np.zeros((len(paths), size, size, 3), np.uint8)

    def fill(number: int) -> str | None:
        try:
            images[number] = np.asarray(resize_crop(decode(paths[number], size * 8 // 7 + 1), size))
        except BadPicture as error:
            return f"{paths[number]}: {error}"
        return None

    pool = start_threads(min(4, os.cpu_count() or 1))
    with pool or contextlib.nullcontext():
        failures = list((pool.map if pool else map)(fill, range(len(paths))))
    bad = [text for text in failures if text is not None]
    if bad:
        first = printable(bad[0], 300)
        print(f"compare: {len(bad)} of {len(paths)} pictures left out; the first: {first}")
    good = np.array([text is None for text in failures])
    if not good.any():
        raise ValueError(f"not one of {len(paths)} pictures could be decoded; the last: "
                         f"{printable(bad[-1])}")  # fmt: skip
    return images[good], labels[good]


# ---- fixed shuffles, as in figure 4 of the paper ------------------------------------------------

SHUFFLES = ("none", "patches", "pixels")


def patch_orders(height: int, width: int, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """The permutations that "patches" applies: of the S patches, and of the P P pixels of one."""
    tokens = (height // patch) * (width // patch)
    return permutation(tokens, PATCH_ORDER), permutation(patch * patch, PATCH_ORDER, seed=1)


def shuffle_index(kind: str, height: int, width: int, patch: int) -> np.ndarray:
    """Where each pixel of a shuffled image comes from: int64 (H W), places in reading order.

    "none"; "patches": one permutation of the P x P patches and one of the pixels inside each;
    "pixels": one permutation of all pixels. They are the same for all images, and a pixel keeps its
    channels together. ValueError for another kind, or if P does not divide both sides.
    """
    places = np.arange(height * width)
    if kind == "none":
        return places
    if kind == "pixels":
        return permutation(height * width, PIXEL_ORDER)
    if kind != "patches":
        raise ValueError(f"a shuffle is one of {', '.join(SHUFFLES)}, not {kind!r}")
    if height % patch or width % patch:
        raise ValueError(f"{height} x {width} images can't be cut into {patch} x {patch} patches")
    rows, columns = height // patch, width // patch
    grid = places.reshape(rows, patch, columns, patch).transpose(0, 2, 1, 3)
    tokens, pixels = patch_orders(height, width, patch)
    grid = grid.reshape(rows * columns, patch * patch)[tokens][:, pixels]
    grid = grid.reshape(rows, columns, patch, patch).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(grid).reshape(-1)


def shuffle(images: np.ndarray, index: np.ndarray | None) -> np.ndarray:
    """Images (N, H, W, channels), their pixels taken from the places in `index` (H W,)."""
    if index is None:
        return images
    return images.reshape(len(images), len(index), -1)[:, index].reshape(images.shape)
