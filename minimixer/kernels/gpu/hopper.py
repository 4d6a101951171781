"""Kernels for the tensor cores of Hopper GPUs, compute capability 9.0: what they share.

Their C++ is hopper.cu, and `multiply`: an instruction that names each register of its sum, so its
text is made here, for each number of columns. Other GPUs go as mlp.py says.
"""

import ctypes
import functools

import numpy as np

from ...engine.arrays import Array
from ...engine.devices import driver
from .cuda import source_of

CAPABILITY = "90"  # whose instructions they take
COMPILER = (12, 9)  # NVRTC's version, at least
MOST = 2**30  # rows or columns of a matrix that comes in tiles, whose places are 32-bit numbers
KINDS = {"bfloat16": "bf16", "float16": "f16"}
_TENSOR_KINDS = {"float16": 6, "bfloat16": 9}  # the driver's numbers: of types,
_SWIZZLE_128, _PROMOTE_256 = 3, 3  # of ways to lie in shared memory, and in the level-2 cache


def suits(*arrays: Array) -> bool:
    """Has their GPU these tensor cores, and do all have numbers of the same two bytes, and lie
    where 16 may be read at once?"""
    first = arrays[0]
    return (
        first.device.compute_capability == CAPABILITY
        and first.dtype.name in KINDS
        and not _is_old()
        and all(a.dtype == first.dtype and not a.data.ptr % 16 for a in arrays)
    )


@functools.cache
def _is_old() -> bool:
    """Is the compiler?"""
    from cupy.cuda import nvrtc

    return nvrtc.getVersion() < COMPILER


@functools.cache
def text(dtype: str, *ways: tuple[int, str]) -> str:
    """The C++ before a kernel's own: hopper.cu, with `multiply` for so many columns, whose left
    factor comes from "registers", from "shared" memory, or from there "transposed"."""
    made = (_multiply(n, KINDS[dtype], place) for n, place in dict.fromkeys(ways))
    return source_of("hopper.cu") + "".join(made)


def _multiply(columns: int, kind: str, place: str) -> str:
    from_shared = place != "registers"
    size = columns // 2  # numbers of the sum that a thread has
    left = 1 if from_shared else 4  # operands
    sums = ", ".join(f"%{i}" for i in range(size))
    operands = ", ".join(f'"+f"(sum[{i}])' for i in range(size))
    a = ", ".join(f"%{size + i}" for i in range(left))
    a_type = "Long a" if from_shared else "const Word (&a)[4]"
    a_given = '"l"(a)' if from_shared else ", ".join(f'"r"(a[{i}])' for i in range(4))
    a_text, order = (a, f"{int(place == 'transposed')}, 0") if from_shared else (f"{{{a}}}", "0")
    return f"""
__device__ inline void multiply(float (&sum)[{size}], {a_type}, Long b, int add) {{
    asm volatile("{{ .reg .pred add; setp.ne.b32 add, %{size + left + 1}, 0;\\n"
        "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "
        "{{{sums}}}, {a_text}, %{size + left}, add, 1, 1, {order}; }}"
        : {operands} : {a_given}, "l"(b), "r"(add));
}}
"""


def tensor_map(matrix: Array, rows: int, columns: int) -> np.ndarray:
    """What a kernel needs to copy tiles of a contiguous matrix of two bytes: an argument."""
    words = np.zeros(24, np.uint64)
    start = -words.ctypes.data % 64 // 8  # it must lie at a multiple of 64
    made = words[start : start + 16]
    u64, u32 = ctypes.c_uint64, ctypes.c_uint32
    status = driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(made.ctypes.data), _TENSOR_KINDS[matrix.dtype.name], 2,
        ctypes.c_void_p(matrix.data.ptr), (u64 * 2)(*matrix.shape[::-1]),
        (u64 * 1)(2 * matrix.shape[1]), (u32 * 2)(columns, rows), (u32 * 2)(1, 1), 0, _SWIZZLE_128,
        _PROMOTE_256, 0,
    )  # fmt: skip
    if status:
        raise RuntimeError(f"cuTensorMapEncodeTiled {matrix.shape}: status {status}")
    return made.view("V128")
