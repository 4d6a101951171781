"""Letters of many fonts as small grey images, and which of the fonts to learn from.

    python examples/make_data.py letters FOLDER --out letters

FOLDER holds .ttf, .otf and .pfb files at any depth; docs/comparison-plan.md says which packages.
Every letter is scaled by its own size to 30 of 32 pixels, so small letters and capitals are equally
large and belong to one class: 26 classes in 50 forms. Capital I and small l are left out, for in
many fonts each is the same stroke.

Fonts of one design must not lie on both sides of a split. Two fonts are in one group if they name
the same family, but for words of weight and width; if their letters hardly differ (NEAR); or if
five of these are the same, pixel by pixel (EQUAL). Groups are closed under that. A font is kept if
of at least LEGIBLE of its letters the nearest neighbour among all other groups' letters is the same
letter: others have symbols or another alphabet in these places. Of the groups one in SHARE is for
validation and one for testing, by a hash of their least font: no order of files, and no font that
is added elsewhere, moves a group.
"""

import csv
import hashlib
import io
import re
import string
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from minimixer.data import read_idx, write_idx

from minimixer.training.files import replace_file
from minimixer.training.names import printable

FORMS = [c for c in string.ascii_uppercase + string.ascii_lowercase if c not in "Il"]
CLASSES = np.array([string.ascii_lowercase.index(form.lower()) for form in FORMS])
SIDE = 32  # of a letter's image, in pixels
SUFFIXES = ".otf", ".pfb", ".ttf"
NEAR = 0.12  # root mean square difference of grey values in 0 ... 1, over all letters of two fonts
EQUAL = 5
STYLES = (
    r"\b(thin|light|regular|book|medium|semi|demi|bold|extra|ultra|black|heavy|condensed|narrow|wide"
    r"|italic|oblique|roman|mono)+\b"
)
LEGIBLE = 0.7
SHARE = 7
TRAIN, VALIDATION, TEST = 0, 1, 2


class Font(NamedTuple):
    """`letters` uint8 (50, 32, 32): ink is 255."""

    file: str
    family: str
    sha256: str
    letters: np.ndarray


def find_fonts(folder: Path) -> list[Font]:
    """The fonts under a folder that have all the letters, in the order of their hashes, each file
    once. ValueError if there are none; ImportError without Pillow."""
    fonts: dict[str, Font] = {}
    for path in sorted(folder.rglob("*")):
        found = read_font(path) if path.suffix.lower() in SUFFIXES and path.is_file() else None
        if found is not None:
            family, letters = found
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            fonts.setdefault(sha256, Font(printable(path.name), family, sha256, letters))
    if not fonts:
        raise ValueError(f"{printable(folder)} holds no font with all of {''.join(FORMS)}")
    return [fonts[key] for key in sorted(fonts)]


def read_font(path: Path) -> tuple[str, np.ndarray] | None:
    """(family, letters); None for a file that is no such font, or lacks a letter."""
    from PIL import ImageFont

    try:
        font = ImageFont.truetype(str(path), 96, layout_engine=ImageFont.Layout.BASIC)
        letters = [draw_letter(font, form) for form in FORMS]
    except (OSError, ValueError):
        return None
    # The same shape for different letters: a box that stands for what is missing.
    if any(letter is None for letter in letters) or len({x.tobytes() for x in letters}) < 45:
        return None
    return str(font.getname()[0]), np.stack(letters)


def draw_letter(font: Any, form: str) -> np.ndarray | None:
    """uint8 (32, 32), the longer side of what is drawn 30 pixels; None if nothing is."""
    from PIL import Image

    mask = font.getmask(form, mode="L")
    if 0 in mask.size or max(mask.size) > 1024:
        return None
    image = Image.frombytes("L", mask.size, bytes(mask))
    box = image.getbbox()
    if box is None:
        return None
    image = image.crop(box)
    scale = (SIDE - 2) / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    image = image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR)
    whole = np.zeros((SIDE, SIDE), np.uint8)
    left, top = ((SIDE - length) // 2 for length in size)
    whole[top : top + size[1], left : left + size[0]] = np.asarray(image)
    return whole


# ---- groups -------------------------------------------------------------------------------------


def group(fonts: list[Font]) -> np.ndarray:
    """The group of each font: int64 (N,), the number of its first font."""
    flat = np.stack([font.letters for font in fonts]).reshape(len(fonts), -1) / np.float32(255)
    norms = (flat * flat).sum(axis=1)
    squared = (norms[:, None] + norms - 2 * (flat @ flat.T)) / flat.shape[1]
    families = np.unique([family_of(font) for font in fonts], return_inverse=True)[1]
    alike = (squared < NEAR**2) | (families[:, None] == families)
    equal = np.zeros(alike.shape, np.int16)
    for form in range(len(FORMS)):
        pixels = np.stack([font.letters[form] for font in fonts]).reshape(len(fonts), -1)
        which = np.unique(pixels, axis=0, return_inverse=True)[1].reshape(-1)
        equal += which[:, None] == which
    alike |= equal >= EQUAL
    groups = np.arange(len(fonts))
    while True:  # the least number among those alike, until nothing changes
        least = np.where(alike, groups, len(fonts)).min(axis=1)
        if (least == groups).all():
            return groups
        groups = least


def family_of(font: Font) -> str:
    """Its family's name without words of weight, width and slant; whole if nothing is left."""
    return re.sub(STYLES, "", font.family.lower()).strip(" -") or font.family


def legible(fonts: list[Font], groups: np.ndarray) -> np.ndarray:
    """Of each font's letters, the share whose nearest neighbour in other groups is that letter."""
    halves = np.stack([font.letters for font in fonts]).reshape(-1, SIDE // 2, 2, SIDE // 2, 2)
    rows = halves.mean(axis=(2, 4), dtype=np.float32).reshape(len(halves), -1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6
    labels, owners = np.tile(CLASSES, len(fonts)), np.repeat(groups, len(FORMS))
    right = np.zeros(len(rows), bool)
    for start in range(0, len(rows), 2000):
        part = slice(start, start + 2000)
        cosine = rows[part] @ rows.T
        cosine[owners[part, None] == owners] = -1
        right[part] = labels[cosine.argmax(axis=1)] == labels[part]
    return right.reshape(len(fonts), -1).mean(axis=1)


def split(fonts: list[Font], groups: np.ndarray) -> np.ndarray:
    """TRAIN, VALIDATION or TEST for each font; fonts are in the order of their hashes, so a group's
    first is its least."""
    digests = [hashlib.sha256(fonts[first].sha256.encode()).hexdigest() for first in groups]
    number = np.array([int(digest, 16) % SHARE for digest in digests])
    return np.where(number == 0, TEST, np.where(number == 1, VALIDATION, TRAIN))


# ---- a folder of them ---------------------------------------------------------------------------

LETTERS, LIST = "letters-idx4-ubyte.gz", "fonts.csv"
PARTS = ("train", "validation", "test")


class Atlas(NamedTuple):
    """The kept fonts of each part: `letters` uint8 (fonts, 50, 32, 32)."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def make(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The letters of all fonts that are kept, and a row for each: file, family, sha256, group,
    part, and how legible it is."""
    fonts = find_fonts(folder)
    groups = group(fonts)
    share, parts = legible(fonts, groups), split(fonts, groups)
    rows = [
        {"file": font.file, "family": font.family, "sha256": font.sha256, "group": int(groups[i]),
         "part": PARTS[parts[i]], "legible": f"{share[i]:.2f}"}
        for i, font in enumerate(fonts)
    ]  # fmt: skip
    kept = np.flatnonzero(share >= LEGIBLE)
    return np.stack([fonts[i].letters for i in kept]), [rows[i] for i in kept]


def write(out: Path, letters: np.ndarray, rows: list[dict[str, Any]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_idx(out / LETTERS, letters)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    with replace_file(out / LIST) as file:
        file.write(text.getvalue().encode())


def read(folder: Path) -> Atlas:
    """What `write` wrote. ValueError if it is anything else, OSError if it can't be read."""
    letters = read_idx(folder / LETTERS)
    try:
        with (folder / LIST).open(encoding="utf-8", newline="") as file:
            parts = np.array([row.get("part") for row in csv.DictReader(file)])
    except (csv.Error, UnicodeDecodeError) as error:
        name = printable(folder / LIST)
        raise ValueError(f"{name} is no list of fonts ({error}); make it again") from None
    if letters.shape != (len(parts), len(FORMS), SIDE, SIDE) or letters.dtype != np.uint8:
        raise ValueError(f"{printable(folder)}: {LETTERS} has {letters.shape} {letters.dtype}, and "
                         f"{LIST} {len(parts)} fonts; make them again")  # fmt: skip
    found = [letters[parts == part] for part in PARTS]
    if not all(map(len, found)):
        raise ValueError(f"{printable(folder / LIST)} needs fonts of each of {', '.join(PARTS)}")
    return Atlas(*found)
