"""Pictures as a trained model wants to see them: found, decoded, cut, in batches.

    paths, failures = find_pictures(["cat.jpg", "holiday/"])
    for numbers, images, failed in read_batches(paths, model, batch_size=64):
        model.predict(images)       # of paths[n] for n in numbers
        failures += failed          # what could not be read, and why

Which size, how many channels, whether it learned from MNIST's digits: the model says it.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from ..model.mixer import Mixer
from ..training.prefetch import start_threads
from .augment import resize, resize_crop
from .digits import read_digit
from .folders import BadPicture, decode, is_picture

Failures = list[tuple[str, str]]  # (path, why)


def find_pictures(arguments: Sequence[str]) -> tuple[list[str], Failures]:
    """(files, failures): what was named, and of directories the pictures at any depth, sorted."""
    paths: list[str] = []
    failures: Failures = []

    def note(error: OSError) -> None:
        failures.append((str(error.filename), f"it can't be read ({error.strerror})"))

    for argument in arguments:
        if not os.path.isdir(argument):
            paths.append(argument)  # whatever it is called; reading it will tell
            continue
        found, before = [], len(failures)
        for folder, folders, files in os.walk(argument, onerror=note):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [os.path.join(folder, name) for name in files if is_picture(name)]
        if not found and len(failures) == before:
            failures.append((argument, "it has no pictures"))
        paths += sorted(found)
    return paths, failures


def read_picture(
    path: str, model: Mixer, crop: float | None = None, interpolation: str = "bilinear"
) -> np.ndarray:
    """uint8 (H, W, in_channels), the centre of the picture. BadPicture if it can't be decoded.

    A model of MNIST's digits gets the digit instead, prepared; BadPicture if there is none.

    `crop`: the share of the picture's height, or of its width if that is scarcer, that remains.
    By default 224/256, as in fine-tuning; for grey models 1, as they learned from whole images.
    """
    if model.preparation == "digit":
        return read_digit(path)[..., None]
    height, width = model.height, model.width
    image = decode(path, max(height, width) * 8 // 7 + 1)
    if crop is None and model.in_channels == 1:
        crop = 1.0
    if crop is None and height == width:
        image = resize_crop(image, height, interpolation)
    else:
        share = 224 / 256 if crop is None else crop
        side = share * min(image.width / width, image.height / height)  # of one pixel of ours
        w, h = side * width, side * height
        left, top = max(0.0, (image.width - w) / 2), max(0.0, (image.height - h) / 2)
        box = (left, top, min(left + w, image.width), min(top + h, image.height))
        image = resize(image, (width, height), box, interpolation)
    array = np.asarray(image.convert("L") if model.in_channels == 1 else image)
    return array.reshape(height, width, -1)


def read_batches(
    paths: Sequence[str],
    model: Mixer,
    batch_size: int,
    crop: float | None = None,
    threads: int = 2,
    interpolation: str = "bilinear",
) -> Iterator[tuple[list[int], np.ndarray, Failures]]:
    """Batches of pictures: (numbers of those that could be read, their pixels, failures).

    Threads are enough here, as Pillow decodes without holding Python's lock; they read one batch
    ahead of the model.
    """
    if model.in_channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels; this model wants {model.in_channels}")
    warnings.simplefilter("ignore")  # decode does so for itself, but threads share the filters

    def attempt(path: str) -> np.ndarray | BadPicture:
        try:
            return read_picture(path, model, crop, interpolation)
        except BadPicture as error:
            return error

    pool = start_threads(threads)
    each = pool.map if pool else map
    with pool or contextlib.nullcontext():
        coming = each(attempt, paths[:batch_size])
        for start in range(0, len(paths), batch_size):
            now, after = coming, start + batch_size
            coming = each(attempt, paths[after : after + batch_size])
            found = list(enumerate(now, start))
            good = [(number, item) for number, item in found if isinstance(item, np.ndarray)]
            yield (
                [number for number, _ in good],
                np.array([item for _, item in good]),
                [(paths[n], str(item)) for n, item in found if isinstance(item, BadPicture)],
            )
