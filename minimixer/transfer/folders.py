"""Labelled pictures on disk: finding them, and decoding files that may be anything.

A data set is a folder with one folder of pictures for each class, or two such, train/ and val/:

>>> import tempfile
>>> top = Path(tempfile.mkdtemp())
>>> for name in ("cat/2.jpg", "cat/1.png", "ant/7.jpeg", "ant/notes.txt"):
...     (top / name).parent.mkdir(exist_ok=True)
...     (top / name).touch()
>>> paths, labels, class_names = find_images(top)
>>> [Path(path).name for path in paths], labels.tolist(), class_names
(['7.jpeg', '1.png', '2.jpg'], [0, 1, 1], ['ant', 'cat'])

Folders from elsewhere hold damaged and mislabelled files, and sometimes ones made to do harm: a
picture of 900 million equal pixels is a file of a megabyte. `decode` finds out from the header
what a file would cost, and refuses with a reason before anything large is allocated:

>>> decode(paths[0])
Traceback (most recent call last):
minimixer.transfer.folders.BadPicture: the file is empty

Next: `digits.py`.
"""

import io
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np

Image = Any  # PIL.Image.Image; Pillow is imported by the functions that need it
Found = tuple[list[str], np.ndarray, list[str]]

# ---- finding ------------------------------------------------------------------------------------

# More than can be decoded: a picture of another format is named and skipped, not passed over.
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
           ".ppm", ".pgm", ".heic", ".heif", ".avif", ".jp2")  # fmt: skip


def find_images(directory: str | os.PathLike) -> Found:
    """The pictures of a folder that holds one folder for each class.

    Returns (paths, labels, class_names): N names of files, int64 (N,), and the names of the
    classes in the order of the labels; all sorted, so the same folder gives the same answer
    everywhere. What counts is the ending of a name, and a class folder is not searched deeper.
    NotADirectoryError if it is none; ValueError if there are no classes or one has no pictures.
    """
    directory = _check_directory(directory)
    if _is_split(directory / "train") and _is_split(directory / "val"):
        raise ValueError(f"{directory} holds train and val; use find_splits, or give one of them")
    class_names = _folders(directory)
    if not class_names:
        raise ValueError(f"{directory} has no classes; put the pictures of each in a folder there")
    paths: list[str] = []
    counts = []
    for name in class_names:
        found = _pictures(directory / name)
        if not found:
            raise ValueError(
                f"{directory / name} has no pictures; remove this class, or put files there that "
                f"end in one of {' '.join(ENDINGS)}"
            )
        paths += [os.path.join(directory, name, file) for file in found]
        counts.append(len(found))
    return paths, np.repeat(np.arange(len(counts)), counts).astype(np.int64), class_names


def find_splits(directory: str | os.PathLike) -> tuple[Found, Found | None]:
    """(train, val), each as of `find_images`; val is None if the folder holds classes itself.

    Besides the errors of `find_images`, ValueError if there is a train/ of class folders without
    a val/ of the same classes, or the other way round.
    """
    directory = _check_directory(directory)
    splits = [name for name in ("train", "val") if _is_split(directory / name)]
    if not splits:
        return find_images(directory), None
    if len(splits) == 1:
        missing = "val" if splits == ["train"] else "train"
        raise ValueError(
            f"{directory} holds {splits[0]} but no {missing} with folders of classes; add it, or "
            f"give {directory / splits[0]}"
        )
    train, val = (find_images(directory / name) for name in splits)
    if train[2] != val[2]:
        only = ["train has " + ", ".join(sorted(set(train[2]) - set(val[2])))[:200]]
        only.append("val has " + ", ".join(sorted(set(val[2]) - set(train[2])))[:200])
        differ = " and only ".join(text for text in only if not text.endswith("has "))
        raise ValueError(f"{directory}: only {differ}; both need the same folders of classes")
    return train, val


def _check_directory(directory: str | os.PathLike) -> Path:
    if not os.path.isdir(directory):
        raise NotADirectoryError(f"{directory} is not a directory; give one with image folders")
    return Path(directory)


def _folders(directory: Path) -> list[str]:
    names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    return [name for name in names if os.path.isdir(directory / name)]


def _pictures(directory: Path) -> list[str]:
    names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    return [name for name in names if name.lower().endswith(ENDINGS)]


def _is_split(directory: Path) -> bool:
    """Folders and no pictures: a class may be called train, too."""
    return directory.is_dir() and bool(_folders(directory)) and not _pictures(directory)


# ---- decoding -----------------------------------------------------------------------------------

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_MOST_FILE_BYTES = 32 << 20
_MOST_BYTES = 200 << 20  # of memory for one picture
_MOST_PIXELS = 1 << 24  # after decoding
_MOST_JPEG_PIXELS = 1 << 26  # in the file: a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size
_MOST_SCANNED_PIXELS = 1 << 29  # pixels times scans: a progressive JPEG goes over them many times
_MOST_READS = 50_000  # Pillow walks through headers in Python, a small block at a time


class BadPicture(ValueError):
    """A file that is no picture, or one that would cost too much; the text says why."""


def import_pillow() -> Any:
    """The module PIL.Image. ImportError with the next step if Pillow is not installed."""
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError(
            f"reading pictures needs Pillow ({error}): pip install -e '.[images]'"
        ) from None
    return PIL.Image


class _Counted(io.BytesIO):
    """A file whose reads are counted. Time would do too, but what is skipped on a busy machine
    must not be read on an idle one."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > _MOST_READS:
            raise BadPicture(f"it takes more than {_MOST_READS} reads, as if made to take long")
        return super().read(size)


def decode(path: str | os.PathLike, shortest: int | None = None, behind: str = "white") -> Image:
    """The picture in a file, as a PIL image of mode RGB, the right way up.

    With `shortest`, a larger JPEG may come smaller, by 2, 4 or 8, with neither side below it: that
    costs a fraction of the time. Transparency becomes `behind`; 16 bits become 8; of several frames
    the first counts. Formats are told apart by content: JPEG, PNG, WebP, BMP. BadPicture, a
    ValueError, for all else, for damage, for a side of less than 2 pixels, and for what would take
    more than 200 MB or about a second. ImportError without Pillow.
    """
    data = _read_file(path)
    pillow = import_pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of sizes checked here anyway
            with pillow.open(_Counted(data), formats=FORMATS) as image:
                width, height = image.size
                if min(width, height) < 2:
                    raise BadPicture(f"it has {width} x {height} pixels")
                if shortest is not None and _is_jpeg(image):
                    image.draft(None, (shortest, shortest))
                _check_cost(image, width * height, data)
                orientation = _orientation(image)
                image.load()
                image = _to_rgb(image, pillow, behind)
                return image if orientation is None else image.transpose(orientation)
    except BadPicture:
        raise
    except pillow.UnidentifiedImageError:
        known = ", ".join(FORMATS)
        text = f"it is none of {known}, or its header is damaged; it begins with {data[:8]!r}"
        raise BadPicture(text) from None
    except pillow.DecompressionBombError as error:
        raise BadPicture(f"{error}") from None
    except MemoryError:
        raise BadPicture("decoding it ran out of memory") from None
    except Exception as error:  # Pillow on damaged files: OSError, SyntaxError, struct.error, ...
        raise BadPicture(f"damaged ({type(error).__name__}: {error})"[:300]) from None


def _read_file(path: str | os.PathLike) -> bytes:
    try:
        status = os.stat(path)  # before opening: that of a pipe would wait for a writer
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not an ordinary file"
            raise BadPicture(f"it is {kind}")
        if status.st_size > _MOST_FILE_BYTES:
            raise BadPicture(f"the file has {status.st_size} bytes, over {_MOST_FILE_BYTES}")
        with open(path, "rb") as file:
            data = file.read(_MOST_FILE_BYTES)
    except OSError as error:
        raise BadPicture(f"it can't be read ({error.strerror or error})") from None
    if not data:
        raise BadPicture("the file is empty")
    return data


def _check_cost(image: Image, coded: int, data: bytes) -> None:
    """BadPicture if it is too much work. Nothing but the header has been read so far."""
    pixels = image.size[0] * image.size[1]
    # Pillow stores a pixel in 4 bytes, and converting takes 4 more; WebP's own library keeps two
    # canvases and hands over a copy.
    cost = len(data) + pixels * (20 if image.format == "WEBP" else 8)
    scans, jpeg = 1, _is_jpeg(image)
    if jpeg:
        scans = _count_scans(data)
        if "progressive" in image.info or scans > 1:  # all coefficients are kept, 2 bytes each
            cost += 2 * coded * len(image.getbands())
    limit = _MOST_JPEG_PIXELS if jpeg else _MOST_PIXELS
    if coded > limit or pixels > _MOST_PIXELS or cost > _MOST_BYTES:
        raise BadPicture(f"too large: {coded} pixels, decoded {pixels}, in about {cost} bytes")
    if coded * scans > _MOST_SCANNED_PIXELS:
        raise BadPicture(f"too much work: {coded} pixels in {scans} scans")


def _is_jpeg(image: Image) -> bool:
    return image.format in ("JPEG", "MPO")  # with further pictures behind the first, as of phones


def _count_scans(data: bytes) -> int:
    """How many scans follow the headers of a JPEG, where there may be a preview with its own."""
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if not 0xC0 <= marker < 0xFF or 0xD0 <= marker <= 0xDA:  # a scan, or out of step
            break
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.count(b"\xff\xda", position)


def _orientation(image: Image) -> Any:
    """What turns the picture the right way up, for Image.transpose; None if it is already."""
    from PIL.Image import Transpose as T

    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # damaged metadata of a whole picture
        return None
    turns = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE,
             6: T.ROTATE_270, 7: T.TRANSVERSE, 8: T.ROTATE_90}  # fmt: skip
    return turns.get(orientation) if isinstance(orientation, int) else None


def _to_rgb(image: Image, pillow: Any, behind: str) -> Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()  # one that no longer belongs to the file, of the plain class
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion may cut at 255
        grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint16) >> 8
        return pillow.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        below = pillow.new("RGB", image.size, behind)
        below.paste(image, mask=image)  # else whatever colour lies hidden there would show
        return below
    return image.convert("RGB")
