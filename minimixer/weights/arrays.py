"""Arrays by name from files that somebody else made: .npz and .safetensors.

Such a file is not to be trusted. Nothing in it is ever unpickled, since a pickle is a program; no
memory is taken because a header says so; and what is wrong is said with the entry's name.

>>> import tempfile
>>> import numpy as np
>>> from minimixer.weights.arrays import read_arrays
>>> path = tempfile.mkdtemp() + "/weights.npz"
>>> np.savez(path, **{"head/bias": np.zeros(3, dtype="float32")})
>>> read_arrays(path)[0]
{'head/bias': array([0., 0., 0.], dtype=float32)}

Next: `layouts.py`, what the arrays are called.
"""

import os

import numpy as np

from ..training.files import open_file
from ..training.names import printable
from ..training.npz import Npz, check_finite, is_safetensors

LARGEST_HEADER = 1 << 24  # bytes of a .safetensors file's own list of arrays: 16 MiB
_HALVES = ("float16", "bfloat16")
_DTYPES = ("F16", "BF16", "F32", "F64", "U8")


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays by name, metadata) of a .npz or .safetensors file, whatever it is called.

    Two-byte floating-point arrays come as float32; all have finite values alone. ValueError for any
    other file, or one that is damaged; OSError if it can't be read.
    """
    where = os.fspath(path)
    metadata: dict[str, str] = {}
    try:
        with open_file(path) as file:
            start, size = file.peek(9)[:9], os.fstat(file.fileno()).st_size
            if is_safetensors(start):
                header = int.from_bytes(start[:8], "little")
                arrays, metadata = _read_safetensors(where, header, size)
            else:
                arrays = dict(Npz(file))
        for name, array in arrays.items():
            if array.dtype.name in _HALVES:
                arrays[name] = array.astype(np.float32)
        check_finite(arrays)
    except ValueError as error:
        raise ValueError(f"{where}: can't be read: {error}") from None
    return arrays, metadata


def _read_safetensors(
    where: str, header: int, size: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if header > min(LARGEST_HEADER, size):
        raise ValueError(
            f"its list of arrays claims {header} bytes; {LARGEST_HEADER} is the limit, and the "
            f"whole file has {size}"
        )
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise ValueError("it needs safetensors: pip install safetensors") from None
    arrays: dict[str, np.ndarray] = {}
    name = "its list of arrays"
    try:
        with safe_open(where, framework="numpy") as file:  # which compares sizes and offsets
            metadata = dict(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _DTYPES:
                    raise ValueError(f"{printable(name, 80)} is of dtype {dtype}, not float32")
                if dtype == "BF16":
                    _learn_bfloat16(name)
                arrays[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{printable(name, 80)} is damaged ({printable(error)})") from None
    return arrays, metadata


def _learn_bfloat16(name: str) -> None:
    try:
        import ml_dtypes  # noqa: F401  # NumPy knows the type from then on
    except ModuleNotFoundError:
        raise ValueError(
            f"{printable(name, 80)} is of dtype bfloat16, which needs: pip install ml_dtypes"
        ) from None
