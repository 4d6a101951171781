"""Labelled pictures on disk: finding them, and decoding files that may be anything.

A data set is a folder with one folder of pictures for each class, or two such, train/ and val/:

>>> import pathlib, tempfile
>>> from minimixer.pictures.folders import decode, find_images
>>> top = pathlib.Path(tempfile.mkdtemp())
>>> for name in ("cat/2.jpg", "cat/1.png", "ant/7.jpeg", "ant/notes.txt"):
...     (top / name).parent.mkdir(exist_ok=True)
...     (top / name).touch()
>>> paths, labels, class_names = find_images(top)
>>> [pathlib.Path(path).name for path in paths], labels.tolist(), class_names
(['7.jpeg', '1.png', '2.jpg'], [0, 1, 1], ['ant', 'cat'])

Folders from elsewhere hold damaged files, and sometimes ones made to do harm: 900 million equal
pixels are a file of a megabyte. `decode` learns from the header what it would cost, and refuses:

>>> decode(paths[0])
Traceback (most recent call last):
minimixer.pictures.folders.BadPicture: the file is empty

Next: `tiff.py`, one such header.
"""

import io
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..training.files import Place, open_file
from ..training.names import printable, some
from .tiff import check_tiff, is_tiff

Image = Any  # PIL.Image.Image; Pillow is imported by the functions that need it
Found = tuple[list[str], np.ndarray, list[str]]

# ---- finding ------------------------------------------------------------------------------------

# More than can be decoded: a picture of another format is named and skipped, not passed over.
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
           ".ppm", ".pgm", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".psd",
           ".dng")  # fmt: skip


def find_images(directory: Place, class_names: Sequence[str] | None = None) -> Found:
    """The pictures of a folder that holds one folder for each class, at any depth in it.

    Returns (paths, labels, class_names): N names of files, int64 (N,), and the names of the
    classes in the order of the labels; all sorted, so the same folder gives the same answer
    everywhere. What counts is the ending of a name; names that begin with a dot don't. With
    `class_names`, those of a model or of other pictures, these are the classes, and some may have
    no pictures here. NotADirectoryError if it is none; ValueError if there are no classes or no
    pictures, if without `class_names` a class has none, and with them for pictures of another one.
    """
    directory = _check_directory(directory)
    if class_names is None and find_split(directory) is not None:
        raise ValueError(f"{directory} holds train and val; use find_splits, or give one of them")
    folders = class_folders(directory)
    if not folders:
        raise ValueError(f"{directory} has no classes; put the pictures of each in a folder there")
    pictures = {name: _pictures(directory / name) for name in folders}
    if class_names is None:
        class_names = folders
        if empty := [name for name in folders if not pictures[name]]:
            raise ValueError(
                f"{directory} has no pictures of {some(empty)}; delete what is no class, or put "
                f"files there that end in one of {' '.join(ENDINGS)}"
            )
    elif other := [name for name in folders if pictures[name] and name not in set(class_names)]:
        raise ValueError(
            f"{directory} has pictures of {some(other)}, which is not among the classes: "
            f"{some(class_names, 10)}; move them elsewhere, or rename the folder"
        )
    found = [pictures.get(name, []) for name in class_names]
    paths = [path for of_class in found for path in of_class]
    if not paths:
        raise ValueError(f"{directory} has no pictures; they end in one of {' '.join(ENDINGS)}")
    labels = np.repeat(np.arange(len(found)), [len(of_class) for of_class in found])
    return paths, labels.astype(np.int64), list(class_names)


def find_splits(directory: Place) -> tuple[Found, Found | None]:
    """(train, val), each as of `find_images`; val is None if the folder holds classes itself. The
    classes are those of train, of which val may lack some. Besides the errors of `find_images`,
    ValueError if there is only one of the two."""
    directory = _check_directory(directory)
    split = find_split(directory)
    if split is None:
        return find_images(directory), None
    train = find_images(split[0])
    return train, find_images(split[1], train[2])


# Names that these folders have elsewhere; test/ stands in only where there is nothing else.
TRAIN, VAL, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")


def find_split(directory: Place) -> tuple[Path, Path] | None:
    """The folders train/ and val/ in a folder, under the names usual for them; None if it holds
    classes itself. ValueError if only one is there, or two of one kind."""
    directory = _check_directory(directory)
    train, val = (find_part(directory, *names) for names in ((TRAIN,), (VAL, TEST)))
    there = train or val
    if there and not (train and val):
        missing = "val" if train else "train"
        raise ValueError(
            f"{directory} holds {there.name} but no {missing} with folders of classes; add it, or "
            f"give {there}"
        )
    return (train, val) if train and val else None


def find_part(directory: Path, *names: Sequence[str]) -> Path | None:
    """The folder of class folders that has one of the first names, else of the second, in any
    case. ValueError if two have."""
    folders = class_folders(directory)
    for same in names:
        found = [n for n in folders if n.lower() in same and _is_split(directory / n)]
        if len(found) > 1:
            raise ValueError(f"{directory} holds both {some(found)}; keep one of them there")
        if found:
            return directory / found[0]
    return None


def class_folders(directory: Place) -> list[str]:
    """The names of the folders in a folder, sorted; none of those that begin with a dot."""
    directory = _check_directory(directory)
    names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    return [name for name in names if os.path.isdir(directory / name)]


def _check_directory(directory: Place) -> Path:
    if not os.path.isdir(directory):
        raise NotADirectoryError(f"{directory} is not a directory; give one with image folders")
    return Path(directory)


def _pictures(directory: Path) -> list[str]:
    """The pictures in a folder at any depth, also behind links; each folder once."""
    paths: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(str(directory), onerror=_unless_gone, followlinks=True):
        try:
            status = os.stat(folder)
        except FileNotFoundError:
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link to where we come from
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [os.path.join(folder, name) for name in files if is_picture(name)]
    return sorted(paths)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder removed a moment ago is none
        raise error


def is_picture(name: str) -> bool:
    """By its ending."""
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def pictures_beside(directory: Path) -> list[str]:
    """The names of pictures in a folder itself, which belong to none of the classes in it."""
    folders = class_folders(directory)
    return sorted(n for n in os.listdir(directory) if is_picture(n) and n not in folders)


def _is_split(directory: Path) -> bool:
    """Folders that hold most of its pictures: a class may be called train, too."""
    beside = len(pictures_beside(directory))
    return 2 * beside < len(_pictures(directory)) if beside else bool(class_folders(directory))


# ---- what can't be used -------------------------------------------------------------------------

Skipped = list[tuple[str, str]]  # (path, why)


def without_others(found: Found) -> tuple[Found, Skipped]:
    """The same without files that can't be decoded, as far as their first bytes tell: a damaged
    picture shows only when it is decoded."""
    paths, labels, class_names = found
    reasons = [_why_not(path) for path in paths]
    kept = [number for number, reason in enumerate(reasons) if reason is None]
    skipped = [(path, why) for path, why in zip(paths, reasons, strict=True) if why is not None]
    return ([paths[number] for number in kept], labels[kept], class_names), skipped


def tell_skipped(skipped: Skipped) -> str:
    """One sentence: how many files, and of each reason how many, with the names of the first."""
    groups: dict[str, Skipped] = {}
    for path, reason in skipped:
        groups.setdefault(re.split(r"[:;(]", reason)[0].strip(), []).append((path, reason))
    texts = []
    for reason, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        if len(members) == 1:
            texts.append(f"{printable(members[0][0])}: {printable(members[0][1])}")
        else:
            names = some([path for path, _ in members])
            texts.append(f"{len(members)} files ({names}): {printable(reason)}")
    return "skipped " + f"{len(skipped)} files: " * (len(groups) > 1) + "; ".join(texts)


# ---- decoding -----------------------------------------------------------------------------------

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_MOST_FILE_BYTES = 32 << 20
_MOST_BYTES = 200 << 20  # of memory for one picture
_MOST_PIXELS = 1 << 24  # after decoding
_MOST_JPEG_PIXELS = 1 << 26  # in the file: a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size
_MOST_SCANNED_PIXELS = 1 << 29  # pixels times scans: a progressive JPEG goes over them many times
# Pillow walks through headers in Python, a small block at a time; of a GIF's comments it copies
# all that it has with each block of 255 bytes.
_MOST_READS, _MOST_GIF_READS = 50_000, 8_000
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM", b"GIF87a", b"GIF89a",
               b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # fmt: skip


class BadPicture(ValueError):
    """A file that is no picture, or one that would cost too much. The text says why: the kind of
    reason first, then after : or ( or ; what is this file's own."""


def import_pillow() -> Any:
    """The module PIL.Image. ImportError with the next step if Pillow is not there, or broken."""
    try:
        import PIL.Image
    except Exception as error:
        raise ImportError(f"reading pictures needs Pillow ({error}): pip install pillow") from None
    return PIL.Image


class _Counted(io.BytesIO):
    """A file whose reads are counted, and their bytes. Time would do too, but what is skipped on a
    busy machine must not be read on an idle one."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self.reads = _MOST_GIF_READS if data[:3] == b"GIF" else _MOST_READS
        self.bytes = 3 * len(data) + (4 << 20)

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self.reads -= 1
        self.bytes -= len(found)
        if self.reads < 0 or self.bytes < 0:
            raise BadPicture("too much work: it has more parts than a picture needs")
        return found


def decode(path: Place, shortest: int | None = None, behind: str = "white") -> Image:
    """The picture in a file, as a PIL image of mode RGB, the right way up.

    With `shortest`, a larger JPEG may come smaller, by 2, 4 or 8, with neither side below it: that
    costs a fraction of the time. Transparency becomes `behind`; 16 bits become 8; of several frames
    or pages the first counts. Formats are told apart by content: JPEG, PNG, WebP, BMP, GIF, TIFF.
    BadPicture, a ValueError, for all else, for damage, for a side of less than 2 pixels, and for
    what would take more than 200 MB or about a second. ImportError without Pillow.
    """
    data = _read_file(path)
    pillow = import_pillow()
    try:
        pixel_bytes = check_tiff(data) if is_tiff(data) else 0
    except ValueError as error:
        raise BadPicture(str(error)) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of sizes checked here anyway
            with pillow.open(_Counted(data), formats=FORMATS) as image:
                width, height = image.size
                if min(width, height) < 2:
                    raise BadPicture(f"too small: {width} x {height} pixels")
                if shortest is not None and _is_jpeg(image):
                    image.draft(None, (shortest, shortest))
                _check_cost(image, width * height, data, pixel_bytes)
                orientation = _orientation(image)
                image.load()
                image = _to_rgb(image, pillow, behind)
                return image if orientation is None else image.transpose(orientation)
    except BadPicture:
        raise
    except pillow.UnidentifiedImageError:
        raise BadPicture(_unknown(data)) from None
    except pillow.DecompressionBombError as error:
        raise BadPicture(f"too large: {error}") from None
    except MemoryError:
        raise BadPicture("decoding it ran out of memory") from None
    except Exception as error:  # Pillow on damaged files: OSError, SyntaxError, struct.error, ...
        raise BadPicture(f"damaged ({type(error).__name__}: {error})"[:300]) from None


def _read_file(path: Place, most: int = _MOST_FILE_BYTES) -> bytes:
    """All of it, or its first `most` bytes."""
    try:
        if os.path.isdir(path):
            raise BadPicture("it is a directory")
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_FILE_BYTES:
                raise BadPicture(f"too large: a file of {size} bytes, over {_MOST_FILE_BYTES}")
            data = file.read(most)
    except OSError as error:
        raise BadPicture(f"it can't be read ({error.strerror or error})") from None
    except ValueError as error:  # a pipe, a device
        raise BadPicture(str(error)) from None
    if not data:
        raise BadPicture("the file is empty")
    return data


def _unknown(data: bytes) -> str:
    known = ", ".join(FORMATS)
    return f"it is none of {known}, or its header is damaged; it begins with {data[:8]!r}"


def _why_not(path: str) -> str | None:
    """Why a file is no picture, as far as its first bytes tell."""
    try:
        data = _read_file(path, 16)
    except BadPicture as error:
        return str(error)
    return None if data.startswith(_BEGINNINGS) else _unknown(data)


def _check_cost(image: Image, coded: int, data: bytes, pixel_bytes: int) -> None:
    """BadPicture if it is too much work. Nothing but the header has been read so far."""
    if image.format == "TIFF" and image.mode in ("I", "F"):
        raise BadPicture(f"its numbers have a range of their own (mode {image.mode})")
    pixels = image.size[0] * image.size[1]
    # Pillow stores a pixel in 4 bytes, and converting takes 4 more; WebP's own library keeps two
    # canvases and hands over a copy.
    cost = len(data) + pixels * (20 if image.format == "WEBP" else 8)
    if pixel_bytes:  # of a TIFF: a strip or tile may be as large, and tags are kept twice
        cost += pixel_bytes + len(data)
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
        if image.format == "TIFF":  # Pillow turns these by itself
            return None
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
