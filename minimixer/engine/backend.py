"""NumPy or CuPy: what differs between them, in one place.

What follows is array code that runs on both, but for a word here and there where a GPU wants
another way. An array brings its namespace with it (`xp`, everywhere, is numpy or cupy, whichever
the array is of), so work on CPU and GPU lives side by side in one process.

>>> import numpy as np
>>> x = np.arange(6, dtype="float32").reshape(2, 3)
>>> device_of(x), namespace(x) is np
('cpu', True)

Random numbers are not drawn from a hidden generator that steps forward. Each is one integer
hash of what it is for, so any of them can be computed again, on any device, in any order:

>>> [hex(b) for b in random_bits(7, Purpose.DROPOUT, 3, 0, 0, np.arange(2))]
['0x1673302a9d842364', '0x3c16016e89a9b92']
"""

import contextlib
import ctypes
import functools
import re
import sys
import threading
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType
from typing import Any

import numpy as np

from .precision import FLOAT_DTYPES as FLOAT_DTYPES
from .precision import as_dtype as as_dtype
from .precision import check_precision as check_precision
from .precision import is_half as is_half
from .precision import native
from .precision import wide as wide
from .precision import widen as widen

Array = Any  # numpy.ndarray or cupy.ndarray; CuPy is never imported for a type

# ---- which library, which device ----------------------------------------------------------------


def namespace(array: Array) -> ModuleType:
    """The module whose functions work on `array`: numpy or cupy."""
    return _namespaces[type(array)]


class _Namespaces(dict[type, ModuleType]):
    def __missing__(self, kind: type) -> ModuleType:
        self[kind] = sys.modules["cupy"] if kind.__module__.partition(".")[0] == "cupy" else np
        return self[kind]


_namespaces = _Namespaces()


def is_array(value: object) -> bool:
    """Is it a NumPy or CuPy array?"""
    return isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "cupy"


def device_of(array: Array) -> str:
    """ "cpu", or "cuda:N" for the GPU that holds `array`."""
    return "cpu" if namespace(array) is np else f"cuda:{array.device.id}"


def same_device(a: Array, b: Array) -> bool:
    """Do two arrays lie on one device?"""
    return namespace(a) is namespace(b) and (namespace(a) is np or a.device == b.device)


def check_device(device: str) -> str:
    """The full name of a device ("cuda" is "cuda:0"); ValueError if it can't be used here."""
    if device == "cpu":
        return device
    match = re.fullmatch(r"cuda(?::(\d+))?", device) if isinstance(device, str) else None
    if match is None:
        raise ValueError(f"unknown device {device!r}: use 'cpu', 'cuda' or 'cuda:N'")
    index = int(match[1] or 0)
    count = _count_gpus()
    if index >= count:
        raise ValueError(f"there is no {device}: this machine has {count} GPU(s), from cuda:0")
    return f"cuda:{index}"


@functools.cache
def _count_gpus() -> int:
    """How many GPUs CuPy can use; each reason for none has a sentence of its own."""
    install = "pip install -e '.[cuda]' (CUDA 12) or '.[cuda13]' (CUDA 13)"
    try:
        import cupy
    except ModuleNotFoundError:
        raise ValueError(f"device 'cuda' needs CuPy, which is not installed: {install}") from None
    except ImportError as error:
        raise ValueError(f"CuPy is installed but can't be loaded ({error}): {install}") from None
    version = [int(number) for number in re.findall(r"\d+", cupy.__version__)[:2]]
    if version < [14, 2]:
        raise ValueError(f"CuPy {cupy.__version__} is too old, 14.2 is needed: {install}")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if "NoDevice" in str(error):
            raise ValueError("CuPy finds no NVIDIA GPU: check `nvidia-smi`") from None
        raise ValueError(
            f"the NVIDIA driver is missing or too old for this CuPy ({error}): check `nvidia-smi`"
        ) from None
    if count == 0:
        raise ValueError("CuPy finds no NVIDIA GPU: check `nvidia-smi`")
    try:  # CuPy compiles its kernels when they are used, with NVIDIA's NVRTC and CUDA's headers
        numbers = cupy.arange(2, dtype="float32")
        [values.sum() for values in (numbers, numbers > 0)]  # for bool it reads more headers
    except (cupy.cuda.compiler.CompileException, ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"CuPy can't compile for the GPU ({reason}); CUDA's headers come with: {install}"
        ) from None
    return count


def address(array: Array) -> int:
    """Where its first element lies."""
    return array.ctypes.data if namespace(array) is np else array.data.ptr


def to_device(array: Array, device: str) -> Array:
    """`array` on `device`: itself if it is there already, else a copy."""
    device = check_device(device)
    if device_of(array) == device:
        return array
    if device == "cpu":
        return array.get()
    cupy = sys.modules["cupy"]
    cupy.cuda.Device(int(device[5:])).use()
    check_not_recorded("copying from the CPU")
    return cupy.asarray(native(array))


def check_not_recorded(what: str) -> None:
    """RuntimeError if a CUDA graph (graph/) is being recorded, which would keep an old value."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and cupy.cuda.get_current_stream().is_capturing():
        raise RuntimeError(f"{what} inside of a recorded step would repeat the values of now")


def to_numpy(array: Array) -> np.ndarray:
    """`array` as a NumPy array: itself on the CPU, a copy from a GPU."""
    return to_device(array, "cpu")


def use_device_of(array: Array) -> None:
    """Let what comes next run on the GPU that holds `array`, where there are several."""
    if namespace(array) is not np and _count_gpus() > 1:
        array.device.use()


def synchronize(device: str) -> None:
    """Wait until the device has done all its work. A GPU works on while Python runs ahead."""
    if device != "cpu":
        cupy = sys.modules["cupy"]
        cupy.cuda.Device(int(check_device(device)[5:])).use()
        cupy.cuda.get_current_stream().synchronize()


def describe(array: Array) -> str:
    """For error messages: float32 (3, 4) on cpu."""
    return f"{array.dtype} {array.shape} on {device_of(array)}"


def blocks(array: Array, start: int = 0, stop: int | None = None) -> list[slice]:
    """Slices that cover the flat range [start, stop) of `array`, all of it by default.

    On the CPU each is 128 KiB: a few temporaries of that size stay in the cache between one
    operation and the next, where whole arrays would travel to memory and back. On a GPU, which
    wants few large operations, it is one slice.
    """
    stop = array.size if stop is None else stop
    size = (1 << 17) // array.itemsize if namespace(array) is np else max(1, stop - start)
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]


def _keep_freed_memory() -> None:
    """Let the C library keep the memory of freed arrays: the next step needs the same again.

    By default glibc returns large blocks to the kernel at once, and every step faults them in
    anew, page by page: 24,000 page faults, 45 to 75 of 270 ms of an MNIST-sized step.
    """
    if sys.platform == "linux":
        m_trim_threshold, m_mmap_threshold = -1, -3  # from malloc.h; the second allows 32 MiB
        with contextlib.suppress(AttributeError, OSError):  # another C library: as it was
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(m_trim_threshold, 2**31 - 1)
            mallopt(m_mmap_threshold, 32 << 20)


_keep_freed_memory()


def one(like: Array) -> Array:
    """1 as a 0-d array of the same dtype, where `like` is: always the same one, for reading."""
    device = device_of(like)
    found = _ones.get((device, like.dtype))
    if found is None:
        found = namespace(like).ones((), dtype=like.dtype)
        if device == "cpu":
            found.flags.writeable = False
        elif sys.modules["cupy"].cuda.get_current_stream().is_capturing():
            return found  # not written before the recording is replayed
        synchronize(device)
        _ones[device, like.dtype] = found
    return found


_ones: dict[tuple[str, np.dtype], Array] = {}


# ---- fast forms ---------------------------------------------------------------------------------

# What kernels/ has in place of plain code (dispatch.py): by what it replaces, and by the library
# whose arrays it works on, "numpy" or "cupy". Empty without it.
forms: dict[Any, dict[str, Any]] = {}


def form_of(plain: Any, array: Array) -> Any:
    """The fast form of `plain` for such arrays, which may not suit them; or None."""
    found = forms.get(plain)
    return None if found is None else found.get(namespace(array).__name__)


def unchanged(plain: Any) -> bool:
    """Is the code of `plain` what its fast form was compared with? kernels/ knows."""
    return True


def current_form(plain: Any, array: Array) -> Any:
    """The fast form of `plain` for such arrays, if `plain` is unchanged; or None."""
    form = form_of(plain, array)
    return form if form is not None and unchanged(plain) else None


class _Aside(threading.local):  # each thread has its own
    def __init__(self) -> None:
        self.joins: list[Callable[[], None]] = []


_aside = _Aside()


def join_later(function: Callable[[], None]) -> None:
    """Gradients of weights may be computed beside the main line of work (kernels/cpu/threads.py
    and kernels/gpu/side.py): `function` waits for them, and `join` will call it, once."""
    if function not in _aside.joins:
        _aside.joins.append(function)


def join() -> None:
    """Wait for all that is computed beside: before gradients are looked at."""
    while _aside.joins:
        _aside.joins.pop()()


# ---- sums in a fixed order ----------------------------------------------------------------------


def add_at(target: Array, positions: Array, values: Array) -> None:
    """target[positions] += values for flat arrays, adding every value where positions repeat.

    In a fixed order: on the GPU in rounds, each of which meets a position at most once, since
    atomic additions would give other bits on every run.
    """
    xp = namespace(target)
    if xp is np:
        np.add.at(target, positions, values)
        return
    order = xp.argsort(positions)  # CuPy's is stable
    positions, values = positions[order], values[order]
    first = xp.searchsorted(positions, positions, side="left")
    occurrence = xp.arange(len(positions)) - first
    for number in range(int(occurrence.max()) + 1 if len(positions) else 0):
        chosen = occurrence == number
        target[positions[chosen]] += values[chosen]


# ---- random numbers without a state -------------------------------------------------------------


class Purpose(IntEnum):
    """What a random number is for: the same counters under two purposes are unrelated."""

    WEIGHTS = 1
    SHUFFLE = 2
    SHIFT = 3
    DROPOUT = 4  # this and the next: in nn/layers.py
    STOCHASTIC_DEPTH = 5


# The last step of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
# generators"): every input bit flips each output bit with probability one half.
_GOLDEN, _MULTIPLY_1, _MULTIPLY_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

_CUDA_FOLD = f"""
__device__ unsigned long long fold(unsigned long long bits, unsigned long long field) {{
    bits = (bits ^ field) + {_GOLDEN:#x}ULL;
    bits = (bits ^ (bits >> 30)) * {_MULTIPLY_1:#x}ULL;
    bits = (bits ^ (bits >> 27)) * {_MULTIPLY_2:#x}ULL;
    return bits ^ (bits >> 31);
}}
"""


def _fold(bits: np.ndarray, field: Array) -> np.ndarray:
    """Mix one more counter into the hash; uint64 arithmetic wraps around as intended."""
    bits = (bits ^ field) + np.uint64(_GOLDEN)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(_MULTIPLY_1)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(_MULTIPLY_2)
    bits ^= bits >> np.uint64(31)
    return bits


@functools.cache
def _cuda_random_bits() -> Any:
    fields = ("seed", "purpose", "step", "layer", "example", "element")
    code = "bits = 0;" + "".join(f"bits = fold(bits, {field});" for field in fields)
    return sys.modules["cupy"].ElementwiseKernel(
        ", ".join(f"uint64 {field}" for field in fields),
        "uint64 bits",
        code,
        "minimixer_random_bits",
        preamble=_CUDA_FOLD,
    )


def random_bits(
    seed: int, purpose: int, step: Array, layer: int, example: Array, element: Array
) -> Array:
    """64 random bits for each element: uint64, of the shape that the arguments broadcast to.

    A pure function of its six counters (integers below 2^64, or arrays of such): no state, the
    same bits on CPU and GPU. It runs where its array arguments are; `step` may be an array of
    one element on the device.
    """
    counters = (seed, int(purpose), step, layer, example, element)
    if any(is_array(c) and namespace(c) is not np for c in counters):
        return _cuda_random_bits()(*counters)
    bits = np.zeros((), dtype=np.uint64)[None]  # 1-d: NumPy warns when a uint64 scalar wraps
    for counter in counters:
        bits = _fold(bits, np.asarray(counter).astype(np.uint64))
    return bits if any(np.ndim(c) for c in counters) else bits[0]


def uniform(bits: Array, dtype: Any) -> Array:
    """uint64 random bits -> numbers in [0, 1), as fine as `dtype` resolves near 1."""
    digits = 24 if np.dtype(dtype) == np.float32 else 53
    return (bits >> np.uint64(64 - digits)).astype(dtype) * 2.0**-digits


def __getattr__(name: str) -> Any:
    if name in ("matmul", "sum_rows"):  # where they were before products.py
        from . import products

        return getattr(products, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
