"""What a TIFF file claims, found out before anybody believes it.

A TIFF begins with a table of tags, each a number, a type, a count, and four bytes that are its
value or say where in the file the value lies: anywhere. So 4,000 tags can all claim the same
30 MB, tiles can be a thousand times the picture, and a strip can be packed by methods of which
each is a library of its own. Readers that copy what tags point to, and make buffers for tiles,
run out of memory over a file of a few kilobytes. `check_tiff` reads the table by itself and
refuses what no camera, scanner or program writes:

>>> import struct
>>> from minimixer.pictures.tiff import check_tiff
>>> tag = struct.pack("<HHII", 273, 4, 1 << 20, 26)
>>> check_tiff(b"II*\\0\\x08\\0\\0\\0\\x01\\0" + tag + bytes(4))
Traceback (most recent call last):
ValueError: damaged: its tags claim 4194304 bytes of 26

Next: `digits.py`.
"""

import logging
import math
import struct

logging.getLogger("PIL").addHandler(logging.NullHandler())  # decode says what is wrong

_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8,
          17: 8, 18: 8}  # fmt: skip  # of one value of each type
_TEXTS = (1, 2, 6, 7)  # types that are kept as they are; of others each value becomes a number
_MOST_TAGS, _MOST_VALUES = 512, 1 << 15
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT = (
    256, 257, 258, 259, 277, 322, 323,
)  # fmt: skip
# Stored as they are, for fax machines, LZW, packed bits, deflate. Others hold pictures of further
# formats inside (JPEG, WebP), or claim memory of their own (LZMA).
_METHODS = (1, 2, 3, 4, 5, 8, 32773, 32946)


def is_tiff(data: bytes) -> bool:
    """Does it begin as a TIFF does, of either order of bytes, BigTIFF included?"""
    return data[:2] in (b"II", b"MM") and bool({42, 43} & set(data[2:4]))


def check_tiff(data: bytes) -> int:
    """How many bytes the pixels of the first picture take, whole tiles counted. ValueError, as a
    sentence, if tags overlap or are too many, or it is packed by a method that is not read."""
    try:
        return _pixel_bytes(_read_tags(data))
    except struct.error:
        raise ValueError("damaged: its header points outside of the file") from None


def _read_tags(data: bytes) -> dict[int, list[int]]:
    """The first values, four at most, of each tag of whole numbers in the first table."""
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    if version == 43:  # "BigTIFF": the same with numbers of 8 bytes
        (table,) = struct.unpack_from(order + "Q", data, 8)
        (count,), entry, place = struct.unpack_from(order + "Q", data, table), "HHQ8s", table + 8
    elif version != 42:
        raise ValueError(f"damaged: a TIFF of version {version}")
    else:
        (table,) = struct.unpack_from(order + "I", data, 4)
        (count,), entry, place = struct.unpack_from(order + "H", data, table), "HHI4s", table + 2
    if count > _MOST_TAGS:
        raise ValueError(f"damaged: {count} tags")
    found: dict[int, list[int]] = {}
    claimed = 0
    for _ in range(count):
        tag, kind, values, inside = struct.unpack_from(order + entry, data, place)
        place += struct.calcsize(order + entry)
        size = _BYTES.get(kind, 1) * values
        claimed += size
        if claimed > len(data):
            raise ValueError(f"damaged: its tags claim {claimed} bytes of {len(data)}")
        if kind not in _TEXTS and values > _MOST_VALUES:
            raise ValueError(f"too much work: a tag of {values} numbers")
        if kind in (3, 4, 16):
            letter = {3: "H", 4: "I", 16: "Q"}[kind]
            if size <= len(inside):
                source, start = inside, 0
            else:
                (start,) = struct.unpack(order + ("Q" if version == 43 else "I"), inside)
                source = data
            found[tag] = list(struct.unpack_from(f"{order}{min(values, 4)}{letter}", source, start))
    return found


def _pixel_bytes(tags: dict[int, list[int]]) -> int:
    def first(tag: int, default: int) -> int:
        return (tags.get(tag) or [default])[0]

    if (method := first(_COMPRESSION, 1)) not in _METHODS:
        raise ValueError(f"a TIFF packed by method {method}, which is not read; convert it to PNG")
    width, height = first(_WIDTH, 1), first(_HEIGHT, 1)
    if _TILE_WIDTH in tags:
        wide, high = max(1, first(_TILE_WIDTH, 1)), max(1, first(_TILE_HEIGHT, 1))
        width, height = -(-width // wide) * wide, -(-height // high) * high
    bits = max(tags.get(_BITS) or [1]) * min(first(_SAMPLES, 1), 16)
    return math.ceil(width * bits / 8) * height
