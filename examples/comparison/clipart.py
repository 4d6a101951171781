"""Small colour pictures in 20 classes, from Debian's openclipart-png: public domain, 131 MB.

    python examples/make_data.py clipart /usr/share/openclipart/png --out clipart

Its folders name what is drawn; CLASSES says which of them make a class. A picture is laid on
white, cut to what is drawn, padded to a square and reduced to 32 x 32. Of equal ones the first is
kept, and none at all if they lie in folders of two classes.

Pictures of one series must not lie on both sides of the split. Two of a class are of one series if
the same author gave them titles that begin with the same four letters. Of each class's series, in
the order of a hash, every third is tested on. What then still hardly differs from a picture to
train on (NEAR) is not tested on either. The files are CIFAR-100's, which every framework reads.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minimixer.training.files import replace_file
from minimixer.training.names import printable

SIDE = 32
MOST = 240  # pictures of a class, whole series by their hashes: some folders have a thousand
TEST_SHARE = 3
NEAR = 0.08  # root mean square difference of colours in 0 ... 1
CLASSES = {
    "mammals": ("animals/mammals",), "birds": ("animals/birds",), "insects": ("animals/bugs",),
    "fruit": ("food/fruit", "food/vegetables"), "desserts": ("food/desserts",),
    "drinks": ("food/beverages",), "people": ("people",), "clothing": ("people/clothing",),
    "vehicles": ("transportation",), "road signs": ("transportation/roadsigns",),
    "cards": ("recreation/games/cards",), "music": ("recreation/music",),
    "flags": ("signs_and_symbols/flags",), "map symbols": ("signs_and_symbols/map_symbols",),
    "icons": ("computer/icons",), "hardware": ("computer/hardware",), "tools": ("tools",),
    "plants": ("plants",), "buildings": ("buildings",), "patterns": ("special/patterns",),
}  # fmt: skip


FILES = "classes.txt", "test.bin", "train.bin"


class Picture(NamedTuple):
    """`pixels` uint8 (32, 32, 3); the order of `key` decides where it goes."""

    label: int
    series: str
    pixels: np.ndarray

    @property
    def key(self) -> str:
        return hashlib.sha256(self.series.encode()).hexdigest()


class Split(NamedTuple):
    """Images uint8 (N, 32, 32, 3), labels int64 (N,); how many pictures were left out."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    equal: int  # to one that is kept, or in two classes
    near: int  # to one that is trained on


def make(folder: Path) -> Split:
    """The data set. ValueError if a class has no picture; ImportError without Pillow."""
    pictures = list(find_pictures(folder))
    single = without_equal(pictures)
    kept = at_most(single, MOST)
    tested = set()
    for label, name in enumerate(CLASSES):
        series = list(dict.fromkeys(picture.key for picture in kept if picture.label == label))
        if len(series) < TEST_SHARE:
            raise ValueError(f"{printable(folder)} has too few pictures of {name}; it should be "
                             "openclipart-png's folder png")  # fmt: skip
        tested.update(series[::TEST_SHARE])
    train = [picture for picture in kept if picture.key not in tested]
    test = [picture for picture in kept if picture.key in tested]
    apart = far_from(test, train)
    return Split(
        *arrays(train), *arrays(apart), len(pictures) - len(single), len(test) - len(apart)
    )


def label_of(folder: str) -> int | None:
    """The class whose folder is the longest that `folder` lies in; None if it lies in none."""
    found = [(len(place), number) for number, places in enumerate(CLASSES.values())
             for place in places if f"{folder}/".startswith(f"{place}/")]  # fmt: skip
    return max(found)[1] if found else None


def find_pictures(folder: Path) -> Iterator[Picture]:
    """Each Picture under the folder, in the order of their paths; damaged or huge ones are none."""
    from minimixer.pictures.folders import BadPicture, decode, import_pillow

    pillow = import_pillow()
    for path in sorted(folder.rglob("*.png")):
        label = label_of(path.parent.relative_to(folder).as_posix())
        if label is None:
            continue
        try:
            pixels = reduce(np.asarray(decode(path)), pillow)
            with pillow.open(path) as image:
                author, title = (str(image.info.get(key, "")) for key in ("Author", "Title"))
        except BadPicture:
            continue
        begins = re.sub("[^a-z]", "", (title or path.stem).lower())[:4]
        yield Picture(label, f"{label} {author} {begins}", pixels)


def reduce(image: np.ndarray, pillow: Any) -> np.ndarray:
    """An RGB picture, cut to what is not white, in the middle of a white square, as 32 x 32."""
    drawn = (image < 250).any(axis=2)
    rows, columns = (np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0))
    if len(rows):
        image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    small = pillow.fromarray(square).resize((SIDE, SIDE), pillow.Resampling.BOX)
    return np.asarray(small)


def without_equal(pictures: list[Picture]) -> list[Picture]:
    found: dict[bytes, list[Picture]] = {}
    for picture in pictures:
        found.setdefault(picture.pixels.tobytes(), []).append(picture)
    return [same[0] for same in found.values() if len({picture.label for picture in same}) == 1]


def at_most(pictures: list[Picture], most: int) -> list[Picture]:
    """Of each class whole series, by their keys, while there is room; of a longer one a part."""
    kept: list[Picture] = []
    counts = [0] * len(CLASSES)
    for picture in sorted(pictures, key=lambda p: (p.key, p.pixels.tobytes())):
        if counts[picture.label] < most:
            counts[picture.label] += 1
            kept.append(picture)
    return kept


def far_from(pictures: list[Picture], others: list[Picture]) -> list[Picture]:
    """Those that differ from each of the others by NEAR at least."""
    flat, known = (
        np.stack([p.pixels for p in part]).reshape(len(part), -1) / np.float32(255)
        for part in (pictures, others)
    )
    squared = (flat**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2 * (flat @ known.T)
    far = squared.min(axis=1) >= NEAR**2 * flat.shape[1]
    return [picture for picture, is_far in zip(pictures, far, strict=True) if is_far]


def arrays(pictures: list[Picture]) -> tuple[np.ndarray, np.ndarray]:
    """In an order that has nothing to do with classes: of a hash of the pixels."""
    pictures = sorted(pictures, key=lambda p: hashlib.sha256(p.pixels.tobytes()).digest())
    return np.stack([p.pixels for p in pictures]), np.array([p.label for p in pictures])


def as_cifar(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The bytes of a file of CIFAR-100: for each picture 0, its class, then red, green, blue."""
    records = np.zeros((len(labels), 2 + images[0].size), np.uint8)
    records[:, 1] = labels
    records[:, 2:] = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
    return records.tobytes()


def write(out: Path, made: Split) -> None:
    out.mkdir(parents=True, exist_ok=True)
    train, test = as_cifar(*made[:2]), as_cifar(*made[2:4])
    names = "\n".join(CLASSES).encode() + b"\n"
    for name, content in zip(FILES, (names, test, train), strict=True):
        with replace_file(out / name) as file:
            file.write(content)
