"""Arrays by name from files that somebody else made: .npz and .safetensors.

Such a file is not to be trusted. Nothing in it is ever unpickled, since a pickle is a program; no
memory is taken because a header says so; and what is wrong is said with the entry's name.

>>> import tempfile
>>> path = tempfile.mkdtemp() + "/weights.npz"
>>> np.savez(path, **{"head/bias": np.zeros(3, dtype="float32")})
>>> read_arrays(path)[0]
{'head/bias': array([0., 0., 0.], dtype=float32)}

Next: `layouts.py`, what the arrays are called.
"""

import io
import os
import zipfile
from typing import Any

import numpy as np

from ..checkpoint import parse_array

LARGEST_HEADER = 100 << 20  # bytes: what the safetensors library accepts, too
PACKED, ROOM = 4, 64 << 20  # an archive may hold so many times its size, and so many bytes more

CONVERT = """it is a pickle of PyTorch's, which is a program, and is never run here; convert it with
  import torch, safetensors.torch
  safetensors.torch.save_file(torch.load({0!r}, weights_only=True), {1!r})"""


def read_arrays(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays by name, metadata) of a .npz or .safetensors file, whatever it is called.

    Floating-point arrays come as float32 or float64, with finite values alone. ValueError for any
    other file, or one that is damaged; OSError if it can't be read.
    """
    where = os.fspath(path)
    with open(path, "rb") as file:
        start, size = file.read(9), os.fstat(file.fileno()).st_size
    metadata: dict[str, str] = {}
    try:
        if start.startswith(b"PK"):
            arrays = _read_npz(where, size)
        elif start[8:] == b"{" and int.from_bytes(start[:8], "little") <= min(size, LARGEST_HEADER):
            arrays, metadata = _read_safetensors(where)
        elif start.startswith(b"\x80"):
            raise ValueError(_convert(where))
        else:
            raise ValueError("it is neither an .npz nor a .safetensors file")
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name:.80} holds NaN or infinity")
    except (ValueError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise ValueError(f"{where}: can't be read: {str(error) or type(error).__name__}") from None
    except (zipfile.zlib.error, UnicodeError, OverflowError) as error:  # type: ignore[attr-defined]
        raise ValueError(f"{where}: is damaged: {error}") from None
    return arrays, metadata


def _convert(where: str) -> str:
    return CONVERT.format(where, os.path.splitext(where)[0] + ".safetensors")


def _read_npz(where: str, size: int) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(where) as archive:
        members = archive.infolist()
        if any(m.filename.endswith("data.pkl") for m in members):
            raise ValueError(_convert(where))
        claimed = sum(m.file_size for m in members)
        if claimed > PACKED * size + ROOM:
            raise ValueError(f"{size} bytes claim to hold {claimed}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"{name:.80} comes twice")
            with archive.open(member) as stream:
                data = stream.read(member.file_size + 1)  # and the checksum is compared
            try:
                array = parse_array(data)
            except ValueError as error:
                raise ValueError(f"{name:.80}: {error}") from None
            arrays[name] = array.astype(np.float32) if array.dtype == np.float16 else array
    return arrays


def _read_safetensors(where: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise ValueError("it needs safetensors: pip install -e '.[weights]'") from None
    arrays: dict[str, Any] = {}
    try:
        with safe_open(where, framework="numpy") as file:  # which compares sizes and offsets
            metadata = dict(file.metadata() or {})
            for name in list(file.keys()):
                array = file.get_tensor(name)
                arrays[name] = array.astype(np.float32) if array.itemsize == 2 else array
    except (SafetensorError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"not in the safetensors format, or of another dtype ({error})") from None
    return arrays, metadata


def write_npz(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of an .npz file of these."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
