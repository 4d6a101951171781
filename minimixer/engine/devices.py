"""Which devices there are, and what may be wrong with a GPU.

>>> from minimixer.engine.devices import check_device
>>> check_device("cpu")
'cpu'
>>> check_device("gpu")
Traceback (most recent call last):
ValueError: unknown device 'gpu': use 'cpu', 'cuda' or 'cuda:N'
"""

import contextlib
import ctypes
import functools
import re
import sys


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
def driver() -> ctypes.CDLL:
    """CUDA's driver, for what CuPy does not ask of it."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


@functools.cache
def _count_gpus() -> int:
    """How many GPUs CuPy can use; each reason for none has a sentence of its own."""
    either = "'cupy-cuda12x[ctk]>=14.2' (CUDA 12) or 'cupy-cuda13x[ctk]>=14.2' (CUDA 13)"
    install = f"pip install {either}"
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


def several_gpus() -> bool:
    """So that it has to be said which one is to work?"""
    return _count_gpus() > 1


def check_not_recorded(what: str) -> None:
    """RuntimeError if a CUDA graph (graph/) is being recorded, which would keep an old value."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and cupy.cuda.get_current_stream().is_capturing():
        raise RuntimeError(f"{what} inside of a recorded step would repeat the values of now")


def synchronize(device: str) -> None:
    """Wait until the device has done all its work. A GPU works on while Python runs ahead."""
    if device != "cpu":
        cupy = sys.modules["cupy"]
        cupy.cuda.Device(int(check_device(device)[5:])).use()
        cupy.cuda.get_current_stream().synchronize()


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
