"""Arrays by name in one file: .npz, NumPy's format, as somebody else may have made it.

An .npz is a zip archive whose members are .npy files: a few words in a header, then numbers. Such a
file is not to be trusted. Nothing in it is ever unpickled, since a pickle is a program; the header,
which NumPy evaluates as an expression of Python, is compared with a pattern; members are stored
or deflated, and may not claim to hold much more than they are. A member is read when it is asked
for, so that a file with the wrong names costs nothing.

>>> import tempfile
>>> import numpy as np
>>> from minimixer.training.files import open_file
>>> from minimixer.training.npz import Npz
>>> path = tempfile.mkdtemp() + "/weights.npz"
>>> np.savez(path, **{"head/bias": np.zeros(3, dtype="float32")})
>>> with open_file(path) as file:
...     arrays = Npz(file)
...     list(arrays), arrays["head/bias"]
(['head/bias'], array([0., 0., 0.], dtype=float32))

Writing needs no code of ours: `numpy.savez`. Next: `idx.py`, the format of MNIST.
"""

import errno
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from io import BufferedReader
from typing import IO

import numpy as np

from .files import check_unpacked
from .names import printable

MOST_DIRECTORY = 1 << 22  # bytes of an archive's list of members: 4 MiB, some 40,000
_PIECE = 1 << 20

# What the standard library raises for a damaged archive or member.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError,
           RuntimeError, OverflowError)  # fmt: skip

CONVERT = """it is a pickle of PyTorch's, which is a program, and is never run here; convert it with
  import torch, safetensors.torch
  safetensors.torch.save_file(torch.load({0!r}, weights_only=True), {1!r})"""

# Other files that people have, by their first bytes, and what to do.
_OTHERS = {
    b"\x80": CONVERT,
    b"\x89HDF": "it is an HDF5 file, as Keras writes; write its arrays with numpy.savez instead",
    b"\x1f\x8b": "it is packed with gzip; unpack it first (gunzip)",
    b"\x93NUMPY": "it is a single array (.npy), not several by name (.npz)",
    b"<": "it is a web page, not what should have been loaded down from there; fetch it again",
    b"version https://git-lfs": "it only says where the file lies; fetch it with: git lfs pull",
    b"": "it is empty; fetch or save it again",
}


def other_kind(path: str | os.PathLike[str], start: bytes) -> str:
    """What a file that is no .npz seems to be, from its first bytes, and what to do about it."""
    name = os.fspath(path)
    for begin, text in _OTHERS.items():
        if start.startswith(begin) if begin else not start:
            return text.format(name, os.path.splitext(name)[0] + ".safetensors")
    if is_safetensors(start):
        return "it is a .safetensors file; for weights of others use Mixer.from_pretrained"
    return "it is neither an .npz nor a .safetensors file"


def is_safetensors(start: bytes) -> bool:
    """Is this the beginning of one? A length in 8 bytes, then a text of JSON."""
    return start[6:9] == b"\0\0{"


class Npz(Mapping[str, np.ndarray]):
    """The arrays of the archive in `file`, read when asked for: float16, float32, float64 or uint8,
    in native byte order. ValueError, which names the member but not the file, for damage, for
    other arrays, and for what claims to hold more than `check_unpacked` allows."""

    def __init__(self, file: BufferedReader):
        size = os.fstat(file.fileno()).st_size
        if file.peek(1)[:1] != b"P":  # each archive of arrays begins with "PK"
            raise ValueError(other_kind(file.name, file.peek(32)[:32]))
        try:
            self._archive = zipfile.ZipFile(_Directory(file))  # type: ignore[call-overload]
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before 0
                raise
            raise ValueError(f"its list of members is damaged ({_words(error)})") from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        packed = unpacked = 0
        for member in self._archive.infolist():
            name, packed = member.filename, packed + member.compress_size
            unpacked += member.file_size
            if name.endswith("data.pkl"):
                raise ValueError(other_kind(file.name, b"\x80"))
            name = name.removesuffix(".npy")
            shown = printable(name, 80)
            if name in self._members:
                raise ValueError(f"{shown} comes twice")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{shown} is packed in another way than stored or deflated")
            if packed > size or not 0 <= member.header_offset < size:
                raise ValueError(f"{shown} lies outside of the file or within another member")
            self._members[name] = member
        check_unpacked(unpacked, size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> np.ndarray:
        member = self._members[name]
        try:
            with self._archive.open(member) as stream:
                return _read_array(stream, member.file_size)
        except (ValueError, *_DAMAGE) as error:
            raise ValueError(f"{printable(name, 80)}: {_words(error)}") from None


def check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """ValueError, with its name, for an array that holds NaN or infinity."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{printable(name, 80)} holds NaN or infinity")


class _Directory:
    """A file for zipfile, which would read a list of members of any length at once."""

    def __init__(self, file: BufferedReader):
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        if size > MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"it has {size} bytes")
        return self._read(size)


# NumPy's header, as far as it is needed.
_HEADER = re.compile(
    rb"\{'descr': '([^'\\]{1,20})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18}(?:, \d{1,18}){0,63},?)?)\), \} *\n"
)
_DTYPES = (b"<f2", b"<f4", b"<f8", b">f2", b">f4", b">f8", b"|u1")


def _read_array(stream: IO[bytes], size: int) -> np.ndarray:
    """The array in a member of `size` bytes, which must be exactly right."""
    start = stream.read(10)
    length = int.from_bytes(start[8:], "little")
    header = _HEADER.fullmatch(stream.read(length))
    if start[:8] != b"\x93NUMPY\x01\x00" or header is None:
        raise ValueError("not an array of plain numbers in NumPy's format")
    if header[1] not in _DTYPES:
        raise ValueError(f"an array of {header[1]!r}; write it as float32")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(n) for n in header[3].decode().split(",") if n.strip())
    count = math.prod(shape) * dtype.itemsize
    if count != size - 10 - length:
        raise ValueError(f"an array of shape {shape} in {size - 10 - length} bytes")
    data = np.empty(count, np.uint8)  # no more than the archive may claim
    for place in range(0, count, _PIECE):
        piece = data[place : place + _PIECE]
        if stream.readinto(piece) != len(piece):  # type: ignore[attr-defined]
            raise ValueError(f"it ends after {place} bytes or later")
    stream.read(1)  # at the end the checksum is compared, even if there was nothing to read
    array = data.view(dtype)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return array.reshape(shape[::-1]).T if header[2] == b"True" else array.reshape(shape)


def _words(error: Exception) -> str:
    return printable(error, 200) or type(error).__name__
