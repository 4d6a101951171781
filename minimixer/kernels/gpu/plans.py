"""How cuBLAS computes one kind of product, found out once: a plan, and which of its kernels to run.

cuBLAS has many kernels for one product, and its guess which is the fastest can be off by a third.
For all but tiny products the first few candidates are timed, once; the choice is kept in a file
beside CuPy's compiled kernels, so that the next run makes the same one and gives the same bits. Of
processes that time at once the first to write there decides for all. Another machine may decide
otherwise, and rounds otherwise then. kernels.use("untimed") always takes cuBLAS's guess: the same
bits on all GPUs of one kind, with the same cuBLAS.
"""

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.arrays import Array
from ...training.files import Lock, parse_json, read_file, replace_file

_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # cudaDataType
_COMPUTE_FLOAT32, _COMPUTE_FLOAT64, _COMPUTE_TF32 = 68, 70, 77  # cublasComputeType_t
_TRANSPOSE_A, _TRANSPOSE_B, _EPILOGUE, BIAS, AUX, _AUX_LEAD = 3, 4, 7, 8, 11, 12  # of the product
_BATCH_COUNT, _BATCH_STRIDE = 5, 6  # of a layout
_WORKSPACE_LIMIT, _REDUCTIONS, _ALIGNMENT = 1, 3, (5, 6, 7, 8)  # of the search for a kernel
_IN_COMPUTE_TYPE = 2  # partial sums are added in float32, never in the two bytes of the result
# What is done to a product before it is stored, as bits: a bias is added, GELU is taken, or it is
# multiplied by GELU's slope; "aux" is where GELU leaves what it was given, and its slope finds it.
PLAIN, WITH_BIAS, WITH_GELU, WITH_SLOPE, WITH_AUX = 1, 4, 32, 64, 128
WORKSPACE = 32 << 20  # bytes that a kernel may ask for: what NVIDIA recommends for Hopper
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
    """For each thread: cuBLAS's handle on each GPU, workspaces for each stream, the plans."""

    def __init__(self) -> None:
        self.handles: dict[int, Any] = {}
        self.workspaces: dict[tuple[int, int], list[Any]] = {}
        self.plans: dict[tuple, Plan | None] = {}

    def handle(self, device: int) -> Any:
        if device not in self.handles:
            handle = ctypes.c_void_p()
            _call("cublasLtCreate", ctypes.byref(handle))
            self.handles[device] = handle
        return self.handles[device]

    def workspace(self, device: int, stream: int, nbytes: int) -> int:
        """Its address: products on one stream follow one another, and can share it."""
        if not nbytes:
            return 0
        held = self.workspaces.setdefault((device, stream), [])
        if not held or held[-1].mem.size < nbytes:  # a recorded step uses those before
            held.append(_memory(nbytes))
        return held[-1].ptr


def _memory(nbytes: int) -> Any:
    """Not from the current pool, which may be one that is to go with a recorded step."""
    import cupy

    return cupy.get_default_memory_pool().malloc(nbytes)


context = _Context()


class Plan:
    """How cuBLAS is to compute one kind of product, or `count` of them whose matrices lie so many
    elements apart: all but the addresses."""

    def __init__(
        self, device, m, k, n, op_a, lead_a, op_b, lead_b, dtype, out_dtype, tf32, epilogue,
        alignment, count=1, apart_a=0, apart_b=0,
    ):  # fmt: skip
        self.handle = context.handle(device)
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
        if epilogue & WITH_AUX:
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

    @property
    def workspace(self) -> int:
        """Bytes that what was chosen asks for."""
        return self.algorithms[self.chosen][1]

    def set(self, attribute: int, value: Any) -> None:
        _call(
            "cublasLtMatmulDescSetAttribute", self.description, attribute, ctypes.byref(value),
            ctypes.sizeof(value),
        )  # fmt: skip

    def run(self, a: Array, b: Array, out: Array, accumulate: bool, stream: int, space: int) -> int:
        algorithm, nbytes = self.algorithms[self.chosen]
        to = out.data.ptr
        return _library().cublasLtMatmul(
            self.handle, self.description, self.one, b.data.ptr, self.b, a.data.ptr, self.a,
            self.one if accumulate else self.zero, to, self.out, to, self.out, algorithm, space,
            nbytes, stream,
        )  # fmt: skip

    def choose(self, a: Array, b: Array, out: Array) -> None:
        """Time the candidates on these very arrays (out is overwritten)."""
        import cupy

        memory = _memory(max(nbytes for _, nbytes in self.algorithms[: self.found]))
        space = memory.ptr
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


def version() -> int:
    """That of cuBLAS, as 130200: which kernels there are, and what it guesses, depends on it."""
    return _library().cublasLtGetVersion()


# ---- the choices, kept on disk ------------------------------------------------------------------


@functools.cache
def choices(device: int) -> tuple[Path, dict[str, int]]:
    """The file and what it holds: for each kind of product, which candidate was the fastest."""
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(device)["name"].decode()
    what = f"{name} cuBLAS {version()} {WORKSPACE} {CANDIDATES}"
    cache = Path(os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")).expanduser()
    path = cache / f"minimixer-products-{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
    return path, read_choices(path)


def read_choices(path: Path) -> dict[str, int]:
    try:
        stored = parse_json(read_file(path))
    except (OSError, ValueError):  # absent, damaged
        return {}
    items = stored.items() if isinstance(stored, dict) else ()
    return {k: v for k, v in items if type(v) is int and 0 <= v < CANDIDATES}


def remember(device: int, key: str, choice: int) -> int:
    """Keep this choice. What counts is returned: another process may have been quicker."""
    path, known = choices(device)
    with contextlib.suppress(OSError, ValueError):  # then it is timed again in the next run
        path.parent.mkdir(parents=True, exist_ok=True)
        with Lock(path.with_suffix(".lock"), wait=True):
            known |= read_choices(path)
            known.setdefault(key, choice)
            with replace_file(path) as file:
                file.write(json.dumps(known, indent=0, sort_keys=True).encode())
    return known.setdefault(key, choice)
