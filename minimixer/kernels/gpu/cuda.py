"""Compiling and starting CUDA kernels.

`get(file, expression)` is a kernel of a `.cu` file beside this one: the instance of a C++ template,
such as "gelu_rows<float,4,true>", compiled by NVRTC when first asked for and kept by CuPy on disk.

A kernel is started as kernel(grid, block, arguments): `grid` blocks of `block` threads each run its
text. Arguments are arrays (their addresses), Python integers (64 bits), Python floats (double), or
numpy.int32 where the kernel says int; 0 is the null pointer.
"""

import functools
import hashlib
import os
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.arrays import Array

DIRECTORY = Path(__file__).parent
C_NAMES = {"float64": "double", "float32": "float", "float16": "__half",
           "bfloat16": "__nv_bfloat16", "uint8": "unsigned char"}  # fmt: skip
_kernels: dict[tuple[str, str, int, str], Any] = {}  # by file, expression, device, and more text
_failed: set[str] = set()  # files whose kernels can't be compiled here: the plain code is used


@functools.cache
def source(file: str, more: str = "") -> str:
    """The text to compile: what all kernels share, `more`, and the file's own."""
    # One text rather than an #include, which CuPy's cache would not notice to have changed.
    return source_of("common.cu") + more + source_of(file)


def source_of(file: str) -> str:
    return (DIRECTORY / file).read_text(encoding="utf-8")


def get(file: str, expression: str, more: str = "") -> Any:
    """The kernel, for the current GPU. With `more` text it is one that takes instructions of
    compute capability 9.0 alone."""
    key = file, expression, sys.modules["cupy"].cuda.Device().id, more
    return _kernels[key] if key in _kernels else _compile(*key)


def _compile(file: str, expression: str, device: int, more: str) -> Any:
    import cupy

    text = source(file, more)
    marker = _marker(text + expression, device)
    if not marker.exists():
        with _lock:
            _say_once("minimixer: compiling kernels for this GPU; they are kept for the next time")
    options = ("-std=c++17", *(["-arch=sm_90a"] if more else []))  # beside CuPy's own, and taken
    module = cupy.RawModule(
        code=text, options=options, name_expressions=(expression,), backend="nvrtc"
    )
    kernel = module.get_function(expression)
    _kernels[file, expression, device, more] = kernel
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError:
        pass  # no place to remember it: it will be said again
    return kernel


def _marker(text: str, device: int) -> Path:
    """A file that says that such a kernel was compiled before."""
    import cupy

    what = f"{text}{cupy.__version__}{cupy.cuda.Device(device).compute_capability}"
    cache = Path(os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")).expanduser()
    return cache / f"minimixer-{hashlib.sha256(what.encode()).hexdigest()[:20]}"


_lock = threading.Lock()


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)


def usable(file: str, *expressions: str, more: str = "") -> bool:
    """Can these kernels be had? If not, one warning says so: the plain code then does the work.
    Those that are missing are compiled side by side."""
    if file in _failed:
        return False
    device = sys.modules["cupy"].cuda.Device().id
    keys = [(file, expression, device, more) for expression in expressions]
    missing = [key for key in keys if key not in _kernels]
    try:
        if len(missing) == 1:
            _compile(*missing[0])
        elif missing:  # in threads, each of which has a current device of its own
            use = sys.modules["cupy"].cuda.Device(device).use
            with ThreadPoolExecutor(len(missing), initializer=use) as pool:
                list(pool.map(lambda key: _compile(*key), missing))
    except MemoryError:
        raise  # which says nothing about the kernel
    except Exception as error:  # whatever a compiler, a driver or a missing header may lead to
        _failed.add(file)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"minimixer: {file} ({expressions[0]}) can't be compiled here, so the plain code does "
            f"its work, more slowly: {reason:.200}",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    return True


@functools.cache
def multiprocessors(device: int) -> int:
    """How many multiprocessors the GPU has: blocks run on them side by side."""
    import cupy

    return cupy.cuda.Device(device).attributes["MultiProcessorCount"]


@functools.cache
def most_shared(device: int) -> int:
    """How many bytes of shared memory a block may have."""
    import cupy

    return cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]


@functools.cache
def resident_blocks(kernel: Any, threads: int, device: int, shared: int) -> int:
    """How many blocks of a kernel the GPU holds at once: each multiprocessor has 65,536 registers,
    given out by eights, and so many bytes of shared memory, 1,024 of them the system's."""
    import cupy

    most = cupy.cuda.Device(device).attributes["MaxSharedMemoryPerMultiprocessor"]
    by_registers = 65536 // (8 * ceil_div(kernel.num_regs, 8) * threads)
    return multiprocessors(device) * max(1, min(by_registers, most // (shared + 1024)))


def allow_shared(kernel: Any, size: int) -> None:
    """Let the kernel have `size` bytes of shared memory when started: more than 48 KiB it must be
    allowed."""
    if kernel.max_dynamic_shared_size_bytes < size:
        kernel.max_dynamic_shared_size_bytes = size


def pack(length: int, dtype: np.dtype, *arrays: Array | None) -> int:
    """W, how many numbers a thread may load at once: 16 bytes, if rows of `length` elements and all
    these arrays' addresses are multiples of that, else 1."""
    width = 16 // dtype.itemsize
    if length % width or any(a is not None and a.data.ptr % 16 for a in arrays):
        return 1
    return width


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def pointer(array: Array | None) -> Any:
    """The array as a kernel's argument, or the null pointer."""
    return 0 if array is None else array


@functools.cache
def c_name(dtype: np.dtype) -> str:
    """The C++ name of numbers of this dtype."""
    return C_NAMES[dtype.name]


def type_of(array: Array) -> str:
    """The C++ name of the type of the array's numbers."""
    return c_name(array.dtype)


def as_bool(value: bool) -> str:
    """True or False as C++ writes it."""
    return "true" if value else "false"
