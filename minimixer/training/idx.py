"""IDX files, the format of MNIST: how to read a file that somebody else made.

An IDX file is 0, 0, the code of an element type, the number of dimensions; then each dimension
as a big-endian uint32; then the elements, big-endian, last dimension fastest. Nothing else.

What a header claims is not believed until the bytes are there: memory grows with what was read.

>>> import tempfile
>>> import numpy as np
>>> from minimixer.training.idx import read_idx, write_idx
>>> path = tempfile.mkdtemp() + "/numbers-idx2-ubyte.gz"
>>> write_idx(path, np.array([[1, 2], [3, 4]], dtype="uint8"))
>>> read_idx(path)
array([[1, 2],
       [3, 4]], dtype=uint8)
"""

import gzip
import math
import os
import zlib
from typing import BinaryIO

import numpy as np

from .files import MOST_BYTES, check_unpacked, open_file, replace_file

_ELEMENT_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK_BYTES = 1 << 20


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, gzip or plain (told apart by content, not by name).

    Returns a writable array in native byte order: uint8, int8, int16, int32, float32 or float64,
    with 1 to 64 dimensions, none of them 0. ValueError if the file is anything but one whole IDX
    array. A false header is safe to meet: memory grows with what was read, not with its claim.
    """
    try:
        with open_file(path) as file:
            if file.peek(2)[:2] == b"\x1f\x8b":
                packed = os.fstat(file.fileno()).st_size
                with gzip.GzipFile(fileobj=file) as unpacked:
                    return _read_array(unpacked, packed)
            return _read_array(file)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        met = f"damaged gzip data ({error})"
    except ValueError as error:
        met = str(error)
    raise ValueError(f"{os.fspath(path)}: {met}; check that it is an IDX file, or fetch it again")


def _read_array(file: BinaryIO | gzip.GzipFile, packed: int | None = None) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _ELEMENT_TYPES:
        codes = ", ".join(f"{code:02x}" for code in _ELEMENT_TYPES)
        raise ValueError(f"it begins with {magic.hex(' ')!r}, not 00 00 and one of {codes}")
    dtype, dimensions = np.dtype(_ELEMENT_TYPES[magic[2]]), magic[3]
    if not 1 <= dimensions <= 64:
        raise ValueError(f"it claims {dimensions} dimensions, but NumPy's limits are 1 and 64")
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise ValueError(f"it ends within its header of {4 + 4 * dimensions} bytes")
    shape = tuple(np.frombuffer(header, ">u4").tolist())  # Python integers: they don't overflow
    claimed = math.prod(shape) * dtype.itemsize
    if not 0 < claimed <= MOST_BYTES:
        raise ValueError(f"it claims shape {shape}, {claimed} bytes, not 1 to {MOST_BYTES}")
    if packed is not None:
        check_unpacked(claimed, packed)
    data = bytearray()
    while len(data) < claimed:
        chunk = file.read(min(_CHUNK_BYTES, claimed - len(data)))
        if not chunk:
            raise ValueError(f"shape {shape} needs {claimed} bytes, but only {len(data)} follow")
        data += chunk
    # One byte more finds trailing bytes without unpacking them, and at the true end of a gzip
    # stream it is what makes GzipFile compare the checksum.
    if file.read(1):
        raise ValueError(f"shape {shape} needs {claimed} bytes, but more follow")
    array = np.frombuffer(data, dtype)
    if not dtype.isnative:  # swap in place: a second copy would double the memory
        array = array.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return array.reshape(shape)


def write_idx(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write `array` as an IDX file, compressed if the name ends in .gz; equal arrays, equal bytes.

    The file appears whole or not at all. ValueError if IDX can't hold the array: its type is not
    one of the six that `read_idx` returns, or it is empty, or has no dimension.
    """
    array = np.asarray(array)
    codes = {np.dtype(name): code for code, name in _ELEMENT_TYPES.items()}
    big_endian = array.dtype.newbyteorder(">")
    if big_endian not in codes:
        names = ", ".join(str(np.dtype(name).newbyteorder("=")) for name in _ELEMENT_TYPES.values())
        raise ValueError(f"write_idx: IDX has no {array.dtype}; use .astype with one of {names}")
    if not array.ndim or not all(0 < size < 1 << 32 for size in array.shape):
        raise ValueError(f"write_idx: shape {array.shape} needs 1 to 2^32 - 1 in each dimension")
    header = bytes([0, 0, codes[big_endian], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = header + array.astype(big_endian).tobytes()
    if os.fspath(path).endswith(".gz"):
        data = gzip.compress(data, compresslevel=6, mtime=0)  # no time stamp, which would differ
    with replace_file(path) as file:
        file.write(data)
