"""Pictures changed at random, so that a model never sees the same one twice.

The recipe of the authors' public code for ImageNet: a random crop of 5% to 100% of the picture,
left and right swapped for every other one, two random changes of colour or shape (RandAugment),
and pictures blended with each other (mixup). For evaluation, the centre and nothing random.

Nothing here has a state: what is drawn is a pure function of (seed, epoch, example number).

>>> import numpy as np
>>> from minimixer.pictures.augment import crop_box, mixup, one_hot
>>> crop_box(640, 480, seed=7, epoch=3, example=11)     # left, top, width, height
(55, 124, 275, 345)
>>> crop_box(640, 480, seed=7, epoch=4, example=11)
(108, 70, 332, 345)
>>> one_hot(np.array([2, 0]), 3, smoothing=0.3)
array([[0.1, 0.1, 0.8],
       [0.8, 0.1, 0.1]], dtype=float32)
>>> mixup(np.eye(3)[[2, 0, 1, 2]], share=0.75)
array([[0.75, 0.  , 0.25],
       [0.25, 0.75, 0.  ],
       [0.  , 0.25, 0.75]])

Next: `loader.py`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.arrays import Array, namespace
from ..engine.random import Purpose, random_bits, uniform
from .folders import decode

Image = Any  # PIL.Image.Image

# Purposes of random numbers, above those of backend.Purpose, which belong to the core.
CROP, FLIP, RAND_AUGMENT, MIXUP = 101, 102, 103, 104

# ---- crops --------------------------------------------------------------------------------------


def _draws(purpose: int, seed: int, epoch: int, example: int, count: int) -> list[float]:
    """`count` numbers in [0, 1)."""
    bits = random_bits(seed, purpose, epoch, 0, example, np.arange(count))
    return uniform(bits, np.float64).tolist()


def resize_crop(image: Image, size: int, interpolation: str = "bilinear") -> Image:
    """For evaluation: the shorter side to size * 256 / 224 (rounded), then the centre.

    A PIL image -> one of size by size. The two steps are done in one, since the longer side of a
    strip of 2 x 60000 pixels would come to millions. `interpolation` as in `resize`.
    """
    width, height = image.size
    side = min(width, height) * size / round(size * 256 / 224)  # of the crop, in the picture
    left, top = (width - side) / 2, (height - side) / 2
    return resize(image, (size, size), (left, top, left + side, top + side), interpolation)


def crop_box(
    width: int,
    height: int,
    seed: int,
    epoch: int,
    example: int,
    scale: tuple[float, float] = (0.05, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A random part of a picture: (left, top, width, height), inside of it and not empty.

    Its area is a share of the picture's, uniform in `scale`; width / height is log-uniform in
    `ratio`. The defaults are the authors' ("inception crop"; elsewhere 0.08 is usual). Ten
    attempts; if none fits, as in a narrow strip, the largest centre of a permitted ratio.
    """
    if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
        raise ValueError(f"crop_box: needs 0 < scale <= 1 and 0 < ratio, got {scale}, {ratio}")
    draws = _draws(CROP, seed, epoch, example, 40)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, shape, x, y in zip(*[iter(draws)] * 4, strict=True):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        shape = math.exp(low + (high - low) * shape)
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def random_resized_crop(
    image: Image,
    size: int,
    seed: int,
    epoch: int,
    example: int,
    scale: tuple[float, float] = (0.05, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image:
    """A part of a PIL image chosen by `crop_box`, as one of size by size."""
    left, top, w, h = crop_box(image.width, image.height, seed, epoch, example, scale, ratio)
    return resize(image, (size, size), (left, top, left + w, top + h))


INTERPOLATIONS = ("bilinear", "bicubic")  # the authors evaluate with the second


def resize(
    image: Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    interpolation: str = "bilinear",
) -> Image:
    """The part `box` (left, top, right, bottom) of a PIL image, as one of `size` (width, height).
    ValueError for another interpolation than "bilinear" and "bicubic"."""
    from PIL.Image import Resampling

    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be bilinear or bicubic, not {interpolation!r}")
    # Pillow's both average over all pixels that fall into one when they shrink.
    return image.resize(size, Resampling[interpolation.upper()], box=box)


def random_flip(image: Image, seed: int, epoch: int, example: int) -> Image:
    """Left and right swapped, for one example in two."""
    from PIL.Image import Transpose

    if _draws(FLIP, seed, epoch, example, 1)[0] < 0.5:
        return image
    return image.transpose(Transpose.FLIP_LEFT_RIGHT)


# ---- RandAugment (Cubuk et al. 2019) ------------------------------------------------------------

_GREY = (128, 128, 128)  # what comes in where a picture was moved away
_OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd", "Color",
    "Contrast", "Brightness", "Sharpness", "Rotate", "ShearX", "ShearY", "TranslateX",
    "TranslateY", "Cutout",
)  # fmt: skip


def rand_augment(
    image: Image, layers: int, magnitude: float, seed: int, epoch: int, example: int
) -> Image:
    """`layers` of 16 operations, each drawn anew, one after another; magnitude 10 is the usual
    full strength, and the paper's Mixers take 10 to 20. An RGB image -> one of the same size.

    Strengths are those of the authors' code, where Posterize and Solarize grow weaker with
    magnitude, up to none.
    """
    draws = _draws(RAND_AUGMENT, seed, epoch, example, 4 * layers)
    for which, sign, x, y in zip(*[iter(draws)] * 4, strict=True):
        name = _OPERATIONS[int(which * len(_OPERATIONS))]
        image = apply_operation(image, name, magnitude / 10, -1 if sign < 0.5 else 1, (x, y))
    return image


def apply_operation(
    image: Image, name: str, level: float, sign: int = 1, place: tuple[float, float] = (0.5, 0.5)
) -> Image:
    """One operation of RandAugment. `level` 1 is magnitude 10; `sign` is the direction of moves,
    `place` the centre of what Cutout covers, as shares of width and height."""
    from PIL import ImageEnhance, ImageOps
    from PIL.Image import Resampling, Transform

    width, height = image.size
    if name in ("AutoContrast", "Equalize", "Invert"):
        return getattr(ImageOps, name.lower())(image)
    if name == "Posterize":  # bits that are kept; 0 would be a black picture
        return ImageOps.posterize(image, min(8, max(1, int(level * 4))))
    if name == "Solarize":  # inverts what is brighter
        return ImageOps.solarize(image, int(level * 256))
    if name == "SolarizeAdd":  # brightens what is darker than 128
        return image.point(
            [min(255, i + int(level * 110)) if i < 128 else i for i in range(256)] * 3
        )
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):  # 1 leaves it as it is
        return getattr(ImageEnhance, name)(image).enhance(level * 1.8 + 0.1)
    if name == "Rotate":
        return image.rotate(sign * level * 30, Resampling.NEAREST, fillcolor=_GREY)
    if name == "Cutout":  # a square of up to 80 of 224 pixels, less at the border
        half = level * 40 / 224 * min(width, height)
        x, y = place[0] * width, place[1] * height
        box = (max(0, int(x - half)), max(0, int(y - half)),
               min(width, int(x + half)), min(height, int(y + half)))  # fmt: skip
        image = image.copy()
        if box[0] < box[2] and box[1] < box[3]:
            image.paste(_GREY, box)
        return image
    moves = {
        "ShearX": (1, sign * level * 0.3, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, sign * level * 0.3, 1, 0),
        "TranslateX": (1, 0, sign * level * 100 / 224 * width, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, sign * level * 100 / 224 * height),
    }
    if name not in moves:
        raise ValueError(f"RandAugment has no {name!r}; it has {', '.join(_OPERATIONS)}")
    # x' = a x + b y + c, y' = d x + e y + f: where in the old picture a new pixel comes from
    return image.transform(
        image.size, Transform.AFFINE, moves[name], Resampling.NEAREST, fillcolor=_GREY
    )


# ---- all of it together -------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What becomes of each picture, and in which order: all that a worker needs to know."""

    size: int
    batch_size: int
    seed: int
    train: bool
    scale: tuple[float, float]
    layers: int
    magnitude: float
    flip: bool = True
    rank: int = 0  # of `ranks` that share every batch
    ranks: int = 1
    interpolation: str = "bilinear"  # of what is not changed at random

    def order(self, epoch: int, count: int) -> np.ndarray:
        """The numbers of the examples in the order of `epoch`: int64 (count,)."""
        examples = np.arange(count)
        if not self.train:
            return examples
        keys = random_bits(self.seed, Purpose.SHUFFLE, epoch, 0, 0, examples)
        return np.argsort(keys, kind="stable")

    def rows(self, batch: int, count: int) -> tuple[int, int]:
        """Where our part of a batch begins and ends, in an epoch of `count` examples."""
        begin = batch * self.batch_size
        size = min(self.batch_size, count - begin)
        return begin + size * self.rank // self.ranks, begin + size * (self.rank + 1) // self.ranks

    def picture(self, path: str, epoch: int, example: int) -> np.ndarray:
        """uint8 (size, size, 3). BadPicture if the file can't be decoded."""
        if not self.train:
            image = decode(path, self.size * 8 // 7 + 1)
            return np.asarray(resize_crop(image, self.size, self.interpolation))
        # Twice the size, so that a crop of a quarter of the area is still sharp
        image, draw = decode(path, 2 * self.size), (self.seed, epoch, example)
        image = random_resized_crop(image, self.size, *draw, self.scale)
        if self.flip:
            image = random_flip(image, *draw)
        if self.layers:
            image = rand_augment(image, self.layers, self.magnitude, *draw)
        return np.asarray(image)


# ---- targets and mixup (Zhang et al. 2017) ------------------------------------------------------


def one_hot(labels: Array, num_classes: int, smoothing: float = 0.0, dtype: Any = "float32") -> Any:
    """Labels, integers (B,) -> targets (B, num_classes), whose rows sum to 1: 1 - smoothing for
    the label, and `smoothing` spread over all classes. ValueError for labels out of range."""
    xp = namespace(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"one_hot: labels must be integers (B,), not {labels.dtype} {labels.shape}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        met = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"one_hot: labels must be 0 to {num_classes - 1}, but they are {met}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"one_hot: smoothing must be in [0, 1), got {smoothing}")
    hot = labels[:, None] == xp.arange(num_classes)  # (B, num_classes)
    other = smoothing / num_classes
    return xp.where(hot, 1 - smoothing + other, other).astype(dtype)


def mixup_share(p: float, seed: int, step: int) -> float:
    """max(a, 1 - a) of a ~ Beta(p, p): what remains of each picture. ValueError unless
    0 < p <= 2.

    Jöhnk (1964): of u, v uniform in (0, 1], with x = u^(1/p) and y = v^(1/p), those pairs with
    x + y <= 1 have x / (x + y) ~ Beta(p, p). In logarithms, as 0.5^(1/p) is 0 for small p.
    """
    if not 0 < p <= 2:
        raise ValueError(f"mixup: p must be above 0 and at most 2, got {p}")
    bits = random_bits(seed, MIXUP, step, 0, np.arange(2)[:, None], np.arange(512))
    log_x, log_y = np.log(1 - uniform(bits, np.float64)) / p  # at p = 2, 1 pair in 6 is accepted
    first = int(np.argmax(np.logaddexp(log_x, log_y) <= 0))
    difference = abs(float(log_x[first] - log_y[first]))
    return 1 / (1 + math.exp(-difference))


def mixup(values: Array, share: Any) -> Array:
    """x[b] share + x[b - 1] (1 - share) for b = 1 ... B of values x (B + 1, ...) -> (B, ...): each
    example blended with the one before, of images, and with the same share of their targets. Of a
    whole batch the first comes after the last: put that in front.

    values are floating-point, on CPU or GPU, and stay as they are; TypeError for integers (uint8
    would wrap around). `share`: one for the whole batch, as in the authors' code; a number, or an
    array of one, of the same dtype, which a recorded step (graph/) can be given anew.
    """
    if values.dtype.kind in "iub":
        raise TypeError(f"mixup: needs floating-point arrays, not {values.dtype}")
    return values[1:] * share + values[:-1] * (1 - share)
