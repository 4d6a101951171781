"""Matrix products straight from cuBLAS, which can do more than cupy.matmul asks of it:

float32 results of two-byte inputs, adding to what is there, TF32 for one product and not for the
next, bias and GELU applied before the result is stored, and being recorded into a CUDA graph, which
products of many matrices are too.

cuBLAS stores matrices by columns, NumPy by rows. A row-major matrix read by columns is its
transpose, so from C^T = B^T A^T it is given B and A in that order and writes C as we store it;
transposed views need no copy either.

cuBLAS has many kernels for one product, and its guess which is the fastest can be off by a third.
For all but tiny products the first few candidates are timed, once; the choice is kept in a file
beside CuPy's compiled kernels, so that the next run makes the same one and gives the same bits.
"""

import contextlib
import ctypes
import functools
import hashlib
import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.arrays import Array
from ...engine.products import as_rows
from ...training.files import parse_json, read_file, replace_file

_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # cudaDataType
_COMPUTE_FLOAT32, _COMPUTE_FLOAT64, _COMPUTE_TF32 = 68, 70, 77  # cublasComputeType_t
_TRANSPOSE_A, _TRANSPOSE_B, _EPILOGUE, _BIAS, _AUX, _AUX_LEAD = 3, 4, 7, 8, 11, 12  # of the product
_BATCH_COUNT, _BATCH_STRIDE = 5, 6  # of a layout
_WORKSPACE_LIMIT, _REDUCTIONS, _ALIGNMENT = 1, 3, (5, 6, 7, 8)  # of the search for a kernel
_IN_COMPUTE_TYPE = 2  # partial sums are added in float32, never in the two bytes of the result
# What is done to a product before it is stored, as bits: a bias is added, GELU is taken, or it is
# multiplied by GELU's slope; "aux" is where GELU leaves what it was given, and its slope finds it.
_PLAIN, _WITH_BIAS, _WITH_GELU, _WITH_SLOPE, _WITH_AUX = 1, 4, 32, 64, 128
WORKSPACE = 32 << 20  # bytes: what NVIDIA recommends for Hopper
CANDIDATES = 8
WORTH_TIMING = 1 << 17  # multiplications: for a head of 10 classes a first guess took 24 us for 3


class _Candidate(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8), ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int), ("waves", ctypes.c_float), ("reserved", ctypes.c_int * 4),
    )  # fmt: skip


@functools.cache
def _library() -> Any:
    from cuda.pathfinder import load_nvidia_dynamic_lib

    library = ctypes.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)
    library.cublasLtGetVersion.restype = ctypes.c_size_t
    address, size = ctypes.c_void_p, ctypes.c_size_t
    library.cublasLtMatmul.argtypes = [*[address] * 14, size, address]
    library.cublasLtMatmulDescSetAttribute.argtypes = [address, ctypes.c_int, address, size]
    return library


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_library(), name)(*arguments)
    if status != 0:
        raise RuntimeError(f"{name} failed with status {status}")


class _Context(threading.local):
    """For each thread: cuBLAS's handle on each GPU, a workspace for each stream, the plans."""

    def __init__(self) -> None:
        self.handles: dict[int, Any] = {}
        self.workspaces: dict[tuple[int, int], Any] = {}
        self.plans: dict[tuple, _Plan | None] = {}

    def handle(self, device: int) -> Any:
        if device not in self.handles:
            handle = ctypes.c_void_p()
            _call("cublasLtCreate", ctypes.byref(handle))
            self.handles[device] = handle
        return self.handles[device]

    def workspace(self, device: int, stream: int) -> int:
        """Its address: products on one stream follow one another, and can share it."""
        key = (device, stream)
        if key not in self.workspaces:
            import cupy

            # Not from the current pool, which may be one that is to go with a recorded step.
            self.workspaces[key] = cupy.get_default_memory_pool().malloc(WORKSPACE)
        return self.workspaces[key].ptr


_context = _Context()


class _Plan:
    """How cuBLAS is to compute one kind of product, or `count` of them whose matrices lie so many
    elements apart: all but the addresses."""

    def __init__(
        self, device, m, k, n, op_a, lead_a, op_b, lead_b, dtype, out_dtype, tf32, epilogue,
        alignment, count=1, apart_a=0, apart_b=0,
    ):  # fmt: skip
        self.handle = _context.handle(device)
        double = dtype == np.float64
        scalar = ctypes.c_double if double else ctypes.c_float
        self.one, self.zero = ctypes.byref(scalar(1)), ctypes.byref(scalar(0))
        self.description = ctypes.c_void_p()
        compute = _COMPUTE_TF32 if tf32 else _COMPUTE_FLOAT64 if double else _COMPUTE_FLOAT32
        scalar_type = _TYPES["float64" if double else "float32"]
        _call("cublasLtMatmulDescCreate", ctypes.byref(self.description), compute, scalar_type)
        self.set(_TRANSPOSE_A, ctypes.c_int32(op_b))
        self.set(_TRANSPOSE_B, ctypes.c_int32(op_a))
        self.set(_EPILOGUE, ctypes.c_uint32(epilogue))
        if epilogue & _WITH_AUX:
            self.set(_AUX_LEAD, ctypes.c_int64(n))
        # As cuBLAS sees them: rows and columns of what is stored, by columns.
        self.b = _new_layout(dtype, *((k, n) if op_b else (n, k)), lead_b, count, apart_b)
        self.a = _new_layout(dtype, *((m, k) if op_a else (k, m)), lead_a, count, apart_a)
        self.out = _new_layout(out_dtype, n, m, n, count, m * n)
        preference = ctypes.c_void_p()
        _call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        limit = ctypes.c_uint64(WORKSPACE)
        _set_preference(preference, _WORKSPACE_LIMIT, limit)
        _set_preference(preference, _REDUCTIONS, ctypes.c_uint32(_IN_COMPUTE_TYPE))
        for attribute in _ALIGNMENT:
            _set_preference(preference, attribute, ctypes.c_uint32(alignment))
        self.candidates = (_Candidate * CANDIDATES)()
        found = ctypes.c_int(0)
        status = _library().cublasLtMatmulAlgoGetHeuristic(
            self.handle, self.description, self.b, self.a, self.out, self.out, preference,
            CANDIDATES, self.candidates, ctypes.byref(found),
        )  # fmt: skip
        _call("cublasLtMatmulPreferenceDestroy", preference)
        self.found = 0 if status else found.value
        self.repeats = max(3, min(20, (1 << 33) // (m * k * n * count)))
        self.algorithms = [(ctypes.byref(c.algorithm), c.workspace) for c in self.candidates]
        self.chosen = 0

    def set(self, attribute: int, value: Any) -> None:
        _call(
            "cublasLtMatmulDescSetAttribute", self.description, attribute, ctypes.byref(value),
            ctypes.sizeof(value),
        )  # fmt: skip

    def run(self, a: Array, b: Array, out: Array, accumulate: bool, stream: int, space: int) -> int:
        algorithm, workspace = self.algorithms[self.chosen]
        to = out.data.ptr
        return _library().cublasLtMatmul(
            self.handle, self.description, self.one, b.data.ptr, self.b, a.data.ptr, self.a,
            self.one if accumulate else self.zero, to, self.out, to, self.out, algorithm, space,
            workspace, stream,
        )  # fmt: skip

    def choose(self, a: Array, b: Array, out: Array, space: int) -> None:
        """Time the candidates on these very arrays (out is overwritten)."""
        import cupy

        cupy.cuda.get_current_stream().synchronize()
        stream = cupy.cuda.Stream(non_blocking=True)
        times = []
        for index in range(self.found):
            self.chosen = index
            if self.run(a, b, out, False, stream.ptr, space) != 0:
                continue
            stream.begin_capture()  # Python could not start small products as fast as they end
            for _ in range(self.repeats):
                self.run(a, b, out, False, stream.ptr, space)
            graph = stream.end_capture()
            rounds = []
            for _ in range(3):
                start, end = cupy.cuda.Event(), cupy.cuda.Event()
                start.record(stream)
                graph.launch(stream)
                end.record(stream)
                end.synchronize()
                rounds.append(cupy.cuda.get_elapsed_time(start, end))
            times.append((min(rounds), index))
        # The first guess stays unless another is clearly faster.
        best = min(times, default=(0.0, 0))
        first = dict((index, time) for time, index in times).get(0)
        self.chosen = 0 if first is not None and first < 1.02 * best[0] else best[1]


def _new_layout(
    dtype: np.dtype, rows: int, columns: int, lead: int, count: int, apart: int
) -> Any:  # fmt: skip
    layout = ctypes.c_void_p()
    _call(
        "cublasLtMatrixLayoutCreate", ctypes.byref(layout), _TYPES[dtype.name],
        ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(lead),
    )  # fmt: skip
    if count > 1:
        pairs = (_BATCH_COUNT, ctypes.c_int32(count)), (_BATCH_STRIDE, ctypes.c_int64(apart))
        for attribute, value in pairs:
            _call(
                "cublasLtMatrixLayoutSetAttribute", layout, attribute, ctypes.byref(value),
                ctypes.c_size_t(ctypes.sizeof(value)),
            )  # fmt: skip
    return layout


def _set_preference(preference: Any, attribute: int, value: Any) -> None:
    _call(
        "cublasLtMatmulPreferenceSetAttribute", preference, attribute, ctypes.byref(value),
        ctypes.c_size_t(ctypes.sizeof(value)),
    )  # fmt: skip


# ---- the choices, kept on disk ------------------------------------------------------------------


@functools.cache
def _choices(device: int) -> tuple[Path, dict[str, int]]:
    """The file and what it holds: for each kind of product, which candidate was the fastest."""
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(device)["name"].decode()
    what = f"{name} cuBLAS {_library().cublasLtGetVersion()} {WORKSPACE} {CANDIDATES}"
    cache = Path(os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")).expanduser()
    path = cache / f"minimixer-products-{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
    return path, _read_choices(path)


def _read_choices(path: Path) -> dict[str, int]:
    try:
        stored = parse_json(read_file(path))
    except (OSError, ValueError):  # absent, damaged
        return {}
    items = stored.items() if isinstance(stored, dict) else ()
    return {k: v for k, v in items if type(v) is int and 0 <= v < CANDIDATES}


def _remember(device: int, key: str, choice: int) -> None:
    path, choices = _choices(device)
    choices |= {**_read_choices(path), key: choice}  # other processes may have added some
    with contextlib.suppress(OSError, ValueError):  # then it is timed again in the next run
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            file.write(json.dumps(choices, indent=0, sort_keys=True).encode())


# ---- the products -------------------------------------------------------------------------------


def matmul(
    a: Array, b: Array, out: Array | None = None, accumulate: bool = False,
    precision: str | None = None, bias: Array | None = None,
) -> Array:  # fmt: skip
    """backend.matmul for two matrices."""
    (m, k), (k_of_b, n) = a.shape, b.shape
    if k != k_of_b:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: the inner lengths differ")
    if out is None:
        out = _empty((m, n), a.dtype)
    elif out.shape != (m, n):
        raise ValueError(f"matmul: `out` is {out.shape}, the product {(m, n)}")
    if bias is not None:
        inside = not accumulate and bias.dtype == out.dtype and bias.data.ptr % 16 == 0
        inside = inside and bias.flags.c_contiguous
        if inside and _product(a, b, out, False, precision, _WITH_BIAS, bias, None):
            return out
    if not _product(a, b, out, accumulate, precision, _PLAIN, None, None):
        _plainly(a, b, out, accumulate)
    if bias is not None:
        out += bias
    return out


def matmuls(a: Array, b: Array) -> Array:
    """a (..., m, k) @ b (..., k, n) in one call, leading axes broadcast. Matrices that do not lie
    evenly apart are copied first."""
    import cupy

    if b.ndim == 2:
        return matmul(as_rows(a), b).reshape(*a.shape[:-1], b.shape[1])
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: the inner lengths differ")
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = cupy.empty((*lead, a.shape[-2], b.shape[-1]), dtype=a.dtype)
    count = math.prod(lead)
    first, second, result = (
        cupy.broadcast_to(x, lead + x.shape[-2:]).reshape(count, *x.shape[-2:]) for x in (a, b, out)
    )  # views where they can be
    if not _product(first, second, result, False, None, _PLAIN, None, None):
        _plainly(a, b, out, False)
    return out


def matmul_gelu(
    a: Array, b: Array, bias: Array | None, keep_u: bool
) -> tuple[Array, Array | None] | None:
    """(gelu(u), u) for u = a b + bias (columns,), GELU in the tanh form; u only if wanted.

    None if cuBLAS can't.
    """
    shape = (a.shape[0], b.shape[1])
    if shape[1] % 8 or (bias is not None and bias.data.ptr % 16):
        return None
    g = _empty(shape, a.dtype)
    u = _empty(shape, a.dtype) if keep_u else None
    epilogue = _WITH_GELU | (_WITH_BIAS if bias is not None else 0) | (_WITH_AUX if keep_u else 0)
    return (g, u) if _product(a, b, g, False, None, epilogue, bias, u) else None


def matmul_slope(a: Array, b: Array, u: Array) -> Array | None:
    """`a @ b` times gelu'(u), GELU in the tanh form. None if cuBLAS can't."""
    if u.shape[1] % 8 or u.data.ptr % 16:
        return None
    out = _empty(u.shape, a.dtype)
    return out if _product(a, b, out, False, None, _WITH_SLOPE | _WITH_AUX, None, u) else None


def can_fuse(dtype: np.dtype) -> bool:
    """Does GELU in a product pay? Its tanh is the hardware's, right to 11 bits, and for float32
    cuBLAS runs a kernel of its own after the product."""
    return dtype.itemsize == 2


def _empty(shape: tuple[int, int], dtype: np.dtype) -> Array:
    import cupy

    return cupy.empty(shape, dtype=dtype)


def _product(a, b, out, accumulate, precision, epilogue, bias, aux) -> bool:
    """`out = a @ b`, of two matrices or of two stacks of as many; False if cuBLAS has no kernel for
    it."""
    import cupy

    (m, k), n = a.shape[-2:], b.shape[-1]
    dtype, out_dtype = a.dtype, out.dtype
    if not out.size * k or b.dtype != dtype or not out.flags.c_contiguous:
        return False
    if out_dtype != dtype and not (dtype.itemsize == 2 and out_dtype == np.float32):
        return False
    a, *layout_a = _layout(a)
    b, *layout_b = _layout(b)
    tf32 = precision == "tf32" and dtype == np.float32
    addresses = a.data.ptr | b.data.ptr | out.data.ptr | 256
    stack: tuple[int, ...] = ()
    if out.ndim == 3:
        stack = len(out), a.strides[0] // a.itemsize, b.strides[0] // b.itemsize
        addresses |= a.strides[0] | b.strides[0] | out.strides[0]  # where the others begin
    alignment = addresses & -addresses  # the largest power of two that divides them all, up to 256
    kind = (m, k, n, *layout_a, *layout_b, dtype, out_dtype, tf32, epilogue, alignment, *stack)
    device = out.device.id
    stream = cupy.cuda.get_current_stream().ptr
    space = _context.workspace(device, stream)
    plan = _context.plans.get((device, kind))
    new = final = plan is None
    if plan is None:
        plan = _Plan(device, *kind)
    if not plan.found:
        _context.plans[device, kind] = plan
        return False
    if bias is not None:
        plan.set(_BIAS, ctypes.c_uint64(bias.data.ptr))
    if aux is not None:
        plan.set(_AUX, ctypes.c_uint64(aux.data.ptr))
    if new and plan.found > 1 and out.size * k >= WORTH_TIMING:
        key = " ".join(map(str, kind))
        choice = _choices(device)[1].get(key)
        if choice is not None:
            plan.chosen = min(choice, plan.found - 1)
        elif not cupy.cuda.get_current_stream().is_capturing():
            plan.choose(a, b, out.copy() if accumulate else out, space)
            _remember(device, key, plan.chosen)
        else:  # nothing can be timed now: take cuBLAS's first, and choose when it comes again
            final = False
    if final:
        _context.plans[device, kind] = plan
    status = plan.run(a, b, out, accumulate, stream, space)
    if status != 0:
        raise RuntimeError(f"cublasLtMatmul {a.shape} @ {b.shape} in {dtype}: status {status}")
    return True


def _layout(matrix: Array) -> tuple[Array, int, int]:
    """(matrix, whether cuBLAS must transpose it, distance between rows or columns): a copy only if
    neither its rows nor its columns are contiguous. A stack of matrices likewise."""
    rows, columns = matrix.shape[-2:]
    size = matrix.dtype.itemsize
    down, right = matrix.strides[-2] // size, matrix.strides[-1] // size
    if (right == 1 or columns == 1) and (down >= columns or rows == 1):
        return matrix, 0, max(down if rows > 1 else columns, columns)
    if (down == 1 or rows == 1) and (right >= rows or columns == 1):
        return matrix, 1, max(right if columns > 1 else rows, rows)
    return matrix.copy(order="C"), 0, columns


def _plainly(a: Array, b: Array, out: Array, accumulate: bool) -> None:
    """What cuBLAS has no kernel for: nothing to multiply, mixed dtypes, `out` with gaps."""
    import cupy

    dtype = np.float64 if "float64" in (a.dtype.name, out.dtype.name) else np.float32
    product = cupy.matmul(a.astype(dtype), b.astype(dtype))
    if accumulate:
        product += out
    out[...] = product.astype(out.dtype)
